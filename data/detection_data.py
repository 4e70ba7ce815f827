"""A data set as found: its splits, its classes, its fingerprint, and everything that is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data import fingerprint
from data.columns import Records
from data.records import NO_SPLIT, DataError, Defect
from data.told import NAMED, defect_lines, tally

CLASSES_NAMED = 100  # by describe(); LVIS has 1203
NO_CLASS = "N/A"  # as torchvision's COCO models name the numbers that are no class


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionData:
    """A data set as found: its classes in label order, its splits, and everything that is wrong with it."""

    name: str
    format: str  # "coco", "voc" … or "generated"
    root: Path | None
    classes: tuple[str, ...]  # label i is classes[i - 1]; the background is not among them
    splits: dict[str, Records]
    defects: list[Defect] = field(default_factory=list)  # of files, images and objects
    class_defects: list[Defect] = field(default_factory=list)  # of how the classes are spread over the splits
    split_rule: str
    notes: Sequence[str] = ()  # how the files were understood

    def records(self, split: str) -> Records:
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

    def describe(self, named: int = NAMED, scored: str | None = None) -> list[str]:
        """Lines for people: what was found, and of each kind of defect how many and the first `named` of them.

        Where one split is `scored`, of other splits' defects only how many there are.
        """
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
        told, of_others = [], []
        for each in self.all_defects:
            (told if scored is None or each.split in (scored, NO_SPLIT, "") else of_others).append(each)
        lines += [f"  {line}" for line in defect_lines(told, named)]
        return lines + [f"  of other splits: {tally(of_others)} (check_data.py names them)"] * bool(of_others)
