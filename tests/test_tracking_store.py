"""Delivery into a real sqlite store, and what the scripts read back from it."""

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fetching
from tracking import ask, peek, view
from tracking.journal import Journal
from tracking.run import TrackedRun, metric_name
from tracking.sender import Sender, sync
from tracking.store import DamagedArtifact, ExperimentDeleted, RunUnknown, StoreError, open_store, store_uri

# mlflow 3.17's own tables use an option that SQLAlchemy 2.1 is going to drop.
ROOT = Path(__file__).resolve().parents[1]
VAL = ("bccd-val", "0123456789abcdef")


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "repo #1 ü"  # what a URI would have to quote
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    opened = open_store(root)
    yield opened
    opened.client._tracking_client.store._dispose_engine()


@pytest.fixture
def started(store, tmp_path):
    run_id, _ = store.create_run("blood", "baseline", {"seed": 1})
    return TrackedRun(store.root / "runs" / run_id, run_id)


def write_checkpoint(folder: Path, content: bytes) -> tuple[Path, str]:
    partial = folder / "partial.pth"
    partial.write_bytes(content)
    return partial.replace(folder / "last.pth"), hashlib.sha256(content).hexdigest()


def queue_checkpoint(run: TrackedRun, epoch: int, content: bytes, metrics: dict[str, float]) -> None:
    path, sha256 = write_checkpoint(run.folder, content)
    run.checkpoint(
        f"epoch-{epoch:03d}",
        path,
        sha256=sha256,
        step=100 * (epoch + 1),
        metrics=metrics,
        tags={"epoch": epoch},
        dataset=VAL,
    )


def queue_whole_life(run: TrackedRun) -> None:
    run.params({"lr": 0.01, "architecture": "x" * 300})
    run.tags({"group": "a"})
    run.dataset(*VAL, "/data/bccd", "validation", {"fingerprint": "long " * 20})
    for step in range(1, 201):
        run.metrics({"train/loss": 1 / step, "train/lr": 0.01}, step)
    queue_checkpoint(run, 0, b"weights 0" * 1000, {"val/AP": 0.3, "val/AP50": math.nan})
    queue_checkpoint(run, 1, b"weights 1" * 1000, {"val/AP": 0.5, "val/AP50": 0.8})
    run.metrics({"val/extra": 1.0}, 200, checkpoint="epoch-001", dataset=VAL)
    (run.folder / "notes.txt").write_text("hello")
    run.file(run.folder / "notes.txt", "figures")
    Image.new("RGB", (600, 400)).save(run.folder / "picture.png")
    run.image(run.folder / "picture.png", "predictions/first", 200)
    run.text("diff", "code/diff.patch")
    run.description("# A run")
    run.end("FINISHED")


def rows(store, table: str) -> list[tuple]:
    with sqlite3.connect(store.root / "mlflow.db") as database:
        return sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)


TABLES = ("runs", "metrics", "latest_metrics", "params", "tags", "inputs", "input_tags", "datasets")
MODEL_TABLES = ("logged_models", "logged_model_metrics", "logged_model_tags", "logged_model_params")


def contents(store) -> dict[str, list[tuple]]:
    return {table: rows(store, table) for table in TABLES + MODEL_TABLES}


@pytest.mark.slow  # mlflow is imported twice, and makes a database
def test_two_processes_may_create_the_database_at_once(tmp_path):
    root = tmp_path / "repo"
    root.mkdir()
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tracking.store import open_store\n"
    script += f"from pathlib import Path; print(open_store(Path({str(root)!r})).experiment('first'))"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    start = [sys.executable, "-c", script]
    both = [
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=500) for process in both]
    assert outputs == [("1\n", "")] * 2  # and mlflow's own chatter is in neither stream


def test_a_whole_run_arrives_and_arrives_once(store, started):
    queue_whole_life(started)
    assert sync(started.folder, store)["trouble"] is None
    assert not any((started.folder / "outbox").iterdir())
    once = contents(store)
    # The offset is lost twice: the whole journal is delivered again, its spool files long gone.
    for _ in range(2):
        started.journal.acknowledge(0)
        summary = sync(started.folder, store)
        assert summary["trouble"] is None and summary["unsent"]["refused"] == 0
        assert contents(store) == once

    run = store.run(started.run_id)
    assert (run.name, run.status, run.experiment) == ("baseline", "FINISHED", "blood")
    assert run.params["lr"] == "0.01" and run.tags["group"] == "a" and run.tags["seed"] == "1"
    assert run.datasets[0]["name"] == VAL[0] and run.datasets[0]["context"] == "validation"
    history = store.client.get_metric_history(started.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 201)]
    nans = store.client.get_metric_history(started.run_id, "val/AP50")
    assert [(point.step, math.isnan(point.value)) for point in nans] == [(100, True), (200, False)]
    artifacts = {
        entry.path for folder in ("figures", "code") for entry in store.client.list_artifacts(run.run_id, folder)
    }
    assert artifacts == {"figures/notes.txt", "code/diff.patch"}
    images = [entry.path for entry in store.client.list_artifacts(run.run_id, "images")]
    assert len([path for path in images if "+step+200+" in path]) == 2 and run.tags["mlflow.loggedImages"] == "True"


def test_checkpoints_are_read_back_with_their_metrics(store, started):
    queue_whole_life(started)
    sync(started.folder, store)
    first, second = store.checkpoints(started.run_id)
    assert (first.name, first.epoch, first.step, first.score) == ("epoch-000", 0, 100, 0.3)
    assert first.metrics == {"val/AP": 0.3} and first.tags["nonfinite"] == "1"
    assert (second.epoch, second.metrics) == (1, {"val/AP": 0.5, "val/AP50": 0.8, "val/extra": 1.0})
    best = max(store.checkpoints(started.run_id, metric="val/AP50"), key=lambda checkpoint: checkpoint.score or 0)
    assert best.model_id == second.model_id
    outputs = store.client.get_run(started.run_id).outputs.model_outputs
    assert sorted(output.step for output in outputs) == [100, 200]


def test_the_local_upload_is_a_link_and_the_download_is_not(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    published = started.folder / "last.pth"
    sync(started.folder, store)
    (checkpoint,) = store.checkpoints(started.run_id)
    stored = (
        store.root / "mlartifacts" / "blood" / "models" / checkpoint.model_id / "artifacts/artifacts/checkpoint.pth"
    )
    assert stored.samefile(published)
    assert [entry.name for entry in stored.parent.iterdir()] == ["checkpoint.pth"]
    restored = store.download(checkpoint, store.root / "models" / "checkpoint.pth")
    assert restored.read_bytes() == b"weights" and not restored.samefile(stored)
    assert [entry.name for entry in restored.parent.iterdir()] == ["checkpoint.pth"]


def test_the_store_holds_what_is_really_there(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    sync(started.folder, store)
    (checkpoint,) = store.checkpoints(started.run_id)
    assert store.holds(checkpoint)
    (stored,) = (store.root / "mlartifacts").rglob("checkpoint.pth")
    stored.unlink()
    stored.write_bytes(b"w3ights")
    assert not store.holds(checkpoint)
    stored.unlink()
    assert not store.holds(checkpoint)


def test_a_damaged_or_missing_artifact_is_refused_and_nothing_is_overwritten(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    sync(started.folder, store)
    (checkpoint,) = store.checkpoints(started.run_id)
    target = store.root / "checkpoint.pth"
    target.write_bytes(b"precious")
    stored = next((store.root / "mlartifacts").rglob("checkpoint.pth"))
    stored.unlink()
    stored.write_bytes(b"weighty")
    with pytest.raises(DamagedArtifact, match="damaged in the store"):
        store.download(checkpoint, target)
    stored.unlink()
    with pytest.raises(DamagedArtifact, match="its file is gone"):
        store.download(checkpoint, target)
    assert target.read_bytes() == b"precious" and DamagedArtifact.exit_code == 3
    assert {entry.name for entry in store.root.iterdir()} >= {"checkpoint.pth"}
    assert not [entry for entry in store.root.iterdir() if entry.name.startswith(".checkpoint")]


def test_a_delivery_broken_off_inside_a_checkpoint_is_completed(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    operation = next(started.journal.pending())[1]
    store.client.create_logged_model(
        store.run(started.run_id).experiment_id,
        operation["name"],
        started.run_id,
        tags=operation["tags"],
        model_type="checkpoint",
    )
    assert store.checkpoints(started.run_id) == []  # created, not ready
    assert store.checkpoints("f" * 32) == [] and not store.knows("f" * 32) and store.knows(started.run_id)
    sync(started.folder, store)
    assert len(store.checkpoints(started.run_id)) == 1 and len(rows(store, "logged_models")) == 1


def test_one_refused_value_does_not_hold_up_the_rest(store, started):
    started.params({"lr": 1, "epochs": 2})
    sync(started.folder, store)
    started.params({"lr": 2, "seed": 3})  # a parameter cannot change
    started.journal.append({"op": "metrics", "step": 1, "metrics": {"bad[name]": 1.0, "train/loss": 2.0}})
    started.journal.append({"op": "nonsense"})
    started.metrics({"train/loss": 1.0}, 2)
    summary = sync(started.folder, store)
    assert summary["trouble"] is None and summary["unsent"]["refused"] == 3 and summary["unsent"]["operations"] == 0
    run = store.run(started.run_id)
    assert run.params == {"lr": "1", "epochs": "2", "seed": "3"} and run.metrics["train/loss"] == 1.0
    assert [point.value for point in store.client.get_metric_history(started.run_id, "train/loss")] == [2.0, 1.0]
    reasons = [refusal["reason"] for refusal in Journal(started.folder).refused()]
    assert "INVALID_PARAMETER_VALUE" in reasons[0] and "nonsense" in reasons[2]


def test_a_deleted_run_keeps_its_journal(store, started):
    started.metrics({"train/loss": 1.0}, 1)
    store.client.delete_run(started.run_id)
    summary = sync(started.folder, store)
    assert "deleted" in summary["trouble"] and summary["unsent"]["operations"] == 1
    store.client.restore_run(started.run_id)
    assert sync(started.folder, store)["delivered"] == 1


def test_a_note_that_a_user_edited_stays(store, started):
    started.description("first")
    started.description("second")
    sync(started.folder, store)
    assert store.run(started.run_id).tags["mlflow.note.content"] == "second"
    store.client.set_tag(started.run_id, "mlflow.note.content", "mine")
    started.description("third")
    sync(started.folder, store)
    assert store.run(started.run_id).tags["mlflow.note.content"] == "mine"


def test_a_resumed_run_is_running_whatever_end_was_still_to_be_delivered(store, started):
    started.end("KILLED")
    assert store.resume_run(started.run_id) == 1
    resumed = TrackedRun(started.folder, started.run_id)
    sync(started.folder, store)
    assert store.run(started.run_id).status == "RUNNING" and store.run(started.run_id).tags["resumed"] == "1"
    resumed.end("FINISHED")
    sync(started.folder, store)
    assert store.run(started.run_id).status == "FINISHED"
    assert store.resume_run(started.run_id) == 2


def test_a_dead_run_ends_when_its_heart_stopped(store, started):
    store.client.set_tag(started.run_id, "heartbeat", json.dumps({"time": 1_234_567}))
    assert store.end_dead(started.run_id, ()) and not store.end_dead(started.run_id, ())
    run = store.run(started.run_id)
    assert (run.status, run.end_time) == ("KILLED", 1_234_567)


def test_the_sender_follows_the_journal(store, started):
    sender = Sender(started.folder, store, heartbeat=lambda: {"epoch": 3, "step": 42})
    sender.start()
    for step in range(50):
        started.metrics({"train/loss": float(step)}, step)
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    assert sender.finish(timeout_seconds=120), sender.trouble
    deadline = time.monotonic() + 120
    while "heartbeat" not in store.run(started.run_id).tags and time.monotonic() < deadline:
        time.sleep(0.1)
    sender.stop()
    assert not sender.is_alive() and sender.trouble is None
    assert len(store.client.get_metric_history(started.run_id, "train/loss")) == 50
    heartbeat = json.loads(store.run(started.run_id).tags["heartbeat"])
    assert heartbeat["pid"] == os.getpid() and heartbeat["epoch"] == 3
    assert Journal(started.folder).unsent()["operations"] == 0


def test_the_sender_says_when_another_process_delivers(store, started):
    script = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom tracking.journal import Journal\n"
        f"Journal({str(started.folder)!r}).lock(); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        started.tags({"a": "b"})
        assert "another process" in sync(started.folder, store)["trouble"]
        sender = Sender(started.folder, store)
        sender.start()
        assert not sender.finish(timeout_seconds=5) and "another process" in sender.trouble
    finally:
        other.kill()
        other.communicate()
    assert sender.finish(timeout_seconds=10)
    sender.stop()


def test_words_that_name_a_run(store):
    ids = [store.create_run("blood", name)[0] for name in ("one", "two", "two", "o'neil")]
    assert store.find_run(ids[0]) == store.find_run("one") == ids[0]
    assert store.find_run(ids[1][:12]) == ids[1]
    assert store.find_run("o'neil") == ids[3]
    with pytest.raises(RunUnknown, match=f"(?s){ids[2]}.*{ids[1]}"):
        store.find_run("two")
    with pytest.raises(RunUnknown, match=f"(?s)newest are.*{ids[0]}"):
        store.find_run("three")
    with pytest.raises(
        RunUnknown, match=f"Names are given whole; so begin:\n  {ids[2]}  two  [A-Z]*\n  {ids[1]}  two  [A-Z]*$"
    ):
        store.find_run("tw")
    with pytest.raises(RunUnknown, match="newest are"):
        store.find_run("t_")  # no pattern
    with pytest.raises(RunUnknown, match="newest are"):
        store.find_run(ids[0][:3])
    with pytest.raises(RunUnknown, match="no runs yet"):
        store.find_run("three", experiment="Default")
    with pytest.raises(RunUnknown, match="blood"):
        store.find_run("one", experiment="faces")
    assert RunUnknown.exit_code == 2


def test_a_prefix_of_two_runs_is_ambiguous(store):
    ids = [store.create_run("blood", None)[0] for _ in range(2)]
    alike = ["abcd" + run_id[4:] for run_id in ids]
    with sqlite3.connect(store.root / "mlflow.db") as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("DELETE FROM tags")
        for run_id, new_id in zip(ids, alike, strict=True):
            database.execute("UPDATE runs SET run_uuid = ? WHERE run_uuid = ?", (new_id, run_id))
    with pytest.raises(RunUnknown, match=f"(?s)several.*{alike[1]}.*{alike[0]}"):
        store.find_run("abcd")
    assert store.find_run(alike[0][:20]) == alike[0]


def test_a_registered_checkpoint_is_found_by_its_alias(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    sync(started.folder, store)
    (checkpoint,) = store.checkpoints(started.run_id)
    uri = store.register(checkpoint, "blood-cells", "champion")
    assert store.register(checkpoint, "blood-cells", "champion") == uri == "models:/blood-cells@champion"
    assert len(rows(store, "model_versions")) == 1
    found = store.find(uri)
    assert (found.run_id, found.model_id) == (started.run_id, checkpoint.model_id)
    queue_checkpoint(started, 1, b"better weights", {"val/AP": 0.5})
    sync(started.folder, store)
    for word, name in ((uri, "epoch-000"), (started.run_id, "epoch-001")):
        path, fetched = fetching.fetch(store, word, "best", "val/AP", store.root / "fetched.pth")
        assert (fetched.name, path.read_bytes() == b"weights") == (name, name == "epoch-000")
    with pytest.raises(RunUnknown, match="champion"):
        store.find("models:/blood-cells@loser")
    with pytest.raises(RunUnknown, match="blood-cells"):
        store.find("models:/face-masks@champion")


def test_an_evaluation_is_linked_to_its_checkpoint(store, started):
    queue_checkpoint(started, 0, b"weights", {"val/AP": 0.3})
    sync(started.folder, store)
    (checkpoint,) = store.checkpoints(started.run_id)
    report = store.root / "report.json"
    report.write_text("{}")
    git = ["git", "-C", store.root, "-c", "user.name=n", "-c", "user.email=e@x"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "code", "--no-gpg-sign"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    run_id = store.log_evaluation(
        {"eval/bccd/test/AP": 0.25},
        experiment="blood",
        source_run_id=started.run_id,
        step=100,
        params={"split": "test"},
        dataset=("bccd-test", "d" * 64),
        checkpoint=checkpoint,
        files={report: None},
    )
    run = store.client.get_run(run_id)
    assert [model.model_id for model in run.inputs.model_inputs] == [checkpoint.model_id]
    assert run.data.tags["mlflow.source.git.commit"] == commit
    assert run.data.tags["source_run_id"] == started.run_id and run.info.status == "FINISHED"
    (checkpoint,) = store.checkpoints(started.run_id)
    assert checkpoint.metrics == {"val/AP": 0.3, "eval/bccd/test/AP": 0.25}
    assert [entry.path for entry in store.client.list_artifacts(run_id)] == ["report.json"]
    unlinked = store.log_evaluation({"eval/x/val/AP": 0.1}, experiment="blood", source_run_id="elsewhere")
    assert store.run(unlinked).metrics == {"eval/x/val/AP": 0.1}
    for newest in (peek.newest_runs(store.uri), ask.newest_runs(store)):
        assert [run["run_id"] for run in newest] == [started.run_id]


def test_a_peek_agrees_with_the_store(store, started):
    assert peek.peek_checkpoints(store.uri, started.run_id) == {"count": 0, "best": None}
    queue_whole_life(started)
    sync(started.folder, store)
    run, checkpoints = peek.peek_run(store.uri, started.run_id), peek.peek_checkpoints(store.uri, started.run_id)
    newest = peek.newest_runs(store.uri)
    assert (run["name"], run["status"], run["experiment"]) == ("baseline", "FINISHED", "blood")
    best = store.checkpoints(started.run_id)[1]
    expected = {"model_id": best.model_id, "name": "epoch-001", "epoch": 1, "metric": "val/AP", "value": 0.5}
    assert checkpoints == {"count": 2, "best": expected}
    assert newest == [run]
    assert ask.peek_run(store, started.run_id) == run
    assert (ask.peek_checkpoints(store, started.run_id), ask.newest_runs(store)) == (checkpoints, newest)
    assert ask.peek_run(store, "f" * 32) is None
    assert peek.peek_run(store.uri, "f" * 32) is None
    assert peek.newest_runs("sqlite:////nowhere/mlflow.db") is None
    (store.root / "broken.db").write_text("not a database")
    assert peek.newest_runs(f"sqlite:///{store.root / 'broken.db'}") is None


def test_the_first_users_of_an_experiment_may_arrange_its_charts_at_once(store):
    """Another process writes the view between MLflow's look whether it is there, and its writing it."""
    import sqlalchemy

    row = (view.TAG, view.overview(), store.experiment("blood"))
    others = []

    def write_first(*_: object) -> None:
        if not others:
            others.append(row)
            with contextlib.closing(sqlite3.connect(store.root / "mlflow.db", isolation_level=None)) as database:
                database.execute("INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)", row)

    sqlalchemy.event.listen(sqlalchemy.orm.Session, "before_flush", write_first)
    try:
        view.arrange_charts(store.client, row[2])
    finally:
        sqlalchemy.event.remove(sqlalchemy.orm.Session, "before_flush", write_first)
    assert others and store.client.get_experiment(row[2]).tags[view.TAG] == row[1]


def test_a_deleted_experiment_is_the_users_to_mend(store):
    store.client.delete_experiment(store.experiment("blood"))
    with pytest.raises(ExperimentDeleted, match="experiments restore"):
        store.experiment("blood")


def test_pages_to_look_at(store, started):
    urls = store.ui_urls(started.run_id)
    assert urls["run"].endswith(f"/runs/{started.run_id}?workflowType=machine_learning")
    assert urls["models"].startswith("http://127.0.0.1:5000/#/experiments/")
    assert shlex.split(urls["command"]) == ["mlflow", "ui", "--backend-store-uri", store.uri]


def test_a_store_that_does_not_open_says_how_to_go_on(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="Start it, with the --backend-store-uri that it had"):
        open_store(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="mkdir"):
        open_store(tmp_path, f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(StoreError, match="does not open"):
        open_store(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert store_uri(tmp_path) == "http://elsewhere:5000" and StoreError.exit_code == 6


@given(st.text(max_size=300))
def test_mlflow_takes_every_mapped_name(text):
    from mlflow.utils.validation import _validate_metric_name, _validate_tag

    _validate_metric_name(metric_name(text))
    _validate_tag(metric_name(text), "")
