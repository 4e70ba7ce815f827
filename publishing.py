"""What may take the place of the checkpoint at models/faster_rcnn: nothing is lost, and pinned files stay."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import workspace
from models import record
from workspace import RunFolder


def is_safe_elsewhere(entry: dict[str, Any], store: Any) -> bool:
    """Whether the file that `entry` describes can be had again: from its run folder or from the store, if there is one.

    A weights-only file can be made again from the checkpoint that its record names as `weights_of`.
    """
    sha256 = entry.get("weights_of") or entry.get("sha256")
    if not sha256 or not entry.get("run_id"):
        return False
    last = RunFolder(entry["run_id"]).last
    if last.exists() and record.file_sha256(last) == sha256:
        return True
    if store is None:
        return False
    try:
        same = [one for one in store.checkpoints(entry["run_id"]) if one.sha256 == sha256]
        return any(store.holds(one) for one in same)
    except (RuntimeError, OSError):  # a store that does not answer has not said yes
        return False


def move_aside(path: Path) -> Path | None:
    """Rename what lies at `path`, so that nothing that exists only there is lost; None when nothing did."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return None
    aside = path.with_name(f"{path.stem}.kept-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}")
    while aside.exists():  # two in one second
        aside = aside.with_stem(f"{aside.stem}-again")
    path.replace(aside)
    return aside


def current_entry() -> dict[str, Any]:
    """What is known of the usable checkpoint at models/faster_rcnn; empty when there is none."""
    verdict = record.inspect(workspace.PUBLISHED)
    return verdict.entry if verdict.state == "ready" else {}


def known_entry(path: Path) -> dict[str, Any]:
    """As current_entry; for a damaged file what its record says, since only that was worth keeping."""
    verdict = record.inspect(path)
    if verdict.state in ("truncated", "corrupt"):
        return record.read_record(path).get("current", {})
    return verdict.entry if verdict.state == "ready" else {}


@contextlib.contextmanager
def publishing() -> Iterator[None]:
    """One process at a time changes models/faster_rcnn."""
    workspace.PUBLISHED.parent.mkdir(parents=True, exist_ok=True)
    with (workspace.PUBLISHED.parent / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for partial in workspace.PUBLISHED.parent.glob(f".{workspace.PUBLISHED.stem}.*.partial"):
            partial.unlink()  # of a process that died writing it
        try:
            yield
        finally:  # a loader's worker that was forked meanwhile has the open file too, and would keep the lock
            fcntl.flock(file, fcntl.LOCK_UN)


def publish(source: Path, entry: dict[str, Any], *, how: str, store: Any) -> str:
    """Copy a run's best to models/faster_rcnn and say in one line what was done, or why not.

    `how` is --publish; `store` is asked whether another run's file that lies there can be had again.
    """
    if how == "never":
        return "not published (--publish never)"
    with publishing():
        there = current_entry()
        other = there.get("run_id")
        if how == "auto" and there.get("pinned"):
            return "not published: models/faster_rcnn is pinned by restore.py (--publish always replaces it)"
        if how == "auto" and other not in (None, entry["run_id"]) and RunFolder(other).is_alive():
            return f"not published: run {other} is publishing to models/faster_rcnn (--publish always replaces it)"
        own = other == entry["run_id"] and there.get("sha256") and there.get("role") in ("best", "last", "epoch")
        can_go = own or is_safe_elsewhere(known_entry(workspace.PUBLISHED), store)
        aside = None if can_go else move_aside(workspace.PUBLISHED)
        record.put(source, workspace.PUBLISHED, entry)
    kept = f"; what was there exists nowhere else and is kept as {aside.name}" if aside else ""
    replaced = f", in place of {workspace.introduce(there)}" if other not in (None, entry["run_id"]) else ""
    return f"published to {workspace.PUBLISHED.relative_to(workspace.ROOT)}{replaced}{kept}"
