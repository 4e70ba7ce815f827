"""Joins the nouns for the scripts: run folders and who is alive in them, a RUN → a verified file, publishing.

Imports neither torch nor mlflow, so that status.py answers at once; what needs the store receives it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import TrainConfig
from models import record
from progress import say
from tracking.connection import store_uri
from tracking.errors import RunUnknown, StoreError
from tracking.journal import Journal

ROOT = Path(__file__).resolve().parent
RUNS = ROOT / "runs"
PUBLISHED = ROOT / "models" / "faster_rcnn" / "checkpoint.pth"
BEST = "best"  # as a RUN: before files and runs of that name

_held: set[Path] = set()  # closing any descriptor of a file drops this process's lockf on it, so ours is never reopened


class WorkspaceError(ValueError):
    """A RUN, checkpoint or folder that cannot be used as asked."""

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunFolder:
    """runs/<run id>/: the journal, the outbox, last.pth and run.json of a run trained here."""

    run_id: str

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

    def update(self, **changes: Any) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        record.write_json(self.path / "run.json", self.state() | changes | {"updated": time.time()})

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

    def require_idle(self) -> None:
        """WorkspaceError when a process trains this run."""
        if self.is_alive():
            raise self._busy()

    def _busy(self) -> WorkspaceError:
        process = self.state().get("pid")
        return WorkspaceError(f"Run {self.run_id} is training now (process {process}). See it: python status.py")

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


def whoami() -> dict[str, Any]:
    """Where this process runs: written into run.json and the heartbeat."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else None,
    }


def run_folders() -> list[RunFolder]:
    """The runs trained here, newest first."""
    folders = [RunFolder(path.parent.name) for path in RUNS.glob("*/run.json")]
    return sorted(folders, key=lambda folder: folder.state().get("started", 0), reverse=True)


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


def select(checkpoints: list[Any], which: str, metric: str, run_id: str) -> Any:
    """The stored checkpoint of a run that `which` (best, last, an epoch's number or a checkpoint's name) names."""
    known = ", ".join(one.name for one in checkpoints)
    if not checkpoints:
        raise WorkspaceError(f"Run {run_id} has no checkpoint in the store (yet). See: python status.py")
    if which == "last":
        return checkpoints[-1]
    if which == "best":
        scored = [one for one in checkpoints if metric in one.metrics]
        if not scored:
            metrics = sorted({name for one in checkpoints for name in one.metrics})
            raise WorkspaceError(
                f"No checkpoint of run {run_id} has {metric!r}; it has: {', '.join(metrics) or 'none'}"
            )
        return max(scored, key=lambda one: one.metrics[metric])  # the earliest of equals
    name = f"epoch-{int(which):03d}" if which.isdecimal() else which
    matching = [one for one in checkpoints if one.name == name]
    if not matching:
        raise WorkspaceError(
            f"Run {run_id} has no checkpoint {which!r}: best, last or an epoch's number; it has {known}"
        )
    return matching[-1]


def store_of(word: str) -> Any:
    """The store to look for a RUN in; RunUnknown where there is none."""
    from tracking.store import open_store

    with naming_its_store(word, store_uri(ROOT)):
        return open_store(ROOT, must_exist=True)


def run_named(store: Any, word: str, experiment: str | None = None, metric: str = "val/AP") -> Any:
    """The run, and of models:/NAME@ALIAS the checkpoint, that a RUN names; within an experiment where that is given.

    `best` is that of one experiment in any case, by the metric.
    """
    if word == BEST:
        for folder in run_folders():
            deliver_if_idle(store, folder)
        return store.best_run(experiment or TrainConfig.experiment, metric)
    with naming_its_store(word, store.uri):
        return store.find(word, experiment)


@contextlib.contextmanager
def naming_its_store(word: str, uri: str) -> Iterator[None]:
    """Of a run that was trained here, RunUnknown says where it is."""
    try:
        yield
    except RunUnknown as error:
        folder = RunFolder(local_run(word) or "")
        elsewhere = folder.state().get("tracking_uri")
        if elsewhere is None:
            raise
        message = f"The tracking store {uri} does not know run {folder.run_id}, which was trained here"
        if elsewhere != uri:
            message += f" into another store. Name that before the command: MLFLOW_TRACKING_URI={elsewhere} python …"
        elif folder.last.exists():
            message += f". Its last state is at hand: python restore.py --file {folder.last}"
        raise RunUnknown(message) from error


def choose(store: Any, word: str, which: str, metric: str, experiment: str | None = None) -> Any:
    """What the store knows of a RUN's checkpoint.

    models:/NAME@ALIAS names a checkpoint itself; of any other RUN, `which` and `metric` choose one.
    """
    named = run_named(store, word, experiment, metric)
    deliver_if_idle(store, RunFolder(named.run_id))
    known = store.checkpoints(named.run_id)
    run = None if known else store.run(named.run_id)
    if run and run.is_evaluation:
        source = run.tags.get("source_run_id")
        raise WorkspaceError(f"{word} is the evaluation of run {source}, it has no checkpoint itself")
    registered = [one for one in known if one.model_id == named.model_id]
    return registered[0] if registered else select(known, which, metric, named.run_id)


def fetch(store: Any, word: str, which: str, metric: str, to: Path, experiment: str | None = None) -> tuple[Path, Any]:
    """Download a RUN's checkpoint as file `to`, verified by its sha256; and what the store knows of it."""
    stored = choose(store, word, which, metric, experiment)
    return store.download(stored, to), stored


def deliver_if_idle(store: Any, folder: RunFolder) -> None:
    """Send what a run of this machine left unsent, when it is this store's and nobody trains it."""
    if folder.state().get("tracking_uri") == store.uri and not folder.is_alive():
        deliver_pending(store, folder)


def deliver_pending(store: Any, folder: RunFolder) -> None:
    """Send what a dead or finished run of this machine has not yet delivered to the store."""
    from tracking import sender

    sender.sync(folder.path, store)


def end_dead_runs(store: Any) -> list[RunFolder]:
    """Mark runs of this machine that died as KILLED, in run.json and in the store; returns their folders."""
    ended = []
    for folder in run_folders():
        state = folder.state()
        if state.get("state") == "running" and state.get("tracking_uri") == store.uri:
            with contextlib.suppress(WorkspaceError), folder.locked():  # refused: it lives
                if _end_dead(store, folder):
                    ended.append(folder)
    return ended


def _end_dead(store: Any, folder: RunFolder) -> bool:
    """End one dead run, whose lock is held; False when it had ended meanwhile, or the store cannot end it."""
    if folder.state().get("state") != "running":
        return False
    deliver_pending(store, folder)
    ended = False
    try:
        ended = store.end_dead(folder.run_id)
    except RunUnknown:
        say(f"note: run {folder.run_id} died, and {store.uri} does not know it any more")
    except StoreError as error:  # an old run's trouble must not stop what is asked now
        say(f"note: run {folder.run_id} died and could not be marked KILLED: {error}")
        return False
    folder.update(state="interrupted")
    return ended


def require_writable(folder: Path, mend: str = "Choose another --output") -> None:
    """Make `folder`, or WorkspaceError: before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"The folder {folder} cannot be made: {error.strerror}. {mend}") from error
    if not os.access(folder, os.W_OK):
        raise WorkspaceError(f"The folder {folder} cannot be written. {mend}")


def choosing(best: dict[str, Any]) -> str:
    """The option that makes restore.py and evaluate.py choose what training called its best."""
    return "" if best["metric"] == "val/AP" else f" --metric {best['metric']}"


def introduce(entry: dict[str, Any]) -> str:
    """A checkpoint in one line: run, epoch, data, score."""
    run = entry.get("run_id")
    model = (entry.get("architecture") or {}).get("builder", "checkpoint")
    parts = [f"run {entry.get('run_name')} ({run[:8]})" if run else f"a {model} without a run"]
    if isinstance(entry.get("epoch"), int):
        of = f" ({entry['epoch'] + 1} of {entry['epochs']})" if entry.get("epochs") else ""
        is_inside = entry.get("batches_done") or entry["epoch"] < 0
        inside = f"step {entry.get('step')}, in epoch {entry['epoch'] + 1}"
        parts.append(inside if is_inside else f"epoch {entry['epoch']}{of}")
    if entry.get("dataset"):
        parts.append(f"trained on {entry['dataset']['name']}")
    if "val/AP" in (entry.get("metrics") or {}):
        parts.append(f"val/AP {entry['metrics']['val/AP']:.4f}")
    return ", ".join(parts)


def require_one_source(config: Any) -> None:
    """WorkspaceError when --run, --checkpoint, --which and --metric do not name one checkpoint together."""
    if config.run is not None and config.checkpoint is not None:
        raise WorkspaceError("--run and --checkpoint both name a checkpoint: choose one")
    if config.run is None and (config.which, config.metric, config.experiment) != ("best", "val/AP", None):
        raise WorkspaceError("--which, --metric and --experiment choose among runs and checkpoints: give --run")


@contextlib.contextmanager
def checkpoint_file(store: Any, config: Any) -> Iterator[Path]:
    """The local file that --run, --checkpoint or neither names; a RUN's is fetched, verified and removed after use."""
    if config.run is None:
        yield usable(config.checkpoint or PUBLISHED)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        to = Path(folder) / "checkpoint.pth"
        yield fetch(store, config.run, config.which, config.metric, to, config.experiment)[0]


def usable(path: Path) -> Path:
    """`path`, or CheckpointError with its state and the command that mends it."""
    verdict = record.inspect(path)
    if verdict.state != "ready":
        mend = "Restore one: python restore.py RUN (python status.py names the runs)"
        code = 2 if verdict.state == "absent" else verdict.exit_code
        raise record.CheckpointError(f"{path} is {verdict.state}: {verdict.detail}. {mend}", code)
    return path


def load_detector(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint with its weights, on the CPU, and the checkpoint's other content."""
    from models import checkpoint

    content = checkpoint.load(path)
    if not record.says_what_it_is(content):
        mend = f"It is not from here; make it a whole file: python restore.py --file {path}"
        message = f"{path} does not say its architecture and classes. {mend}"
        raise record.CheckpointError(message, exit_code=4)
    return build_as_said(content, path), content


def build_as_said(content: dict[str, Any], path: Path) -> Any:
    """The model of the architecture that a checkpoint names, with its weights; CheckpointError where they differ."""
    from models import detector

    try:
        model = detector.build(content["architecture"])
        model.load_state_dict(content["model_state_dict"])
    except detector.ModelError as error:
        run = f" of run {content['run_id']}" if content.get("run_id") else ""
        raise record.CheckpointError(f"The model in {path}{run} cannot be built here: {error}", exit_code=4) from error
    except RuntimeError as error:  # torch lists every key that differs
        message = f"{path}: its tensors contradict its own architecture: {' '.join(str(error).split())[:300]}"
        raise record.CheckpointError(message, exit_code=4) from error
    return model


def require_same_classes(content: dict[str, Any], classes: tuple[str, ...]) -> None:
    """A checkpoint and a dataset fit when their class names are the same, in order."""
    known = list(content["classes"])
    if known != list(classes):
        order = "in another order: " if sorted(known) == sorted(classes) else ""
        known = [name for name in known if name != record.NO_CLASS]
        message = f"The checkpoint has {len(known)} classes {known}, the dataset {order}{len(classes)} {list(classes)}"
        transfer = "To carry its weights over by name, train: python train.py --weights CHECKPOINT --data …"
        raise WorkspaceError(f"{message}. {transfer}", exit_code=4)
