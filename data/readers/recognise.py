"""Which format the data at a path have. What lies nearest to the path counts; within a folder COCO, VOC, YOLO, CSV."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.readers.coco import read_coco
from data.readers.coco_files import coco_file, find_coco, may_be_coco, root_of_json
from data.readers.csv_table import find_csv, plan_of_csv, read_csv, wanted_columns
from data.readers.found import Found
from data.readers.layout import listed
from data.readers.locate import folders_in, images_under
from data.readers.voc import read_voc
from data.readers.voc_layouts import find_voc
from data.readers.yolo import read_yolo
from data.readers.yolo_layouts import find_yolo, is_list, plan_of_list, plan_of_yaml
from data.records import DataError

DEEPEST = 2  # levels of folders below the path
MOST_FOLDERS = 300  # of a level: more is no data set's layout
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
LOOKED_FOR = (
    "COCO (annotations/*train*.json, train/_annotations.coco.json, or one JSON), "
    "Pascal VOC (Annotations/*.xml with JPEGImages/, or XML files beside their images), "
    "YOLO (data.yaml, or images/ beside labels/) and CSV (a row a box)"
)


@dataclass(frozen=True, kw_only=True)
class _Format:
    name: str
    find: Callable[[Path], Any]  # a plan for a folder, or None
    read: Callable[[Path, Any], Found]


# The order within one folder: what says the most comes first. A CSV repeats other annotations often, so it comes last
# whatever its folder.
CSV = _Format(name="CSV", find=find_csv, read=lambda folder, plan: read_csv(plan))
FORMATS = (
    _Format(name="COCO", find=find_coco, read=read_coco),
    _Format(name="Pascal VOC", find=find_voc, read=lambda folder, plan: read_voc(plan)),
    _Format(name="YOLO", find=find_yolo, read=lambda folder, plan: read_yolo(plan)),
)


def read_path(path: Path) -> Found:
    """The content of the data set at a path, in whatever format it has; its notes name what else is there."""
    if path.is_file():
        return _read_file(path)
    tables = []
    for folders in _levels(path):
        found = _found_in(folders)
        tables += [(CSV, folder, plan) for folder in folders if (plan := _table(folder))]
        if found:
            return _read_first(path, found, found + tables)
    if tables:
        nearest = len(tables[0][1].parts)
        return _read_first(path, [each for each in tables if len(each[1].parts) == nearest], tables)
    raise DataError(_unrecognised(path))


def _found_in(folders: list[Path]) -> list[tuple[_Format, Path, Any]]:
    """(format, folder, plan) of everything found, in the order of formats."""
    found = []
    for form in FORMATS:
        for folder in folders:
            try:
                plan = form.find(folder)
            except DataError:  # of a format that is not read where another is there
                if not found:
                    raise
                continue
            if plan:
                found.append((form, folder, plan))
    return found


def _table(folder: Path) -> Any:
    try:
        return find_csv(folder)
    except DataError:  # several tables: a reason to ask only where there is nothing else
        return None


def _levels(path: Path) -> Iterator[list[Path]]:
    """The folder itself, then its folders, then theirs."""
    level = [path]
    for _ in range(DEEPEST + 1):
        yield level
        level = sorted(child for folder in level for child in folders_in(folder))
        if len(level) > MOST_FOLDERS:
            return


def _read_first(path: Path, found: list[tuple], everything: list[tuple]) -> Found:
    """Reads the first format of a level; DataError where several folders have it."""
    form = next(each for each in (*FORMATS, CSV) if any(one is each for one, _, _ in found))
    folders = [folder for one, folder, _ in found if one is form]
    if len(folders) > 1:
        raise DataError(f"{path} holds several {form.name} folders: {listed(folders)}. Give one of them.")
    folder, plan = next((folder, plan) for one, folder, plan in found if one is form)
    result = form.read(folder, plan)
    others = [(one.name, folder) for one, folder, _ in everything if one is not form]
    if not others:
        return result
    told = ", ".join(f"{name} in {folder}" for name, folder in dict.fromkeys(others))
    return replace(result, notes=[*result.notes, f"{form.name} is read; left unread: {told}"])


def _read_file(path: Path) -> Found:
    kind = path.suffix.lower()
    if kind == ".json":
        root = root_of_json(path)
        return read_coco(root, [coco_file(root, "train", path)])
    if kind in (".csv", ".tsv"):
        return read_csv(plan_of_csv(path))
    if kind in (".yaml", ".yml"):
        return read_yolo(plan_of_yaml(path))
    if kind == ".txt" and is_list(path):
        return read_yolo(plan_of_list(path))
    if kind in ARCHIVES:
        raise DataError(f"{path} is an archive. Unpack it, and give the folder.")
    if kind == ".xml":
        raise DataError(f"{path} is one XML file. Give the folder of the data set.")
    what = "no list of image paths" if kind == ".txt" else "no .json, .csv, .yaml or .txt file"
    raise DataError(f"{path} is {what}. Looked for {LOOKED_FOR}.")


def _unrecognised(path: Path) -> str:
    """What was looked for and found, and the nearest guess at what it is."""
    find_csv(path)  # says so where there are several tables
    found = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    text = f"No data set is recognised in {path}. Looked for {LOOKED_FOR}; found {listed(found) or 'an empty folder'}."
    return f"{text} {guess}" if (guess := _guess(path)) else text


def _guess(path: Path) -> str | None:
    with contextlib.suppress(DataError):
        above = next((form.name for form in FORMATS if form.find(path.parent)), None)
        if above:
            return f"Is it a part of {path.parent}? Give that: it is {above}."
    files = [each for pattern in ("[!.]*", "*/[!.]*") for each in sorted(path.glob(pattern)) if each.is_file()]
    by_kind = {}
    for each in files:
        by_kind.setdefault(each.suffix.lower(), each)
    archive = next((by_kind[kind] for kind in ARCHIVES if kind in by_kind), None)
    if archive:
        return f"Is it in {archive.name}? Unpack that."
    if ".xml" in by_kind:
        return f"{by_kind['.xml']} has no <annotation>, so it is not Pascal VOC (CVAT exports COCO and VOC as well)."
    if ".json" in by_kind and not may_be_coco(by_kind[".json"]):
        return f"{by_kind['.json']} has no 'images', so it is not COCO: export it as COCO."
    if ".csv" in by_kind:
        return f"{by_kind['.csv']} {wanted_columns(by_kind['.csv'])}"
    if any(images_under(path)):
        return "There are images, but no annotations that are known."
    return None
