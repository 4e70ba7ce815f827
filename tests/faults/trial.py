"""Scripts that die at a chosen instant: children of a process that has torch and mlflow loaded already.

Each child runs a script as a user's shell would, in a repository home of its own, and writes what it says to files.
"""

import json
import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import workspace

ROOT = Path(__file__).resolve().parents[2]

# Where a child may be killed, beside any moment in seconds: a function that it enters …
PLACES = {
    "starting": ("live_run", "LiveRun.__enter__"),
    "training": ("live_run", "LiveRun.at"),
    "saving": ("models.checkpoint", "save"),
    "validating": ("evaluating.scoring", "score"),
    "logging": ("saving", "Saver.log_checkpoint"),
    "queueing": ("tracking.run", "TrackedRun.checkpoint"),
    "publishing": ("publishing", "publish"),
    "delivering": ("tracking.deliver", "Delivery.apply"),
}
FILES = "between file operations"  # … or an operation that changes a file of its home
CLOCK = "at any moment"
FILE_EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Instant:
    """When a child kills itself with SIGKILL: `seconds` after the `nth` time that it is at `place`."""

    place: str
    nth: int = 1
    seconds: float = 0.0


def random_instant(dice: random.Random, seen: dict[str, float]) -> Instant:
    """A moment of a training whose whole length `seen` tells: seconds, and how often it was at every place."""
    place = dice.choice([CLOCK, CLOCK, FILES, FILES, *PLACES])
    if place == CLOCK:
        return Instant(place, seconds=dice.uniform(0, seen["seconds"]))
    nth = dice.randint(1, max(1, int(seen.get(place, 1))))
    within = 0.0 if place == FILES else dice.choice([0.0, dice.uniform(0, 0.1)])
    return Instant(place, nth, within)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_after(seconds: float) -> None:
    def wait_and_die() -> None:
        time.sleep(seconds)
        _die()

    threading.Thread(target=wait_and_die, daemon=True).start()


class Watch:
    """Counts how often this process is at each place, and kills it at its instant."""

    def __init__(self, home: Path, instant: Instant | None):
        self.home, self.instant, self.counts = str(home), instant, Counter()
        if instant is not None and instant.place == CLOCK:
            _die_after(instant.seconds)
        for place, (module, name) in PLACES.items():
            self._wrap(place, import_module(module), name)
        sys.addaudithook(self._audit)

    def at(self, place: str) -> None:
        self.counts[place] += 1
        if self.instant is not None and (place, self.counts[place]) == (self.instant.place, self.instant.nth):
            _die_after(self.instant.seconds) if self.instant.seconds else _die()

    def _wrap(self, place: str, owner: Any, name: str) -> None:
        *parents, name = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function: Callable = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.at(place)
            return function(*arguments, **keywords)

        setattr(owner, name, watched)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(self.home):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.at(FILES)


@dataclass
class Child:
    """A script that runs, or ran, in `home`."""

    home: Path
    process: Any
    log: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = 120.0) -> "Child":
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"{self.log} did not end within {seconds:.0f} s:\n{self.errors}")
        return self

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def errors(self) -> str:
        return self.log.with_suffix(".err").read_text()

    @property
    def seen(self) -> dict[str, float]:
        """How long it took and how often it was at every place; of a child that ended by itself."""
        return json.loads(self.log.with_suffix(".json").read_text())


_context = multiprocessing.get_context("forkserver")


def start(
    home: Path,
    name: str,
    *arguments: object,
    instant: Instant | None = None,
    largest_file: int | None = None,
    silent_seconds: float | None = None,
    **environment: str,
) -> Child:
    """Run `python NAME …` in `home`, with these variables in its environment.

    No file may grow beyond `largest_file` bytes (RLIMIT_FSIZE); after `silent_seconds` who is silent counts as dead.
    """
    # The server of the forks finds the modules that it is to import by the environment alone.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    _context.set_forkserver_preload(["tests.faults.preloaded"])
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{len(list(logs.glob('*.err'))):02d}-{Path(name).stem}"
    log.with_suffix(".err").touch()
    command = [name, *map(str, arguments)]
    process = _context.Process(
        target=_run, args=(home, command, log, instant, largest_file, silent_seconds, environment)
    )
    process.start()
    return Child(home, process, log)


@contextmanager
def workspace_at(home: Path) -> Iterator[None]:
    """`home` is the repository in which this process works, code apart."""
    published = home / "models" / "faster_rcnn" / "checkpoint.pth"
    with mock.patch.multiple(workspace, ROOT=home, RUNS=home / "runs", PUBLISHED=published):
        yield


def run(home: Path, name: str, *arguments: object, **options: Any) -> Child:
    """As start, to its end."""
    return start(home, name, *arguments, **options).wait()


def _run(
    home: Path,
    command: list[str],
    log: Path,
    instant: Instant | None,
    largest_file: int | None,
    silent_seconds: float | None,
    environment: dict[str, str],
) -> None:
    began = time.monotonic()
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    for variable in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
        del os.environ[variable]
    os.environ.update(environment)
    os.chdir(home)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a shell
    if silent_seconds is not None:
        mock.patch("tracking.pulse.SILENT_SECONDS", silent_seconds).start()
    watch = Watch(home, instant)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start: write() fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = command
    try:
        with workspace_at(home):
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    finally:
        sys.stdout.flush()
        seen = {**watch.counts, "seconds": time.monotonic() - began}
        log.with_suffix(".json").write_text(json.dumps(seen))
