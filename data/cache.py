"""Decoded images in memory that a process shares with the loader workers it forks: each is decoded once."""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from data.records import DataError, Record

CONTROL_GROUPS = Path("/sys/fs/cgroup")


class ImageCache:
    """A place for the pixels of each of as many images as fit into `limit` bytes: the smallest of `records` first.

    The memory is anonymous, not a file in /dev/shm, of which containers have little, and is taken page by page as
    images come. Whichever process reads an image first puts it there. Drawn images have no place: they are not read.
    DataError where the system does not give so much memory.
    """

    def __init__(self, records: Sequence[Record], limit: int):
        sizes = np.array([0 if each.path is None else 1 + 3 * each.height * each.width for each in records], np.int64)
        order = np.argsort(sizes, kind="stable")
        order = order[sizes[order] > 0]
        ends = np.cumsum(sizes[order])
        order = order[ends <= limit]
        self.wanted, self.held = len(ends), len(order)
        self.bytes = int(ends[self.held - 1]) if self.held else 0
        self._starts = np.full(len(records), -1)
        self._starts[order] = ends[: self.held] - sizes[order]
        try:
            memory = mmap.mmap(-1, max(1, self.bytes))
        except OSError as error:
            raise DataError(f"There are no {self.bytes:,} bytes of memory for --cache: {error.strerror}") from error
        self._memory = np.frombuffer(memory, np.uint8)

    def __reduce__(self) -> tuple:
        """None to a process that is spawned, not forked: it shares no memory with this one, and reads the files."""
        return type(None), ()

    def image(self, index: int, record: Record, read: Callable[[Record], np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) pixels of the record at `index`, the caller's own: from their place, or by `read`."""
        start = self._starts[index]
        if start < 0:
            return read(record)
        shape = (record.height, record.width, 3)
        place = self._memory[start + 1 : start + 1 + math.prod(shape)].reshape(shape)
        if self._memory[start]:
            return place.copy()
        pixels = read(record)
        # Two may do this at once, with the same pixels. Nobody reads them meanwhile: an epoch has each image once, and
        # the workers of the next are forked after it.
        place[:] = pixels
        self._memory[start] = True  # last: a worker that is killed before leaves nothing that is believed
        return pixels


def available_memory(groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may still take: the machine's, or its control groups' where one of these has less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(groups, own)]))


def _left_in_groups(groups: Path, own: Path) -> Iterator[int]:
    """Bytes left in each control group that limits us: our own and those above it, of version 2 or 1."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            top, limit, used, prefix = groups, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, used, prefix = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        lowest = top / name.strip("/")  # in a container it may not be there, and the top is our own
        for folder in (lowest, *lowest.parents[: len(lowest.parts) - len(top.parts)]):
            if (folder / limit).exists() and (most := (folder / limit).read_text().strip()) != "max":
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = int(counts[f"{prefix}inactive_file"]) + int(counts[f"{prefix}active_file"])  # these give way
                yield int(most) - int((folder / used).read_text()) + files
