"""What every reader produces: a record an image, and the defects."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

REFUSED = "training refuses the data"  # the action on a defect that a person must mend
NO_SPLIT = "none"  # the split of a defect of which that is not known, or which is in none


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
