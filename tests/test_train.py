"""Whole trainings in this process: exact resume, the best checkpoint, losses that are no numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import config as options
import engine
import evaluate
import publishing
import train
import workspace
from config import TrainConfig
from evaluate import EvaluateConfig
from models.checkpoint import load
from tests.conftest import SMALL

pytestmark = pytest.mark.filterwarnings(
    # The fork of a process with threads is DataLoader's own way on Linux.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """An empty repository root of its own for runs, the store and the published checkpoint."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(workspace, "ROOT", tmp_path)
    monkeypatch.setattr(workspace, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(workspace, "PUBLISHED", tmp_path / "models" / "faster_rcnn" / "checkpoint.pth")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def small(coco_folder: Path) -> TrainConfig:
    """Two epochs of four steps."""
    return options.parse(TrainConfig, ["--data", str(coco_folder), *SMALL, "--epochs", "2"])


def open_store():
    from tracking.store import open_store

    return open_store(workspace.ROOT)


def last_checkpoint(run_id: str) -> dict:
    return load(workspace.RunFolder(run_id).last)


def equal(first, second) -> bool:
    """Equal to the bit, through nested dicts and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


STATE = (
    *("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict"),
    *("epoch", "step", "batches_done", "metrics", "best"),
)


def history(store, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run_id, key)]


def test_a_resumed_run_equals_an_uninterrupted_one(home, small):
    """Stopped in epoch 0, after it, and in epoch 1; then with other loader workers."""
    config = replace(small, augmentation="standard")
    whole, store = train.main(config), open_store()
    for stop_after in (2, 4, 6):
        part = train.main(replace(config, max_steps=stop_after))
        assert last_checkpoint(part)["step"] == stop_after
        assert train.main(replace(config, resume=part[:8], max_steps=8, workers=2)) == part
        first, second = last_checkpoint(whole), last_checkpoint(part)
        # A stop in mid-epoch adds a validation, which may have been the best.
        compared = STATE if stop_after == 4 else [key for key in STATE if key != "best"]
        assert [key for key in compared if not equal(first[key], second[key])] == []
        assert store.run(part).status == "FINISHED"
        for key in ("train/loss", "train/lr", "train/grad_norm"):
            assert history(store, whole, key) == history(store, part, key)
        assert {"epoch-000", "epoch-001"} <= {one.name for one in store.checkpoints(part)}


def test_the_best_is_published_and_a_worse_epoch_does_not_replace_it(home, small, monkeypatch):
    """Validation is given a falling AP: the first epoch stays the best."""
    real_score, values = train_score(), iter([0.9, 0.5])

    def falling(*arguments, **keywords):
        scored = real_score(*arguments, **keywords)
        scored.metrics["AP"] = next(values)
        return scored

    monkeypatch.setattr("evaluate.score", falling)
    run_id = train.main(small)
    entry = publishing.current_entry()
    assert (entry["run_id"], entry["epoch"], entry["metrics"]["val/AP"], entry["role"]) == (run_id, 0, 0.9, "best")
    assert last_checkpoint(run_id)["best"]["value"] == 0.9
    assert last_checkpoint(run_id)["epoch"] == 1


def train_score():
    import evaluate

    return evaluate.score


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


def test_a_new_run_starts_from_another_runs_weights_by_class_name(home, small):
    first = train.main(replace(small, max_steps=1))
    second = train.main(replace(small, max_steps=1, weights=first, lr=1e-30, warmup_steps=0, weight_decay=0.0))
    before, after = (last_checkpoint(run)["model_state_dict"] for run in (first, second))
    head = "roi_heads.box_predictor.cls_score.weight"
    assert torch.allclose(before[head], after[head])


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
