"""Put a run's checkpoint from MLflow into models/faster_rcnn, verified by its hash."""

import os
from dataclasses import dataclass
from pathlib import Path

import config as options
import publishing
import workspace
from models import record
from progress import say


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """Restore a run's checkpoint to models/faster_rcnn (it stays pinned there: training will not replace it)."""

    run: options.Positional[options.Run]
    """The run: its ID, a unique prefix of at least 4 characters, its name, or models:/NAME@ALIAS."""
    which: str = "best"
    """best, last, or an epoch's number (from 0, as in epoch-003)."""
    metric: str = "val/AP"
    """What makes a checkpoint the best."""
    output: options.File = None
    """Another folder or .pth file to restore to. [models/faster_rcnn/checkpoint.pth]"""


def main(config: RestoreConfig) -> Path:
    """Restore the checkpoint and return its path."""
    from tracking.store import open_store

    target = target_file(config.output)
    store = open_store(workspace.ROOT, must_exist=True)
    workspace.end_dead_runs(store)
    partial = target.with_name(f".{target.name}.{os.getpid()}.download")
    try:
        path, stored = workspace.fetch(store, config.run, config.which, config.metric, partial)
        verdict = record.inspect(path)  # the partial file has no record: its own content is judged
        if verdict.state != "ready":
            raise record.CheckpointError(f"{stored.name} of run {stored.run_id}: {verdict.detail}", verdict.exit_code)
        role = config.which if config.which in ("best", "last") else "epoch"
        entry = verdict.entry | {"sha256": stored.sha256, "role": role, "pinned": True}
        with publishing.publishing():
            keep_what_is_only_there(target, entry, store)
            record.put(path, target, entry, move=True)
    finally:
        partial.unlink(missing_ok=True)
    say(f"restored {stored.name} of run {stored.run_id}: {workspace.introduce(entry)}")
    return target


def target_file(output: Path | None) -> Path:
    """The file to write; WorkspaceError when its folder cannot be made or written."""
    target = output or workspace.PUBLISHED
    if target.suffix != ".pth":
        target = target / workspace.PUBLISHED.name
    workspace.require_writable(target.parent)
    return target.absolute()


def keep_what_is_only_there(target: Path, entry: dict, store: object) -> None:
    """Move the present file aside unless it is the same, or can be had again."""
    there = publishing.known_entry(target)
    if there.get("sha256") == entry["sha256"] or publishing.is_safe_elsewhere(there, store):
        return
    if aside := publishing.move_aside(target):
        say(f"what was there exists nowhere else: it is kept as {aside}")


def script(config: RestoreConfig) -> int:
    print(main(config))
    return 0


if __name__ == "__main__":
    options.command(script, lambda: options.parse(RestoreConfig))
