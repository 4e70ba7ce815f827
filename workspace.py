"""The repository as a place of work: its run folders and who is alive in them.

Imports neither torch nor mlflow, so that status.py answers at once; what needs the store receives it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import record
from progress import say
from tracking.connection import sqlite_path
from tracking.errors import RunUnknown, StoreError
from tracking.journal import Journal
from tracking.ownership import is_lost, owners_of
from tracking.pulse import has_died
from tracking.records import last_word

ROOT = Path(__file__).resolve().parent
RUNS = ROOT / "runs"
PUBLISHED = ROOT / "models" / "faster_rcnn" / "checkpoint.pth"
SETTLING_SECONDS = 20.0  # that a command gives to what others left unsent
BEST = "best"  # as a RUN: before files and runs of that name

_held: set[Path] = set()  # closing any descriptor of a file drops this process's lockf on it, so ours is never reopened


_updating = threading.Lock()  # the loop and the writer of checkpoints both say how far a run is


class WorkspaceError(ValueError):
    """A RUN, checkpoint or folder that cannot be used as asked."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunFolder:
    """runs/<run id>/: the journal, the outbox, last.pth and run.json of a run trained here."""

    run_id: str  # empty for a run that has no folder

    def __post_init__(self):
        if self.run_id and not record.is_run_id(self.run_id):  # a file or a server may say anything
            raise WorkspaceError(f"{self.run_id!r} is not a run's ID")

    @property
    def path(self) -> Path:
        return RUNS / self.run_id

    @property
    def last(self) -> Path:
        return self.path / "last.pth"

    def state(self) -> dict[str, Any]:
        """run.json: what the run is and how far it got; empty where there is none."""
        try:
            state = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # a folder without a readable run.json is no run
        return state if isinstance(state, dict) and isinstance(state.get("started", 0), int | float) else {}

    def began(self) -> float:
        """When it was started or resumed last, in seconds since 1970."""
        state = self.state()
        return state.get("resumed") or state.get("started", 0)

    def update(self, **changes: Any) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with _updating:
            record.write_json(self.path / "run.json", self.state() | {"updated": time.time()} | changes)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the kernel frees it at death. WorkspaceError when another process has it."""
        lock = self.path / "lock"
        if lock in _held:
            raise WorkspaceError(f"Run {self.run_id} is already training in this process")
        with _locked(lock, self._busy):
            yield

    def is_alive(self) -> bool:
        """Whether a process holds the run's lock; asks without taking it."""
        lock = self.path / "lock"
        if lock in _held:
            return True
        try:
            with lock.open("rb") as file:
                # struct flock of Linux on 64-bit: type, whence, start, length, pid
                asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
        except OSError:
            return False  # no lock file: nobody ever trained here
        return struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK

    def has_said(self, word: dict[str, Any]) -> bool:
        """Whether what a run's tags say last came from its process here: then the lock tells whether it lives."""
        state = self.state()
        return all(state.get(key) == word.get(key) for key in ("host", "pid"))

    def require_idle(self) -> None:
        """WorkspaceError when a process trains this run."""
        if self.is_alive():
            raise self._busy()

    def _busy(self) -> WorkspaceError:
        process = self.state().get("pid")
        if self.is_suspended():
            mend = f"wake it: kill -CONT {process}; or end it: kill -KILL {process}"
            return WorkspaceError(f"Run {self.run_id} is suspended (process {process}): {mend}")
        return WorkspaceError(f"Run {self.run_id} is training now (process {process}). See it: python status.py")

    def is_suspended(self) -> bool:
        """Whether its process is stopped, as by Ctrl-Z or a cluster: it holds the run all the same."""
        state = self.state()
        if state.get("host") != platform.node() or not self.is_alive():
            return False
        try:
            return "State:\tT" in Path(f"/proc/{state.get('pid')}/status").read_text()
        except OSError:
            return False

    def sweep(self) -> None:
        """Remove what a process that died left half-written; for whoever holds the lock, or ends the dead."""
        for partial in self.path.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    def training(self) -> str:
        """running, interrupted, failed or finished."""
        state = self.state().get("state")
        return "running" if self.is_alive() else state if state in ("finished", "failed") else "interrupted"

    def continuation(self) -> str:
        """How a run that stopped goes on, if it saved anything."""
        if self.can_resume():
            return f"continue: python train.py --resume {self.run_id}"
        return "it stopped before it saved anything: start it again"

    def can_resume(self) -> bool:
        return self.last.exists() or Journal(self.path).last_checkpoint_step() > 0


@contextlib.contextmanager
def _locked(lock: Path, busy: Callable[[], WorkspaceError]) -> Iterator[None]:
    """Hold a lock file for this process; the kernel frees it at death. `busy` is raised when someone has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    if lock in _held:
        raise busy()
    with lock.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise busy() from error
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


@contextlib.contextmanager
def name_taken(run_name: str, experiment: str, uri: str) -> Iterator[None]:
    """Of processes that start or continue the run of one name, the first; WorkspaceError for the others.

    A run has a folder to lock only once it exists, which is long after two processes found that it does not.
    """
    require_writable(RUNS, mend="Make it writable")
    digest = hashlib.sha256("\0".join((uri, experiment, run_name)).encode()).hexdigest()[:16]
    see = f"See it: python status.py --experiment {shlex.quote(experiment)}"
    busy = WorkspaceError(f"Run {run_name!r} of experiment {experiment!r} is training now. {see}")
    with _locked(RUNS / f".{digest}.lock", lambda: busy):
        yield


@contextlib.contextmanager
def copying() -> Iterator[Path]:
    """A folder for files on their way to another store; one process at a time copies runs from here."""
    require_writable(RUNS, mend="Make it writable")
    busy = WorkspaceError("Another process copies runs to another store: wait for it")
    with _locked(RUNS / ".copying.lock", lambda: busy):
        folder = RUNS / ".copying"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def run_folders() -> list[RunFolder]:
    """The runs trained here, the one that began or went on last first."""
    named = [path.parent.name for path in RUNS.glob("*/run.json")]
    folders = [RunFolder(name) for name in named if record.is_run_id(name)]  # others are somebody's copies
    return sorted(folders, key=RunFolder.began, reverse=True)


def local_run(word: str) -> str | None:
    """The run trained here that `word` names (ID, prefix of at least 4 characters, name), if exactly one."""
    if word == BEST:
        return None
    named = [
        folder.run_id
        for folder in run_folders()
        if word in (folder.run_id, folder.state().get("run_name"))
        or (len(word) >= 4 and folder.run_id.startswith(word))
    ]
    return named[0] if len(named) == 1 else None


def settle(store: Any, seconds: float = SETTLING_SECONDS) -> None:
    """End the runs of this machine that died, and send what its runs still owe the store: at most for so long."""
    deadline = time.monotonic() + seconds
    for dead in end_dead_runs(store, seconds):
        say(f"run {dead.run_id} had died; it is marked KILLED; {dead.continuation()}")
    for folder in run_folders():
        if time.monotonic() < deadline:
            with noting_trouble(folder):
                deliver_if_idle(store, folder, deadline - time.monotonic())


@contextlib.contextmanager
def noting_trouble(folder: RunFolder) -> Iterator[None]:
    """An old run's trouble, such as a damaged folder, is said and does not stop what is asked now."""
    try:
        yield
    except WorkspaceError:
        raise
    except (OSError, ValueError, KeyError) as error:
        say(f"note: run {folder.run_id} could not be settled ({type(error).__name__}: {error}): see {folder.path}")


def deliver_if_idle(store: Any, folder: RunFolder, seconds: float | None = None) -> None:
    """Send what a run of this machine left unsent, when it is this store's and nobody trains it."""
    if folder.state().get("tracking_uri") == store.uri and not folder.is_alive():
        deliver_pending(store, folder, seconds)


def deliver_pending(store: Any, folder: RunFolder, seconds: float | None = None) -> None:
    """Send what a dead or finished run of this machine still owes the store, for so long at most."""
    owed = Journal(folder.path).unsent()
    if not owed["operations"] or is_lost(folder.path):
        return
    from tracking import sender

    summary = sender.sync(folder.path, store, seconds=seconds)
    left = summary["unsent"]
    if summary["delivered"]:
        checkpoints = owed["checkpoints"] - left["checkpoints"]
        waiting = f"; {left['operations']} wait ({summary['trouble']})" if left["operations"] else ""
        say(
            f"sent what run {folder.run_id} still owed {store.uri}: {summary['delivered']} operations, "
            f"{checkpoints} checkpoints{waiting}"
        )


def end_dead_runs(store: Any, seconds: float = SETTLING_SECONDS) -> list[RunFolder]:
    """Mark runs of this machine that died as KILLED, in run.json and in the store; returns their folders.

    What they owe the store is sent first, for so long in all.
    """
    deadline = time.monotonic() + seconds
    ended = []
    for folder in run_folders():
        state = folder.state()
        if state.get("state") == "running" and state.get("tracking_uri") == store.uri:
            # A WorkspaceError says that it lives.
            with contextlib.suppress(WorkspaceError), noting_trouble(folder), folder.locked():
                if _end_dead(store, folder, max(1.0, deadline - time.monotonic())):
                    ended.append(folder)
    return ended + _end_stillborn(store)


def _end_stillborn(store: Any) -> list[RunFolder]:
    """End the runs whose process died before it made their folder: no lock tells of them, the heartbeat does."""
    folders = [(RunFolder(run.run_id), run) for run in store.running()]
    dead = [folder for folder, run in folders if not folder.state() and has_died(last_word(run.tags))]
    for folder in dead:
        folder.sweep()
    return [folder for folder in dead if store.end_dead(folder.run_id, owners_of(folder.path))]


def _end_dead(store: Any, folder: RunFolder, seconds: float) -> bool:
    """End one dead run, whose lock is held; False when it had ended meanwhile, or the store cannot end it."""
    if folder.state().get("state") != "running":
        return False
    from tracking.run import TrackedRun

    deliver_pending(store, folder, seconds)
    folder.sweep()
    TrackedRun(folder.path, folder.run_id).close()  # which removes what it left half-queued, or sent, in its outbox
    ended = False
    try:
        ended = store.end_dead(folder.run_id, owners_of(folder.path))
    except RunUnknown:
        say(f"note: run {folder.run_id} died, and {store.uri} does not know it any more")
    except StoreError as error:  # an old run's trouble must not stop what is asked now
        say(f"note: run {folder.run_id} died and could not be marked KILLED: {error}")
        return False
    folder.update(state="interrupted", updated=folder.state().get("updated"))  # when it was last heard of
    return ended


def require_writable(folder: Path, mend: str = "Choose another --output") -> None:
    """Make `folder`, or WorkspaceError: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"The folder {folder} cannot be made: {error.strerror}. {mend}") from error
    if not os.access(folder, os.W_OK):
        raise WorkspaceError(f"The folder {folder} cannot be written. {mend}")


def split_fingerprints(facts: dict[str, Any]) -> dict[str, str]:
    """{split: fingerprint} of what a run or checkpoint was trained with, as far as it is known."""
    return (facts.get("dataset") or {}).get("split_fingerprints") or {}


def data_of(facts: dict[str, Any]) -> str | None:
    """The --data that a run or checkpoint was trained with; inside a repository that was moved since, as it is now.

    Its tracking URI tells where the repository was.
    """
    data = (facts.get("config") or {}).get("data")
    database = sqlite_path(facts.get("tracking_uri") or "")
    if not data or database is None or Path(data).exists() or not Path(data).is_relative_to(database.parent):
        return data
    now = ROOT / Path(data).relative_to(database.parent)
    return str(now) if now.exists() else data


def choosing(best: dict[str, Any]) -> str:
    """The option that makes restore.py and evaluate.py choose what training called its best."""
    return "" if best["metric"] == "val/AP" else f" --metric {best['metric']}"


def finished_epoch(epoch: Any) -> int | None:
    """A checkpoint's `epoch` as reports have it: the last finished one, from 0; None, not −1, before the first ends."""
    return epoch if isinstance(epoch, int) and epoch >= 0 else None


def best_told(best: dict[str, Any]) -> dict[str, Any]:
    """A run's best checkpoint as reports have it."""
    told = {key: best.get(key) for key in ("name", "epoch", "metric", "value")}
    return told | {"epoch": finished_epoch(told["epoch"])}


def introduce(entry: dict[str, Any]) -> str:
    """A checkpoint, or a report on it, in one line: run, epoch, data, score."""
    run = entry.get("run_id")
    model = (entry.get("architecture") or {}).get("builder", "checkpoint")
    parts = [f"run {entry.get('run_name')} ({run[:8]})" if run else f"a {model} without a run"]
    finished, step = finished_epoch(entry.get("epoch")), entry.get("step")
    if finished is not None or step is not None:
        is_inside = entry.get("batches_done") or finished is None
        epoch = 0 if finished is None else finished + bool(is_inside)
        of = f" ({epoch + 1} of {entry['epochs']})" if entry.get("epochs") else ""
        parts.append(f"step {step}, in epoch {epoch}{of}" if is_inside else f"epoch {epoch}{of}")
    if entry.get("dataset"):
        parts.append(f"trained on {entry['dataset']['name']}")
    if "val/AP" in (entry.get("metrics") or {}):
        parts.append(f"val/AP {entry['metrics']['val/AP']:.4f}")
    return ", ".join(parts)
