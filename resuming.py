"""Where a run continues: its last whole state found, put back, and compared with today's code and data."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import config as options
import workspace
from config import TrainConfig
from data.records import DetectionData
from models import checkpoint as checkpoints
from models.record import CheckpointError
from progress import say
from tracking.store import Store


@dataclass(kw_only=True)
class Position:
    """How far the run got: what a resumed run continues from."""

    epoch: int = -1  # the last finished one, from 0
    step: int = 0  # optimizer steps done
    batches_done: int = 0  # in the epoch after `epoch`
    best: dict[str, Any] | None = None  # epoch, step, metric, value
    metrics: dict[str, float] = field(default_factory=dict)  # of this position; empty where it was not scored

    @property
    def name(self) -> str:
        """What a checkpoint taken here is called in MLflow."""
        return f"epoch-{self.epoch:03d}" if self.batches_done == 0 else f"step-{self.step:06d}"


def stored_config(store: Store, run_id: str) -> TrainConfig:
    """A run's configuration, from its folder or, on another machine, from its checkpoint in MLflow."""
    values = workspace.RunFolder(run_id).state().get("config") or resumable_checkpoint(store, run_id).get("config")
    if not values:
        raise workspace.WorkspaceError(f"Run {run_id} was not trained by this repository: it records no configuration")
    return options.from_plain(values)


def resumable_checkpoint(store: Store, run_id: str) -> dict[str, Any]:
    """The newest state of a run: its folder's last.pth, else its last checkpoint in MLflow."""
    last = workspace.RunFolder(run_id).last
    stored = store.checkpoints(run_id)
    try:
        if last.exists():
            saved = checkpoints.load(last)
            if not stored or saved.get("step", 0) >= stored[-1].step:
                return saved
            say(f"{last} is older than {stored[-1].name} in MLflow, which is used: the run went on elsewhere")
    except CheckpointError as error:
        say(f"{error}; the last checkpoint in MLflow is used instead")
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        path, _ = workspace.fetch(store, run_id, "last", "", Path(folder) / "checkpoint.pth")
        return checkpoints.load(path)


def restore(saved: dict[str, Any], model, optimizer, schedule, scaler) -> Position:
    """Put a checkpoint's state into the freshly built parts; CheckpointError when it is not a whole training state."""
    missing = [key for key in ("optimizer_state_dict", "scheduler_state_dict", "step") if key not in saved]
    if missing:
        raise CheckpointError(f"The checkpoint cannot be resumed from: it has no {', '.join(missing)}", exit_code=4)
    model.load_state_dict(saved["model_state_dict"])
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    schedule.load_state_dict(saved["scheduler_state_dict"])
    scaler.load_state_dict(saved["scaler_state_dict"])
    return Position(**{key: saved[key] for key in ("epoch", "step", "batches_done", "best", "metrics")})


def differences(saved: dict[str, Any], data: DetectionData, code: dict[str, Any], *, threads: int) -> list[str]:
    """What is not as it was when the checkpoint was written."""
    notes = []
    if saved["dataset"]["fingerprint"] != data.fingerprint:
        notes.append(
            f"note: the data changed since (fingerprint {saved['dataset']['fingerprint']} → {data.fingerprint})"
        )
    if saved["code_version"] != code["commit"]:
        notes.append(f"note: the code changed since (commit {saved['code_version']} → {code['commit']})")
    before = saved["evaluation"].get("threads", threads)
    if before != threads:
        notes.append(
            f"note: {before} CPU threads then, {threads} now: the run goes on rightly, but equals an uninterrupted one "
            f"bit for bit only with OMP_NUM_THREADS={before}"
        )
    return notes


def receipt(saved: dict[str, Any], position: Position) -> str:
    """What is restored, and from where."""
    where = f"after epoch {position.epoch}" if position.batches_done == 0 else f"in epoch {position.epoch + 1}"
    best = position.best
    best_so_far = f", best so far ({best['metric']} {best['value']:.4f} in {best['name']})" if best else ""
    return f"resuming run {saved['run_id']} {where}, step {position.step}: weights, optimizer, schedule{best_so_far}"
