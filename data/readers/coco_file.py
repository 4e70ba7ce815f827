"""The content of one COCO JSON in little memory; the objects of an image are made when they are asked for."""

import math
from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.readers.found import FoundObject
from data.readers.json_entries import TOP, read_entries
from data.readers.masks import box_of_mask
from data.records import DataError

NEEDED = ("images", "annotations", "categories")
OTHER_THINGS = {  # what an annotation has, and what it is then
    "caption": "captions, not boxes. Give the instances_*.json of the same images",
    "segments_info": "panoptic segments, not boxes. Give the instances_*.json of the same images",
}
NO_BOX = (np.nan,) * 4
GIVEN, OF_MASK, NOT_FOUR = range(3)  # where an annotation's box is from


class Annotations:
    """The annotations of a file as columns, some 60 bytes each; an image or category is the number of its id."""

    def __init__(self):
        self.ids, self.images, self.categories = array("q"), array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")  # xyxy; NaN where there is none
        self.origins, self.crowds = bytearray(), bytearray()
        self.image_numbers: dict[Hashable, int] = {}
        self.category_numbers: dict[Hashable, int] = {}
        self.odd_ids: dict[int, Any] = {}  # {row: id} of those that are no 64-bit integers; None: it has none

    def add(self, entry: dict[str, Any]) -> None:
        annotation_id = as_key(entry.get("id"))
        if type(annotation_id) is not int or not -(2**63) <= annotation_id < 2**63:
            self.odd_ids[len(self.ids)] = annotation_id
            annotation_id = 0
        self.ids.append(annotation_id)
        for numbers, column, key in (
            (self.image_numbers, self.images, as_key(entry.get("image_id"))),
            (self.category_numbers, self.categories, as_key(entry.get("category_id"))),
        ):
            column.append(numbers.setdefault(key, len(numbers)))
        box, origin = corners(entry.get("bbox")), GIVEN
        if box is None and not entry.get("bbox") and entry.get("segmentation"):
            box, origin = box_of_mask(entry["segmentation"]), OF_MASK
        self.boxes.extend(box or NO_BOX)
        self.origins.append(origin if box else NOT_FOUR)
        area = as_number(entry.get("area"))
        self.areas.append(np.nan if area is None else area)
        crowd = entry.get("iscrowd")
        self.crowds.append(bool(as_number(crowd) if isinstance(crowd, str) else crowd))

    def name(self, row: int) -> str:
        """How messages call it."""
        annotation_id = self.odd_ids.get(row, self.ids[row])
        return f"annotation number {row}" if annotation_id is None else f"annotation {annotation_id}"

    def by_image(self) -> Mapping[Hashable, np.ndarray]:
        """{image id: its rows, in the file's order}."""
        images = np.frombuffer(self.images, np.int64)
        order = np.argsort(images, kind="stable")
        ends = np.cumsum(np.bincount(images, minlength=len(self.image_numbers)))
        return dict(zip(self.image_numbers, np.split(order, ends[:-1]) if len(ends) else (), strict=True))

    def by_category(self) -> Mapping[Hashable, np.ndarray]:
        """{category id: its rows}, of the categories that annotations have."""
        categories = np.frombuffer(self.categories, np.int64)
        return {key: np.flatnonzero(categories == number) for key, number in self.category_numbers.items()}

    def repeated(self) -> np.ndarray:
        """The rows whose id an earlier row has."""
        ids = np.array(self.ids)
        rows = np.setdiff1d(np.arange(len(ids)), list(self.odd_ids))
        return np.setdiff1d(rows, rows[np.unique(ids[rows], return_index=True)[1]])


@dataclass(frozen=True, slots=True)
class Objects:
    """Some annotations as FoundObjects, made anew at each iteration."""

    annotations: Annotations
    rows: np.ndarray
    class_names: Sequence[str | None]  # by the number of a category; of None there are no objects

    def __iter__(self) -> Iterator[FoundObject]:
        columns = self.annotations
        for row in self.rows.tolist():
            name, area = self.class_names[columns.categories[row]], columns.areas[row]
            if name is None:
                continue
            yield FoundObject(
                what=f"{columns.name(row)} ({name})",
                class_name=name,
                box=None if columns.origins[row] == NOT_FOUR else tuple(columns.boxes[4 * row : 4 * row + 4]),
                iscrowd=columns.crowds[row],
                area=None if math.isnan(area) else area,
            )


@dataclass(frozen=True)
class CocoContent:
    images: list[dict[str, Any]] = field(default_factory=list)  # of each no more than is needed
    categories: list[dict[str, Any]] = field(default_factory=list)
    annotations: Annotations = field(default_factory=Annotations)


IMAGE_KEYS = ("id", "file_name", "coco_url", "width", "height")


def read_content(path: Path) -> CocoContent:
    """What a COCO detection JSON holds; DataError where it is none."""
    content = CocoContent()

    def take(key: str, number: int, entry: Any) -> None:
        if key == TOP:
            raise DataError(f"{path} {_of_a_list(entry)}")
        if key not in NEEDED:
            return
        if not isinstance(entry, dict):
            raise DataError(f"{path}: entry {number} of {key!r} is no object, so it is no COCO detection file.")
        if key == "images":
            content.images.append({name: entry[name] for name in IMAGE_KEYS if name in entry})
        elif key == "categories":
            content.categories.append(entry)
        else:
            _refuse_other_things(path, entry)
            content.annotations.add(entry)

    lengths = read_entries(path, take)
    for key in NEEDED:
        if key not in lengths:
            raise DataError(f"{path} has no list {key!r} of objects, so it is no COCO detection file.")
    return content


def _of_a_list(entry: Any) -> str:
    if isinstance(entry, dict) and "score" in entry:
        return "is a list of results (detections with scores), not of annotations. Give the annotations they belong to."
    return "is a list; a COCO detection file is an object with images, annotations and categories."


def _refuse_other_things(path: Path, annotation: dict[str, Any]) -> None:
    for key, what in OTHER_THINGS.items():
        if key in annotation and "bbox" not in annotation:
            raise DataError(f"{path} holds {what}.")


def as_key(value: Any) -> Hashable:
    """An id that equals every way to write it: 7, 7.0 and "7" are one."""
    if type(value) is int or value is None:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and (value[0] != "0" or value == "0") else value
    return str(value)


def as_number(value: Any) -> float | None:
    """None where it is no number, or one that no float holds."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def corners(bbox: Any) -> tuple[float, ...] | None:
    """x, y, width, height → x1, y1, x2, y2; None where that is not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    return x, y, x + width, y + height
