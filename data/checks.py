"""From what a reader found to records: every file, size and box is checked here, once, and every defect is named."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.found import FoundImage
from data.records import REFUSED, Defect, Record
from data.scan import ImageScan
from data_options import DataOptions

SMALLEST_SIDE = 0.01  # px; below that a box loses its size when coordinates become float32
CLIP_TOLERANCE = 0.01  # px over the edge that are rounding, not a defect


def checked_records(
    split: str,
    images: Sequence[FoundImage],
    classes: Sequence[str],
    scans: Mapping[Path, ImageScan],
    options: DataOptions,
) -> tuple[list[Record], list[Defect]]:
    """(records in order of name, defects) of one split's `images`; those that cannot be read have no record."""
    labels = {name: label for label, name in enumerate(classes, start=1)}
    records, defects = [], []
    for image in sorted(images, key=lambda image: image.name):
        scan = None if image.path is None else scans[image.path]
        if scan is None or scan.error is not None:
            defects.append(_unreadable(split, image, scan))
            continue
        record, found = _checked_record(split, len(records) + 1, image, scan, labels)
        records.append(record)
        defects += found
    return records, defects


def _unreadable(split: str, image: FoundImage, scan: ImageScan | None) -> Defect:
    if scan is None:
        kind, detail = "image-missing", "there is no such file" + (image.looked_in and f" in {image.looked_in}")
    else:
        kind, detail = "image-unreadable", scan.error
    return Defect(kind=kind, severity="error", split=split, file=image.name, object=None, detail=detail, action=REFUSED)


def _checked_record(
    split: str, image_id: int, image: FoundImage, scan: ImageScan, labels: dict[str, int]
) -> tuple[Record, list[Defect]]:
    size = width, height = scan.width, scan.height
    defects = []
    if image.declared_size not in (None, size):
        defects.append(_size_defect(split, image, size))
    boxes, kept = [], []
    scale = (width, height) * 2 if image.normalised else (1, 1, 1, 1)
    for found in image.objects:
        annotated = found.box and tuple(value * factor for value, factor in zip(found.box, scale, strict=True))
        box, problem = _checked_box(annotated, width, height)
        if problem:
            kind, detail, action = problem
            file, what = image.name, found.what
            severity = "warning"
            defects.append(
                Defect(kind=kind, severity=severity, split=split, file=file, object=what, detail=detail, action=action)
            )
        if box:
            boxes.append(box)
            kept.append(found)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    record = Record(
        image_id=image_id,
        name=image.name,
        path=image.path,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.array([labels[found.class_name] for found in kept], dtype=np.int64),
        iscrowd=np.array([found.iscrowd for found in kept], dtype=np.uint8),
        area=_areas(boxes, [found.area for found in kept]),
        sha256=scan.sha256,
    )
    return record, defects


def _size_defect(split: str, image: FoundImage, size: tuple[int, int]) -> Defect:
    annotated = "{}×{}".format(*image.declared_size)
    detail = "annotated as {}, but the file shows {}×{} pixels".format(annotated, *size)
    if image.declared_size == size[::-1]:
        detail += " (annotated on the unrotated image? Its EXIF orientation turns it)"
    return Defect(
        kind="size-differs",
        severity="error",
        split=split,
        file=image.name,
        object=None,
        detail=detail,
        action="the file's size is used; the boxes may be wrong",
    )


def _checked_box(
    box: tuple[float, ...] | None, width: int, height: int
) -> tuple[tuple[float, ...] | None, tuple[str, str, str] | None]:
    """(box or None, None or (kind, detail, action)): clipped to the image, or dropped where nothing is left of it."""
    dropped = "box dropped"
    if box is None:
        return None, ("box-malformed", "the box is not four numbers", dropped)
    if not all(map(math.isfinite, box)):
        return None, ("box-not-finite", f"the box is {_written(box)}", dropped)
    x1, y1, x2, y2 = box
    if x2 - x1 < SMALLEST_SIDE or y2 - y1 < SMALLEST_SIDE:
        return None, ("box-no-size", f"the box {_written(box)} is {x2 - x1:g}×{y2 - y1:g} pixels", dropped)
    clipped = (min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height))
    over = max(abs(before - after) for before, after in zip(box, clipped, strict=True))
    if clipped[2] - clipped[0] < SMALLEST_SIDE or clipped[3] - clipped[1] < SMALLEST_SIDE:
        return None, ("box-outside", f"the box {_written(box)} lies outside the {width}×{height} image", dropped)
    if over > CLIP_TOLERANCE:
        detail = f"the box {_written(box)} leaves the {width}×{height} image by {over:g} pixels"
        return clipped, ("box-over-edge", detail, "box clipped")
    return clipped, None


def _written(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def _areas(boxes: np.ndarray, given: Sequence[float | None]) -> np.ndarray:
    """The annotated (mask) area where it makes sense, never more than the box's own."""
    sides = boxes[:, 2:] - boxes[:, :2]
    of_boxes = sides[:, 0] * sides[:, 1]
    # `not value > 0` is true of NaN as well.
    of_masks = np.array([math.inf if value is None or not value > 0 else value for value in given], dtype=np.float64)
    return np.minimum(of_boxes, of_masks)
