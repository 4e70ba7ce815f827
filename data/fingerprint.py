"""Digests that say whether two data sets are the same, wherever and in whatever order their files lie."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from data.records import Record

DIGITS = 16
NO_OBJECTS = hashlib.sha256().hexdigest()[:DIGITS]  # an image's annotations, where it has none
CLASS_BYTES = 6  # of a class name's digest: a float64 holds such a number exactly


def of_image(record: Record) -> str:
    """sha256 (hex) of an image's file, or of what a drawn image is drawn from."""
    return record.sha256 or hashlib.sha256(str(record.source).encode()).hexdigest()


def contents(splits: Mapping[str, Sequence[Record]], classes: Sequence[str]) -> dict[str, dict[str, str]]:
    """{split: {name: "the image's digest, that of its annotations"}}: what every run keeps, and --splits takes.

    Annotations are the same when their classes are so by name, whatever other classes there are.
    """
    digests = [hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:CLASS_BYTES] for name in classes]
    numbers = np.array([0, *(int.from_bytes(digest) for digest in digests)])

    def value(record: Record) -> str:
        annotations = hashlib.sha256(_rows(record, numbers[record.labels]).tobytes()).hexdigest()
        return f"{of_image(record)[:DIGITS]} {annotations[:DIGITS]}"

    return {split: {each.name: value(each) for each in records} for split, records in splits.items()}


def images_of(contents: Mapping[str, str]) -> dict[str, str]:
    """{name: the image's digest} of one split's `contents`."""
    return {name: value.partition(" ")[0] for name, value in contents.items()}


def images_in(contents: Mapping[str, Mapping[str, str]], split: str) -> set[str]:
    """The images' digests of a split of `contents`, however they are annotated and called; none where there is none."""
    return set(images_of(contents.get(split, {})).values())


def converted(now: Mapping[str, str], before: Mapping[str, str]) -> set[str]:
    """Of one split's contents the names of images that `before` has under another suffix or with other bytes.

    Their paths without the suffix and their annotations, of which there are some, are the same.
    """
    were = set(_annotated(before).values())
    return {name for name, key in _annotated(now).items() if key in were}


def possibly_converted(now: Mapping[str, str], before: Mapping[str, str]) -> set[str]:
    """Of one split's contents the names of images without objects whose paths `before` has such images of.

    Whether they are those converted cannot be told: nothing but the path is the same.
    """
    paths = {_path(name) for name, value in before.items() if value.partition(" ")[2] == NO_OBJECTS}
    return {name for name, value in now.items() if value.partition(" ")[2] == NO_OBJECTS and _path(name) in paths}


def _path(name: str) -> str:
    """Without the suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _annotated(contents: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """{name: (its path without the suffix, the digest of its annotations)} of the images with objects."""
    keys = {name: (_path(name), value.partition(" ")[2]) for name, value in contents.items()}
    return {name: key for name, key in keys.items() if key[1] not in ("", NO_OBJECTS)}  # "": not kept at that time


def of_records(records: Sequence[Record], classes: Sequence[str]) -> str:
    """Digest of a split: classes, names, image contents and annotations.

    Records come sorted by name, so the order of files on disk and in a JSON does not matter. Folders are left
    out of the names: a data set is the same one whether it is opened by its folder or by its parent.
    """
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for record in records:
        name = record.name.rpartition("/")[2]
        digest.update(f"\n{name}\0{of_image(record)} {record.width}x{record.height}".encode())
        digest.update(_rows(record, record.labels).tobytes())
    return digest.hexdigest()[:DIGITS]


def of_splits(digests: dict[str, str]) -> str:
    """Digest of a data set from {split: digest}."""
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:DIGITS]


def _rows(record: Record, labels: np.ndarray) -> np.ndarray:
    """One row of integers an object, sorted; 1/100 px is finer than annotations are and coarser than rounding."""
    columns = [record.boxes * 100, labels, record.iscrowd, record.area]
    rows = np.column_stack([np.round(column) for column in columns]).astype("<i8")
    return rows[np.lexsort(rows.T)]
