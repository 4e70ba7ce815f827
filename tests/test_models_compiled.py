"""models/compiled.py: few programs, for training alone, of the same numbers."""

import copy
from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import engine
import train
from models.compiled import compile_backbone
from models.detector import build, resolve_architecture
from tests.conftest import STATE, equal, last_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def model():
    options = {"image_min_size": 96, "image_max_size": 160, "anchor_sizes": [16, 32, 48, 64, 96], "fpn_channels": 16}
    torch.manual_seed(0)
    return build(resolve_architecture("timm/test_resnet", num_classes=3, **options))


@pytest.fixture
def programs(model) -> list[tuple[int, ...]]:
    """The shapes of the batches that `model` was compiled for; the programs are torch's own operations."""
    shapes = []

    def backend(graph, inputs):
        shapes.extend(tuple(one.shape) for one in inputs if one.dim() == 4 and one.shape[-1] >= 96)
        return graph.forward

    compile_backbone(model, backend=backend)
    return shapes


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def losses(model: torch.nn.Module, *images: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    target = {"boxes": torch.tensor([[10.0, 12, 60, 70]]), "labels": torch.tensor([1]), "sample_seed": 0}
    return model.train()([engine.to_float(one, CPU) for one in images], [target] * len(images))


def test_batches_of_near_sizes_share_a_program(model, programs):
    for size in [(96, 120), (97, 121), (100, 100), (120, 96), (96, 150)]:
        losses(model, image(*size))
    assert programs == [(1, 3, 128, 128), (1, 3, 128, 256)]


def test_its_losses_and_gradients_are_those_of_the_model(model, programs):
    plain, picture = copy.deepcopy(model), image(96, 120)
    assert plain.backbone._compiled_call_impl is None
    found, expected = losses(model, picture), losses(plain, picture)
    torch.testing.assert_close(found, expected)
    for each in (found, expected):
        sum(each.values()).backward()
    gradients = [[p.grad for p in one.parameters() if p.grad is not None] for one in (model, plain)]
    assert programs and len(gradients[0]) > 20
    torch.testing.assert_close(*gradients)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_detecting_is_neither_compiled_nor_padded_further(model, programs):
    plain = copy.deepcopy(model)
    plain.transform.__class__ = GeneralizedRCNNTransform
    batch = [image(100, 130)], [{"image_id": 0}]
    model.roi_heads.score_thresh = plain.roi_heads.score_thresh = 0.0
    (found,), (expected,) = (engine.predict(one, [batch], device=CPU) for one in (model, plain))
    assert programs == [] and len(found.boxes) > 10
    assert (found.boxes == expected.boxes).all() and (found.scores == expected.scores).all()


class Odd(GeneralizedRCNNTransform):
    """A researcher's own."""


def test_a_researchers_own_transform_stays(model):
    model.transform.__class__ = Odd
    compile_backbone(model)
    assert type(model.transform) is Odd


def test_without_a_compiler_it_is_told_before_anything(refused, coco_folder, monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    assert "--compile needs a C++ compiler" in refused(2, "train.py", "--data", coco_folder, "--compile")


def test_with_reference_it_is_refused(refused):
    assert "choose one" in refused(2, "train.py", "--compile", "--reference")


@pytest.mark.slow
def test_a_compiled_run_is_resumed_exactly(home, small, undisturbed):
    """Compiled by a C++ compiler: half a minute at least."""
    whole = undisturbed(compile=True)
    run_id = train.main(replace(small, compile=True, max_steps=4))
    train.main(replace(small, compile=True, resume=run_id, max_steps=8))
    last = last_checkpoint(run_id)
    assert all(equal(last[key], whole.last[key]) for key in STATE)
