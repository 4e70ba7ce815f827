"""Whether a split's boxes are meant as they were read: another order, another corner, fractions for pixels.

A slip is one box; here it is so many that the file must mean something else by its numbers.
"""

import numpy as np

from data.checks.boxes import CLIP_TOLERANCE, SMALLEST_SIDE, Boxes, sides_of
from data.readers.found import SHAPES, Shape
from data.readers.rows import FRACTION_LIMIT
from data.records import REFUSED

ENOUGH = 20  # boxes of a split, to judge them
MANY = 0.05  # share of the boxes that do not fit their images, above which other readings are tried
EXPLAINED = 0.9  # share of these that fit in another reading, to believe it
ANYWAY = "used as far as they are boxes"
Y_FIRST = [1, 0, 3, 2]


def implausible(boxes: Boxes, shape: Shape) -> tuple[str, str] | None:
    """(what is wrong with many of a split's boxes, which were read as of `shape`, and what is done), or None."""
    is_finite = np.isfinite(boxes.corners).all(axis=1)
    corners, size = boxes.corners[is_finite], boxes.size[is_finite]
    count = len(corners)
    if count < ENOUGH:
        return None
    if np.count_nonzero(np.abs(corners).max(axis=1) <= FRACTION_LIMIT) > count / 2:
        return f"most of the {count} boxes lie within two pixels: are they fractions of the image, not pixels?", REFUSED
    if _fills(corners, 100) and size.min() >= 2 * 100:
        return f"all {count} boxes lie within 0 and 100 and fill that: are they percentages, not pixels?", REFUSED
    misfits = _misfits(corners, size)
    if misfits <= MANY * count:
        return None
    rest, meaning = min(_other_readings(corners, size, shape))
    if rest <= (1 - EXPLAINED) * misfits:
        told = f"{misfits} of the {count} boxes, read as {SHAPES[shape]}, have no size or leave their images"
        return f"{told}; read as {meaning}, {rest or 'none'} would. Which are they? Mend the file", REFUSED
    if np.count_nonzero((sides_of(corners) < SMALLEST_SIDE).any(axis=1)) > count / 2:
        return f"most of the {count} boxes have no size: is the order of their numbers another?", ANYWAY
    if misfits > count / 2:
        return f"most of the {count} boxes leave their images: are they of images of another size?", ANYWAY
    return None


def _fills(corners: np.ndarray, most: float) -> bool:
    """Whether all coordinates are in 0..most, and come near to it to the right and below."""
    return bool(corners.min() >= 0 and corners.max() <= most and (corners[:, 2:].max(axis=0) > 0.95 * most).all())


def _other_readings(corners: np.ndarray, size: np.ndarray, shape: Shape) -> list[tuple[int, str]]:
    """(how many boxes would not fit, how they were read) of every other way to read their four numbers."""
    written = _written(corners, shape)
    readings = {meaning: _read(written, other) for other, meaning in SHAPES.items() if other != shape}
    for other, meaning in SHAPES.items():
        readings[f"{meaning}, y before x"] = _read(written[:, Y_FIRST], other)
    return [(_misfits(read, size), meaning) for meaning, read in readings.items()]


def _read(written: np.ndarray, shape: Shape) -> np.ndarray:
    """Corners (N, 4) xyxy of boxes that are written as of `shape`."""
    if shape == "corners":
        return written
    start, sides = written[:, :2], written[:, 2:]
    start = start - sides / 2 if shape == "centre" else start
    return np.concatenate([start, start + sides], axis=1)


def _written(corners: np.ndarray, shape: Shape) -> np.ndarray:
    """The inverse of _read."""
    if shape == "corners":
        return corners
    sides = sides_of(corners)
    return np.concatenate([corners[:, :2] + sides / 2 if shape == "centre" else corners[:, :2], sides], axis=1)


def _misfits(corners: np.ndarray, size: np.ndarray) -> int:
    """How many boxes (N, 4) have no size or leave their image of `size` (N, 2)."""
    over = np.abs(corners - np.clip(corners, 0, np.tile(size, 2))).max(axis=1) > CLIP_TOLERANCE
    return np.count_nonzero(over | (sides_of(corners) < SMALLEST_SIDE).any(axis=1))
