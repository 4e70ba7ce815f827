"""What scans saw of image files, kept from one start to the next: a file for each data set's root.

A file may be replaced within the tick of a file system's clock and keep its size, so what was modified just before it
was seen is seen again at the next start (git's index does the same).
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.images import ImageFacts
from progress import say

FOLDER = Path(__file__).resolve().parents[1] / ".cache"
FORMAT = 2  # raise it when a scan sees anything otherwise than before: pixels, looks, facts
SETTLED_SECONDS = 2.0
LOOK_BYTES = 40
ROW = np.dtype(
    [
        *(("size", "<i8"), ("mtime_ns", "<i8"), ("width", "<i4"), ("height", "<i4")),
        *(("sha256", "V32"), ("look", f"V{LOOK_BYTES}"), ("brightest", "u1"), ("facts", "<i4")),
    ]
)
NO_LOOK = bytes(LOOK_BYTES)

_complaints: set[Path] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScan:
    """What was seen of an image file."""

    width: int  # pixels as displayed, i.e. after the EXIF orientation
    height: int
    sha256: str  # of the file
    error: str | None = None  # why it cannot be read; all else means nothing then
    brightest: int = 255  # of all channels, in 8 bits as training sees them
    look: bytes | None = None  # perceptual hashes, LOOK_BYTES; None: of one colour, like any number of others
    facts: ImageFacts | None = None  # of the file's header


Stamp = tuple[int, int]  # size and mtime_ns of a file


def stamp_of(path: Path) -> Stamp | None:
    """What tells that a file is the same as before; None where it cannot be looked at."""
    try:
        found = os.stat(path)  # noqa: PTH116 a Path's takes twice as long
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class ScanCache:
    """The kept scans of the files under `root`."""

    def __init__(self, root: Path):
        self.root = f"{root}/"
        self.path = FOLDER / f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.cache"
        self.rows, self.facts = self._read()

    def get(self, path: Path, stamp: Stamp | None) -> ImageScan | None:
        """What was seen of the file, if it still has the stamp that it had then."""
        row = self.rows.get(self._name(path))
        if row is None or row[:2] != stamp:
            return None
        _, _, width, height, sha256, look, brightest, facts = row
        return ImageScan(
            width=width,
            height=height,
            sha256=sha256.hex(),
            brightest=brightest,
            look=None if look == NO_LOOK else look,
            facts=self.facts[facts],
        )

    def keep(self, scans: Mapping[Path, tuple[Stamp, ImageScan]]) -> None:
        """Write {path: (its stamp before it was read, what was seen)} beside what is kept of other files."""
        settled = (time.time() - SETTLED_SECONDS) * 1e9
        numbers = {repr(facts): number for number, facts in enumerate(self.facts)}
        changed = False
        for path, (stamp, scan) in scans.items():
            if scan.error is not None or stamp[1] > settled:
                continue
            if repr(scan.facts) not in numbers:
                numbers[repr(scan.facts)] = len(self.facts)
                self.facts.append(scan.facts)
            seen = (scan.width, scan.height, bytes.fromhex(scan.sha256), scan.look or NO_LOOK, scan.brightest)
            self.rows[self._name(path)] = (*stamp, *seen, numbers[repr(scan.facts)])
            changed = True
        if changed:
            self._write()

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(self.root)

    def _seal(self, content: bytes) -> bytes:
        """That of another version, another root or a damaged file is another."""
        return hashlib.sha256(f"{FORMAT} {ROW}\0".encode() + os.fsencode(self.root) + content).digest()

    def _read(self) -> tuple[dict[str, tuple], list[ImageFacts]]:
        try:
            stored = self.path.read_bytes()
        except OSError:
            return {}, []
        seal, content = stored[:32], stored[32:]
        if seal != self._seal(content):
            return {}, []
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names, table, facts = arrays["names"].tobytes(), arrays["table"], arrays["facts"].tobytes()
        rows = dict(zip(os.fsdecode(names).split("\0"), table.tolist(), strict=True))
        return rows, [ImageFacts(**each) for each in json.loads(facts)]

    def _write(self) -> None:
        buffer = io.BytesIO()
        np.savez(
            buffer,
            names=np.frombuffer(os.fsencode("\0".join(self.rows)), np.uint8),
            table=np.array(list(self.rows.values()), ROW),
            facts=np.frombuffer(json.dumps([asdict(each) for each in self.facts]).encode(), np.uint8),
        )
        content = buffer.getvalue()
        # Several trainings may write at once: each its own file, and the last one stays.
        partial = self.path.with_name(f".{self.path.name}.{os.uname().nodename}.{os.getpid()}.partial")
        try:
            FOLDER.mkdir(exist_ok=True)
            partial.write_bytes(self._seal(content) + content)
            partial.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            if FOLDER not in _complaints:
                _complaints.add(FOLDER)
                say(f"note: {FOLDER} cannot be written ({error.strerror}): the images are scanned anew at every start")
