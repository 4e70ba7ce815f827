"""COCO metrics of detections against ground truth. The only door to pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metrics.bootstrap import NAMES, unsampled_scores
from metrics.matching import match, require_known_images

# Who computes: the same numbers, but for the last digits of a double; the first in a thirtieth of the time.
SCORERS = ("numpy", "pycocotools")


def coco_ground_truth(records: Iterable[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Records as a COCO dictionary; annotation ids begin at 1, as pycocotools takes 0 for 'unmatched'."""
    images, annotations = [], []
    for record in records:
        images.append({"id": record.image_id, "file_name": record.name, "width": record.width, "height": record.height})
        for box, label, area, crowd in zip(record.boxes, record.labels, record.area, record.iscrowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": int(label),
                    "bbox": _xywh(box),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def coco_results(detections: Iterable[Any]) -> list[dict[str, Any]]:
    """Detections as COCO results; category ids are labels (1..C)."""
    return [
        {"image_id": one.image_id, "category_id": int(label), "bbox": _xywh(box), "score": float(score)}
        for one in detections
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]


def _xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1, y2 - y1]


def coco_metrics(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, scorer: str = SCORERS[0]
) -> dict[str, Any]:
    """`metrics` {AP, AP50, …} and `per_class` {name: {AP, AP50, AR_100}}, all in 0..1, by one of SCORERS.

    What has no ground truth (a size, a class) is left out: pycocotools' -1 is no score. ValueError where a result is
    of an image that the ground truth lacks.
    """
    if scorer not in SCORERS:
        raise ValueError(f"No scorer {scorer!r}; there are: {', '.join(SCORERS)}")
    if scorer == "pycocotools":
        return _by_pycocotools(ground_truth, results)
    if not ground_truth["categories"]:
        return {"metrics": {}, "per_class": {}}
    scores = unsampled_scores(match(ground_truth, results))
    per_class = {name: _there(values) for name, values in scores.per_class().items()}
    return {
        "metrics": _there(scores.metrics()),
        "per_class": {name: values for name, values in per_class.items() if values},
    }


def _there(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in values.items() if not np.isnan(value[0])}


def _by_pycocotools(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    require_known_images(ground_truth, results)
    # Copies, because pycocotools writes into what it is given. Annotations are numbered anew from 1: an id of 0 would
    # be a match that it takes for none. loadRes would add a polygon to each result: twice the memory.
    annotations = [{**each, "id": number} for number, each in enumerate(ground_truth["annotations"], start=1)]
    found = [
        {**each, "id": number, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0}
        for number, each in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_indexed(ground_truth, annotations), _indexed(ground_truth, found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True) if value > -1}
    return {"metrics": metrics, "per_class": _per_class(evaluation, ground_truth["categories"])}


def _indexed(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**ground_truth, "annotations": annotations}
    coco.createIndex()
    return coco


def _per_class(evaluation: Any, categories: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    # (IoU thresholds, recalls, classes) and (IoU thresholds, classes): all sizes, 100 detections an image
    precision, recall = evaluation.eval["precision"][:, :, :, 0, -1], evaluation.eval["recall"][:, :, 0, -1]
    names = {category["id"]: category["name"] for category in categories}
    return {
        names[category_id]: {
            "AP": float(precision[:, :, index].mean()),
            "AP50": float(precision[0, :, index].mean()),
            "AR_100": float(recall[:, index].mean()),
        }
        for index, category_id in enumerate(evaluation.params.catIds)
        if (recall[:, index] > -1).all()
    }
