"""Which images look alike, by their perceptual hashes (scan.look_of): the same photo, or the same scene a moment later.

Measured on 848 photos of facemask and 364 of bccd, all pairs looked at: the 21 pairs within both distances show one
scene each (copies, other crops, watermarks, bursts); of the 9 with 10 bits two do not. The finer hash is there for
large sets, where pairs agree in 64 bits by chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.checks.scan_cache import LOOK_BYTES, ImageScan
from data.readers.found import FoundImage

COARSE_BYTES, COARSE_BITS = 8, 64
MOST_COARSE = 8  # bits that may differ, of 64
MOST_FINE = 80  # of 256; unlike images differ in 128 ± 8
# What differs in at most 8 bits is equal in at least one of 9 bands, so only images of an equal band are compared.
BANDS = MOST_COARSE + 1
MASKS = [
    np.uint64((1 << (band + 1) * COARSE_BITS // BANDS) - (1 << band * COARSE_BITS // BANDS)) for band in range(BANDS)
]
ROWS, MOST_AT_ONCE = 64, 1 << 20  # of a table of comparisons: what the processor's cache holds

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # int64 i, int64 j > i, uint8 bits of 64 that differ


def pairs_alike(looks: np.ndarray) -> Iterator[Pairs]:
    """Every pair of rows of `looks`, uint8 (N, scan_cache.LOOK_BYTES), that look alike, once, in several parts."""
    coarse = np.ascontiguousarray(looks[:, :COARSE_BYTES]).view("<u8")[:, 0]
    fine = np.ascontiguousarray(looks[:, COARSE_BYTES:]).view("<u8")
    for band in range(BANDS):
        keys = coarse & MASKS[band]
        order = np.argsort(keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            rows = min(ROWS, 1 + MOST_AT_ONCE // max(1, len(members)))
            for start in range(0, len(members) - 1, rows):
                yield from _compared(coarse, fine, members[start : start + rows], members[start:], band)


def _compared(
    coarse: np.ndarray, fine: np.ndarray, rows: np.ndarray, columns: np.ndarray, band: int
) -> Iterator[Pairs]:
    differing = np.bitwise_count(coarse[rows, None] ^ coarse[columns])
    at = np.nonzero(differing <= MOST_COARSE)
    i, j, bits = rows[at[0]], columns[at[1]], differing[at]
    is_new = i < j  # members are in order, so of a pair's two cells, or an image's own, one is left
    i, j, bits = i[is_new], j[is_new], bits[is_new]
    for mask in MASKS[:band]:  # those that an earlier band has found
        is_new = (coarse[i] ^ coarse[j]) & mask != 0
        i, j, bits = i[is_new], j[is_new], bits[is_new]
    alike = np.bitwise_count(fine[i] ^ fine[j]).sum(axis=1) <= MOST_FINE
    if alike.any():
        yield i[alike], j[alike], bits[alike]


def looks_of(images: Sequence[FoundImage], scans: Mapping[Path, ImageScan]) -> np.ndarray:
    """uint8 (N, LOOK_BYTES), of images that have a look."""
    looks = b"".join(scans[image.path].look for image in images)
    return np.frombuffer(looks, np.uint8).reshape(-1, LOOK_BYTES)
