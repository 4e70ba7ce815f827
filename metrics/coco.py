"""COCO metrics of detections against ground truth. The only door to faster-coco-eval and pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# The order of pycocotools' `stats`.
NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
# Who computes: the same numbers, but for the last digit of a double; the first in a seventh of the time.
SCORERS = ("faster-coco-eval", "pycocotools")


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
    require_known_images(ground_truth, results)
    COCO, COCOeval = _classes_of(scorer)
    # Copies, because both write into what they are given. Annotations are numbered anew from 1: an id of 0 would be a
    # match that pycocotools takes for none. loadRes would add a polygon to each result: twice the memory.
    annotations = [{**each, "id": number} for number, each in enumerate(ground_truth["annotations"], start=1)]
    found = [
        {**each, "id": number, "area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0}
        for number, each in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_indexed(COCO, ground_truth, annotations), _indexed(COCO, ground_truth, found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats[: len(NAMES)]
    metrics = {name: float(value) for name, value in zip(NAMES, stats, strict=True) if value > -1}
    return {"metrics": metrics, "per_class": _per_class(evaluation, ground_truth["categories"])}


def require_known_images(ground_truth: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> None:
    """ValueError where a result is of an image that the ground truth does not have."""
    unknown = {each["image_id"] for each in results} - {image["id"] for image in ground_truth["images"]}
    if unknown:
        raise ValueError(
            f"{len(unknown)} images with detections are not in the ground truth, such as image_id {min(unknown)}: "
            "are both of the same split?"
        )


def _classes_of(scorer: str) -> tuple[type, type]:
    if scorer == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if scorer == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    raise ValueError(f"No scorer {scorer!r}; there are: {', '.join(SCORERS)}")


def _indexed(kind: type, ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> Any:
    coco = kind()
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
