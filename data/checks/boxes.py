"""What is wrong with boxes, and what is suspicious, looked for in all boxes of a split at once.

A wrong box cannot be trained on as it is: it is no box, or it leaves its image. `--on-defect` decides on it.
A suspicious one can: it is named and kept, because a person must say whether it is a mistake.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.checks.pairs import first_of_same, near_pairs
from data.records import REFUSED

SMALLEST_SIDE = 0.01  # px; below that a box loses its size when coordinates become float32
CLIP_TOLERANCE = 0.5  # px over the edge that are rounding to whole pixels, not a defect
TINY_SIDE = (
    2  # px; what is narrower in the file is no more than a trace in the finest features (a cell is 4 px or more)
)
WHOLE_IMAGE = 0.99  # share of the image's area
NEAR_IOU = 0.8
ENOUGH_BOXES = 30  # of a class, to say what its boxes are like
KEPT = "box kept"


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The N objects of a split's images, in order of the images."""

    image: np.ndarray  # int64 (N,) index of its image
    corners: np.ndarray  # float64 (N, 4) xyxy, absolute pixels; NaN where the annotation has no four numbers
    labels: np.ndarray  # int64 (N,) 1..C; 0: a class that the data set does not have
    iscrowd: np.ndarray  # uint8 (N,)
    area: np.ndarray  # float64 (N,) as annotated, in square pixels; NaN where it is not
    size: np.ndarray  # float64 (N, 2) width, height of its image

    def __getitem__(self, chosen: np.ndarray) -> "Boxes":
        return Boxes(**{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A defect of single boxes."""

    kind: str
    boxes: np.ndarray  # int64 (K,) their numbers
    detail: Callable[[int], str]  # of the box of a number
    action: str
    severity: str = "warning"


def settle(boxes: Boxes, on_defect: str) -> tuple[Boxes, np.ndarray, list[Finding]]:
    """(the boxes with their corners in the image, which to keep (N,), what was wrong)."""
    corners, limit = boxes.corners, np.tile(boxes.size, 2)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and no comparison holds of it
        clipped = np.clip(corners, 0, limit)
        over = np.abs(corners - clipped).max(axis=1, initial=0)
        is_finite = np.isfinite(corners).all(axis=1)
        has_size = (sides_of(corners) >= SMALLEST_SIDE).all(axis=1)
        is_inside = (sides_of(clipped) >= SMALLEST_SIDE).all(axis=1)
    of_nothing = np.isnan(corners).all(axis=1)
    sound = is_finite & has_size & is_inside
    wrong = {
        "box-malformed": of_nothing,
        "box-not-finite": ~is_finite & ~of_nothing,
        "box-no-size": is_finite & ~has_size,
        "box-outside": is_finite & has_size & ~is_inside,
        "box-over-edge": sound & (over > CLIP_TOLERANCE),
    }
    unknown = boxes.labels == 0
    actions = dict.fromkeys(wrong, "box dropped") | ({"box-over-edge": "box clipped"} if on_defect == "clip" else {})
    if on_defect == "fail":
        actions = dict.fromkeys(wrong, REFUSED)
    details = _wrong_details(boxes, over)
    findings = [
        Finding(
            kind=kind,
            boxes=np.flatnonzero(mask & ~unknown),
            detail=details[kind],
            action=actions[kind],
            severity="error" if actions[kind] == REFUSED else "warning",
        )
        for kind, mask in wrong.items()
    ]
    findings.append(
        Finding(
            kind="class-unknown",
            boxes=np.flatnonzero(unknown),
            detail=lambda number: "the data set does not name its class",
            action=REFUSED,
            severity="error",
        )
    )
    kept = sound & ~unknown & ~(wrong["box-over-edge"] & (on_defect == "drop"))
    return replace(boxes, corners=clipped), kept, findings


def _wrong_details(boxes: Boxes, over: np.ndarray) -> dict[str, Callable[[int], str]]:
    def written(number: int) -> str:
        return "the box from ({:g}, {:g}) to ({:g}, {:g})".format(*boxes.corners[number])

    def image(number: int) -> str:
        return "the {:g}×{:g} image".format(*boxes.size[number])

    def sides(number: int) -> str:
        return "{:g}×{:g} pixels".format(*sides_of(boxes.corners[number]))

    return {
        "box-malformed": lambda number: "the box is not four numbers",
        "box-not-finite": lambda number: f"{written(number)} is not finite",
        "box-no-size": lambda number: f"{written(number)} is {sides(number)}",
        "box-outside": lambda number: f"{written(number)} lies outside {image(number)}",
        "box-over-edge": lambda number: f"{written(number)} leaves {image(number)} by {over[number]:g} pixels",
    }


def suspicions(boxes: Boxes, names: Callable[[int], str], classes: Sequence[str]) -> list[Finding]:
    """What a person should look at among sound boxes; `names` gives an object's name in messages by its number."""
    single = np.flatnonzero(boxes.iscrowd == 0)  # a crowd's box may be of any size and lie on others
    alone = boxes if len(single) == len(boxes.image) else boxes[single]
    found = [
        *_odd_sizes(alone),
        *_on_one_another(alone, lambda number: names(single[number]), classes),
        *_of_another_class(alone, classes),
    ]
    # The details speak of numbers among the single ones.
    return [
        replace(
            finding,
            boxes=single[finding.boxes],
            detail=lambda number, finding=finding: finding.detail(np.searchsorted(single, number)),
        )
        for finding in found
    ]


def _odd_sizes(boxes: Boxes) -> Iterator[Finding]:
    sides = sides_of(boxes.corners)

    def measures(number: int) -> str:
        return "the box is {:.3g}×{:.3g} pixels".format(*sides[number])

    yield Finding(
        kind="box-tiny",
        boxes=np.flatnonzero(sides.min(axis=1, initial=np.inf) < TINY_SIDE),
        detail=measures,
        action=KEPT,
    )
    share = np.prod(sides, axis=1) / np.prod(boxes.size, axis=1)
    yield Finding(
        kind="box-whole-image",
        boxes=np.flatnonzero(share >= WHOLE_IMAGE),
        detail=lambda number: measures(number) + " of an image of {:g}×{:g}".format(*boxes.size[number]),
        action=KEPT,
    )


def _on_one_another(boxes: Boxes, names: Callable[[int], str], classes: Sequence[str]) -> Iterator[Finding]:
    """Objects that are in the annotations twice, the second of each pair."""
    numbers = np.arange(len(boxes.image))
    of_class = boxes.image * (len(classes) + 1) + boxes.labels
    first = first_of_same(of_class, boxes.corners)
    yield Finding(
        kind="box-duplicate",
        boxes=np.flatnonzero(first != numbers),
        detail=lambda number: f"the same box and class as {names(first[number])}",
        action=KEPT,
    )
    distinct = np.flatnonzero(first == numbers)
    one, other, overlap = near_pairs(of_class[distinct], boxes.corners[distinct], NEAR_IOU)
    nearest = {}  # a box is named once, with the one that is nearest
    for index in np.argsort(overlap):
        nearest[distinct[other[index]]] = distinct[one[index]], overlap[index]
    yield Finding(
        kind="box-near-duplicate",
        boxes=np.array(sorted(nearest), dtype=np.int64),
        detail=lambda number: f"IoU {nearest[number][1]:.2f} with {names(nearest[number][0])}",
        action=KEPT,
    )
    whichever = first_of_same(boxes.image, boxes.corners)
    yield Finding(
        kind="labels-conflict",
        boxes=np.flatnonzero((boxes.labels != boxes.labels[whichever]) & (first == numbers)),
        detail=lambda number: f"the same box as {names(whichever[number])}, of another class",
        action=KEPT,
    )


def _of_another_class(boxes: Boxes, classes: Sequence[str]) -> Iterator[Finding]:
    """Boxes of a size that their own class never has and another one has: is the label right?

    Far out of their class by Tukey's fences of log sizes (3 interquartile ranges beyond the quartiles), within 1.5 of
    another. What the image's edge cuts off is smaller than its class, and says nothing.
    """
    sides = np.sqrt(np.prod(sides_of(boxes.corners), axis=1))
    whole = ((boxes.corners[:, :2] >= 2) & (boxes.corners[:, 2:] <= boxes.size - 2)).all(axis=1)
    usual, far, near = {}, {}, {}
    for label in np.unique(boxes.labels):
        of_label = np.log(sides[whole & (boxes.labels == label)])
        if len(of_label) >= ENOUGH_BOXES:
            low, high = np.quantile(of_label, [0.25, 0.75])
            usual[label] = "{} {:.0f}–{:.0f}".format(classes[label - 1], *np.exp([low, high]))
            far[label], near[label] = (np.exp([low - k * (high - low), high + k * (high - low)]) for k in (3.0, 1.5))
    like = {}
    for label, (low, high) in far.items():
        for number in np.flatnonzero((boxes.labels == label) & ((whole & (sides < low)) | (sides > high))):
            others = [other for other, (least, most) in near.items() if least <= sides[number] <= most]
            if others:
                like[number] = f"that of {usual[label]}, of {usual[others[0]]}"
    yield Finding(
        kind="label-suspect",
        boxes=np.array(sorted(like), dtype=np.int64),
        detail=lambda number: f"its side √(w·h) is {sides[number]:.0f} pixels, {like[number]} as a rule",
        action=KEPT,
    )


def sides_of(corners: np.ndarray) -> np.ndarray:
    """(…, 2) width and height of boxes (…, 4)."""
    return corners[..., 2:] - corners[..., :2]
