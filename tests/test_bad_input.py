"""Bad input of every kind is one message and the right exit code, and leaves nothing behind."""

import json
import shutil

import pytest
import torch

from tests.conftest import SMALL

BAD_INPUT = {
    "no data that can be decoded": (("evaluate.py", "--data", "{cut}", "--workers", "2", "--no-log"), 2, "cut.png"),
    "a file for a RUN": (("restore.py", "{image}.pth"), 2, "--file"),
    "neither a RUN nor a file": (("restore.py",), 2, "Give a RUN"),
    "no run to choose from": (("evaluate.py", "--which", "0"), 2, "give --run"),
    "negative workers": (("evaluate.py", "--workers", "-1"), 2, "--workers"),
    "negative replicates": (("evaluate.py", "--replicates", "-1"), 2, "--replicates"),
    "too few replicates": (("evaluate.py", "--replicates", "1"), 2, "--replicates"),
    "negative number of images": (("evaluate.py", "--worst", "-1"), 2, "--worst"),
    "an empty argument": (("restore.py", "small", "--output", ""), 2, "empty"),
    "an experiment without a name": (("train.py", "--experiment", " "), 2, "--experiment"),
    "a CPU that is not there": (("train.py", *SMALL, "--device", "cpu:9"), 2, "cpu:9"),
    "too short a prefix": (("restore.py", "abc"), 2, "needs 4"),
    "unknown run": (("restore.py", "nosuchrun"), 2, "nosuchrun"),
    "unknown epoch": (("restore.py", "small", "--which", "9"), 2, "epoch-000, epoch-001"),
    "unknown metric": (("restore.py", "small", "--metric", "val/mAP"), 2, "val/mAP"),
    "output is a file": (("restore.py", "small", "--output", "{file}/under"), 2, "cannot be made"),
    "no data": (("train.py", "--data", "/no/such/data"), 2, "/no/such/data"),
    "empty data": (("train.py", "--data", "{empty}"), 2, "{empty}"),
    "wrong flag": (("train.py", "--learning-rate", "1"), 2, "--learning-rate"),
    "wrong value": (("train.py", "--lr", "-1"), 2, "--lr"),
    "unknown model": (("train.py", "--model", "fasterrcnn_resnet5_fpn"), 2, "fasterrcnn_resnet50_fpn"),
    "unknown metric to select by": (("train.py", *SMALL, "--best-metric", "val/mAP"), 2, "val/mAP"),
    "unknown split": (
        ("evaluate.py", "--split", "rest", "--no-log"),
        2,
        "has no split 'rest'. It has: train, val, test",
    ),
    "other classes": (("evaluate.py", "--data", "{other}", "--no-log"), 4, "classes"),
    "run and checkpoint": (("evaluate.py", "--run", "small", "--checkpoint", "x.pth"), 2, "choose one"),
    "changed flag on resume": (("train.py", "--resume", "small", "--lr", "0.5"), 2, "--lr"),
    "no image": (("infer.py", "nothing-here-*.jpg"), 2, "nothing-here"),
    "an unknown format": (("infer.py", "{image}", "--format", "xml"), 2, "--format"),
    "no frames": (("infer.py", "{image}", "--frame-stride", "0"), 2, "--frame-stride"),
    "no backbone weights": (("train.py", *SMALL, "--weights", "backbone", "--backbone-weights", "x.pth"), 2, "x.pth"),
    "unknown augmentation": (("train.py", "--augmentation", "banana"), 2, "dihedral"),
    "unknown weights": (("train.py", *SMALL, "--weights", "banana"), 2, "banana"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_message_and_the_right_code(case, trained, run_here, coco_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    other = json.loads((coco_folder / "annotations" / "instances_val.json").read_text())
    for category in other["categories"]:
        category["name"] += "s"
    shutil.copytree(coco_folder / "val", tmp_path / "other" / "images")
    (tmp_path / "other" / "all.json").write_text(json.dumps(other))
    image = next((coco_folder / "val").iterdir())
    cut = shutil.copytree(coco_folder, tmp_path / "cut")
    broken = next((cut / "val").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    places = {name: tmp_path / name for name in ("file", "empty", "other", "cut")}
    places |= {"image": image}
    (name, *arguments), code, named = BAD_INPUT[case]
    before = sorted(trained.folder.glob("runs/*")), trained.runs()
    process = run_here(name, *(argument.format(**places) for argument in arguments))
    assert process.returncode == code, process.stderr
    assert (broken.name if named == "cut.png" else named.format(**places)) in process.stderr
    assert "Traceback" not in process.stderr and process.stdout == ""
    assert (sorted(trained.folder.glob("runs/*")), trained.runs()) == before


def test_looking_at_an_empty_repository_creates_nothing(run_here, monkeypatch, tmp_path):
    monkeypatch.setattr("workspace.ROOT", tmp_path)
    monkeypatch.setattr("workspace.RUNS", tmp_path / "runs")
    monkeypatch.setattr("workspace.PUBLISHED", tmp_path / "models" / "faster_rcnn" / "checkpoint.pth")
    for arguments, code in ((("status.py", "--remote", "--sync"), 1), (("restore.py", "abcd"), 2)):
        process = run_here(*arguments)
        assert process.returncode == code and "python train.py" in process.stdout + process.stderr
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so that auto is that")
@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize(
    "arguments", [("train.py", *SMALL), ("evaluate.py", "--no-log"), ("infer.py", __file__)], ids=lambda each: each[0]
)
def test_a_precision_that_is_not_there_is_refused_before_anything_is_read(arguments, device, trained, run_here):
    ended = run_here(*arguments, "--device", device, "--amp", "fp16")
    assert (ended.returncode, ended.stdout) == (2, "") and "--amp fp16 needs a GPU" in ended.stderr
    assert not [line for line in ended.stderr.splitlines() if "images" in line or "scoring" in line]
