"""Defects of whole splits: classes that one lacks, or has far more of than another, or whose names are alike."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.class_names import alike
from data.records import REFUSED, Defect

RARE = 20  # times fewer boxes than the commonest class
UNLIKE = 3  # times the share of boxes that the class has in train …
ENOUGH_BOXES = 30  # … where there are, or should be, this many


def class_defects(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[Defect]:
    """What `counts` {split: (C,) boxes of each class} say; train is among the splits."""
    empty = [split for split, boxes in counts.items() if not boxes.any()]
    counts = {split: boxes for split, boxes in counts.items() if split not in empty}
    found = [Defect(split=split, file="", object=None, **_empty(split)) for split in empty]
    if "train" in empty:
        return found
    return found + [
        Defect(split=split, file="", object=f"class {classes[index]}", **about)
        for split, index, about in (*_absent(counts), *_rare(counts["train"], classes), *_unlike(counts))
    ]


def alike_classes(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[Defect]:
    """A defect for each class whose name may be another's, typed in another way: it names the one with fewer boxes."""
    total, found = sum(counts.values()), []
    for pair in alike(classes):
        rarer, commoner = sorted(pair[:2], key=lambda index: total[index])
        other = f"{classes[commoner]!r}, which has {total[commoner]}, by {pair[2]} only"
        detail = f"{total[rarer]} boxes; its name differs from {other}"
        about = _warning("classes-alike", detail, "kept as two classes")
        found.append(Defect(split="", file="", object=f"class {classes[rarer]}", **about))
    return found


def _empty(split: str) -> dict[str, str]:
    about = _warning("split-without-boxes", "none of its images has a box", "nothing to score")
    return about | ({"severity": "error", "action": REFUSED} if split in ("train", "val") else {})


Found = Iterator[tuple[str, int, dict[str, str]]]  # split, index of the class, the rest of the defect


def _absent(counts: Mapping[str, np.ndarray]) -> Found:
    train, total = counts["train"], sum(counts.values())
    for index in np.flatnonzero(total == 0):
        yield "train", index, _warning("class-without-boxes", "no split has a box of it", "trained without an example")
    for split, boxes in counts.items():
        for index in np.flatnonzero((boxes > 0) & (train == 0)):
            detail = f"{boxes[index]} of its boxes are here, and none in train"
            action = "scored, and never found"
            yield split, index, _warning("class-not-in-train", detail, action) | {"severity": "error"}
        for index in np.flatnonzero((boxes == 0) & (train > 0)):
            detail = f"none of its boxes are here, and {train[index]} in train"
            yield split, index, _warning("class-not-in-split", detail, "not scored")


def _rare(train: np.ndarray, classes: Sequence[str]) -> Found:
    commonest = int(np.argmax(train))
    for index in np.flatnonzero((train > 0) & (train * RARE < train[commonest])):
        detail = f"{train[index]} boxes, and {classes[commonest]} has {train[commonest]}"
        yield "train", index, _warning("class-imbalance", detail, "trained as it is")


def _unlike(counts: Mapping[str, np.ndarray]) -> Found:
    train = counts["train"]
    for split, boxes in counts.items():
        expected = train / max(1, train.sum()) * boxes.sum()
        more, fewer = np.maximum(boxes, expected), np.minimum(boxes, expected)
        for index in np.flatnonzero((fewer > 0) & (more > UNLIKE * fewer) & (more >= ENOUGH_BOXES)):
            detail = f"{boxes[index]} boxes; by its share in train there would be {expected[index]:.0f}"
            yield split, index, _warning("class-balance-differs", detail, "scored as it is")


def _warning(kind: str, detail: str, action: str) -> dict[str, str]:
    return {"kind": kind, "severity": "warning", "detail": detail, "action": action}
