"""COCO metrics: worked out by hand, and equal to pycocotools run on the same JSON, whoever computes them."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metrics import NAMES, SCORERS, coco_ground_truth, coco_metrics, coco_results
from tests.conftest import REAL_DATA, needs_real_data
from tests.detections import found, image, random_case

THRESHOLDS = 10  # IoU 0.50, 0.55 … 0.95


def score(records, detections, classes=("cat",)):
    return coco_metrics(coco_ground_truth(records, classes), coco_results(detections))


A, B, C = [0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50]
ELSEWHERE = [300, 300, 350, 350]


def test_three_boxes_worked_out_by_hand():
    """Hit (0.9), miss (0.8), hit (0.7), one box never found.

    Precision is 1 up to recall 1/3, then 2/3 up to 2/3, then 0: of pycocotools' 101 recall points 34 (0 to 0.33) have
    1, 33 (0.34 to 0.66) have 2/3.
    """
    detections = [found(1, [A, ELSEWHERE, B], [1, 1, 1], [0.9, 0.8, 0.7])]
    scores = score([image(1, [A, B, C], [1, 1, 1])], detections)
    expected = (34 + 33 * 2 / 3) / 101
    assert scores["metrics"]["AP"] == pytest.approx(expected)
    assert scores["metrics"]["AP50"] == pytest.approx(expected)
    assert scores["metrics"]["AR_100"] == pytest.approx(2 / 3)
    assert scores["metrics"]["AR_1"] == pytest.approx(1 / 3)
    values = {"AP": expected, "AP50": expected, "AR_100": 2 / 3}
    assert scores["per_class"] == {"cat": pytest.approx(values)}


def test_ap_averages_over_ten_thresholds():
    """A box of IoU 0.72 counts at 0.50, 0.55, 0.60, 0.65 and 0.70."""
    scores = score([image(1, [[0, 0, 100, 100]], [1])], [found(1, [[0, 0, 72, 100]], [1], [0.5])])
    assert scores["metrics"]["AP"] == pytest.approx(5 / THRESHOLDS)
    assert (scores["metrics"]["AP50"], scores["metrics"]["AP75"]) == (pytest.approx(1), 0)
    assert scores["per_class"]["cat"] == pytest.approx({"AP": 0.5, "AP50": 1, "AR_100": 0.5})


def test_the_order_of_scores_counts_and_not_the_order_given():
    records = [image(1, [A], [1])]
    right_first = score(records, [found(1, [ELSEWHERE, A], [1, 1], [0.2, 0.9])])
    wrong_first = score(records, [found(1, [A, ELSEWHERE], [1, 1], [0.2, 0.9])])
    assert right_first["metrics"]["AP"] == pytest.approx(1)
    assert wrong_first["metrics"]["AP"] == pytest.approx(0.5)


def test_boxes_are_matched_within_their_image_and_class():
    records = [image(1, [A], [1]), image(2, [B], [2])]
    everything = score(records, [found(1, [A], [1], [0.9]), found(2, [B], [2], [0.9])], ("cat", "dog"))
    assert everything["metrics"]["AP"] == pytest.approx(1)
    other_image = score(records, [found(2, [A], [1], [0.9]), found(1, [B], [2], [0.9])], ("cat", "dog"))
    other_class = score(records, [found(1, [A], [2], [0.9]), found(2, [B], [1], [0.9])], ("cat", "dog"))
    assert other_image["metrics"]["AP"] == other_class["metrics"]["AP"] == 0


def test_nothing_found_is_zero_and_not_an_error():
    for detections in ([], [found(1)]):
        scores = score([image(1, [A], [1])], detections)
        assert scores["metrics"]["AP"] == scores["metrics"]["AR_100"] == 0
        assert scores["per_class"] == {"cat": {"AP": 0, "AP50": 0, "AR_100": 0}}


def test_what_has_no_ground_truth_is_left_out():
    records = [image(1, [A], [2]), image(2)]  # 50×50 is medium
    scores = score(records, [found(1, [A, B], [2, 3], [0.9, 0.9])], ("cat", "dog", "owl"))
    assert set(NAMES) - set(scores["metrics"]) == {"AP_small", "AP_large", "AR_small", "AR_large"}
    assert scores["metrics"]["AP_medium"] == pytest.approx(1)
    assert list(scores["per_class"]) == ["dog"]


@pytest.mark.parametrize("scorer", SCORERS)
def test_no_ground_truth_at_all_has_no_scores(scorer):
    results = coco_results([found(1, [A], [1], [0.9])])
    for records, classes, detections in [([image(1)], ("cat",), []), ([image(1)], ("cat",), results), ([], (), [])]:
        truth = coco_ground_truth(records, classes)
        assert coco_metrics(truth, detections, scorer=scorer) == {"metrics": {}, "per_class": {}}


def test_the_annotated_area_decides_the_size_not_the_box():
    scores = score([image(1, [A], [1], area=[100.0])], [found(1, [A], [1], [0.9])])
    assert "AP_small" in scores["metrics"] and "AP_medium" not in scores["metrics"]


def test_detections_in_a_crowd_are_forgiven_and_the_crowd_need_not_be_found():
    crowd = [200, 200, 400, 400]
    in_crowd = [[210, 210, 260, 260], [300, 300, 350, 350]]
    detections = [found(1, [*in_crowd, A], [1, 1, 1], [0.9, 0.8, 0.7])]
    forgiven = score([image(1, [A, crowd], [1, 1], crowd=[0, 1])], detections)
    counted = score([image(1, [A, crowd], [1, 1])], detections)
    assert forgiven["metrics"]["AP"] == pytest.approx(1)
    assert counted["metrics"]["AP"] < 0.5


def test_at_most_a_hundred_detections_an_image_count():
    boxes = [[300, 300, 310, 310]] * 100 + [A]
    scores = score([image(1, [A], [1])], [found(1, boxes, [1] * 101, [*np.linspace(0.9, 0.5, 100), 0.1])])
    assert scores["metrics"]["AP"] == 0


@pytest.mark.parametrize(("before", "recalls"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (9, (0, 1, 1)), (10, (0, 0, 1))])
def test_recall_is_that_of_the_best_1_10_and_100_detections(before, recalls):
    detections = found(1, [*[ELSEWHERE] * before, A], [1] * (before + 1), [*[0.9] * before, 0.1])
    scores = score([image(1, [A], [1])], [detections])["metrics"]
    assert tuple(scores[name] for name in ("AR_1", "AR_10", "AR_100")) == recalls


@pytest.mark.parametrize("scorer", SCORERS)
def test_of_two_boxes_as_near_the_last_is_found(scorer):
    """So a second detection finds a box where it is on the first one."""
    halves, both = [[0, 0, 50, 100], [50, 0, 100, 100]], [0, 0, 100, 100]
    truth = coco_ground_truth([image(1, halves, [1, 1])], ("cat",))
    for half, ap50 in zip(halves, (1, 51 / 101), strict=True):
        results = coco_results([found(1, [both, half], [1, 1], [0.9, 0.8])])
        assert coco_metrics(truth, results, scorer=scorer)["metrics"]["AP50"] == pytest.approx(ap50)


def pycocotools_alone(truth, results, folder, category_ids=None):
    """pycocotools as its own example runs it, on files."""
    for name, content in {"truth": truth, "results": results}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "truth.json")
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), "bbox")
        evaluation.params.catIds = category_ids or evaluation.params.catIds
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def assert_equal_to_pycocotools(truth, results, folder, scorer):
    """All 12 numbers, and each class's own, are those of pycocotools."""
    ours, theirs = coco_metrics(truth, results, scorer=scorer), pycocotools_alone(truth, results, folder)
    assert ours["metrics"] == pytest.approx({key: value for key, value in theirs.items() if value != -1}, abs=1e-12)
    assert 0.02 < theirs["AP"] < 0.95
    for category in truth["categories"]:
        alone = pycocotools_alone(truth, results, folder, [category["id"]])
        if alone["AP"] == -1:
            assert category["name"] not in ours["per_class"]
        else:
            expected = {key: pytest.approx(alone[key], abs=1e-12) for key in ("AP", "AP50", "AR_100")}
            assert ours["per_class"][category["name"]] == expected
    return ours


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_pycocotools_on_the_dumped_files(tmp_path, seed, scorer):
    records, detections = random_case(seed)
    truth, results = coco_ground_truth(records, ("cat", "dog", "owl")), coco_results(detections)
    assert set(assert_equal_to_pycocotools(truth, results, tmp_path, scorer)["per_class"]) == {"cat", "owl"}


@needs_real_data
@pytest.mark.parametrize("name", ["bccd", pytest.param("facemask", marks=pytest.mark.slow)])
def test_scores_equal_pycocotools_on_real_boxes(name, tmp_path):
    from data.open import open_data

    data = open_data(f"{REAL_DATA}/{name}")
    records, random, detections = data.records("train"), np.random.default_rng(0), []
    for record in records:
        twice = np.repeat(record.boxes, 2, axis=0)
        moved = twice + random.normal(0, 0.08, twice.shape) * np.tile(twice[:, 2:] - twice[:, :2], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        labels, scores = np.repeat(record.labels, 2), random.random(len(twice)).round(2)
        detections.append(found(record.image_id, moved, labels, scores))
    truth = coco_ground_truth(records, data.classes)
    assert_equal_to_pycocotools(truth, coco_results(detections), tmp_path, SCORERS[0])


# Coarse, so that boxes coincide, overlap by the thresholds, have equal scores and the very areas that divide sizes.
boxes = st.tuples(*(st.integers(0, 4).map(lambda n: 8.0 * n),) * 2, *(st.sampled_from((0.0, 16.0, 32.0, 96.0)),) * 2)
there = {"category_id": st.integers(1, 4), "bbox": boxes.map(list)}  # no category is 4
annotations = st.fixed_dictionaries(
    there
    | {"image_id": st.integers(1, 4)}  # no image is 4
    | {"area": st.sampled_from((0.0, 32.0**2, 2000.0, 96.0**2, 1e11)), "iscrowd": st.sampled_from((0, 0, 0, 1))}
)
results = st.fixed_dictionaries(there | {"image_id": st.integers(1, 3), "score": st.integers(-1, 4).map(float)})


@given(st.lists(annotations, max_size=30), st.lists(results, max_size=60))
def test_any_boxes_and_detections_score_what_pycocotools_says(annotations, results):
    truth = coco_ground_truth([image(3), image(1), image(2)], ("cat", "dog", "owl"))
    truth["annotations"] = [each | {"id": number} for number, each in enumerate(annotations)]
    ours, theirs = (coco_metrics(truth, results, scorer=scorer) for scorer in SCORERS)
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-12)
    expected = {name: pytest.approx(values, abs=1e-12) for name, values in theirs["per_class"].items()}
    assert ours["per_class"] == expected


@pytest.mark.parametrize("scorer", SCORERS)
def test_an_annotation_whose_id_is_0_counts_as_any_other(scorer):
    """pycocotools alone takes a match with it for none."""
    truth, results = coco_ground_truth([image(1, [A, B], [1, 1])], ("cat",)), coco_results([found(1, [A], [1], [0.9])])
    renumbered = truth | {"annotations": [each | {"id": each["id"] - 1} for each in truth["annotations"]]}
    assert coco_metrics(renumbered, results, scorer=scorer) == coco_metrics(truth, results, scorer=scorer)


def test_detections_in_other_images_than_those_of_the_ground_truth_are_refused():
    truth, results = coco_ground_truth([image(1, [A], [1])], ("cat",)), coco_results([found(2, [A], [1], [0.9])])
    with pytest.raises(ValueError, match=r"1 images .* such as image_id 2"):
        coco_metrics(truth, results)


def test_ground_truth_and_results_are_as_coco_has_them():
    truth = coco_ground_truth([image(7, [A, [1, 2, 4, 8]], [2, 1], crowd=[0, 1]), image(9, [B], [1])], ("cat", "dog"))
    assert [each["id"] for each in truth["annotations"]] == [1, 2, 3]  # never 0: pycocotools takes that for "unmatched"
    assert [each["image_id"] for each in truth["annotations"]] == [7, 7, 9]
    assert truth["annotations"][1] | {"id": 0} == {
        **{"id": 0, "image_id": 7, "category_id": 1, "iscrowd": 1},
        **{"bbox": [1.0, 2.0, 3.0, 6.0], "area": 18.0},
    }
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [each["id"] for each in truth["images"]] == [7, 9]
    results = coco_results([found(9, [B, A], [2, 1], [0.5, 0.25]), found(3), found(7, [A], [1], [0.75])])
    assert results == [
        {"image_id": 9, "category_id": 2, "bbox": [100.0, 0.0, 50.0, 50.0], "score": 0.5},
        {"image_id": 9, "category_id": 1, "bbox": [0.0, 0.0, 50.0, 50.0], "score": 0.25},
        {"image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 50.0, 50.0], "score": 0.75},
    ]
    json.dumps([truth, results])


@pytest.mark.parametrize("scorer", SCORERS)
def test_what_is_given_is_left_as_it_was(scorer, capfd):
    """pycocotools writes ids, areas and polygons into its arguments; the results are logged after scoring."""
    records, detections = random_case(0)
    truth, results = coco_ground_truth(records, ("cat", "dog", "owl")), coco_results(detections)
    before = json.dumps([truth, results])
    first = coco_metrics(truth, results, scorer=scorer)
    assert json.dumps([truth, results]) == before
    assert coco_metrics(truth, results, scorer=scorer) == first
    assert capfd.readouterr().out == ""
