"""What evaluate.py tells of detections: in words, JSON, MLflow names and figures, whatever is there to tell."""

import json

import cv2
import numpy as np
import pytest

from evaluating import report as evaluation_report
from metrics import coco_ground_truth, coco_metrics, coco_results
from tests.detections import found, image, random_case

A = [0, 0, 50, 50]


def reported(records, detections, classes=("cat", "dog", "owl"), *, replicates=40):
    truth, results = coco_ground_truth(records, classes), coco_results(detections)
    analysis = evaluation_report.analyse(truth, results, replicates=replicates, seed=0)
    about = {"dataset": "pets", "split": "val", "images": len(records), "batch_size": 2, "device": "cpu"}
    scores, latency = coco_metrics(truth, results), {"forward_ms": 10.0, "whole_ms": 12.5}
    lacking = [name for name in classes if name not in scores["per_class"]]
    return analysis, {**about, **scores, "classes_not_scored": lacking, **analysis.in_report(), "latency": latency}


def test_each_number_stands_beside_its_interval():
    _, report = reported(*random_case(0))
    lines = evaluation_report.text(report).splitlines()
    assert lines[0] == "pets val: 12 images; in brackets 95% intervals, from 40 draws of the images"
    low, high = report["intervals"]["metrics"]["AP"]
    assert low < report["metrics"]["AP"] < high
    assert lines[1] == f"  AP         {report['metrics']['AP']:.4f} [{low:.3f}, {high:.3f}]"
    assert sum("[" in line for line in lines) == len(report["metrics"]) + len(report["per_class"])
    assert "  not scored, because no box is of them: dog" in lines
    assert "  an image takes 10.0 ms in the model, 12.5 ms with loading (batches of 2 on cpu)" in lines
    few = next(line for line in lines if "in few images" in line)
    assert few.endswith(": medium cat (1), medium owl (3), cat (4), small cat (4), small owl (4), …")
    best = report["thresholds"]["best"]
    assert f"best F1 {best['F1']:.3f} at score {best['score_threshold']:.3f}" in "\n".join(lines)
    note = evaluation_report.note(report, "a run", "")
    assert "small owl (4), …\n" in note and f"| cat&emsp; | {report['per_class']['cat']['AP']:.4f} [" in note
    json.dumps(report)


def test_without_replicates_there_are_no_intervals():
    _, report = reported(*random_case(0), replicates=0)
    assert report["intervals"] is None
    assert "[" not in evaluation_report.text(report) + evaluation_report.note(report, "a run", "")
    assert not [name for name in evaluation_report.values(report) if "_low" in name]


def test_mlflow_has_every_number_and_interval_by_name():
    _, report = reported(*random_case(0))
    values = evaluation_report.values(report)
    assert (values["AP50_low"], values["AP50_high"]) == report["intervals"]["metrics"]["AP50"]
    assert (values["AP_low/owl"], values["AP_high/owl"]) == report["intervals"]["per_class"]["owl"]["AP"]
    assert (values["AP/owl"], values["latency/whole_ms"]) == (report["per_class"]["owl"]["AP"], 12.5)
    assert values["F1"] == report["thresholds"]["best"]["F1"]
    assert not [name for name in values if "dog" in name]  # no box is of this class
    columns, rows = evaluation_report.tables(report)["tables/per_class.json"]
    row = dict(zip(columns, rows[1], strict=True))
    assert (row["class"], row["AP"], row["AP_high"]) == ("owl", values["AP/owl"], values["AP_high/owl"])
    columns, rows = evaluation_report.tables(report)["tables/confusion.json"]
    assert [row[0] for row in rows] == ["cat", "dog", "owl", "background"]
    assert columns[-1] == "detected as background"


CASES = {
    "something": (random_case(0), 4),
    "nothing detected": (([image(1, [A], [1])], []), 3),
    "nothing there": (([image(1)], [found(1, [A], [1], [0.9])]), 0),
}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("case", "count"), CASES.values(), ids=CASES.keys())
def test_figures_are_drawn_of_what_there_is(case, count, tmp_path):
    analysis, report = reported(*case)
    paths = evaluation_report.draw(analysis, report, tmp_path / "figures")
    assert len(paths) == count and sorted(paths) == sorted((tmp_path / "figures").iterdir())
    for path in paths:
        picture = cv2.imread(str(path))
        assert (picture < 255).any(axis=2).mean() > 0.01
        assert (picture[[0, -1]] == 255).all()  # nothing is cut
    assert evaluation_report.text(report).startswith("pets val: 1") and evaluation_report.note(report, "a run", "")


@pytest.mark.slow
def test_figures_of_two_hundred_classes_are_drawn(tmp_path):
    classes = [f"class {number}" for number in range(200)]
    records = [image(1, [A] * 200, range(1, 201))]
    detections = [found(1, [A] * 200, range(1, 201), np.linspace(0.1, 0.9, 200))]
    analysis, report = reported(records, detections, classes)
    for path in evaluation_report.draw(analysis, report, tmp_path):
        assert max(cv2.imread(str(path)).shape) < 8000


@pytest.mark.parametrize(("score", "seen"), [(None, 1), (0.5, 1), (0.2, 2), (0.95, 0)])
def test_a_threshold_of_ones_own_is_that_of_the_confusion_matrix_and_the_worst_images(score, seen):
    """A cat found at 0.9, a dog at 0.3 where nothing is."""
    truth = coco_ground_truth([image(1, [A], [1])], ("cat", "dog"))
    results = coco_results([found(1, [A, [60, 60, 70, 70]], [1, 2], [0.9, 0.3])])
    analysis = evaluation_report.analyse(truth, results, replicates=0, seed=0, worst=1, score_threshold=score)
    assert analysis.confusion_threshold == pytest.approx(score or 0.9)
    assert analysis.confusion[:, :2].sum() == seen
    kinds = {1: [], 2: [(1, 0)], 0: [(0, 1)]}[seen]
    told = analysis.errors_told
    assert [(one["wrong"], one["not_found"]) for one in told["worst_images"]] == kinds
    assert told["kinds"]["background"]["count"] == 1 and told["lowest_score"] == pytest.approx(0.3)
