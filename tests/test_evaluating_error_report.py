"""What evaluate.py tells of errors: words, table, bars, and boxes on the worst images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import figures
from data.dataset import load_image
from data.open import open_data
from evaluating import error_report
from metrics import coco_ground_truth
from metrics.errors import ERRORS, Kind, analyse
from tracking.records import NOTE

RED, PINK, GREEN = (214, 39, 40), (227, 119, 194), (44, 160, 44)  # of tab10: background, missed, hit


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_evaluate_tells_writes_and_logs_the_errors(trained, run_here, pictures, tmp_path):
    out = tmp_path / "out"
    process = run_here("evaluate.py", "--run", trained.run_id, "--json", "--output", out, "--worst", "4")
    report = json.loads(process.stdout)
    told = report["errors"]
    assert told == json.loads((out / "metrics.json").read_text())["errors"]
    ground_truth, results = (json.loads((out / f"{name}.json").read_text()) for name in ("ground_truth", "detections"))
    errors = analyse(ground_truth, results)
    assert errors.ap50() == pytest.approx(report["metrics"]["AP50"])
    assert told["kinds"] == {
        kind.title: {"AP50": pytest.approx(errors.cost(kind)), "count": errors.count(kind)} for kind in ERRORS
    }
    objects = sum(not each["iscrowd"] for each in ground_truth["annotations"])
    assert errors.count(Kind.HIT) + told["false_negatives"]["count"] == objects
    assert errors.count(Kind.HIT) + told["false_positives"]["count"] == len(results)
    worst = [errors.image_ids.index(one["image_id"]) for one in told["worst_images"]]
    assert len(set(worst)) == 4
    for one in told["worst_images"]:
        drawn = [
            Kind(kind)
            for each, kind in zip(results, errors.kinds, strict=True)
            if each["image_id"] == one["image_id"] and each["score"] >= report["confusion"]["score_threshold"]
        ]
        assert sum(one["kinds"].values()) == one["wrong"] == len(drawn) - drawn.count(Kind.HIT)
        there = sum(each["image_id"] == one["image_id"] for each in ground_truth["annotations"])
        assert one["not_found"] == there - drawn.count(Kind.HIT)
    lowest = min(each["score"] for each in results)
    said = f"that each kind costs and how many there are at any score, from {lowest:.2g} on:"
    assert said in "\n".join(error_report.lines(told))

    width, height = 4 * 128 + figures.GAP_PIXELS, 2 * (4 * 96 + 2 * figures.TITLE_PIXELS + figures.GAP_PIXELS)
    in_rows = pixels(out / "figures" / "worst_images.jpg")  # three in the first row, one in the second
    legend = figures.under_legend(error_report.LEGEND, np.zeros((0, 3 * width, 3), np.uint8))
    assert in_rows.shape == (len(legend) + 2 * (height + figures.GAP_PIXELS), 3 * width, 3)
    store, evaluation = trained.store, report["evaluation_run_id"]
    logged = sorted(file.path for file in store.client.list_artifacts(evaluation, "figures"))
    assert {"figures/errors.png", "figures/worst_images.jpg"} <= set(logged)
    table = json.loads(
        Path(store.client.download_artifacts(evaluation, "tables/errors.json", str(tmp_path))).read_text()
    )
    assert table["data"][0] == ["classification", *told["kinds"]["classification"].values()]
    note = store.run(evaluation).tags[NOTE]
    assert f"/runs/{trained.run_id}?" in note and f"/runs/{evaluation}/artifacts/figures/" in note
    lost = store.run(evaluation).metrics["eval/shapes/val/AP50_lost/missed"]
    assert lost == pytest.approx(told["kinds"]["missed"]["AP50"])


def test_none_of_the_worst_is_drawn_where_none_is_asked_for(trained, run_here, tmp_path):
    process = run_here("evaluate.py", "--no-log", "--output", tmp_path / "out", "--worst", "0")
    written = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "errors.png" in written and "worst_images.jpg" not in written
    assert "  localisation  " in process.stdout and "worst images" not in process.stdout


@pytest.fixture
def case(coco_folder):
    """An image with two objects, the first found; one more detection where nothing is, one of a low score."""
    data = open_data(coco_folder)
    record = next(record for record in data.records("val") if len(record.boxes) >= 2)
    boxes = np.array([[2.0, 2.0, 40.0, 40.0], [60.0, 50.0, 100.0, 90.0]])
    ones = np.ones(2)
    record = replace(record, boxes=boxes, labels=np.array([1, 1]), area=1444 * ones, iscrowd=0 * ones)
    results = [
        {"image_id": record.image_id, "category_id": 1, "bbox": box, "score": score}
        for box, score in (([2, 2, 38, 38], 0.9), ([60, 2, 30, 30], 0.8), ([4, 60, 30, 30], 0.3))
    ]
    ground_truth = coco_ground_truth([record], data.classes)
    return record, ground_truth, results, analyse(ground_truth, results)


def colored(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (picture == color).all(axis=-1)


def test_errors_are_written_on_their_boxes_and_hits_are_not(case, pictures):
    record, ground_truth, results, errors = case
    assert [Kind(kind) for kind in errors.kinds] == [Kind.HIT, Kind.BACKGROUND, Kind.BACKGROUND]
    grey = np.full((record.height, record.width, 3), 128, np.uint8)
    picture = error_report.picture(grey, ground_truth["images"][0], errors, ground_truth, results, 0.5)
    middle = picture.shape[0] // 2
    truth, found = picture[:middle], picture[middle:]
    top = 2 * figures.TITLE_PIXELS

    def outline(color, part, x, y):  # of a box whose upper left corner is there, in pixels of the image
        return colored(part, color)[top + 4 * y + 40 : top + 4 * y + 80, 4 * x - 4 : 4 * x + 5].any()

    assert outline(GREEN, truth, 2, 2) and outline(PINK, truth, 60, 50)
    assert outline(GREEN, found, 2, 2) and outline(RED, found, 60, 2)
    assert not outline(RED, found, 4, 60)  # of a score below the shown
    assert colored(picture, RED).sum() > colored(picture, PINK).sum() / 2 > 500  # filled: words stand on it
    inside = found[top + 4 * 2 + 5 : top + 4 * 40 - 5, 4 * 2 + 5 : 4 * 40 - 5]
    assert (inside == 128).all()  # of the hit in the corner, whose label would have no room but there


def test_headings_count_what_is_right_wrong_and_not_found(case):
    *_, errors = case
    assert error_report._objects_counted(errors, [0, 1], 0.5) == "1 found, 1 not found"
    assert error_report._objects_counted(errors, [0, 1], 0.95) == "0 found, 2 not found (lower scores find 1)"
    kinds = [Kind(kind) for kind in errors.kinds]
    assert error_report._detections_counted(kinds, 0) == "1 right, 2 wrong\n2 background"
    assert error_report._detections_counted(kinds, 5) == "1 right, 2 wrong, 5 wrong below\n2 background"
    assert error_report._detections_counted([], 0) == "0 right, 0 wrong\n"


def test_many_of_the_worst_are_drawn_on_pages(case, tmp_path):
    record, *_ = case
    records = [replace(record, image_id=number, name=f"{number}.png") for number in range(1, error_report.A_PAGE + 3)]
    truth = coco_ground_truth(records, ["star"])
    errors, folder = analyse(truth, []), tmp_path / "figures"
    folder.mkdir()
    for name in ("worst_images_2.jpg", "worst_images_12.jpg", "worst_images_mine.jpg"):
        (folder / name).touch()

    def pixels_of(image):
        return None if image["id"] == 1 else np.full((image["height"], image["width"], 3), 128, np.uint8)

    told = error_report.in_report(errors, truth, [], worst=len(records), shown_score=0.5)
    paths = error_report.draw(told, errors, truth, [], pixels_of, folder)
    assert [path.name for path in paths] == ["errors.png", "worst_images.jpg", "worst_images_2.jpg"]
    assert {path.name for path in folder.iterdir()} == {"worst_images_mine.jpg", *(path.name for path in paths)}
    full, rest = (pixels(path).shape for path in paths[1:])
    assert full[1] == 3 * rest[1]  # three in a row; one is left
    rows = [np.zeros((0, shape[1], 3), np.uint8) for shape in (full, rest)]
    legends = [len(figures.under_legend(error_report.LEGEND, row)) for row in rows]
    assert full[0] - legends[0] == 3 * (rest[0] - legends[1])


def test_every_colour_has_a_meaning_of_its_own():
    assert error_report.MEANINGS.keys() == error_report.COLORS.keys() == set(Kind)
    assert len(error_report.LEGEND) == len(set(error_report.LEGEND.values())) == len(Kind)


def test_an_object_found_below_the_shown_score_says_so(case):
    _, ground_truth, results, _ = case
    low = [results[0] | {"score": 0.25}]
    errors = analyse(ground_truth, low)
    assert error_report._said_of_object(errors, 0, "star", 0, 0.5) == (Kind.MISSED, "star, found at 0.25")
    assert error_report._said_of_object(errors, 0, "star", 0, 0.2) == (Kind.HIT, "")
    assert error_report._said_of_object(errors, 1, "star", 0, 0.5) == (Kind.MISSED, "star")
    assert error_report._said_of_object(errors, 1, "star", 1, 0.5) == (Kind.IGNORED, "star, crowd")


def test_without_objects_errors_are_told_and_no_costs(case, tmp_path):
    record, ground_truth, results, _ = case
    empty = ground_truth | {"annotations": []}
    errors = analyse(empty, results)
    told = error_report.in_report(errors, empty, results, worst=6, shown_score=0.5)
    paths = error_report.draw(told, errors, empty, results, lambda _: load_image(record), tmp_path / "figures")
    assert [path.name for path in paths] == ["worst_images.jpg"]
    assert told["kinds"]["background"] == {"AP50": None, "count": 3}
    assert any(line.split() == ["background", "–", "3"] for line in error_report.lines(told))


def test_without_errors_nothing_is_worst(case, tmp_path):
    record, ground_truth, results, _ = case
    perfect = [results[0], results[0] | {"bbox": [60, 50, 40, 40]}]
    errors = analyse(ground_truth, perfect)
    told = error_report.in_report(errors, ground_truth, perfect, worst=6, shown_score=0.5)
    assert told["worst_images"] == [] and "worst images" not in "\n".join(error_report.lines(told))
    paths = error_report.draw(told, errors, ground_truth, perfect, lambda _: load_image(record), tmp_path / "figures")
    assert [path.name for path in paths] == ["errors.png"]


def test_an_object_that_only_a_lower_score_finds_is_drawn_counted_and_named_as_not_found(case):
    record, ground_truth, results, _ = case
    results = [results[0] | {"score": 0.4}]
    errors, grey = analyse(ground_truth, results), np.full((record.height, record.width, 3), 128, np.uint8)
    told = error_report.in_report(errors, ground_truth, results, worst=6, shown_score=0.5)
    (one,) = told["worst_images"]
    assert (one["wrong"], one["not_found"], told["false_negatives"]["count"]) == (0, 2, 1)
    assert error_report.lines(told)[-1].endswith(f"not found, from score 0.500 on): {record.name} (0 + 2)")
    for score, drawn in ((0.5, False), (0.4, True)):
        picture = error_report.picture(grey, ground_truth["images"][0], errors, ground_truth, results, score)
        assert colored(picture, GREEN).any() == drawn and colored(picture, PINK).any()


def test_words_on_narrow_boxes_leave_their_kind_to_the_colour():
    each = {"category_id": 1, "score": 0.9, "bbox": [0, 0, 20, 20]}
    said = [error_report._said_of_detection(Kind.BACKGROUND, {1: "star"}, each, width) for width in (100, 400)]
    assert said == ["background: star 0.90", "star 0.90"]
