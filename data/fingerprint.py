"""Digests that say whether two data sets are the same, wherever and in whatever order their files lie."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data.records import Record

DIGITS = 16


def of_image(record: "Record") -> str:
    """sha256 (hex) of an image's file, or of what a drawn image is drawn from."""
    return record.sha256 or hashlib.sha256(str(record.source).encode()).hexdigest()


def contents(splits: Mapping[str, Sequence["Record"]]) -> dict[str, dict[str, str]]:
    """{split: {name: the first digits of the image's digest}}: what every run keeps, and --splits takes."""
    return {split: {each.name: of_image(each)[:DIGITS] for each in records} for split, records in splits.items()}


def of_records(records: Sequence["Record"], classes: Sequence[str]) -> str:
    """Digest of a split: classes, names, image contents and annotations.

    Records come sorted by name, so the order of files on disk and in a JSON does not matter. Folders are left
    out of the names: a data set is the same one whether it is opened by its folder or by its parent.
    """
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for record in records:
        name = record.name.rpartition("/")[2]
        digest.update(f"\n{name}\0{of_image(record)} {record.width}x{record.height}".encode())
        digest.update(_rows(record).tobytes())
    return digest.hexdigest()[:DIGITS]


def of_splits(digests: dict[str, str]) -> str:
    """Digest of a data set from {split: digest}."""
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:DIGITS]


def _rows(record: "Record") -> np.ndarray:
    """One row of integers an object, sorted; 1/100 px is finer than annotations are and coarser than rounding."""
    columns = [record.boxes * 100, record.labels, record.iscrowd, record.area]
    rows = np.column_stack([np.round(column) for column in columns]).astype("<i8")
    return rows[np.lexsort(rows.T)]
