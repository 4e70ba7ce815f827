"""What every reader produces: records, defects, and the description of a whole data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data import fingerprint
from data.told import defect_lines

if TYPE_CHECKING:
    from data.columns import Records

REFUSED = "training refuses the data"  # the action on a defect that a person must mend
CLASSES_NAMED = 100  # by describe(); LVIS has 1203
NO_SPLIT = "none"  # the split of a defect of which that is not known, or which is in none
NO_CLASS = "N/A"  # as torchvision's COCO models name the numbers that are no class


class DataError(ValueError):
    """The data cannot be used as they are; the message says what, where, and what to do."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One image with its objects, checked: every box is finite, has a size, and lies in the image."""

    image_id: int  # 1.. within the split, in order of name; never the file's own id (those collide between splits)
    name: str  # posix path relative to the data set's root; unique within the split
    path: Path | None  # None: the image is drawn, not read
    width: int  # pixels as displayed, i.e. after the EXIF orientation
    height: int
    boxes: np.ndarray  # float64 (N, 4) xyxy, absolute pixels, 0 <= x1 < x2 <= width
    labels: np.ndarray  # int64 (N,), 1..C
    iscrowd: np.ndarray  # uint8 (N,)
    area: np.ndarray  # float64 (N,) square pixels: COCO's (of the mask) where given, else the box's
    sha256: str = ""  # of the image file, hex; empty where it is drawn
    source: object | None = None  # what a drawn image is drawn from; its str() identifies the content


@dataclass(frozen=True, kw_only=True, slots=True)
class Defect:
    """Something wrong in the data, and what the reader did about it."""

    kind: str
    severity: str  # "error": results will be wrong; "warning": one should look; "note": unusual, and handled
    split: str
    file: str  # "": the split as a whole
    object: str | None
    detail: str
    action: str

    @property
    def refused(self) -> bool:
        """Whether nothing can be trained or scored until it is mended."""
        return self.action == REFUSED

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.detail} ({self.action})"

    @property
    def where(self) -> str:
        """Split, file and object, as far as there are any."""
        return ": ".join(filter(None, (self.split, ", ".join(filter(None, (self.file, self.object))))))


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionData:
    """A data set as found: its classes in label order, its splits, and everything that is wrong with it."""

    name: str
    format: str  # "coco", "voc" … or "generated"
    root: Path | None
    classes: tuple[str, ...]  # label i is classes[i - 1]; the background is not among them
    splits: dict[str, "Records"]
    defects: list[Defect] = field(default_factory=list)  # of files, images and objects
    class_defects: list[Defect] = field(default_factory=list)  # of how the classes are spread over the splits
    split_rule: str
    notes: Sequence[str] = ()  # how the files were understood

    def records(self, split: str) -> "Records":
        """The records of one split."""
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}. It has: {', '.join(self.splits)}.")
        return self.splits[split]

    @property
    def all_defects(self) -> list[Defect]:
        return self.defects + self.class_defects

    @cached_property
    def _split_digests(self) -> dict[str, str]:
        return {}

    def with_classes_in_order(self, classes: Sequence[str]) -> "DetectionData":
        """The same data with its labels numbered after `classes`, where these are its own in another order.

        "N/A" may stand among them for numbers without a class, as COCO's have.
        """
        named = [name for name in classes if name != NO_CLASS]
        if sorted(named) != sorted(self.classes) or tuple(classes) == self.classes:
            return self
        new_label = np.array([0] + [1 + list(classes).index(name) for name in self.classes])
        splits = {split: records.with_labels(new_label) for split, records in self.splits.items()}
        return replace(self, classes=tuple(classes), splits=splits)

    def split_fingerprint(self, split: str) -> str:
        """16 hex digits that change with this split's images, annotations or classes."""
        if split not in self._split_digests:
            self._split_digests[split] = fingerprint.of_records(self.records(split), self.classes)
        return self._split_digests[split]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the whole data set: of all its splits, by name."""
        return fingerprint.of_splits({split: self.split_fingerprint(split) for split in self.splits})

    @property
    def contents(self) -> dict[str, dict[str, str]]:
        """{split: {name: hex digits of the image, and of its annotations}}."""
        return fingerprint.contents(self.splits, self.classes)

    def describe(self, named: int = 0) -> list[str]:
        """Lines for people: what was found, and of each kind of defect how many and the first `named` of them."""
        where = f" in {self.root}" if self.root else ""
        kind = "" if self.format == self.name else f"{self.format}{where}; "
        lines = [f"{self.name}: {kind}{self.split_rule}", *(f"  {note}" for note in self.notes)]
        for split, records in self.splits.items():
            empty = len(records) - np.count_nonzero(records.counts)
            lines.append(
                f"  {split}: {len(records)} images, {len(records.boxes)} boxes, {empty} images without objects"
            )
        more = ", …" if len(self.classes) > CLASSES_NAMED else ""
        lines.append(f"  {len(self.classes)} classes: {', '.join(self.classes[:CLASSES_NAMED])}{more}")
        lines += [f"  {line}" for line in defect_lines(self.all_defects, named)]
        return lines
