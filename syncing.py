"""What `status.py --sync` does: what runs owe their stores is sent, and with --to whole runs go to another store."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import config as options
import workspace
from models import record
from progress import Progress, say
from tracking.connection import is_server, store_uri
from tracking.errors import RunUnknown, StoreError
from tracking.journal import Journal
from tracking.moved import home_of
from workspace import RunFolder

MOST_RUNS = 50_000  # that a store gives at once
MOST_NAMED = 12  # of the files that a copy lacks


def synchronise() -> None:
    """Deliver every journal of this repository's runs that the store lacks, and end the dead."""
    from tracking.store import open_store

    try:  # without a folder too: a run may have died before it had one
        store = open_store(workspace.ROOT, must_exist=not workspace.run_folders())
    except RunUnknown:
        say("nothing was trained here: there is nothing to send")
        return
    store.require_in_place()
    deliver_all(store)


def deliver_all(store: Any) -> None:
    from tracking import sender

    for folder in workspace.run_folders():
        if folder.state().get("tracking_uri") == store.uri and not folder.is_alive():
            summary = sender.sync(folder.path, store)
            trouble = f" ({summary['trouble']})" if summary["trouble"] else ""
            waiting = summary["unsent"]["operations"]
            say(f"{folder.run_id}: {summary['delivered']} operations sent, {waiting} still unsent{trouble}")
    for dead in workspace.end_dead_runs(store):
        say(f"{dead.run_id}: had died, now KILLED; {dead.continuation()}")


def copy_to(uri: str, word: str | None) -> None:
    """Copy this repository's runs, or the RUN alone, whole into the store at `uri`; StoreError unless all is there."""
    from tracking.store import open_store

    if home := home_of(store_uri(workspace.ROOT)):
        home.require_in_place()  # the runs' records name the store of before the move, or the original of the copy
    ask = functools.cache(opened)  # each store once
    runs = wanted(word, uri, ask)
    target = open_store(workspace.ROOT, uri)
    with workspace.copying() as folder:
        incomplete = [
            run_id
            for origin, run_ids in runs.items()
            for run_id in run_ids
            if not arrives(ask(origin), origin, run_id, target, folder)
        ]
    if incomplete:
        raise StoreError(f"{uri} has not got everything of: {', '.join(incomplete)}")
    say(f"{uri} has everything. Look: MLFLOW_TRACKING_URI={uri} python status.py --remote")


def wanted(word: str | None, uri: str, ask: Callable[[str], Any]) -> dict[str, list[str]]:
    """The IDs of the runs to copy, oldest first, by the URI of the store that each was trained into.

    Of a server only what was trained here: it has other people's runs too.
    """
    own = store_uri(workspace.ROOT)
    runs = {folder.run_id: folder.state().get("tracking_uri") or own for folder in reversed(workspace.run_folders())}
    if word is not None:
        run_id = workspace.local_run(word) or named(word, own)
        runs = {run_id: runs.get(run_id, own)}
    elif not is_server(own) and (store := ask(own)) is not None:
        trained = [run.run_id for run in store.newest_runs(MOST_RUNS) if run.is_training]
        runs = dict.fromkeys(reversed(trained), own) | runs
    by_store: dict[str, list[str]] = {}
    for run_id, origin in runs.items():
        if origin != uri:
            by_store.setdefault(origin, []).append(run_id)
    if not by_store:
        there = f"all of them are in {uri}" if runs else "there is no run here"
        raise workspace.WorkspaceError(f"Nothing to copy: {there}. --to URI names another store than the runs' own")
    return by_store


def named(word: str, uri: str) -> str:
    from tracking.store import open_store

    return open_store(workspace.ROOT, uri, must_exist=True).find_run(word)


def opened(uri: str) -> Any:
    """The store at `uri`, after it was sent what it lacks; None where it is out of reach."""
    from tracking.store import open_store

    try:
        store = open_store(workspace.ROOT, uri, must_exist=True)
    except (StoreError, RunUnknown) as error:
        reason = "it is not there" if isinstance(error, RunUnknown) else str(error).splitlines()[0]
        say(f"the store {uri} is out of reach ({reason}): what runs/ and models/faster_rcnn have of its runs is copied")
        return None
    workspace.settle(store)
    for folder in workspace.run_folders():  # however long it takes
        workspace.deliver_if_idle(store, folder)
    return store


def arrives(source: Any, origin: str, run_id: str, target: Any, folder: Path) -> bool:
    """Copy one run, out of `source` where that has it, and say what came of it; whether the target has all of it."""
    state = RunFolder(run_id).state()
    title = f"run {run_id}" + (f" ({state['run_name']})" if state.get("run_name") else "")
    try:
        if source is not None and source.knows(run_id):
            from tracking.transfer import copy_run

            with Progress(f"copying run {run_id[:8]}", 0, unit="files") as progress:
                copied = copy_run(source, run_id, target, folder, progress=progress)
        elif state:
            copied = copied_from_folder(RunFolder(run_id), origin, target, folder)
        else:
            raise RunUnknown(f"{origin} does not know it")
    except (StoreError, RunUnknown, OSError) as error:
        say(f"{title}: not copied: {error}")
        return False
    if copied.left_alone:
        say(f"{title}: left alone: its copy {copied.run_id} {copied.left_alone}")
        return True
    sent = ", ".join(f"{count} {kind}" for kind, count in copied.sent.items() if count) or "nothing new"
    say(f"{title} → {copied.run_id}: {sent}")
    if copied.lacking:
        more = f" and {len(copied.lacking) - MOST_NAMED} more" if len(copied.lacking) > MOST_NAMED else ""
        where = "lacking" if source is not None else f"only in {origin}"
        lacking = sorted(
            copied.lacking, key=lambda name: (not name.startswith("checkpoint"), name.startswith("images/"))
        )
        say(f"  {where}: {', '.join(lacking[:MOST_NAMED])}{more}")
    return not copied.lacking


def copied_from_folder(folder: RunFolder, origin: str, target: Any, place: Path) -> Any:
    """Copy what runs/<run id>/ has of a run whose store is lost."""
    from tracking.replay import copy_journal

    state = folder.state()
    tags = options.from_plain(state.get("config") or {}).tags
    files = [path for path in (folder.last, workspace.PUBLISHED) if path.is_file()]
    return copy_journal(
        Journal(folder.path),
        target,
        run_id=folder.run_id,
        origin_store=origin,
        about={
            "experiment": state["experiment"],
            "run_name": state["run_name"],
            "start_time": int(1000 * state["started"]),
        },
        tags=tags,
        spare={record.file_sha256(path): path for path in files},
        end=None if folder.is_alive() else ("KILLED", int(1000 * state["updated"])),
        folder=place,
    )
