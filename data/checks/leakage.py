"""Images that are in a data set twice, by content or by look: within a split, and between splits, where scores lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.checks.lookalikes import looks_of, pairs_alike
from data.checks.scan_cache import ImageScan
from data.readers.found import FoundImage
from data.records import Defect
from data.split_file import usual_order

Listed = tuple[str, FoundImage]  # split, image
NOTHING = np.iinfo(np.int64).max


def duplicates(splits: Mapping[str, Sequence[FoundImage]], scans: Mapping[Path, ImageScan]) -> list[Defect]:
    """A defect for each image that is there again: it names the other, which comes first, in another split if any."""
    originals: dict[str, list[Listed]] = {}  # by content, the first of each split
    defects = []
    for split in sorted(splits, key=usual_order):
        for image in sorted(splits[split], key=lambda image: image.name):
            if image.path is None or scans[image.path].error is not None:
                continue
            others = originals.setdefault(scans[image.path].sha256, [])
            if others:
                other = next((each for each in others if each[0] != split), others[0])
                defects.append(_identical(split, image, other))
            if split not in (each[0] for each in others):
                others.append((split, image))
    return defects + _alike([others[0] for others in originals.values()], scans)


def _identical(split: str, image: FoundImage, other: Listed) -> Defect:
    other_split, original = other
    is_leak = other_split != split
    what = "the same file is" if image.path == original.path else f"its content is that of {original.name}"
    where = f" in {other_split!r}" * is_leak
    differs = "; its boxes or classes differ" * (_annotations(image) != _annotations(original))
    return Defect(
        kind="image-in-two-splits" if is_leak else "duplicate-image",
        severity="error" if is_leak else "warning",
        split=split,
        file=image.name,
        object=None,
        detail=what + where + differs,
        action="kept in both" if is_leak else "image kept",
    )


def _annotations(image: FoundImage) -> list[tuple[str, ...]]:
    """The classes and boxes of an image in an order of their own, to 6 digits: NaN equals NaN as text."""
    return sorted((each.class_name, *(f"{side:.6g}" for side in each.box or ())) for each in image.objects)


def _alike(listed: Sequence[Listed], scans: Mapping[Path, ImageScan]) -> list[Defect]:
    """Of each image that looks like an earlier one a defect that names the likest, in another split if there is one."""
    listed = [each for each in listed if scans[each[1].path].look is not None]
    split_numbers = {split: number for number, split in enumerate(dict.fromkeys(split for split, _ in listed))}
    split_of = np.array([split_numbers[split] for split, _ in listed], np.int64)
    likest = np.full(len(listed), NOTHING)  # in one number: whether in the same split, bits that differ, which
    for i, j, bits in pairs_alike(looks_of([image for _, image in listed], scans)):
        is_within = (split_of[i] == split_of[j]).astype(np.int64)
        np.minimum.at(likest, j, (is_within << 48) | (bits.astype(np.int64) << 40) | i)
    return [_near_duplicate(*listed[j], listed[likest[j] & ((1 << 40) - 1)]) for j in np.flatnonzero(likest != NOTHING)]


def _near_duplicate(split: str, image: FoundImage, other: Listed) -> Defect:
    other_split, original = other
    is_leak = other_split != split
    return Defect(
        kind="near-duplicate-in-two-splits" if is_leak else "near-duplicate-image",
        severity="warning",
        split=split,
        file=image.name,
        object=None,
        detail=f"it looks like {original.name}" + (f" in {other_split!r}" if is_leak else ""),
        action="kept in both" if is_leak else "image kept",
    )
