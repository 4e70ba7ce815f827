"""COCO detection JSON, whoever wrote it. Masks are not read: an object is its box, its class, its area and iscrowd."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.found import Found, FoundImage, FoundObject
from data.records import DataError, Defect

PLACEHOLDER = "a name for the group of the other categories (Roboflow's), without annotations"


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    split: str
    path: Path
    image_folders: list[Path]  # where its images may lie, the likeliest first


def read_coco(root: Path, files: Sequence[CocoFile]) -> Found:
    """What the `files` of one data set hold; names are relative to `root`.

    The classes are the training file's, in order of their ids, with gaps closed; the other files must have the same
    by name. Ids of images and annotations mean nothing outside their own file.
    """
    files = sorted(files, key=lambda file: file.split != "train")
    classes, splits, defects = None, {}, []
    for file in files:
        content = _content(file.path)
        names, found = _category_names(file, content)
        if classes is None:
            classes = tuple(names[number] for number in sorted(names))
        elif set(classes) != set(names.values()):
            raise DataError(
                f"{file.path} has other classes than {files[0].path}: {sorted(names.values())} against "
                f"{sorted(classes)}. Make the categories equal by name."
            )
        defects += found
        splits[file.split], found = _found_images(root, file, content, names)
        defects += found
    return Found(format="coco", root=root, classes=classes, splits=splits, defects=defects)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}. Export it again.") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path} has no list {key!r} of objects, so it is no COCO detection file.")
    return content


def _category_names(file: CocoFile, content: dict[str, Any]) -> tuple[dict[Any, str], list[Defect]]:
    """{category id: class name} and the defects found; category 0 is a class like any other."""
    names = {}
    for number, category in enumerate(content["categories"]):
        category_id = _needed(file, category, "id", f"category {number}")
        if category_id in names:
            raise DataError(f"{file.path} has two categories of id {category_id!r}. Give each its own.")
        names[category_id] = str(_needed(file, category, "name", f"category {category_id}"))
    defects = []
    if _is_placeholder(content):
        defects.append(_defect(file, "placeholder-category", f"category 0 ({names.pop(0)})", PLACEHOLDER, "dropped"))
    if len(set(names.values())) < len(names):
        raise DataError(f"{file.path} has two categories of one name: {sorted(names.values())}. Merge or rename them.")
    if not names:
        raise DataError(f"{file.path} has no categories, so there is nothing to detect.")
    return names, defects


def _is_placeholder(content: dict[str, Any]) -> bool:
    root = next((category for category in content["categories"] if category["id"] == 0), None)
    if root is None:
        return False
    groups = {category.get("supercategory") for category in content["categories"] if category is not root}
    return root["name"] in groups and all(each.get("category_id") != 0 for each in content["annotations"])


def _found_images(
    root: Path, file: CocoFile, content: dict[str, Any], names: dict[Any, str]
) -> tuple[list[FoundImage], list[Defect]]:
    """Every listed image with its objects, and the defects found."""
    objects = _objects_by_image(file, content, names)
    images, listed_names, listed_ids = [], {}, set()
    locate = _locator(file.image_folders)
    looked_in = ", ".join(str(folder) for folder in file.image_folders if folder.is_dir())
    for number, image in enumerate(content["images"]):
        image_id = _needed(file, image, "id", f"image {number}")
        file_name = str(_needed(file, image, "file_name", f"image {image_id}")).replace("\\", "/")
        path = locate(file_name)
        name = _relative(path, root) if path else file_name
        if name in listed_names:
            raise DataError(f"{file.path} lists {name} twice: images {listed_names[name]} and {image_id}. Merge them.")
        if image_id in listed_ids:
            raise DataError(f"{file.path} has two images of id {image_id}, one is {name}. Give each its own id.")
        listed_names[name] = image_id
        listed_ids.add(image_id)
        size = (image.get("width"), image.get("height"))
        declared = size if all(size) else None
        found = objects.pop(image_id, [])
        images.append(FoundImage(name=name, path=path, declared_size=declared, objects=found, looked_in=looked_in))
    return images, _orphans(file, objects)


def _orphans(file: CocoFile, objects: dict[Any, list[FoundObject]]) -> list[Defect]:
    return [
        _defect(file, "orphan-annotation", found.what, f"its image {image_id} is not in the file", "annotation dropped")
        for image_id, orphans in objects.items()
        for found in orphans
    ]


def _objects_by_image(file: CocoFile, content: dict[str, Any], names: dict[Any, str]) -> dict[Any, list[FoundObject]]:
    objects = {}
    for number, annotation in enumerate(content["annotations"]):
        what = f"annotation {annotation.get('id', f'number {number}')}"
        category_id = _needed(file, annotation, "category_id", what)
        if category_id not in names:
            raise DataError(f"{file.path}: {what} has category {category_id!r}, which the file does not define.")
        found = FoundObject(
            what=f"{what} ({names[category_id]})",
            class_name=names[category_id],
            box=_corners(annotation.get("bbox")),
            iscrowd=int(bool(annotation.get("iscrowd"))),
            area=_number(annotation.get("area")),
        )
        objects.setdefault(_needed(file, annotation, "image_id", what), []).append(found)
    return objects


def _needed(file: CocoFile, entry: dict[str, Any], key: str, what: str) -> Any:
    if entry.get(key) is None:
        raise DataError(f"{file.path}: {what} has no {key!r}.")
    return entry[key]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _corners(bbox: Any) -> tuple[float, ...] | None:
    """x, y, width, height → x1, y1, x2, y2; None where that is not four numbers."""
    numbers = [_number(value) for value in bbox] if isinstance(bbox, list) else []
    if len(numbers) != 4 or None in numbers:
        return None
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _locator(folders: Sequence[Path]) -> Callable[[str], Path | None]:
    """A function from a file_name to its path, or None."""
    folders = [folder for folder in folders if folder.is_dir()]

    def locate(file_name: str) -> Path | None:
        # Exporters write anything from a bare name to a path on another machine: believe the path, then the name.
        for name in dict.fromkeys((file_name, PurePosixPath(file_name).name)):
            for folder in folders:
                if (folder / name).is_file():
                    return folder / name
        return None

    return locate


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _defect(file: CocoFile, kind: str, what: str, detail: str, action: str) -> Defect:
    return Defect(
        kind=kind, severity="warning", split=file.split, file=file.path.name, object=what, detail=detail, action=action
    )
