"""Seeded sampling: an image's draw depends on its seed alone, and without seeds it is torchvision's."""

import copy
import pickle

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from models.detector import build, resolve_architecture
from models.sampling import ROI_STREAM, RPN_STREAM, SeededSampler, pick_distinct


def matched(seed: int, size: int = 3000, positives: int = 200) -> torch.Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    values = torch.zeros(size, dtype=torch.float32)
    values[order[:positives]] = 1
    values[order[positives : positives + 300]] = -1
    return values


def draw(images: list[torch.Tensor], seeds: list[int | None], stream: str = RPN_STREAM) -> list[torch.Tensor]:
    sampler = SeededSampler(256, 0.5, stream)
    sampler.seeds = seeds
    positives, negatives = sampler(images)
    return [torch.stack(masks) for masks in zip(positives, negatives, strict=True)]


def test_draw_depends_on_neither_batch_nor_position():
    a, b, c = matched(1), matched(2, size=70_000), matched(3, size=50, positives=3)
    together = draw([a, b, c], [11, 12, 13])
    shuffled = draw([c, a, b], [13, 11, 12])
    alone = [draw([image], [seed])[0] for image, seed in ((a, 11), (b, 12), (c, 13))]
    for first, second, third in zip(together, [shuffled[1], shuffled[2], shuffled[0]], alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_seed_and_stream_change_the_draw():
    image = matched(1)
    first = draw([image], [11])[0]
    assert not torch.equal(first, draw([image], [12])[0])
    assert not torch.equal(first, draw([image], [11], stream=ROI_STREAM)[0])
    # PyTorch's own generator would take these two seeds for one.
    assert not torch.equal(first, draw([image], [11 + (1 << 32)])[0])


@pytest.mark.parametrize(("size", "positives"), [(3000, 200), (70_000, 5), (50, 3), (300, 0), (300, 300), (0, 0)])
def test_counts_and_membership_are_torchvisions(size, positives):
    image = matched(1, size, positives)
    chosen = draw([image], [7])[0]
    expected = BalancedPositiveNegativeSampler(256, 0.5)([image])
    for mask, (torchvision_mask,), is_candidate in zip(chosen, expected, (image >= 1, image == 0), strict=True):
        assert mask.dtype == torchvision_mask.dtype
        assert mask.sum() == torchvision_mask.sum()
        assert not (mask.bool() & ~is_candidate).any()


def test_without_seeds_the_draw_is_torchvisions():
    images = [matched(1), matched(2), matched(3)]
    torch.manual_seed(5)
    expected = BalancedPositiveNegativeSampler(256, 0.5)(images)
    for seeds in ([], [None] * 3):
        torch.manual_seed(5)
        drawn = draw(images, seeds)
        assert torch.equal(torch.stack(drawn), torch.stack([torch.stack(pair) for pair in zip(*expected, strict=True)]))


def test_picks_are_distinct_and_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(400)
    for _ in range(2000):
        picks = pick_distinct(400, 40, generator)
        assert len(picks.unique()) == 40
        counts[picks] += 1
    # 2000 draws of a tenth: 200 each on average, standard deviation 13.4
    assert (counts - 200).abs().max() < 5 * 13.4


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    options = {"image_min_size": 64, "image_max_size": 96, "roi_samples": 4, "trainable_layers": 6}
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    return build(resolve_architecture(name, num_classes=3, **options)).train()


def target(seed: int | None) -> dict:
    found = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([1])}
    return found if seed is None else found | {"sample_seed": seed}


def losses(model, images, targets) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(list(model(images, targets).values()))


def test_losses_repeat_by_seed_whatever_the_global_generator(detector):
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    first = losses(detector, [image], [target(3)])
    torch.manual_seed(99)
    assert torch.equal(first, losses(detector, [image], targets=[target(3)]))
    assert not torch.equal(first, losses(detector, [image], [target(4)]))
    assert detector.rpn.fg_bg_sampler.seeds == detector.roi_heads.fg_bg_sampler.seeds == [4]


def test_an_image_is_sampled_alike_in_any_batch(detector):
    images = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    mean_of_single = torch.stack([losses(detector, [image], [target(n)]) for n, image in enumerate(images)]).mean(0)
    # The classifier's and the RPN's losses are means over as many samples an image, so they average.
    torch.testing.assert_close(losses(detector, images, [target(n) for n in range(3)]), mean_of_single)


def test_copies_seed_their_own_samplers(detector):
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = losses(detector, [image], [target(3)])
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        losses(detector, [image], [target(8)])
        assert torch.equal(expected, losses(twin, [image], [target(3)]))
        assert detector.rpn.fg_bg_sampler.seeds == [8]
