"""Resampled scores: each is what COCO's metrics are on the images that were drawn; intervals hold what they promise."""

import numpy as np
import pytest

from metrics import (
    bootstrap,
    coco_ground_truth,
    coco_metrics,
    coco_results,
    interval,
    intervals,
    match,
    weighted_scores,
)
from metrics.bootstrap import draws
from tests.detections import found, image, random_case

CLASSES = ("cat", "dog", "owl")
A = [0, 0, 50, 50]


def case(seed):
    """COCO ground truth and results, no two scores equal: the order among equal ones is the images' own."""
    records, detections = random_case(seed)
    results = coco_results(detections)
    scores = np.random.default_rng(seed).permutation(len(results)) / len(results)
    return coco_ground_truth(records, CLASSES), [
        each | {"score": float(score)} for each, score in zip(results, scores, strict=True)
    ]


def assert_equal(scores, row, expected):
    """Row of `scores` is what pycocotools says; NaN is what it leaves out."""
    numbers = {name: value[row] for name, value in scores.metrics().items()}
    assert {name: value for name, value in numbers.items() if not np.isnan(value)} == pytest.approx(
        expected["metrics"], abs=1e-12
    )
    for name, one in scores.per_class().items():
        if name in expected["per_class"]:
            assert {key: value[row] for key, value in one.items()} == pytest.approx(
                expected["per_class"][name], abs=1e-12
            )
        else:
            assert np.isnan([value[row] for value in one.values()]).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_images_as_they_are_score_what_coco_says(seed):
    """With equal scores, crowds, classes and images without anything."""
    records, detections = random_case(seed)
    truth, results = coco_ground_truth(records, CLASSES), coco_results(detections)
    ones = np.ones((1, len(records)), dtype=np.int32)
    assert_equal(weighted_scores(match(truth, results), [ones]), 0, coco_metrics(truth, results, scorer="pycocotools"))


@pytest.mark.parametrize("seed", range(4))
def test_a_replicate_scores_what_coco_says_of_the_images_that_were_drawn(seed):
    truth, results = case(seed)
    matches = match(truth, results)
    weights = next(draws(len(matches.image_ids), replicates=3, seed=seed, at_once=3))
    scores = weighted_scores(matches, [weights])
    for row, times in enumerate(weights):
        drawn = np.repeat(matches.image_ids, times).tolist()
        copies = [
            [each | {"image_id": new} for new, old in enumerate(drawn) for each in objects if each["image_id"] == old]
            for objects in (truth["annotations"], results)
        ]
        images = [{"id": new, "width": 640, "height": 480} for new in range(len(drawn))]
        there = truth | {"images": images, "annotations": copies[0]}
        assert_equal(scores, row, coco_metrics(there, copies[1], scorer="pycocotools"))


def test_every_replicate_draws_as_many_images_and_the_seed_decides_which():
    drawn = np.concatenate(list(draws(7, replicates=120, seed=3, at_once=120)))
    assert drawn.shape == (120, 7) and (drawn.sum(axis=1) == 7).all()
    assert (drawn == np.concatenate(list(draws(7, replicates=120, seed=3, at_once=50)))).all()
    assert (drawn != np.concatenate(list(draws(7, replicates=120, seed=4, at_once=120)))).any()
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.35)


def test_evaluations_of_the_same_images_are_paired():
    """A detector that finds the same and nothing more differs by nothing from itself, in each replicate."""
    truth, results = case(1)
    worse = [each for each in results if each["score"] > 0.3]
    first, second, same = bootstrap(*(match(truth, each) for each in (results, worse, results)), replicates=60)
    assert first.metrics()["AP"].std() > 0
    assert (first.metrics()["AP"] == same.metrics()["AP"]).all()
    assert (first.metrics()["AR_100"] >= second.metrics()["AR_100"]).all()
    other = match(truth | {"images": truth["images"][1:], "annotations": []}, [])
    with pytest.raises(ValueError, match="different images"):
        bootstrap(match(truth, results), other)


def test_a_replicate_without_a_box_of_a_class_leaves_the_class_out():
    """The cat is in one image of three, found; the dog in all of them, never found."""
    records = [image(1, [A, A], [1, 2]), image(2, [A], [2]), image(3, [A], [2])]
    matches = match(coco_ground_truth(records, ("cat", "dog")), coco_results([found(1, [A], [1], [0.9])]))
    weights = np.array([[0, 1, 2], [1, 1, 1], [3, 0, 0]], dtype=np.int32)
    scores = weighted_scores(matches, [weights])
    assert scores.metrics()["AP"].tolist() == [0, 0.5, 0.5]
    assert np.isnan(scores.per_class()["cat"]["AP"]).tolist() == [True, False, False]
    bounds = intervals(matches, replicates=50)
    assert "AP_small" not in bounds["metrics"]
    assert bounds["per_class"]["cat"]["AP"] == (1, 1)
    assert bounds["metrics"]["AP"] == (0, 0.5)
    assert bounds["few_images"] == {"cat": 1, "medium cat": 1, "dog": 3, "medium dog": 3}


def test_an_interval_has_96_of_100_replicates_and_ignores_those_without_a_value():
    """Φ(±1.05 · 1.96) is 1.98 % and 98.02 %."""
    values = np.concatenate([np.arange(1001.0), [np.nan] * 500])
    assert interval(values, 500) == pytest.approx((19.8, 980.2), abs=0.1)


def test_an_interval_is_moved_against_the_bias_of_the_replicates():
    """z0 = Φ⁻¹(0.3085) = −0.5: the percentiles are Φ(−1 ± 1.05 · 1.96), 0.11 % and 85.50 %."""
    assert interval(np.arange(10001.0), 3085) == pytest.approx((11, 8550), abs=3)
    assert interval(np.full(100, 0.5), 0.5) == (0.5, 0.5)
    assert interval(np.arange(100.0), -1) == pytest.approx((0, 0), abs=0.1)  # not beyond what was seen
