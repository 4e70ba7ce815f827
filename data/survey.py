"""The numbers of a data set: how many, how large, where, of which class. Plain values, for a report or a figure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.records import DetectionData, Record

SMALL, MEDIUM = 32**2, 96**2  # square pixels: COCO's bounds
STEPS_AN_OCTAVE = 4
SIDE_EDGES = 2 ** np.arange(0, 12 + 1e-9, 1 / STEPS_AN_OCTAVE)  # px, of the histogram of box sides: 1 to 4096
PLACES = 24  # cells across and down an image, of the map of where boxes lie
QUANTILES = (0.05, 0.5, 0.95)


def survey(data: DetectionData) -> dict[str, Any]:
    """What check_data.py tells beside the defects; a box's side is √(width × height), in pixels of the file."""
    records = [record for records in data.splits.values() for record in records]
    boxes, labels = _all(records, "boxes", (0, 4)), _all(records, "labels", (0,))
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return {
        "splits": {split: _counts(records) for split, records in data.splits.items()},
        "classes": _named(data, records),
        "classes_by_split": {split: _named(data, records) for split, records in data.splits.items()},
        "boxes_an_image": {split: _spread(records) for split, records in data.splits.items()},
        "box_sides": {
            name: np.quantile(sides[labels == label], QUANTILES).round(1).tolist()
            for label, name in enumerate(data.classes, start=1)
            if (labels == label).any()
        },
        "box_areas": _coco_areas(_all(records, "area", (0,))),
        "side_histogram": {"edges": SIDE_EDGES.tolist(), "boxes": _histogram(sides)},
        "places": _places(records, boxes),
        "image_sizes": _image_sizes(records),
    }


def boxes_by_class(records: Sequence[Record], classes: int) -> np.ndarray:
    """(classes,) how many boxes each class has."""
    return np.bincount(_all(records, "labels", (0,)), minlength=classes + 1)[1:]


def _all(records: Sequence[Record], name: str, empty: tuple[int, ...]) -> np.ndarray:
    """An array of all records in one."""
    arrays = [getattr(record, name) for record in records]
    return np.concatenate(arrays) if arrays else np.zeros(empty, dtype=np.int64)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    counts = np.array([len(record.boxes) for record in records], dtype=np.int64)
    return {"images": len(records), "boxes": int(counts.sum()), "empty": int((counts == 0).sum())}


def _named(data: DetectionData, records: Sequence[Record]) -> dict[str, int]:
    return dict(zip(data.classes, boxes_by_class(records, len(data.classes)).tolist(), strict=True))


def _spread(records: Sequence[Record]) -> dict[str, float]:
    counts = [len(record.boxes) for record in records] or [0]
    return {"least": min(counts), "median": float(np.median(counts)), "most": max(counts)}


def _coco_areas(area: np.ndarray) -> dict[str, int]:
    """Boxes by the areas for which COCO scores have names; of a mask, where the annotations have one."""
    small, large = int((area < SMALL).sum()), int((area >= MEDIUM).sum())
    return {"small": small, "medium": len(area) - small - large, "large": large}


def _histogram(sides: np.ndarray) -> list[int]:
    return np.histogram(np.clip(sides, SIDE_EDGES[0], SIDE_EDGES[-1]), SIDE_EDGES)[0].tolist()


def _places(records: Sequence[Record], boxes: np.ndarray) -> list[list[int]]:
    """PLACES rows from the top, each from the left: how many boxes have their centre there."""
    sizes = np.array([(record.width, record.height) for record in records], dtype=np.float64).reshape(-1, 2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.repeat(sizes, [len(record.boxes) for record in records], axis=0)
    return np.histogram2d(centres[:, 1], centres[:, 0], PLACES, [(0, 1), (0, 1)])[0].astype(int).tolist()


def _image_sizes(records: Sequence[Record]) -> list[dict[str, int]]:
    """The commonest first."""
    counts = Counter((record.width, record.height) for record in records)
    return [{"width": width, "height": height, "images": count} for (width, height), count in counts.most_common()]
