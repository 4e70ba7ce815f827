"""infer.py: what it looks at, what it says of each image and frame, in every format, and what it draws."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import figures
import infer
from data.video import new_video, read_frames, read_header
from infer import InferConfig
from recipes import detections
from sources import Pictures, find_files
from tests.test_data_video import FRAMES, RATE, SIZE, by_opencv, by_pyav, cut
from workspace import WorkspaceError

ALL = ("--score-threshold", "0.05")  # the model's own: what a few training steps find scores low
CLASSES = ["circle", "square", "star", "triangle"]


@pytest.fixture
def image(coco_folder: Path) -> Path:
    return sorted((coco_folder / "val").iterdir())[0]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no picture")
    return file


def lines(process: subprocess.CompletedProcess, code: int = 0) -> list[dict]:
    assert process.returncode == code, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_line_an_image_and_what_fails_is_named(run_here, coco_folder, broken, tmp_path):
    process = run_here("infer.py", broken, coco_folder / "val", *ALL, "--output", tmp_path / "drawn")
    found = lines(process, 1)
    assert [("error" in line) for line in found] == [True] + [False] * 5
    assert found[0]["image"] == str(broken) and process.stderr.count("broken.jpg") == 1
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 5
    assert sum(len(line["detections"]) for line in found[1:]) > 5
    for line in found[1:]:
        assert_within(line)


def assert_within(result: dict) -> None:
    boxes = np.array([one["box"] for one in result["detections"]]).reshape(-1, 4)
    assert (boxes >= 0).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (boxes[:, 2:] <= (result["width"], result["height"])).all()
    assert (boxes == boxes.round(2)).all()
    scores = [one["score"] for one in result["detections"]]
    assert scores == sorted(scores, reverse=True) == [round(score, 4) for score in scores]


def test_what_fails_in_a_batch_changes_nothing_for_the_others(run_here, coco_folder, broken):
    alone = lines(run_here("infer.py", coco_folder / "val", *ALL, "--batch-size", "1"))
    images = [line["image"] for line in alone]
    together = lines(run_here("infer.py", images[0], broken, *images[1:], *ALL, "--batch-size", "6"), 1)
    assert "error" in together.pop(1)
    for one, other in zip(alone, together, strict=True):
        assert (one["image"], len(one["detections"])) == (other["image"], len(other["detections"]))
        for box, same in zip(one["detections"], other["detections"], strict=True):
            assert box["box"] == pytest.approx(same["box"], abs=0.02)


def test_other_ways_to_compute_find_the_same_but_for_rounding(run_here, coco_folder):
    usual, plain, half = (
        [one["detections"] for one in lines(run_here("infer.py", coco_folder / "val", *ALL, *options))]
        for options in ([], ["--reference"], ["--amp", "bf16"])
    )
    for one, same, near in zip(usual, plain, half, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in same]
        for each, other in zip(one, same, strict=True):
            assert each["box"] == pytest.approx(other["box"], abs=0.1)
        assert near[0]["score"] == pytest.approx(one[0]["score"], abs=0.1)
    assert usual != half


def test_boxes_are_in_the_image_as_it_is_displayed(run_here, image, tmp_path):
    """Lying in the file, upright by its EXIF orientation: nothing differs from the upright file."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    with Image.open(image) as picture:
        upright = picture.convert("RGB").crop((0, 0, 70, 96))
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    upright_result, turned = lines(run_here("infer.py", tmp_path / "a.png", tmp_path / "b.png", *ALL))
    assert (turned["width"], turned["height"]) == (70, 96)
    assert turned["detections"] == upright_result["detections"] != []


def test_every_frame_of_a_video_has_its_line_and_is_drawn(run_here, pictures, image, tmp_path):
    (tmp_path / "in").mkdir()
    clip = by_opencv(tmp_path / "in" / "clip.avi")
    shutil.copy(image, tmp_path / "in" / "photo.png")
    process = run_here("infer.py", tmp_path / "in", *ALL, "--frame-stride", "3", "--output", tmp_path / "drawn")
    *frames, photo = lines(process)
    assert [(line["image"], line["frame"]) for line in frames] == [(str(clip), at) for at in range(0, FRAMES, 3)]
    assert [line["seconds"] for line in frames] == pytest.approx([at / RATE for at in range(0, FRAMES, 3)])
    assert {(line["width"], line["height"]) for line in frames} == {SIZE}
    assert "frame" not in photo and photo["image"].endswith("photo.png")
    assert any(line["detections"] for line in frames)
    for line in frames:
        assert_within(line)
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["clip.mp4", "photo.png"]
    assert float(read_header(tmp_path / "drawn" / "clip.mp4").rate) == pytest.approx(RATE / 3)
    # What compression does to the thin lines, it does to the expected ones too.
    with new_video(tmp_path / "expected.mp4", Fraction(RATE, 3), (4 * SIZE[0], 4 * SIZE[1])) as add:
        for line, plain in zip(frames, read_frames(clip, stride=3), strict=True):
            boxes = np.array([one["box"] for one in line["detections"]])
            labels = np.array([CLASSES.index(one["label"]) + 1 for one in line["detections"]])
            texts = [f"{one['label']} {one['score']:.2f}" for one in line["detections"]]
            add(figures.draw(plain.pixels, boxes, labels, texts))
    expected = read_frames(tmp_path / "expected.mp4")
    for one, same, plain in zip(
        read_frames(tmp_path / "drawn" / "clip.mp4"), expected, read_frames(clip, 3), strict=True
    ):
        without = plain.pixels.repeat(4, axis=0).repeat(4, axis=1)
        assert np.abs(one.pixels.astype(int) - same.pixels).mean() < 5
        assert np.abs(one.pixels.astype(int) - without).mean() > 15


def test_a_video_that_breaks_off_leaves_its_frames_and_the_others(run_here, image, tmp_path):
    clip = cut(by_pyav(tmp_path / "clip.mp4", movflags="faststart"), 0.6)
    absent = cut(by_pyav(tmp_path / "unreadable.mp4"), 0.6)
    process = run_here("infer.py", clip, absent, image, *ALL, "--output", tmp_path / "drawn")
    *frames, end, unreadable, photo = lines(process, 1)
    assert len(frames) >= 5 and all(line["frame"] == at for at, line in enumerate(frames))
    assert f"breaks off after {len(frames)} frames" in end["error"] and "unreadable.mp4" in unreadable["error"]
    assert photo["image"] == str(image)
    assert process.stderr.count("breaks off") == process.stderr.count("Cannot read") == 1
    assert {file.name for file in (tmp_path / "drawn").iterdir()} == {"clip.mp4", f"{image.stem}.png"}
    assert len(list(read_frames(tmp_path / "drawn" / "clip.mp4"))) == len(frames)


def test_python_gets_the_same_results(run_here, trained, coco_folder):
    printed = lines(run_here("infer.py", coco_folder / "val", *ALL))
    config = InferConfig(sources=(str(coco_folder / "val"),), checkpoint=trained.checkpoint, score_threshold=0.05)
    assert list(infer.main(config)) == printed


def test_stopping_early_leaves_no_half_video(trained, tmp_path):
    clip = by_opencv(tmp_path / "clip.mp4")
    sources = (str(clip),)
    results = infer.main(InferConfig(sources=sources, checkpoint=trained.checkpoint, output=tmp_path / "drawn"))
    assert [next(results)["frame"] for _ in range(6)] == list(range(6))
    results.close()
    assert list((tmp_path / "drawn").iterdir()) == []


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_fault(trained, tmp_path):
    """As in `| head -1`."""
    clip = by_opencv(tmp_path / "clip.mp4")
    command = [sys.executable, trained.folder / "infer.py", clip, "--output", tmp_path / "drawn"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["frame"] == 0
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors.startswith("detecting with") and len(errors.splitlines()) == 1
    assert list((tmp_path / "drawn").iterdir()) == []


def test_csv_has_the_same_detections_a_row_each(run_here, image, broken, tmp_path):
    odd = tmp_path / 'a "name",\nin two lines früh.png'
    shutil.copy(image, odd)
    clip = by_opencv(tmp_path / "clip.mp4")
    arguments = ("infer.py", odd, broken, clip, *ALL, "--frame-stride", "7")
    process = run_here(*arguments, "--format", "csv")
    assert process.returncode == 1 and "broken.jpg" in process.stderr
    rows = list(csv.DictReader(io.StringIO(process.stdout)))
    assert process.stdout.splitlines()[0] == "image,frame,label,score,x1,y1,x2,y2"
    expected = [
        [line["image"], str(line.get("frame", "")), one["label"], one["score"], *one["box"]]
        for line in lines(run_here(*arguments), 1)
        for one in line.get("detections", [])
    ]
    sides = ("score", "x1", "y1", "x2", "y2")
    assert [[*list(row.values())[:3], *(float(row[side]) for side in sides)] for row in rows] == expected
    assert {row["image"] for row in rows} == {str(odd), str(clip)}


def test_coco_is_what_pycocotools_reads(run_here, trained, coco_folder, broken, tmp_path):
    clip = by_opencv(tmp_path / "clip.mp4")
    arguments = ("infer.py", coco_folder / "val", broken, clip, *ALL, "--frame-stride", "7")
    expected = [line for line in lines(run_here(*arguments), 1) if "error" not in line]
    process = run_here(*arguments, "--format", "coco")
    assert process.returncode == 1 and "broken.jpg" in process.stderr
    (tmp_path / "found.json").write_text(process.stdout)
    found = COCO(str(tmp_path / "found.json"))
    results = found.loadRes(found.dataset["annotations"])
    assert [(one["id"], one["name"]) for one in found.loadCats(found.getCatIds())] == list(enumerate(CLASSES, start=1))
    assert [one["id"] for one in found.dataset["images"]] == list(range(1, 5 + len(range(0, FRAMES, 7)) + 1))
    assert [one["id"] for one in found.dataset["annotations"]] == list(range(1, len(found.dataset["annotations"]) + 1))
    for one, line in zip(found.dataset["images"], expected, strict=True):
        names = ("frame", "seconds", "width", "height")
        assert {name: one.get(name) for name in names} == {name: line.get(name) for name in names}
        assert one["file_name"] == line["image"]
        boxes = results.loadAnns(results.getAnnIds(imgIds=[one["id"]]))
        for box, detection in zip(boxes, line["detections"], strict=True):
            x, y, width, height = box["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(detection["box"])
            assert box["area"] == pytest.approx(width * height, abs=0.01) and box["iscrowd"] == 0
            assert (found.cats[box["category_id"]]["name"], box["score"]) == (detection["label"], detection["score"])


def test_coco_without_a_detection_is_a_whole_document(run_here, image):
    process = run_here("infer.py", image, "--score-threshold", "1", "--format", "coco")
    document = json.loads(process.stdout)
    assert (len(document["images"]), len(document["categories"]), document["annotations"]) == (1, 4, [])


def test_it_says_first_which_checkpoint(run_here, trained, image, tmp_path):
    shutil.copy(trained.checkpoint, tmp_path / "mine.pth")
    for arguments, end in (
        ((), ""),
        (("--run", "small"), ""),
        (("--checkpoint", tmp_path / "mine.pth"), f" ({tmp_path / 'mine.pth'})"),
    ):
        said = run_here("infer.py", image, *arguments).stderr.splitlines()[-1]
        assert said.startswith(f"detecting with run small ({trained.run_id[:8]}), epoch ")
        assert " of 2), trained on shapes, val/AP 0." in said and said.endswith(end)


def test_a_threshold_below_the_models_own_is_noted(run_here, image):
    assert "note: " not in run_here("infer.py", image, "--score-threshold", "0.05").stderr
    said = run_here("infer.py", image, "--score-threshold", "0.01").stderr
    assert said.count("note: ") == 1 and "below 0.05" in said


def foreign(path: Path) -> None:
    torch.save({"epoch": 3, "model_state_dict": {"weight": torch.zeros(2)}, "optimizer_state_dict": {}}, path)


CHECKPOINTS = {
    "absent": (lambda path: None, 2, "absent"),
    "empty": (lambda path: path.write_bytes(b""), 3, "empty"),
    "text": (lambda path: path.write_text("weights"), 3, "not-a-checkpoint"),
    "cut": (lambda path: cut(path, 0.9), 3, "truncated"),
    "foreign": (foreign, 4, "holds no Faster R-CNN"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used_is_one_message(run_here, trained, image, tmp_path, case):
    make, code, word = CHECKPOINTS[case]
    path = tmp_path / "mine.pth"
    if case == "cut":
        shutil.copy(trained.checkpoint, path)
    make(path)
    process = run_here("infer.py", image, "--checkpoint", path)
    assert (process.returncode, process.stdout, len(process.stderr.splitlines())) == (code, "", 1)
    assert word in process.stderr and str(path) in process.stderr


def test_strange_images(run_here, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256).save(tmp_path / "sixteen.png")
    Image.fromarray(pixels[:1, :1, :3]).save(tmp_path / "pixel.png")
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(tmp_path / "thin.png")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "zero.png").touch()
    (tmp_path / "folder.jpg").mkdir()
    process = run_here("infer.py", tmp_path, *ALL)
    found = {Path(line["image"]).stem: line for line in lines(process, 1)}
    assert {name for name, line in found.items() if "error" in line} == {"thin", "text", "zero"}
    assert "5000 × 1" in found["thin"]["error"]
    assert {name for name, line in found.items() if "error" not in line} == {"alpha", "grey", "sixteen", "pixel"}


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*sources: str, leave_out: str | None = None) -> list[str]:
    return [str(file) for file in find_files(sources, Path(leave_out) if leave_out else None)]


def test_files_are_found_once_each_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touched(tmp_path, "b.jpg", "a.JPG", "deep/c.mp4", "deep/d.txt", "deep/.hidden.jpg", ".cache/e.jpg", "x.jpg/f.png")
    assert found(".") == ["a.JPG", "b.jpg", "deep/c.mp4", "x.jpg/f.png"]
    assert found("b.jpg", str(tmp_path / "b.jpg"), "deep/../b.jpg", ".") == [
        "b.jpg",
        "a.JPG",
        "deep/c.mp4",
        "x.jpg/f.png",
    ]
    assert found("*.jpg") == ["b.jpg", "x.jpg/f.png"]
    assert found("**/*.mp4", str(tmp_path / "deep" / "*")) == [
        "deep/c.mp4",
        str(tmp_path / "deep/.hidden.jpg"),
        str(tmp_path / "deep/d.txt"),
    ]


def test_names_with_a_patterns_characters_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touched(tmp_path, "a[1].jpg", "a1.jpg", "set [2]*/x.jpg", "set [2]*/y.png", "new\nline é.jpg")
    assert found("a[1].jpg") == ["a[1].jpg"]
    assert found("a[1]*.jpg") == ["a1.jpg"]
    assert found("set [2]*") == ["set [2]*/x.jpg", "set [2]*/y.png"]
    assert found("set [2]*/*.jpg") == ["set [2]*/x.jpg"]
    assert found("new\nline é.jpg") == ["new\nline é.jpg"]


def test_what_was_drawn_before_is_no_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touched(tmp_path, "photos/a.jpg", "photos/drawn/a.png")
    assert found("photos", leave_out="photos/drawn") == ["photos/a.jpg"]
    assert found("photos", leave_out=str(tmp_path / "photos" / "drawn")) == ["photos/a.jpg"]
    assert (
        found("photos", leave_out=".") == found("photos", leave_out="photos") == ["photos/a.jpg", "photos/drawn/a.png"]
    )
    assert found("photos/drawn/a.png", leave_out="photos/drawn") == ["photos/drawn/a.png"]


@pytest.mark.parametrize("source", ["empty", "nothing-*.jpg", "absent.jpg", "absent/*.jpg", "photo.jpg/*"])
def test_a_source_that_names_nothing_is_an_error(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    touched(tmp_path, "empty/notes.txt", "photo.jpg")
    with pytest.raises(WorkspaceError, match=f"{re.escape(source)} is no file"):
        found("photo.jpg", source)


def test_the_total_follows_headers_until_a_video_has_been_read(tmp_path, image, broken):
    clip = cut(by_pyav(tmp_path / "clip.mp4", movflags="faststart"), 0.6)
    pictures = Pictures([image, clip, broken], stride=2)
    assert pictures.total == 2 + FRAMES // 2
    assert len(list(pictures)) == pictures.total < 2 + FRAMES // 2


def test_drawings_of_one_name_do_not_overwrite_each_other(run_here, image, tmp_path):
    for name in ("a/same.png", "b/same.png"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(image, tmp_path / name)
    clip = by_opencv(tmp_path / "same.avi")
    shutil.move(by_opencv(tmp_path / "other.avi"), tmp_path / "a" / "same.avi")
    process = run_here(
        "infer.py", tmp_path / "a", tmp_path / "b", clip, "--frame-stride", "9", "--output", tmp_path / "drawn"
    )
    assert len({line["image"] for line in lines(process)}) == len(list((tmp_path / "drawn").iterdir())) == 4


@pytest.mark.parametrize("name", ["clip.mp4", "photo.png"])
def test_a_drawing_never_takes_a_sources_place(run_here, image, tmp_path, name):
    shutil.copy(image, tmp_path / "photo.png")
    by_opencv(tmp_path / "clip.mp4")
    before = (tmp_path / name).read_bytes()
    process = run_here("infer.py", tmp_path / name, "--output", tmp_path)
    assert process.returncode == 2 and "overwrite" in process.stderr and name in process.stderr
    assert (tmp_path / name).read_bytes() == before


def test_a_name_of_any_bytes_comes_out_as_it_is(run_here, image, tmp_path):
    name = os.fsdecode(b"\xff\xfe.png")
    shutil.copy(image, tmp_path / name)
    result = lines(run_here("infer.py", tmp_path / name, *ALL))
    assert result[0]["image"].endswith(name)


def test_the_readmes_picture_has_a_row_a_run(trained, run_here, coco_folder, broken, tmp_path, capfd):
    images = [str(path) for path in sorted((coco_folder / "val").iterdir())[:3]]
    picture = tmp_path / "detections.png"
    detections.main([str(picture), "--row", trained.run_id, *images, "--row", "small", images[0]])
    assert capfd.readouterr().out == f"{picture}\n"
    with Image.open(picture) as drawn:
        assert drawn.size == (detections.WIDTH, round(detections.WIDTH / 4 * 3 / 3) + round(detections.WIDTH / 4 * 3))
    with pytest.raises(SystemExit, match=r"broken\.jpg"):
        detections.main([str(picture), "--row", trained.run_id, str(broken)])


def test_a_word_that_is_no_file_may_be_a_run():
    with pytest.raises(WorkspaceError, match=r"\)\. If it is a RUN: --run flip-s2 SOURCE …$"):
        find_files(["flip-s2"])
    with pytest.raises(WorkspaceError, match=r"folder with images or videos \([^)]*\)$"):
        find_files(["photos/flip-s2"])
