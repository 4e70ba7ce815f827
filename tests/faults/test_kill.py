"""kill -9 at random instants of a training: it goes on, and ends as one that was never killed.

A trial is named by its seed, which chooses the instants; README.md says how one is tried again.
"""

import os
import random
import signal
from pathlib import Path

import pytest

import status
import workspace
from models.record import inspect
from status import StatusConfig
from tests.conftest import open_store
from tests.faults import trial
from tests.faults.conftest import FLAVOURS, Reference
from tests.faults.outcome import differences, outcome

# One trial of each flavour, or as many as have FAULTS kills and more.
TRIALS = int(os.environ.get("FAULTS") or 2 * len(FLAVOURS)) * 6 // 10  # one trial kills some two times


def trials() -> list:
    flavours = list(FLAVOURS)
    return [(seed, flavours[seed % len(flavours)]) for seed in range(TRIALS)]


# Where kills once had consequences; the store and the folder of a run are not made at one instant, for example.
ONCE_FATAL = [
    ("adamw", trial.Instant("starting")),  # it stayed RUNNING, for it has no folder
    ("sgd", trial.Instant("publishing", nth=2)),  # the best was never published: no later one was better
    ("bf16", trial.Instant("queueing", nth=3)),  # a validation that is repeated counted twice for --patience
]


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "instant"), ONCE_FATAL)
def test_a_kill_where_it_once_was_fatal(flavour, instant, home, line, reference):
    whole = reference(flavour)
    assert trial.run(home, "train.py", *line(flavour), instant=instant).code == -signal.SIGKILL
    require_nothing_lost(0)
    require_sync_ends_the_dead(home)
    require_it_goes_on(home, line(flavour), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "flavour"), trials())
def test_a_killed_training_ends_as_if_it_never_had_been(seed, flavour, home, line, reference, tally):
    dice, whole = random.Random(seed), reference(flavour)
    saved_step = 0
    with tally.several() as faults:
        for _ in range(dice.randint(1, 5)):
            instant = trial.random_instant(dice, whole.seen)
            print(instant)  # shown when the trial fails
            child = trial.run(home, "train.py", *line(flavour), instant=instant)
            if child.code == 0:  # it was done before
                break
            assert child.code == -signal.SIGKILL, child.errors
            faults[f"kill -9 {instant.place}"] += 1
            saved_step = require_nothing_lost(saved_step)
            if dice.random() < 0.5:
                require_sync_ends_the_dead(home)
        require_it_goes_on(home, line(flavour), whole)


def require_it_goes_on(home: Path, line: tuple[str, ...], whole: Reference) -> None:
    """Trained again, the run ends as the undisturbed one did, and nothing is left over."""
    child = trial.run(home, "train.py", *line)
    assert child.code == 0, child.errors
    assert differences(whole.outcome, outcome(open_store(), child.out.strip())) == []
    require_sync_ends_the_dead(home)
    assert [*home.glob("runs/*/outbox/*"), *home.rglob(".*.partial")] == []
    assert status.main(StatusConfig(checkpoint=workspace.PUBLISHED))["unsent"]["operations"] == 0


def require_nothing_lost(saved_step: int) -> int:
    """What lies there after a kill is whole, and no older than what lay there before; the step that can go on."""
    report = status.main(StatusConfig(checkpoint=workspace.PUBLISHED, verify=True))
    assert report["state"] in ("ready", "absent"), report
    folders = workspace.run_folders()
    assert report["training"]["state"] in (("interrupted", "finished") if folders else ("none",))
    files = [folder.last for folder in folders if folder.last.exists()]
    verdicts = [inspect(file, verify=True) for file in files]
    assert [verdict.state for verdict in verdicts] == ["ready"] * len(files), verdicts
    if report["training"]["state"] == "interrupted" and files:
        assert f"python train.py --resume {report['training']['run_id']}" in status.report_text(report)
    step = max((verdict.entry["step"] for verdict in verdicts), default=0)
    assert step >= saved_step
    return step


def require_sync_ends_the_dead(home: Path) -> None:
    child = trial.run(home, "status.py", "--sync", silent_seconds=0)
    assert child.code in (0, 1), child.errors
    assert [run.run_id for run in open_store().running()] == []
