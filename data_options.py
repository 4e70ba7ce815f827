"""How a data set is read: the options that train.py, evaluate.py and check_data.py share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from commandline import Place, Regex, Text


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What open_data is told beside the path of the data."""

    data: Text = None
    """The data themselves: each script says what it takes."""
    train_annotations: Place = None
    """Annotations of the training split, where --data does not lead to them: a COCO JSON, a CSV, a folder of Pascal VOC
    or YOLO files, or a list of images. The splits are then those that are given."""
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
    split_by: Regex = None
    """Where a val split is made: images in whose names (paths in the data set) this regular expression finds the same
    (its groups, if it has any) stay together, as in 'patient\\d+'. Of splits that exist, it says which divide them."""
    splits: Place = None
    """What says which image is in which split: a JSON file {split: [names]} such as every run keeps (data/splits.json),
    a CSV file with the columns name and split, or a folder of train.txt, val.txt, test.txt."""
    on_defect: Literal["clip", "drop", "fail"] = "clip"
    """Boxes that leave their image: clipped to it, dropped, or refused; a box that is no box is dropped, or refused."""
    empty: Literal["keep", "drop"] = "keep"
    """Images without objects: kept as negatives, or left out of training."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DataOptions":
        """Those among the plain values of a configuration, such as a checkpoint's."""
        names = {each.name for each in fields(DataOptions) if each.name != "data"} & values.keys()
        return DataOptions(**{name: values[name] for name in names})

    @property
    def given_files(self) -> dict[str, tuple[str | None, str | None]]:
        """{split: (annotations, images)} of the splits that are given by files."""
        given = {split: (getattr(self, f"{split}_annotations"), getattr(self, f"{split}_images")) for split in SPLITS}
        return {split: paths for split, paths in given.items() if any(paths)}

    @property
    def folder_of_files(self) -> str | None:
        """The folder that the given files have in common, where --data says none; None where no files are given."""
        paths = [Path(path).expanduser().absolute() for paths in self.given_files.values() for path in paths if path]
        if not paths:
            return None
        common = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
        return str(common.parent if common.name.lower() in ("annotations", "labels") else common)

    def with_absolute_paths(self) -> Self:
        """The same, with paths that mean the same from every folder."""
        given = {name: getattr(self, name) for name in PATHS if getattr(self, name) is not None}
        return replace(self, **{name: str(Path(path).expanduser().absolute()) for name, path in given.items()})


SPLITS = ("train", "val", "test")
PATHS = (
    *("train_annotations", "train_images", "val_annotations", "val_images", "test_annotations", "test_images"),
    "splits",
)
