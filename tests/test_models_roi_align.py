"""The fast RoIAlign against torchvision's own kernel, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign

from models.roi_align import BagMultiScaleRoIAlign, fix_pooling_scales

IMAGE_HEIGHT, IMAGE_WIDTH = 128, 160


def pools(levels: int = 4, **options) -> tuple[MultiScaleRoIAlign, BagMultiScaleRoIAlign]:
    names = [str(level) for level in range(levels)]
    return (
        MultiScaleRoIAlign(names, sampling_ratio=2, **{"output_size": 7} | options),
        BagMultiScaleRoIAlign(names, sampling_ratio=2, **{"output_size": 7} | options),
    )


def feature_maps(images: int = 1, channels: int = 5, levels: int = 4, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(level): torch.randn(
            images, channels, IMAGE_HEIGHT // stride, IMAGE_WIDTH // stride, dtype=dtype, generator=generator
        ).requires_grad_()
        for level, stride in enumerate((4, 8, 16, 32)[:levels])
    } | {"pool": torch.zeros(images, channels, 2, 3, dtype=dtype)}


def compare(maps: dict[str, torch.Tensor], boxes: list[torch.Tensor], levels: int = 4, **options) -> None:
    """Both poolings agree in values and in gradients, to the rounding of the additions' order."""
    shapes = [(IMAGE_HEIGHT, IMAGE_WIDTH)] * len(boxes)
    results = []
    for pool in pools(levels, **options):
        pooled = pool(maps, boxes, shapes)
        weights = torch.sin(torch.arange(pooled.numel(), dtype=pooled.dtype)).reshape(pooled.shape)
        leaves = [m for m in maps.values() if m.requires_grad]
        results.append((pooled, *torch.autograd.grad((pooled * weights).sum(), leaves)))
    for expected, found in zip(*results, strict=True):
        assert expected.dtype == found.dtype
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


NAMED_BOXES = {
    "whole image": [0, 0, 160, 128],
    "at the right and lower border": [150, 120, 160, 128],
    "touching a corner only": [160, 128, 160, 128],
    "tiny": [40.1, 30.2, 40.3, 30.3],
    "without area": [40, 30, 40, 30],
    "larger than the image": [-200, -300, 500, 400],
    "half outside, upper left": [-20, -20, 20, 20],
    "half outside, lower right": [140, 110, 200, 190],
    "one cell outside": [-6, -6, -1, -1],
    "far outside": [1000, 1000, 1100, 1200],
    "very far": [-1e9, -1e9, 1e9, 1e9],
    "on cell borders": [32, 32, 88, 88],
    "samples exactly one cell outside, upper left": [-5, -5, 23, 23],
    "samples exactly at the end, lower right": [157, 125, 185, 153],
    "flat": [10, 64, 150, 64.5],
}


@pytest.mark.parametrize("box", NAMED_BOXES.values(), ids=NAMED_BOXES)
def test_named_boxes(box):
    compare(feature_maps(), [torch.tensor([box], dtype=torch.float64)])


coordinate = st.floats(-300, 400, width=32) | st.integers(-80, 80).map(lambda n: 4.0 * n)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=6))
def test_any_boxes(corners):
    xyxy = torch.tensor(corners, dtype=torch.float64)
    boxes = torch.cat([torch.minimum(xyxy[:, :2], xyxy[:, 2:]), torch.maximum(xyxy[:, :2], xyxy[:, 2:])], dim=1)
    compare(feature_maps(channels=2), [boxes])


def many_boxes(count: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator, dtype=dtype) * torch.tensor([160.0, 128.0], dtype=dtype)
    sizes = torch.exp(torch.rand(count, 2, generator=generator, dtype=dtype) * 5) * 2
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)


def test_several_images_and_levels():
    compare(feature_maps(images=3), [many_boxes(40, 1), many_boxes(0, 2), many_boxes(25, 3)])


def test_one_level():
    compare(feature_maps(images=2, levels=1), [many_boxes(9, 1), many_boxes(5, 2)], levels=1)


def test_output_size_that_is_not_square():
    compare(feature_maps(), [many_boxes(9, 1)], output_size=(3, 5))


def test_two_maps_of_one_stride():
    maps = feature_maps()
    maps["1"] = torch.randn_like(maps["0"]).requires_grad_()
    compare({"0": maps["0"], "1": maps["1"]}, [many_boxes(9, 1)], levels=2)


def test_no_boxes_at_all():
    maps = feature_maps(images=2)
    nothing = [torch.zeros(0, 4, dtype=torch.float64)] * 2
    pooled = pools()[1](maps, nothing, [(IMAGE_HEIGHT, IMAGE_WIDTH)] * 2)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all((maps[name].grad == 0).all() for name in "0123")


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, 2, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    boxes = [torch.tensor([[1.0, 2.0, 17.0, 15.0], [-3.0, -2.0, 40.0, 9.0]], dtype=torch.float64)]
    pool = pools(levels=1, output_size=2)[1]
    fix_pooling_scales(pool, (4,))
    assert torch.autograd.gradcheck(lambda m: pool({"0": m}, boxes, [(20, 24)]), (small,))


def test_float32_differs_by_rounding_only():
    maps, boxes = feature_maps(dtype=torch.float32), [many_boxes(60, 1, torch.float32)]
    expected, found = (pool(maps, boxes, [(IMAGE_HEIGHT, IMAGE_WIDTH)]) for pool in pools())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)


def test_bfloat16_maps_under_autocast():
    maps = {name: m.detach().bfloat16() for name, m in feature_maps().items()}
    boxes = [many_boxes(60, 1, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (pool(maps, boxes, [(IMAGE_HEIGHT, IMAGE_WIDTH)]) for pool in pools())
    assert found.dtype == expected.dtype == torch.bfloat16
    # Both sum in float32, so the results differ by one rounding to bfloat16 (2^-8) at most.
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-3)


def test_repeats_bit_for_bit():
    maps, boxes = feature_maps(dtype=torch.float32, channels=64), [many_boxes(300, 1, torch.float32)]
    pool = pools()[1]
    runs = []
    for _ in range(2):
        pooled = pool(maps, boxes, [(IMAGE_HEIGHT, IMAGE_WIDTH)])
        runs.append([pooled, *torch.autograd.grad(pooled.square().sum(), [maps[name] for name in "0123"])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_boxes_that_are_not_numbers_give_such_features():
    boxes = [torch.full((1, 4), float("nan"))]
    pool = pools(levels=1)[1]
    fix_pooling_scales(pool, (4,))
    assert pool({"0": torch.ones(1, 3, 5, 8)}, boxes, [(20, 32)]).isnan().all()


def test_adaptive_sampling_is_left_to_torchvision():
    pool, reference = (kind(["0"], 7, 0) for kind in (BagMultiScaleRoIAlign, MultiScaleRoIAlign))
    maps, boxes = feature_maps(levels=1), [many_boxes(5, 1)]
    shapes = [(IMAGE_HEIGHT, IMAGE_WIDTH)]
    assert torch.equal(pool(maps, boxes, shapes), reference(maps, boxes, shapes))


def test_fixed_scales_are_those_torchvision_infers():
    inferring, fixed = pools()
    inferring(feature_maps(), [many_boxes(5, 1)], [(IMAGE_HEIGHT, IMAGE_WIDTH)])
    fix_pooling_scales(fixed, (4, 8, 16, 32))
    assert fixed.scales == inferring.scales
    assert vars(fixed.map_levels) == vars(inferring.map_levels)
