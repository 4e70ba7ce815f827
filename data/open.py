"""Opens a data set by its path: recognises the format and names the splits alike."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.checks import checked_records
from data.coco import CocoFile, read_coco
from data.found import Found
from data.generated import generated_data
from data.records import DataError, DetectionData
from data.scan import scan_images
from data.splits import complete_splits, in_two_splits
from data.voc import read_voc
from data_options import DataOptions

DEFAULTS = DataOptions()
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLIT_WORD = re.compile(r"(?<![a-z])(training|train|validation|valid|val|test)(?=20\d\d|[^a-z0-9]|$)")


def open_data(
    where: Path | str,
    options: DataOptions = DEFAULTS,
    *,
    refuse: bool = True,
    seed: int = 0,
    generated_images: tuple[int, int, int] = (400, 100, 100),
) -> DetectionData:
    """The data set at a path, or the drawn one for the word "generated".

    `seed` and `generated_images` (train, val, test) belong to the drawn one. Raises DataError where nothing
    is recognised or the data cannot be used; what can be used with care is in the result's `defects`, and what
    cannot as well when told not to `refuse`.
    """
    if str(where) == "generated":
        train, val, test = generated_images
        return generated_data(seed=seed, train=train, val=val, test=test)
    path = Path(where).expanduser().resolve()
    if not path.exists():
        raise DataError(f"There are no data at {path}. Give a folder or a COCO JSON file, or the word: generated")
    found = _read(path)
    images = [image for images in found.splits.values() for image in images]
    scans = scan_images([image.path for image in images if image.path is not None])
    parts, defects, rule = complete_splits(path, found.splits, found.defects)
    splits = {}
    for split, images in parts.items():
        splits[split], more = checked_records(split, images, found.classes, scans, options)
        defects += more
    data = DetectionData(
        name=path.stem if path.is_file() else path.name,
        format=found.format,
        root=found.root,
        classes=found.classes,
        splits=splits,
        defects=defects + in_two_splits(splits),
        split_rule=rule,
    )
    if refuse:
        _refuse(data, path)
    return data


def _read(path: Path) -> Found:
    """The content of a data set in whatever format it has."""
    voc = _voc_folder(path)
    files = [] if voc == path else _coco_files(path)
    if files:
        return read_coco(path if path.is_dir() else _root_of_json(path), files)
    if voc:
        return read_voc(voc)
    raise DataError(_unrecognised(path))


def _refuse(data: DetectionData, path: Path) -> None:
    """DataError where something must be mended before anything is trained or scored: a line for each kind."""
    by_kind = {}
    for defect in data.defects:
        if defect.refused:
            by_kind.setdefault(defect.kind, []).append(defect)
    if not by_kind:
        return
    lines = [f"{data.name} has defects that must be mended first; all of them: python check_data.py {path}"]
    for kind, (first, *others) in by_kind.items():
        where = f"{first.split}: {first.file}" + (f", {first.object}" if first.object else "")
        more = f"; also {_listed([each.file for each in others])}" if others else ""
        lines.append(f"  {1 + len(others)} {kind}: {where}: {first.detail}{more}")
    raise DataError("\n".join(lines))


def _voc_folder(path: Path) -> Path | None:
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir())] if path.is_dir() else []
    found = [folder for folder in candidates if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()]
    if len(found) > 1 and found[0] != path:
        raise DataError(f"{path} holds several Pascal VOC folders: {_listed(found)}. Give one of them.")
    return found[0] if found else None


def _coco_files(path: Path) -> list[CocoFile]:
    """The JSON files of a COCO data set, or [] where there are none."""
    if path.is_file():
        return [_coco_file(_root_of_json(path), "train", path)] if path.suffix.lower() == ".json" else []
    roboflow = _one_a_folder(path)
    if roboflow:
        return roboflow
    for folder in (path / "annotations", path):
        found = sorted(folder.glob("[!.]*.json"))
        instances = [each for each in found if each.stem.startswith("instances")]
        if found:  # COCO's own folder holds captions and key points as well
            return _by_split(path, instances or found)
    return []


def _one_a_folder(path: Path) -> list[CocoFile]:
    """Roboflow's layout: train/, valid/ and test/, each with its images and its own JSON."""
    files = []
    for folder in sorted(path.iterdir()):
        found = sorted(folder.glob("[!.]*.json")) if folder.name.lower() in SPLIT_NAMES and folder.is_dir() else []
        found = [each for each in found if each.name == "_annotations.coco.json"] or found
        if len(found) > 1:
            raise DataError(f"{folder} holds several JSON files: {_listed(found)}. Leave the one to use.")
        files += [_coco_file(path, SPLIT_NAMES[folder.name.lower()], each) for each in found]
    _refuse_two_of_a_split(files)
    return files


def _by_split(root: Path, found: Sequence[Path]) -> list[CocoFile]:
    words = {each: SPLIT_WORD.findall(each.stem.lower()) for each in found}
    if len(found) == 1 and not words[found[0]]:
        return [_coco_file(root, "train", found[0])]
    files = [_coco_file(root, SPLIT_NAMES[words[each][-1]], each) for each in found if words[each]]
    if not files:
        raise DataError(
            f"None of the JSON files in {found[0].parent} has train, val or test in its name: {_listed(found)}. "
            "Rename them (instances_train.json), or give one of the files."
        )
    _refuse_two_of_a_split(files)
    return files


def _refuse_two_of_a_split(files: Sequence[CocoFile]) -> None:
    for split, count in Counter(file.split for file in files).items():
        if count > 1:
            several = [file.path for file in files if file.split == split]
            raise DataError(f"Several JSON files for {split!r}: {_listed(several)}. Leave or give the one to use.")


def _root_of_json(path: Path) -> Path:
    return path.parent.parent if path.parent.name.lower() == "annotations" else path.parent


def _coco_file(root: Path, split: str, path: Path) -> CocoFile:
    """A JSON with the folders where its images may lie: by the split's names, beside the JSON, in images/."""
    words = re.findall(r"(?:train|val|test)[a-z]*\d*", path.stem.lower())
    own = [name for name, meaning in SPLIT_NAMES.items() if meaning == split]
    names = list(dict.fromkeys([*words, *own, *(f"{name}2017" for name in own)]))
    folders = [path.parent if path.parent.name.lower() in SPLIT_NAMES else None]
    folders += [base / name for base in (root, root / "images") for name in names]
    folders += [root / name / "images" for name in names]
    folders += [root / "images", root / "data", path.parent, root]
    return CocoFile(split=split, path=path, image_folders=list(dict.fromkeys(filter(None, folders))))


def _listed(items: Sequence[Path | str]) -> str:
    names = [item.name if isinstance(item, Path) else str(item) for item in items]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _unrecognised(path: Path) -> str:
    looked_for = (
        "COCO (annotations/*train*.json, train/_annotations.coco.json, or one JSON) "
        "and Pascal VOC (Annotations/ beside JPEGImages/)"
    )
    if path.is_file():
        return f"{path} is not a .json file. Looked for {looked_for}."
    found = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    return f"No data set is recognised in {path}. Looked for {looked_for}; found {_listed(found) or 'an empty folder'}."
