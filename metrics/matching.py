"""Which detection found which box: matched once, as COCO does it, for all that is counted from matches afterwards.

The rule is pycocotools' (`COCOeval.evaluateImg`, its order among equal overlaps too). It is written anew because
pycocotools takes a minute for them on 5,000 images, and faster-coco-eval (8 s) does not give its matches out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # in pixels
MOST_DETECTIONS = 100  # of a class in an image: those of the highest scores
PAIRS_AT_ONCE = 100_000  # of boxes and detections: some 20 MB


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Detections and boxes of one evaluation, and which found which at each IoU threshold and size.

    Detections stand class by class, in each by falling score; equal scores by image, as COCO has them.
    """

    image_ids: tuple[int, ...]  # ascending
    classes: tuple[str, ...]  # by ascending category id
    box_image: np.ndarray  # (boxes,) index into image_ids
    box_class: np.ndarray  # (boxes,) index into classes
    box_ignored: np.ndarray  # (areas, boxes) bool: a crowd, or of another size
    image: np.ndarray  # (detections,) index into image_ids
    label: np.ndarray  # (detections,) index into classes
    score: np.ndarray  # (detections,)
    rank: np.ndarray  # (detections,) 0 for its image's and class's best
    found: np.ndarray  # (areas, IoU thresholds, detections) bool: true positives
    ignored: np.ndarray  # (areas, IoU thresholds, detections) bool: neither true nor false
    # What is neither is a false positive.


@dataclass(frozen=True)
class _Objects:
    group: np.ndarray  # (N,) its image and class as one number
    boxes: np.ndarray  # (N, 4) xywh

    def taken(self, order: np.ndarray) -> "_Objects":
        return _Objects(self.group[order], self.boxes[order])


def match(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Matches:
    """Match COCO results with a COCO dictionary's boxes at IOU_THRESHOLDS, within each of AREAS.

    Detections of a category, and boxes of a category or image, that the ground truth does not name are left out, as
    pycocotools leaves them out.
    """
    require_known_images(ground_truth, results)
    images = {image["id"] for image in ground_truth["images"]}
    image_ids = sorted(images)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    category_ids = sorted(names)
    annotations = [
        each for each in ground_truth["annotations"] if each["category_id"] in names and each["image_id"] in images
    ]
    results = [each for each in results if each["category_id"] in names]
    crowd, area = (np.array([each[key] for each in annotations]) for key in ("iscrowd", "area"))
    score = np.array([each["score"] for each in results], dtype=np.float64)

    boxes = _objects(annotations, image_ids, category_ids)
    order = np.argsort(boxes.group, kind="stable")
    boxes, crowd, area = boxes.taken(order), crowd[order].astype(bool), area[order]
    box_ignored = crowd | _outside(area)

    detections = _objects(results, image_ids, category_ids)
    order = np.lexsort((-score, detections.group))
    group = detections.group[order]
    rank = np.arange(len(order)) - np.searchsorted(group, group)
    order, rank = order[rank < MOST_DETECTIONS], rank[rank < MOST_DETECTIONS]
    detections, score = detections.taken(order), score[order]

    found, ignored = _matched(boxes, crowd, box_ignored, detections)
    box_image, box_class = np.divmod(boxes.group, max(1, len(category_ids)))
    image, label = np.divmod(detections.group, max(1, len(category_ids)))
    order = np.lexsort((-score, label))
    for each in (*found, *ignored):  # of a size: all at once would take twice the memory
        each[:] = each[:, order]
    return Matches(
        image_ids=tuple(image_ids),
        classes=tuple(names[each] for each in category_ids),
        box_image=box_image,
        box_class=box_class,
        box_ignored=box_ignored,
        image=image[order],
        label=label[order],
        score=score[order],
        rank=rank[order],
        found=found,
        ignored=ignored,
    )


def require_known_images(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> None:
    """ValueError where a result is of an image that the ground truth does not have."""
    unknown = {each["image_id"] for each in results} - {image["id"] for image in ground_truth["images"]}
    if unknown:
        raise ValueError(
            f"{len(unknown)} images with detections are not in the ground truth, such as image_id {min(unknown)}: "
            "are both of the same split?"
        )


def _objects(objects: Sequence[Mapping[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int]) -> "_Objects":
    image = np.searchsorted(image_ids, np.array([each["image_id"] for each in objects], dtype=np.int64))
    label = np.searchsorted(category_ids, np.array([each["category_id"] for each in objects], dtype=np.int64))
    boxes = np.array([each["bbox"] for each in objects], dtype=np.float64).reshape(-1, 4)
    return _Objects(image * len(category_ids) + label, boxes)


def iou_of(detections: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of xywh boxes (…, 4), in pycocotools' order of operations; with a crowd the part of the detection in it."""
    (x, y, w, h), (box_x, box_y, box_w, box_h) = np.moveaxis(detections, -1, 0), np.moveaxis(boxes, -1, 0)
    width = np.minimum(x + w, box_x + box_w) - np.maximum(x, box_x)
    height = np.minimum(y + h, box_y + box_h) - np.maximum(y, box_y)
    both = np.where((width > 0) & (height > 0), width * height, 0)
    either = np.where(crowd, w * h, w * h + box_w * box_h - both)
    return np.divide(both, either, out=np.zeros_like(both), where=both > 0)


def _outside(area: np.ndarray) -> np.ndarray:
    """(areas, N) bool: not of that size."""
    low, high = np.array(list(AREAS.values())).T[:, :, None]
    return (area < low) | (area > high)


def _matched(
    boxes: _Objects, crowd: np.ndarray, box_ignored: np.ndarray, detections: _Objects
) -> tuple[np.ndarray, np.ndarray]:
    """`found` and `ignored` of Matches, of boxes sorted by group and detections by group and falling score."""
    shape = (len(AREAS), len(IOU_THRESHOLDS))
    found = np.zeros((*shape, len(detections.group)), dtype=bool)
    ignored = np.repeat(_outside(detections.boxes[:, 2] * detections.boxes[:, 3])[:, None], shape[1], axis=1)
    taken = np.zeros((*shape, len(boxes.group)), dtype=bool)
    for pairs in _overlaps(boxes, crowd, detections):
        for detection, box, iou in _rounds(detections.group, *pairs):
            _choose(detection, box, iou, crowd, box_ignored, taken, found, ignored)
    return found, ignored


def _choose(
    detection: np.ndarray,
    box: np.ndarray,
    iou: np.ndarray,
    crowd: np.ndarray,
    box_ignored: np.ndarray,
    taken: np.ndarray,
    found: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Give each detection its box: the largest overlap among those that count, else among those that are ignored.

    Pairs of a detection stand together, by rising IoU; of equal ones the last is taken. A crowd can be taken again.
    """
    free = (iou >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]) & (~taken[:, :, box] | crowd[box])
    place = np.arange(1, len(box) + 1, dtype=np.int32)
    worth = free * (place + np.where(box_ignored[:, box], 0, np.int32(len(box))))[:, None]
    starts = np.flatnonzero(np.diff(detection, prepend=-1))
    best = np.maximum.reduceat(worth, starts, axis=2)  # (areas, thresholds, detections)
    area, threshold, which = np.nonzero(best)
    chosen = (best[area, threshold, which] - 1) % len(box)
    counts = best[area, threshold, which] > len(box)
    taken[area, threshold, box[chosen]] = True
    found[area, threshold, detection[chosen]] = counts
    ignored[area, threshold, detection[chosen]] = ~counts


def _overlaps(
    boxes: _Objects, crowd: np.ndarray, detections: _Objects
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of a detection and a box of its group that can match, and their IoU; many groups at once."""
    first, end = (np.searchsorted(boxes.group, detections.group, side=side) for side in ("left", "right"))
    pairs = np.concatenate([[0], np.cumsum(end - first)])
    groups = np.flatnonzero(np.diff(detections.group, prepend=-1))  # where each begins
    bounds = groups[np.flatnonzero(np.diff(pairs[groups] // PAIRS_AT_ONCE, prepend=-1))]
    for start, stop in pairwise([*bounds, len(detections.group)]):
        count = end[start:stop] - first[start:stop]
        detection = np.repeat(np.arange(start, stop), count)
        box = np.arange(len(detection)) + np.repeat(first[start:stop] - (pairs[start:stop] - pairs[start]), count)
        iou = iou_of(detections.boxes[detection], boxes.boxes[box], crowd[box])
        near = iou >= IOU_THRESHOLDS[0]
        yield detection[near], box[near], iou[near]


def _rounds(
    group: np.ndarray, detection: np.ndarray, box: np.ndarray, iou: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs of each group's best detection, then those of its second …: detections of a group choose in turn."""
    active, of_pair = np.unique(detection, return_inverse=True)
    turn = (np.arange(len(active)) - np.searchsorted(group[active], group[active]))[of_pair]
    order = np.lexsort((box, iou, detection, turn))
    for these in np.split(order, np.flatnonzero(np.diff(turn[order])) + 1):
        if len(these):
            yield detection[these], box[these], iou[these]
