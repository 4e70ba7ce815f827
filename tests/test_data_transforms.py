"""Augmentation: whatever goes in, what comes out is a set of boxes a detector can train on, and the same each time."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.transforms import PRESETS, BoxSafeCrop, Transform, build_transform

TRANSFORMS = {name: build_transform(name) for name in PRESETS if name != "none"}


@st.composite
def images_with_boxes(draw):
    width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    count = draw(st.integers(0, 5))
    corners = st.tuples(
        st.floats(0, width - 0.5), st.floats(0, height - 0.5), st.floats(0.02, width), st.floats(0.02, height)
    )
    boxes = [draw(corners) for _ in range(count)]
    boxes = [(x, y, min(x + w, width), min(y + h, height)) for x, y, w, h in boxes]
    return width, height, np.array(boxes, dtype=np.float64).reshape(-1, 4)


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=60, deadline=None)
@given(case=images_with_boxes(), seed=st.integers(0, 2**32 - 1))
def test_results_are_valid_and_repeatable(name, case, seed):
    width, height, boxes = case
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    labels = np.arange(1, len(boxes) + 1)
    before = image.copy(), boxes.copy()
    new_image, new_boxes, new_labels, kept = TRANSFORMS[name](image, boxes, labels, seed)

    assert new_image.dtype == np.uint8 and new_image.ndim == 3 and new_image.shape[2] == 3
    new_height, new_width = new_image.shape[:2]
    assert new_boxes.shape == (len(kept), 4) and np.isfinite(new_boxes).all()
    assert (new_boxes >= 0).all() and (new_boxes <= [new_width, new_height, new_width, new_height]).all()
    assert (new_boxes.astype(np.float32)[:, 2:] > new_boxes.astype(np.float32)[:, :2]).all()
    assert ((new_boxes[:, 2:] - new_boxes[:, :2]) >= 0.5).all()
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
