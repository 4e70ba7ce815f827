"""Faster convolutions: the constant norm after one is part of it, and depthwise ones are trained in float32.

A frozen norm is constant, and one that learns is in evaluation: norm(conv(x)) = conv(x) · scale + shift, which is the
convolution with weight · scale and the bias shift: one pass over the activations instead of three. The product is
formed inside each forward, so that parameters, their gradients, updates and keys stay those of the two modules.
"""

from functools import cache

import torch
from torch import Tensor, fx, nn
from torchvision.ops.misc import FrozenBatchNorm2d


class FastConv2d(nn.Conv2d):
    """A Conv2d that applies the norm after it, if that is still there, constant, and no hook looks in between."""

    # The norm's parent and its name there: in a tuple, so that it is no submodule, and copied with the model.
    norm_place: tuple[nn.Module, str] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As Conv2d's, (N, C, H, W) → (N, C', H', W')."""
        weight, bias = self.weight, self.bias
        norm = None if self.norm_place is None else getattr(*self.norm_place)
        if isinstance(norm, Folded) and norm.is_constant() and not _is_watched(self, norm):
            scale, shift = scale_and_shift(norm)
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift
            norm.is_applied = True
        # Its backward pass in bfloat16 takes a CPU three times as long as in float32.
        in_autocast = input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if in_autocast and torch.is_grad_enabled() and is_depthwise(self):
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(input.to(weight.dtype), weight, bias)
        return self._conv_forward(input, weight, bias)


def _is_watched(conv: nn.Module, norm: nn.Module) -> bool:
    return bool(conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks)


class Folded(nn.Module):
    """Before a norm's class: it passes on what the convolution before it has normalised."""

    is_applied = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        if not self.is_applied:
            return super().forward(x)
        self.is_applied = False
        return self.after_norm(x)

    def is_constant(self) -> bool:
        """Whether it does the same to every batch: frozen, or in evaluation by statistics that it has."""
        if not isinstance(self, nn.BatchNorm2d):
            return True
        return not self.training and self.running_mean is not None and self.weight is not None

    def after_norm(self, x: Tensor) -> Tensor:
        return x


class FoldedFrozenBatchNorm2d(Folded, FrozenBatchNorm2d):
    pass


class FoldedBatchNorm2d(Folded, nn.BatchNorm2d):
    pass


OF_TORCHVISION = {FrozenBatchNorm2d: FoldedFrozenBatchNorm2d, nn.BatchNorm2d: FoldedBatchNorm2d}
TIMMS = {("timm.layers.norm_act", f"{kind}BatchNormAct2d") for kind in ("", "Frozen")}  # imported by who has one


@cache
def folded_class(norm: type) -> type | None:
    """The class that takes the place of a batch norm's, frozen or not; None of any other's."""
    if norm in OF_TORCHVISION:
        return OF_TORCHVISION[norm]
    if (norm.__module__, norm.__name__) not in TIMMS:
        return None

    class FoldedNormAct2d(Folded, norm):
        def after_norm(self, x: Tensor) -> Tensor:
            return self.act(self.drop(x))

    return FoldedNormAct2d


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A constant norm(x) is x · scale + shift, (C,) each; computed as FrozenBatchNorm2d does."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


def install_fast_convolutions(model: nn.Module) -> None:
    """Let the convolutions of a Faster R-CNN's backbone and box head apply the norms after them; keys stay the same."""
    for network in (model.backbone, getattr(model.roi_heads, "box_head", None)):
        for conv, place in folding_pairs(network) if isinstance(network, nn.Module) else ():
            norm = getattr(*place)
            norm.__class__ = folded_class(type(norm))
            conv.__class__, conv.norm_place = FastConv2d, place
    for module in model.backbone.modules():
        if type(module) is nn.Conv2d and is_depthwise(module):
            module.__class__ = FastConv2d


def folding_pairs(network: nn.Module) -> list[tuple[nn.Conv2d, tuple[nn.Module, str]]]:
    """Convolutions and where the norm is that alone takes their output; none where torch.fx cannot tell."""
    if not any(folded_class(type(module)) for module in network.modules()):
        return []
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a researcher's own forward does with a stand-in for images: it runs as it is
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = [network.get_submodule(node.target) for node in calls]
    module_of = dict(zip(calls, called, strict=True))
    pairs = []
    for node, norm in module_of.items():
        before = node.args[0] if node.args else None
        conv = module_of.get(before)
        if not folded_class(type(norm)) or type(conv) is not nn.Conv2d or len(before.users) > 1:
            continue
        if called.count(conv) == called.count(norm) == 1:  # one that is shared has another norm elsewhere
            parent, _, name = node.target.rpartition(".")
            pairs.append((conv, (network.get_submodule(parent), name)))
    return pairs


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's convolutions pad by the size of their input, which a stand-in does not have.
        is_leaf = isinstance(m, nn.Conv2d) or folded_class(type(m))
        return bool(is_leaf) or super().is_leaf_module(m, module_qualified_name)
