"""COCO metrics of detections against ground truth. The only door to pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The order of pycocotools' `stats`.
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)


def coco_ground_truth(records: Iterable[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Records as a COCO dictionary; annotation ids begin at 1, because pycocotools takes 0 for 'unmatched'."""
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


def coco_metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """`metrics` {AP, AP50, …} and `per_class` {name: {AP, AP50}}, all in 0..1, equal to pycocotools' own.

    What has no ground truth (a size, a class) is left out: pycocotools' -1 is no score.
    """
    # pycocotools writes into what it is given.
    ground_truth = ground_truth | {"annotations": [dict(each) for each in ground_truth["annotations"]]}
    results = [dict(each) for each in results]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        # loadRes cannot take an empty list
        found = truth.loadRes(results) if results else _empty(ground_truth)
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True) if value > -1}
    return {"metrics": metrics, "per_class": _per_class(evaluation, ground_truth["categories"])}


def _empty(ground_truth: dict[str, Any]) -> COCO:
    found = COCO()
    found.dataset = ground_truth | {"annotations": []}
    found.createIndex()
    return found


def _per_class(evaluation: COCOeval, categories: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    precision = evaluation.eval["precision"][
        :, :, :, 0, -1
    ]  # (IoU thresholds, recalls, classes): all sizes, 100 a image
    names = {category["id"]: category["name"] for category in categories}
    scores = {}
    for index, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            scores[names[category_id]] = {"AP": float(values.mean()), "AP50": float(values[0].mean())}
    return scores
