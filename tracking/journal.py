"""A run's journal: what is to reach the tracking store, kept on disk until the store has confirmed it."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

JOURNAL, SENT, LOCK, REFUSED, OUTBOX = (
    "journal.jsonl",
    "journal.sent",
    "journal.lock",
    "journal.refused.jsonl",
    "outbox",
)


DROPPED = "dropped"


def dropped_mark(spool: Path) -> Path:
    """The file beside a checkpoint's place in the outbox that says, as its tag will, that it was pruned unsent."""
    return spool.with_name(DROPPED)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Queued(NamedTuple):
    """A checkpoint that was queued."""

    step: int
    size_bytes: int


class Journal:
    """An append-only file of operations (one JSON object a line) and the offset up to which the store has them.

    Several threads and instances may append; whoever holds `lock` delivers.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self._append_lock = threading.Lock()
        self._descriptor: int | None = None
        self._history: _History | None = None

    def append(self, operation: dict) -> None:
        """Writes one operation, stamped with the time now unless it has one; on disk at return, metrics apart."""
        operation = {"op": operation["op"], "time": now_ms(), **operation}
        line = (json.dumps(operation, separators=(",", ":")) + "\n").encode()
        with self._append_lock:
            descriptor = self._writer()
            with _alone(descriptor):
                _write_whole(descriptor, line)
            if self._history is not None:
                self._history.note(operation)
        if operation["op"] != "metrics":
            os.fsync(descriptor)  # outside the lock: the training loop's numbers must not wait for the disk

    def operations(self, start: int = 0) -> Iterator[tuple[int, dict]]:
        """The whole operations from a byte offset on, each with the offset where it ends."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(start)
            end = start
            for line in stream:
                if not line.endswith(b"\n"):
                    return  # being written, or torn by a crash; the next writer cuts it off
                end += len(line)
                yield end, _parse(line)

    def pending(self) -> Iterator[tuple[int, dict]]:
        """The operations that the store has not confirmed."""
        return self.operations(self.sent())

    def sent(self) -> int:
        """The confirmed offset; 0 where it is unknown, since delivering twice is harmless."""
        try:
            return max(0, int((self.folder / SENT).read_text()))
        except (OSError, ValueError):
            return 0

    def acknowledge(self, offset: int) -> None:
        partial = self.folder / f"{SENT}.partial"
        partial.write_text(f"{offset}\n")
        partial.replace(self.folder / SENT)

    def refuse(self, operation: dict, reason: str) -> None:
        """Keeps an operation that the store will never take, and why."""
        line = json.dumps({"time": now_ms(), "reason": reason, "operation": operation}, separators=(",", ":"))
        with (self.folder / REFUSED).open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def refused(self) -> list[dict]:
        """The refusals: {time, reason, operation} each."""
        path = self.folder / REFUSED
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [_parse(line) for line in lines if line.endswith(b"\n")]

    def unsent(self) -> dict[str, int]:
        """What the store has not got: operations, metric values, checkpoints, bytes of files; and what it refused."""
        counts = {"operations": 0, "metrics": 0, "checkpoints": 0, "bytes": 0, "refused": len(self.refused())}
        for _, operation in self.pending():
            counts["operations"] += 1
            counts["metrics"] += len(operation.get("metrics", ()))
            counts["checkpoints"] += operation["op"] == "checkpoint"
            counts["bytes"] += self._spool_bytes(operation)
        return counts

    def last_step(self) -> int:
        """The highest step whose train metrics are journalled, 0 before the first: none of these is sent again."""
        return self._past().last_train_step

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """The (step, value) of every metric but the machine's load, in the order in which they came."""
        past = self._past()
        with self._append_lock:
            return {key: list(points) for key, points in past.points.items()}

    def has_checkpoint(self, name: str) -> bool:
        return name in self._past().checkpoints

    def kept_checkpoints(self) -> dict[str, Queued]:
        """The checkpoints that were queued and not pruned, by name."""
        past = self._past()
        with self._append_lock:
            return {name: queued for name, queued in past.checkpoints.items() if name not in past.pruned}

    def last_checkpoint_step(self) -> int:
        """The step of the newest checkpoint that was queued, 0 before the first."""
        return self._past().last_checkpoint_step

    def has_ended(self) -> bool:
        """Whether the journal's last word on the run is that it ended."""
        return self._past().ended

    def lock(self) -> int | None:
        """Claims the right to deliver: a descriptor to close afterwards, or None where another process delivers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def close(self) -> None:
        with self._append_lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _writer(self) -> int:
        if self._descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            with _alone(self._descriptor):
                self._cut_torn_tail(self._descriptor)
        return self._descriptor

    def _cut_torn_tail(self, descriptor: int) -> None:
        size = _end_of_last_line(descriptor)
        if size != os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, size)
        # A power cut can take lines that were delivered but not yet on disk; what is written next is new all the same.
        if self.sent() > size:
            self.acknowledge(size)

    def _past(self) -> "_History":
        with self._append_lock:
            if self._history is None:
                self._history = _History()
                for _, operation in self.operations():
                    self._history.note(operation)
            return self._history

    def _spool_bytes(self, operation: dict) -> int:
        spool = operation.get("spool")
        path = self.folder / spool if spool else None
        return path.stat().st_size if path is not None and path.exists() else 0


class _History:
    """What a resumed run must know of its own past."""

    def __init__(self):
        self.last_train_step = 0
        self.checkpoints: dict[str, Queued] = {}
        self.pruned: set[str] = set()
        self.last_checkpoint_step = 0
        self.ended = False
        self.points: dict[str, list[tuple[int, float]]] = {}

    def note(self, operation: dict) -> None:
        for key, value in (operation.get("metrics") or {}).items():
            if not key.startswith("system/"):
                self.points.setdefault(key, []).append((operation["step"], value))
        if operation["op"] == "checkpoint":
            size_bytes = int(operation.get("tags", {}).get("size_bytes", 0))
            self.checkpoints[operation["name"]] = Queued(operation["step"], size_bytes)
            self.last_checkpoint_step = operation["step"]
        elif operation["op"] == "prune":
            self.pruned.add(operation["checkpoint"])
        elif operation["op"] == "metrics" and any(name.startswith("train/") for name in operation["metrics"]):
            self.last_train_step = max(operation["step"], self.last_train_step)
        elif operation["op"] in ("end", "resume"):
            self.ended = operation["op"] == "end"


def _parse(line: bytes) -> dict:
    try:
        operation = json.loads(line)
    except ValueError:  # a bad block, or an edit by hand
        operation = None
    if isinstance(operation, dict) and ("op" in operation or "operation" in operation):
        return operation
    return {"op": "unreadable", "line": line.decode(errors="backslashreplace")}


@contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """No other writer in between: neither another process nor another descriptor of this one."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_whole(descriptor: int, line: bytes) -> None:
    """Writes all of the line or, where that fails (a full disk), none of it."""
    start = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, start)
        raise


def _end_of_last_line(descriptor: int, block: int = 65536) -> int:
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
