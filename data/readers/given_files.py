"""A data set that is given file by file: --train-annotations FILE --train-images FOLDER, and so on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.readers.coco import CocoFile, read_coco
from data.readers.coco_files import coco_file
from data.readers.csv_table import CsvFile, CsvPlan, read_csv
from data.readers.found import Found
from data.readers.voc import read_voc
from data.readers.voc_layouts import VocPlan, VocSplit, plan_of_folder
from data.readers.yolo import YoloPlan, YoloSplit, read_yolo
from data.readers.yolo_layouts import is_list, names_beside
from data.records import DataError

Given = Mapping[str, tuple[Path, Path | None]]  # {split: (annotations, folder of images)}


def existing(files: Mapping[str, tuple[str | None, str | None]]) -> Given:
    """The given files by their paths; DataError names the option whose file is not there."""
    return {split: _existing(split, *paths) for split, paths in files.items()}


def read_given(root: Path, given: Given) -> Found:
    """What the given files hold, all in one format; the splits are those that are given."""
    formats = {split: _format(split, annotations) for split, (annotations, _) in given.items()}
    if len(set(formats.values())) > 1:
        told = ", ".join(f"{split}: {name}" for split, name in formats.items())
        raise DataError(f"The given annotations have several formats ({told}). Give them in one.")
    return READERS[next(iter(formats.values()))](root, given)


def _existing(split: str, annotations: str | None, images: str | None) -> tuple[Path, Path | None]:
    if annotations is None:
        raise DataError(f"--{split}-images is given without --{split}-annotations. Give both, or neither.")
    paths = [Path(each).expanduser().resolve() if each else None for each in (annotations, images)]
    if not paths[0].exists():
        raise DataError(f"--{split}-annotations: there is nothing at {paths[0]}. Mend the path.")
    if paths[1] is not None and not paths[1].is_dir():
        raise DataError(f"--{split}-images: {paths[1]} is no folder. Give the folder of the images.")
    return paths[0], paths[1]


def _format(split: str, path: Path) -> str:
    kind = path.suffix.lower()
    if path.is_file():
        known = {".json": "COCO", ".csv": "CSV", ".tsv": "CSV"}.get(kind)
        known = "YOLO" if kind == ".txt" and is_list(path) else known
    else:
        suffixes = {child.suffix.lower() for child in path.iterdir() if not child.name.startswith(".")}
        known = "VOC" if ".xml" in suffixes else "YOLO" if ".txt" in suffixes else None
    if known is None:
        raise DataError(
            f"--{split}-annotations {path} is none of these: a COCO JSON, a CSV, a folder of Pascal VOC XML files, "
            "a folder of YOLO text files, a .txt list of images with YOLO text files."
        )
    return known


def _read_coco(root: Path, given: Given) -> Found:
    files = []
    for split, (path, images) in given.items():
        usual = coco_file(root, split, path).image_folders
        files.append(CocoFile(split=split, path=path, image_folders=usual if images is None else [images]))
    return read_coco(root, files)


def _read_csv(root: Path, given: Given) -> Found:
    files = [CsvFile(split=split, path=path, image_folders=_known(images)) for split, (path, images) in given.items()]
    return read_csv(CsvPlan(root=root, files=files))


def _read_voc(root: Path, given: Given) -> Found:
    splits = {
        split: plan_of_folder(path, path.parent).splits["train"]
        if images is None
        else VocSplit(annotations=path, images=[images])
        for split, (path, images) in given.items()
    }
    return read_voc(VocPlan(root=root, splits=splits))


def _read_yolo(root: Path, given: Given) -> Found:
    splits = {}
    for split, (path, images) in given.items():
        if path.is_file():
            splits[split] = YoloSplit(lists=[path], image_folders=_known(images))
        elif images is None:
            raise DataError(f"--{split}-annotations {path} holds YOLO text files: give --{split}-images too.")
        else:
            splits[split] = YoloSplit(folders=[images], labels=path)
    places = [place for path, _ in given.values() for place in (path, path.parent, path.parent.parent)]
    names, notes = names_beside([place for place in places if place.is_dir()])
    return read_yolo(YoloPlan(root=root, names=names, splits=splits, notes=notes))


def _known(folder: Path | None) -> Sequence[Path]:
    return () if folder is None else (folder,)


READERS: dict[str, Callable[[Path, Given], Any]] = {
    "COCO": _read_coco,
    "CSV": _read_csv,
    "VOC": _read_voc,
    "YOLO": _read_yolo,
}
