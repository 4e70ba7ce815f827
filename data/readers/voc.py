"""Pascal VOC XML: a file an image, in Annotations/ or beside the images, with or without ImageSets/Main.

Coordinates are used as they are. The VOC papers count pixels from 1, but most files were written by tools (LabelImg)
whose coordinates are edges; which of the two wrote a file cannot be told, and the difference is one pixel.
Objects marked `difficult` are ordinary objects: a detector must find them too.
"""

import math
import re
from collections import Counter
from pathlib import Path, PurePath
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse

from data.images import SUFFIXES
from data.readers.found import Found, FoundImage, FoundRows, defect_of
from data.readers.layout import listed
from data.readers.locate import ImageFolders, relative_name
from data.readers.voc_layouts import VocPlan, VocSplit
from data.records import NO_SPLIT, REFUSED, DataError, Defect
from progress import counted

SPLITS = ("train", "val", "test")
NO_BOX = (math.nan,) * 4


def read_voc(plan: VocPlan) -> Found:
    """What the XML files hold; names are relative to the plan's root."""
    found, classes, defects = {}, _Classes(), []
    for split, where in plan.splits.items():
        folder = _Folder(plan.root, where, classes)
        lists = _listed_splits(folder, plan.lists) if plan.lists else {}
        defects += _unlisted(folder, lists) if lists else folder.images_without_xml(split)
        for name, stems in (lists or {split: list(folder.annotations)}).items():
            images, more = folder.read(name, stems, plan.lists)
            found[name] = images
            defects += more
    if not classes.names:
        raise DataError(
            f"No XML file of {listed(map(str, _xml_folders(plan)))} has an object, so there are no classes."
        )
    return Found(
        format="voc",
        shape="corners",
        root=plan.root,
        classes=tuple(sorted(classes.names)),
        splits=found,
        defects=defects,
    )


def _xml_folders(plan: VocPlan) -> list[Path]:
    return [where.annotations for where in plan.splits.values()]


class _Classes:
    """The class names in the order in which they were met."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._index: dict[str, int] = {}

    def index(self, name: str) -> int:
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]


class _Folder:
    """A folder of XML files with the folders where their images are."""

    def __init__(self, root: Path, where: VocSplit, classes: _Classes) -> None:
        self.root, self.where, self.classes = root, where, classes
        self.annotations = {path.stem: path for path in sorted(where.annotations.glob("[!.]*.[xX][mM][lL]"))}
        self.images = ImageFolders(root, where.images)

    def images_without_xml(self, split: str) -> list[Defect]:
        """An image without an XML is no proof of an image without objects."""
        with_xml = {stem.lower() for stem in self.annotations}
        left_out = [path for path in self.images.nearest() if path.stem.lower() not in with_xml]
        detail = "it has no XML file"
        return [
            defect_of("image-without-annotation", split, relative_name(path, self.root), detail, "image left out")
            for path in left_out
        ]

    def read(self, split: str, stems: list[str], lists: Path | None) -> tuple[list[FoundImage], list[Defect]]:
        images, defects = {}, []
        for stem in counted(stems, f"read annotations of {split}"):
            if stem not in self.annotations:
                detail = f"{stem} has no XML in {self.where.annotations}"
                file = relative_name(lists / f"{split}.txt", self.root)
                defects.append(defect_of("annotation-missing", split, file, detail, REFUSED, stem))
                continue
            image, found = self._found_image(split, self.annotations[stem])
            defects += found
            if image.name in images:
                detail = f"its image {image.name} is that of another XML file too"
                defects.append(defect_of("image-listed-twice", split, self._name_of(stem), detail, REFUSED))
            else:
                images[image.name] = image
        return list(images.values()), defects

    def _name_of(self, stem: str) -> str:
        return relative_name(self.annotations[stem], self.root)

    def _found_image(self, split: str, xml_path: Path) -> tuple[FoundImage, list[Defect]]:
        """The image of one XML file with its objects, and what is wrong in the file."""
        xml_name, defects = relative_name(xml_path, self.root), []
        try:
            xml = parse(xml_path).getroot()
        except (ParseError, DefusedXmlException, UnicodeError, ValueError) as error:
            detail = f"it cannot be read as XML: {error}"
            xml, defects = Element("annotation"), [defect_of("annotation-unreadable", split, xml_name, detail, REFUSED)]
        objects = FoundRows(self.classes.names, "object")
        for number, each in enumerate(xml.findall("object"), start=1):
            if class_name := (each.findtext("name") or "").strip():
                objects.add(number, self.classes.index(class_name), _box(each))
            else:
                detail, what = "it has no class name", f"object {number}"
                defects.append(defect_of("class-missing", split, xml_name, detail, REFUSED, what))
        file_name = (xml.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
        path = self._image_of(xml_path.stem, file_name)
        if path and file_name and file_name not in (path.name, path.stem):
            detail = f"it names the image {file_name!r}, and {path.name} lies there"
            defects.append(defect_of("file-name-differs", split, xml_name, detail, "the image that lies there is used"))
        image = FoundImage(
            name=relative_name(path, self.root) if path else file_name or xml_path.stem,
            path=path,
            declared_size=_declared_size(xml),
            objects=objects,
            looked_in="" if path else self.images.where(file_name or xml_path.stem),
        )
        return image, defects

    def _image_of(self, stem: str, file_name: str) -> Path | None:
        """The image of the XML's own name before the one that is named inside: files are renamed, their text is not."""
        same = file_name if PurePath(file_name).stem == stem else stem
        own = self.images.find(same) or self.images.find(stem, anywhere=False)  # elsewhere masks have the same names
        return own or (self.images.find(file_name) if file_name else None)


def _listed_splits(folder: _Folder, lists: Path) -> dict[str, list[str]]:
    """{split: stems} of ImageSets/Main; {} where there is none."""
    paths = {path.stem: path for path in lists.glob("[!.]*.txt")}
    if "train" not in paths and "trainval" in paths:
        paths["train"] = paths["trainval"]
    return {split: _stems(paths[split], folder.annotations) for split in SPLITS if split in paths}


def _stems(path: Path, annotations: dict[str, Path]) -> list[str]:
    """The images named in an ImageSets file; folder, suffix, and the -1, 0 or 1 of a class list, are taken off."""
    stems = Counter()
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = re.sub(r"\s+\S+\.xml$", "", line.strip())  # some name the image and its XML
        if name not in annotations:
            name = re.sub(r"\s+(-1|0|1)$", "", name).replace("\\", "/").rpartition("/")[2]
        if name:
            stems[PurePath(name).stem if name.lower().endswith((*SUFFIXES, ".xml")) else name] += 1
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        raise DataError(f"{path} lists {twice[0]} twice ({len(twice)} such). Take out the second.")
    return list(stems)


def _unlisted(folder: _Folder, splits: dict[str, list[str]]) -> list[Defect]:
    known = {stem for stems in splits.values() for stem in stems}
    return [
        defect_of(
            "orphan-annotation",
            NO_SPLIT,
            relative_name(path, folder.root),
            "no list of the splits names it",
            "image left out",
        )
        for stem, path in folder.annotations.items()
        if stem not in known
    ]


def _box(xml: Element) -> tuple[float, ...]:
    """xyxy of an <object>, NaN where it is not four numbers; boxes of its <part>s lie deeper and are not its own."""
    box = tuple(_number(xml.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    return NO_BOX if None in box else box


def _declared_size(xml: Element) -> tuple[int, int] | None:
    """(width, height), or None where the XML leaves it out or, as some tools do, writes 0."""
    size = [_number(xml.findtext(f"size/{key}")) for key in ("width", "height")]
    return (int(size[0]), int(size[1])) if all(value and math.isfinite(value) for value in size) else None


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
