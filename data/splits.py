"""Where a data set has no val split: a stable one. And images that two splits share."""

import hashlib
import operator
import re
from dataclasses import replace
from itertools import compress
from pathlib import Path

from data.found import FoundImage
from data.records import DataError, Defect, Record

VAL_SHARE = 0.2
OWN_RULE = "the data set's own splits"
MADE_RULE = (
    "val was split off by us: the images whose sha256 of the file name is in its lowest 20 % "
    "(Roboflow's versions of one photo stay together)"
)
ROBOFLOW_VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]{16,}(?=\.)")


def complete_splits(
    path: Path, splits: dict[str, list[FoundImage]], defects: list[Defect]
) -> tuple[dict[str, list[FoundImage]], list[Defect], str]:
    """(splits with a val among them, defects under the split their image ended in, where the splits are from)."""
    if not splits.get("train"):
        raise DataError(f"{path} has no images to train on; its splits: {', '.join(splits) or 'none'}.")
    if "val" in splits:
        return splits, defects, OWN_RULE
    shares = [_share(image.name) for image in splits["train"]]
    lowest, highest = min(shares), max(shares)
    if lowest == highest:
        raise DataError(f"{path} has no val split, and one cannot be made of one photo: at least two are needed.")
    # Where the hash leaves one side empty, it gets the photo that is nearest.
    is_val = [share == lowest or (share < VAL_SHARE and share != highest) for share in shares]
    made = {
        "train": list(compress(splits["train"], map(operator.not_, is_val))),
        "val": list(compress(splits["train"], is_val)),
    }
    others = {split: images for split, images in splits.items() if split != "train"}
    in_val = {image.name for image in made["val"]}
    moved = [replace(each, split="val") if each.split == "train" and each.file in in_val else each for each in defects]
    return made | others, moved, MADE_RULE


def _share(name: str) -> float:
    """A number in 0..1 that depends on the file's name alone, so it stays when files are added or moved."""
    photo = ROBOFLOW_VERSION.sub("", name.rpartition("/")[2])
    return int(hashlib.sha256(photo.encode()).hexdigest()[:8], 16) / 2**32


def in_two_splits(splits: dict[str, list[Record]]) -> list[Defect]:
    """A defect for each image file that is in two splits: a score on the second of them says nothing."""
    first_split, defects = {}, []
    for split, records in splits.items():
        for record in records:
            other = first_split.setdefault(record.path, split)
            if other != split:
                defects.append(_leak(split, record, other))
    return defects


def _leak(split: str, record: Record, other: str) -> Defect:
    return Defect(
        kind="image-in-two-splits",
        severity="error",
        split=split,
        file=record.name,
        object=None,
        detail=f"the same file is in {other!r}",
        action="kept in both",
    )
