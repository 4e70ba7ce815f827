"""What a score threshold does: precision, recall and F1 above it, precision by recall, and what is taken for what."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics.bootstrap import RECALLS
from metrics.matching import IOU_THRESHOLDS, Matches, iou_of

BACKGROUND = "background"


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision, recall and F1 of the detections that score `threshold` or more, (N,) each, thresholds falling."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> dict[str, float] | None:
        """The threshold of the highest F1 and what it gives (of equal ones the highest); None without a detection."""
        if not len(self.f1):
            return None
        at = int(np.argmax(self.f1))
        values = {"score_threshold": self.threshold, "precision": self.precision, "recall": self.recall, "F1": self.f1}
        return {name: float(each[at]) for name, each in values.items()}

    def at(self, threshold: float) -> dict[str, float]:
        """What this threshold gives; precision is 1 where nothing scores as much, as nothing is wrong then."""
        kept = int((self.threshold >= threshold).sum())
        values = {"precision": self.precision, "recall": self.recall, "F1": self.f1}
        return {name: float(each[kept - 1]) if kept else float(name == "precision") for name, each in values.items()}


def threshold_curve(matches: Matches, name: str | None = None, *, iou: float = 0.5) -> ThresholdCurve:
    """Of one class, or of the objects of all classes together; empty where there is no box.

    Detections are matched as COCO does it, so a crowd's are not counted, nor any past the hundredth of an image.
    """
    score, hits, positives = _hits(matches, name, iou)
    if not positives:
        return ThresholdCurve(*(np.empty(0) for _ in range(4)))
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # of equal scores
    hits, seen = hits[last], last + 1
    return ThresholdCurve(score[last], hits / seen, hits / positives, 2 * hits / (seen + positives))


def _hits(matches: Matches, name: str | None, iou: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Falling scores (N,) of the detections that count, the true positives so far (N,), and the number of boxes."""
    threshold = int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))[0])
    counts, boxes = ~matches.ignored[0, threshold], ~matches.box_ignored[0]
    if name is not None:
        index = matches.classes.index(name)
        counts, boxes = counts & (matches.label == index), boxes & (matches.box_class == index)
    order = np.flatnonzero(counts)
    order = order[np.argsort(-matches.score[order], kind="stable")]
    return matches.score[order], np.cumsum(matches.found[0, threshold, order]), int(boxes.sum())


def precision_by_recall(matches: Matches, *, iou: float) -> dict[str, np.ndarray]:
    """(101,) by class: the precision that COCO averages to AP, the highest at each of RECALLS or a larger recall.

    A class without a box is left out.
    """
    curves = {}
    for name in matches.classes:
        _, hits, positives = _hits(matches, name, iou)
        if positives:
            curves[name] = precision_at_recalls(hits, positives)
    return curves


def precision_at_recalls(hits: np.ndarray, positives: int) -> np.ndarray:
    """(101,) from the true positives (N,) among so many detections of the highest scores; its mean is COCO's AP."""
    precision = hits / np.arange(1, len(hits) + 1)
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return highest[np.searchsorted(hits / positives, RECALLS)]


def confusion(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, score_threshold: float, iou: float = 0.5
) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names with BACKGROUND as the last, and counts: rows what is there, columns what was detected.

    Of the detections that score `score_threshold` or more, in the order of their scores, each takes a box of its own
    class first, that of the largest overlap of `iou` or more, so the diagonal counts the true positives; those without
    one then take a box of another class. Boxes that are left were taken for background, and detections that are left
    were seen where nothing is; those in a crowd of their class do not count.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    label = {category_id: index for index, category_id in enumerate(sorted(names))}
    counts = np.zeros((len(names) + 1, len(names) + 1), dtype=int)
    there, seen = defaultdict(list), defaultdict(list)
    for each in ground_truth["annotations"]:
        there[each["image_id"]].append((label[each["category_id"]], each["bbox"], each["iscrowd"]))
    for each in sorted(results, key=lambda each: -each["score"]):
        if each["score"] >= score_threshold and each["category_id"] in label:
            seen[each["image_id"]].append((label[each["category_id"]], each["bbox"], 0))
    for image_id in there.keys() | seen.keys():
        _count_image(counts, _arrays(there[image_id]), _arrays(seen[image_id]), iou)
    return (*(names[each] for each in sorted(names)), BACKGROUND), counts


def _arrays(objects: Sequence[tuple[int, list[float], int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N,), boxes (N, 4) xywh and whether they are crowds (N,)."""
    labels, boxes, crowds = zip(*objects, strict=True) if objects else ((), (), ())
    return np.array(labels, dtype=int), np.array(boxes, dtype=float).reshape(-1, 4), np.array(crowds, dtype=bool)


def _count_image(counts: np.ndarray, there: tuple[np.ndarray, ...], seen: tuple[np.ndarray, ...], iou: float) -> None:
    labels, boxes, crowd = there
    seen_labels, seen_boxes, _ = seen
    near = iou_of(seen_boxes[:, None], boxes[None], crowd)
    near[near < iou] = 0
    same = seen_labels[:, None] == labels
    free = ~crowd
    pending = range(len(seen_labels))
    for allowed in (same, ~same):
        left = []
        for detection in pending:
            overlaps = near[detection] * allowed[detection] * free
            if overlaps.any():
                box = int(np.flatnonzero(overlaps == overlaps.max())[-1])  # of equal ones COCO takes the last
                free[box] = False
                counts[labels[box], seen_labels[detection]] += 1
            elif not near[detection][crowd & same[detection]].any():
                left.append(detection)
        pending = left
    np.add.at(counts, (-1, seen_labels[list(pending)]), 1)
    np.add.at(counts, (labels[free], -1), 1)
