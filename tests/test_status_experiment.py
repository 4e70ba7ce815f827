"""status.py --experiment: the runs of an experiment, whoever trained them, and what can be said of each."""

import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import series
import status
import train
import workspace
from commandline import ConfigError
from status import StatusConfig
from tests.conftest import ROOT, open_store
from tracking.errors import StoreError
from tracking.records import HEARTBEAT, PROGRESS
from workspace import RunFolder, WorkspaceError

BEST = {"name": "epoch-001", "epoch": 1, "step": 8, "metric": "val/AP", "value": 0.5}
POSITION = {"epoch": 1, "step": 10, "epochs": 3, "total_steps": 12, "steps_per_epoch": 4, "seconds": 60.0}


def report(**options) -> dict:
    return status.main(StatusConfig(experiment="e", **options))


def only_run(**options) -> dict:
    (run,) = report(**options)["runs"]
    return run


def table(found: dict) -> list[list[str]]:
    """The cells of the report's runs, header first."""
    lines = [line for line in series.text(found).splitlines() if line.startswith("  ")]
    return [re.split(" {2,}", line.strip()) for line in lines]


def stored(name: str = "a", run_status: str = "RUNNING", *, beat: dict | None = None, **tags) -> str:
    """A run as another machine leaves it in the store."""
    store = open_store()
    beat = beat and {HEARTBEAT: json.dumps({"host": "node7", "pid": 1, "time": 1000 * time.time()} | beat)}
    progress = {key: json.dumps(value) for key, value in tags.items() if isinstance(value, dict)}
    run_id, _ = store.create_run("e", name, {**tags, **progress, **(beat or {})})
    if run_status != "RUNNING":
        store.end(run_id, run_status)
    return run_id


@pytest.mark.slow
def test_trained_runs_and_their_group_from_here_and_from_elsewhere(home, small, capfd):
    small = replace(small, max_steps=4)
    line = replace(small, experiment="e", group="lr1", tag=("who=me",))
    ids = [train.main(replace(line, seed=seed, run_name=f"lr1-seed{seed}")) for seed in range(2)]
    stopped = train.main(replace(line, group=None, max_steps=3, run_name="short"))
    found = report()
    assert [run["run_id"] for run in found["runs"]] == [stopped, *reversed(ids)]
    assert {run["state"] for run in found["runs"]} == {"finished"}
    first = found["runs"][-1]
    best = RunFolder(ids[0]).state()["best"]
    assert first["best"] == {key: best[key] for key in ("name", "epoch", "metric", "value")}
    assert (first["epoch"], first["epochs"], first["step"], first["total_steps"]) == (0, 2, 4, 4)
    assert first["tags"]["who"] == "me" and first["seconds"] > 0 and first["seconds_left"] is None
    values = [run["best"]["value"] for run in found["runs"][1:]]
    (group,) = found["groups"]
    assert (group["group"], group["runs"], group["finished"], group["metric"]) == ("lr1", 2, 2, "val/AP")
    assert (group["mean"], group["standard_deviation"]) == (statistics.fmean(values), statistics.stdev(values))
    assert group["best"]["value"] == max(values)
    assert found["next"] == "python restore.py best --experiment e"
    header, short, *_, of_group = table(found)
    assert header == ["run", "id", "group", "state", "epoch", "best", "time"]
    assert short[:5] == ["short", stopped[:8], "-", "finished", "step 3 of 3"]
    assert of_group[:2] == ["lr1", "2 runs, 2 finished"] and "±" in of_group[2]
    assert report(remote=True) == found

    shutil.rmtree(home / "runs")  # as another machine sees them
    again = report()
    for told in (*found["runs"], *again["runs"]):
        del told["updated"], told["seconds"]  # the store is told of the end a moment before it is over
    assert again["runs"] == found["runs"]
    assert again["groups"] == found["groups"]


def test_a_live_run_says_its_position_and_the_time_left(home, capsys):
    folder = RunFolder("a" * 32)
    state = POSITION | {"run_name": "a", "experiment": "e", "tracking_uri": open_store().uri, "state": "running"}
    folder.update(**state | {"started": time.time(), "seconds_left": 3600.0, "best": BEST, "host": "here", "pid": 1})
    with folder.locked():
        found = report()
        (run,) = found["runs"]
        assert (run["state"], run["run_status"], run["group"]) == ("running", None, None)
        assert 3500 < run["seconds_left"] <= 3600
        assert table(found)[1][3:] == ["running", "2 of 3", "val/AP 0.5000 in epoch-001", "about 1h00m left"]
        assert found["next"] == "python status.py --experiment e"
        assert status.script(StatusConfig(checkpoint=workspace.PUBLISHED)) == 1
        assert "about 1h00m left" in capsys.readouterr().out
        assert status.script(StatusConfig(experiment="e")) == 0
    run = only_run()
    assert (run["state"], run["seconds_left"], run["resumable"]) == ("interrupted", None, False)
    folder.last.touch()
    assert only_run()["resumable"]
    assert report()["next"] == f"python train.py --resume {folder.run_id}"


# What the store says of a run that was trained elsewhere, and what is said of it: state, resumable, a word of the note.
ELSEWHERE = {
    "alive": ({"beat": POSITION | {"seconds_left": 700.0}}, "running", False, "on node7"),
    "started": ({"beat": POSITION | {"time": 0}}, "running", False, "on node7"),  # a moment ago
    "stopped": ({"run_status": "KILLED", PROGRESS: POSITION}, "interrupted", True, "resumable"),
    "stopped early on": ({"run_status": "KILLED", PROGRESS: POSITION | {"epoch": -1}}, "interrupted", False, "nothing"),
    "failed": ({"run_status": "FAILED", "ended_by": "out of memory.\nmore"}, "failed", False, "out of memory; nothing"),
    "finished": ({"run_status": "FINISHED", PROGRESS: POSITION | {"step": 12}}, "finished", False, ""),
    "finished by --patience": ({"run_status": "FINISHED", PROGRESS: POSITION}, "finished", False, "stopped early"),
    "another program's": ({"run_status": "FINISHED", PROGRESS: "by hand"}, "finished", False, ""),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_the_store_alone_knows(home, case):
    tags, state, resumable, note = ELSEWHERE[case]
    stored(**tags)
    run = only_run()
    assert (run["state"], run["resumable"]) == (state, resumable)
    assert note in run["note"] and bool(note) == bool(run["note"])
    assert only_run(remote=True).items() >= {key: run[key] for key in run if key != "seconds_left"}.items()
    series.text(report())


def test_a_run_that_is_silent_is_called_so_in_words(home):
    run_id = stored(beat=POSITION | {"time": 1000 * (time.time() - 7500), "best": BEST})
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("UPDATE runs SET start_time = start_time - 8000000")
    run = only_run()
    assert (run["state"], run["run_status"], run["resumable"]) == ("interrupted", "RUNNING", True)
    assert run["note"] == "no sign of life for about 2h05m: dead, or cut off from the store; resumable"
    assert report()["next"] == f"python train.py --resume {run_id}"


def test_a_run_that_died_here_is_dead_though_its_heart_beat_a_moment_ago(home):
    run_id = stored(beat=POSITION | {"host": "here", "pid": 7, "time": 1000 * time.time()})
    uri = open_store().uri
    RunFolder(run_id).update(**POSITION, experiment="e", tracking_uri=uri, host="here", pid=7, state="running")
    run = only_run()
    assert (run["state"], run["run_status"]) == ("interrupted", "RUNNING")
    assert "its process died" in run["note"]


def test_a_run_that_went_on_elsewhere_is_told_by_the_store(home):
    run_id = stored(run_status="FINISHED", beat={"step": 11}, progress=POSITION | {"step": 12, "epoch": 2})
    folder = RunFolder(run_id)
    folder.update(**POSITION, experiment="e", tracking_uri=open_store().uri, host="here", pid=7, state="interrupted")
    assert (only_run()["state"], only_run()["epoch"]) == ("interrupted", 1)  # the last word was spoken here
    state = folder.state() | {"updated": time.time() - 100}
    (folder.path / "run.json").write_text(json.dumps(state))
    assert (only_run()["state"], only_run()["epoch"], only_run()["host"]) == ("finished", 2, "node7")


def test_evaluations_and_deleted_runs_are_left_out(home):
    kept = stored()
    stored(name="evaluation", run_status="FINISHED", kind="evaluation")
    deleted = stored()
    RunFolder(deleted).update(experiment="e", tracking_uri=open_store().uri, state="finished")
    open_store().client.delete_run(deleted)
    assert [run["run_id"] for run in report()["runs"]] == [kept]
    assert [run["run_id"] for run in report(remote=True)["runs"]] == [kept]


def test_a_groups_numbers_are_of_its_finished_runs_and_the_best_group_comes_first(home):
    for group, value, run_status in (("a", 0.1, "FINISHED"), ("b", 0.3, "FINISHED"), ("b", 0.5, "FINISHED")):
        stored(run_status=run_status, progress=POSITION | {"best": BEST | {"value": value}}, group=group)
    stored(run_status="KILLED", progress=POSITION | {"best": BEST | {"value": 0.9}}, group="b")
    stored(group="c")
    b, a, c = report()["groups"]
    assert (b["group"], b["runs"], b["finished"], b["mean"], b["best"]["value"]) == ("b", 3, 2, 0.4, 0.5)
    assert b["standard_deviation"] == pytest.approx(0.1414, abs=1e-4)
    assert (a["mean"], a["standard_deviation"], c["finished"], c["mean"], c["best"]) == (0.1, None, 0, None, None)


@pytest.mark.parametrize("remote", [False, True])
def test_an_unknown_experiment_names_those_there_are(home, remote):
    with_nothing = status.main(StatusConfig(experiment="x", remote=remote))
    assert (with_nothing["runs"], with_nothing["next"]) == ([], "python train.py --experiment x")
    assert status.script(StatusConfig(experiment="x", remote=remote)) == 1
    stored()
    with pytest.raises(WorkspaceError, match=r"There are: e$") as caught:
        status.main(StatusConfig(experiment="x", remote=remote))
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="--verify"):
        StatusConfig(experiment="e", verify=True)


def test_a_repository_without_a_store_has_none_afterwards(home):
    (home / "mlflow.db").unlink()
    assert status.script(StatusConfig(experiment="x", remote=True)) == 1
    assert list(home.iterdir()) == []


def test_a_store_that_does_not_answer_is_said_so(home, monkeypatch):
    uri = "http://127.0.0.1:1"
    RunFolder("b" * 32).update(**POSITION, experiment="e", tracking_uri=open_store().uri, state="finished")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="--remote") as caught:
        report()
    assert caught.value.exit_code == 6 and "another store" in str(caught.value)
    RunFolder("c" * 32).update(**POSITION, experiment="e", tracking_uri=uri, state="finished")
    found = report()
    assert [run["run_id"] for run in found["runs"]] == ["c" * 32] and not found["store_answered"]
    assert len(found["notes"]) == 2 and "--remote" in series.text(found)


def test_two_hundred_runs_are_told_at_once_without_the_heavy_libraries(home):
    run_id = stored(run_status="FINISHED", progress=POSITION | {"best": BEST}, group="g")
    with sqlite3.connect(home / "mlflow.db") as database:
        copies = [f"{number:032x}" for number in range(199)]
        for table_name, key in (("runs", "run_uuid"), ("tags", "run_uuid")):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table_name})") if row[1] != key]
            names = ", ".join(columns)
            copy = f"INSERT INTO {table_name} ({key}, {names}) SELECT ?, {names} FROM {table_name} WHERE {key} = ?"
            database.executemany(copy, [(one, run_id) for one in copies])
    for one in copies[::2]:
        RunFolder(one).update(**POSITION, experiment="e", tracking_uri=open_store().uri, state="finished", best=BEST)
    assert len(report()["runs"]) == 200
    code = "import sys, pathlib, workspace, status\n"
    code += "workspace.ROOT = pathlib.Path(sys.argv[1]); workspace.RUNS = workspace.ROOT / 'runs'\n"
    code += "assert status.script(status.StatusConfig(experiment='e')) == 0\n"
    code += "assert not {'torch', 'mlflow', 'numpy'} & set(sys.modules)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-c", code, str(home)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "200 runs, 200 finished  val/AP 0.5000 ± 0.0000" in process.stdout
