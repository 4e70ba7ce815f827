"""Whether one detector, or one group of seeds, is better than another on the same images. The only door to scipy.

Two things make a score vary: which images are in the split, and the seed that a training had. The first is resampled
(metrics/bootstrap.py), the same draws for all runs, so that what makes an image hard for both cancels. The second is
seen only between trainings that differ in nothing but the seed. Bouthillier et al., Accounting for Variance in Machine
Learning Benchmarks (MLSys 2021, arXiv 2103.03098), measure both and find that leaving out either is a mistake.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.bootstrap import LEVEL, NORMAL, REPLICATES, bootstrap, interval, unsampled_scores
from metrics.curves import threshold_curve
from metrics.matching import Matches

OVERALL = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
POWER = 0.8  # of `needed`: how often so many images would show the difference
SIGNIFICANT, POWERFUL = NORMAL.inv_cdf((1 + LEVEL) / 2), NORMAL.inv_cdf(POWER)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The scores of one run, in 0..1, by OVERALL's names and AP/CLASS; what has no box is left out."""

    values: dict[str, float]
    replicates: dict[str, np.ndarray]  # (replicates,) on resampled images
    errors: np.ndarray  # (images,) false positives and misses, see image_errors
    score_threshold: float | None  # of these: of the highest F1; None where nothing was detected


def evaluated(matches: Matches, *, replicates: int = REPLICATES, seed: int = 0) -> Evaluated:
    """The scores, and those of resampled images: the same images for all runs that are given the same seed."""
    whole = _by_name(unsampled_scores(matches))
    drawn = _by_name(bootstrap(matches, replicates=replicates, seed=seed)[0])
    values = {name: float(value[0]) for name, value in whole.items() if not np.isnan(value[0])}
    errors, threshold = image_errors(matches)
    return Evaluated(
        values=values, replicates={name: drawn[name] for name in values}, errors=errors, score_threshold=threshold
    )


def _by_name(scores) -> dict[str, np.ndarray]:
    found = scores.metrics()
    return {name: found[name] for name in OVERALL} | {
        f"AP/{name}": value["AP"] for name, value in scores.per_class().items()
    }


def image_errors(matches: Matches) -> tuple[np.ndarray, float | None]:
    """Of each image (images,) false positives and missed boxes at IoU 0.5, and the score threshold that they are of.

    Detections count from the run's own threshold of the highest F1 on, so a run is not blamed for how it scales scores.
    """
    best = threshold_curve(matches).best()
    threshold = best["score_threshold"] if best else None
    kept = ~matches.ignored[0, 0] & (matches.score >= (math.inf if threshold is None else threshold))
    found = kept & matches.found[0, 0]
    count = len(matches.image_ids)
    of_boxes = np.bincount(matches.box_image[~matches.box_ignored[0]], minlength=count)
    false = np.bincount(matches.image[kept & ~found], minlength=count)
    return false + of_boxes - np.bincount(matches.image[found], minlength=count), threshold


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean of one score over seeds, sample standard deviation and 95% interval of the mean; None of a single seed."""

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def spread(values: Sequence[float]) -> Spread:
    """By Student's t over the seeds, cut at 0 and 1, where scores end; the images are taken as given.

    Two seeds tell little of how seeds vary: their one degree of freedom has t = 12.7, so the interval is the mean ± 9
    sample standard deviations (three seeds: ± 2.5) and often goes from end to end.
    """
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Spread(mean=mean, deviation=None, interval=None)
    deviation = float(np.std(values, ddof=1))
    half = student(count - 1) * deviation / math.sqrt(count)
    return Spread(mean=mean, deviation=deviation, interval=_clipped(mean - half, mean + half, 0.0))


def _clipped(low: float, high: float, least: float) -> tuple[float, float]:
    """As far as the interval lies in least..1: what it covers of possible values stays the same."""
    return max(low, least), min(high, 1.0)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Candidate − baseline of one score, with its 95% interval and what that is made of."""

    baseline: float
    candidate: float
    low: float
    high: float
    image_variance: float  # of the difference of means, over draws of images; of seeds what they have in common
    seed_variance: float  # … over seeds, at least their own part of that over images; 0 where each side has one
    degrees_of_freedom: float  # of the interval; infinite where each side has one seed

    @property
    def value(self) -> float:
        return self.candidate - self.baseline

    @property
    def is_shown(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def difference(baseline: Sequence[Evaluated], candidate: Sequence[Evaluated], name: str) -> Difference | None:
    """Of the score `name` between two runs, or the means of two groups of seeds; None where it cannot be told.

    One seed a side: the interval is that of the paired bootstrap over images, so it speaks of these checkpoints.
    Several: (D − t·s, D + t·s) with s² = the variance over images + s_A²/n_A + s_B²/n_B, and Student's t with the
    degrees of freedom of Welch (The generalization of "Student's" problem when several different population variances
    are involved, Biometrika 34, 1947, and Satterthwaite 1946), in which the images count as known. That seeds do well
    on other images is in both variances: the images' is counted without it. A side with one seed is taken as this
    checkpoint: it adds no variance. The interval is never narrower than that over images of these very checkpoints: a
    few seeds may lie close together by chance. Intervals are cut at −1 and 1, where differences of scores end; of two
    seeds they are wide for the reason that `spread` gives.
    """
    sides = [[run.values.get(name) for run in side] for side in (baseline, candidate)]
    if any(value is None for side in sides for value in side):
        return None
    drawn = _mean(candidate, name) - _mean(baseline, name)
    if np.isnan(drawn).all():
        return None
    means = [float(np.mean(side)) for side in sides]
    bounds = interval(drawn, means[1] - means[0])
    images = float(np.nanvar(drawn, ddof=1)) if np.isfinite(drawn).sum() > 1 else 0.0
    parts = [(float(np.var(side, ddof=1)) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    seeds, degrees = sum(variance for variance, _ in parts), math.inf
    if parts:
        own = sum(_own_variance(side, name) / len(side) for side in (baseline, candidate) if len(side) > 1)
        images = max(0.0, images - own)
        degrees = welch_degrees(images, parts)
        half = student(degrees) * math.sqrt(images + seeds)
        bounds = (min(bounds[0], means[1] - means[0] - half), max(bounds[1], means[1] - means[0] + half))
        seeds = max(seeds, own)
    low, high = _clipped(*bounds, -1.0)
    return Difference(
        baseline=means[0],
        candidate=means[1],
        low=low,
        high=high,
        image_variance=images,
        seed_variance=seeds,
        degrees_of_freedom=degrees,
    )


def _mean(side: Sequence[Evaluated], name: str) -> np.ndarray:
    return np.mean([run.replicates[name] for run in side], axis=0)


def _own_variance(side: Sequence[Evaluated], name: str) -> float:
    """How much the score of one seed varies over draws of images beside what varies for all of them alike."""
    deviations = [run.replicates[name] - run.values[name] for run in side]
    return float(np.nanmean(np.var(deviations, axis=0, ddof=1)))


def welch_degrees(known: float, parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances: a known one, and (variance of a mean, its degrees of freedom) each."""
    estimated = sum(variance**2 / degrees for variance, degrees in parts)
    return (known + sum(variance for variance, _ in parts)) ** 2 / estimated if estimated else math.inf


def student(degrees: float) -> float:
    """The factor of a 95% interval: Student's t at 97.5 %, the normal distribution's where degrees are infinite."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def needed(found: Difference, *, images: int, seeds: tuple[int, int]) -> tuple[float | None, float | None]:
    """(images, seeds a side) either of which would show a difference of this size with POWER; None: it alone cannot.

    The variance over images falls with their number, that over seeds with theirs. `seeds` are the numbers there were,
    of baseline and candidate, to which the answer is as to the smaller.
    """
    if not found.value:
        return None, None
    wanted = (found.value / (SIGNIFICANT + POWERFUL)) ** 2
    of_images = of_seeds = None
    if found.seed_variance < wanted:
        of_images = images * found.image_variance / (wanted - found.seed_variance)
    if found.seed_variance and found.image_variance < wanted:
        of_seeds = min(count for count in seeds if count > 1) * found.seed_variance / (wanted - found.image_variance)
    return of_images, of_seeds
