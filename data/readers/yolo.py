"""YOLO text files: a .txt an image, a row an object (class, then centre and size, or a polygon, in fractions)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.readers.found import Found, FoundImage, FoundRows, defect_of
from data.readers.locate import ImageFolders, images_under, is_image, relative_name
from data.readers.rows import FRACTION_LIMIT, BadRow, is_number, shown
from data.records import REFUSED, DataError, Defect
from progress import counted

IMAGE_FOLDERS = ("images", "JPEGImages")  # in a path, "labels" takes their place
ROUNDING = 1e-4  # over the edge, in fractions: files with four decimals


@dataclass(frozen=True, kw_only=True)
class YoloSplit:
    """Where one split's images are: folders, searched to the bottom, or lists of paths."""

    folders: Sequence[Path] = ()
    lists: Sequence[Path] = ()
    image_folders: Sequence[Path] = ()  # where the images of the lists are, where it is given
    labels: Path | None = None  # the folder of the text files, where it is given


@dataclass(frozen=True, kw_only=True)
class YoloPlan:
    """What is known of a YOLO data set before its text files are read."""

    root: Path
    names: Mapping[int, str] | None  # None: nothing names the classes
    splits: Mapping[str, YoloSplit]
    has_keypoints: bool = False
    defects: Sequence[Defect] = ()
    notes: Sequence[str] = field(default_factory=list)


def read_yolo(plan: YoloPlan) -> Found:
    """What the text files hold; an image without one is a negative, and named."""
    files = {split: _files(plan, split, where) for split, where in plan.splits.items()}
    defects = [*plan.defects, *_without_labels(plan, files)]
    notes, numbers = list(plan.notes), plan.names
    if numbers is None:
        numbers = _numbers_seen(label for listed in files.values() for _, _, label in listed if label)
        notes.append("nothing names the classes: they are called by their numbers (a classes.txt would name them)")
    if not numbers:
        raise DataError(f"{plan.root} has no classes: every text file is empty, and no classes.txt names any.")
    names = tuple(numbers[number] for number in sorted(numbers))
    reader = _LabelReader(names, {number: index for index, number in enumerate(sorted(numbers))}, plan.has_keypoints)
    splits = {}
    for split, listed in files.items():
        looked_in = ", ".join(map(str, (*plan.splits[split].folders, *plan.splits[split].lists)))
        images, used = {}, {}  # {text file: the image whose it is}
        for name, path, label in counted(listed, f"read annotations of {split}"):
            if name in images:
                defects.append(defect_of("image-listed-twice", split, name, "it is listed twice", "used once"))
                continue
            objects = ()
            if label is not None and used.setdefault(label, name) != name:
                detail = f"its text file {label.name} is that of {used[label]} too"
                defects.append(defect_of("label-file-shared", split, name, detail, REFUSED))
            elif label is not None:
                objects, found = reader.read(split, label, relative_name(label, plan.root))
                defects += found
            elif path is not None:
                detail = f"it has no text file {_label_paths(plan.splits[split], path)[0].name}"
                defects.append(defect_of("label-file-missing", split, name, detail, "taken as without objects"))
            images[name] = FoundImage(
                name=name, path=path, declared_size=None, objects=objects, looked_in=looked_in, normalised=True
            )
        splits[split] = list(images.values())
        defects += _orphans(plan, split, used.keys())
    if 0 in numbers and reader.seen and 0 not in reader.seen:
        notes.append(f"no row is of class 0 ({numbers[0]}): do the files count from 1? YOLO counts from 0")
    return Found(
        format="yolo", shape="centre", root=plan.root, classes=names, splits=splits, defects=defects, notes=notes
    )


def _without_labels(plan: YoloPlan, files: dict[str, list]) -> list[Defect]:
    """Takes a test split without a single text file out: it is not annotated. In another split that is a mistake."""
    defects = []
    for split, listed in list(files.items()):
        images = [path for _, path, _ in listed if path is not None]
        if not images or any(label for _, _, label in listed):
            continue
        wanted = _label_paths(plan.splits[split], images[0])[0]
        if split != "test":
            raise DataError(
                f"None of the {len(images)} images of {split!r} has a text file of its objects: for {images[0]} it "
                f"would be {wanted}. Put them there; an image without objects has an empty one."
            )
        del files[split]
        detail = f"none of its {len(images)} images has a text file such as {wanted}"
        defects.append(defect_of("split-without-annotations", split, plan.root.name, detail, "left out"))
    return defects


def _files(plan: YoloPlan, split: str, where: YoloSplit) -> list[tuple[str, Path | None, Path | None]]:
    """(name, image or None, its text file or None) of each image of a split."""
    paths = [(relative_name(path, plan.root), path) for folder in where.folders for path in images_under(folder)]
    for each in where.lists:
        locate = ImageFolders(plan.root, [*where.image_folders, each.parent, plan.root, plan.root / "images"])
        for line in each.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                path = locate.find(line.strip())
                paths.append((relative_name(path, plan.root) if path else line.strip(), path))
    return [(name, path, path and _label_of(where, path)) for name, path in paths]


def _label_of(where: YoloSplit, image: Path) -> Path | None:
    return next((path for path in _label_paths(where, image) if path.is_file()), None)


def _label_paths(where: YoloSplit, image: Path) -> list[Path]:
    """Where the text file of an image may be: in labels/ as the image is in images/, or beside it."""
    if where.labels is not None:
        return [where.labels / f"{image.stem}.txt"]
    beside = image.with_suffix(".txt")
    folder = labels_folder(image.parent)
    return [beside] if folder is None else [folder / beside.name, beside]


def labels_folder(images: Path) -> Path | None:
    """The labels/ that goes with a folder of images: the last images/ in its path gives way, as in every YOLO."""
    parts = images.parts
    for place in reversed(range(len(parts))):
        if parts[place] in IMAGE_FOLDERS:
            return Path(*parts[:place], "labels", *parts[place + 1 :])
    return None


def _orphans(plan: YoloPlan, split: str, used: set[Path]) -> list[Defect]:
    """Text files in the split's labels/ whose image is nowhere; those of images that a list leaves out are none."""
    defects = []
    for folder in sorted({path.parent for path in used}):
        if folder.name != "labels" and "labels" not in folder.parts and plan.splits[split].labels is None:
            continue  # text files beside images may be anything
        rest = [path for path in sorted(folder.glob("[!.]*.txt")) if path not in used and path.name != "classes.txt"]
        stems = {image.stem for image in _images_beside(folder, plan.splits[split])} if rest else set()
        defects += [
            defect_of(
                "orphan-annotation",
                split,
                relative_name(path, plan.root),
                f"there is no image {path.stem}",
                "left out",
            )
            for path in rest
            if path.stem not in stems
        ]
    return defects


def _images_beside(labels: Path, where: YoloSplit) -> list[Path]:
    parts = labels.parts
    places = [place for place in range(len(parts)) if parts[place] == "labels"]
    pairs = [Path(*parts[:place], name, *parts[place + 1 :]) for place in places[-1:] for name in IMAGE_FOLDERS]
    return [
        path for folder in (*pairs, *where.folders) if folder.is_dir() for path in folder.iterdir() if is_image(path)
    ]


def _numbers_seen(labels: Sequence[Path]) -> dict[int, str]:
    first = {line.split()[0] for path in labels for line in _lines(path) if line.split()}
    numbers = sorted({int(float(word)) for word in first if is_number(word) and math.isfinite(float(word))})
    return {number: str(number) for number in numbers}


class _LabelReader:
    def __init__(self, names: Sequence[str], index_of: Mapping[int, int], has_keypoints: bool) -> None:
        self.names, self.index_of, self.has_keypoints = names, index_of, has_keypoints
        self.seen: set[float] = set()  # numbers of classes

    def read(self, split: str, path: Path, name: str) -> tuple[FoundRows, list[Defect]]:
        """The objects of a text file and what is wrong in it, by line."""
        rows, problems, in_pixels = FoundRows(self.names), [], []
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                index, box = self._row(line.split())
            except BadRow as error:
                problems.append((error.kind, f"line {number}", str(error)))
                continue
            if max(map(abs, box)) > FRACTION_LIMIT:
                in_pixels.append((number, line.strip()))
            else:
                rows.add(number, index, box)
        if in_pixels:
            number, line = in_pixels[0]
            more = f"; so have {len(in_pixels) - 1} more lines" if len(in_pixels) > 1 else ""
            detail = f"{line!r} has pixels, where fractions of the image's width and height belong{more}"
            problems.append(("coordinates-in-pixels", f"line {number}", detail))
        return rows, [defect_of(kind, split, name, detail, what=what) for kind, what, detail in problems]

    def _row(self, words: Sequence[str]) -> tuple[int, tuple[float, ...]]:
        """(index of the class, xyxy in fractions) of a row's words."""
        if not all(map(is_number, words)):
            word = next(word for word in words if not is_number(word))
            raise BadRow("row-malformed", f"{word!r} is no number in {shown(words, ' ')}")
        label, *values = map(float, words)
        if label not in self.index_of:  # 2.0 is class 2
            known = f"{len(self.names)} classes, numbered {min(self.index_of)} to {max(self.index_of)}"
            hint = " (YOLO counts from 0: do these files count from 1?)" if label == max(self.index_of) + 1 else ""
            raise BadRow("unknown-class", f"class {words[0]} is not among the {known}{hint}")
        if len(values) == 4 or (self.has_keypoints and len(values) > 4):
            box = _corners(values[:4])
        elif len(values) == 5:
            raise BadRow("row-malformed", f"a sixth number is a confidence: {shown(words, ' ')} is a prediction")
        elif len(values) >= 6 and len(values) % 2 == 0:
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        else:
            wanted = "a class with 4 numbers (box) or pairs of them (polygon)"
            raise BadRow("row-malformed", f"{shown(words, ' ')} has {len(words)} numbers, not {wanted}")
        self.seen.add(label)
        return self.index_of[label], tuple(map(_snapped, box))


def _corners(values: Sequence[float]) -> tuple[float, ...]:
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _snapped(value: float) -> float:
    """To the edge what rounding put beside it."""
    nearest = min(max(value, 0.0), 1.0)
    return nearest if abs(value - nearest) < ROUNDING else value


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
