"""Backbones: timm's networks under a feature pyramid, frozen stages and frozen norms, and where classifiers fit in."""

import difflib
import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models as torchvision_models
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

# timm takes seconds to import, so the functions that need it import it themselves.

TIMM_PREFIX = "timm/"
PYRAMID_MAPS = 4
TORCHVISION_CLASSIFIERS = {
    "fasterrcnn_resnet50_fpn": "resnet50",
    "fasterrcnn_resnet50_fpn_v2": "resnet50",
    "fasterrcnn_mobilenet_v3_large_fpn": "mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "mobilenet_v3_large",
}
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class ModelError(ValueError):
    """A model, an option of it or weights for it that cannot be had; the message says what to do."""

    exit_code = 2


class Pyramid(nn.Module):
    """A network that gives feature maps of these channels and strides, and torchvision's pyramid over them.

    images (N, 3, H, W) → maps "0", "1" … and "pool", (N, out_channels, H / stride, W / stride) each, fine to coarse.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels
        self.channels, self.strides = list(channels), list(strides)
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), m) for level, m in enumerate(self.body_maps(images))))

    def body_maps(self, images: Tensor) -> list[Tensor]:
        """The body's own maps, (N, C, H / stride, W / stride) each, whatever layout the network computes in."""
        maps = self.body(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)


def timm_pyramid(name: str, *, fpn_channels: int) -> Pyramid:
    """The pyramid over the last four maps of the timm network that `name` names after "timm/", with random weights."""
    body = _timm_body(name.removeprefix(TIMM_PREFIX))
    pyramid = Pyramid(body, body.feature_info.channels(), body.feature_info.reduction(), fpn_channels)
    if _are_halves(pyramid):
        return pyramid
    raise ModelError(
        f"{name} cannot be a detector's backbone: its last {PYRAMID_MAPS} maps (strides {pyramid.strides}) "
        "are no pyramid of exact halves. Take a network with four stages: a ResNet, ConvNeXt, EfficientNet or Swin."
    )


def pyramid_over(body: nn.Module, name: str, *, fpn_channels: int) -> Pyramid:
    """The pyramid over all maps of a network that states its `channels` and `strides`; ModelError where it errs."""
    missing = [word for word in ("channels", "strides") if not hasattr(body, word)]
    if missing:
        raise ModelError(
            f"{name}: the network must state its {' and '.join(missing)}, one number a map, fine to coarse"
        )
    pyramid = Pyramid(body, body.channels, body.strides, fpn_channels)
    if _are_halves(pyramid):
        return pyramid
    raise ModelError(
        f"{name}: its maps must have the channels {pyramid.channels} and strides {pyramid.strides} that it states, "
        "each stride twice the one before"
    )


def timm_normalization(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the images that timm's pretrained weights of `name` expect."""
    import timm

    check_timm_name(name)
    pretrained = timm.get_pretrained_cfg(name)
    return (list(pretrained.mean), list(pretrained.std)) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)


def check_timm_name(name: str) -> None:
    """Raise ModelError, with the nearest names, unless timm knows the network."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f" Near it: {', '.join(TIMM_PREFIX + match for match in near)}." if near else ""
        raise ModelError(f"timm knows no network named {name!r}.{hint} timm.list_models() lists them all.")


def _timm_body(name: str) -> nn.Module:
    import timm

    check_timm_name(name)
    pretrained = timm.get_pretrained_cfg(name)
    # Networks made for one image size (Swin) take any size only when told so.
    options = {"strict_img_size": False} if pretrained and pretrained.fixed_input_size else {}
    last_maps = tuple(range(-PYRAMID_MAPS, 0))
    try:
        return timm.create_model(name, pretrained=False, features_only=True, out_indices=last_maps, **options)
    except (RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{TIMM_PREFIX}{name} cannot be a detector's backbone: it gives no feature maps for images of any size "
            f"(timm: {error}). Take a network with four stages: a ResNet, ConvNeXt, EfficientNet or Swin."
        ) from error


def _are_halves(pyramid: Pyramid) -> bool:
    """Whether the body's maps have the channels and strides that are stated, and each is half the one before."""
    channels, strides = pyramid.channels, pyramid.strides
    if len(channels) != len(strides) or any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        return False
    height, width = 4 * strides[-1], 6 * strides[-1]
    was_training = pyramid.training
    pyramid.eval()
    parameter = next(pyramid.parameters())
    with torch.no_grad():
        maps = pyramid.body_maps(torch.zeros(1, 3, height, width, device=parameter.device))
    pyramid.train(was_training)
    stated = [(1, count, height // s, width // s) for count, s in zip(channels, strides, strict=True)]
    return [tuple(m.shape) for m in maps] == stated


def stage_ends(body: nn.Module) -> list[str]:
    """Names of the modules that end each stage of a body, first stage first; the last n stages can be trained alone."""
    if hasattr(body, "feature_info"):
        return [_module_in(body, name) for name in body.feature_info.module_name()]
    if not isinstance(body, nn.ModuleDict):
        raise ModelError("The stages of this network cannot be told apart: give no trainable_layers")
    if "layer1" in body:
        return ["bn1", "layer1", "layer2", "layer3", "layer4"]
    # MobileNetV3, as torchvision divides it: a stage starts at the first block and at every strided one; the last
    # convolution is a stage of its own.
    starts = [index for index, block in enumerate(body.values()) if getattr(block, "_is_cn", False)] + [len(body) - 1]
    return [str(start - 1) for start in starts] + [str(len(body) - 1)]


def _module_in(body: nn.Module, name: str) -> str:
    # timm's feature networks flatten "layers.0" into "layers_0", or keep the whole network one level down.
    known = dict(body.named_modules())
    for candidate in (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}"):
        if candidate in known:
            return candidate
    raise ModelError(f"The stages of this network cannot be told apart ({name} is not in it): give no trainable_layers")


def freeze_stages(body: nn.Module, trainable: int) -> None:
    """Train the last `trainable` stages of a body only.

    Frozen parameters take no gradient. Frozen batch norms that could still learn statistics are held in evaluation
    mode by a hook, whatever mode the model is in, so that their keys stay those of a batch norm.
    """
    ends = stage_ends(body)
    if not 0 <= trainable <= len(ends):
        raise ModelError(f"trainable_layers must be in 0..{len(ends)} for this model, not {trainable}")
    for stage, module in _modules_by_stage(body, ends):
        if stage < len(ends) - trainable:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_hold_statistics)


def _modules_by_stage(body: nn.Module, ends: Sequence[str]) -> Iterator[tuple[int, nn.Module]]:
    stage, inside_end = 0, False
    for name, module in body.named_modules():
        within = name == ends[stage] or name.startswith(f"{ends[stage]}.")
        if inside_end and not within and stage < len(ends) - 1:
            stage += 1
            within = name == ends[stage] or name.startswith(f"{ends[stage]}.")
        inside_end = within
        yield stage, module


def _hold_statistics(norm: nn.Module, _args: tuple) -> None:
    norm.training = False


def frozen_norms(module: nn.Module, eps: float) -> nn.Module:
    """Replace every BatchNorm2d by torchvision's FrozenBatchNorm2d of the same values, as its builders would."""
    if type(module) is nn.BatchNorm2d:
        frozen = FrozenBatchNorm2d(module.num_features, eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        module.add_module(name, frozen_norms(child, eps))
    return module


def classifier(name: str) -> nn.Module | None:
    """The whole classification model, with random weights, of which the body of detector `name` is a part."""
    if name.startswith(TIMM_PREFIX):
        import timm

        return timm.create_model(name.removeprefix(TIMM_PREFIX), pretrained=False)
    known = TORCHVISION_CLASSIFIERS.get(name)
    return None if known is None else torchvision_models.get_model(known, weights=None)


def body_key(classifier_key: str, body_keys: Collection[str]) -> str | None:
    """The key in a body of a classification model's tensor; None where the body has no such tensor (its head)."""
    candidates = (
        classifier_key,
        classifier_key.replace(".", "_", 1),
        classifier_key.removeprefix("features."),
        f"body.{classifier_key}",
        f"model.{classifier_key}",
    )
    return next((candidate for candidate in candidates if candidate in body_keys), None)
