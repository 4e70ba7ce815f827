"""Records and detections as metrics take them, without images: a few by hand, many by chance."""

from types import SimpleNamespace

import numpy as np


def image(image_id: int, boxes=(), labels=(), *, crowd=None, area=None):
    """A record as data/ makes them, as far as metrics look at it."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return SimpleNamespace(
        image_id=image_id,
        name=f"{image_id}.png",
        width=640,
        height=480,
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        iscrowd=np.array(crowd or [0] * len(boxes), dtype=np.uint8),
        area=sides.prod(axis=1) if area is None else np.array(area),
    )


def found(image_id: int, boxes=(), labels=(), scores=()):
    return SimpleNamespace(
        image_id=image_id,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        scores=np.array(scores, dtype=np.float32),
    )


def random_case(seed: int):
    """Images with boxes of all sizes and crowds, and detections near them, missing and made up, with equal scores.

    Image ids have gaps and do not fit into 32 bits, some images have nothing, and no box is of class 2.
    """
    random = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corners = random.uniform(0, 300, (count, 2))
        return np.hstack([corners, corners + np.exp(random.uniform(1, 5, (count, 2)))])

    records, detections = [], []
    for image_id in 2**40 + random.permutation(40)[:12]:
        truth = boxes(random.integers(0, 6))
        labels = random.choice([1, 3], len(truth))
        crowd = (random.random(len(truth)) < 0.2).astype(int).tolist()
        records.append(image(int(image_id), truth, labels, crowd=crowd))
        kept = random.random(len(truth)) < 0.8
        moved = truth[kept] + random.normal(0, 3, (kept.sum(), 4))
        moved = np.vstack([moved, boxes(random.integers(0, 4))])
        moved = np.hstack([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)])
        guessed = np.concatenate([labels[kept], random.integers(1, 4, len(moved) - kept.sum())])
        detections.append(found(int(image_id), moved, guessed, random.random(len(moved)).round(1)))
    return records, detections
