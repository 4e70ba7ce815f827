"""How a data set is read: the options that train.py, evaluate.py and check_data.py share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from commandline import Place, Text


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What open_data is told beside the path of the data."""

    data: Text = None
    """The data themselves: each script says what it takes."""
    train_annotations: Place = None
    """Annotation file of the training split, where --data does not lead to it by itself."""
    train_images: Place = None
    """Folder of its images."""
    val_annotations: Place = None
    """Likewise for val."""
    val_images: Place = None
    """Folder of its images."""
    test_annotations: Place = None
    """Likewise for test."""
    test_images: Place = None
    """Folder of its images."""
    split_by: Text = None
    """Where a val split is made: images in whose names this regular expression finds the same stay together."""
    splits: Place = None
    """A file that says which image is in which split; every run keeps its own as data/splits.json."""
    on_defect: Literal["clip", "drop", "fail"] = "clip"
    """Boxes that leave their image: clipped to it, dropped, or refused; a box that is no box is dropped, or refused."""
    empty: Literal["keep", "drop"] = "keep"
    """Images without objects: kept as negatives, or left out of training."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DataOptions":
        """Those among the plain values of a configuration, such as a checkpoint's."""
        names = {each.name for each in fields(DataOptions) if each.name != "data"} & values.keys()
        return DataOptions(**{name: values[name] for name in names})

    def with_absolute_paths(self) -> Self:
        """The same, with paths that mean the same from every folder."""
        given = {name: getattr(self, name) for name in PATHS if getattr(self, name) is not None}
        return replace(self, **{name: str(Path(path).expanduser().absolute()) for name, path in given.items()})


PATHS = (
    *("train_annotations", "train_images", "val_annotations", "val_images", "test_annotations", "test_images"),
    "splits",
)
