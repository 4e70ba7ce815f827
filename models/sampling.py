"""Sampling of anchors and proposals that depends on each image's own seed, not on the batch around it."""

import hashlib

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

# The two draws of one image must not repeat each other, so each sampler mixes its own name into the image's seed.
RPN_STREAM = "rpn"
ROI_STREAM = "roi"

# Above this many candidates a pick, drawing until distinct is far cheaper than permuting all of them
# (an 800 x 1333 image has 267,069 anchors, of which 256 are drawn).
SPARSE_CANDIDATES_PER_PICK = 8


class SeededSampler(BalancedPositiveNegativeSampler):
    """torchvision's balanced sampler, drawing for each image from a generator of its own.

    `seeds` has one entry an image of the batch, in order; where it is None the draw is torchvision's, from the global
    generator.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, stream: str) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.stream = stream
        self.seeds: list[int | None] = []

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (uint8) of the chosen positives and negatives; see torchvision for the meaning of `matched_idxs`."""
        seeds = self.seeds if len(self.seeds) == len(matched_idxs) else [None] * len(matched_idxs)
        positive_masks, negative_masks = [], []
        for matched, seed in zip(matched_idxs, seeds, strict=True):
            if seed is None:
                (positive_mask,), (negative_mask,) = super().__call__([matched])
            else:
                positive_mask, negative_mask = self._draw(matched, seed)
            positive_masks.append(positive_mask)
            negative_masks.append(negative_mask)
        return positive_masks, negative_masks

    def _draw(self, matched: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = image_generator(seed, self.stream)
        positive = torch.where(matched >= 1)[0]
        negative = torch.where(matched == 0)[0]
        positive_count = min(positive.numel(), int(self.batch_size_per_image * self.positive_fraction))
        negative_count = min(negative.numel(), self.batch_size_per_image - positive_count)
        return (
            _mask(matched, positive, positive_count, generator),
            _mask(matched, negative, negative_count, generator),
        )


def image_generator(seed: int, stream: str) -> torch.Generator:
    """A generator that is a function of the whole seed and of the stream; on the CPU, so that a GPU chooses alike."""
    # PyTorch's CPU generator looks at the low 32 bits of a seed only, so all of it is hashed into those.
    digest = hashlib.blake2b(f"{stream} {seed}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def _mask(matched: Tensor, candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    picks = pick_distinct(candidates.numel(), count, generator).to(candidates.device)
    mask = torch.zeros_like(matched, dtype=torch.uint8)
    mask[candidates[picks]] = 1
    return mask


def pick_distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct numbers of 0..total-1, every subset equally likely."""
    if total < SPARSE_CANDIDATES_PER_PICK * count:
        return torch.randperm(total, generator=generator)[:count]
    picked: dict[int, None] = {}
    while len(picked) < count:
        picked.update(dict.fromkeys(torch.randint(total, (2 * count,), generator=generator).tolist()))
    return torch.tensor(list(picked)[:count], dtype=torch.int64)


def install_seeded_samplers(model: nn.Module) -> None:
    """Make a Faster R-CNN draw its training samples from each target's `sample_seed` (an int), where there is one."""
    for part, stream in ((model.rpn, RPN_STREAM), (model.roi_heads, ROI_STREAM)):
        sampler = part.fg_bg_sampler
        if type(sampler) is BalancedPositiveNegativeSampler:  # not a researcher's own
            part.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction, stream)
    # A module's function, not a closure: copies of the model then seed their own samplers, not this one's.
    if _pass_seeds not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_pass_seeds, with_kwargs=True)


def _pass_seeds(model: nn.Module, args: tuple, kwargs: dict) -> None:
    targets = kwargs.get("targets", args[1] if len(args) > 1 else None) or []
    seeds = [None if (seed := target.get("sample_seed")) is None else int(seed) for target in targets]
    model.rpn.fg_bg_sampler.seeds = seeds
    model.roi_heads.fg_bg_sampler.seeds = seeds
