"""Checkpoints from elsewhere as evaluate.py, infer.py and train.py --weights take them: told, asked for, or refused."""

import json
from collections import OrderedDict

import pytest
import torch
from torchvision.models import detection

from tests.conftest import last_checkpoint

MOBILE_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
SHAPES = ["circle", "square", "star", "triangle"]
TINY = ("--image-min-size", "96", "--image-max-size", "128", "--device", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return getattr(detection, MOBILE_320)(weights=None, weights_backbone=None, num_classes=5).state_dict()


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(SHAPES))
    return file


@pytest.fixture
def bare(state, tmp_path):
    file = tmp_path / "bare.pth"
    torch.save(OrderedDict((f"_orig_mod.{key}", tensor) for key, tensor in state.items()), file)
    return file


@pytest.mark.parametrize("legacy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_evaluate_and_infer_take_the_file_as_it_is(home, state, bare, names, run_script, coco_folder, legacy):
    if legacy:
        torch.save(state, bare, _use_new_zipfile_serialization=False)
    before = bare.read_bytes()
    asked = ("--checkpoint", bare, "--model", MOBILE_320, "--classes", names)
    images = coco_folder / "test"
    detected = run_script("infer.py", images, *asked, "--score-threshold", "0")
    assert detected.returncode == 0, detected.stderr
    lines = [json.loads(line) for line in detected.stdout.splitlines()]
    assert len(lines) == 4 and {one["label"] for line in lines for one in line["detections"]} <= set(SHAPES)
    scored = run_script("evaluate.py", *asked, "--data", coco_folder, "--json", "--no-log", "--workers", "0")
    assert scored.returncode == 0, scored.stderr
    assert set(json.loads(scored.stdout)["per_class"]) == set(SHAPES)
    assert "no tensor tells" in scored.stderr
    assert bare.read_bytes() == before and not (home / "models").exists()


@pytest.mark.parametrize(
    "script",
    [
        ("evaluate.py", "--data", "DATA", "--no-log"),
        pytest.param(("infer.py", "DATA/test"), marks=pytest.mark.slow),
    ],
)
def test_what_is_wanted_is_said_in_one_message(refused, state, bare, names, tmp_path, coco_folder, script):
    script = [word.replace("DATA", str(coco_folder)) for word in script]
    message = refused(2, *script, "--checkpoint", bare)
    assert f"--model {MOBILE_320}" in message and "--classes FILE" in message and len(message.splitlines()) == 1
    asked = (*script, "--checkpoint", bare, "--model", MOBILE_320, "--classes")
    (tmp_path / "two").write_text("a\nb\n")
    assert "5 rows" in refused(4, *asked, tmp_path / "two")
    assert "5 rows" in refused(4, *asked, "coco")
    lacking = {key: value for key, value in state.items() if key != "backbone.body.3.block.0.0.weight"}
    torch.save(lacking, bare)
    assert "lacks 1 tensors (backbone.body.3.block.0.0.weight)" in refused(4, *asked, names)
    assert "a RUN knows both" in refused(2, *script, "--run", "some", "--classes", names)


@pytest.mark.slow
def test_weights_of_a_file_from_elsewhere_bring_model_and_classes(
    home, refused, state, bare, names, run_script, coco_folder
):
    asked = ("train.py", "--data", coco_folder, *TINY, "--weights", bare, "--max-steps", "1", "--batch-size", "2")
    assert f"--model {MOBILE_320}" in refused(2, *asked)
    torch.save(state | {"roi_heads.box_head.fc6.bias": state["roi_heads.box_head.fc6.bias"] + 1}, bare)
    names.write_text("\n".join(reversed(SHAPES)))
    process = run_script(*asked, "--model", MOBILE_320, "--classes", names)
    assert process.returncode == 0, process.stderr
    assert "classes carried over: circle, square, star, triangle" in process.stderr
    assert last_checkpoint(process.stdout.strip())["architecture"]["builder"] == MOBILE_320
    names.write_text("a\nb")
    assert "2 classes are named for it" in refused(2, *asked, "--model", MOBILE_320, "--classes", names)


@pytest.mark.slow
def test_the_model_that_tensors_tell_is_trained_on(home, run_script, coco_folder, tmp_path):
    file = tmp_path / "resnet.pth"
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    torch.save({"model": model.state_dict()}, file)
    asked = (
        "--data",
        coco_folder,
        *TINY,
        "--weights",
        file,
        "--batch-size",
        "1",
        "--roi-samples",
        "8",
        "--dry-run",
        "--epochs",
        "1",
    )
    process = run_script("train.py", *asked, "--proposals", "20", "--classes", "coco")
    assert process.returncode == 0, process.stderr
    assert "fasterrcnn_resnet50_fpn, " in process.stdout
    assert "classes that start afresh: circle, square, star, triangle" in process.stderr
