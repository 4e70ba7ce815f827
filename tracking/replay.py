"""A run whose own store is lost, out of its folder's journal into another store."""

import posixpath
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tracking import recovery
from tracking.copies import Copied, existing_or_new, made, mark_copied, why_left_alone
from tracking.deliver import Unavailable
from tracking.errors import StoreError
from tracking.journal import Journal, dropped_mark
from tracking.pruning import pruned_tag
from tracking.records import CHECKPOINT_FILE
from tracking.sender import Courier, grouped
from tracking.store import Store


def copy_journal(
    journal: Journal,
    target: Store,
    *,
    run_id: str,
    origin_store: str,
    about: Mapping[str, object],
    tags: Mapping[str, str],
    spare: Mapping[str, Path],
    end: tuple[str, int] | None,
    folder: Path,
) -> Copied:
    """Copies what a run's own folder still has of it; `lacking` names what was in its own store only.

    `about` is experiment, run_name and start_time (ms); `spare` has checkpoint files by sha256; `end` is the state and
    time (ms) of a run whose journal does not end because it died. `folder` is for files on their way.
    """
    copy = existing_or_new(target, run_id, origin_store=origin_store, **about)
    copied = Copied(run_id=copy.info.run_id, left_alone=why_left_alone(copy))
    if copied.left_alone:
        return copied
    refused: list[dict] = []
    refused_before = [refusal.get("operation") for refusal in journal.refused()]
    courier = Courier(journal, target, copied.run_id, refuse=lambda operation, _: refused.append(operation))
    lacking: dict[str, None] = {}  # in their order
    try:
        if missing := tags.items() - copy.data.tags.items():
            courier.apply([{"op": "tags", "tags": dict(missing)}])
        for _, group in grouped(_with_files(journal, spare, folder)):
            refused.clear()
            courier.apply(group)
            copied.sent["operations out of its journal"] += len(group)
            for operation in group:
                lacking.pop(_name(operation), None)
                lacking.pop(_gone(operation), None)
            lacking |= dict.fromkeys(_name(operation) for operation in refused if operation not in refused_before)
            for operation in [one for one in refused if one["op"] == "checkpoint"]:  # its scores are the run's too
                courier.apply([{**operation, "op": "metrics", "checkpoint": None}])
        if end and not journal.has_ended():
            courier.apply([{"op": "end", "status": end[0], "end_time": end[1]}])
        mark_copied(target, copied.run_id)
    except Unavailable as error:
        raise StoreError(f"The tracking store {target.uri} did not take run {run_id}: {error}") from error
    copied.lacking = list(lacking)
    return copied


def _with_files(journal: Journal, spare: Mapping[str, Path], folder: Path) -> Iterator[tuple[int, dict]]:
    """The whole journal: checkpoints that were sent already get a spare file, files that nobody has become refusals.

    Of a pruned checkpoint no file is missed.
    """
    pruned = {
        operation["checkpoint"]: pruned_tag(operation["why"], operation["time"])
        for _, operation in journal.operations()
        if operation["op"] == "prune"
    }
    newest = {_name(operation): operation["spool"] for _, operation in journal.operations() if "spool" in operation}
    points = [recovery.recovery_point(operation.get("tags", {})) for _, operation in journal.operations()]
    point = next((found for found in reversed(points) if found), {})
    for end, operation in journal.operations():
        is_sent = "spool" in operation and not (journal.folder / operation["spool"]).exists()
        if operation["op"] == "checkpoint" and is_sent and operation["sha256"] in spare:
            spool = made(folder / operation["name"]) / CHECKPOINT_FILE
            shutil.copyfile(spare[operation["sha256"]], spool)
            operation = {**operation, "spool": str(spool)}
        elif operation["op"] == "checkpoint" and is_sent and operation["name"] in pruned:
            spool = made(folder / operation["name"]) / CHECKPOINT_FILE
            dropped_mark(spool).write_text(pruned[operation["name"]])
            operation = {**operation, "spool": str(spool)}
        if operation["op"] == "file":  # what a newer one replaces in the store is not missed
            is_newest = operation["spool"] == newest[_name(operation)]
            operation = {**operation, "rolling": not is_newest}
            if is_newest and is_sent and _name(operation) == recovery.PLACE and point.get("sha256") in spare:
                spool = made(folder / recovery.FOLDER) / recovery.FILE
                shutil.copyfile(spare[point["sha256"]], spool)
                operation["spool"] = str(spool)
        yield end, operation


def _name(operation: dict) -> str:
    """What a person calls it: a file by its place among the artifacts, anything else by its line in the journal."""
    match operation["op"]:
        case "checkpoint":
            return f"checkpoint {operation['name']}"
        case "file":
            return posixpath.join(operation["folder"] or "", posixpath.basename(operation["spool"]))
        case "image":
            return f"images/{posixpath.basename(operation['spool']).partition('+timestamp+')[0]}"
    return f"{operation['op']} of the journal's {operation['time']}"


def _gone(operation: dict) -> str | None:
    """The name of what the operation takes away."""
    match operation["op"]:
        case "prune":
            return f"checkpoint {operation['checkpoint']}"
        case "remove":
            return operation["artifact_path"]
    return None
