"""Augmentation: whatever goes in, what comes out is a set of boxes a detector can train on, and the same each time."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.transforms import FILL, PRESETS, BoxSafeCrop, LargeScaleJitter, Transform, build_transform

TRANSFORMS = {name: build_transform(name) for name in PRESETS if name != "none"}


def spans(side):
    """(first, last) of a box along a side: anywhere, at an edge, one pixel, the whole side, less than a pixel."""
    anywhere = st.tuples(st.floats(0, side - 0.02), st.floats(0.02, side)).map(lambda one: (one[0], sum(one)))
    pixel = st.integers(0, side - 1).map(lambda first: (first, first + 1))
    return (anywhere | pixel | st.just((0, side))).map(lambda span: (span[0], min(span[1], side)))


@st.composite
def images_with_boxes(draw, longest=90):
    width, height = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    boxes = draw(st.lists(st.tuples(spans(width), spans(height)), max_size=5))
    boxes = np.array([(x1, y1, x2, y2) for (x1, x2), (y1, y2) in boxes], dtype=np.float64)
    return width, height, boxes.reshape(-1, 4)


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=60)
@given(case=images_with_boxes(), seed=st.integers(0, 2**32 - 1))
def test_results_are_valid_and_repeatable(name, case, seed):
    width, height, boxes = case
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    labels = np.arange(1, len(boxes) + 1)
    before = image.copy(), boxes.copy()
    new_image, new_boxes, new_labels, kept = TRANSFORMS[name](image, boxes, labels, seed)

    assert new_image.dtype == np.uint8 and new_image.ndim == 3 and new_image.shape[2] == 3
    assert new_image.flags.c_contiguous
    new_height, new_width = new_image.shape[:2]
    assert new_boxes.shape == (len(kept), 4) and np.isfinite(new_boxes).all()
    assert (new_boxes >= 0).all() and (new_boxes <= [new_width, new_height, new_width, new_height]).all()
    assert (new_boxes.astype(np.float32)[:, 2:] > new_boxes.astype(np.float32)[:, :2]).all()
    smallest = np.minimum((boxes[:, 2:] - boxes[:, :2]).min(axis=1) - 0.002, 0.5)
    assert ((new_boxes[:, 2:] - new_boxes[:, :2]).min(axis=1) >= smallest[kept]).all()
    assert new_labels.dtype == np.int64 and kept.dtype == np.int64
    np.testing.assert_array_equal(new_labels, labels[kept])

    again = TRANSFORMS[name](image, boxes, labels, seed)
    for one, other in zip((new_image, new_boxes, new_labels, kept), again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_boxes_stay_on_their_objects(name):
    """A white block on black: wherever it is moved to, its box must still be its extent."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[30:70, 50:110] = 255
    boxes, labels = np.array([[50.0, 30, 110, 70]]), np.array([3])
    checked = 0
    for seed in range(40):
        new_image, new_boxes, _, kept = TRANSFORMS[name](image, boxes, labels, seed)
        if not len(kept):
            continue
        # Jitter and noise keep the block brighter than the grey that fills what a shift lays bare.
        blurred = cv2.GaussianBlur(new_image, (3, 3), 0).min(axis=2)
        x1, y1, x2, y2 = new_boxes[0].round().astype(int)
        rows, columns = np.nonzero(blurred > 0.75 * np.median(blurred[y1:y2, x1:x2]))
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(new_boxes[0], extent, atol=2.5)
        checked += 1
    assert checked >= 30


def symmetries(image, boxes):
    """The 8 images that a square's symmetries make of one (the second: flipped), with its boxes by exact arithmetic."""
    for turned in (False, True):
        if turned:
            image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        height, width = image.shape[:2]
        for upside_down in (False, True):
            for mirrored in (False, True):
                x, y = (-1 if mirrored else 1), (-1 if upside_down else 1)
                moved = boxes.copy()
                if mirrored:
                    moved[:, [0, 2]] = width - boxes[:, [2, 0]]
                if upside_down:
                    moved[:, [1, 3]] = height - boxes[:, [3, 1]]
                yield image[::y, ::x], moved


@pytest.mark.parametrize("name", ["flip", "dihedral"])
@settings(max_examples=80)
@given(case=images_with_boxes(longest=60), stretch=st.sampled_from([1, 1, 200]), seed=st.integers(0, 2**32 - 1))
def test_symmetries_are_exact_and_lose_no_box(name, case, stretch, seed):
    width, height, boxes = case
    width, boxes = width * stretch, boxes * [stretch, 1, stretch, 1]  # up to 12,000 pixels
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    new_image, new_boxes, _, kept = TRANSFORMS[name](image, boxes, np.ones(len(boxes)), seed)
    assert kept.tolist() == list(range(len(boxes)))
    known = list(symmetries(image, boxes))[: 2 if name == "flip" else 8]
    expected = [moved for pixels, moved in known if np.array_equal(pixels, new_image)]
    assert min(np.abs(moved - new_boxes).max(initial=0) for moved in expected) <= 1e-3


@settings(max_examples=60)
@given(case=images_with_boxes(), seed=st.integers(0, 2**32 - 1))
def test_large_scale_jitter_moves_boxes_with_the_part_that_is_taken(case, seed):
    width, height, boxes = case
    step = LargeScaleJitter()
    step.set_random_seed(seed)
    params = step.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
    moved = step.apply_to_bboxes(boxes / [width, height, width, height], shape=(height, width, 3), **params)
    moved = moved * [width, height, width, height]
    for axis, side in enumerate((width, height)):
        (start, length), (new_start, new_length) = params["taken"][axis], params["given"][axis]
        assert 0 <= start < start + length <= side and 0 <= new_start < new_start + new_length <= side
        assert length == side or new_length == side  # a part is enlarged, or the whole made smaller
        scale = new_length / length
        assert 0.1 - 0.5 / side <= scale <= 2 * side / max(side - 1, 1)  # in whole pixels
        np.testing.assert_allclose(moved[:, axis], (boxes[:, axis] - start) * scale + new_start, atol=1e-6)
        np.testing.assert_allclose(moved[:, axis + 2], (boxes[:, axis + 2] - start) * scale + new_start, atol=1e-6)


def test_large_scale_jitter_draws_all_scales_and_keeps_the_size():
    image = np.full((100, 150, 3), 255, np.uint8)
    image[:, :75] = 254
    shares, scales = [], []
    for seed in range(200):
        new_image, boxes, _, kept = TRANSFORMS["lsj"](image, np.array([[70.0, 45, 80, 55]]), np.ones(1), seed)
        assert new_image.shape == image.shape
        shares.append((new_image == FILL).all(axis=2).mean())
        if len(kept) and (boxes[0] > 0).all() and (boxes[0] < [150, 100, 150, 100]).all():
            scales.append((boxes[0, 2] - boxes[0, 0]) / 10)
    assert 0.4 < np.mean(np.array(shares) > 0.02) < 0.6  # made smaller about as often as larger
    assert min(scales) < 0.2 and max(scales) > 1.8 and np.histogram(scales, 4, (0.1, 2.0))[0].min() > 10


def test_what_large_scale_jitter_makes_smaller_is_averaged():
    """Stripes of a pixel become grey, not other stripes."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[:, ::2] = 255
    step = LargeScaleJitter((0.2, 0.3), fill=(127, 127, 127))
    for seed in range(10):
        step.set_random_seed(seed)
        assert np.abs(step(image=image)["image"].astype(int) - 127).max() < 60


def test_a_box_of_which_a_crop_leaves_less_than_a_quarter_vanishes():
    import albumentations as A  # not before data.transforms, which keeps it from asking a server for newer versions

    crop = Transform([A.Crop(0, 0, 50, 50)])
    boxes = np.array([[30.0, 0, 109, 10], [30, 0, 111, 10], [50, 0, 60, 10]])  # 20 of 79 pixels, 20 of 81, none
    _, left, labels, kept = crop(np.zeros((50, 120, 3), np.uint8), boxes, np.array([4, 5, 6]), 0)
    assert (kept.tolist(), labels.tolist()) == ([0], [4])
    np.testing.assert_allclose(left, [[30, 0, 50, 10]], atol=1e-3)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_that_lose_all_boxes_or_have_none_stay_samples(name):
    """A box in each corner, and none: whatever a crop or shift takes away, shapes and types stay."""
    image = np.zeros((40, 60, 3), np.uint8)
    corners = np.array([[0.0, 0, 2, 2], [58, 0, 60, 2], [0, 38, 2, 40], [58, 38, 60, 40]])
    lost = 0
    for seed in range(60):
        for boxes in (corners, corners[:1], corners[:0]):
            _, new_boxes, labels, kept = TRANSFORMS[name](image, boxes, np.arange(len(boxes), dtype=np.uint8) + 7, seed)
            assert new_boxes.shape == (len(kept), 4) and new_boxes.dtype == np.float64
            assert labels.dtype == np.int64 and labels.tolist() == (kept + 7).tolist()
            lost += len(boxes) == 1 and len(kept) == 0
    assert (lost == 0) if name in ("flip", "dihedral") else lost > 0


@pytest.mark.parametrize("name", ["flip", "dihedral"])
def test_symmetries_lose_no_pixel_and_reach_every_case(name):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    boxes, labels = np.array([[0.0, 0, 1, 2]]), np.array([1])
    results = [TRANSFORMS[name](image, boxes, labels, seed)[0] for seed in range(80)]
    assert all(sorted(result.ravel()) == sorted(image.ravel()) for result in results)
    assert len({(result.shape, result.tobytes()) for result in results}) == {"flip": 2, "dihedral": 8}[name]


def test_the_steps_draw_independently():
    """Compose alone gives all steps one seed: then exactly the flipped images would be the jittered ones."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = (200, 40, 90)
    seen = set()
    for seed in range(60):
        result = TRANSFORMS["standard"](image, np.zeros((0, 4)), np.zeros(0), seed)[0]
        flipped = int(result[20, 10].sum()) < int(result[20, 50].sum())
        coloured = sorted({tuple(pixel) for pixel in result[20].tolist()})[-1] != (200, 40, 90)
        seen.add((flipped, coloured))
    assert len(seen) == 4


def test_other_seeds_give_other_images():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    none = np.zeros((0, 4)), np.zeros(0)
    assert len({TRANSFORMS["strong"](image, *none, seed)[0].tobytes() for seed in range(20)}) > 15


def test_tiny_boxes_survive_a_flip():
    boxes = np.array([[0.0, 0, 1, 2], [638, 478, 639, 480]])  # real data have boxes of 1×2 pixels
    for seed in range(4):
        assert len(TRANSFORMS["flip"](np.zeros((480, 640, 3), np.uint8), boxes, np.array([1, 2]), seed)[1]) == 2


def test_names():
    assert build_transform("none") is None
    with pytest.raises(ValueError, match=r"no augmentation 'mild'\. There are: none, flip"):
        build_transform("mild")


def test_the_safe_crop_cuts_no_box_and_leaves_half_of_each_side():
    crop = Transform([BoxSafeCrop(p=1.0)])
    image, boxes = np.zeros((61, 83, 3), np.uint8), np.array([[0.4, 20.3, 30.7, 40.2], [70.1, 55, 82.9, 60.5]])
    shapes = set()
    for seed in range(60):
        for some in (boxes, boxes[:1], boxes[:0]):
            cropped, moved, _, kept = crop(image, some, np.ones(len(some)), seed)
            assert len(kept) == len(some)
            np.testing.assert_allclose(moved[:, 2:] - moved[:, :2], some[:, 2:] - some[:, :2], atol=1e-3)
            assert cropped.shape[0] >= 30 and cropped.shape[1] >= 41
            shapes.add(cropped.shape)
    assert len(shapes) > 60
