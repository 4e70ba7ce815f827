"""Where a resumed run continues: its recovery point on another machine, options that are allowed to change."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import commandline
import status
import train
import workspace
from config import TrainConfig
from defaults import for_resume, resolved
from live_run import LiveRun, Stopped
from models import checkpoint as checkpoints
from tests.conftest import SMALL, STATE, copy_of_repository, equal, history, last_checkpoint, open_store, script_runner
from tracking.errors import TakenOver
from tracking.journal import Journal
from tracking.ownership import Ownership, forget_superseded
from tracking.recovery import recovery_point

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def artifacts(run_id: str, folder: str) -> list[str]:
    return [entry.path for entry in open_store().client.list_artifacts(run_id, folder)]


@pytest.mark.parametrize("how", ["signal", "death"])
def test_a_run_resumes_in_mid_epoch_on_another_machine(home, small, monkeypatch, undisturbed, capfd, how):
    """Without runs/: the recovery point that it left in the store is all there is beside the epochs' checkpoints."""
    config = replace(small, augmentation="standard")
    whole = undisturbed(augmentation="standard")
    real, at_step = LiveRun.at, 6 if how == "signal" else 7

    def at(run, **position):
        real(run, **position)
        if position["step"] == at_step:
            if how == "death":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises((Stopped, KeyboardInterrupt)) as caught:
        patched.setattr(LiveRun, "at", at)
        train.main(replace(config, run_name="part", checkpoint_every="3"))
    if how == "signal":
        assert caught.value.exit_code == 143
    store = open_store()
    part = store.find_run("part")
    assert recovery_point(store.run(part).tags)["step"] == 6
    assert artifacts(part, "recovery") == ["recovery/last.pth"]
    shutil.rmtree(workspace.RunFolder(part).path)
    capfd.readouterr()
    assert train.main(replace(config, run_name="part", resume="auto")) == part
    assert f"resuming run {part} in epoch 1, step 6, from the recovery point in MLflow" in capfd.readouterr().err
    first, second = whole.last, last_checkpoint(part)
    assert [key for key in STATE if not equal(first[key], second[key])] == []
    for key in ("train/loss", "train/lr", "val/AP", "epoch"):
        assert history(whole.store, whole.run_id, key) == history(store, part, key)
    assert artifacts(part, "recovery") == []  # the last checkpoint says more
    assert store.run(part).status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "another hash"])
def test_a_damaged_recovery_point_gives_way_to_the_last_checkpoint(home, small, capfd, how):
    run_id = train.main(replace(small, max_steps=4))
    store = open_store()
    if how == "another hash":  # whole for zip and torch: only the hash tells
        content = last_checkpoint(run_id) | {"step": 6}
        path = home / "last.pth"
        checkpoints.save(content, path)
        store.client.log_artifact(run_id, str(path), "recovery")
    store.client.set_tag(run_id, "recovery", json.dumps({"step": 6, "sha256": "0"}))
    shutil.rmtree(workspace.RunFolder(run_id).path)
    train.main(replace(small, resume=run_id, max_steps=5))
    errors = capfd.readouterr().err
    assert {"gone": "is gone from the store", "another hash": "its hash is another"}[how] in errors
    assert "step 4, from epoch-000 in MLflow" in errors


def test_a_changed_option_bends_the_run_and_is_recorded(home, small, undisturbed, capfd):
    run_id = train.main(replace(small, max_steps=4))
    with pytest.raises(commandline.ConfigError, match="--allow-change lr"):
        train.main(replace(small, resume=run_id, lr=5e-4, max_steps=8))
    bending = replace(small, resume=run_id, lr=5e-4, weight_decay=0.5, max_steps=8)
    train.main(replace(bending, allow_change=("lr", "weight-decay")))
    assert "note: --max-steps 4 → 8, --lr 0.001 → 0.0005, --weight-decay 0.05 → 0.5" in capfd.readouterr().err
    store, whole = open_store(), undisturbed()
    bent, straight = dict(history(store, run_id, "train/lr")), dict(history(whole.store, whole.run_id, "train/lr"))
    assert [bent[step] for step in (1, 4)] == [straight[step] for step in (1, 4)]
    assert [bent[step] for step in (5, 8)] == pytest.approx([straight[step] / 2 for step in (5, 8)])
    assert last_checkpoint(run_id)["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 0.5
    assert "lr 0.001 → 0.0005" in store.run(run_id).tags["changed_at_step_000004"]
    assert store.read_json(run_id, "run.json")["config"]["lr"] == 5e-4
    assert train.main(replace(bending, max_steps=None)) == run_id  # these are its options now


def test_a_job_that_wakes_after_another_took_over_stops_without_writing(
    home, small, monkeypatch, undisturbed, tmp_path
):
    """It sleeps in its sixth step while another checkout, with the same store, resumes the run and finishes it."""
    config, whole = replace(small, run_name="part", checkpoint_every="1"), undisturbed()
    real, seen = LiveRun.at, {}
    monkeypatch.setattr("tracking.ownership.TRUSTED_SECONDS", 0.0)

    def at(run, **position):
        if position["step"] == 6 and not seen:
            seen["journal"] = run.tracked.journal.path
            assert run.sender.finish(120)
            run.sender.stop()  # a process that sleeps sends nothing, and its heart does not beat
            silent = {"time": 1, "host": "elsewhere", "pid": 1, "step": 5}
            run.store.client.set_tag(run.info.run_id, "heartbeat", json.dumps(silent))
            with monkeypatch.context() as other:
                other.setattr(workspace, "RUNS", tmp_path / "other" / "runs")
                other.setattr(workspace, "PUBLISHED", tmp_path / "other" / "checkpoint.pth")
                other.setattr(LiveRun, "at", real)
                train.main(replace(config, resume=run.info.run_id))
            seen["done"] = True
        real(run, **position)

    monkeypatch.setattr(LiveRun, "at", at)
    with pytest.raises(TakenOver, match="went on elsewhere") as caught:
        train.main(config)
    assert caught.value.exit_code == 1 and seen["done"]
    store = open_store()
    part = store.find_run("part")
    assert store.run(part).status == "FINISHED"
    for key in ("train/loss", "val/AP", "epoch"):
        assert history(whole.store, whole.run_id, key) == history(store, part, key)
    assert [one.name for one in store.checkpoints(part)] == ["epoch-000", "epoch-001"]
    workspace.RunFolder(part).update(state="running")  # as if it had been killed in its sleep
    assert workspace.end_dead_runs(store) == []
    assert store.run(part).status == "FINISHED"
    assert status.main(status.StatusConfig())["unsent"]["operations"] == 0


def test_what_waits_from_before_a_run_went_on_elsewhere_is_sent_only_where_it_is_new(tmp_path):
    journal = Journal(tmp_path)
    for step in (5, 6, 7):
        journal.append({"op": "metrics", "step": step, "metrics": {"train/loss": step / 10}, "time": step})
    for name in ("epoch-000", "epoch-001"):
        journal.append({"op": "checkpoint", "name": name, "step": 4, "spool": "x"})
    journal.append({"op": "tags", "tags": {"ended_by": "SIGTERM"}})
    journal.append({"op": "end", "status": "KILLED"})
    forget_superseded(journal, last_step=6, checkpoints={"epoch-000"})
    waiting = [operation for _, operation in journal.pending()]
    assert [(one["op"], one.get("name"), one["step"]) for one in waiting] == [
        ("metrics", None, 7),
        ("checkpoint", "epoch-001", 4),
    ]
    assert waiting[0]["time"] == 7


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Trains as another machine would, which has the store and no run folder."""

    def train_there(config):
        with monkeypatch.context() as other:
            other.setattr(workspace, "RUNS", tmp_path / "other" / "runs")
            other.setattr(workspace, "PUBLISHED", tmp_path / "other" / "checkpoint.pth")
            return train.main(config)

    return train_there


@pytest.mark.slow
def test_a_run_that_went_on_elsewhere_is_resumed_as_it_is_now(home, small, elsewhere):
    """Not with the options that its folder here remembers."""
    run_id = train.main(replace(small, max_steps=4))
    elsewhere(replace(small, resume=run_id, lr=5e-4, allow_change=("lr",), max_steps=6))
    train.main(replace(small, resume=run_id, lr=None, max_steps=8))
    state = last_checkpoint(run_id)
    assert (state["config"]["lr"], state["scheduler_state_dict"]["base_lrs"]) == (5e-4, [5e-4])


@pytest.mark.slow
def test_a_process_that_was_cut_off_stops_once_it_hears_that_another_took_over(home, small, monkeypatch):
    monkeypatch.setattr("tracking.ownership.TRUSTED_SECONDS", 0.0)
    real = LiveRun.at

    def at(run, **position):
        if position["step"] == 3:
            run.store.client.set_tag(run.info.run_id, "owner", "of another machine")
            wait_for(lambda: not run.sender.is_alive())
            monkeypatch.setattr("tracking.ownership.TRUSTED_SECONDS", 1e9)  # it was never silent itself
        real(run, **position)

    monkeypatch.setattr(LiveRun, "at", at)
    with pytest.raises(TakenOver):
        train.main(small)


def test_a_claim_is_ours_by_any_token_of_the_folder_but_a_newer_one(home, small, monkeypatch):
    monkeypatch.setattr("tracking.ownership.TRUSTED_SECONDS", 0.0)
    run_id = train.main(replace(small, max_steps=1))
    store, folder = open_store(), workspace.RunFolder(run_id).path
    before = store.run(run_id).tags["owner"]
    first = Ownership(folder, store, run_id)
    assert not first.claim()
    store.client.set_tag(run_id, "owner", before)  # the store was put back from a backup
    first.require()
    assert not Ownership(folder, store, run_id).claim()  # a second process, by a file system that shares no locks
    with pytest.raises(TakenOver):
        first.require()


def test_a_damaged_newest_state_gives_way_to_an_older_one(home, small, capfd):
    """last.pth and the newest checkpoint of a local store are one file on the disk."""
    run_id = train.main(replace(small, max_steps=5))
    with workspace.RunFolder(run_id).last.open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    capfd.readouterr()
    train.main(replace(small, resume=run_id, max_steps=6))
    errors = capfd.readouterr().err
    assert "is corrupt" in errors and "An older one is tried" in errors and "from epoch-000 in MLflow" in errors
    assert open_store().run(run_id).status == "FINISHED"


def test_milestones_that_nobody_chose_follow_the_schedule_and_the_epochs():
    chosen, open_ = {"schedule": "multistep", "milestones": (5, 9), "epochs": 12}, ("milestones",)
    stored = resolved(TrainConfig(data="x", **chosen), cores=2)[0]
    asked = replace(stored, resume="run", allow_change=("schedule",))
    assert for_resume(stored, replace(asked, schedule="cosine"), open_).milestones is None
    cosine = replace(stored, schedule="cosine", milestones=None)
    assert for_resume(
        cosine, replace(cosine, resume="run", schedule="multistep", allow_change=("schedule",))
    ).milestones == (8, 11)
    assert for_resume(stored, replace(asked, epochs=24), open_).milestones == (16, 22)
    assert for_resume(stored, replace(asked, epochs=24)).milestones == (5, 9)  # somebody chose them


@pytest.mark.slow
def test_a_stopped_process_that_is_continued_leaves_its_run_to_the_other_machine(empty_database, coco_folder, tmp_path):
    """SIGSTOP, another checkout takes over and finishes, SIGCONT."""
    first, second = (copy_of_repository(tmp_path / name) for name in ("first", "second"))
    shutil.copy(empty_database, first / "mlflow.db")
    uri = f"sqlite:///{first}/mlflow.db"
    line = ("--data", str(coco_folder), *SMALL, "--epochs", "20", "--run-name", "slept", "--checkpoint-every", "1")
    line += ("--resume", "auto")
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, str(first / "train.py"), *line]
        sleeper = subprocess.Popen(command, cwd=first, stderr=log, env=os.environ | {"MLFLOW_TRACKING_URI": uri})
    store = open_at(first, uri)
    try:
        wait_for(lambda: any(store.checkpoints(run.run_id) for run in store.runs_named("slept", "faster-rcnn")))
        stop_between_writes(sleeper, first / "mlflow.db")
        run_id = store.find_run("slept")
        told = script_runner(first)("status.py", MLFLOW_TRACKING_URI=uri).stdout
        assert f"its process is suspended. Wake it: kill -CONT {sleeper.pid}" in told
        refused = script_runner(first)("train.py", "--resume", run_id, MLFLOW_TRACKING_URI=uri)
        assert refused.returncode == 2 and f"is suspended (process {sleeper.pid})" in refused.stderr
        store.client.set_tag(run_id, "heartbeat", json.dumps({"time": 1, "host": "away", "pid": 1}))
        other = script_runner(second)("train.py", *line, MLFLOW_TRACKING_URI=uri)
        assert other.returncode == 0, other.stderr
        assert f"resuming run {run_id}" in other.stderr
        taken = history(store, run_id, "train/loss")
        time.sleep(31)  # it trusts its claim for 30 s
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(300) == 1
    finally:
        sleeper.kill()
        sleeper.wait()
    assert "went on elsewhere" in (tmp_path / "log").read_text()
    assert history(store, run_id, "train/loss") == taken
    assert [step for step, _ in taken] == list(range(1, 81))
    assert store.run(run_id).status == "FINISHED"


def stop_between_writes(process, database):
    """SIGSTOP, but not where the process holds the database's lock: nobody else could write until it goes on."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        try:
            with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
            return
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)


def open_at(folder, uri):
    from tracking import store

    return store.open_store(folder, uri)


def wait_for(holds, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_another_cpu_is_said_and_recorded(home, small, monkeypatch, capfd):
    run_id = train.main(replace(small, max_steps=2))
    monkeypatch.setattr("tracking.environment.cpu_model", lambda: "Another CPU")
    train.main(replace(small, resume=run_id, max_steps=3))
    assert "this is Another CPU: the result is as right, but not the same bit for bit" in capfd.readouterr().err
    assert "this is Another CPU" in open_store().run(run_id).tags["changed_at_step_000002"]
