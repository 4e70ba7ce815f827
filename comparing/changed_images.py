"""The images that two runs see most differently, drawn: ground truth beside the detections of each."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import figures
from comparing.same_images import SameImages
from metrics import Evaluated
from progress import say
from stored_detections import Detected

LONGEST_SIDE = 480  # pixels of one picture


def draw(runs: Sequence[tuple[Detected, Evaluated]], same: SameImages, names: Sequence[str], path: Path) -> Path | None:
    """A row for each of the images, ground truth first, detections from each run's own threshold on.

    None where no file of them is here, which is said.
    """
    images = {image["file_name"]: image for image in same.ground_truth["images"]}
    found = [(run.run.name, same.results_of(run), scores) for run, scores in runs]
    rows = []
    for name in names:
        pixels = next((there for run, _ in runs if (there := run.pixels(images[name])) is not None), None)
        if pixels is not None:
            rows.append(_row(pixels, name, images[name]["id"], same.ground_truth, found))
    if not rows:
        say("note: the images are not on this machine: those that changed most are named, not drawn")
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write(figures.side_by_side(rows, axis=0), path)
    return path


def _row(
    image: np.ndarray,
    name: str,
    image_id: int,
    truth: Mapping[str, Any],
    found: Sequence[tuple[str, list[dict[str, Any]], Evaluated]],
) -> np.ndarray:
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    image, scale = figures.resized(image, LONGEST_SIDE)
    there = [each for each in truth["annotations"] if each["image_id"] == image_id]
    panels = [(f"ground truth: {name}", there)]
    for run_name, results, scores in found:
        least = math.inf if scores.score_threshold is None else scores.score_threshold
        kept = [each for each in results if each["image_id"] == image_id and each["score"] >= least]
        panels.append((f"{run_name}: {scores.errors[image_id - 1]} false or missed", kept))
    return figures.side_by_side(
        [figures.under_title(title, _drawn(image, objects, classes, scale)) for title, objects in panels]
    )


def _drawn(
    image: np.ndarray, objects: Sequence[Mapping[str, Any]], classes: Mapping[int, str], scale: float
) -> np.ndarray:
    """COCO annotations or results on an image (H, W, 3)."""
    boxes = figures.corners([each["bbox"] for each in objects]) * scale
    labels = np.array([each["category_id"] for each in objects], dtype=int)
    scores = [f" {each['score']:.2f}" if "score" in each else "" for each in objects]
    texts = [f"{classes[label]}{score}" for label, score in zip(labels, scores, strict=True)]
    return figures.draw(image, boxes, labels, texts)
