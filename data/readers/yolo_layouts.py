"""How a YOLO data set is laid out: by a YAML file, by Darknet's .data file, by a list, or by its folders alone."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data.readers.layout import SPLIT_NAMES, listed, one_of_several, split_of_folder
from data.readers.locate import folders_in, images_under, is_image, relative_name
from data.readers.yolo import IMAGE_FOLDERS, YoloPlan, YoloSplit, labels_folder
from data.records import DataError, Defect

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "names.txt", "labels.txt", "_darknet.labels")
ROW = re.compile(r"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*")
USUAL_YAMLS = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def find_yolo(folder: Path) -> YoloPlan | None:
    """What of YOLO's layouts the folder has, or None; DataError where it is one that cannot be followed."""
    described = [path for path in sorted(folder.glob("[!.]*.y*ml")) if _describes_data(path)]
    if described:
        usual = [path for path in described if path.name.lower() in USUAL_YAMLS]
        return plan_of_yaml(one_of_several(usual or described, "YAML files of YOLO data", folder))
    darknet = [path for path in sorted(folder.glob("[!.]*.data")) if "train" in _pairs(path)]
    if darknet:
        return plan_of_darknet(one_of_several(darknet, "Darknet .data files", folder))
    splits = _splits_by_folder(folder)
    if not splits:
        return None
    inside = [place for split in splits.values() for place in _places(split) if place.is_relative_to(folder)]
    names, notes = names_beside([folder, *inside])
    return YoloPlan(root=folder, names=names, splits=splits, notes=notes)


def _describes_data(path: Path) -> bool:
    """Whether a YAML file is about data: settings of a training (args.yaml, hyp.yaml) lie beside them often."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return bool(re.search(r"^names\s*:", text, re.MULTILINE) and re.search(r"^(train|val)\w*\s*:", text, re.MULTILINE))


def plan_of_yaml(path: Path) -> YoloPlan:
    """The plan of a data.yaml: names as a list or by number, splits as folders, lists of folders, or lists of paths."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)  # all texts: "no" is a class's name
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}. Mend it.") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path} has no 'names' of classes, so it is no data.yaml of YOLO.")
    names = _names_of_yaml(path, content["names"])
    count = content.get("nc")
    if str(count).isdigit() and int(count) != len(names) and not isinstance(content["names"], dict):
        raise DataError(f"{path} names {len(names)} classes, but says nc: {count}. Make the two agree.")
    bases = _bases(path, content.get("path"))
    splits, defects, instead = {}, [], []
    for key, value in content.items():
        split = SPLIT_NAMES.get(str(key).lower())
        if split is None or not value:
            continue
        entries = value if isinstance(value, list) else [value]
        places = [_resolved(bases, str(entry)) for entry in entries]
        missing = [str(entry) for entry, place in zip(entries, places, strict=True) if place is None]
        if missing and split == "test":  # Roboflow's YAML names a test split that the export need not have
            defects.append(_no_test(path, missing))
            continue
        if missing:
            raise DataError(
                f"{path} has {split}: {listed(missing)}, which is not there; looked in {listed(map(str, bases))}. "
                "Mend the path (it is relative to the YAML file, or to its path:)."
            )
        splits[split] = _split_of(path, places)
        for entry, place in zip(entries, places, strict=True):
            instead += _taken_instead(path, [path.parent / str(content.get("path") or "")], key, str(entry), place)
    if not splits:
        raise DataError(f"{path} has no train: and no val:, so it leads to no images.")
    keypoints = "kpt_shape" in content
    notes = [_as_said(path, instead)]
    return YoloPlan(root=path.parent, names=names, splits=splits, has_keypoints=keypoints, defects=defects, notes=notes)


def _names_of_yaml(path: Path, names: Any) -> dict[int, str]:
    if isinstance(names, dict) and all(str(number).isdigit() for number in names):
        found = {int(number): str(name) for number, name in names.items()}
    elif isinstance(names, list):
        found = dict(enumerate(map(str, names)))
    else:
        raise DataError(f"{path}: names is neither a list of class names nor one by number: {names!r:.80}. Mend it.")
    return _distinct(path, found)


def _distinct(path: Path, names: dict[int, str]) -> dict[int, str]:
    if not names:
        raise DataError(f"{path} names no classes, so there is nothing to detect.")
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise DataError(f"{path} names the class {twice[0]!r} twice. Rename or merge them.")
    return names


def _no_test(path: Path, missing: Sequence[str]) -> Defect:
    detail = f"test: {listed(missing)} is not there"
    return Defect(
        kind="split-missing",
        severity="warning",
        split="test",
        file=path.name,
        object=None,
        detail=detail,
        action="left out",
    )


def _bases(path: Path, base: Any) -> list[Path]:
    """The folders that a YAML file's paths may be relative to, the likeliest first."""
    own = [] if not base else [path.parent / str(base), path.parent / PurePosixPath(str(base)).name]
    return [*(folder for folder in own if folder.is_dir()), path.parent]


def _resolved(bases: Sequence[Path], entry: str) -> Path | None:
    """A path of a YAML file: as it stands, else by its tail, as a path on another machine needs it.

    Roboflow writes ../train/images beside train/: what lies inside comes before what the dots lead to.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    inside = parts[sum(part == ".." for part in parts) :] if parts[:1] == ("..",) else parts
    tails = [inside, parts, *(inside[start:] for start in range(1, len(inside)))]
    places = (base.joinpath(*tail) for tail in tails for base in bases)
    return next((place for place in places if place.exists()), None)


def _taken_instead(source: Path, bases: Sequence[Path], key: str, entry: str, place: Path) -> list[str]:
    """A line where what is read is not where the path leads, as it is written, from one of the `bases`."""
    plain = entry.replace("\\", "/")
    inside = re.sub(r"^(\.\./)+", "", plain)
    # Roboflow's usual ../train/images beside train/ needs no word, but where there is something by the letter too.
    written = [base / (plain if (base / plain).exists() else inside) for base in bases]
    if os.path.normpath(place) in map(os.path.normpath, written):
        return []
    shown = (relative_name(each, source.parent) for each in (bases[0] / entry, place))
    return [f"{key}: {' → '.join(shown)}"]


def _as_said(source: Path, instead: Sequence[str]) -> str:
    found = f", but of its paths these were found elsewhere: {', '.join(instead)}" if instead else ""
    return f"read as {source.name} says{found}"


def _split_of(source: Path, places: Sequence[Path]) -> YoloSplit:
    folders = [place for place in places if place.is_dir()]
    lists = [place for place in places if place.suffix.lower() == ".txt"]
    if len(folders) + len(lists) < len(places):
        other = next(place for place in places if place not in folders and place not in lists)
        raise DataError(f"{source}: {other} is neither a folder of images nor a .txt list of their paths.")
    empty = next((folder for folder in folders if not any(images_under(folder))), None)
    if empty:
        raise DataError(f"{source}: {empty} has no images. Put them there, or mend the path.")
    return YoloSplit(folders=folders, lists=lists)


def plan_of_darknet(path: Path) -> YoloPlan:
    """The plan of Darknet's obj.data: train =, valid = and names = files."""
    pairs, bases = _pairs(path), [path.parent, path.parent.parent]
    splits, instead = {}, []
    for key in ("train", "valid", "val", "test"):
        place = pairs.get(key) and _resolved(bases, pairs[key])
        if place:
            instead += _taken_instead(path, bases, key, pairs[key], place)
            splits.setdefault(SPLIT_NAMES[key], _split_of(path, [place]))
        elif key == "train":
            raise DataError(f"{path} has train = {pairs[key]}, which is not there. Mend the path.")
    names = _resolved(bases, pairs.get("names", "obj.names"))
    if names is None:
        raise DataError(f"{path} has names = {pairs.get('names')}, which is not there. Mend the path.")
    return YoloPlan(root=path.parent, names=_names_in(names), splits=splits, notes=[_as_said(path, instead)])


def _pairs(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}


def plan_of_list(path: Path) -> YoloPlan:
    """The plan of a .txt that lists image paths."""
    names, notes = names_beside([path.parent, path.parent.parent])
    return YoloPlan(root=path.parent, names=names, splits={"train": YoloSplit(lists=[path])}, notes=notes)


def is_list(path: Path) -> bool:
    """Whether a .txt file lists image paths."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return is_image(Path(first.replace("\\", "/")))


def _splits_by_folder(folder: Path) -> dict[str, YoloSplit]:
    """images/train with labels/train, train/images with train/labels, images with labels, or text files beside."""
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    splits = {}
    for child in chain.from_iterable(map(folders_in, (*images, folder))):
        split = split_of_folder(child.name)
        if split and split not in splits and any(map(_has_labels, (child, *folders_in(child)))):
            splits[split] = YoloSplit(folders=[child])
    if splits:
        return splits
    lists = {path.stem.lower(): path for path in sorted(folder.glob("[!.]*.txt")) if path.stem.lower() in SPLIT_NAMES}
    pairs = [place for place in images if any(map(_has_labels, (place, *folders_in(place))))]
    if pairs and any(map(is_list, lists.values())):
        return {SPLIT_NAMES[name]: YoloSplit(lists=[path]) for name, path in lists.items() if is_list(path)}
    whole = [*pairs, *([folder] if _has_labels(folder) else [])][:1]
    return {"train": YoloSplit(folders=whole)} if whole else {}


def _has_labels(folder: Path) -> bool:
    """Whether images lie there, or in its images/, with text files of YOLO's rows beside or in labels/."""
    for place in (folder, *(folder / name for name in IMAGE_FOLDERS)):
        if place.is_dir() and any(map(is_image, place.iterdir())):
            labels = [place, *filter(None, [labels_folder(place)])]
            if any(_looks_like_rows(path) for each in labels if each.is_dir() for path in _texts(each)):
                return True
    return False


def _texts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("[!.]*.txt")) if path.name.lower() not in NAME_FILES]


def _looks_like_rows(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return bool(ROW.fullmatch(first))


def names_beside(folders: Sequence[Path]) -> tuple[dict[int, str] | None, list[str]]:
    """The class names of the first classes.txt in the folders, by number, and where that is; (None, []) without one."""
    for folder in dict.fromkeys(folders):
        for name in NAME_FILES:
            if (folder / name).is_file():
                return _names_in(folder / name), [f"classes as {folder / name} names them"]
    return None, []


def _names_in(path: Path) -> dict[int, str]:
    """A class name a line."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    if "" in lines:
        raise DataError(
            f"{path}: line {lines.index('') + 1} is empty, so the numbers of the classes behind it are not clear."
        )
    return _distinct(path, dict(enumerate(lines)))


def _places(split: YoloSplit) -> Iterator[Path]:
    for folder in split.folders:
        for place in (folder, folder / "labels", labels_folder(folder)):
            if place is not None:
                yield place
                yield place.parent
