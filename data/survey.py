"""The numbers of a data set: how many, how large, where, of which class. Plain values, for a report or a figure."""

from typing import Any

import numpy as np

from data.columns import Records
from data.detection_data import DetectionData

SMALL, MEDIUM = 32**2, 96**2  # square pixels: COCO's bounds
STEPS_AN_OCTAVE = 4
SIDE_EDGES = 2 ** np.arange(0, 12 + 1e-9, 1 / STEPS_AN_OCTAVE)  # px, of the histogram of box sides: 1 to 4096
PLACES = 24  # cells across and down an image, of the map of where boxes lie
QUANTILES = (0.05, 0.5, 0.95)


def survey(data: DetectionData) -> dict[str, Any]:
    """What check_data.py tells beside the defects; a box's side is √(width × height), in pixels of the file."""
    splits = data.splits.values()
    boxes, labels, areas = (
        np.concatenate([getattr(one, name) for one in splits]) for name in ("boxes", "labels", "area")
    )
    sizes = np.concatenate([np.column_stack([records.widths, records.heights]) for records in splits])
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return {
        "splits": {split: _counts(records) for split, records in data.splits.items()},
        "classes": _named(data, labels),
        "classes_by_split": {split: _named(data, records.labels) for split, records in data.splits.items()},
        "boxes_an_image": {split: _spread(records.counts) for split, records in data.splits.items()},
        "box_sides": {
            name: np.quantile(sides[labels == label], QUANTILES).round(1).tolist()
            for label, name in enumerate(data.classes, start=1)
            if (labels == label).any()
        },
        "box_areas": _coco_areas(areas),
        "side_histogram": {"edges": SIDE_EDGES.tolist(), "boxes": _histogram(sides)},
        "places": _places(np.repeat(sizes, np.concatenate([records.counts for records in splits]), axis=0), boxes),
        "image_sizes": _image_sizes(sizes),
    }


def boxes_by_class(labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) how many boxes each class has, of their labels (N,)."""
    return np.bincount(labels, minlength=classes + 1)[1:]


def _counts(records: Records) -> dict[str, int]:
    empty = int((records.counts == 0).sum())
    return {"images": len(records), "boxes": len(records.boxes), "empty": empty}


def _named(data: DetectionData, labels: np.ndarray) -> dict[str, int]:
    return dict(zip(data.classes, boxes_by_class(labels, len(data.classes)).tolist(), strict=True))


def _spread(counts: np.ndarray) -> dict[str, float]:
    counts = counts if len(counts) else np.zeros(1, dtype=int)
    return {"least": int(counts.min()), "median": float(np.median(counts)), "most": int(counts.max())}


def _coco_areas(area: np.ndarray) -> dict[str, int]:
    """Boxes by the areas for which COCO scores have names; of a mask, where the annotations have one."""
    small, large = int((area < SMALL).sum()), int((area >= MEDIUM).sum())
    return {"small": small, "medium": len(area) - small - large, "large": large}


def _histogram(sides: np.ndarray) -> list[int]:
    return np.histogram(np.clip(sides, SIDE_EDGES[0], SIDE_EDGES[-1]), SIDE_EDGES)[0].tolist()


def _places(sizes: np.ndarray, boxes: np.ndarray) -> list[list[int]]:
    """PLACES rows from the top, each from the left: how many boxes have their centre there, in images of `sizes`."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / sizes
    return np.histogram2d(centres[:, 1], centres[:, 0], PLACES, [(0, 1), (0, 1)])[0].astype(int).tolist()


def _image_sizes(sizes: np.ndarray) -> list[dict[str, int]]:
    """The commonest first."""
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {"width": width, "height": height, "images": count}
        for (width, height), count in zip(distinct[order].tolist(), counts[order].tolist(), strict=True)
    ]
