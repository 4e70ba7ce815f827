"""From what a reader found to records: every file, size and box is checked here, once, and every defect is named."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.checks.boxes import Boxes, Finding, settle, suspicions
from data.checks.image_files import image_defects
from data.checks.plausible import implausible
from data.checks.scan import ImageScan
from data.columns import Records
from data.readers.found import FoundImage, Shape
from data.records import REFUSED, Defect, Record
from data_options import DataOptions

NO_BOX = (np.nan,) * 4


def checked_records(
    split: str,
    images: Sequence[FoundImage],
    classes: Sequence[str],
    scans: Mapping[Path, ImageScan],
    options: DataOptions,
    shape: Shape,
) -> tuple[Records, list[Defect]]:
    """(records in order of name, defects) of one split's `images`; those that cannot be read have no record."""
    readable, seen, defects = [], [], []
    for image in sorted(images, key=lambda image: image.name):
        scan = None if image.path is None else scans[image.path]
        if scan is None or scan.error is not None:
            defects.append(_unreadable(split, image, scan))
            continue
        readable.append(image)
        seen.append(scan)
        defects += image_defects(split, image, scan)
    found = _gathered(readable, seen, classes)
    boxes, kept, wrong = settle(found, options.on_defect)
    if detail := implausible(found, shape):
        defects.append(
            Defect(
                kind="boxes-implausible",
                severity="error",
                split=split,
                file="",
                object=None,
                detail=detail,
                action=REFUSED,
            )
        )
    kept = np.flatnonzero(kept)
    boxes = boxes[kept]
    names = _namer(readable, found.image)
    suspicious = suspicions(boxes, lambda number: names(kept[number]), classes)
    resized = {each.file for each in defects if each.kind == "size-differs"}
    wrong = _box_defects(split, readable, found.image, names, wrong, range(len(found.image)))
    defects += [_of_resized(each) if each.file in resized else each for each in wrong]
    defects += _box_defects(split, readable, found.image, names, suspicious, kept)
    counts = np.bincount(boxes.image, minlength=len(readable))
    left_out = np.flatnonzero(counts == 0) if options.empty == "drop" and split == "train" else ()
    defects += [_defect(split, readable[index], **EMPTY) for index in left_out]
    return Records.of(_records(readable, seen, boxes, counts, set(left_out))), defects


EMPTY = {
    "kind": "image-without-objects",
    "severity": "note",
    "detail": "it has no object",
    "action": "left out of training (--empty drop)",
}


def _of_resized(defect: Defect) -> Defect:
    """That of a box in an image that was annotated in another size, which is what is to be mended."""
    is_of_size = defect.kind in ("box-outside", "box-over-edge")
    return replace(defect, detail=f"{defect.detail} (see size-differs)") if is_of_size else defect


def _defect(split: str, image: FoundImage, **about: str) -> Defect:
    return Defect(**{"split": split, "file": image.name, "object": None} | about)


def _unreadable(split: str, image: FoundImage, scan: ImageScan | None) -> Defect:
    if scan is None:
        kind, detail = "image-missing", "there is no such file" + (image.looked_in and f" in {image.looked_in}")
    else:
        kind, detail = "image-unreadable", scan.error
    return _defect(split, image, kind=kind, severity="error", detail=detail, action=REFUSED)


def _gathered(images: Sequence[FoundImage], scans: Sequence[ImageScan], classes: Sequence[str]) -> Boxes:
    """All objects of the images as arrays: of a million, objects of Python would fill the memory."""
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    owners, corners, labels, crowds, areas = array("q"), array("d"), array("q"), array("B"), array("d")
    for index, image in enumerate(images):
        for found in image.objects:
            owners.append(index)
            corners.extend(NO_BOX if found.box is None else found.box)
            labels.append(label_of.get(found.class_name, 0))
            crowds.append(found.iscrowd)
            areas.append(np.nan if found.area is None else found.area)
    owner = np.frombuffer(owners, dtype=np.int64)
    sizes = np.array([(scan.width, scan.height) for scan in scans], dtype=np.float64).reshape(-1, 2)
    in_shares = np.array([image.normalised for image in images], dtype=bool)
    scale = np.where(in_shares[:, None], np.tile(sizes, 2), 1.0)
    return Boxes(
        image=owner,
        corners=np.frombuffer(corners, dtype=np.float64).reshape(-1, 4) * scale[owner],
        labels=np.frombuffer(labels, dtype=np.int64),
        iscrowd=np.frombuffer(crowds, dtype=np.uint8),
        area=np.frombuffer(areas, dtype=np.float64),
        size=sizes[owner],
    )


def _namer(images: Sequence[FoundImage], owner: np.ndarray) -> Callable[[int], str]:
    """A function from the number of an object to what it is called in messages."""
    latest: tuple[int, list[str]] = (-1, [])

    def name(number: int) -> str:
        nonlocal latest
        index = int(owner[number])
        if latest[0] != index:
            latest = index, [found.what for found in images[index].objects]
        return latest[1][number - np.searchsorted(owner, index)]

    return name


def _box_defects(
    split: str,
    images: Sequence[FoundImage],
    owner: np.ndarray,
    names: Callable[[int], str],
    findings: Iterable[Finding],
    numbers: Sequence[int],
) -> list[Defect]:
    """The findings on boxes by file and object; `numbers` are those of the findings' boxes among all objects."""
    return [
        _defect(
            split,
            images[owner[numbers[box]]],
            kind=finding.kind,
            severity=finding.severity,
            object=names(numbers[box]),
            detail=finding.detail(box),
            action=finding.action,
        )
        for finding in findings
        for box in finding.boxes
    ]


def _records(
    images: Sequence[FoundImage], scans: Sequence[ImageScan], boxes: Boxes, counts: np.ndarray, left_out: set[int]
) -> Iterator[Record]:
    """A record an image, with its share of the arrays, numbered from 1."""
    areas, image_id = _areas(boxes), 0
    for index, (image, scan, end) in enumerate(zip(images, scans, np.cumsum(counts), strict=True)):
        if index in left_out:
            continue
        own, image_id = slice(end - counts[index], end), image_id + 1
        yield Record(
            image_id=image_id,
            name=image.name,
            path=image.path,
            width=scan.width,
            height=scan.height,
            boxes=boxes.corners[own],
            labels=boxes.labels[own],
            iscrowd=boxes.iscrowd[own],
            area=areas[own],
            sha256=scan.sha256,
        )


def _areas(boxes: Boxes) -> np.ndarray:
    """The annotated (mask) area where it makes sense, never more than the box's own."""
    of_boxes = np.prod(boxes.corners[:, 2:] - boxes.corners[:, :2], axis=1)
    return np.where(boxes.area > 0, np.minimum(of_boxes, boxes.area), of_boxes)
