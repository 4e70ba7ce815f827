"""Sweeps: many runs in one process or by a shell loop, interrupted and started again."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import engine
import train
import workspace
from commandline import ConfigError
from config import TrainConfig
from live_run import Stopped
from recipes import sweep
from tests.conftest import SMALL, copy_of_repository, open_store

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FOUR = {"rates": (0.001, 0.002), "augmentations": ("flip",), "seeds": (0, 1)}


@pytest.fixture
def base(home, small):
    return replace(small, epochs=1, experiment="sweep", publish="never")


def held() -> tuple:
    """What a run could leave behind in this process: signal handlers, threads, files of its folder, locks."""
    files = {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}
    of_runs = [file for file in files if "/runs/" in file or "/faster_rcnn/" in file]
    return [signal.getsignal(one) for one in HANDLED], threads(), of_runs, set(workspace._held)


def threads() -> list[str]:
    """Those of tracking that are left; a sender that is ending has a minute for it."""
    deadline = time.monotonic() + 60
    while (
        left := [one.name for one in threading.enumerate() if "tracking" in one.name]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def swept() -> dict[str, str]:
    """Status of each run by its name."""
    return {run.name: run.status for run in open_store().newest_runs(20) if "group" in run.tags}


@pytest.mark.slow
def test_a_sweep_in_one_process_leaves_nothing_behind_and_is_done_the_second_time(base, capfd):
    base = replace(base, max_steps=1)
    train.main(base)  # what is started once for all runs is there now
    before = held()
    scores = sweep.main(base, **FOUR)
    assert held() == before
    assert {group: len(values) for group, values in scores.items()} == {"lr0.001-flip": 2, "lr0.002-flip": 2}
    names = [f"lr{lr}-flip-seed{seed}" for lr in (0.001, 0.002) for seed in (0, 1)]
    assert swept() == dict.fromkeys(names, "FINISHED")
    store = open_store()
    for run in store.newest_runs(4):
        assert run.name == f"{run.tags['group']}-seed{run.params['seed']}"
        assert run.tags["group"] == f"lr{run.params['lr']}-flip"
        assert [one.step for one in store.checkpoints(run.run_id)] == [1]
    capfd.readouterr()
    assert sweep.main(base, **FOUR) == scores
    assert capfd.readouterr().err.count("is finished. To train longer raise --max-steps") == 4
    assert len(open_store().newest_runs(20)) == 5


@pytest.mark.slow
def test_a_sweep_stopped_by_a_signal_goes_on_where_it_was(base, monkeypatch):
    whole = sweep.main(replace(base, experiment="whole"), **FOUR)
    before, steps = held(), 0
    real_steps = engine.train_steps

    def interrupted(*arguments, **keywords):
        nonlocal steps
        for step in real_steps(*arguments, **keywords):
            steps += 1
            if steps == 6:  # the second of the second run
                signal.raise_signal(signal.SIGTERM)
            yield step

    monkeypatch.setattr(engine, "train_steps", interrupted)
    with pytest.raises(Stopped) as stopped:
        sweep.main(base, **FOUR)
    assert stopped.value.exit_code == 143
    assert held() == before
    in_sweep = [run for run in open_store().newest_runs(20) if run.experiment == "sweep"]
    assert [(run.name, run.status) for run in in_sweep] == [
        ("lr0.001-flip-seed1", "KILLED"),
        ("lr0.001-flip-seed0", "FINISHED"),
    ]
    assert sweep.main(base, **FOUR) == whole
    assert steps == 16  # none was trained twice
    assert set(swept().values()) == {"FINISHED"}


def test_a_run_that_fails_is_named_and_passed_over(base, capfd, monkeypatch):
    config = replace(base, optimizer="sgd", warmup_steps=0, max_steps=2)
    scores = sweep.main(config, rates=(1e12, 0.001), augmentations=("flip", "nosuch"), seeds=(0,))
    assert [[value is None for value in values] for values in scores.values()] == [[True], [True], [False], [True]]
    said = capfd.readouterr().err
    assert "failed: lr1000000000000.0-flip-seed0: NonFiniteLoss: " in said
    assert "failed: lr0.001-nosuch-seed0: " in said
    lines = sweep.table(scores, "val/AP").splitlines()
    assert len(lines) == 4 and sum(line.endswith("val/AP - (0 of 1 runs)") for line in lines) == 3
    monkeypatch.setattr(sweep, "main", lambda _: scores)
    assert sweep.script(config) == 1


def test_the_table_has_mean_and_spread_of_each_group():
    scores = {"a": [0.1, 0.2], "b": [0.5, 0.6, 0.7, None]}
    assert [line.split(maxsplit=1) for line in sweep.table(scores, "val/AP").splitlines()] == [
        ["b", "val/AP 0.6000 ± 0.1000 (3 of 4 runs)"],
        ["a", "val/AP 0.1500 ± 0.0707 (2 of 2 runs)"],
    ]


@pytest.mark.parametrize("given", [{"resume": "abcd"}, {"from_run": "abcd"}, {"dry_run": True}])
def test_what_is_for_one_run_is_refused(given):
    with pytest.raises(ConfigError, match="is for one run"):
        sweep.script(TrainConfig(**given))


def test_the_score_of_a_run_from_another_machine_is_the_stores(base):
    run_id = train.main(base)
    here = sweep.best_of(run_id, "val/AP50")
    workspace.RunFolder(run_id).path.rename(workspace.RUNS / "elsewhere")
    assert sweep.best_of(run_id, "val/AP") == here  # of --best-metric val/AP


@pytest.mark.slow  # a process a run
def test_the_shell_loop_passes_a_signal_on_and_goes_on_when_it_is_started_again(tmp_path, coco_folder, empty_database):
    folder = copy_of_repository(tmp_path / "repository")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"LRS": "0.001", "AUGMENTATIONS": "flip nosuch", "SEEDS": "0 1"}
    line = [folder / "recipes" / "sweep.sh", "--data", coco_folder.name, *SMALL, "--epochs", "200"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*map(str, line), *more], cwd=coco_folder.parent, env=environment, start_new_session=True, **pipes
        )

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        loop = start()
        while "validated" not in (said := loop.stderr.readline()):
            assert said, loop.wait()
        send = os.killpg if number == signal.SIGINT else os.kill  # as a terminal does, and as a cluster may
        send(loop.pid, number)
        out, errors = loop.communicate(timeout=500)
        assert (loop.returncode, out) == (code, "")
        assert "stopped in lr0.001-flip-seed0; the same line goes on from there" in errors
    loop = start("--max-steps", "60")
    out, errors = loop.communicate(timeout=500)
    assert loop.returncode == 1
    assert errors.count("failed: lr0.001-nosuch-seed") == 2
    from tracking.store import open_store as open_any

    store = open_any(folder, f"sqlite:///{folder}/mlflow.db")
    runs = store.newest_runs(20)
    assert [(run.name, run.status) for run in runs] == [
        ("lr0.001-flip-seed1", "FINISHED"),
        ("lr0.001-flip-seed0", "FINISHED"),
    ]
    assert out.split() == [run.run_id for run in reversed(runs)]
