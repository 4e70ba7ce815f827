"""check_data.py: its report for people and for scripts, its exit codes, and that training says and keeps the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_report
from data.images import KINDS
from data.open import open_data
from data.remedies import REMEDIES
from survey_figure import survey_figure
from tests.conftest import REAL_DATA, ROOT, needs_real_data
from tests.test_data_readers import coco, write_coco

GOOD = [(1, 1, [2, 3, 20, 10]), (1, 3, [5, 5, 12, 20]), (2, 1, [1, 1, 30, 20])]


@pytest.fixture
def folder(tmp_path):
    """Images a (cat and dog) and b (cat) to train on, z (cat) to validate on, c without objects."""
    images = [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]
    write_coco(tmp_path, {"train": coco(images, GOOD), "val": coco([(1, "z.jpg")], GOOD[:2])})
    return tmp_path


def mistaken(folder, *annotations):
    """The same with more annotations in train."""
    images = [(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")]
    write_coco(folder, {"train": coco(images, [*GOOD, *annotations])})
    return folder


def of_kind(report, kind):
    return [defect for defect in report["defects"] if defect["kind"] == kind]


def test_json_has_the_numbers_and_every_defect(folder, run_script):
    ended = run_script("check_data.py", mistaken(folder, *[(2, 1, [4, 4, 0, 9])] * 7), "--json")
    report = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert report["format"] == "coco"
    assert report["splits"] == {
        "train": {"images": 3, "boxes": 3, "empty": 1},
        "val": {"images": 1, "boxes": 2, "empty": 0},
    }
    assert report["classes"] == {"cat": 3, "dog": 2}
    assert report["classes_by_split"]["val"] == {"cat": 1, "dog": 1}
    assert of_kind(report, "box-no-size")[6] == {
        "kind": "box-no-size",
        "severity": "warning",
        "split": "train",
        "file": "train2017/b.jpg",
        "object": "annotation 9 (cat)",
        "detail": "the box from (4, 4) to (4, 13) is 0×9 pixels",
        "action": "box dropped",
    }
    assert report["what_to_do"].keys() == {defect["kind"] for defect in report["defects"]}
    assert report["fingerprint"] == open_data(folder).fingerprint
    assert sum(map(sum, report["places"])) == sum(report["side_histogram"]["boxes"]) == 5
    assert (report["places"][8][9], report["places"][12][6]) == (1, 2)
    assert report["image_sizes"] == [{"width": 40, "height": 30, "images": 4}]


def test_the_report_for_people_counts_a_flood_and_names_its_first(folder, run_script):
    said = run_script("check_data.py", mistaken(folder, *[(2, 1, [4, 4, 0, 9])] * 7)).stdout
    assert "train       3                1      3" in said
    assert (
        "warning: 7 box-no-size (box dropped)\n    what to do: draw it anew in the annotation tool, or delete it\n"
        "    train: train2017/b.jpg, annotation 3 (cat)"
    ) in said
    assert said.count("the box from (4, 4) to (4, 13)") == 3 and "… and 4 more" in said
    assert said.endswith("the same command with --json, or with --output DIR in its report.md\n")
    assert "all images are 40×30 pixels" in said


def test_exit_codes(folder, tmp_path, run_script):
    def code(*arguments):
        return run_script("check_data.py", *arguments).returncode

    over = mistaken(folder, (2, 1, [30, 20, 20, 5]))
    assert (code(over), code(over, "--on-defect", "fail"), code("generated")) == (0, 1, 0)
    for number, image in enumerate(folder.glob("*2017/*.jpg")):  # the first, and then all of them
        image.unlink()
        assert number not in (0, 3) or code(folder, "--output", tmp_path / str(number)) == 1
    assert code(folder / "nowhere") == code() == 2


def test_training_refuses_what_on_defect_fail_names(folder, refused):
    said = refused(2, "train.py", "--data", mistaken(folder, (2, 1, [30, 20, 20, 5])), "--on-defect", "fail")
    assert "1 box-over-edge: train: train2017/b.jpg, annotation 3 (cat): the box from (30, 20) to (50, 25)" in said


def test_output_and_export(folder, tmp_path, run_script):
    to = tmp_path / "new" / "report"
    mistaken(folder, *[(2, 1, [4, 4, 0, 9])] * 7)
    ended = run_script("check_data.py", folder, "--output", to, "--export", "coco", tmp_path / "out" / "all.json")
    assert ended.returncode == 0, ended.stderr
    assert (to / "report.md").read_text().count("the box from (4, 4) to (4, 13)") == 7
    assert len(of_kind(json.loads((to / "report.json").read_text()), "box-no-size")) == 7
    with Image.open(to / "survey.png") as picture:
        assert min(picture.size) > 600
    exported = json.loads((tmp_path / "out" / "all_train.json").read_text())
    assert len(exported["annotations"]) == 3
    ended = run_script("check_data.py", folder, "--on-defect", "fail", "--export", "coco", tmp_path / "no" / "all.json")
    assert ended.returncode == 2 and "Not exported" in ended.stderr and not (tmp_path / "no").exists()
    ended = run_script("check_data.py", folder, "--export", "yolo", tmp_path / "no")
    assert ended.returncode == 2 and "--export writes coco, not yolo" in ended.stderr


def test_preview(folder, tmp_path, run_script):
    ended = run_script("check_data.py", folder, "--preview", tmp_path / "seen.png", "--augmentation", "none")
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.height > 500
    assert run_script("check_data.py", folder, "--augmentation", "none").returncode == 2


@pytest.mark.parametrize("classes", [1, 80])
def test_the_figure_of_any_number_of_classes_and_of_no_boxes(classes):
    names = [f"class {number} of a long, long name" for number in range(classes)]
    numbers = {
        "classes": dict(zip(names, range(classes), strict=True)),
        "classes_by_split": {"train": dict(zip(names, range(classes), strict=True)), "val": dict.fromkeys(names, 0)},
        "side_histogram": {"edges": [1, 2, 4], "boxes": [0, 0]},
        "places": np.zeros((24, 24), dtype=int).tolist(),
        "image_sizes": [{"width": 4000, "height": 30, "images": 100_000}, {"width": 1, "height": 1, "images": 1}],
    }
    assert survey_figure(numbers, "any").startswith(b"\x89PNG")


def test_many_classes_make_a_short_table(folder):
    data = open_data(folder)
    numbers = data_report.report(data)
    names = [f"class {number:02d}" for number in range(80)]
    numbers["classes"] = dict(zip(names, range(80, 0, -1), strict=True))
    numbers["classes_by_split"] = {"train": numbers["classes"], "val": dict.fromkeys(names, 0)}
    said = data_report.text(data, numbers, named=1)
    assert "class 00" in said and "class 79" in said and "class 40" not in said and "… 64 more" in said


def test_sixty_dark_images_are_one_warning_to_check_data_and_to_training(folder, run_script, home):
    images = [(number, f"{number}.png") for number in range(60)]
    write_coco(folder, {"train": coco(images, [(number, 1, [2, 3, 20, 10]) for number, _ in images])})
    for path in (folder / "train2017").glob("*.png"):
        Image.new("RGB", (40, 30), (20, 20, 20)).save(path)
    said = run_script("check_data.py", folder).stdout
    trained = run_script("train.py", "--data", folder, "--best-metric", "none").stderr  # it ends where data are checked
    for report in (said, trained):
        assert report.count("image-dark") == 1 and report.count("its brightest pixel is 20") == 3
        assert "… and 57 more" in report and "--json" in report
    assert "warnings of 2 kinds" in said


def test_every_kind_of_defect_says_what_to_do(folder, refused):
    sources = [*(ROOT / "data/checks").glob("*.py"), *(ROOT / "data/readers").glob("*.py"), ROOT / "data/splits.py"]
    kinds = {kind for path in sources for kind in re.findall(r'"([a-z]+(?:-[a-z]+)+)"', path.read_text())}
    kinds |= {"image-without-id", "image-without-file-name", *(f"image-{kind.replace(' ', '-')}" for kind in KINDS)}
    assert kinds == set(REMEDIES)
    (folder / "train2017" / "b.jpg").unlink()
    said = refused(2, "train.py", "--data", folder)
    assert "1 image-missing: train: b.jpg: there is no such file" in said
    assert f"\n    what to do: {REMEDIES['image-missing']}" in said


@needs_real_data
@pytest.mark.parametrize(("name", "boxes"), [("bccd", 4886), ("facemask", 4021)])
def test_real_data(run_script, name, boxes):
    ended = run_script("check_data.py", Path(REAL_DATA) / name, "--json")
    report = json.loads(ended.stdout)
    assert sum(report["classes"].values()) == sum(report["side_histogram"]["boxes"]) == boxes
    assert ended.returncode == int(any(defect["severity"] == "error" for defect in report["defects"]))
