"""The images that two runs see most differently, drawn: ground truth beside what each found, and did not."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import figures
from comparing.same_images import SameImages
from metrics import Evaluated
from metrics.errors import WRONG, Errors, Kind, analyse
from progress import say
from stored_detections import Detected

LONGEST_SIDE = 480  # pixels of one picture
# Of tab10; what is right, wrong and not found as on an evaluation's worst images.
BLUE, GREEN, RED, PINK, GREY = 0, 2, 3, 6, 7

Drawn = tuple[int, str, Sequence[float]]  # colour, text, box (xywh)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a run detected in the images that are drawn, from its own threshold on."""

    title: str
    results: list[dict[str, Any]]
    errors: Errors


def draw(runs: Sequence[tuple[Detected, Evaluated]], same: SameImages, names: Sequence[str], path: Path) -> Path | None:
    """A row for each of the images, ground truth first, then the baseline's run and the candidate's.

    None where no file of them is here, which is said.
    """
    by_name = {image["file_name"]: image for image in same.ground_truth["images"]}
    images = [by_name[name] for name in names]
    ids = {image["id"] for image in images}
    annotations = [each for each in same.ground_truth["annotations"] if each["image_id"] in ids]
    truth = same.ground_truth | {"images": images, "annotations": annotations}
    judged = [
        _judged(f"{side}: {run.run.name}", run, scores, same, truth)
        for side, (run, scores) in zip(("baseline", "candidate"), runs, strict=True)
    ]
    rows = []
    for image in images:
        pixels = next((there for run, _ in runs if (there := run.pixels(image)) is not None), None)
        if pixels is not None:
            rows.append(_row(pixels, image, truth, judged))
    if not rows:
        say("note: the images are not on this machine: those that changed most are named, not drawn")
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write(figures.side_by_side(rows, axis=0), path)
    return path


def _judged(title: str, run: Detected, scores: Evaluated, same: SameImages, truth: Mapping[str, Any]) -> Judged:
    ids = {image["id"] for image in truth["images"]}
    least = math.inf if scores.score_threshold is None else scores.score_threshold
    results = [each for each in same.results_of(run) if each["image_id"] in ids and each["score"] >= least]
    return Judged(title=title, results=results, errors=analyse(truth, results))


def _row(
    pixels: np.ndarray, image: Mapping[str, Any], truth: Mapping[str, Any], judged: Sequence[Judged]
) -> np.ndarray:
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    pixels, scale = figures.resized(pixels, LONGEST_SIDE)
    objects = [each for each in truth["annotations"] if each["image_id"] == image["id"]]
    named = [(BLUE, classes[each["category_id"]], each["bbox"]) for each in objects]
    panels = [_panel(pixels, scale, named, "ground truth", image["file_name"])]
    for one in judged:
        drawn = _drawn(one, image["id"], truth, classes)
        counts = Counter(color for color, *_ in drawn)
        told = f"{counts[GREEN]} right (green), {counts[RED]} wrong (red), {counts[PINK]} not found (pink)"
        panels.append(_panel(pixels, scale, drawn, one.title, told))
    return figures.side_by_side(panels)


def _drawn(one: Judged, image_id: int, truth: Mapping[str, Any], classes: Mapping[int, str]) -> list[Drawn]:
    """What was not found, and what was detected, the wrong on top."""
    objects = zip(one.errors.unfound(), truth["annotations"], strict=True)
    drawn = [(PINK, "", each["bbox"]) for unfound, each in objects if unfound and each["image_id"] == image_id]
    found = [
        (kind, each) for kind, each in zip(one.errors.kinds, one.results, strict=True) if each["image_id"] == image_id
    ]
    for kind, each in sorted(found, key=lambda pair: pair[0] in WRONG):
        color = {Kind.HIT: GREEN, Kind.IGNORED: GREY}.get(kind, RED)
        text = f"{classes[each['category_id']]} {each['score']:.2f}" if color == RED else ""
        drawn.append((color, text, each["bbox"]))
    return drawn


def _panel(pixels: np.ndarray, scale: float, drawn: Sequence[Drawn], *titles: str) -> np.ndarray:
    """An image (H, W, 3) with boxes in its unscaled pixels, below two titles."""
    boxes = figures.corners([box for *_, box in drawn]) * scale
    colors = np.array([color for color, *_ in drawn], dtype=int)
    picture = figures.draw(pixels, boxes, colors, [text for _, text, _ in drawn])
    for title in reversed(titles):
        picture = figures.under_title(title, picture)
    return picture
