"""Pascal VOC XML: Annotations/ beside JPEGImages/, with or without ImageSets/Main.

Coordinates are used as they are. The VOC papers count pixels from 1, but most files were written by tools (LabelImg)
whose coordinates are edges; which of the two wrote a file cannot be told, and the difference is one pixel.
Objects marked `difficult` are ordinary objects: a detector must find them too.
"""

import re
from collections import Counter
from pathlib import Path, PurePath
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from data.found import Found, FoundImage, FoundObject
from data.images import SUFFIXES
from data.records import DataError, Defect

SPLITS = ("train", "val", "test")


def read_voc(root: Path) -> Found:
    """What the folder holds; without ImageSets everything is "train". Names are relative to `root`."""
    annotations = {path.stem: path for path in sorted((root / "Annotations").glob("[!.]*.xml"))}
    images = _images_by_name(root / "JPEGImages")
    defects = []
    stems = _listed_splits(root, annotations, images)
    if stems is None:
        stems, defects = _everything(annotations, images)
    else:
        defects = _unlisted(annotations, stems)
    found, classes = {}, set()
    for split, names in stems.items():
        found[split] = []
        for stem in names:
            image, warnings = _found_image(root, split, annotations[stem], images)
            found[split].append(image)
            defects += warnings
            classes.update(each.class_name for each in image.objects)
    return Found(format="voc", root=root, classes=tuple(sorted(classes)), splits=found, defects=defects)


def _images_by_name(folder: Path) -> dict[str, Path]:
    """{file name or stem: path} of a folder's images."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    return {path.stem: path for path in reversed(paths)} | {path.name: path for path in paths}


def _listed_splits(root: Path, annotations: dict[str, Path], images: dict[str, Path]) -> dict[str, list[str]] | None:
    """{split: stems} of ImageSets/Main, or None where there is none."""
    lists = {path.stem: path for path in (root / "ImageSets" / "Main").glob("*.txt")}
    if "train" not in lists and "trainval" in lists:
        lists["train"] = lists["trainval"]
    splits = {split: _stems(lists[split]) for split in SPLITS if split in lists}
    for split, stems in splits.items():
        missing = [stem for stem in stems if stem not in annotations]
        if missing:
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise DataError(
                f"{lists[split]} lists {len(missing)} images that have no XML in {root / 'Annotations'}: {shown}. "
                "Put it there (one without objects, for an image without any), or take them out of the list."
            )
    return splits or None


def _stems(path: Path) -> list[str]:
    """The images named in an ImageSets file; a suffix, and the -1, 0 or 1 of a class list, are taken off."""
    stems = Counter()
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = re.sub(r"\s+(-1|0|1)$", "", line.strip())
        if name:
            stems[PurePath(name).stem if name.lower().endswith(SUFFIXES) else name] += 1
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise DataError(f"{path} lists {twice[0]} twice ({len(twice)} such). Take out the second.")
    return list(stems)


def _everything(annotations: dict[str, Path], images: dict[str, Path]) -> tuple[dict[str, list[str]], list[Defect]]:
    """Without lists: all XML files are "train"; an image without an XML is no proof of an image without objects."""
    with_xml = {stem.lower() for stem in annotations}
    defects = [
        Defect(
            kind="image-without-annotation",
            severity="warning",
            split="train",
            file=f"JPEGImages/{path.name}",
            object=None,
            detail="it has no XML file; write one without objects if it shows none",
            action="image left out",
        )
        for path in sorted(set(images.values()))
        if path.stem.lower() not in with_xml
    ]
    return {"train": list(annotations)}, defects


def _unlisted(annotations: dict[str, Path], splits: dict[str, list[str]]) -> list[Defect]:
    listed = {stem for stems in splits.values() for stem in stems}
    return [
        Defect(
            kind="orphan-annotation",
            severity="warning",
            split="none",
            file=f"Annotations/{path.name}",
            object=None,
            detail="no list in ImageSets/Main names it",
            action="image left out",
        )
        for stem, path in annotations.items()
        if stem not in listed
    ]


def _found_image(root: Path, split: str, xml_path: Path, images: dict[str, Path]) -> tuple[FoundImage, list[Defect]]:
    """The image of one XML file with its objects, and a warning where the XML names another image."""
    xml = _parsed(xml_path)
    file_name = (xml.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    stem = xml_path.stem
    path = images.get(file_name) if PurePath(file_name).stem == stem else None
    path = path or images.get(stem) or images.get(file_name)
    defects = []
    if path and file_name and file_name not in (path.name, path.stem):
        defects.append(
            Defect(
                kind="file-name-differs",
                severity="warning",
                split=split,
                file=f"Annotations/{xml_path.name}",
                object=None,
                detail=f"it names the image {file_name!r}",
                action=f"{path.name} is used",
            )
        )
    name = path.relative_to(root).as_posix() if path else f"JPEGImages/{stem}"
    objects = [_found_object(xml_path, number, each) for number, each in enumerate(xml.findall("object"), start=1)]
    size, looked_in = _declared_size(xml), str(root / "JPEGImages")
    return FoundImage(name=name, path=path, declared_size=size, objects=objects, looked_in=looked_in), defects


def _parsed(path: Path) -> Element:
    try:
        return parse(path).getroot()
    except (ParseError, DefusedXmlException, UnicodeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as XML: {error}. Export it again.") from error


def _found_object(path: Path, number: int, xml: Element) -> FoundObject:
    class_name = (xml.findtext("name") or "").strip()
    if not class_name:
        raise DataError(f"{path}: object {number} has no class name. Name it, or take it out.")
    box = [_number(xml.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
    return FoundObject(
        what=f"object {number} ({class_name})",
        class_name=class_name,
        box=None if None in box else tuple(box),
    )


def _declared_size(xml: Element) -> tuple[int, int] | None:
    """(width, height), or None where the XML leaves it out or, as some tools do, writes 0."""
    size = _number(xml.findtext("size/width")), _number(xml.findtext("size/height"))
    return (int(size[0]), int(size[1])) if all(size) else None


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
