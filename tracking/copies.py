"""The copy of a run in another store.

mlflow does not let one choose a run's ID: the copy has its own, and a tag with its origin's by which it is found again.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tracking.connection import failures
from tracking.find import run_copied_from
from tracking.records import COPIED, ORIGIN, ORIGIN_STORE
from tracking.store import Store

ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(kw_only=True)
class Copied:
    """What became of a run in the other store."""

    run_id: str
    sent: Counter = field(default_factory=Counter)  # how much arrived now, by kind
    lacking: list[str] = field(default_factory=list)  # what could not be given to it
    left_alone: str | None = None  # why nothing was given to it


def state_of(run) -> str:
    """How a run of mlflow's ended and how often it was resumed: another word means that it went on."""
    end_time = run.info.end_time if run.info.status in ENDED else None
    return f"{run.info.status} {end_time} resumed {run.data.tags.get('resumed', 0)}"


def mark_copied(target: Store, run_id: str) -> None:
    with failures(target.uri, f"run {run_id}"):
        run = target.client.get_run(run_id)
        if run.data.tags.get(COPIED) != state_of(run):
            target.client.set_tag(run_id, COPIED, state_of(run))


def existing_or_new(target: Store, origin: str, *, origin_store: str, experiment: str, run_name: str, start_time: int):
    with failures(target.uri, f"the copy of run {origin}"):
        if found := run_copied_from(target.client, origin):
            return found
    tags = {ORIGIN: origin, ORIGIN_STORE: origin_store}
    run_id, _ = target.create_run(experiment, run_name, tags, start_time=start_time)
    with failures(target.uri, f"run {run_id}"):
        return target.client.get_run(run_id)


def why_left_alone(copy) -> str | None:
    if copy.info.lifecycle_stage == "deleted":
        return "was deleted there; restore it there to have it completed"
    if copy.data.tags.get(COPIED, state_of(copy)) != state_of(copy):
        return "went on there by itself"
    return None


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
