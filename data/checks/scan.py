"""One look at every image file: is it readable, what are its size and its content, what does it look like.

The only door to ImageHash.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from data.checks.scan_cache import ImageScan, ScanCache, stamp_of
from data.images import content_of, image_facts, pixels_of
from data.records import DataError
from progress import Progress

THREADS = 8  # reading and decoding release the GIL; more than the cores, because disks are slow
AT_ONCE = 256  # files handed to the threads
SHRUNK = 64  # px: what the finer of the two hashes is computed from
LEAST_CONTRAST = 2.0  # standard deviation of grey levels; with less, hashes are of noise


def scan_images(paths: Iterable[Path], root: Path) -> dict[Path, ImageScan]:
    """{path: what was seen}; decodes every file as training will, or knows it from an earlier start.

    `root` is the data set's: scans of its files are kept together.
    """
    cache = ScanCache(root)
    stamps = {path: stamp_of(path) for path in dict.fromkeys(paths)}
    scans = {path: cache.get(path, stamp) for path, stamp in stamps.items()}
    todo = [path for path, scan in scans.items() if scan is None]
    if not todo:
        return scans
    try:
        with Progress("scan images", len(todo), unit="images") as progress, ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(todo), AT_ONCE):
                some = todo[start : start + AT_ONCE]
                for path, scan in zip(some, pool.map(_scan, some), strict=True):
                    scans[path] = scan
                    progress.step()
    finally:  # an interrupted scan need not begin again
        cache.keep({path: (stamps[path], scans[path]) for path in todo if scans[path] is not None})
    return scans


def _scan(path: Path) -> ImageScan:
    try:
        content = content_of(path)
        pixels = pixels_of(content, path)
        facts = image_facts(path, content)
    except DataError as error:
        return ImageScan(width=0, height=0, sha256="", error=str(error))
    height, width = pixels.shape[:2]
    return ImageScan(
        width=width,
        height=height,
        sha256=hashlib.sha256(content).hexdigest(),
        brightest=int(pixels.max()),
        look=look_of(pixels),
        facts=facts,
    )


def look_of(pixels: np.ndarray) -> bytes | None:
    """Two perceptual hashes of an image, of 64 and 256 bits: see data/checks/lookalikes.py; None for a plain surface.

    Pillow shrinks in whole numbers, so another processor sees the same.
    """
    shrunk = Image.fromarray(pixels).resize((SHRUNK, SHRUNK), Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    if np.asarray(shrunk).std() < LEAST_CONTRAST:
        return None
    return b"".join(np.packbits(imagehash.phash(shrunk, hash_size=side).hash).tobytes() for side in (8, 16))
