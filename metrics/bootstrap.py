"""The 12 COCO numbers of resampled images: what a number would have been on other images of the same kind.

Images are drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13):
each replicate gives every image a weight, how often it was drawn. Detections are matched with boxes once, within
their image, so only counts change: the AP of a replicate is computed from weighted cumulative sums, exactly as
pycocotools computes it on the images that were drawn (equal scores apart, whose order is that of the given images).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from machine import usable_cores
from metrics.matching import AREAS, IOU_THRESHOLDS, MOST_DETECTIONS, Matches
from progress import Progress

# The order of pycocotools' `stats`.
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
RECALLS = np.linspace(0, 1, 101)  # where COCO looks at the precision
LEVEL = 0.95
REPLICATES = 1000
WIDER = 1.05  # times the quantiles of the normal distribution: without it 95% intervals held 93 to 94 % of the time
FEW_IMAGES = 30  # in fewer 95% intervals held 89 to 93 % of the time (benchmarks/README.md)
NUMBERS_AT_ONCE = 20_000_000  # replicates × detections, boxes or images: less than 1 GB
NORMAL = NormalDist()


@dataclass(frozen=True)
class Scores:
    """AP and AR of each replicate, NaN where it has no box of a class and size."""

    classes: tuple[str, ...]
    ap: np.ndarray  # (replicates, areas, IoU thresholds, classes)
    ar: np.ndarray  # (replicates, areas, IoU thresholds, classes), of 100 detections a class and image
    ar_1: np.ndarray  # (replicates, IoU thresholds, classes), of 1 detection
    ar_10: np.ndarray  # (replicates, IoU thresholds, classes)

    def metrics(self) -> dict[str, np.ndarray]:
        """(replicates,) of each of NAMES; a class without a box is left out of a replicate's mean."""
        values = [self.ap[:, 0], self.ap[:, 0, 0], self.ap[:, 0, 5], *(self.ap[:, area] for area in (1, 2, 3))]
        values += [self.ar_1, self.ar_10, self.ar[:, 0], *(self.ar[:, area] for area in (1, 2, 3))]
        return {name: _mean(each.reshape(len(each), -1)) for name, each in zip(NAMES, values, strict=True)}

    def per_class(self) -> dict[str, dict[str, np.ndarray]]:
        """(replicates,) of AP, AP50 and AR_100 of each class."""
        return {
            name: {
                "AP": _mean(self.ap[:, 0, :, index]),
                "AP50": self.ap[:, 0, 0, index],
                "AR_100": _mean(self.ar[:, 0, :, index]),
            }
            for index, name in enumerate(self.classes)
        }


def _mean(values: np.ndarray) -> np.ndarray:
    """(N,) means of rows without their NaNs; NaN where there is nothing else."""
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    total = np.where(there, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def draws(images: int, *, replicates: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """Weights (≤ at_once, images) of the replicates in turn: how often each image was drawn.

    They follow from the images, the number of the replicate and the seed alone, so two evaluations of the same images
    get the same draws.
    """
    random = np.random.default_rng(seed)
    for start in range(0, replicates, at_once):
        size = min(at_once, replicates - start)
        yield random.multinomial(images, np.full(images, 1 / images), size).astype(np.int32)


def bootstrap(*evaluations: Matches, replicates: int = REPLICATES, seed: int = 0) -> list[Scores]:
    """The scores of each evaluation on the same draws of images: their differences, replicate by replicate, are paired.

    ValueError where the evaluations are not of the same images.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if other.image_ids != first.image_ids:
            raise ValueError("Evaluations of different images cannot be compared image by image")
    with Progress("resampling", replicates * len(evaluations), unit="replicates") as progress:
        return [weighted_scores(each, _weights(each, replicates, seed, progress)) for each in evaluations]


def _weights(matches: Matches, replicates: int, seed: int, progress: Progress) -> Iterator[np.ndarray]:
    numbers = max(len(matches.score), len(matches.box_image), len(matches.image_ids))
    at_once = int(np.clip(NUMBERS_AT_ONCE // numbers, 1, replicates))
    for block in draws(len(matches.image_ids), replicates=replicates, seed=seed, at_once=at_once):
        yield block
        progress.step(len(block))


def intervals(matches: Matches, *, replicates: int = REPLICATES, seed: int = 0) -> dict[str, Any]:
    """What `evaluate.py --json` has: 95% intervals (low, high) of the `metrics` and of `per_class` AP, AP50, AR_100.

    Where there is no box of a size or class, there is no interval. `few_images` says what is in fewer than FEW_IMAGES,
    a class or a size of one (`small cat`), and in how many: there an interval holds less often.
    """
    found = unsampled_scores(matches)
    drawn = bootstrap(matches, replicates=replicates, seed=seed)[0]
    estimates, values = found.per_class(), drawn.per_class()
    per_class = {name: _intervals(values[name], estimates[name]) for name in matches.classes}
    return {
        "level": LEVEL,
        "replicates": replicates,
        "seed": seed,
        "few_images": _few_images(matches),
        "metrics": _intervals(drawn.metrics(), found.metrics()),
        "per_class": {name: each for name, each in per_class.items() if each},
    }


def _few_images(matches: Matches) -> dict[str, int]:
    """The fewest first."""
    few = {}
    for area, ignored in zip(AREAS, matches.box_ignored, strict=True):
        pairs = np.stack([matches.box_class[~ignored], matches.box_image[~ignored]])
        counts = np.bincount(np.unique(pairs, axis=1)[0], minlength=len(matches.classes)).tolist()
        for name, count in zip(matches.classes, counts, strict=True):
            if 0 < count < FEW_IMAGES:
                few[name if area == "all" else f"{area} {name}"] = count
    return dict(sorted(few.items(), key=lambda each: each[1]))


def _intervals(values: Mapping[str, np.ndarray], estimates: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    there = {name: float(each[0]) for name, each in estimates.items() if each[0] >= 0 and (values[name] >= 0).any()}
    return {name: interval(values[name], estimate) for name, estimate in there.items()}


def interval(values: np.ndarray, estimate: float) -> tuple[float, float]:
    """The 95% interval of a number, or of a difference, from its replicates (N,) and what it is without resampling.

    These are percentiles of the replicates, corrected for their bias (BC: Efron and Tibshirani, 1993, section 14.3,
    without acceleration): resampled AP is higher as a rule, because a precision is the highest of many. Percentiles are
    a little narrow as a rule (Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69,
    2015, who widens them too); by how much was measured for AP (benchmarks/README.md). Replicates that have no such
    number (NaN) are left out.
    """
    values = values[~np.isnan(values)]
    below = (np.mean(values < estimate) + np.mean(values <= estimate)) / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values))))
    edge = WIDER * NORMAL.inv_cdf((1 + LEVEL) / 2)
    low, high = np.quantile(values, [NORMAL.cdf(2 * bias - edge), NORMAL.cdf(2 * bias + edge)])
    return float(low), float(high)


def unsampled_scores(matches: Matches) -> Scores:
    """One row: what the images score as they are, each once."""
    return weighted_scores(matches, [np.ones((1, len(matches.image_ids)), dtype=np.int32)])


def weighted_scores(matches: Matches, weights: Iterable[np.ndarray]) -> Scores:
    """The scores of each row of `weights`, in blocks (rows, images) of int32."""
    classes = [_of_class(matches, index) for index in range(len(matches.classes))]
    blocks = []
    with ThreadPoolExecutor(usable_cores()) as threads:  # numpy works outside of Python's lock
        for block in weights:
            scores = threads.map(partial(_class_scores, block), classes)
            blocks.append([np.stack(each, axis=-1) for each in zip(*scores, strict=True)])
    return Scores(matches.classes, *(np.concatenate(each) for each in zip(*blocks, strict=True)))


@dataclass(frozen=True)
class _Counted:
    """Of one class and size what does not depend on weights; images by their index.

    Most detections match nothing at any threshold: of those only the number before each other one is needed.
    """

    boxes: np.ndarray  # (boxes that count,) their images
    lone: np.ndarray  # (false positives at every threshold,) their images
    others: np.ndarray  # (found, or ignored at some threshold,) their images
    lone_before: np.ndarray  # (others,) lone ones of higher scores
    found: list[np.ndarray]  # of each threshold indices into `others`
    ignored: list[np.ndarray]  # of each threshold indices into `others`
    ranks: np.ndarray  # (others,)


def _of_class(matches: Matches, index: int) -> list[_Counted]:
    """By size."""
    start, stop = np.searchsorted(matches.label, [index, index + 1])
    image, rank = matches.image[start:stop], matches.rank[start:stop]
    boxes = np.flatnonzero(matches.box_class == index)
    counted = []
    for area in range(len(AREAS)):
        found, ignored = matches.found[area, :, start:stop], matches.ignored[area, :, start:stop]
        others = np.flatnonzero(found.any(axis=0) | (ignored.any(axis=0) & ~ignored.all(axis=0)))
        lone = np.flatnonzero(~found.any(axis=0) & ~ignored.any(axis=0))
        lone = lone[: np.searchsorted(lone, others[-1])] if len(others) else lone[:0]
        counted.append(
            _Counted(
                boxes=matches.box_image[boxes[~matches.box_ignored[area, boxes]]],
                lone=image[lone],
                others=image[others],
                lone_before=np.searchsorted(lone, others),
                found=[np.flatnonzero(each) for each in found[:, others]],
                ignored=[np.flatnonzero(each) for each in ignored[:, others]],
                ranks=rank[others],
            )
        )
    return counted


def _class_scores(weights: np.ndarray, areas: Sequence[_Counted]) -> tuple[np.ndarray, ...]:
    """Of a class, as in Scores: ap and ar (rows, areas, thresholds), ar_1 and ar_10 (rows, thresholds)."""
    shape = (len(weights), len(areas), len(IOU_THRESHOLDS))
    ap, ar, ar_1, ar_10 = (np.zeros(shape) for _ in range(4))
    for area, counted in enumerate(areas):
        positives = weights[:, counted.boxes].sum(axis=1)
        there = np.maximum(positives, 1)
        reached = _recalls_reached(there)
        of_others = weights[:, counted.others]
        detections = _before(weights[:, counted.lone], counted.lone_before) + of_others.cumsum(axis=1, dtype=np.int32)
        for threshold, (found, ignored) in enumerate(zip(counted.found, counted.ignored, strict=True)):
            if len(found):
                hits = of_others[:, found]
                seen = detections[:, found] - _before(of_others[:, ignored], np.searchsorted(ignored, found))
                ap[:, area, threshold] = _average_precision(hits.cumsum(axis=1, dtype=np.int32), seen, reached)
                for recall, most in ((ar, MOST_DETECTIONS), (ar_10, 10), (ar_1, 1)):
                    recall[:, area, threshold] = hits[:, counted.ranks[found] < most].sum(axis=1) / there
        for each in (ap, ar, ar_1, ar_10):
            each[positives == 0, area] = np.nan
    return ap, ar, ar_1[:, 0], ar_10[:, 0]


def _before(weights: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(rows, N): of each row of `weights` the sum of its first `count` (N,)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int32)
    np.cumsum(weights, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums[:, count]


def _recalls_reached(positives: np.ndarray) -> np.ndarray:
    """(rows, most positives + 1): how many of RECALLS so many true positives reach, where (rows,) positives are."""
    hits = np.arange(positives.max() + 1)
    return np.searchsorted(RECALLS, hits / positives[:, None], side="right").astype(np.int32)


def _average_precision(hits: np.ndarray, seen: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """(rows,) the mean precision at RECALLS, from cumulative true positives and detections at each true positive.

    The precision at a recall is the highest that this or a larger recall has. Between true positives it only falls,
    so nothing is lost by looking at these.
    """
    precision = hits / np.maximum(seen, 1)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(len(reached), dtype=np.int32)[:, None] * reached.shape[1]
    recalls = reached.ravel().take(hits + rows)
    gained = recalls.copy()
    gained[:, 1:] -= recalls[:, :-1]
    return np.einsum("ij,ij->i", highest, gained) / len(RECALLS)
