"""RoI heads whose training is written out: torchvision's to the bit, and another loss is an attribute."""

import copy

import pytest
import torch
from torchvision.models.detection import roi_heads

from models.detector import build, register, resolve_architecture
from models.registry import _BUILDERS
from models.roi_heads import OpenRoIHeads

SMALL = {"image_min_size": 64, "image_max_size": 96, "roi_samples": 16, "proposals": 40, "trainable_layers": 6}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(resolve_architecture("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3, **SMALL)).train()


def targets() -> list[dict]:
    box = torch.tensor([[8.0, 8.0, 40.0, 48.0], [20.0, 4.0, 60.0, 40.0]])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [{"boxes": box, "labels": torch.tensor([1, 2]), "sample_seed": 3}, empty | {"sample_seed": 4}]


def losses_and_gradients(model, *, amp: bool) -> dict[str, torch.Tensor]:
    images = list(torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(1)))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model(images, targets())
    sum(losses.values()).backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return {key: loss.detach() for key, loss in losses.items()} | gradients


@pytest.mark.parametrize("amp", [False, True])
def test_losses_and_gradients_are_torchvisions_to_the_bit(model, amp):
    theirs = copy.deepcopy(model)
    theirs.roi_heads.__class__ = roi_heads.RoIHeads
    ours = losses_and_gradients(copy.deepcopy(model), amp=amp)
    expected = losses_and_gradients(theirs, amp=amp)
    assert ours.keys() == expected.keys() and len(ours) > 100
    assert [key for key in ours if not torch.equal(ours[key], expected[key])] == []
    assert ours["loss_classifier"].dtype == torch.float32


def test_keys_and_detections_are_torchvisions(model):
    theirs = copy.deepcopy(model).eval()
    theirs.roi_heads.__class__ = roi_heads.RoIHeads
    ours = copy.deepcopy(model).eval()
    ours.roi_heads.score_thresh = theirs.roi_heads.score_thresh = 0.0
    assert list(ours.state_dict()) == list(theirs.state_dict())
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (found,), (expected,) = ours([image]), theirs([image])
    assert len(found["boxes"]) > 0
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_another_loss_is_an_attribute_that_copies_keep(model):
    changed = copy.deepcopy(model)
    changed.roi_heads.box_loss = lambda logits, boxes, labels, _: (logits.sum() * 0 + len(labels), boxes.sum() * 0)
    for one in (changed, copy.deepcopy(changed)):
        losses = losses_and_gradients(one, amp=False)
        assert (losses["loss_classifier"], losses["loss_box_reg"]) == (2, 0)
    assert losses_and_gradients(copy.deepcopy(model), amp=False)["loss_classifier"] not in (0, 2)


def test_a_builders_own_heads_stay(monkeypatch):
    class Mine(roi_heads.RoIHeads):
        pass

    monkeypatch.setattr("models.registry._BUILDERS", dict(_BUILDERS))

    @register("with-own-heads")
    def with_own_heads(*, num_classes: int):
        model = build(resolve_architecture("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=num_classes, **SMALL))
        assert type(model.roi_heads) is OpenRoIHeads
        model.roi_heads.__class__ = Mine
        return model

    assert type(build(resolve_architecture("with-own-heads", num_classes=2)).roi_heads) is Mine
