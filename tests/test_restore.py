"""restore.py: files from elsewhere, weights to share, registered models, the best of many runs, other stores."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import detection

import train
import workspace
from models import record
from models.checkpoint import load, save
from resuming import run_to_resume
from tests.conftest import equal, last_checkpoint, open_store
from tests.test_models_checkpoint import Calls

MOBILE_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
SHAPES = ["circle", "square", "star", "triangle"]
HEAD = "roi_heads.box_predictor"


@pytest.fixture
def restore(home, run_script):
    """Runs restore.py, which must succeed, and returns the file that it names."""

    def run(*arguments: object) -> Path:
        process = run_script("restore.py", *arguments)
        assert process.returncode == 0, process.stderr
        path = Path(process.stdout.strip())
        assert process.stdout == f"{path}\n"
        return path

    return run


def status(run_script, *arguments: object) -> dict:
    return json.loads(run_script("status.py", "--json", *arguments).stdout)


def kept() -> list[Path]:
    return sorted(workspace.PUBLISHED.parent.glob("*.kept-*"))


def theirs(path: Path, classes: int, **content) -> Path:
    """A checkpoint of the plain three-key form, as another pipeline writes it with torchvision's model."""
    torch.manual_seed(0)
    model = getattr(detection, MOBILE_320)(weights=None, weights_backbone=None, num_classes=classes + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = {"epoch": 5, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(saved | content, path)
    return path


@pytest.fixture
def shapes_file(tmp_path) -> Path:
    """Another pipeline's checkpoint of the generated shapes, with its class names."""
    return theirs(tmp_path / "theirs.pth", 4, data={"CLASSES": ["__background__", *SHAPES]})


# -- files from elsewhere


def test_a_colleagues_checkpoint_is_taken_as_it_is(home, undisturbed, restore, run_script, coco_folder, monkeypatch):
    content, file = undisturbed(max_steps=2).last, home / "from a stick.pth"
    save(content, file)
    before = file.read_bytes()
    monkeypatch.setattr(workspace, "ROOT", home / "other")
    monkeypatch.setattr(workspace, "RUNS", home / "other" / "runs")
    monkeypatch.setattr(workspace, "PUBLISHED", home / "other" / "models" / "checkpoint.pth")
    assert restore("--file", file) == workspace.PUBLISHED
    assert workspace.PUBLISHED.read_bytes() == file.read_bytes() == before
    report = status(run_script)
    assert (report["state"], report["run_id"]) == ("ready", content["run_id"])
    assert (report["role"], report["pinned"], report["resumable"], report["step"]) == ("file", True, True, 2)
    assert not list(workspace.ROOT.rglob("*.db"))  # no store was asked for
    assert run_script("infer.py", next((coco_folder / "val").iterdir())).returncode == 0
    assert run_script("evaluate.py", "--no-log").returncode == 0


@pytest.mark.slow
def test_another_pipelines_checkpoint_becomes_a_whole_one(
    home, small, shapes_file, restore, run_script, coco_folder, refused
):
    before = shapes_file.read_bytes()
    path = restore("--file", shapes_file, "--model", MOBILE_320)
    assert shapes_file.read_bytes() == before
    content, given = load(path), load(shapes_file)
    assert equal(content["model_state_dict"], given["model_state_dict"])
    assert equal(content["optimizer_state_dict"], given["optimizer_state_dict"])
    for _ in range(2):  # by its record, then by its own data
        report = status(run_script)
        expected = ("ready", None, 5, SHAPES, False)
        assert tuple(report[key] for key in ("state", "run_id", "epoch", "classes", "resumable")) == expected
        assert report["next"] == "python evaluate.py --data PATH"
        record.record_path(path).unlink(missing_ok=True)
    detected = run_script("infer.py", coco_folder / "val", "--score-threshold", "0")
    lines = [json.loads(line) for line in detected.stdout.splitlines()]
    assert {one["label"] for line in lines for one in line["detections"]} <= set(SHAPES)
    assert len(lines) == 5 and lines[0]["detections"]
    assert "--data" in refused(2, "evaluate.py")
    scored = run_script("evaluate.py", "--data", coco_folder, "--json")
    assert "linked to none" in scored.stderr
    evaluation = json.loads(scored.stdout)
    assert (evaluation["model_id"], evaluation["images"], set(evaluation["per_class"])) == (None, 5, set(SHAPES))
    start = replace(small, model=MOBILE_320, anchor_sizes=None, fpn_channels=None, weights=str(path), max_steps=1)
    trained = last_checkpoint(train.main(replace(start, lr=1e-30, weight_decay=0.0)))["model_state_dict"]
    assert torch.allclose(trained[f"{HEAD}.cls_score.weight"], content["model_state_dict"][f"{HEAD}.cls_score.weight"])


def test_a_restored_file_is_kept_when_another_takes_its_place(home, small, shapes_file, restore):
    run_id = train.main(replace(small, max_steps=1))
    restore("--file", shapes_file, "--model", MOBILE_320)
    restore("--file", shapes_file, "--model", MOBILE_320)
    assert kept() == []  # the run's best is in the store, and the file itself was there
    restore(run_id)
    [aside] = kept()
    assert equal(load(aside)["model_state_dict"], load(shapes_file)["model_state_dict"])
    assert restore("--file", aside, "--output", home / "again") == home / "again" / "checkpoint.pth"


def test_a_strangers_file_put_there_by_hand_is_mended_in_place(
    home, shapes_file, restore, run_script, refused, coco_folder
):
    workspace.PUBLISHED.parent.mkdir(parents=True)
    shutil.copy(shapes_file, workspace.PUBLISHED)
    report = status(run_script)
    assert (report["state"], report["next"].split(" --file ")[0]) == ("incompatible", "python restore.py")
    assert Path(report["next"].split(" --file ")[1]).resolve() == workspace.PUBLISHED
    assert "--model" in refused(2, "infer.py", shapes_file)
    restore("--file", workspace.PUBLISHED, "--model", MOBILE_320)
    assert status(run_script)["state"] == "ready"
    assert [path.read_bytes() for path in kept()] == [shapes_file.read_bytes()]
    detected = json.loads(run_script("infer.py", next((coco_folder / "val").iterdir()), "--score-threshold", 0).stdout)
    assert {one["label"] for one in detected["detections"]} <= set(SHAPES) and detected["detections"]


def test_coco_heads_are_scored_on_data_of_eighty_classes(home, tmp_path, restore, run_script, coco_folder):
    names = json.loads((coco_folder / "annotations" / "instances_val.json").read_text())
    data = tmp_path / "eighty"
    shutil.copytree(coco_folder / "val", data / "images")
    eighty = [name for name in reversed(coco_names()) if name != "N/A"]  # in the dataset's own order
    names["categories"] = [{"id": number, "name": name} for number, name in enumerate(eighty, start=1)]
    (data / "val.json").write_text(json.dumps(names))
    (data / "train.json").write_text(json.dumps(names | {"images": names["images"][:1], "annotations": []}))
    restore("--file", theirs(tmp_path / "coco.pth", 90), "--model", MOBILE_320, "--classes", "coco")
    content = load(workspace.PUBLISHED)
    assert (len(content["classes"]), content["classes"][89]) == (90, "toothbrush")
    scored = run_script("evaluate.py", "--data", data, "--json", "--no-log", "--output", tmp_path / "scored")
    assert scored.returncode == 0, scored.stderr
    truth = json.loads((tmp_path / "scored" / "ground_truth.json").read_text())
    by_id = {category["id"]: category["name"] for category in truth["categories"]}
    used = {annotation["category_id"] for annotation in names["annotations"]}
    assert by_id[90] == "toothbrush"
    assert {by_id[one["category_id"]] for one in truth["annotations"]} == {eighty[number - 1] for number in used}
    assert set(json.loads(scored.stdout)["per_class"]) == {eighty[number - 1] for number in used}


def coco_names() -> list[str]:
    from models.foreign import read_classes

    return read_classes("coco")


@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(home, tmp_path, refused, old_format):
    mark, file = tmp_path / "it-ran", tmp_path / "trap.pth"
    trap = {"model_state_dict": {"w": torch.zeros(1)}, "epoch": Calls(os.system, f"touch '{mark}'")}
    torch.save(trap, file, _use_new_zipfile_serialization=not old_format)
    assert "more than plain data" in refused(3, "restore.py", "--file", file)
    assert not mark.exists()
    assert not workspace.PUBLISHED.exists() and list(workspace.PUBLISHED.parent.glob(".*.download")) == []


BAD_USAGE = {
    "neither": ((), 2, "Give a RUN"),
    "both": (("small", "--file", "{file}"), 2, "choose one"),
    "a file's epoch": (("--file", "{file}", "--which", "0"), 2, "--which"),
    "a file's metric": (("--file", "{file}", "--metric", "val/AP50"), 2, "--metric"),
    "registering a file": (("--file", "{file}", "--register", "a@b"), 2, "--register"),
    "a run's classes": (("small", "--classes", "coco"), 2, "--classes"),
    "registering to a folder": (("small", "--register", "a@b", "--output", "x"), 2, "--output"),
    **{f"register {bad}": (("small", "--register", bad), 2, "NAME@ALIAS") for bad in ("a", "a@", "@b", "a/b@c")},
    **{f"register {bad}": (("small", "--register", bad), 2, "NAME@ALIAS") for bad in ("a@b@c", "a@latest", "a@v1")},
    "no such file": (("--file", "none.pth"), 2, "none.pth"),
    "no such model": (("--file", "{file}", "--model", "fasterrcnn_mobilenet"), 2, "near it"),
    "no model": (("--file", "{file}"), 2, f"--model {MOBILE_320}"),
    "another model": (("--file", "{file}", "--model", "fasterrcnn_resnet50_fpn"), 4, "it lacks"),
    "wrong number of names": (("--file", "{file}", "--model", MOBILE_320, "--classes", "coco"), 4, "90 names"),
    "no such class file": (("--file", "{file}", "--model", MOBILE_320, "--classes", "none.txt"), 2, "none.txt"),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_wrong_usage_is_one_message(case, shapes_file, refused):
    arguments, code, words = BAD_USAGE[case]
    message = refused(code, "restore.py", *(argument.format(file=shapes_file) for argument in arguments))
    assert words in " ".join(message.replace("│", " ").split())
    assert not workspace.PUBLISHED.exists()


def test_our_own_file_that_contradicts_itself_or_is_told_what_it_knows_is_refused(home, undisturbed, tmp_path, refused):
    content = dict(undisturbed(max_steps=2).last)
    file = tmp_path / "ours.pth"
    save(content, file)
    assert "leave out --model" in refused(2, "restore.py", "--file", file, "--model", MOBILE_320)
    content["model_state_dict"] = dict(content["model_state_dict"])
    del content["model_state_dict"]["rpn.head.bbox_pred.weight"]
    save(content, file)
    assert "rpn.head.bbox_pred.weight" in refused(4, "restore.py", "--file", file)
    assert not workspace.PUBLISHED.exists()


# -- weights to share


def test_weights_only_is_smaller_ready_and_can_be_had_again(home, small, restore, run_script, capfd):
    run_id = train.main(replace(small, ema=0.5))
    whole = load(restore(run_id))
    size = workspace.PUBLISHED.stat().st_size
    path = restore(run_id, "--weights-only")
    shared = load(path)
    assert equal(shared["model_state_dict"], whole["model_state_dict"])
    gone = {"optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "raw_model_state_dict"}
    assert whole.keys() - shared.keys() == gone
    assert path.stat().st_size < size / 2
    report = status(run_script, "--verify")
    assert (report["state"], report["resumable"], report["role"]) == ("ready", False, "best")
    assert report["sha256"] == record.file_sha256(path)
    evaluation = json.loads(run_script("evaluate.py", "--json").stdout)
    assert evaluation["model_id"] in {one.model_id for one in open_store().checkpoints(run_id)}
    restore(run_id, "--weights-only")
    restore(run_id, "--which", "0", "--weights-only")
    restore(run_id, "--which", "last")
    assert kept() == []
    shared_again = restore("--file", path, "--weights-only", "--output", home / "shared.pth")
    assert load(shared_again)["run_id"] == run_id


def test_weights_changed_by_hand_are_no_longer_the_stores(home, small, restore):
    run_id = train.main(replace(small, max_steps=1))
    path = restore(run_id, "--weights-only")
    content = load(path)
    content["model_state_dict"][f"{HEAD}.cls_score.bias"] += 1
    content["step"] += 1
    save(content, path)
    restore(run_id)
    assert [load(aside)["step"] for aside in kept()] == [2]


# -- registered models


@pytest.mark.slow
def test_a_registered_checkpoint_serves_every_script(home, small, run_script, restore, coco_folder):
    run_id = train.main(replace(small, publish="never"))
    uri = "models:/shapes@champion"
    for which, versions in (("0", 1), ("0", 1), ("1", 2), ("0", 2)):
        process = run_script("restore.py", run_id, "--which", which, "--register", "shapes@champion")
        assert (process.returncode, process.stdout) == (0, f"{uri}\n"), process.stderr
        assert len(open_store().client.search_model_versions("name = 'shapes'")) == versions
    assert not workspace.PUBLISHED.exists()
    first = open_store().checkpoints(run_id)[0]
    restore(uri)
    assert (status(run_script)["epoch"], status(run_script)["role"]) == (0, "epoch")
    evaluation = json.loads(run_script("evaluate.py", "--run", uri, "--json").stdout)
    assert (evaluation["epoch"], evaluation["model_id"]) == (0, first.model_id)
    detected = run_script("infer.py", next((coco_folder / "val").iterdir()), "--run", uri)
    assert detected.returncode == 0 and "epoch 0" in detected.stderr
    start = last_checkpoint(train.main(replace(small, weights=uri, max_steps=1, lr=1e-30, weight_decay=0.0)))
    expected = load(workspace.PUBLISHED)["model_state_dict"]
    key = "backbone.body.conv1.0.weight"
    assert torch.allclose(start["model_state_dict"][key], expected[key])


def test_what_the_store_has_lost_is_not_registered(home, small, refused):
    run_id = train.main(replace(small, max_steps=1))
    shutil.rmtree(home / "mlartifacts")
    assert "is gone" in refused(3, "restore.py", run_id, "--register", "shapes@champion")
    assert list(open_store().client.search_registered_models()) == []


# -- the best of many runs


def trained_to(ap: float, config, monkeypatch, **more) -> str:
    """A run whose only validation finds this AP."""
    from evaluating import scoring

    real = scoring.score

    def score(*arguments, **keywords):
        scored = real(*arguments, **keywords)
        scored.metrics["AP"] = ap
        return scored

    with monkeypatch.context() as patch:
        patch.setattr("evaluating.scoring.score", score)
        return train.main(replace(config, max_steps=1, publish="never", **more))


def test_best_is_the_best_run_of_an_experiment(home, small, monkeypatch, run_script, restore):
    trained_to(0.2, small, monkeypatch, run_name="best")
    high = trained_to(0.6, small, monkeypatch)
    deleted = trained_to(0.9, small, monkeypatch)
    other = trained_to(0.95, small, monkeypatch, experiment="other")
    open_store().client.delete_run(deleted)
    restore("best")
    assert status(run_script)["run_id"] == high
    restore("best", "--experiment", "other")
    assert status(run_script)["run_id"] == other
    elsewhere = run_script("restore.py", other[:8], "--experiment", small.experiment)
    assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
    assert f"is in experiment 'other', not in {small.experiment!r}" in elsewhere.stderr
    assert json.loads(run_script("evaluate.py", "--run", "best", "--json", "--no-log").stdout)["run_id"] == high
    monkeypatch.setattr("sys.argv", ["train.py", "--from-run", "best", "--seed", "4"])
    assert train.read().from_run == high
    assert run_to_resume(open_store(), replace(small, resume="best", experiment="other")) == other
    second = train.main(replace(small, weights="best", max_steps=1, publish="never"))
    notes = open_store().client.download_artifacts(second, "code/starting_weights.txt", str(home))
    assert f"({high[:8]})" in Path(notes).read_text()


def test_best_takes_in_what_was_not_delivered_yet(home, small, monkeypatch, restore, run_script):
    with monkeypatch.context() as patch:
        patch.setattr("live_run.DELIVERY_SECONDS", 0.0)
        patch.setattr("tracking.sender.Sender.start", lambda self: None)
        run_id = trained_to(0.5, small, monkeypatch)
    assert open_store().checkpoints(run_id) == []
    restore("best")
    assert status(run_script)["run_id"] == run_id


def test_best_does_not_compare_scores_on_different_data(home, small, monkeypatch, tmp_path, refused):
    from data.generated import generated_data, write_coco

    write_coco(generated_data(train=8, val=5, test=4, size=(96, 128), seed=3), tmp_path / "others")
    runs = [trained_to(ap, small, monkeypatch) for ap in (0.2, 0.3)]
    third = trained_to(0.7, small, monkeypatch, data=str(tmp_path / "others"))
    message = refused(2, "restore.py", "best")
    lines = [line.strip() for line in message.splitlines()]
    [of_two] = [line for line in lines if "2 runs" in line]
    [of_one] = [line for line in lines if "1 run," in line]
    assert of_two.startswith("shapes-val, fingerprint ") and f"best 0.3000 in run {runs[1]}" in of_two
    assert of_one.startswith("others-val, fingerprint ") and f"best 0.7000 in run {third}" in of_one
    assert "--experiment NAME" in message and not workspace.PUBLISHED.exists()
    assert "no experiment" in refused(2, "restore.py", "best", "--experiment", "nothing").lower()
    message = refused(2, "evaluate.py", "--run", "best", "--metric", "val/mAP")
    assert "'val/mAP'" in message and "val/AP50" in message


# -- stores that do not know the run


@pytest.fixture
def elsewhere(home, small, monkeypatch, empty_database) -> tuple[str, str]:
    """A run that was trained here into another store: its ID, and that store."""
    (home / "other").mkdir()
    uri = f"sqlite:///{shutil.copy(empty_database, home / 'other' / 'mlflow.db')}"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        return train.main(replace(small, max_steps=2, run_name="away", publish="auto")), uri


@pytest.mark.parametrize("has_a_store", [True, False])
def test_a_run_that_another_store_has_is_named_with_it(elsewhere, home, refused, restore, monkeypatch, has_a_store):
    run_id, uri = elsewhere
    if not has_a_store:
        (home / "mlflow.db").unlink()
    asked = [("restore.py", "away"), ("restore.py", run_id[:6], "--register", "a@b"), ("evaluate.py", "--run", run_id)]
    asked += [("train.py", "--resume", run_id, "--max-steps", "3")] if has_a_store else []
    for command in asked:
        assert f"MLFLOW_TRACKING_URI={uri} python" in refused(2, *command)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    restore("away")
    assert record.inspect(workspace.PUBLISHED).entry["run_id"] == run_id


def test_a_run_whose_store_is_gone_is_restored_from_its_folder(home, small, refused, restore, empty_database):
    run_id = train.main(replace(small, max_steps=1, publish="never"))
    shutil.copy(empty_database, home / "mlflow.db")
    message = refused(2, "restore.py", run_id)
    assert f"python restore.py --file {workspace.RunFolder(run_id).last}" in message
    restore(*message.split("restore.py ")[1].split())
    assert record.inspect(workspace.PUBLISHED).entry["run_id"] == run_id


def test_a_checkpoint_of_an_unknown_run_is_scored_used_and_shown(elsewhere, home, run_script, coco_folder):
    run_id, uri = elsewhere
    file = home / "copy.pth"
    shutil.copy(workspace.PUBLISHED, file)
    report = status(run_script, "--checkpoint", file)
    assert (report["state"], report["run_id"], report["tracking_uri"]) == ("ready", run_id, uri)
    shutil.rmtree(home / "other")
    assert status(run_script, "--checkpoint", file)["run_status"] is None
    assert "not known to the store" in run_script("status.py", "--checkpoint", file).stdout
    scored = run_script("evaluate.py", "--checkpoint", file, "--json")
    evaluation = json.loads(scored.stdout)
    assert (evaluation["run_id"], evaluation["model_id"]) == (run_id, None)
    assert open_store().run(evaluation["evaluation_run_id"]).tags["source_run_id"] == run_id
    assert "linked to none" in scored.stderr
    assert run_script("infer.py", next((coco_folder / "val").iterdir()), "--checkpoint", file).returncode == 0


@pytest.mark.parametrize("flag", ["--weights", "--resume", "--from-run"])
def test_training_from_an_unknown_run_is_one_message(home, small, coco_folder, refused, flag):
    from tests.conftest import SMALL

    started = list(home.glob("runs/*"))
    small_but_for_weights = [word for word in SMALL if word not in ("--weights", "none")]
    message = refused(2, "train.py", "--data", coco_folder, *small_but_for_weights, flag, "nosuchrun")
    assert message.count("nosuchrun") >= 1 and "error: " in message.splitlines()[-1]
    assert ("no file" in message) == (flag == "--weights")
    assert list(home.glob("runs/*")) == started and open_store().newest_runs(1) == []


# -- between machines and data sets


def test_a_checkpoint_of_a_gpu_is_used_on_a_cpu(home, small, tmp_path, monkeypatch, restore, run_script, coco_folder):
    """Its storages are tagged as torch tags those of a GPU."""
    content = last_checkpoint(train.main(replace(small, max_steps=1, publish="never")))
    file = tmp_path / "gpu.pth"
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save(content, file)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(file, weights_only=True)
    assert (record.inspect(file).state, record.inspect(file).entry["step"]) == ("ready", 1)
    assert equal(load(file)["optimizer_state_dict"], content["optimizer_state_dict"])
    restore("--file", file)
    restore("--file", file, "--weights-only", "--output", home / "shared.pth")
    torch.load(home / "shared.pth", weights_only=True)
    detected = run_script("infer.py", next((coco_folder / "val").iterdir()), "--device", "cpu")
    assert detected.returncode == 0, detected.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
def test_a_checkpoint_of_a_cpu_goes_on_on_a_gpu(home, small):
    from prepare import prepare

    run_id = train.main(replace(small, max_steps=2, device="cpu"))
    on_gpu = replace(small, max_steps=4, device="cuda", resume=run_id)
    states = prepare(on_gpu).optimizer.state.values()
    moments = [value for state in states for value in state.values() if torch.is_tensor(value) and value.dim()]
    assert moments and all(value.is_cuda for value in moments)
    assert train.main(on_gpu) == run_id
    assert last_checkpoint(run_id)["step"] == 4  # read on the CPU again


def test_class_rows_follow_their_names_from_one_data_set_to_another(home, small, coco_folder, tmp_path, restore):
    first = train.main(replace(small, max_steps=2))
    rows_of_first = class_rows(last_checkpoint(first))
    other = tmp_path / "shapes"
    shutil.copytree(coco_folder, other)
    new_order = ["triangle", "hexagon", "circle", "star"]  # were circle, square (a hexagon now), star, triangle
    for file in (other / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        names = {one["id"]: "hexagon" if one["name"] == "square" else one["name"] for one in content["categories"]}
        for annotation in content["annotations"]:
            annotation["category_id"] = 1 + new_order.index(names[annotation["category_id"]])
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(new_order, start=1)]
        file.write_text(json.dumps(content))
    for weights in (first, restore("--file", workspace.RunFolder(first).last, "--weights-only")):
        start = replace(small, data=str(other), weights=str(weights), max_steps=1, publish="never")
        second = last_checkpoint(train.main(replace(start, lr=1e-30, weight_decay=0.0)))
        assert second["classes"] == new_order
        rows = class_rows(second)
        for name in ("background", "triangle", "circle", "star"):
            assert torch.allclose(rows[name], rows_of_first[name]), (name, weights)
        assert not any(torch.allclose(rows["hexagon"], row) for row in rows_of_first.values())


def class_rows(content: dict) -> dict[str, torch.Tensor]:
    """All numbers of the head that belong to a class, by its name."""
    state = content["model_state_dict"]
    names = ["background", *content["classes"]]
    parts = [state[f"{HEAD}.{kind}"].reshape(len(names), -1) for kind in ("cls_score.weight", "cls_score.bias")]
    parts += [state[f"{HEAD}.{kind}"].reshape(len(names), -1) for kind in ("bbox_pred.weight", "bbox_pred.bias")]
    return dict(zip(names, torch.cat(parts, dim=1), strict=True))
