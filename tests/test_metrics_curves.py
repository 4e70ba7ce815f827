"""Thresholds, precision by recall and confusion: worked out by hand, and consistent with COCO's AP."""

import numpy as np
import pytest

from metrics import (
    coco_ground_truth,
    coco_metrics,
    coco_results,
    confusion,
    match,
    precision_by_recall,
    threshold_curve,
    weighted_scores,
)
from tests.detections import found, image, random_case

CLASSES = ("cat", "dog", "owl")
A, B, C = [0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50]
ELSEWHERE = [300, 300, 350, 350]


def both(records, detections, classes=CLASSES):
    return coco_ground_truth(records, classes), coco_results(detections)


def test_precision_recall_and_f1_worked_out_by_hand():
    """Hit (0.75), miss and hit (both 0.5), miss (0.25), one of three boxes never found."""
    detections = [found(1, [A, ELSEWHERE, B, ELSEWHERE], [1, 1, 1, 1], [0.75, 0.5, 0.5, 0.25])]
    curve = threshold_curve(match(*both([image(1, [A, B, C], [1, 1, 1])], detections)))
    assert curve.threshold.tolist() == [0.75, 0.5, 0.25]
    assert curve.precision == pytest.approx([1, 2 / 3, 1 / 2])
    assert curve.recall == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert curve.f1 == pytest.approx([1 / 2, 2 / 3, 4 / 7])
    assert curve.best() == pytest.approx({"score_threshold": 0.5, "precision": 2 / 3, "recall": 2 / 3, "F1": 2 / 3})


def test_a_class_without_a_box_and_no_detections_have_no_threshold():
    matches = match(*both([image(1, [A], [1])], [found(1, [A], [2], [0.5])]))
    assert threshold_curve(matches, "dog").best() is None
    assert threshold_curve(matches, "cat").best() is None
    assert threshold_curve(matches).best() == {"score_threshold": 0.5, "precision": 0, "recall": 0, "F1": 0}


@pytest.mark.parametrize("seed", range(3))
def test_precision_by_recall_averages_to_ap(seed):
    truth, results = both(*random_case(seed))
    matches = match(truth, results)
    ap = weighted_scores(matches, [np.ones((1, len(matches.image_ids)), dtype=np.int32)]).ap[0, 0]
    for iou, threshold in ((0.5, 0), (0.75, 5)):
        curves = precision_by_recall(matches, iou=iou)
        assert set(curves) == {"cat", "owl"}
        for name, curve in curves.items():
            assert curve.shape == (101,)
            assert curve.mean() == pytest.approx(ap[threshold, CLASSES.index(name)], abs=1e-12)
    assert np.mean([curve.mean() for curve in precision_by_recall(matches, iou=0.5).values()]) == pytest.approx(
        coco_metrics(truth, results, scorer="pycocotools")["metrics"]["AP50"], abs=1e-12
    )


def test_confusion_worked_out_by_hand():
    """A cat found, a cat taken for a dog, a dog missed, an owl where nothing is; below the threshold nothing counts."""
    records = [image(1, [A, B, C], [1, 1, 2]), image(2)]
    seen = [found(1, [A, B], [1, 2], [0.9, 0.8]), found(2, [A, B], [3, 3], [0.7, 0.2])]
    names, counts = confusion(*both(records, seen), score_threshold=0.5)
    assert names == ("cat", "dog", "owl", "background")
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_a_box_is_its_own_class_first_whatever_the_scores():
    """A dog detected with more certainty on the cat does not take it from the cat's own detection."""
    truth, results = both([image(1, [A], [1])], [found(1, [A, A], [2, 1], [0.9, 0.6])])
    _, counts = confusion(truth, results, score_threshold=0.5)
    assert counts[0, 0] == 1 and counts[3, 1] == 1 and counts.sum() == 2


def test_what_is_seen_in_a_crowd_of_its_class_does_not_count():
    records = [image(1, [A, [0, 0, 400, 400]], [1, 1], crowd=[0, 1])]
    _, counts = confusion(*both(records, [found(1, [A, B, C], [1, 1, 2], [0.9, 0.8, 0.7])]), score_threshold=0.5)
    assert counts[0].tolist() == [1, 0, 0, 0] and counts[3].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_diagonal_has_the_true_positives_of_the_threshold(seed):
    truth, results = both(*random_case(seed))
    best = threshold_curve(match(truth, results)).best()
    _, counts = confusion(truth, results, score_threshold=best["score_threshold"])
    boxes = sum(not each["iscrowd"] for each in truth["annotations"])
    assert counts[:-1].sum() == boxes
    assert np.trace(counts[:-1, :-1]) / boxes == pytest.approx(best["recall"])
