"""Which image is in which split: as the data set says, as a file says, or a val that we split off."""

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.checks.lookalikes import looks_of, pairs_alike
from data.checks.scan_cache import ImageScan
from data.readers.found import FoundImage
from data.records import DataError, Defect
from data.split_file import assigned
from data_options import DataOptions

VAL_SHARE = 0.2
OWN_RULE = "the data set's own splits"
MADE_RULE = (
    "val was split off by us: the images whose sha256 of the file name is in its lowest 20 % "
    "(Roboflow's versions of one photo, and images that look alike, stay together)"
)
GROUPS_RULE = (
    "val was split off by us: the groups of --split-by {} whose sha256 is in its lowest 20 % ({}) "
    "(images that look alike stay together)"
)
ROBOFLOW_VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]{16,}(?=\.)")
Splits = dict[str, list[FoundImage]]


def complete_splits(
    path: Path, splits: Splits, defects: list[Defect], scans: Mapping[Path, ImageScan], options: DataOptions
) -> tuple[Splits, list[Defect], str]:
    """(splits with a val among them, defects under the split their image ended in, where the splits are from)."""
    if options.splits and options.split_by:
        raise DataError("--splits FILE says it all: leave out --split-by")
    if options.splits:
        named, rule = assigned(Path(options.splits), path, splits)
        split_of = {image.name: split for split, images in named.items() for image in images}
        left_out = {image.name for images in splits.values() for image in images} - split_of.keys()
        kept = [each for each in defects if each.file not in left_out]
        return named, [replace(each, split=split_of.get(each.file, each.split)) for each in kept], rule
    if not splits.get("train"):
        raise DataError(f"{path} has no images to train on; its splits: {', '.join(splits) or 'none'}.")
    group_of = _group_finder(options.split_by, [image.name for images in splits.values() for image in images])
    if "val" in splits:
        return splits, defects + (_divided_groups(splits, group_of) if options.split_by else []), OWN_RULE
    made = _made(path, splits["train"], scans, group_of, by_images=bool(options.split_by))
    others = {split: images for split, images in splits.items() if split != "train"}
    in_val = {image.name for image in made["val"]}
    moved = [replace(each, split="val") if each.split == "train" and each.file in in_val else each for each in defects]
    return made | others, moved, _groups_rule(options.split_by, made, group_of) if options.split_by else MADE_RULE


def _groups_rule(split_by: str, made: Splits, group_of: Callable[[str], str]) -> str:
    groups = {split: len({group_of(image.name) for image in images}) for split, images in made.items()}
    told = "; ".join(f"{split}: {count} groups, {len(made[split])} images" for split, count in groups.items())
    alone = sum(groups.values()) == sum(map(len, made.values()))
    return GROUPS_RULE.format(split_by, told + alone * ": every image is a group of its own")


def _group_finder(split_by: str | None, names: Sequence[str]) -> Callable[[str], str]:
    """A function from an image's name to what it must not be parted from: its photo, or its group of --split-by."""
    if split_by is None:
        return lambda name: ROBOFLOW_VERSION.sub("", name.rpartition("/")[2])
    try:
        pattern = re.compile(split_by)
    except re.error as error:
        raise DataError(f"--split-by {shlex.quote(split_by)} is no regular expression: {error}") from error
    without = [name for name in names if not pattern.search(ROBOFLOW_VERSION.sub("", name))]
    if without:
        raise DataError(_without_group(pattern, without, names))

    def group_of(name: str) -> str:
        match = pattern.search(ROBOFLOW_VERSION.sub("", name))
        return "\0".join(group or "" for group in match.groups()) if match.groups() else match[0]

    return group_of


def _without_group(pattern: re.Pattern, without: Sequence[str], names: Sequence[str]) -> str:
    """What to do about names in which --split-by finds nothing."""

    def flag(expression: str) -> str:
        return f"--split-by {shlex.quote(expression)}"

    text = (
        f"{flag(pattern.pattern)} finds nothing in {without[0]!r}, as in {len(without)} of the {len(names)} images. "
        "It looks in an image's path in the data set, and every image needs a group."
    )
    floating = pattern.pattern.removeprefix("^")
    if floating != pattern.pattern and all(re.search(floating, name) for name in names):
        return f"{text} Without ^, which is where the path begins, it finds one in all: {flag(floating)}"
    if len(without) < len(names) and not pattern.groups:
        # Not `…|.*`, which finds all of a name that begins otherwise, though the expression is in it.
        alone = f"{pattern.pattern}|^(?!.*(?:{pattern.pattern})).*"
        return f"{text} To let each of the others be a group of its own: {flag(alone)}"
    return f"{text} Mend the expression."


def _divided_groups(splits: Splits, group_of: Callable[[str], str]) -> list[Defect]:
    """A defect for each group of --split-by that the data set's own splits divide."""
    first, told, defects = {}, set(), []
    for split, images in splits.items():
        for image in sorted(images, key=lambda image: image.name):
            group = group_of(image.name)
            other_split, other = first.setdefault(group, (split, image.name))
            if other_split != split and (group, split) not in told:
                told.add((group, split))
                defects.append(
                    Defect(
                        kind="group-in-two-splits",
                        severity="error",
                        split=split,
                        file=image.name,
                        object=None,
                        detail=f"its group {_shown(group)} is in {other_split!r} too: {other}",
                        action="the data set's own splits are kept",
                    )
                )
    return defects


def _shown(group: str) -> str:
    return repr(" ".join(group.split("\0")))


def _made(
    path: Path,
    images: Sequence[FoundImage],
    scans: Mapping[Path, ImageScan],
    group_of: Callable[[str], str],
    *,
    by_images: bool,
) -> Splits:
    """train and val, between which no group and no images that look alike are divided.

    A group goes by the hash of its name alone, so it stays where it is when others come, go or are moved; several that
    look alike go by the first of their names.
    """
    groups = [group_of(image.name) for image in images]
    leaders = _leaders(images, scans, groups)
    shares = {leader: _share(leader) for leader in leaders.values()}
    # No val that is larger than train: what is more than half stays in train.
    sizes = Counter(leaders[group] for group in (groups if by_images else leaders))
    largest, size = sizes.most_common(1)[0]
    if 2 * size > sizes.total():
        shares[largest] = 1.0
    lowest, highest = min(shares.values()), max(shares.values())
    if lowest == highest:
        raise DataError(
            f"{path} has no val split, and one cannot be made of one photo, one group, or images that all look alike: "
            "at least two are needed. Say which image is in which split: --splits FILE"
        )
    made = {"train": [], "val": []}
    for image, group in zip(images, groups, strict=True):
        share = shares[leaders[group]]
        # Where the hash leaves one side empty, it gets the group that is nearest.
        is_val = share == lowest or (share < VAL_SHARE and share != highest)
        made["val" if is_val else "train"].append(image)
    return made


def _leaders(images: Sequence[FoundImage], scans: Mapping[Path, ImageScan], groups: Sequence[str]) -> dict[str, str]:
    """{group: the first by name of the groups that it must stay with, because images of them look alike}."""
    names = sorted(set(groups))
    number_of = {name: number for number, name in enumerate(names)}
    forest = _Forest(len(names))
    by_content, looking, looking_in = {}, [], []
    for image, group in zip(images, groups, strict=True):
        if image.path is None or scans[image.path].error is not None:
            continue
        scan, number = scans[image.path], number_of[group]
        forest.join(by_content.setdefault(scan.sha256, number), number)
        if scan.look is not None:
            looking.append(image)
            looking_in.append(number)
    looking_in = np.array(looking_in, np.int64)
    for first, second, _ in pairs_alike(looks_of(looking, scans)):
        one, other = forest.roots(looking_in[first]), forest.roots(looking_in[second])
        for pair in zip(one[one != other].tolist(), other[one != other].tolist(), strict=True):
            forest.join(*pair)
    return dict(zip(names, (names[root] for root in forest.roots(np.arange(len(names)))), strict=True))


class _Forest:
    """Numbers joined to sets, each with its lowest as the root."""

    def __init__(self, count: int):
        self.parents = np.arange(count)

    def roots(self, of: np.ndarray) -> np.ndarray:
        while (self.parents[of] != of).any():
            of = self.parents[of]
        return of

    def join(self, one: int, other: int) -> None:
        lower, higher = sorted((self._root(one), self._root(other)))
        self.parents[higher] = lower

    def _root(self, of: int) -> int:
        while (parent := self.parents[of]) != of:
            self.parents[of] = self.parents[parent]  # halves the way for the next
            of = parent
        return of


def _share(name: str) -> float:
    """A number in 0..1 that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
