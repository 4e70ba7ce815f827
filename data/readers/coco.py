"""COCO detection JSON, whoever wrote it: an object is its box, its class, its area and iscrowd.

Masks are read only where an object has no box: then it is the box of its mask.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.class_names import meant
from data.readers.coco_file import OF_MASK, CocoContent, Objects, as_key, as_number, read_content
from data.readers.found import Found, FoundImage, defect_of
from data.readers.locate import ImageFolders, relative_name
from data.records import REFUSED, DataError, Defect

PLACEHOLDER = "a name for the group of the other categories (Roboflow's), without annotations"
NO_ROWS = np.array([], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    split: str
    path: Path
    image_folders: list[Path]  # where its images may lie, the likeliest first
    unread: Sequence[str] = ()  # further files beside it, whose names say no split


def read_coco(root: Path, files: Sequence[CocoFile]) -> Found:
    """What the `files` of one data set hold; names are relative to `root`.

    The classes are the training file's, in order of their ids, with gaps closed; those of the other files must be
    among them by name. Ids of images and annotations mean nothing outside their own file.
    """
    files = sorted(files, key=lambda file: file.split != "train")
    classes, splits, defects = None, {}, []
    for file in files:
        content = read_content(file.path)
        names, found = _category_names(file, content)
        defects += found
        if classes is None:
            classes = tuple(names[number] for number in sorted(names, key=_in_order))
        else:
            names, found = _known_names(file, content, names, classes, files[0])
            defects += found
        splits[file.split], found = _found_images(root, file, content, names)
        defects += found
    unread = [name for file in files for name in file.unread]
    notes = [f"left unread, because its name says no split: {name}" for name in unread]
    return Found(format="coco", shape="origin", root=root, classes=classes, splits=splits, defects=defects, notes=notes)


def _in_order(category_id: Hashable) -> tuple[bool, Any]:
    return isinstance(category_id, str), category_id


def _category_names(file: CocoFile, content: CocoContent) -> tuple[dict[Hashable, str], list[Defect]]:
    """{category id: class name} and the defects found; category 0 is a class like any other."""
    names = {}
    for number, category in enumerate(content.categories):
        for key in ("id", "name"):
            if category.get(key) is None:
                raise DataError(f"{file.path}: category number {number} has no {key!r}.")
        category_id = as_key(category["id"])
        if category_id in names:
            raise DataError(f"{file.path} has two categories of id {category_id!r}. Give each its own.")
        names[category_id] = str(category["name"])
    rows = content.annotations.by_category()
    defects = []
    if _is_placeholder(content, rows):
        defects.append(_defect(file, "placeholder-category", f"category 0 ({names.pop(0)})", PLACEHOLDER, "dropped"))
    if len(set(names.values())) < len(names):
        raise DataError(f"{file.path} has two categories of one name: {sorted(names.values())}. Merge or rename them.")
    if not names:
        raise DataError(f"{file.path} has no categories, so there is nothing to detect.")
    for category_id in rows.keys() - names.keys():
        what = _first(content, rows[category_id])
        text = f"category {category_id!r}, which the file does not define"
        detail = "it has no 'category_id'" if category_id is None else f"it has {text}"
        defects.append(_defect(file, "unknown-class", what, detail, REFUSED))
    return names, defects


def _is_placeholder(content: CocoContent, rows: Mapping[Hashable, np.ndarray]) -> bool:
    root = next((category for category in content.categories if as_key(category["id"]) == 0), None)
    if root is None or 0 in rows:
        return False
    return root["name"] in [category.get("supercategory") for category in content.categories if category is not root]


def _known_names(
    file: CocoFile, content: CocoContent, names: dict[Hashable, str], classes: Sequence[str], training: CocoFile
) -> tuple[dict[Hashable, str], list[Defect]]:
    """The names that training knows, and a defect for each other."""
    rows, defects = content.annotations.by_category(), []
    for category_id, name in names.items():
        if name in classes:
            continue
        what, detail = f"category {category_id} ({name})", f"{training.path.name} has no class {meant(name, classes)}"
        if category_id in rows:
            listed = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
            detail += f" (it has: {listed}), and {_first(content, rows[category_id])} here are of it"
            defects.append(_defect(file, "unknown-class", what, detail, REFUSED))
        else:
            defects.append(_defect(file, "unused-class", what, f"{detail}, and nothing here is of it", "dropped"))
    return {category_id: name for category_id, name in names.items() if name in classes}, defects


def _found_images(
    root: Path, file: CocoFile, content: CocoContent, names: dict[Hashable, str]
) -> tuple[list[FoundImage], list[Defect]]:
    """Every listed image with its objects, and the defects found."""
    annotations, defects = content.annotations, _defects_of_annotations(file, content)
    rows = dict(annotations.by_image())
    class_names = [names.get(category_id) for category_id in annotations.category_numbers]
    images, listed_names, listed_ids = [], {}, set()
    locate = ImageFolders(root, file.image_folders, file.split)
    for number, image in enumerate(content.images):
        image_id, file_name = as_key(image.get("id")), _file_name(image)
        if image_id is None or not file_name:
            missing = "id" if image_id is None else "file_name"
            what = f"image number {number}" if image_id is None else f"image {image_id}"
            defects.append(
                _defect(file, f"image-without-{missing.replace('_', '-')}", what, f"no {missing!r}", REFUSED)
            )
            continue
        path = locate.find(file_name)
        name = relative_name(path, root) if path else file_name
        twice = None
        if image_id in listed_ids:
            twice = "image-id-twice", f"another image has the id {image_id}, so whose the annotations are is not known"
        elif name in listed_names:
            twice = "image-listed-twice", f"the same file is image {listed_names[name]}"
        listed_ids.add(image_id)
        if twice:
            kind, detail = twice
            defects.append(_defect(file, kind, f"image {image_id} ({name})", detail, REFUSED))
            rows.pop(image_id, None)
            continue
        listed_names[name] = image_id
        objects = Objects(annotations, rows.pop(image_id, NO_ROWS), class_names)
        images.append(
            FoundImage(
                name=name,
                path=path,
                declared_size=_size(image),
                objects=objects,
                looked_in="" if path else locate.where(file_name),
            )
        )
    return images, defects + _orphans(file, content, rows, names)


def _file_name(image: dict[str, Any]) -> str:
    """LVIS has no file_name, but a coco_url that ends with folder and name."""
    name = image.get("file_name") or "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    return str(name).replace("\\", "/")


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    sides = as_number(image.get("width")), as_number(image.get("height"))
    return tuple(map(int, sides)) if all(side and np.isfinite(side) for side in sides) else None


def _defects_of_annotations(file: CocoFile, content: CocoContent) -> list[Defect]:
    """What does not belong to one image: in one line each, since all the annotations of a file may have it."""
    annotations, defects = content.annotations, []
    of_masks = np.flatnonzero(np.frombuffer(annotations.origins, np.uint8) == OF_MASK)
    if len(of_masks):
        detail = "no box, but a mask"
        what = _first(content, of_masks)
        defects.append(_defect(file, "box-of-mask", what, detail, "the box of the mask is used"))
    repeated = annotations.repeated()
    if len(repeated):
        what = _first(content, repeated)
        defects.append(_defect(file, "annotation-id-twice", what, "an earlier annotation has its id", "both are kept"))
    return defects


def _orphans(
    file: CocoFile, content: CocoContent, rows: Mapping[Hashable, np.ndarray], names: dict[Hashable, str]
) -> list[Defect]:
    """A defect for each image that is not there."""
    defects = []
    categories = list(content.annotations.category_numbers)
    for image_id, orphans in rows.items():
        class_name = names.get(categories[content.annotations.categories[orphans[0]]])
        what = _first(content, orphans, f" ({class_name})")
        detail = "it has no 'image_id'" if image_id is None else f"its image {image_id} is not in the file"
        defects.append(_defect(file, "orphan-annotation", what, detail, "annotation dropped"))
    return defects


def _first(content: CocoContent, rows: np.ndarray, of_class: str = "") -> str:
    """The first of some annotations, and how many more there are."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return content.annotations.name(int(rows[0])) + of_class + more


def _defect(file: CocoFile, kind: str, what: str, detail: str, action: str) -> Defect:
    return defect_of(kind, file.split, file.path.name, detail, action, what)
