"""Checkpoints from elsewhere: what their tensors tell, what is asked for, and that every tensor finds its place."""

from pathlib import Path

import pytest
import torch
from torchvision.models import detection

from models import detector
from models.backbones import ModelError
from models.foreign import adopt, read_classes
from models.record import CheckpointError, says_what_it_is

MOBILE, MOBILE_320 = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
NAMES = ["cat", "dog"]
HEAD = "roi_heads.box_predictor.cls_score.weight"
FILE = Path("theirs.pth")


def theirs(name: str = MOBILE_320, classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=classes + 1).eval()


@pytest.fixture(scope="module")
def mobile() -> dict[str, torch.Tensor]:
    """The state dict of torchvision's smallest one, of two classes."""
    return theirs().state_dict()


def adopted(state: dict, said: dict | None = None, **given) -> dict:
    """The state dict, in a file that says this too, adopted with what is given beside it."""
    return adopt({"model_state_dict": state, **(said or {})}, FILE, **{"model": None, "classes": NAMES, **given})


def refusal(state: dict, exit_code: int, said: dict | None = None, **given) -> str:
    with pytest.raises(CheckpointError) as caught:
        adopted(state, said, **given)
    message = str(caught.value)
    assert (caught.value.exit_code, len(message.splitlines())) == (exit_code, 1), message
    assert str(FILE) in message
    return message


@pytest.mark.parametrize(
    ("name", "said", "frozen"),
    [
        ("fasterrcnn_resnet50_fpn", None, True),
        pytest.param("fasterrcnn_resnet50_fpn", None, False, marks=pytest.mark.slow),
        ("fasterrcnn_resnet50_fpn_v2", None, False),
        (MOBILE, MOBILE, True),
        (MOBILE_320, MOBILE_320, False),
    ],
)
def test_torchvisions_models_are_told_by_their_tensors(name, said, frozen):
    state = theirs(name).state_dict()
    counters = [key for key in state if key.startswith("backbone.body.") and key.endswith("num_batches_tracked")]
    for key in counters if frozen else ():
        del state[key]
    content = adopted(state, model=said)
    kwargs = content["architecture"]["kwargs"]
    assert (content["architecture"]["builder"], content["classes"]) == (name, NAMES)
    assert (kwargs["norm"], kwargs["num_classes"]) == ("frozen" if frozen else "batch", 3)
    assert says_what_it_is(content)
    detector.build(content["architecture"]).load_state_dict(content["model_state_dict"])
    assert content["model_state_dict"].keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in content["model_state_dict"].items())
    if name == "fasterrcnn_resnet50_fpn":
        assert kwargs["norm_eps"] == 0.0  # as torchvision's COCO weights need it, and what is trained from them


def test_an_adopted_model_detects_what_torchvisions_own_does():
    model = theirs()
    images = [torch.rand(3, 100, 140), torch.rand(3, 90, 70)]
    content = adopted(model.state_dict(), model=MOBILE_320)
    ours = detector.build(content["architecture"]).eval()
    ours.load_state_dict(content["model_state_dict"])
    with torch.no_grad():
        for theirs_found, found in zip(model(images), ours(images), strict=True):
            assert len(found["boxes"]) > 10
            for key, expected in theirs_found.items():
                torch.testing.assert_close(found[key], expected)


def test_all_that_a_file_does_not_say_is_asked_for_at_once(mobile):
    message = refusal(mobile, 2, classes=None)
    assert f"--model {MOBILE} or --model {MOBILE_320}" in message
    assert "2 classes" in message and "--classes FILE" in message and "coco" not in message
    assert "--model" not in refusal(mobile, 2, classes=None, model=MOBILE)
    assert "--classes coco" in refusal({**mobile, HEAD: torch.zeros(91, 1024)}, 2, classes=None)
    unknown = {key.replace("backbone.body.", "backbone.trunk."): tensor for key, tensor in mobile.items()}
    assert "do not tell the model: give --model NAME (fasterrcnn_resnet50_fpn, " in refusal(unknown, 2)


@pytest.mark.parametrize("names", [["cat"], ["cat", "dog", "owl"]])
def test_a_wrong_number_of_names_tells_both(mobile, names):
    message = refusal(mobile, 4, model=MOBILE, classes=names)
    assert "2 classes" in message and f"{len(names)} names" in message
    assert ("background's" in message) == (len(names) == 3)


@pytest.mark.parametrize(
    "said",
    [
        *({key: NAMES} for key in ("classes", "class_names", "categories", "CLASSES")),
        {"data": {"CLASSES": ["__background__", *NAMES], "NC": 3}},  # sovit-123's pipeline
        {"config": {"classes": ("background", *NAMES)}},
        {"classes": ["of", "something", "else"], "class_names": NAMES},
    ],
)
def test_names_in_the_file_are_taken_where_they_fit(mobile, said):
    assert adopted(mobile, said, model=MOBILE, classes=None)["classes"] == NAMES
    assert adopted(mobile, said, model=MOBILE, classes=["owl", "ant"])["classes"] == ["owl", "ant"]


@pytest.mark.parametrize("said", [{"classes": 2}, {"classes": [1, 2]}, {"classes": []}, {"data": ["cat", "dog"]}])
def test_other_things_under_such_names_are_no_names(mobile, said):
    assert "--classes FILE" in refusal(mobile, 2, said, model=MOBILE, classes=None)


def test_missing_and_further_tensors_are_named(mobile):
    lacking = {key: tensor for key, tensor in mobile.items() if key != "rpn.head.bbox_pred.weight"}
    assert "it lacks 1 tensors (rpn.head.bbox_pred.weight)" in refusal(lacking, 4, model=MOBILE)
    masks = {**mobile, "roi_heads.mask_head.0.0.weight": torch.zeros(1)}
    assert "it has besides 1 tensors (roi_heads.mask_head.0.0.weight)" in refusal(masks, 4, model=MOBILE)
    anchors = {**mobile, "rpn.head.cls_logits.bias": torch.zeros(9)}
    assert "in another shape 1 tensors (rpn.head.cls_logits.bias)" in refusal(anchors, 4, model=MOBILE)
    agnostic = {**mobile, "roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4)}
    assert "in another shape 1 tensors" in refusal(agnostic, 4, model=MOBILE)
    assert "no Faster R-CNN" in refusal({"fc.weight": torch.zeros(2, 2)}, 4)
    with pytest.raises(ModelError, match="near it: fasterrcnn_mobilenet"):
        adopted(mobile, model="fasterrcnn_mobilenet_v3")


def test_old_names_wrapped_names_and_half_precision_are_understood(mobile):
    old = {
        f"module.{key.replace('_blocks.0.0.', '_blocks.0.').replace('rpn.head.conv.0.0.', 'rpn.head.conv.')}": tensor
        for key, tensor in mobile.items()
    }
    content = adopted({key: t.half() if t.is_floating_point() else t for key, t in old.items()}, model=MOBILE)
    assert content["model_state_dict"].keys() == mobile.keys()
    assert content["model_state_dict"][HEAD].dtype == torch.float32
    torch.testing.assert_close(content["model_state_dict"][HEAD], mobile[HEAD], atol=1e-3, rtol=1e-3)


def test_epoch_and_optimizer_are_kept_and_what_is_not_ours_is_not(mobile):
    optimizer = {"state": {}, "param_groups": []}
    said = {"epoch": 5, "optimizer_state_dict": optimizer, "loss": [0.1], "run_id": "theirs"}
    content = adopted(mobile, said, model=MOBILE)
    assert (content["epoch"], content["optimizer_state_dict"]) == (5, optimizer)
    assert not {"loss", "run_id"} & content.keys()
    assert "epoch" not in adopted(mobile, {"epoch": torch.tensor(5)}, model=MOBILE)


def test_coco_names_a_row_for_each_of_the_heads_gaps_included():
    names = read_classes("coco")
    assert (len(names), len(set(names)), names[0], names[89]) == (90, 81, "person", "toothbrush")
    state = theirs(classes=90).state_dict()
    content = adopted(state, model=MOBILE_320, classes=names)
    assert torch.equal(content["model_state_dict"][HEAD], state[HEAD])


def test_class_files(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("red blood cell\n\n  Plättchen \n", encoding="utf-8")
    assert read_classes(str(path)) == ["red blood cell", "Plättchen"]
    for content, words in ((b"a\nb\na\n", "a twice"), (b"\n", "no class"), (b"\xff\xfe", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=words):
            read_classes(str(path))
    with pytest.raises(ModelError, match="No such file"):
        read_classes(str(tmp_path / "none.txt"))
