"""Which JSON files of a folder are a COCO data set's, of which split, and where their images may lie."""

import mmap
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.readers.coco import CocoFile
from data.readers.layout import SPLIT_NAMES, listed, split_in, split_of_folder
from data.readers.locate import folders_in
from data.records import DataError

KEYS = (b'"images"', b'"annotations"', b'"categories"')
OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # in COCO's own folder
ANNOTATIONS = ("annotations", "annotation")


def find_coco(folder: Path) -> list[CocoFile] | None:
    """Roboflow's layout, or the JSON files in annotations/, or those in the folder itself; None without any."""
    if files := _one_a_folder(folder):
        return files
    annotations = [child for child in folders_in(folder) if child.name.lower() in (*ANNOTATIONS, "labels")]
    for place in (*annotations, folder):
        found = [path for path in sorted(place.glob("[!.]*.json")) if may_be_coco(path)]
        boxes = [path for path in found if not path.stem.startswith(OTHER_TASKS)]
        if found:
            is_annotations = folder.name.lower() in ANNOTATIONS  # given by itself: the images are beside it
            return _by_split(folder.parent if is_annotations else folder, boxes or found)
    return None


def may_be_coco(path: Path) -> bool:
    """Whether a JSON file is COCO's by its name, or has COCO's keys; without parsing it, for it may be large."""
    if path.stem.startswith("instances") or path.name == "_annotations.coco.json":
        return True
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(key) >= 0 for key in KEYS)


def _one_a_folder(folder: Path) -> list[CocoFile]:
    """Roboflow's layout: train/, valid/ and test/, each with its images and its own JSON."""
    files = []
    for child in folders_in(folder):
        split = split_of_folder(child.name)
        if split is None:
            continue
        found = [path for path in sorted(child.glob("[!.]*.json")) if may_be_coco(path)]
        found = [path for path in found if path.name == "_annotations.coco.json"] or found
        if len(found) > 1:
            raise DataError(f"{child} holds several JSON files: {listed(found)}. Leave the one to use.")
        files += [coco_file(folder, split, path) for path in found]
    _refuse_two_of_a_split(files)
    return files


def _by_split(root: Path, found: Sequence[Path]) -> list[CocoFile]:
    if len(found) == 1 and split_in(found[0].stem) is None:
        return [coco_file(root, "train", found[0])]
    files = [coco_file(root, split, path) for path in found if (split := split_in(path.stem))]
    unread = [path.name for path in found if not split_in(path.stem)]
    files[:1] = [replace(file, unread=unread) for file in files[:1]]
    if not files:
        raise DataError(
            f"None of the JSON files in {found[0].parent} has train, val or test in its name: {listed(found)}. "
            "Rename them (instances_train.json), or give one of the files."
        )
    _refuse_two_of_a_split(files)
    return files


def _refuse_two_of_a_split(files: Sequence[CocoFile]) -> None:
    for split, count in Counter(file.split for file in files).items():
        if count > 1:
            several = [file.path for file in files if file.split == split]
            raise DataError(f"Several JSON files for {split!r}: {listed(several)}. Leave or give the one to use.")


def root_of_json(path: Path) -> Path:
    """The data set's folder: the one that holds annotations/, else the file's own."""
    return path.parent.parent if path.parent.name.lower() in ANNOTATIONS else path.parent


def coco_file(root: Path, split: str, path: Path) -> CocoFile:
    """A JSON with the folders where its images may lie: by the split's names, beside the JSON, in images/."""
    words = re.findall(r"(?:train|val|test)[a-z]*\d*", path.stem.lower())
    own = [name for name, meaning in SPLIT_NAMES.items() if meaning == split]
    names = list(dict.fromkeys([*words, *own, *(f"{name}2017" for name in own)]))
    folders = [path.parent if split_of_folder(path.parent.name) else None]
    folders += [base / name for base in (root, root / "images") for name in names]
    folders += [root / name / "images" for name in names]
    folders += [root / "images" / "default", root / "images", root / "data", path.parent, root]
    return CocoFile(split=split, path=path, image_folders=list(dict.fromkeys(filter(None, folders))))
