"""Splits that a user writes down (--splits): which image is in which split.

- a .json file, {"train": [names], "val": [names]}, or with a value to each name, as every run keeps its own
- a .csv file with a column of names and one called split
- a folder with train.txt, val.txt …: a name a line

Names are paths relative to the data set's root; where there is no such path, the file name alone, with or without its
suffix, if only one image has it. Images that were converted since may have another suffix.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from data.images import SUFFIXES
from data.readers.found import FoundImage
from data.readers.layout import SPLIT_NAMES, listed
from data.readers.rows import read_text
from data.records import DataError

NAME_COLUMNS = ("name", "image", "filename", "file_name", "file", "path", "image_path")
FORMS = (
    "a .json file {split: [names]}, a .csv file with the columns name and split, or a folder of train.txt, val.txt …"
)


def assigned(
    file: Path, data: Path, splits: Mapping[str, Sequence[FoundImage]]
) -> tuple[dict[str, list[FoundImage]], str]:
    """(the images of `splits` as `file` distributes them, the rule in words); what it does not name is left out."""
    images = _by_name(data, splits)
    find = _Finder(file, images)
    split_of, unknown = {}, []
    for split, name in _entries(file):
        image = find(name)
        if image is None:
            unknown.append(name)
            continue
        before = split_of.setdefault(image.name, split)
        if before != split:
            raise DataError(f"{file} has {image.name} in two splits, {before!r} and {split!r}. Leave it in one.")
    if unknown:
        told = f"{len(unknown)} that are no images" if len(unknown) > 1 else "no image"
        like = next(iter(images), "none")
        raise DataError(f"{file} names {told} of {data}: {listed(unknown)}. Its images are called like {like}")
    named = {split: [] for split in sorted(set(split_of.values()), key=usual_order)}
    for name, split in split_of.items():
        named[split].append(images[name])
    missing = [split for split in ("train", "val") if not named.get(split)]
    if missing:
        raise DataError(f"{file} names no image of {' and '.join(missing)}, and training needs both.")
    left_out = len(images) - len(split_of)
    rule = f"splits as in {file}"
    return named, rule + (f"; {left_out} of {len(images)} images are not in it and left out" if left_out else "")


def usual_order(split: str) -> tuple[int, str]:
    """A key that sorts train before val before test, and others behind them."""
    usual = ("train", "val", "test")
    return (usual.index(split) if split in usual else len(usual)), split


def _by_name(data: Path, splits: Mapping[str, Sequence[FoundImage]]) -> dict[str, FoundImage]:
    images = {}
    for split, found in splits.items():
        for image in found:
            if image.name in images:
                raise DataError(f"{data} lists {image.name} in {split!r} and before: --splits cannot say which counts.")
            images[image.name] = image
    return images


class _Finder:
    """From a name in the file to the image that it means."""

    def __init__(self, file: Path, images: Mapping[str, FoundImage]):
        self.file, self.images = file, images
        self.by_path = {str(image.path): image for image in images.values() if image.path is not None}
        self.by_short_name: dict[str, list[FoundImage]] = {}
        for name, image in images.items():
            path = PurePosixPath(name)
            for short in {path.name, path.stem, str(path.with_suffix(""))}:
                self.by_short_name.setdefault(short, []).append(image)

    def __call__(self, name: str) -> FoundImage | None:
        plain = name.replace("\\", "/").removeprefix("./")
        if image := self.images.get(plain) or self.by_path.get(plain):
            return image
        path = PurePosixPath(plain)
        shorts = [path.name]
        if path.suffix.lower() in SUFFIXES:  # another suffix, in the same folder before any other
            shorts = [str(path.with_suffix(""))] * ("/" in plain) + [path.name, path.stem]
        found = next((self.by_short_name[short] for short in shorts if short in self.by_short_name), [])
        if len(found) > 1:
            several = ", ".join(image.name for image in found[:3])
            raise DataError(f"{self.file} names {name!r}, which may be any of {several}. Write their paths.")
        return found[0] if found else None


def _entries(file: Path) -> Iterator[tuple[str, str]]:
    """(split, name) of every entry."""
    if file.is_dir():
        entries = _of_lists(file)
    elif not file.is_file():
        raise DataError(
            f"There is no splits file {file}. Every run keeps its own among its artifacts in MLflow: data/splits.json"
        )
    elif file.suffix.lower() == ".json":
        entries = _of_json(file)
    elif file.suffix.lower() == ".csv":
        entries = _of_csv(file)
    else:
        raise DataError(f"--splits {file} is not {FORMS}.")
    for split, name in entries:
        word = split.strip().lower()
        if word not in SPLIT_NAMES:
            raise DataError(f"{file} has a split {split!r} for {name}: splits are called train, val and test")
        yield SPLIT_NAMES[word], name.strip()


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _of_json(file: Path) -> Iterator[tuple[str, str]]:
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(names, list | dict) and all(isinstance(name, str) for name in names) for names in lists):
        raise DataError(f'{file} is not of the form {{"train": [names], "val": [names]}}.')
    for split, names in content.items():
        for name in names:
            yield split, name


def _of_csv(file: Path) -> Iterator[tuple[str, str]]:
    lines = _text(file).splitlines()
    head = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=max(",;\t", key=head.count))
    columns = {(column or "").strip().lower(): column for column in rows.fieldnames or ()}
    names = next((columns[word] for word in NAME_COLUMNS if word in columns), None)
    if names is None or "split" not in columns:
        raise DataError(f"{file} needs a header with the columns name and split; it has: {', '.join(columns)}.")
    for number, row in enumerate(rows, start=2):
        if not row[names] or not row[columns["split"]]:
            raise DataError(f"{file}, line {number}: it needs a name and a split.")
        yield row[columns["split"]], row[names]


def _of_lists(folder: Path) -> Iterator[tuple[str, str]]:
    files = [path for path in sorted(folder.glob("*.txt")) if path.stem.lower() in SPLIT_NAMES]
    if not files:
        raise DataError(f"--splits {folder} is a folder without train.txt, val.txt or test.txt.")
    for path in files:
        for line in _text(path).splitlines():
            if line.strip():
                yield path.stem, line
