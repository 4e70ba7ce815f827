"""Whole trainings in this process: exact resume, the best checkpoint, losses that are no numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import changes
import engine
import evaluate
import fetching
import publishing
import status
import train
import workspace
from data.generated import CLASSES
from data.open import open_data
from evaluate import EvaluateConfig
from evaluating import scoring
from models.checkpoint import load
from resuming import resumable_checkpoint
from tests.conftest import STATE, equal, history, last_checkpoint, open_store
from tracking.errors import StoreError
from tracking.run import TrackedRun
from workspace import WorkspaceError

pytestmark = pytest.mark.filterwarnings(
    # The fork of a process with threads is DataLoader's own way on Linux.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)


@pytest.mark.parametrize("stops", [pytest.param((4,), marks=pytest.mark.slow), (2, 6)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(home, small, undisturbed, stops):
    """Stopped after epoch 0, or in epoch 0 and again in epoch 1; then with other loader workers."""
    config, whole = replace(small, augmentation="standard"), undisturbed(augmentation="standard")
    part = None
    for step in stops:
        part = train.main(replace(config, resume=part, max_steps=step))
        assert last_checkpoint(part)["step"] == step
    assert train.main(replace(config, resume=part[:8], max_steps=8, workers=2)) == part
    second, store = last_checkpoint(part), open_store()
    # A stop in mid-epoch adds a validation, which may have been the best.
    compared = STATE if stops == (4,) else [key for key in STATE if key != "best"]
    assert [key for key in compared if not equal(whole.last[key], second[key])] == []
    assert store.run(part).status == "FINISHED"
    for key in ("train/loss", "train/lr", "train/grad_norm"):
        assert history(whole.store, whole.run_id, key) == history(store, part, key)
    assert {"epoch-000", "epoch-001"} <= {one.name for one in store.checkpoints(part)}


def test_the_best_is_published_and_a_worse_epoch_does_not_replace_it(home, small, monkeypatch):
    """Validation is given a falling AP: the first epoch stays the best."""
    real_score, values = train_score(), iter([0.9, 0.5])

    def falling(*arguments, **keywords):
        scored = real_score(*arguments, **keywords)
        scored.metrics["AP"] = next(values)
        return scored

    monkeypatch.setattr("evaluating.scoring.score", falling)
    run_id = train.main(small)
    entry = publishing.current_entry()
    assert (entry["run_id"], entry["epoch"], entry["metrics"]["val/AP"], entry["role"]) == (run_id, 0, 0.9, "best")
    assert last_checkpoint(run_id)["best"]["value"] == 0.9
    assert last_checkpoint(run_id)["epoch"] == 1


def train_score():
    from evaluating import scoring

    return scoring.score


def test_a_loss_that_is_no_number_names_its_images_and_fails_the_run(home, small):
    with pytest.raises(Exception, match=r"loss.* is (nan|inf)") as caught:
        train.main(replace(small, optimizer="sgd", lr=1e12, warmup_steps=0))
    assert caught.value.exit_code == 7
    assert ".png" in str(caught.value)
    (folder,) = workspace.run_folders()
    store = open_store()
    assert store.run(folder.run_id).status == "FAILED"
    assert folder.training() == "failed"
    (artifact,) = store.client.list_artifacts(folder.run_id, "nonfinite")
    text = store.client.download_artifacts(folder.run_id, artifact.path, str(home))
    details = json.loads(Path(text).read_text())
    assert len(details["images"]) == len(details["boxes"]) == 2
    assert {"loss", "loss_classifier"} <= details["losses"].keys()


def test_max_steps_ends_in_mid_epoch_with_a_scored_checkpoint(home, small):
    run_id = train.main(replace(small, max_steps=3))
    (checkpoint,) = open_store().checkpoints(run_id)
    assert (checkpoint.name, checkpoint.step) == ("step-000003", 3)
    assert "val/AP" in checkpoint.metrics


@pytest.mark.slow
def test_a_new_run_starts_from_another_runs_weights_by_class_name(home, small):
    first = train.main(replace(small, max_steps=1))
    second = train.main(replace(small, max_steps=1, weights=first, lr=1e-30, warmup_steps=0, weight_decay=0.0))
    before, after = (last_checkpoint(run)["model_state_dict"] for run in (first, second))
    head = "roi_heads.box_predictor.cls_score.weight"
    assert torch.allclose(before[head], after[head])


@pytest.mark.slow
def test_a_worker_count_or_a_second_run_in_the_process_changes_nothing(home, small):
    runs = [train.main(replace(small, max_steps=3, workers=workers, augmentation="strong")) for workers in (0, 2)]
    first, second = map(last_checkpoint, runs)
    assert equal(first["model_state_dict"], second["model_state_dict"])


def test_scoring_takes_trainings_number_of_threads_and_resuming_says_another(home, small, monkeypatch, capfd):
    """Sums in another order round differently; in bf16 that moved a real AP by 2e-4."""
    with engine.cpu_threads(1):
        run_id = train.main(replace(small, amp="bf16", max_steps=4))
    logged = last_checkpoint(run_id)["metrics"]["val/AP"]
    real_predict, threads = engine.predict, []

    def noting(*arguments, **keywords):
        threads.append(torch.get_num_threads())
        return real_predict(*arguments, **keywords)

    monkeypatch.setattr(engine, "predict", noting)
    with engine.cpu_threads(2):
        report = evaluate.main(EvaluateConfig(run=run_id, no_log=True))
        assert (threads, torch.get_num_threads()) == ([1], 2)
        train.main(replace(small, resume=run_id, amp="bf16", max_steps=5))
    assert report["metrics"]["AP"] == pytest.approx(logged, abs=1e-6)
    assert "1 CPU threads then, 2 now" in capfd.readouterr().err


@pytest.mark.parametrize("name", [pytest.param("epoch-000", marks=pytest.mark.slow), "epoch-001"])
def test_a_run_that_dies_before_its_checkpoint_is_logged_logs_it_on_resuming(
    home, small, undisturbed, monkeypatch, name
):
    whole, store = undisturbed(), open_store()
    real_checkpoint = TrackedRun.checkpoint

    def dying(run, checkpoint_name, *arguments, **keywords):
        if checkpoint_name == name:
            raise KeyboardInterrupt
        real_checkpoint(run, checkpoint_name, *arguments, **keywords)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TrackedRun, "checkpoint", dying)
        train.main(replace(small, run_name="part"))
    part = store.find_run("part")
    assert store.run(part).status == "KILLED"
    assert train.main(replace(small, resume=part)) == part
    assert store.run(part).status == "FINISHED"
    assert [one.name for one in store.checkpoints(part)] == ["epoch-000", "epoch-001"]
    assert history(store, part, "val/AP") == history(whole.store, whole.run_id, "val/AP")
    second = last_checkpoint(part)
    assert [key for key in STATE if not equal(whole.last[key], second[key])] == []
    assert workspace.RunFolder(part).training() == "finished"


def test_validations_come_every_so_many_epochs_and_an_unscored_checkpoint_has_no_score(home, small):
    run_id = train.main(replace(small, epochs=3, evaluate_every=2))
    store = open_store()
    assert [step for step, _ in history(store, run_id, "val/AP")] == [8, 12]
    steps = [step for step, _ in history(store, run_id, "epoch")]
    assert len(steps) == len(set(steps))
    scored = {one.name: "val/AP" in one.metrics for one in store.checkpoints(run_id)}
    assert scored == {"epoch-000": False, "epoch-001": True, "epoch-002": True}
    path, _ = fetching.fetch(store, run_id, "0", "val/AP", home / "one.pth")
    assert load(path)["metrics"] == {}


def test_a_run_is_not_continued_on_data_of_another_length(home, small, coco_folder, tmp_path):
    run_id = train.main(replace(small, max_steps=3))
    fewer = shutil.copytree(coco_folder, tmp_path / "moved")
    content = json.loads((fewer / "annotations" / "instances_train.json").read_text())
    content["images"] = content["images"][:4]
    (fewer / "annotations" / "instances_train.json").write_text(json.dumps(content))
    folder = workspace.RunFolder(run_id)
    config = folder.state()["config"] | {"data": str(fewer)}
    folder.update(config=config)
    with pytest.raises(WorkspaceError, match=r"4 steps and has 2 .*images: 4 gone: train/00004\.png, train/0"):
        train.main(replace(small, data=str(fewer), resume=run_id, max_steps=8))
    with pytest.raises(WorkspaceError, match="at step 3 already"):
        folder.update(config=config | {"data": small.data})
        train.main(replace(small, resume=run_id, max_steps=2))


def test_what_differs_is_told_from_the_data_that_a_run_went_on_with(home, small, coco_folder, tmp_path):
    mine = replace(small, data=str(shutil.copytree(coco_folder, tmp_path / "shapes")))
    run_id = train.main(replace(mine, max_steps=2))
    annotations = Path(mine.data) / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(content))
    train.main(replace(mine, resume=run_id, max_steps=3))
    saved, store = last_checkpoint(run_id), open_store()
    assert changes.of_data(saved, open_data(mine.data), store).count("is the same") == 3
    said = changes.of_data(saved, open_data(coco_folder), store)
    assert said.startswith("train differs (the same images; annotations of 1: train/")


def test_a_run_that_cannot_begin_is_failed_and_leaves_no_lock(home, small, monkeypatch):
    def broken(*_):
        raise OSError("no thread")

    monkeypatch.setattr("tracking.sender.Sender.start", broken)
    with pytest.raises(OSError, match="no thread"):
        train.main(replace(small, run_name="unbegun", max_steps=1))
    store = open_store()
    run_id = store.find_run("unbegun")
    assert store.run(run_id).status == "FAILED"
    assert not workspace.RunFolder(run_id).is_alive()


@pytest.mark.parametrize("how", ["deleted", "another store"])
def test_a_dead_run_that_the_store_cannot_end_is_no_obstacle(home, small, empty_database, how, capfd):
    store = open_store()
    dead, _ = store.create_run("faster-rcnn", "dead")
    folder = workspace.RunFolder(dead)
    folder.update(state="running", started=1.0, tracking_uri=store.uri)
    if how == "deleted":
        store.client.delete_run(dead)
    else:
        store.client._tracking_client.store._dispose_engine()
        shutil.copy(empty_database, home / "mlflow.db")
        store = open_store()
    assert workspace.end_dead_runs(store) == []
    assert folder.training() == "interrupted"
    assert ("does not know it" in capfd.readouterr().err) == (how == "another store")


def test_a_run_that_another_process_took_up_again_is_not_ended(home):
    """Between the look and the marking lies the delivery of its backlog: its lock decides."""
    store = open_store()
    run_id, _ = store.create_run("faster-rcnn", "alive")
    folder = workspace.RunFolder(run_id)
    folder.update(state="running", started=1.0, tracking_uri=store.uri)
    with folder.locked():
        assert workspace.end_dead_runs(store) == []
    assert (store.run(run_id).status, folder.state()["state"]) == ("RUNNING", "running")
    half_queued = folder.path / "outbox" / "tmp1" / "last.pth"
    half_queued.parent.mkdir(parents=True)
    half_queued.touch()
    assert [ended.run_id for ended in workspace.end_dead_runs(store)] == [run_id]
    assert store.run(run_id).status == "KILLED"
    assert not half_queued.parent.exists()  # nobody may ever take up a run that saved nothing


def test_an_older_last_gives_way_to_a_newer_checkpoint_in_the_store(home, small, capfd):
    """The run went on on another machine."""
    run_id = train.main(replace(small, max_steps=1))
    last = workspace.RunFolder(run_id).last
    older = last.read_bytes()
    train.main(replace(small, resume=run_id, max_steps=2))
    last.unlink()  # its inode is the store's copy too
    last.write_bytes(older)
    assert resumable_checkpoint(open_store(), run_id)[0]["step"] == 2
    assert "(step 1) is behind MLflow (step 2)" in capfd.readouterr().err


def test_evaluation_takes_classes_in_another_order_and_reports_though_the_store_died(home, small, coco_folder, capfd):
    run_id = train.main(replace(small, max_steps=4))
    reordered = shutil.copytree(coco_folder, home / "reordered")
    for file in (reordered / "annotations").iterdir():
        content = json.loads(file.read_text())
        for entry in content["categories"]:
            entry["id"] = 10 - entry["id"]
        for entry in content["annotations"]:
            entry["category_id"] = 10 - entry["category_id"]
        file.write_text(json.dumps(content))
    report = evaluate.main(EvaluateConfig(run=run_id, data=str(reordered), no_log=True))
    expected = evaluate.main(EvaluateConfig(run=run_id, no_log=True, output=home / "all"))
    assert report["per_class"] == expected["per_class"] and report["classes_not_scored"] == []
    for file in (reordered / "annotations").iterdir():  # and one class fewer, which moves the numbers of the others
        content = json.loads(file.read_text())
        gone = next(entry["id"] for entry in content["categories"] if entry["name"] == "square")
        content["categories"] = [entry for entry in content["categories"] if entry["id"] != gone]
        content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != gone]
        file.write_text(json.dumps(content))
    capfd.readouterr()
    fewer = evaluate.main(EvaluateConfig(run=run_id, data=str(reordered), split="valid", output=home / "fewer"))
    assert "lacks 1 of the checkpoint's 4 classes, left out of the scores: square\n" in capfd.readouterr().err
    others = {name: scores for name, scores in expected["per_class"].items() if name != "square"}
    assert (fewer["per_class"], fewer["classes_not_scored"], fewer["split"]) == (others, ["square"], "val")
    boxes = [labelled(home / name / "ground_truth.json") for name in ("all", "fewer")]
    square = 1 + CLASSES.index("square")
    assert boxes[1] == [box for box in boxes[0] if box[0] != square] != boxes[0]
    assert fewer["fingerprint"] == open_data(reordered).fingerprint
    logged = open_store().run(fewer["evaluation_run_id"]).metrics
    assert {key.rpartition("/")[2] for key in logged if "/AP/" in key} == others.keys()

    def dying(*_, **__):
        raise StoreError("gone")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tracking.store.Store.log_evaluation", dying)
        config = EvaluateConfig(run=run_id, output=home / "out")
        assert evaluate.script(config) == 6
    out, errors = capfd.readouterr()
    assert "AP50" in out and "not in MLflow: gone" in errors
    assert json.loads((home / "out" / "metrics.json").read_text())["metrics"] == expected["metrics"]


def labelled(ground_truth):
    return sorted(
        (one["category_id"], one["image_id"], one["bbox"])
        for one in json.loads(ground_truth.read_text())["annotations"]
    )


def test_a_failed_run_says_why_and_tags_can_be_added_on_resuming(home, small, monkeypatch):
    run_id = train.main(replace(small, max_steps=2))
    train.main(replace(small, max_steps=4, resume=run_id, tag=("note=again",)))
    assert open_store().run(run_id).tags["note"] == "again"
    monkeypatch.setattr("train.validate_and_save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(replace(small, max_steps=1))
    report = status.main(status.StatusConfig())
    assert report["training"]["state"] == "failed"
    assert "division by zero" in status.report_text(report)


def test_precision_that_a_cpu_does_not_have_is_replaced_by_fp32(capfd):
    assert [scoring.precision_as_in({"amp": amp}, "cpu") for amp in ("off", "bf16", "fp16")] == ["off", "bf16", "off"]
    assert "scored in fp32" in capfd.readouterr().err
    assert scoring.precision_as_in({"amp": "fp16"}, "cuda") == "fp16"
