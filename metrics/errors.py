"""Which errors detections have, and the AP50 that each kind costs: TIDE, from detections and ground truth alone.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
arXiv:2008.08115. A kind costs the AP50 that is gained where all errors of it, and no others, are mended. Where the
paper leaves a choice (which kind comes first, by which of several errors an object is found) we do as its authors'
tidecv 1.0.1 does; AP50, crowds and the number of detections that count are COCO's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from metrics.curves import precision_at_recalls
from metrics.matching import MOST_DETECTIONS, iou_of

FOREGROUND = 0.5  # IoU from which a detection finds an object: the paper's t_f
BACKGROUND = 0.1  # IoU below which it has nothing to do with it: t_b
NONE = -1  # in an array of indices


class Kind(IntEnum):
    """What a detection is, by the first line that holds; MISSED is said of objects."""

    HIT = 0  # finds an object
    IGNORED = 1  # in a crowd of its class, or not counted by COCO
    LOCALISATION = 2  # BACKGROUND ≤ IoU < FOREGROUND with an object of its class
    CLASSIFICATION = 3  # IoU ≥ FOREGROUND with an object of another class
    DUPLICATE = 4  # IoU ≥ FOREGROUND with an object of its class, which another detection found
    BACKGROUND = 5  # IoU < BACKGROUND with every object
    BOTH = 6  # wrongly localised and classified: BACKGROUND ≤ IoU < FOREGROUND with an object of another class
    MISSED = 7  # not found, nor would it be if localisations and classifications were mended

    @property
    def title(self) -> str:
        """As users read it."""
        return self.name.lower()


# As the paper lists them.
ERRORS = (Kind.CLASSIFICATION, Kind.LOCALISATION, Kind.BOTH, Kind.DUPLICATE, Kind.BACKGROUND, Kind.MISSED)
WRONG = ERRORS[:-1]  # of detections: false positives


@dataclass(frozen=True)
class Objects:
    """Detections or annotations, sorted by image, detections by falling score in it."""

    place: np.ndarray  # (N,) index into what was given
    image: np.ndarray  # (N,) index into the image ids
    label: np.ndarray  # (N,) index into the classes
    boxes: np.ndarray  # (N, 4) xywh
    value: np.ndarray  # (N,) a detection's score; of an annotation 1 for a crowd, 0 for one object

    def taken(self, which: np.ndarray | slice) -> "Objects":
        return Objects(*(getattr(self, name)[which] for name in ("place", "image", "label", "boxes", "value")))


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Every detection and object of an evaluation, judged."""

    image_ids: tuple[int, ...]
    classes: int
    found: Objects  # the detections that count
    kind: np.ndarray  # (detections that count,) a Kind each
    object: np.ndarray  # (detections that count,) index into `there`: what it found, or would if it were mended; NONE
    there: Objects  # the annotations
    # In the order that they were given in:
    kinds: np.ndarray  # (results,) a Kind each
    missed: np.ndarray  # (annotations,) bool: MISSED
    found_at: np.ndarray  # (annotations,) the score of the detection that found it; NaN: none did, or a crowd

    def ap50(self, mended: Collection[Kind] = ()) -> float | None:
        """COCO's AP50, 0..1, as it would be without the errors of these kinds; None where no class has an object.

        A class of which no object is left to be found, the missed ones mended, has an AP of 1.
        """
        chosen = np.isin(self.kind, list(mended))
        finds = chosen & (self.object != NONE)
        asked = self._is_object & ~(self.missed[self.there.place] & (Kind.MISSED in mended))
        label = np.where(finds, self.there.label[self.object], self.found.label) if finds.any() else self.found.label
        return self._mean_ap(~chosen | finds, (self.kind == Kind.HIT) | finds, label, asked)

    def cost(self, kind: Kind) -> float | None:
        """The AP50 gained without the errors of this kind."""
        return self._gain(self.ap50([kind]))

    def cost_of_false_positives(self) -> float | None:
        """The AP50 gained where every wrong detection is taken away."""
        hit = self.kind == Kind.HIT
        return self._gain(self._mean_ap(hit, hit, self.found.label, self._is_object))

    def cost_of_false_negatives(self) -> float | None:
        """The AP50 gained where no object is asked for that was not found."""
        hit = self.kind == Kind.HIT
        asked = np.isin(np.arange(len(self.there.place)), self.object[hit])
        return self._gain(self._mean_ap(np.ones_like(hit), hit, self.found.label, asked))

    def count(self, kind: Kind) -> int:
        """How many detections, or objects, are of this kind."""
        return int(self.missed.sum() if kind == Kind.MISSED else (self.kind == kind).sum())

    def unfound(self, score: float = -np.inf) -> np.ndarray:
        """(annotations,) bool, in the order given: objects that no detection of this score or more found.

        A detection is given its object before those of lower scores, so these change neither that nor any kind.
        """
        is_object = np.zeros(len(self.found_at), dtype=bool)
        is_object[self.there.place] = self._is_object
        return is_object & ~(self.found_at >= score)  # NaN is not

    def worst(self, count: int, score: float) -> dict[int, tuple[int, int]]:
        """The worst images first: by id, how many detections of this score or more are wrong, and objects not found.

        The sum of the two decides, of equal ones the sum of the wrong detections' scores. Images without an error are
        never among them.
        """
        wrong = np.isin(self.kind, WRONG) & (self.found.value >= score)
        images = len(self.image_ids)
        counts = np.bincount(self.found.image[wrong], minlength=images)
        unfound = np.bincount(self.there.image[self.unfound(score)[self.there.place]], minlength=images)
        scores = np.bincount(self.found.image[wrong], self.found.value[wrong], images)
        order = np.lexsort((-scores, -(counts + unfound)))[:count]
        return {self.image_ids[at]: (int(counts[at]), int(unfound[at])) for at in order if counts[at] + unfound[at]}

    @property
    def _is_object(self) -> np.ndarray:
        return self.there.value == 0

    @cached_property
    def _unmended(self) -> float | None:
        return self.ap50()

    def _gain(self, ap50: float | None) -> float | None:
        return None if ap50 is None or self._unmended is None else ap50 - self._unmended

    def _mean_ap(self, kept: np.ndarray, true: np.ndarray, label: np.ndarray, asked: np.ndarray) -> float | None:
        """The mean AP of the classes that have an object, of the detections `kept`, to find the objects `asked`."""
        kept = np.flatnonzero(kept & (self.kind != Kind.IGNORED))
        order = kept[np.lexsort((-self.found.value[kept], label[kept]))]  # equal scores by image, as COCO has them
        bounds = np.searchsorted(label[order], np.arange(self.classes + 1))
        objects = np.bincount(self.there.label[asked], minlength=self.classes)
        values = [
            _average_precision(true[order[bounds[index] : bounds[index + 1]]], objects[index])
            for index in np.unique(self.there.label[self._is_object])
        ]
        return float(np.mean(values)) if values else None


def analyse(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Errors:
    """Judge COCO results by a COCO dictionary; ValueError where a result is of an image that this does not have."""
    image_ids = sorted({image["id"] for image in ground_truth["images"]})
    category_ids = sorted(category["id"] for category in ground_truth["categories"])
    there = _objects(ground_truth["annotations"], "iscrowd", image_ids, category_ids)
    there = there.taken(np.argsort(there.image, kind="stable"))
    found = _counted(_objects(results, "score", image_ids, category_ids))

    kind = np.full(len(found.image), Kind.BACKGROUND, dtype=np.int8)  # that of all where nothing is
    target = np.full(len(found.image), NONE)
    for image in np.intersect1d(found.image, there.image):
        these, those = (slice(*np.searchsorted(objects.image, (image, image + 1))) for objects in (found, there))
        kind[these], near = _judge(found.taken(these), there.taken(those))
        target[these] = np.where(near == NONE, NONE, near + those.start)
    hit = kind == Kind.HIT
    was_found = np.isin(np.arange(len(there.image)), target[hit])
    target = np.where(hit, target, _finders(target, was_found))

    kinds = np.full(len(results), Kind.IGNORED, dtype=np.int8)
    kinds[found.place] = kind
    annotations = len(ground_truth["annotations"])
    found_at, missed = np.full(annotations, np.nan), np.zeros(annotations, dtype=bool)
    found_at[there.place[target[hit]]] = found.value[hit]
    missed[there.place] = (there.value == 0) & ~np.isin(np.arange(len(there.image)), target)
    return Errors(
        image_ids=tuple(image_ids),
        classes=len(category_ids),
        found=found,
        kind=kind,
        object=target,
        there=there,
        kinds=kinds,
        missed=missed,
        found_at=found_at,
    )


def _objects(
    given: Iterable[Mapping[str, Any]], value: str, image_ids: Sequence[int], category_ids: Sequence[int]
) -> Objects:
    """In the order that they were given in, without those of a category that the ground truth does not name."""
    images, labels = ({each: index for index, each in enumerate(ids)} for ids in (image_ids, category_ids))
    named = [(place, each) for place, each in enumerate(given) if each["category_id"] in labels]
    unknown = next((each["image_id"] for _, each in named if each["image_id"] not in images), None)
    if unknown is not None:
        raise ValueError(f"The ground truth has no image of image_id {unknown}, which a detection or box names")
    return Objects(
        place=np.array([place for place, _ in named], dtype=int),
        image=np.array([images[each["image_id"]] for _, each in named], dtype=int),
        label=np.array([labels[each["category_id"]] for _, each in named], dtype=int),
        boxes=np.array([each["bbox"] for _, each in named], dtype=float).reshape(-1, 4),
        value=np.array([each.get(value, 0) for _, each in named], dtype=float),
    )


def _counted(found: Objects) -> Objects:
    """The best MOST_DETECTIONS of each class and image, sorted by image and falling score."""
    found = found.taken(np.lexsort((-found.value, found.label, found.image)))
    starts = np.flatnonzero((np.diff(found.image, prepend=NONE) != 0) | (np.diff(found.label, prepend=NONE) != 0))
    rank = np.arange(len(found.image)) - np.repeat(starts, np.diff(starts, append=len(found.image)))
    found = found.taken(rank < MOST_DETECTIONS)
    return found.taken(np.lexsort((found.place, -found.value, found.image)))


def _judge(found: Objects, there: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of an image's detections, and the objects of it that they find, or might find if mended."""
    crowd = there.value > 0
    iou = iou_of(found.boxes[:, None], there.boxes, crowd)
    same = found.label[:, None] == there.label
    own, other = iou * (same & ~crowd), iou * (~same & ~crowd)
    target = _matched(own)
    nearest, nearest_other = own.max(axis=1), other.max(axis=1)
    kind = np.select(
        [
            target != NONE,
            (iou * (same & crowd) >= FOREGROUND).any(axis=1),
            (nearest >= BACKGROUND) & (nearest < FOREGROUND),
            nearest_other >= FOREGROUND,
            nearest >= FOREGROUND,
            nearest_other < BACKGROUND,
        ],
        list(Kind)[:6],
        Kind.BOTH,
    )
    target = np.select(
        [kind == Kind.HIT, kind == Kind.LOCALISATION, kind == Kind.CLASSIFICATION],
        [target, own.argmax(axis=1), other.argmax(axis=1)],
        NONE,
    )
    return kind, target


def _matched(own: np.ndarray) -> np.ndarray:
    """(D,) the object that each detection finds, the best first: the nearest that is free, of equal ones the last."""
    target = np.full(len(own), NONE)
    near = np.where(own >= FOREGROUND, own, 0)
    for detection in np.flatnonzero(near.any(axis=1)):
        nearest = near.shape[1] - 1 - near[detection, ::-1].argmax()
        if near[detection, nearest] > 0:
            target[detection] = nearest
            near[:, nearest] = 0
    return target


def _finders(target: np.ndarray, was_found: np.ndarray) -> np.ndarray:
    """`target` of the detections that would find an object, were they mended: the best of each that was not found."""
    wrong = np.flatnonzero(target != NONE)
    wrong = wrong[~was_found[target[wrong]]]
    objects, best = np.unique(target[wrong], return_index=True)
    finders = np.full(len(target), NONE)
    finders[wrong[best]] = objects
    return finders


def _average_precision(true: np.ndarray, objects: int) -> float:
    """COCO's, of a class's detections by falling score; 1 where there is nothing to find."""
    if not objects:
        return 1.0
    return float(precision_at_recalls(np.cumsum(true), objects).mean())
