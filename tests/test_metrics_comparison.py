"""Differences between runs: none of a run and itself, those that are there, and the arithmetic of seeds by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metrics import (
    Difference,
    Evaluated,
    coco_ground_truth,
    coco_metrics,
    coco_results,
    difference,
    evaluated,
    match,
    needed,
    spread,
)
from metrics.comparison import _mean, image_errors, welch_degrees
from tests.detections import found, image, random_case

CLASSES = ("cat", "dog", "owl")


def matches_of(records, detections):
    return match(coco_ground_truth(records, CLASSES), coco_results(detections))


def constant(value: float, replicates: int = 50) -> Evaluated:
    """A run whose score is the same on all images."""
    return Evaluated(
        values={"AP": value}, replicates={"AP": np.full(replicates, value)}, errors=np.zeros(1), score_threshold=None
    )


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_a_run_does_not_differ_from_itself(seed):
    one = evaluated(matches_of(*random_case(seed)), replicates=20)
    for name in one.values:
        for sides in (([one], [one]), ([one, one], [one, one])):
            same = difference(*sides, name)
            assert (same.value, same.low, same.high, same.is_shown) == (0, 0, 0, False)
            assert needed(same, images=12, seeds=(1, 1)) == (None, None)


def test_the_scores_are_those_of_coco():
    records, detections = random_case(3)
    truth, results = coco_ground_truth(records, CLASSES), coco_results(detections)
    expected = coco_metrics(truth, results, scorer="pycocotools")
    of_classes = {f"AP/{name}": one["AP"] for name, one in expected["per_class"].items()}
    values = evaluated(match(truth, results), replicates=2).values
    assert values == pytest.approx(of_classes | {k: v for k, v in expected["metrics"].items() if k in values})


def shapes(count: int):
    """Images with four boxes each."""
    boxes = np.array([[x, 10, x + 40, 50] for x in (0, 100, 200, 300)])
    return [image(number, boxes, [1] * 4) for number in range(1, count + 1)], boxes


def detected(records, boxes, share: float, seed: int = 0):
    """Each box is found with a probability of `share`."""
    random = np.random.default_rng(seed)
    seen = [boxes[random.random(4) < share] for _ in records]
    return [
        found(record.image_id, some, [1] * len(some), random.uniform(0.5, 1, len(some)))
        for record, some in zip(records, seen, strict=True)
    ]


def test_a_difference_that_is_there_is_shown_and_one_that_is_not_is_not():
    records, boxes = shapes(40)
    weak, other, strong = (
        evaluated(matches_of(records, detected(records, boxes, share, seed)))
        for share, seed in ((0.6, 1), (0.6, 2), (0.9, 3))
    )
    better, equal = difference([weak], [strong], "AP"), difference([weak], [other], "AP")
    assert better.is_shown and 0.1 < better.low < better.value < better.high < 0.6
    assert equal.low < 0 < equal.high and not equal.is_shown
    worse = difference([strong], [weak], "AP")
    assert (worse.value, worse.low, worse.high) == pytest.approx((-better.value, -better.high, -better.low))
    assert needed(better, images=40, seeds=(1, 1))[0] < 40 < needed(equal, images=40, seeds=(1, 1))[0]


def test_pairing_on_the_same_images_is_narrower_than_two_separate_bootstraps():
    records, boxes = shapes(40)
    detections = detected(records, boxes, 0.6)
    first = evaluated(matches_of(records, detections))
    detections[0] = found(1, boxes, [1] * 4, [0.9] * 4)
    second = evaluated(matches_of(records, detections))
    apart = replace(second, replicates={"AP": second.replicates["AP"][::-1]})
    paired, separate = (difference([first], [other], "AP") for other in (second, apart))
    assert paired.high - paired.low < (separate.high - separate.low) / 3


def test_where_images_do_not_matter_groups_of_seeds_are_welchs_t():
    a, b = [0.50, 0.52, 0.55], [0.58, 0.57, 0.61, 0.60]
    ours = difference([constant(each) for each in a], [constant(each) for each in b], "AP")
    theirs = stats.ttest_ind(b, a, equal_var=False)
    interval = theirs.confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.degrees_of_freedom == pytest.approx(theirs.df)


def test_one_seed_against_several_adds_only_the_variance_of_those():
    ours = difference([constant(0.5)], [constant(0.6), constant(0.64)], "AP")
    # Two seeds: variance of their mean 0.0008 / 2 with one degree of freedom, whose t at 97.5 % is 12.706.
    assert ours.value == pytest.approx(0.12) and ours.degrees_of_freedom == pytest.approx(1)
    assert ours.high - ours.value == pytest.approx(12.706 * 0.02, rel=1e-4)


def test_images_count_beside_seeds_as_a_variance_that_is_known():
    assert welch_degrees(1.0, [(1.0, 2), (1.0, 2)]) == 9  # (1 + 1 + 1)² / (1/2 + 1/2)
    assert welch_degrees(1.0, [(0.0, 2)]) == math.inf
    drawn = np.random.default_rng(0).normal(0.6, 0.01, 1000)
    runs = [replace(constant(value), replicates={"AP": drawn + value - 0.6}) for value in (0.59, 0.61)]
    ours = difference([constant(0.5, 1000)] * 2, runs, "AP")
    assert ours.image_variance == pytest.approx(drawn.var(ddof=1))
    assert ours.seed_variance == pytest.approx(0.0001)
    degrees = (ours.image_variance + 0.0001) ** 2 / 0.0001**2
    half = stats.t.ppf(0.975, degrees) * math.sqrt(ours.image_variance + 0.0001)
    assert (ours.low, ours.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_so_many_images_or_seeds_would_be_needed():
    drawn = np.random.default_rng(0).normal(0, 0.1, 100_000)
    near = replace(constant(0.55), replicates={"AP": 0.55 + drawn})
    images, seeds = needed(difference([constant(0.5, 100_000)], [near], "AP"), images=50, seeds=(1, 1))
    # 0.05 is (1.96 + 0.84) standard deviations of 50 · 0.1² / images.
    assert images == pytest.approx(50 * 0.01 * (1.96 + 0.8416) ** 2 / 0.05**2, rel=0.02) and seeds is None
    only_seeds = difference([constant(0.5), constant(0.6)], [constant(0.61), constant(0.51)], "AP")
    images, seeds = needed(only_seeds, images=50, seeds=(2, 2))
    assert images is None and seeds == pytest.approx(2 * 0.005 * (1.96 + 0.8416) ** 2 / 0.01**2, rel=0.001)


def test_the_spread_over_seeds_is_students():
    over = spread([0.5, 0.6, 0.7])
    assert (over.mean, over.deviation) == pytest.approx((0.6, 0.1))
    assert over.interval == pytest.approx(stats.t.interval(0.95, 2, loc=0.6, scale=0.1 / math.sqrt(3)))
    assert (spread([0.5]).deviation, spread([0.5]).interval) == (None, None)


def test_intervals_end_where_scores_and_their_differences_do():
    assert spread([0.1, 0.9]).interval == (0.0, 1.0)  # 0.5 ± 9 · 0.57
    low, high = spread([0.90, 0.94]).interval
    assert high == 1.0 and low == pytest.approx(0.92 - 12.706 * 0.02, rel=1e-4)
    runs = [constant(0.1), constant(0.9)]
    for side in (runs, runs[::-1]):
        found = difference(side, side[::-1], "AP")
        assert (found.low, found.high) == (-1.0, 1.0) and not found.is_shown


def test_errors_are_false_positives_and_misses_from_the_best_threshold_on():
    a, b, nowhere = [0, 0, 50, 50], [100, 0, 150, 50], [300, 300, 350, 350]
    records = [image(1, [a, b], [1, 2]), image(2, [a], [1]), image(3, [a, b], [1, 1], crowd=[0, 1])]
    detections = [
        found(1, [a, b, nowhere], [1, 1, 2], [0.9, 0.8, 0.1]),  # b as the wrong class; what is nowhere scores too low
        found(2, [a], [1], [0.9]),
        found(3, [a, b], [1, 1], [0.7, 0.9]),  # a crowd is neither
    ]
    errors, threshold = image_errors(matches_of(records, detections))
    assert errors.tolist() == [2, 0, 0] and threshold == pytest.approx(0.7)
    errors, threshold = image_errors(matches_of(records, [found(1), found(2), found(3)]))
    assert errors.tolist() == [2, 1, 1] and threshold is None


def test_with_the_images_or_the_seeds_that_are_needed_both_variances_together_are_small_enough():
    found = Difference(
        baseline=0.5,
        candidate=0.55,
        low=-0.1,
        high=0.2,
        image_variance=0.0002,
        seed_variance=0.0001,
        degrees_of_freedom=9,
    )
    images, seeds = needed(found, images=50, seeds=(3, 4))
    wanted = (0.05 / (1.959964 + 0.841621)) ** 2
    assert 0.0002 * 50 / images + 0.0001 == pytest.approx(wanted)
    assert 0.0002 + 0.0001 * 3 / seeds == pytest.approx(wanted)


def test_what_each_seed_does_on_other_images_is_counted_once_and_what_all_do_is_counted():
    random = np.random.default_rng(0)
    alike = random.normal(0, 0.02, 20_000)
    sides = [
        [
            replace(constant(mean), replicates={"AP": mean + shared + random.normal(0, 0.03, 20_000)})
            for _ in range(count)
        ]
        for mean, shared, count in ((0.5, 0, 3), (0.6, alike, 4))
    ]
    assert difference(*sides, "AP").image_variance == pytest.approx(0.02**2, rel=0.1)  # not 0.02² + 0.03² (1/3 + 1/4)
    assert difference(sides[0], sides[1][:1], "AP").image_variance == pytest.approx(0.02**2 + 0.03**2, rel=0.1)


def test_seeds_that_lie_close_together_by_chance_make_no_interval_narrower_than_images_alone():
    random = np.random.default_rng(0)
    sides = [
        [replace(constant(mean), replicates={"AP": mean + random.normal(0, 0.03, 2000)}) for _ in range(2)]
        for mean in (0.5, 0.52)
    ]
    as_one = [[replace(side[0], replicates={"AP": _mean(side, "AP")})] for side in sides]
    images, ours = difference(*as_one, "AP"), difference(*sides, "AP")
    assert (ours.low, ours.high) == (images.low, images.high) and ours.low < -0.03 and ours.high > 0.07
    assert ours.seed_variance == pytest.approx(0.03**2, rel=0.1)  # (1/2 + 1/2): what they do on other images alone
    assert needed(ours, images=100, seeds=(2, 2))[1] > 2
