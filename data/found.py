"""What a reader of a format returns, before anything of it is checked."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data.records import Defect


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


@dataclass(frozen=True, kw_only=True)
class Found:
    format: str  # "coco", "voc" …
    root: Path
    classes: tuple[str, ...]  # in label order
    splits: dict[str, list[FoundImage]]
    defects: list[Defect] = field(default_factory=list)
