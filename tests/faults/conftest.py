"""Fixtures of the fault injection: trainings that nothing disturbed, and the table of what was tried and survived."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SMALL, open_store
from tests.faults import trial
from tests.faults.outcome import Outcome, outcome
from tests.faults.table import Tally

# Between them: both optimizers, averaging, accumulation, mixed precision, early stop, loader workers.
FLAVOURS = {
    "adamw": ("--epochs", "3", "--checkpoint-every", "1"),
    "sgd": (
        *("--epochs", "4", "--checkpoint-every", "1", "--optimizer", "sgd", "--lr", "0.02", "--schedule", "multistep"),
        *("--ema", "0.9", "--accumulate", "2", "--augmentation", "standard", "--workers", "2"),
        *("--evaluate-every", "2"),
    ),
    "bf16": ("--epochs", "4", "--amp", "bf16", "--patience", "2", "--augmentation", "strong"),
}

Line = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Reference:
    """A training that nothing disturbed: what it left, and how often it was where a fault may strike."""

    outcome: Outcome
    seen: dict[str, float]


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Counts faults and survivals; with FAULTS set, in the table of this folder's README.md."""
    return Tally(Path(__file__).with_name("README.md") if os.environ.get("FAULTS") else None)


@pytest.fixture(scope="session")
def line(coco_folder: Path) -> Line:
    """The command line that trains a flavour under one name, as a cluster reruns it."""

    def of(flavour: str) -> tuple[str, ...]:
        return ("--data", str(coco_folder), *SMALL, *FLAVOURS[flavour], "--run-name", "trial", "--resume", "auto")

    return of


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, line: Line) -> Callable[[str], Reference]:
    """The undisturbed training of a flavour, made once."""
    made: dict[str, Reference] = {}

    def of(flavour: str) -> Reference:
        if flavour not in made:
            home = tmp_path_factory.mktemp(flavour)
            shutil.copy(empty_database, home)
            child = trial.run(home, "train.py", *line(flavour))
            assert child.code == 0, child.errors
            with trial.workspace_at(home):
                made[flavour] = Reference(outcome(open_store(), child.out.strip()), child.seen)
        return made[flavour]

    return of
