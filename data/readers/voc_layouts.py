"""Where a Pascal VOC data set has its XML files and their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.readers.layout import split_of_folder
from data.readers.locate import folders_in, is_image

XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", "img", "PNGImages")
LISTS = ("train", "trainval", "val")
ENOUGH = 20  # files that are looked into


@dataclass(frozen=True, kw_only=True)
class VocSplit:
    annotations: Path  # the folder of the XML files
    images: Sequence[Path]  # folders where their images may be, the likeliest first


@dataclass(frozen=True, kw_only=True)
class VocPlan:
    root: Path
    splits: Mapping[str, VocSplit]
    lists: Path | None = None  # the folder of train.txt, val.txt …: ImageSets/Main, ImageSets/ or the root


def find_voc(folder: Path) -> VocPlan | None:
    """The layout of a folder: its own XML files, those of Annotations/, or of train/, valid/ and test/; or None."""
    splits = {}
    for child in folders_in(folder):
        split = split_of_folder(child.name)
        xmls = split and _xml_folder(child)
        if xmls and split not in splits:
            splits[split] = VocSplit(annotations=xmls, images=_image_folders(child, xmls))
    if splits:  # Roboflow's export: train/, valid/ and test/
        return VocPlan(root=folder, splits=splits)
    for place in (child for child in folders_in(folder) if child.name.lower() in XML_FOLDERS):
        for child in folders_in(place):
            split = split_of_folder(child.name)
            if split and _has_annotations(child):
                images = [folder / name / child.name for name in IMAGE_FOLDERS] + _image_folders(folder, child)
                splits[split] = VocSplit(annotations=child, images=images)
    if splits:  # annotations/train beside images/train
        return VocPlan(root=folder, splits=splits)
    xmls = _xml_folder(folder)
    return xmls and plan_of_folder(xmls, folder)


def plan_of_folder(xmls: Path, root: Path) -> VocPlan:
    """The plan of one folder of XML files."""
    places = (root / "ImageSets" / "Main", root / "ImageSets", root)
    lists = next((place for place in places if any((place / f"{name}.txt").is_file() for name in LISTS)), None)
    split = VocSplit(annotations=xmls, images=_image_folders(root, xmls))
    return VocPlan(root=root, splits={"train": split}, lists=lists)


def _xml_folder(folder: Path) -> Path | None:
    """The folder of XML files: Annotations/ (or annotations/xmls/), else the folder itself."""
    named = [child for child in folders_in(folder) if child.name.lower() in XML_FOLDERS]
    inner = [child for each in named for child in folders_in(each) if child.name.lower() in XML_FOLDERS]
    return next(filter(_has_annotations, (*named, *inner, folder)), None)


def _has_annotations(folder: Path) -> bool:
    """Whether XML files lie there that are VOC's by their first words (CVAT's and others' are not)."""
    xmls = sorted(folder.glob("[!.]*.[xX][mM][lL]"))
    return any(b"<annotation>" in head or b"<annotation " in head for head in map(_head, xmls[:ENOUGH]))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(500).replace(b"\0", b"")  # so that UTF-16 is read as well


def _image_folders(root: Path, xmls: Path) -> list[Path]:
    places = [*(base / name for base in (root, xmls.parent) for name in IMAGE_FOLDERS), xmls, xmls.parent, root]
    return [place for place in dict.fromkeys(places) if place.is_dir() and any(map(is_image, place.iterdir()))]
