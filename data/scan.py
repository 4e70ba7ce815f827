"""One look at every image file: is it readable, what are its size and its content."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.images import read_image
from data.records import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScan:
    width: int  # pixels as displayed, i.e. after the EXIF orientation
    height: int
    sha256: str  # of the file
    error: str | None = None  # why it cannot be read; the size means nothing then


def scan_images(paths: Sequence[Path]) -> dict[Path, ImageScan]:
    """{path: what was seen}; decodes every file as training will."""
    with ThreadPoolExecutor(8) as pool:  # reading and decoding release the GIL
        return dict(zip(paths, pool.map(_scan, paths), strict=True))


def _scan(path: Path) -> ImageScan:
    try:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return ImageScan(width=0, height=0, sha256="", error=error.strerror)
    try:
        height, width = read_image(path).shape[:2]
    except DataError as error:
        return ImageScan(width=0, height=0, sha256=content, error=str(error))
    return ImageScan(width=width, height=height, sha256=content)
