"""A tracking server that dies, or hangs, in the middle of a training: no step waits, nothing is lost or doubled."""

import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import restore
import syncing
import train
import workspace
from live_run import LiveRun
from restore import RestoreConfig
from saving import Saver
from tests.conftest import equal, history, last_checkpoint
from tests.contents import everything
from tests.server import Server
from tracking.connection import ENVIRONMENT_DEFAULTS, SERVER_PROBE_SECONDS, import_mlflow
from tracking.run import TrackedRun
from tracking.sender import Sender, sync
from tracking.store import Store
from tracking.store import open_store as open_any
from workspace import RunFolder

# What waits for a server that never answers waits for one of these; what is only slow, for less.
REQUEST_SECONDS = float(ENVIRONMENT_DEFAULTS["MLFLOW_HTTP_REQUEST_TIMEOUT"])


@pytest.fixture
def silent() -> Iterator[str]:
    """The URI of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)  # the kernel accepts them
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_is_named_with_the_way_round_it(home, silent, monkeypatch, run_script):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    began = time.monotonic()
    process = run_script("train.py", "--max-steps", "1")
    assert time.monotonic() - began < REQUEST_SECONDS and process.returncode == 6
    assert f"(unset MLFLOW_TRACKING_URI) and deliver later: python status.py --sync --to {silent}" in process.stderr
    assert not list(home.glob("runs/*/run.json"))


@pytest.mark.slow
def test_what_a_silent_server_does_not_take_holds_nobody_up(home, silent):
    store = Store(silent, home, import_mlflow().MlflowClient(silent))
    assert not store.answers()
    run = TrackedRun(home / "runs" / "r", "r")
    sender = Sender(run.folder, store, heartbeat=lambda: {"step": 1})
    sender.start()
    slowest = 0.0
    for step in range(1, 200):
        began = time.monotonic()
        run.metrics({"train/loss": 1.0}, step)
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.002)
    assert slowest < SERVER_PROBE_SECONDS
    began = time.monotonic()
    assert not sender.finish(1)
    sender.stop()
    assert time.monotonic() - began < REQUEST_SECONDS
    began = time.monotonic()
    summary = sync(run.folder, store, seconds=1)
    assert time.monotonic() - began < REQUEST_SECONDS and summary["trouble"] and summary["unsent"]["metrics"] == 199


def test_the_steps_of_a_run_are_journalled_before_its_checkpoint_and_at_its_end(home, small, monkeypatch):
    """They wait in memory for a moment: a run that resumes from the checkpoint would leave them out."""
    monkeypatch.setattr("live_run.STEPS_EVERY_SECONDS", 3600.0)
    real, seen = Saver._save_last, {}

    def save_last(saver, checkpoint, share):
        saved = real(saver, checkpoint, share)
        seen[checkpoint["step"]] = saver.run.tracked.journal.last_step()
        return saved

    monkeypatch.setattr(Saver, "_save_last", save_last)
    train.main(replace(small, max_steps=6, checkpoint_every="3"))
    assert seen.keys() >= {3, 4, 6} and all(last >= step for step, last in seen.items())


def test_a_step_that_cannot_be_journalled_ends_the_run(home, small, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("live_run.STEPS_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(LiveRun, "log_steps", full)
    with pytest.raises(workspace.WorkspaceError) as caught:
        train.main(small)
    assert caught.value.exit_code == 5


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["for good", "for a while", "hanging"])
def test_a_training_goes_on_when_its_server_is_away(home, small, server, empty_database, monkeypatch, capfd, outage):
    whole = train.main(replace(small, epochs=4))
    weights = last_checkpoint(whole)["model_state_dict"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    at, log_step, leave = LiveRun.at, LiveRun.log_step, LiveRun.__exit__
    waited: dict[object, float] = {}

    def timed(name: object, call, *arguments, **keywords) -> None:
        began = time.monotonic()
        call(*arguments, **keywords)
        waited[name] = waited.get(name, 0.0) + time.monotonic() - began

    def at_step(run, **position):
        if position["step"] == 5:
            server.hang() if outage == "hanging" else server.kill()
        if position["step"] == 11 and outage == "for a while":
            server.start()
        timed(position["step"], at, run, **position)

    with monkeypatch.context() as patched:
        patched.setattr(LiveRun, "at", at_step)
        patched.setattr(LiveRun, "log_step", lambda run, values, step: timed(step, log_step, run, values, step))
        patched.setattr(LiveRun, "__exit__", lambda run, *error: timed("the end", leave, run, *error))
        run_id = train.main(replace(small, epochs=4))
    said = capfd.readouterr().err
    end = waited.pop("the end")
    assert len(waited) == 16 and max(waited.values()) < SERVER_PROBE_SECONDS, waited
    assert equal(last_checkpoint(run_id)["model_state_dict"], weights) and "is finished: best" in said
    if outage == "for a while":
        assert "has not got everything" not in said
    else:
        assert end < REQUEST_SECONDS and "MLflow has not got everything" in said and str(RunFolder(run_id).path) in said
        server.wake() if outage == "hanging" else server.start()
        restore.main(RestoreConfig(run=run_id, output=home / "restored"))
        assert f"sent what run {run_id} still owed {server.uri}" in capfd.readouterr().err

    store = open_any(home, server.uri)
    there = everything(store, run_id)
    assert there["status"] == "FINISHED" and list(there["checkpoints"]) == [f"epoch-{n:03d}" for n in range(4)]
    assert [step for step, _ in history(store, run_id, "train/loss")] == list(range(1, 17))
    assert [step for step, _ in history(store, run_id, "val/AP")] == [4, 8, 12, 16]
    for points in there["points"].values():
        assert [time for _, time, _ in points] == sorted(time for _, time, _ in points)
    RunFolder(run_id).path.joinpath("journal.sent").unlink()  # from the beginning again
    sync(RunFolder(run_id).path, store)
    assert everything(store, run_id) == there

    shutil.copy(empty_database, home / "laptop.db")
    laptop = open_any(home, f"sqlite:///{home}/laptop.db")
    syncing.copy_to(laptop.uri, run_id)
    assert everything(laptop, laptop.find_run(run_id)) == there
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    syncing.copy_to(server.uri, whole)
    local = open_any(home)
    assert everything(store, store.find_run(whole)) == everything(local, whole)
    before = everything(store, store.find_run(whole))
    syncing.copy_to(server.uri, whole)
    assert everything(store, store.find_run(whole)) == before
