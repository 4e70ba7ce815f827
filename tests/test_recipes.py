"""Models of one's own, from recipes/: through every script, found by name alone, and nothing else is imported."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import commandline
import evaluate
import fetching
import infer
import restore
import train
import workspace
from config import TrainConfig
from defaults import resolved
from evaluate import EvaluateConfig
from infer import InferConfig
from models import registry
from models.detector import ModelError, build, resolve_architecture
from models.record import CheckpointError
from restore import RestoreConfig
from tests.conftest import ROOT, equal, last_checkpoint, open_store

LOSS, BACKBONE = "recipes.new_loss", "recipes.new_backbone"
OPTIONS = {"image_min_size": 64, "image_max_size": 96, "fpn_channels": 16, "roi_samples": 16, "proposals": 40}


@pytest.fixture
def own(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a file into recipes/ of a repository of its own."""
    monkeypatch.setattr(registry, "ROOT", home)
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    monkeypatch.setattr(registry, "_CHANGES", dict(registry._CHANGES))
    (home / "recipes").mkdir()

    def write(name: str, text: str) -> str:
        (home / "recipes" / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"recipes.{name}", raising=False)
        return f"recipes.{name}"

    yield write
    for file in registry.recipe_files():
        sys.modules.pop(file, None)


WEAKER = """
from models.detector import variant

@variant(__name__)
def weaker(model):
    model.roi_heads.fg_bg_sampler.positive_fraction = 0.125
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", [f"{LOSS}/timm/test_resnet", BACKBONE])
def test_both_recipes_train_restore_resume_infer_and_evaluate(home, small, coco_folder, model):
    config = replace(small, model=model)
    whole = train.main(config)
    run_id = train.main(replace(config, max_steps=3))
    restored = restore.main(RestoreConfig(run=run_id))
    assert fetching.load_detector(restored)[1]["architecture"]["builder"] == model
    assert train.main(replace(config, resume=run_id, max_steps=8)) == run_id
    resumed, expected = last_checkpoint(run_id), last_checkpoint(whole)
    assert equal(resumed["model_state_dict"], expected["model_state_dict"])
    assert equal(resumed["metrics"], expected["metrics"])
    found = list(infer.main(InferConfig(sources=(str(coco_folder / "test"),), run=run_id, score_threshold=0.0)))
    assert len(found) == 4 and all(one["detections"] for one in found)
    report = evaluate.main(EvaluateConfig(run=run_id, which="last", no_log=True))
    assert report["metrics"]["AP"] == resumed["metrics"]["val/AP"]
    again = train.configuration(run_id)
    assert (again.model, again.weights) == (model, "none")
    assert train.main(replace(again, dry_run=True)).count(f"{model}, ") == 1


@pytest.mark.slow
def test_a_variant_starts_from_its_bases_weights_and_trains_otherwise(home, small, capfd):
    base = train.main(replace(small, max_steps=2))
    weights = last_checkpoint(base)["model_state_dict"]
    changed = replace(small, model=f"{LOSS}/timm/test_resnet")
    run_id = train.main(replace(changed, max_steps=1, weights=base, norm="batch", lr=1e-30, weight_decay=0.0))
    assert f"\n{len(weights)} tensors loaded\nclasses carried over" in capfd.readouterr().err
    after = last_checkpoint(run_id)["model_state_dict"]
    assert weights.keys() == after.keys()
    assert all(torch.allclose(after[key], weights[key]) for key in weights if "running" not in key and "num" not in key)
    other = last_checkpoint(train.main(replace(changed, max_steps=2)))["model_state_dict"]
    assert not equal(weights, other)


def test_the_focal_loss_is_that_of_the_paper(monkeypatch):
    model = build(resolve_architecture(f"{LOSS}/timm/test_resnet", num_classes=3, **OPTIONS))
    logits, labels = torch.tensor([[2.0, 0.5, 0.1], [0.3, 0.2, 1.5]]), [torch.tensor([0]), torch.tensor([1])]
    targets = [torch.zeros(1, 4), torch.ones(1, 4)]
    found, boxes = model.roi_heads.box_loss(logits, torch.zeros(2, 12), labels, targets)
    right = logits.softmax(1)[[0, 1], [0, 1]]
    torch.testing.assert_close(found, (-((1 - right) ** 2) * right.log()).mean())
    assert boxes == pytest.approx((1 - 0.5 / 9) * 4 / 2)  # smooth L1 of ones, over both proposals


def test_a_variant_may_change_a_recipes_model():
    model = build(resolve_architecture(f"{LOSS}/{BACKBONE}", num_classes=3, **OPTIONS))
    assert model.roi_heads.box_loss.__name__ == "focal_loss"
    assert type(model.backbone.body).__name__ == "Plain"


def test_a_variant_has_its_bases_options_and_defaults():
    for base in ("timm/tf_efficientnet_lite0", "fasterrcnn_mobilenet_v3_large_320_fpn", BACKBONE):
        expected = resolve_architecture(base, num_classes=3, roi_samples=8)
        found = resolve_architecture(f"{LOSS}/{base}", num_classes=3, roi_samples=8)
        assert found == expected | {"builder": f"{LOSS}/{base}"}
    with pytest.raises(ModelError, match=r"timm/test_resnet has no option 'depth'"):
        resolve_architecture(f"{LOSS}/timm/test_resnet", num_classes=3, depth=3)


@pytest.mark.parametrize(
    "base",
    ["timm/resnet18", "fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_resnet50_fpn_v2"],
)
@pytest.mark.parametrize("weights", [None, "none"])
def test_defaults_see_through_a_variant(base, weights):
    plain, _ = resolved(TrainConfig(data="x", model=base, weights=weights), cores=2)
    changed, _ = resolved(TrainConfig(data="x", model=f"{LOSS}/recipes.other/{base}", weights=weights), cores=2)
    assert replace(changed, model=base) == plain


def test_an_own_model_starts_from_random_weights_with_its_builders_defaults():
    config, chosen = resolved(TrainConfig(data="x", model=BACKBONE), cores=2)
    assert (config.weights, config.norm, config.trainable_layers) == ("none", None, None)
    assert not {"norm", "trainable_layers"} & set(chosen)


def test_the_backbone_takes_the_options_of_timms_models():
    model = build(
        resolve_architecture(BACKBONE, num_classes=3, norm="frozen", anchor_sizes=[8, 16, 32, 64, 128], **OPTIONS)
    )
    assert model.rpn.anchor_generator.sizes[0] == (8,)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.backbone.body.modules())
    with pytest.raises(ModelError, match="give no trainable_layers"):
        build(resolve_architecture(BACKBONE, num_classes=3, trainable_layers=2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [("coco", f"no COCO weights for {BACKBONE}"), ("backbone", f"no backbone weights for {BACKBONE}")],
)
def test_an_own_backbone_has_no_weights_to_download(home, small, weights, message):
    with pytest.raises(ModelError, match=message):
        train.main(replace(small, model=BACKBONE, weights=weights))
    assert open_store().newest_runs(1) == []


def test_backbone_weights_of_a_variant_are_its_bases(home, small, tmp_path):
    import timm

    file = tmp_path / "test_resnet.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    train.main(replace(small, model=f"{LOSS}/timm/test_resnet", weights=None, backbone_weights=file, max_steps=1))
    foreign = {f"x{n}.{key.rpartition('.')[2]}": tensor for n, (key, tensor) in enumerate(torch.load(file).items())}
    torch.save(foreign, file)
    train.main(replace(small, model=f"{LOSS}/timm/test_resnet", weights=None, backbone_weights=file, max_steps=1))


@pytest.mark.parametrize(
    "name",
    [
        *("os", "subprocess", "this", "antigravity/x", "xmlrpc.server", "pip", "os.path/recipes.new_loss"),
        *(
            "../x",
            "../recipes/mine",
            "/tmp/x",
            "recipes",
            "recipes.",
            "recipes/mine",
            "recipes..mine",
            "recipes.mine.x",
        ),
        *("tests/conftest", "tests.conftest", "train", "data.mine", "recipes.sub.mine", "recipes.mine.py", "x" * 5000),
    ],
)
def test_a_strangers_checkpoint_cannot_import_anything(own, home, monkeypatch, name):
    for folder in ("data", "recipes/sub", ".."):
        (home / folder).mkdir(exist_ok=True)
        (home / folder / "mine.py").write_text("raise SystemExit('imported')")
    own("mine", "raise SystemExit('imported')")
    for module in ("this", "antigravity", "xmlrpc.server", "pip"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    before = set(sys.modules)
    with pytest.raises(ModelError):
        build({"builder": name, "kwargs": {"num_classes": 2}})
    assert set(sys.modules) - before == set()


def test_a_file_in_recipes_is_found_by_its_name_even_when_python_would_find_another(own, home, monkeypatch):
    other = home / "site-packages"
    (other / "recipes").mkdir(parents=True)
    (other / "recipes" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(other)
    name = own("mine", WEAKER)
    model = build(resolve_architecture(f"{name}/timm/test_resnet", num_classes=3, **OPTIONS))
    # What a change sets, the seeded samplers that are put in after it take over.
    assert model.roi_heads.fg_bg_sampler.positive_fraction == 0.125


def test_the_runs_artifacts_keep_the_file_with_git_and_without(own, home, small):
    model = own("mine", WEAKER) + "/timm/test_resnet"
    config = replace(small, model=model, max_steps=1)
    store = open_store()
    assert artifacts(store, train.main(config), "code/recipes") == ["code/recipes/mine.py"]
    subprocess.run(["git", "init", "-q", home], check=True)
    run_id = train.main(config)
    assert "code/untracked/recipes/mine.py" in artifacts(store, run_id, "code/untracked/recipes")
    path = store.client.download_artifacts(run_id, "code/recipes/mine.py", str(home))
    assert Path(path).read_text() == WEAKER
    own("mine", WEAKER.replace("0.125", "0.5"))
    train.main(replace(config, resume=run_id, max_steps=2))
    path = store.client.download_artifacts(run_id, "code/resumed-at-step-000001/recipes/mine.py", str(home))
    assert "0.5" in Path(path).read_text()


def artifacts(store, run_id: str, folder: str) -> list[str]:
    return [file.path for file in store.client.list_artifacts(run_id, folder)]


def test_a_colleagues_checkpoint_without_its_file_says_which_and_where_it_is(own, home, small, coco_folder):
    run_id = train.main(replace(small, model=own("mine", WEAKER) + "/timm/test_resnet", max_steps=1))
    (home / "recipes" / "mine.py").unlink()
    registry._CHANGES.clear()
    assert restore.main(RestoreConfig(run=run_id)).exists()  # moves the file, and builds no model
    message = rf"{run_id} cannot be built here: .*recipes/mine\.py, which is not here.*code/recipes/mine\.py"
    for use in (
        lambda: list(infer.main(InferConfig(sources=(str(coco_folder / "test"),)))),
        lambda: evaluate.main(EvaluateConfig(no_log=True)),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            use()
        assert error.value.exit_code == 4
    with pytest.raises(ModelError, match=r"recipes/mine\.py, which is not here") as error:
        train.main(replace(small, resume=run_id, model=None, max_steps=2))
    assert error.value.exit_code == 2
    own("mine", WEAKER)
    assert train.main(replace(small, resume=run_id, model=None, max_steps=2)) == run_id


BODY = """
import torch
from models.detector import backbone

class Body(torch.nn.Conv2d):
    channels, strides = [8, 8], [16, 32]
    def forward(self, images):
        fine = torch.nn.functional.avg_pool2d(super().forward(images), 16)
        return [fine, torch.nn.functional.avg_pool2d(fine, 2)]
"""
WHOLE = BODY + "\n@backbone(__name__)\ndef make():\n    return Body(3, 8, 1)\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nosuchmodule", r"recipes/mine\.py, line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def f(:", r"recipes/mine\.py: SyntaxError: invalid syntax.*line 1"),
        ("x = 1", r"recipes/mine\.py makes no model of its own name: .*@variant\(__name__\)"),
        (WEAKER + "\nraise ValueError('late')", r"recipes/mine\.py, line 8: ValueError: late"),
        (WEAKER.replace("roi_heads", "roi_head"), r"recipes/mine\.py, line 6: AttributeError: .*roi_head"),
        (WHOLE, r"recipes\.mine is a model by itself"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_told_with_its_line(own, text, message):
    name = own("mine", text)
    for _ in range(2):  # a half imported one does not count as known
        with pytest.raises(ModelError, match=message) as error:
            build(resolve_architecture(f"{name}/timm/test_resnet", num_classes=3, **OPTIONS))
        assert error.value.exit_code == 2


def test_an_error_in_training_is_told_with_the_recipes_line(own, home, small, monkeypatch, capfd):
    """Not with torch's, under it; a fault of ours, or of a recipe's user, it is not."""
    loss = "def loss(logits, boxes, labels, targets):\n    return logits + labels[0][:2], 0\n\n"
    name = own("mine", loss + WEAKER.replace("fg_bg_sampler.positive_fraction = 0.125", "box_loss = loss"))
    monkeypatch.setattr(commandline, "__file__", str(home / "commandline.py"))
    with pytest.raises(SystemExit) as end:
        commandline.command(train.script, lambda: replace(small, model=f"{name}/timm/test_resnet", max_steps=1))
    assert end.value.code == 70
    place = f"  at {home / 'recipes' / 'mine.py'}:2 in loss. TRACEBACK=1 shows the whole way there.\n"
    assert place in capfd.readouterr().err
    assert open_store().newest_runs(1)[0].status == "FAILED"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "Body(3, 8, 1)",
            "torch.nn.Conv2d(3, 8, 1)",
            r"recipes\.mine: the network must state its channels and strides",
        ),
        ("[8, 8], [16, 32]", "[8, 9], [16, 32]", r"channels \[8, 9\] and strides \[16, 32\] that it states"),
        ("[8, 8], [16, 32]", "[8, 8], [8, 16]", r"that it states"),
        ("[8, 8], [16, 32]", "[8, 8], [16, 64]", r"each stride twice the one before"),
        ("[8, 8], [16, 32]", "[8], [16, 32]", r"that it states"),
        ("super().forward(images)", "images.nothing", r"recipes/mine\.py, line 8: AttributeError"),
        ("Body(3, 8, 1)", "Body(4, 8, 1)", r"recipes/mine\.py, line 8: RuntimeError: Given groups=1"),
    ],
)
def test_what_is_wrong_with_a_backbone_is_told(own, before, after, message):
    assert before in WHOLE
    sizes = {"anchor_sizes": [16, 32, 64]}
    assert build(resolve_architecture(own("mine", WHOLE), num_classes=3, **OPTIONS | sizes)).backbone.strides == [
        16,
        32,
    ]
    registry._BUILDERS.pop("recipes.mine")
    name = own("mine", WHOLE.replace(before, after))
    with pytest.raises(ModelError, match=message):
        build(resolve_architecture(name, num_classes=3, **OPTIONS | sizes))


def test_a_recipe_without_what_it_changes_says_so():
    with pytest.raises(ModelError, match=r"name that too, as in recipes\.new_loss/timm/resnet18"):
        resolve_architecture(LOSS, num_classes=3)
    with pytest.raises(ModelError, match=r"recipes/new_los\.py, which is not here; near it: recipes\.new_loss\."):
        resolve_architecture("recipes.new_los/timm/resnet18", num_classes=3)


@pytest.mark.parametrize("name", ["new_loss", "new_backbone"])
def test_a_recipe_is_short(name):
    tree = ast.parse((ROOT / "recipes" / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body.pop(0)
    assert len([line for line in ast.unparse(tree).splitlines() if line.strip()]) <= 25


def test_status_tells_of_an_own_model_without_torch(home, small):
    train.main(replace(small, model=BACKBONE, max_steps=1))
    code = (
        "import sys, workspace\nfrom pathlib import Path\n"
        f"workspace.ROOT = Path({str(home)!r}); workspace.RUNS = workspace.ROOT / 'runs'\n"
        "import json, status\n"
        f"report = status.main(status.StatusConfig(checkpoint=Path({str(workspace.PUBLISHED)!r})))\n"
        "print(json.dumps([report['state'], report['architecture']['builder'], 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["ready", BACKBONE, False]
