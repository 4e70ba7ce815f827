"""Which detection found which box: as pycocotools has it, detection by detection."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metrics import coco_ground_truth, coco_results, match
from tests.detections import random_case


@pytest.mark.parametrize("pairs_at_once", [1, 1_000_000])
@pytest.mark.parametrize("seed", range(5))
def test_matches_are_those_of_pycocotools(seed, pairs_at_once, monkeypatch):
    """At each size, threshold and class the same scores, true positives and ignored ones in the same order."""
    monkeypatch.setattr("metrics.matching.PAIRS_AT_ONCE", pairs_at_once)
    records, detections = random_case(seed)
    truth, results = coco_ground_truth(records, ("cat", "dog", "owl")), coco_results(detections)
    matches = match(truth, results)
    evaluation = evaluated_by_pycocotools(truth, results)
    images, areas = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    for label in range(3):
        detected = matches.label == label
        for area in range(areas):
            first = (label * areas + area) * images
            theirs = [each for each in evaluation.evalImgs[first : first + images] if each is not None]
            scores = np.concatenate([each["dtScores"] for each in theirs])
            order = np.argsort(-scores, kind="stable")
            found, ignored = (
                np.concatenate([each[key] for each in theirs], axis=1)[:, order] > 0
                for key in ("dtMatches", "dtIgnore")
            )
            assert (matches.score[detected] == scores[order]).all()
            assert (matches.found[area][:, detected] == (found & ~ignored)).all()
            assert (matches.ignored[area][:, detected] == ignored).all()
            boxes = (matches.box_class == label) & ~matches.box_ignored[area]
            assert boxes.sum() == sum((each["gtIgnore"] == 0).sum() for each in theirs)
    assert matches.found.any() and matches.ignored[0].any()  # crowds were met


def evaluated_by_pycocotools(truth, results):
    truth, results = json.loads(json.dumps([truth, results]))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
    return evaluation


def test_without_boxes_or_detections_nothing_is_found():
    records, detections = random_case(0)
    truth, results = coco_ground_truth(records, ("cat", "dog", "owl")), coco_results(detections)
    assert match(truth, []).found.shape == (4, 10, 0)
    nothing_there = match(truth | {"annotations": []}, results)
    assert nothing_there.found.shape[-1] == len(nothing_there.score) == len(results)
    assert not nothing_there.found.any() and not nothing_there.ignored[0].any()
