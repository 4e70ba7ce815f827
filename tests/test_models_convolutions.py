"""Convolutions that apply the norm after them against the two modules one after the other."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from models.convolutions import FastConv2d, Folded, folded_class, folding_pairs, install_fast_convolutions
from models.detector import build, resolve_architecture

SMALL = {"num_classes": 3, "image_min_size": 64, "image_max_size": 96, "roi_samples": 16, "proposals": 20}


class Holder(nn.Module):
    """What install_fast_convolutions looks for."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.backbone, self.roi_heads = network, nn.Module()


@torch.no_grad()
def unlike_identity(module: nn.Module) -> nn.Module:
    """Give every norm statistics of a trained network's kind."""
    torch.manual_seed(3)
    for norm in module.modules():
        if folded_class(type(norm)) is not None and norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
    return module


def network(norm: type = FrozenBatchNorm2d, *, conv_bias: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    layers = (
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=conv_bias), norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=conv_bias), norm(8), nn.Hardswish()),
        *(nn.Conv2d(8, 4, 1, bias=conv_bias), norm(4)),
    )
    return unlike_identity(nn.Sequential(*layers)).double()


def made_fast(plain: nn.Module) -> nn.Module:
    fast = copy.deepcopy(plain)
    install_fast_convolutions(Holder(fast))
    return fast


def agree(plain: nn.Module, fast: nn.Module, images: torch.Tensor | None = None) -> None:
    """Outputs and the gradients of every parameter are equal, to rounding."""
    images = torch.rand(2, 3, 12, 16, dtype=torch.float64) if images is None else images
    results = []
    for module in (plain, fast):
        out = module(images)
        weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
        results.append((out, *torch.autograd.grad((out * weights).sum(), list(module.parameters()))))
    torch.testing.assert_close(results[1], results[0])


def norms_computed(layers: nn.Sequential) -> list[int]:
    """Which norms compute in a pass; the others pass on what a convolution has normalised."""
    norms = {number: layer for number, layer in enumerate(layers) if isinstance(layer, Folded)}
    passed_on = []
    for number, norm in norms.items():
        norm.after_norm = lambda x, number=number: passed_on.append(number) or x
    layers(torch.rand(2, 3, 12, 16, dtype=torch.float64))
    return [number for number in norms if number not in passed_on]


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_outputs_and_gradients_are_those_of_both_modules(norm, conv_bias):
    plain = network(norm, conv_bias=conv_bias).eval()
    fast = made_fast(plain)
    assert [type(layer) for layer in fast if isinstance(layer, nn.Conv2d)] == [FastConv2d] * 3
    assert [isinstance(layer, Folded) for layer in fast if isinstance(layer, norm)] == [True] * 3
    agree(plain, fast)
    assert norms_computed(copy.deepcopy(fast)) == []
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in fast.state_dict().items())


def test_a_norm_that_learns_is_folded_in_evaluation_only():
    plain = network(nn.BatchNorm2d).train()
    fast = made_fast(plain)
    agree(plain, fast)
    torch.testing.assert_close(fast.state_dict(), plain.state_dict())  # running statistics too
    assert norms_computed(copy.deepcopy(fast)) == [1, 4, 7]
    fast.eval(), plain.eval()
    agree(plain, fast)  # by the statistics that the training pass left


def test_a_norm_without_statistics_of_its_own_is_not_folded():
    plain = network(lambda channels: nn.BatchNorm2d(channels, affine=False, track_running_stats=False)).eval()
    agree(plain, made_fast(plain))


def test_gradcheck():
    fast = made_fast(network())
    images = torch.rand(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, (images,))


@pytest.mark.parametrize(
    ("name", "options", "norms", "left"),
    [
        ("fasterrcnn_resnet50_fpn", {}, 53, 0),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {"norm": "frozen"}, 46, 0),
        ("timm/resnet10t", {"norm": "frozen", "fpn_channels": 32}, 14, 0),
        # Its strided convolutions are timm's own; its norms have the activation in them.
        ("timm/tf_efficientnet_lite0", {"norm": "frozen", "fpn_channels": 32}, 43, 5),
    ],
)
def test_frozen_norms_of_a_detector_are_folded_and_its_losses_stay(name, options, norms, left):
    architecture = resolve_architecture(name, **SMALL | options)
    plain = unlike_identity(build(architecture, reference=True)).double().train()
    fast = build(architecture).double().train()
    fast.load_state_dict(plain.state_dict())
    assert sum(isinstance(module, Folded) for module in fast.modules()) == norms
    assert sum(folded_class(type(module)) is not None for module in fast.modules()) == left
    torch.manual_seed(0)
    images = [torch.rand(3, 80, 96, dtype=torch.float64)]
    boxes = torch.tensor([[8.0, 8.0, 60.0, 58.0]], dtype=torch.float64)
    targets = [{"boxes": boxes, "labels": torch.tensor([1]), "sample_seed": 1}]
    losses, gradients = [], []
    for model in (plain, fast):
        losses.append(model(images, targets))
        sum(losses[-1].values()).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "norms"),
    [
        ("fasterrcnn_resnet50_fpn_v2", {}, 65),  # of the pyramid and the box head too
        ("timm/tf_efficientnet_lite0", {"norm": "batch", "fpn_channels": 32}, 43),
    ],
)
def test_learning_norms_of_a_detector_are_folded_in_evaluation_and_it_finds_the_same(name, options, norms):
    architecture = resolve_architecture(name, **SMALL | options | {"score_threshold": 0.0})
    plain = unlike_identity(build(architecture, reference=True)).double().eval()
    fast = build(architecture).double().eval()
    fast.load_state_dict(plain.state_dict())
    assert sum(isinstance(module, Folded) for module in fast.modules()) == norms
    images = [torch.rand(3, 80, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        (expected,), (found,) = plain(images), fast(images)
    assert len(expected["boxes"])
    torch.testing.assert_close(found, expected)


def replace_norm(layers: nn.Sequential) -> None:
    torch.manual_seed(7)
    layers[1] = unlike_identity(FrozenBatchNorm2d(8)).double()


def replace_convolution(layers: nn.Sequential) -> None:
    torch.manual_seed(7)
    layers[0] = nn.Conv2d(3, 8, 3, stride=2, padding=1).double()


def double_what_the_convolution_gives(layers: nn.Sequential) -> None:
    layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def double_what_the_norm_takes(layers: nn.Sequential) -> None:
    layers[1].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def other_statistics(layers: nn.Sequential) -> None:
    layers[1].running_mean.add_(1)


@pytest.mark.parametrize(
    "change",
    [
        replace_norm,
        replace_convolution,
        double_what_the_convolution_gives,
        double_what_the_norm_takes,
        other_statistics,
    ],
)
def test_a_module_that_is_changed_afterwards_is_as_changed(change):
    plain = network()
    fast = made_fast(plain)
    change(plain)
    change(fast)
    agree(plain, fast)
    agree(plain, fast)  # nothing is left over from the pass before


def test_a_copy_has_its_own_norms():
    fast = made_fast(network())
    images = torch.rand(1, 3, 12, 16, dtype=torch.float64)
    before = fast(images)
    twin = copy.deepcopy(fast)
    other_statistics(twin)
    assert torch.equal(fast(images), before)
    assert not torch.allclose(twin(images), before)


class Branching(nn.Module):
    """Its forward looks at numbers, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) if x.mean() > 0 else x


class Between(nn.Module):
    """A convolution's output is used beside its norm; another convolution serves two norms."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(FrozenBatchNorm2d(3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.norms[0](x)
        return self.norms[1](self.shared(x)) + self.norms[2](self.shared(x))


@pytest.mark.parametrize("kind", [Branching, Between])
def test_what_cannot_be_folded_is_left_alone(kind):
    torch.manual_seed(1)
    plain = unlike_identity(kind()).double()
    assert folding_pairs(plain) == []
    agree(plain, made_fast(plain))


@pytest.mark.parametrize("with_gradients", [True, False])
def test_depthwise_convolutions_are_trained_in_full_precision_under_autocast(with_gradients):
    fast = made_fast(network()).float()
    precisions = []
    for layer in fast:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: precisions.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradients):
        fast(torch.rand(1, 3, 12, 16))
    depthwise = torch.float32 if with_gradients else torch.bfloat16
    assert precisions == [torch.bfloat16, depthwise, torch.bfloat16]
