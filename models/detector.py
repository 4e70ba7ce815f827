"""Detectors by name: `{"builder": name, "kwargs": {...}}` is plain data and all that is needed to build one again."""

import difflib
import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from models.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TIMM_PREFIX,
    ModelError,
    Pyramid,
    freeze_stages,
    frozen_norms,
    pyramid_over,
    timm_normalization,
    timm_pyramid,
)
from models.convolutions import install_fast_convolutions
from models.precision import keep_boxes_in_full_precision
from models.registry import Builder, find, known_models, naming_the_recipe, register, variant
from models.roi_align import fix_pooling_scales, install_fast_roi_align
from models.roi_heads import install_open_roi_heads
from models.sampling import install_seeded_samplers

__all__ = [
    "ModelError",
    "backbone",
    "build",
    "known_models",
    "register",
    "resolve_architecture",
    "variant",
]

ANCHOR_SIZES = [32, 64, 128, 256, 512]
ASPECT_RATIOS = [0.5, 1.0, 2.0]


def resolve_architecture(name: str, *, num_classes: int, **options: Any) -> dict:
    """The architecture of model `name` with every default filled in; options that are None take the default.

    num_classes counts the background too.
    """
    found = find(name)
    defaults = {key: p.default for key, p in _keywords(found.builder).items() if p.default is not p.empty}
    given = {key: value for key, value in options.items() if value is not None}
    _check_keywords(found.base, found.builder, {**given, "num_classes": num_classes})
    kwargs = {"num_classes": num_classes, **defaults, **given}
    if found.base.startswith(TIMM_PREFIX) and None in (kwargs["image_mean"], kwargs["image_std"]):
        mean, std = timm_normalization(found.base.removeprefix(TIMM_PREFIX))
        kwargs["image_mean"], kwargs["image_std"] = kwargs["image_mean"] or mean, kwargs["image_std"] or std
    try:
        return json.loads(json.dumps({"builder": name, "kwargs": kwargs}))
    except TypeError as error:
        raise ModelError(f"{name}: options must be numbers, strings, lists, booleans or None ({error})") from error


def build(architecture: dict, *, reference: bool = False) -> FasterRCNN:
    """The model of an architecture, with random weights drawn from the global generator; nothing is downloaded.

    Its samplers draw by `sample_seed` where targets have it, and its boxes are float32 under autocast. `reference`
    leaves out what only makes it faster: torchvision's own RoIAlign, convolutions, norms and memory layout.
    """
    if not isinstance(architecture, dict) or set(architecture) != {"builder", "kwargs"}:
        raise ModelError(f"An architecture has the keys 'builder' and 'kwargs', and no others: {architecture!r}")
    if not isinstance(architecture["builder"], str):
        raise ModelError(f"An architecture's builder is a model's name, not {architecture['builder']!r}")
    found, kwargs = find(architecture["builder"]), architecture["kwargs"]
    _check_keywords(found.base, found.builder, kwargs)
    model = found.builder(**kwargs)
    install_open_roi_heads(model)
    for change in found.changes:  # before what every model gets, so that what a change puts in gets it too
        change(model)
    keep_boxes_in_full_precision(model)
    install_seeded_samplers(model)
    if not reference:
        install_fast_roi_align(model)
        install_fast_convolutions(model)
        model.to(memory_format=torch.channels_last)
    return model


def _keywords(builder: Builder) -> dict[str, inspect.Parameter]:
    return {
        key: parameter
        for key, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def _check_keywords(name: str, builder: Builder, kwargs: dict) -> None:
    known = _keywords(builder)
    for key in kwargs:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f", do you mean {near[0]}?" if near else ""
            raise ModelError(f"{name} has no option {key!r}{hint} (it has {', '.join(sorted(known))})")
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in kwargs]
    if missing:
        raise ModelError(f"{name} needs {', '.join(missing)}")


def backbone(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Make a Faster R-CNN known by name whose backbone the decorated function (or class) makes.

    The network takes images (N, 3, H, W) and gives a list of maps (N, channels, H / stride, W / stride), fine to
    coarse, each half the one before; its `channels` and `strides` state theirs. Options are those of timm's models.
    """

    def add(make_body: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def make_pyramid(name: str, *, fpn_channels: int) -> Pyramid:
            with naming_the_recipe(name):
                return pyramid_over(make_body(), name, fpn_channels=fpn_channels)

        by_default = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
        register(name)(partial(_pyramid_detector, make_pyramid, name, **by_default))
        return make_body

    return add


def _torchvision_detector(
    name: str,
    /,
    *,
    num_classes: int,
    norm: str = "frozen",
    norm_eps: float = 1e-5,
    trainable_layers: int = 3,
    image_min_size: int = 800,
    image_max_size: int = 1333,
    multi_scale: list[int] = (),
    anchor_sizes: list = ANCHOR_SIZES,
    aspect_ratios: list[float] = ASPECT_RATIOS,
    roi_samples: int = 512,
    proposals: int | list[int] = (2000, 1000),
    score_threshold: float = 0.05,
    detections: int = 100,
    image_mean: list[float] = IMAGENET_MEAN,
    image_std: list[float] = IMAGENET_STD,
) -> FasterRCNN:
    """torchvision's model `name`; its keys are torchvision's own.

    norm: what becomes of the backbone's batch norms: "frozen" (constants) or "batch" (they learn).
    norm_eps: eps of frozen norms. proposals: kept after NMS, one number or [training, evaluation].
    multi_scale: further shorter sides that training draws from, image by image, beside image_min_size.
    anchor_sizes: one a level, or a list of them a level.
    """
    _check_norm(norm)
    keywords = _detector_keywords(
        num_classes,
        image_min_size,
        image_max_size,
        roi_samples,
        proposals,
        score_threshold,
        detections,
        multi_scale=multi_scale,
        most_before_nms=(2000, 150 if name.endswith("320_fpn") else 1000),
    )
    build_model = getattr(detection, name)
    model = build_model(weights=None, weights_backbone=None, image_mean=image_mean, image_std=image_std, **keywords)
    _set_anchors(model, anchor_sizes, aspect_ratios, levels=3 if "mobilenet" in name else 5)
    if norm == "frozen":
        frozen_norms(model.backbone.body, norm_eps)
    freeze_stages(model.backbone.body, trainable_layers)
    fix_pooling_scales(model.roi_heads.box_roi_pool, (32, 32) if "mobilenet" in name else (4, 8, 16, 32))
    return model


def _pyramid_detector(
    make_pyramid: Callable[..., Pyramid],
    name: str,
    /,
    *,
    num_classes: int,
    norm: str = "batch",
    trainable_layers: int | None = None,
    image_min_size: int = 800,
    image_max_size: int = 1333,
    multi_scale: list[int] = (),
    anchor_sizes: list = ANCHOR_SIZES,
    aspect_ratios: list[float] = ASPECT_RATIOS,
    roi_samples: int = 512,
    proposals: int | list[int] = (2000, 1000),
    score_threshold: float = 0.05,
    detections: int = 100,
    fpn_channels: int = 256,
    image_mean: list[float] | None = None,
    image_std: list[float] | None = None,
) -> FasterRCNN:
    """torchvision's Faster R-CNN over the feature pyramid that `make_pyramid(name, fpn_channels=…)` gives.

    Options as in torchvision's models; trainable_layers counts the body's stages from the last, None trains all.
    """
    _check_norm(norm)
    keywords = _detector_keywords(
        num_classes,
        image_min_size,
        image_max_size,
        roi_samples,
        proposals,
        score_threshold,
        detections,
        multi_scale=multi_scale,
    )
    pyramid = make_pyramid(name, fpn_channels=fpn_channels)
    levels = len(pyramid.strides)
    pool = MultiScaleRoIAlign([str(level) for level in range(levels)], output_size=7, sampling_ratio=2)
    fix_pooling_scales(pool, pyramid.strides)
    model = FasterRCNN(pyramid, box_roi_pool=pool, image_mean=image_mean, image_std=image_std, **keywords)
    _set_anchors(model, anchor_sizes, aspect_ratios, levels=levels + 1)
    if norm == "frozen":
        from timm.layers import freeze_batch_norm_2d

        pyramid.body = freeze_batch_norm_2d(pyramid.body)
    if trainable_layers is not None:
        freeze_stages(pyramid.body, trainable_layers)
    return model


def _detector_keywords(
    num_classes: int,
    image_min_size: int,
    image_max_size: int,
    roi_samples: int,
    proposals: int | list[int],
    score_threshold: float,
    detections: int,
    *,
    multi_scale: list[int] = (),
    most_before_nms: tuple[int, int] = (2000, 1000),
) -> dict[str, Any]:
    training, evaluation = (proposals, proposals) if isinstance(proposals, int) else proposals
    least = {"num_classes": (num_classes, 2), "image_min_size": (image_min_size, 1), "roi_samples": (roi_samples, 1)}
    least |= {"proposals": (min(training, evaluation), 1), "detections": (detections, 1)}
    least |= {"image_max_size": (image_max_size, max([image_min_size, *multi_scale]))}
    least |= {"multi_scale": (min(multi_scale), 1)} if multi_scale else {}
    for option, (value, minimum) in least.items():
        if value < minimum:
            raise ModelError(f"{option} must be at least {minimum}, not {value}")
    if not 0 <= score_threshold < 1:
        raise ModelError(f"score_threshold must be in 0..1, below 1, not {score_threshold}")
    return {
        "num_classes": num_classes,
        # torchvision draws one of them for each training image, and takes the last in evaluation.
        "min_size": (*multi_scale, image_min_size),
        "max_size": image_max_size,
        "box_batch_size_per_image": roi_samples,
        "rpn_post_nms_top_n_train": training,
        "rpn_post_nms_top_n_test": evaluation,
        # NMS drops about half, so twice as many enter it as may leave, up to torchvision's own numbers.
        "rpn_pre_nms_top_n_train": max(training, min(2 * training, most_before_nms[0])),
        "rpn_pre_nms_top_n_test": max(evaluation, min(2 * evaluation, most_before_nms[1])),
        "box_score_thresh": score_threshold,
        "box_detections_per_img": detections,
    }


def _set_anchors(model: FasterRCNN, sizes: list, ratios: list[float], *, levels: int) -> None:
    if len(sizes) != levels:
        raise ModelError(f"anchor_sizes must have one entry for each of the {levels} levels, not {len(sizes)}: {sizes}")
    by_level = tuple(tuple(size) if isinstance(size, list | tuple) else (size,) for size in sizes)
    if len({len(level) for level in by_level}) > 1 or not ratios or min(map(min, by_level)) <= 0 or min(ratios) <= 0:
        raise ModelError(
            f"anchor_sizes {sizes} and aspect_ratios {ratios} must be positive, with as many sizes on every level"
        )
    model.rpn.anchor_generator = AnchorGenerator(by_level, (tuple(ratios),) * levels)
    anchors_per_location = model.rpn.anchor_generator.num_anchors_per_location()[0]
    head = model.rpn.head
    if head.cls_logits.out_channels != anchors_per_location:
        model.rpn.head = RPNHead(model.backbone.out_channels, anchors_per_location, conv_depth=len(head.conv))


def _check_norm(norm: str) -> None:
    if norm not in ("frozen", "batch"):
        raise ModelError(f"norm must be 'frozen' or 'batch', not {norm!r}")


_MOBILENET = {"anchor_sizes": [ANCHOR_SIZES] * 3}
for _name, _defaults in {
    # Its COCO weights were trained with an eps of zero, and score right only with it.
    "fasterrcnn_resnet50_fpn": {"norm_eps": 0.0},
    "fasterrcnn_resnet50_fpn_v2": {"norm": "batch"},
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILENET,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _MOBILENET
    | {"image_min_size": 320, "image_max_size": 640, "proposals": [2000, 150]},
}.items():
    register(_name)(partial(_torchvision_detector, _name, **_defaults))
register(TIMM_PREFIX)(partial(_pyramid_detector, timm_pyramid))
