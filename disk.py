"""The space that a run's checkpoints need: forecast before training, held against --disk-budget, and a full disk."""

import contextlib
import errno
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import workspace
from retention import KEEP_ALL, parse_keep
from tracking.errors import StoreFull
from tracking.journal import OUTBOX, Queued
from tracking.records import CHECKPOINT_FILE
from workspace import RunFolder

LEAST = "best,last"
FEWER = (LEAST, f"{LEAST},every:10", f"{LEAST},every:5", f"{LEAST},every:2")  # what is proposed, the simplest first
# RLIMIT_FSIZE, a limit on single files, is a full disk to whoever writes.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OverBudget(OSError):
    """The run may use no more space; handled as a full disk."""

    def __init__(self, message: str):
        super().__init__(errno.EDQUOT, message)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is still to be written, and where."""

    checkpoint_bytes: int
    names: tuple[str, ...]  # of the checkpoints to come
    keep: str
    artifact_root: Path | None  # of the store; None where that is elsewhere
    publishes: bool

    def files_kept(self, keep: str) -> int:
        """How many of the checkpoints to come lie in the store at once, at most."""
        due = len(self.names) - len(parse_keep(keep).superseded(self.names, stay=()))
        return min(len(self.names), due + 2)  # the best and the last beside those

    def needs(self, keep: str) -> dict[Path, int]:
        """Bytes at the peak by place; places on one disk are one, where hard links cost nothing."""
        if not self.names:
            return {}
        # While one is written, the store has the older ones, last.pth is of before the validation, and the recovery
        # point of before that.
        older = min(len(self.names) - 1, self.files_kept(keep))
        files = [(workspace.RUNS, 3), (workspace.PUBLISHED.parent, int(self.publishes))]
        if self.artifact_root is None:
            files.append((workspace.RUNS, 1))  # in the outbox, until the server has it
        elif disk_of(self.artifact_root) == disk_of(workspace.RUNS):
            files.append((self.artifact_root, older))
        else:
            files += [(workspace.RUNS, 1), (self.artifact_root, older + 1)]
        places: dict[int, Path] = {}
        needs: dict[Path, int] = {}
        for path, count in files:
            place = places.setdefault(disk_of(path), nearest_folder(path))
            needs[place] = needs.get(place, 0) + count * self.checkpoint_bytes
        return needs

    def bytes(self, keep: str | None = None) -> int:
        return sum(self.needs(keep or self.keep).values())

    def __str__(self) -> str:
        """What, and how much: `24 checkpoints of 331 MB need 8.6 GB at the peak`."""
        count = len(self.names)
        kept = f", of which --keep {self.keep} leaves at most {self.files_kept(self.keep)},"
        kept = "" if self.keep == KEEP_ALL else kept
        named = "1 checkpoint" if count == 1 else f"{count} checkpoints"
        needs = f"need{'s' * (count == 1)} {in_words(self.bytes())} at the peak"
        return f"{named} of {in_words(self.checkpoint_bytes)}{kept} {needs}"

    def shortage(self) -> str | None:
        """Which disk has too little room, in one line with what to do; None where all have enough."""
        for place, needed in self.needs(self.keep).items():
            free = shutil.disk_usage(place).free
            if needed > free:
                least = self.bytes(LEAST)
                fewer = f", or keep fewer: --keep {LEAST} needs {in_words(least)}" if least < self.bytes() else ""
                return f"{self}; {place} has {in_words(free)} free. Free some (prune.py){fewer}"
        return None

    def over(self, limit: int, held: int) -> str | None:
        """Why it does not fit into `limit` bytes beside what is `held`, and the --keep that would; None if it fits."""
        if held + self.bytes() <= limit:
            return None
        has = f", beside {in_words(held)} that the run has already" if held else ""
        fitting = max((keep for keep in FEWER if held + self.bytes(keep) <= limit), key=self.bytes, default=None)
        needed = in_words(held + self.bytes(fitting or LEAST))
        mend = f"--keep {fitting} would fit, with {needed}" if fitting else f"Even --keep {LEAST} needs {needed}"
        return f"{self}{has}: more than --disk-budget {in_words(limit)}. {mend}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """--disk-budget of one run: the space that it may use on this machine."""

    limit: int | None
    folder: RunFolder
    artifacts: Path | None  # of the run; None where the store is elsewhere
    checkpoint_bytes: int

    def require_room(self, kept: Mapping[str, Queued]) -> None:
        """OverBudget when another checkpoint would pass the limit; `kept` are those in the store or on their way."""
        if self.limit is None:
            return
        used = self.used(kept)
        if used + self.checkpoint_bytes > self.limit:
            of, budget = in_words(self.checkpoint_bytes), in_words(self.limit)
            raise OverBudget(
                f"The run uses {in_words(used)}: a checkpoint of {of} more would pass --disk-budget {budget}"
            )

    def used(self, kept: Mapping[str, Queued]) -> int:
        """Bytes in runs/<run id>, of the checkpoints in a local store, and of the run's copy at models/faster_rcnn."""
        is_ours = self.folder.state().get("published")
        published = workspace.PUBLISHED.stat().st_size if is_ours and workspace.PUBLISHED.exists() else 0
        folders = [self.folder.path] if self.artifacts is None else [self.folder.path, self.artifacts]
        files = [entry for folder in folders for entry in files_below(folder)]
        if self.artifacts is None:
            return published + sum({entry.st_ino: entry.st_size for _, entry in files}.values())
        # What has links in other places, the outbox or the store's models, is a checkpoint, and `kept` counts it.
        outbox = self.folder.path / OUTBOX
        others = [entry for path, entry in files if not (path.name == CHECKPOINT_FILE and outbox in path.parents)]
        links = Counter(entry.st_ino for entry in others)
        sizes = {entry.st_ino: entry.st_size for entry in others if links[entry.st_ino] == entry.st_nlink}
        return published + sum(one.size_bytes for one in kept.values()) + sum(sizes.values())


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for path in (Path(place) / name for name in names):
            with contextlib.suppress(FileNotFoundError):  # the sender removes what it has delivered
                yield path, path.stat()


def nearest_folder(path: Path) -> Path:
    """The folder, or the one in which it will be made."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disk_of(path: Path) -> int:
    return nearest_folder(path).stat().st_dev


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a full disk."""
    while error is not None:
        if isinstance(error, StoreFull) or (isinstance(error, OSError) and error.errno in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def told(error: BaseException, folder: RunFolder) -> str:
    """A full disk that stopped a run, what it left, and how to go on."""
    if isinstance(error, OverBudget):
        what, mend = error.strerror, "With a larger budget, or with --keep best,last"
    else:
        experiment = shlex.quote(folder.state().get("experiment") or "NAME")
        what = f"The disk is full: {error}"
        mend = f"Free some (python prune.py --experiment {experiment} --keep best,last shows what could go)"
    if not folder.last.exists():
        return f"{what}. Nothing was saved yet. {mend}, and start again"
    return (
        f"{what}. The last good checkpoint stays: {folder.last}. {mend}, then: python train.py --resume {folder.run_id}"
    )


def in_words(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
