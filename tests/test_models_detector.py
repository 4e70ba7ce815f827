"""Detectors by name: torchvision's own keys, plain-data architectures, frozen stages, and training that works."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from models import registry
from models.convolutions import FastConv2d, Folded
from models.detector import ModelError, build, known_models, register, resolve_architecture, variant
from models.roi_align import BagMultiScaleRoIAlign
from models.sampling import SeededSampler

V1, V2 = "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"
MOBILE, MOBILE_320 = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
TORCHVISION = (V1, V2, MOBILE, MOBILE_320)
SMALL = {"image_min_size": 64, "image_max_size": 128, "roi_samples": 32, "proposals": 50}


def small(name: str, **options):
    torch.manual_seed(0)
    return build(resolve_architecture(name, num_classes=3, **SMALL | options))


def on_meta(name: str, **options):
    with torch.device("meta"):
        return build(resolve_architecture(name, num_classes=5, **options))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        expected = shapes(getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5))
    assert shapes(on_meta(name, norm="batch")) == expected
    norms = {key.rsplit(".", 1)[0] for key in expected if key.endswith("num_batches_tracked")}
    frozen = {
        key: shape
        for key, shape in expected.items()
        if not (key.endswith("num_batches_tracked") and key.startswith("backbone.body."))
    }
    assert norms
    assert shapes(on_meta(name, norm="frozen")) == frozen


def test_frozen_norms_are_those_of_torchvisions_trained_builder():
    body = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet50", weights=None).body
    with torch.device("meta"):
        ours = build(resolve_architecture(V1, num_classes=5), reference=True).backbone.body
    assert list(ours.state_dict()) == list(body.state_dict())
    assert {type(m) for m in ours.modules()} == {type(m) for m in body.modules()}
    assert {m.eps for m in ours.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("trainable", range(7))
def test_trainable_layers_are_torchvisions(name, trainable):
    is_mobile = "mobilenet" in name
    if trainable > (6 if is_mobile else 5):
        with pytest.raises(ModelError, match=r"trainable_layers must be in 0\.\.5"):
            on_meta(name, trainable_layers=trainable)
        return
    make = detection.backbone_utils.mobilenet_backbone if is_mobile else detection.backbone_utils.resnet_fpn_backbone
    backbone_name, more = ("mobilenet_v3_large", {"fpn": True}) if is_mobile else ("resnet50", {})
    with torch.device("meta"):
        expected = make(
            backbone_name=backbone_name, weights=None, trainable_layers=trainable, norm_layer=nn.BatchNorm2d, **more
        ).body
    ours = on_meta(name, norm="batch", trainable_layers=trainable).backbone.body
    assert {k: p.requires_grad for k, p in ours.named_parameters()} == {
        k: p.requires_grad for k, p in expected.named_parameters()
    }


COMPARED_DEFAULTS = (
    "transform.min_size",
    "transform.max_size",
    "transform.image_mean",
    "transform.image_std",
    "rpn._pre_nms_top_n",
    "rpn._post_nms_top_n",
    "rpn.nms_thresh",
    "rpn.score_thresh",
    "rpn.anchor_generator.sizes",
    "rpn.anchor_generator.aspect_ratios",
    "rpn.fg_bg_sampler.batch_size_per_image",
    "roi_heads.score_thresh",
    "roi_heads.nms_thresh",
    "roi_heads.detections_per_img",
    "roi_heads.fg_bg_sampler.batch_size_per_image",
    "roi_heads.fg_bg_sampler.positive_fraction",
    "roi_heads.box_roi_pool.output_size",
)


@pytest.mark.parametrize("name", TORCHVISION)
def test_defaults_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5)
    ours = on_meta(name)
    for path in COMPARED_DEFAULTS:
        values = []
        for model in (ours, theirs):
            for part in path.split("."):
                model = getattr(model, part)
            values.append(model)
        assert values[0] == values[1], path


def test_losses_are_torchvisions_at_the_same_weights():
    ours = small(MOBILE_320, norm="batch", trainable_layers=6, proposals=[2000, 150], roi_samples=512).train()
    theirs = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=128
    ).train()
    theirs.load_state_dict(ours.state_dict())
    found, expected = [], []
    for model, losses in ((ours, found), (theirs, expected)):
        torch.manual_seed(4)
        images = [torch.rand(3, 96, 128) for _ in range(2)]
        losses.extend(model(images, [target(), target()]).values())
    torch.testing.assert_close(found, expected)


def target(**more) -> dict:
    return {"boxes": torch.tensor([[8.0, 8.0, 60.0, 58.0]]), "labels": torch.tensor([1]), **more}


def empty_target() -> dict:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "sample_seed": 2}


FAMILIES = {
    MOBILE_320: {},
    MOBILE: {"norm": "batch", "anchor_sizes": [16, 64, 256]},
    "timm/tf_efficientnet_lite0": {"fpn_channels": 32},
    "timm/resnet10t": {"norm": "frozen", "fpn_channels": 32, "trainable_layers": 2},
    "timm/resnet18": {"trainable_layers": 1, "fpn_channels": 48, "aspect_ratios": [1.0]},
    "timm/swin_tiny_patch4_window7_224": {"fpn_channels": 32, "trainable_layers": 1},
    "timm/convnext_atto": {"fpn_channels": 32, "trainable_layers": 2},
}


@pytest.mark.parametrize(("name", "options"), FAMILIES.items(), ids=FAMILIES)
def test_trains_and_detects(name, options):
    model = small(name, **options).train()
    images = [torch.rand(3, 90, 120), torch.rand(3, 128, 70)]
    losses = model(images, [target(sample_seed=1), empty_target()])
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    trained = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in trained.values())
    assert any(key.startswith("backbone.body.") for key in trained)
    assert torch.stack(list(losses.values())).isfinite().all()

    model.eval()
    with torch.no_grad():
        detections = model([torch.zeros(3, 64, 64), torch.rand(3, 33, 100)])
    assert [set(d) for d in detections] == [{"boxes", "labels", "scores"}] * 2
    json.dumps(resolve_architecture(name, num_classes=3, **options))
    rebuilt = build(resolve_architecture(name, num_classes=3, **SMALL | options))
    rebuilt.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", [MOBILE_320, "timm/resnet18"])
def test_frozen_batch_norms_keep_their_statistics(name):
    model = small(name, norm="batch", trainable_layers=2)
    before = copy.deepcopy(model.state_dict())
    model.train()
    model([torch.rand(3, 64, 64)], [target()])
    after = model.state_dict()
    trained = {key.rsplit(".", 1)[0] for key, p in model.named_parameters() if p.requires_grad}
    changed = {key.rsplit(".", 1)[0] for key in before if not torch.equal(before[key], after[key])}
    with_statistics = {key.rsplit(".", 1)[0] for key in before if key.endswith("running_mean")}
    assert with_statistics - trained
    assert changed == with_statistics & trained


def test_last_stages_of_a_timm_network_stay_trainable():
    body = small("timm/tf_efficientnet_lite0", trainable_layers=2).backbone.body
    trainable = {key.split(".")[0] + "." + key.split(".")[1] for key, p in body.named_parameters() if p.requires_grad}
    # Its maps come after blocks 1, 2, 4 and 6: the last two stages are blocks 3 to 6.
    assert trainable == {"blocks.3", "blocks.4", "blocks.5", "blocks.6"}
    with pytest.raises(ModelError, match=r"0\.\.4"):
        small("timm/resnet10t", trainable_layers=5)


def test_timm_architecture_carries_its_normalization():
    kwargs = resolve_architecture("timm/tf_efficientnet_lite0", num_classes=2)["kwargs"]
    assert kwargs["image_mean"] == kwargs["image_std"] == [0.5, 0.5, 0.5]
    given = resolve_architecture("timm/tf_efficientnet_lite0", num_classes=2, image_mean=[0.1, 0.2, 0.3])["kwargs"]
    assert (given["image_mean"], given["image_std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])


def test_architecture_is_complete_plain_data():
    architecture = resolve_architecture(MOBILE_320, num_classes=3, roi_samples=None, detections=7)
    assert json.loads(json.dumps(architecture)) == architecture
    kwargs = architecture["kwargs"]
    assert (kwargs["roi_samples"], kwargs["detections"], kwargs["proposals"]) == (512, 7, [2000, 150])
    assert kwargs["anchor_sizes"] == [[32, 64, 128, 256, 512]] * 3
    assert None not in kwargs.values()


def test_options_reach_the_model():
    options = {
        "image_min_size": 70,
        "image_max_size": 90,
        "anchor_sizes": [16, 32, 64, 128, 256],
        "aspect_ratios": [0.5, 1.0],
        "roi_samples": 40,
        "proposals": 300,
        "score_threshold": 0.0,
        "detections": 9,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    for name in (V2, "timm/resnet10t"):
        torch.manual_seed(0)
        model = on_meta(name, **options) if name == V2 else build(resolve_architecture(name, num_classes=3, **options))
        assert (model.transform.min_size, model.transform.max_size) == ((70,), 90)
        assert (model.transform.image_mean, model.transform.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
        assert model.rpn.anchor_generator.sizes == ((16,), (32,), (64,), (128,), (256,))
        assert model.rpn.head.cls_logits.out_channels == 2
        assert len(model.rpn.head.conv) == (2 if name == V2 else 1)
        assert model.rpn._post_nms_top_n == {"training": 300, "testing": 300}
        assert model.rpn._pre_nms_top_n == {"training": 600, "testing": 600}
        assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 40
        assert (model.roi_heads.score_thresh, model.roi_heads.detections_per_img) == (0.0, 9)


def test_multi_scale_draws_sizes_in_training_and_scores_at_the_models_own():
    model = small("timm/resnet10t", fpn_channels=16, multi_scale=[96, 128], image_max_size=256)
    image = torch.rand(3, 100, 100)

    def sides(seed: int, count: int = 30) -> list[int]:
        torch.manual_seed(seed)
        return [model.transform([image])[0].image_sizes[0][0] for _ in range(count)]

    assert set(sides(0)) == {64, 96, 128}
    assert sides(0) == sides(0) != sides(1)  # a function of the seed, which is that of the step
    model.eval()
    assert set(sides(0)) == {64}


def test_same_seed_same_weights():
    first, second = small(MOBILE_320).state_dict(), small(MOBILE_320).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_reference_is_torchvisions_own_code_with_the_same_results():
    architecture = resolve_architecture(MOBILE_320, num_classes=3, **SMALL)
    slow = build(architecture, reference=True).eval()
    fast = build(architecture).eval()
    fast.load_state_dict(slow.state_dict())
    assert type(slow.roi_heads.box_roi_pool) is MultiScaleRoIAlign
    assert type(fast.roi_heads.box_roi_pool) is BagMultiScaleRoIAlign
    assert not any(isinstance(module, FastConv2d | Folded) for module in slow.modules())
    convolution = "backbone.fpn.layer_blocks.0.0"
    layouts = [model.get_submodule(convolution).weight.stride()[1] for model in (slow, fast)]
    assert layouts == [9, 1]  # channels last
    image = torch.rand(3, 80, 100)
    slow.roi_heads.score_thresh = fast.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        torch.testing.assert_close(fast([image]), slow([image]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "strides"), [(MOBILE_320, (32, 32)), ("timm/resnet10t", (4, 8, 16, 32))])
def test_a_flat_first_image_does_not_mislead_the_pooling(name, strides):
    # Padded from 21 rows to 32, it would spoil torchvision's guess of the maps' strides for good.
    model = small(name, image_min_size=100).eval()
    with torch.no_grad():
        model([torch.rand(3, 33, 200)])
    assert model.roi_heads.box_roi_pool.scales == [1 / stride for stride in strides]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fasterrcnn_resnet50", {}, "near it: fasterrcnn_resnet50_fpn"),
        ("timm/", {}, "timm knows no network named"),
        ("timm/resnet108", {}, "Near it:.*timm/resnet10"),
        ("timm/vit_tiny_patch16_224", {}, "timm/vit_tiny_patch16_224 cannot be a detector's backbone"),
        ("timm/inception_v3", {}, "no pyramid of exact halves"),
        ("timm/resnet10t", {"norm_eps": 0.0}, "has no option 'norm_eps'"),
        ("timm/resnet10t", {"anchor_sizes": [8, 16]}, "each of the 5 levels"),
        (MOBILE_320, {"fpn_channels": 64}, "has no option 'fpn_channels'"),
        (MOBILE_320, {"roi_sample": 64}, "do you mean roi_samples"),
        (MOBILE_320, {"anchor_sizes": [16, 32, 64, 128, 256]}, "each of the 3 levels"),
        (MOBILE_320, {"anchor_sizes": [[16], [32, 64], [64]]}, "as many sizes on every level"),
        (MOBILE_320, {"norm": "group"}, "norm must be"),
        (MOBILE_320, {"score_threshold": 1.5}, "score_threshold must be"),
        (MOBILE_320, {"image_min_size": 700}, "image_max_size must be at least 700, not 640"),
        (MOBILE_320, {"proposals": 0}, "proposals must be at least 1"),
        (MOBILE_320, {"detections": 0}, "detections must be at least 1"),
        (MOBILE_320, {"trainable_layers": 7}, r"0\.\.6"),
        (MOBILE_320, {"roi_samples": torch.tensor(3)}, "options must be numbers"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ModelError, match=message) as error:
        build(resolve_architecture(name, num_classes=3, **options))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"builder": "nosuch", "kwargs": {}}, "There is no model"),
        ({"builder": MOBILE_320, "kwargs": {"num_classes": 2, "depth": 4}}, "no option 'depth'"),
        ({"builder": MOBILE_320, "kwargs": {}}, "needs num_classes"),
        ({"builder": MOBILE_320, "kwargs": {"num_classes": 1}}, "num_classes must be at least 2"),
        ({"kwargs": {}}, "has the keys"),
    ],
)
def test_wrong_architectures_are_refused(architecture, message):
    with pytest.raises(ModelError, match=message):
        build(architecture)


def test_a_new_model_is_a_function(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register("mine")
    def mine(*, num_classes: int, width: int = 16):
        backbone = nn.Conv2d(3, width, 3, stride=16, padding=1)
        backbone.out_channels = width
        anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
        pool = MultiScaleRoIAlign(["0"], 5, 2)
        return detection.FasterRCNN(backbone, num_classes, 64, 96, rpn_anchor_generator=anchors, box_roi_pool=pool)

    assert "mine" in known_models()
    architecture = resolve_architecture("mine", num_classes=2, width=None)
    assert architecture == {"builder": "mine", "kwargs": {"num_classes": 2, "width": 16}}
    model = build(architecture).train()
    assert all(loss.isfinite() for loss in model([torch.rand(3, 64, 64)], [target(sample_seed=1)]).values())


class OwnPool(MultiScaleRoIAlign):
    def forward(self, x, boxes, image_shapes):
        return super().forward(x, boxes, image_shapes) * 2


class OwnAnchors(AnchorGenerator):
    pass


class OwnSampler(BalancedPositiveNegativeSampler):
    pass


def test_a_researchers_own_parts_are_left_as_they_are(monkeypatch):
    for table in ("_BUILDERS", "_CHANGES"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))

    @variant("own-parts")
    def own_parts(model):
        pool, anchors = model.roi_heads.box_roi_pool, model.rpn.anchor_generator
        model.roi_heads.box_roi_pool = OwnPool(pool.featmap_names, pool.output_size, pool.sampling_ratio)
        model.rpn.anchor_generator = OwnAnchors(anchors.sizes, anchors.aspect_ratios)
        model.rpn.fg_bg_sampler = OwnSampler(16, 0.5)

    model = small("own-parts/timm/resnet10t", fpn_channels=32).train()
    parts = model.roi_heads.box_roi_pool, model.rpn.anchor_generator, model.rpn.fg_bg_sampler
    assert [type(part) for part in parts] == [OwnPool, OwnAnchors, OwnSampler]
    assert type(model.roi_heads.fg_bg_sampler) is SeededSampler  # that one is torchvision's
    assert all(loss.isfinite() for loss in model([torch.rand(3, 64, 64)], [target(sample_seed=1)]).values())


def test_known_models():
    assert known_models()[:5] == (*TORCHVISION, "timm/NAME")  # then recipes that other tests have asked for


@pytest.mark.slow  # a process that imports torchvision
def test_torchvision_models_do_not_import_timm():
    code = (
        "import sys, torch\nfrom models.detector import build, resolve_architecture\n"
        f"with torch.device('meta'): build(resolve_architecture({MOBILE_320!r}, num_classes=2))\n"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
