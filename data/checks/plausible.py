"""Whether a split's boxes are meant as they were read: another order, another corner, fractions for pixels.

A slip is one box; here it is so many that the file must mean something else by its numbers.
"""

import numpy as np

from data.checks.boxes import CLIP_TOLERANCE, SMALLEST_SIDE, Boxes, sides_of
from data.readers.found import SHAPES, Shape
from data.readers.rows import FRACTION_LIMIT

ENOUGH = 20  # boxes of a split, to judge them
MANY = 0.05  # share of the boxes that do not fit their images, above which other readings are tried
EXPLAINED = 0.9  # share of these that fit in another reading, to believe it
SIZE_FIRST = ", the last two first"
# In which order four numbers may stand, beside the usual one.
ORDERS = {
    "": [0, 1, 2, 3],
    ", y before x": [1, 0, 3, 2],
    ", x x y y": [0, 2, 1, 3],
    SIZE_FIRST: [2, 3, 0, 1],
}


def implausible(boxes: Boxes, shape: Shape) -> str | None:
    """What is wrong with so many of a split's boxes, which were read as of `shape`, that they are meant otherwise."""
    is_finite = np.isfinite(boxes.corners).all(axis=1)
    corners, size = boxes.corners[is_finite], boxes.size[is_finite]
    count = len(corners)
    if count < ENOUGH:
        return None
    if np.count_nonzero(np.abs(corners).max(axis=1) <= FRACTION_LIMIT) > count / 2:
        return f"most of the {count} boxes lie within two pixels: are they fractions of the image, not pixels?"
    if _fills(corners, 100) and size.min() >= 2 * 100:
        return f"all {count} boxes lie within 0 and 100 and fill that: are they percentages, not pixels?"
    misfits = _misfits(corners, size)
    if misfits <= MANY * count:
        return None
    rest, meaning = min(_other_readings(corners, size, shape))
    if rest <= (1 - EXPLAINED) * misfits:
        told = f"{misfits} of the {count} boxes, read as {SHAPES[shape]}, have no size or leave their images"
        return f"{told}; read as {meaning}, {rest or 'none'} would. Which are they? Mend the file"
    if np.count_nonzero((sides_of(corners) < SMALLEST_SIDE).any(axis=1)) > count / 2:
        return f"most of the {count} boxes have no size: is the order of their numbers another?"
    if misfits > count / 2:
        return f"most of the {count} boxes leave their images: are they of images of another size, or in another order?"
    return None


def _fills(corners: np.ndarray, most: float) -> bool:
    """Whether all coordinates are in 0..most, and come near to it to the right and below."""
    return bool(corners.min() >= 0 and corners.max() <= most and (corners[:, 2:].max(axis=0) > 0.95 * most).all())


def _other_readings(corners: np.ndarray, size: np.ndarray, shape: Shape) -> list[tuple[int, str]]:
    """(how many boxes would not fit, how they were read) of every other way to read their four numbers."""
    written = _written(corners, shape)
    return [
        (_misfits(_read(written[:, order], other), size), meaning + told)
        for told, order in ORDERS.items()
        for other, meaning in SHAPES.items()
        # Of others than centres, boxes fit as well with the two halves exchanged, and those of no size do then.
        if (other, told) != (shape, "") and (told != SIZE_FIRST or other == "centre")
    ]


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
