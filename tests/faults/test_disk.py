"""A full disk for real: a small tmpfs, and a limit on the size of files. Training stops, and goes on with more room."""

import random
import subprocess
from pathlib import Path

import pytest

import workspace
from models.record import file_sha256, inspect
from tests.conftest import open_store
from tests.faults import trial
from tests.faults.outcome import differences, outcome

pytestmark = pytest.mark.slow

MEGABYTE = 10**6
TRIALS = 3


def mount(options: str, folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(home):
    """Makes the home a disk of its own of so many bytes, and makes that larger; skips where one may not mount."""

    def resize(size: int) -> None:
        database = (home / "mlflow.db").read_bytes()
        if home.is_mount():
            assert mount(f"remount,size={size}", home)
        elif not mount(f"size={size}", home):
            pytest.skip("this user may not mount a tmpfs")
        else:
            (home / "mlflow.db").write_bytes(database)

    yield resize
    if home.is_mount():
        subprocess.run(["umount", "--lazy", str(home)], check=True)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_full_disk_stops_a_training_that_goes_on_with_more_room(seed, home, line, reference, tally, small_disk):
    whole = reference("adamw")
    small_disk(random.Random(seed).randint(50, 110) * MEGABYTE)
    with tally("disk full (tmpfs)"):
        require_stopped_for_want_of_disk(trial.run(home, "train.py", *line("adamw")))
        small_disk(1000 * MEGABYTE)
        require_continued(home, line("adamw"), whole)


@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_file_that_may_not_grow_stops_a_training_too(seed, home, line, reference, tally):
    """The checkpoint breaks off at a random byte, after some that were written whole."""
    whole, dice = reference("adamw"), random.Random(seed)
    begun = trial.run(home, "train.py", *line("adamw"), instant=trial.Instant("training", dice.randint(3, 8)))
    assert begun.code == -9, begun.errors
    (last,) = home.glob("runs/*/last.pth")
    before, limit = file_sha256(last), dice.randint(2 * MEGABYTE, last.stat().st_size - 1)
    with tally("file too large (RLIMIT_FSIZE)"):
        require_stopped_for_want_of_disk(trial.run(home, "train.py", *line("adamw"), largest_file=limit))
        assert file_sha256(last) == before
        require_continued(home, line("adamw"), whole)


def require_stopped_for_want_of_disk(child: trial.Child) -> None:
    assert child.code == 5, child.errors
    assert "The disk is full" in child.errors and "--resume" in child.errors, child.errors
    for folder in workspace.run_folders():
        assert folder.training() == "interrupted"
        assert inspect(folder.last, verify=True).state in ("ready", "absent")
    assert inspect(workspace.PUBLISHED, verify=True).state in ("ready", "absent")
    assert list(child.home.rglob(".*.partial")) == []


def require_continued(home: Path, line: tuple[str, ...], whole) -> None:
    child = trial.run(home, "train.py", *line)
    assert child.code == 0, child.errors
    assert differences(whole.outcome, outcome(open_store(), child.out.strip())) == []
