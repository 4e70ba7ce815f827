"""What a reader of a format returns, before anything of it is checked."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.records import REFUSED, Defect

Shape = Literal["corners", "origin", "centre"]
SHAPES: dict[Shape, str] = {  # what the four numbers of a box may be, for messages
    "corners": "corners",
    "origin": "left, top, width, height",
    "centre": "centre, width, height",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundObject:
    what: str  # for messages: "annotation 17 (RBC)"
    class_name: str  # one of the classes found
    box: tuple[float, ...] | None  # xyxy in absolute pixels as annotated; None: not four numbers
    iscrowd: int = 0
    area: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundImage:
    name: str  # posix path relative to the data set's root; unique within the split
    path: Path | None  # None: there is no such file
    declared_size: tuple[int, int] | None  # width, height as annotated
    objects: Iterable[FoundObject]  # may make them anew at each iteration: a million of them need not exist at once
    looked_in: str = ""  # where the file was looked for, for messages
    normalised: bool = False  # the boxes are fractions of the displayed size, which a reader does not know


class FoundRows:
    """The objects of one image from the rows of a file, as plain numbers: a tenth of the memory."""

    __slots__ = ("_boxes", "_crowds", "_labels", "_names", "_numbers", "_word")

    def __init__(self, names: Sequence[str], word: str = "line") -> None:
        self._names, self._word = names, word  # shared by all images; the word is what a row is called in messages
        self._numbers, self._labels, self._boxes, self._crowds = array("i"), array("i"), array("d"), array("b")

    def add(self, number: int, index: int, box: tuple[float, ...], iscrowd: int = 0) -> None:
        """A row: its number in the file, the index of its class among the names, xyxy."""
        self._numbers.append(number)
        self._labels.append(index)
        self._boxes.extend(box)
        self._crowds.append(iscrowd)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[FoundObject]:
        boxes = iter(self._boxes)
        for number, index, iscrowd in zip(self._numbers, self._labels, self._crowds, strict=True):
            name = self._names[index]
            box = (next(boxes), next(boxes), next(boxes), next(boxes))
            yield FoundObject(what=f"{self._word} {number} ({name})", class_name=name, box=box, iscrowd=iscrowd)


@dataclass(frozen=True, kw_only=True)
class Found:
    format: str  # "coco", "voc" …
    shape: Shape  # how the file writes a box
    root: Path
    classes: tuple[str, ...]  # in label order
    splits: dict[str, list[FoundImage]]
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how the files were understood, for people


def defect_of(kind: str, split: str, file: str, detail: str, action: str = REFUSED, what: str | None = None) -> Defect:
    """A defect of the annotations; what is refused is an error."""
    severity = "error" if action == REFUSED else "warning"
    return Defect(kind=kind, severity=severity, split=split, file=file, object=what, detail=detail, action=action)
