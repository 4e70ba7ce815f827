"""COCO metrics of 5,000 images by pycocotools and by us, and their intervals from 1,000 resamples.

    python -m benchmarks.evaluation [--images 5000] [--classes 80] [--detections 100] [--replicates 1000] [--repeats 3]

Made-up boxes as many and as unequal between classes as COCO's. Each measurement is a process of its own, in turn, and
counts what the metrics take: their seconds of CPU and of the clock, and by how much the memory rises above that of the
detections and boxes themselves. The 12 numbers are compared in the same run.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import metrics

BOXES_PER_IMAGE = 7.3  # COCO's


def made_up(images: int, classes: int, detections: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results: two detections near every box, the others anywhere; equal scores among them."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, classes + 1)
    frequency /= frequency.sum()

    def boxes(count: int) -> np.ndarray:
        return np.hstack([random.uniform(0, 400, (count, 2)), np.exp(random.uniform(2, 5.5, (count, 2)))])

    annotations, results = [], []
    for image_id in range(images):
        truth = boxes(random.poisson(BOXES_PER_IMAGE))
        labels = random.choice(classes, len(truth), p=frequency)
        annotations += [
            {"id": 1 + len(annotations) + number, "image_id": image_id, "category_id": int(label), "bbox": box}
            | {"area": box[2] * box[3] * 0.6, "iscrowd": int(random.random() < 0.01)}
            for number, (box, label) in enumerate(zip(truth.tolist(), labels, strict=True))
        ]
        near = np.repeat(truth, 2, axis=0)
        near += random.normal(0, 0.1, near.shape) * np.tile(near[:, 2:], 2)
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        others = boxes(max(0, detections - len(near)))
        guesses = np.concatenate([np.repeat(labels, 2), random.choice(classes, len(others), p=frequency)])
        scores = np.concatenate([random.beta(3, 2, len(near)), random.beta(1, 6, len(others))]).round(3)
        results += [
            {"image_id": image_id, "category_id": int(label), "bbox": box, "score": score}
            for box, label, score in zip(np.vstack([near, others]).tolist(), guesses, scores.tolist(), strict=True)
        ]
    categories = [{"id": label, "name": f"class {label}"} for label in range(classes)]
    there = [{"id": image_id, "file_name": "", "width": 640, "height": 480} for image_id in range(images)]
    return {"info": {}, "images": there, "annotations": annotations, "categories": categories}, results


def pycocotools_alone(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """As its own example has it, but for the files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(metrics.NAMES, evaluation.stats.tolist(), strict=True))


def measured(what: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, CPU seconds and MiB of one measurement, and the numbers it gave."""
    truth, results = made_up(arguments.images, arguments.classes, arguments.detections)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    if what == "intervals":
        matches = metrics.match(truth, results)
        matched = time.perf_counter() - started
        scores = metrics.bootstrap(matches, replicates=arguments.replicates)[0]
        numbers = {"matching": matched, "replicates": len(scores.ap)}
    elif what == "pycocotools":
        numbers = pycocotools_alone(truth, results)
    else:
        numbers = metrics.coco_metrics(truth, results, scorer=what)["metrics"]
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "numbers": numbers,
    }


def in_turn(arguments: argparse.Namespace) -> None:
    """Prints the medians of all measurements, with their range."""
    ways = ["pycocotools", "numpy", "numpy", "pycocotools", "intervals"]
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.evaluation", *sys.argv[1:], "--only", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            taken[way].append(json.loads(done.stdout))
    size = f"{arguments.images} images, {arguments.classes} classes, {arguments.detections} detections an image"
    print(f"{size}, {arguments.replicates} replicates; medians (range)")
    for way, each in taken.items():
        print(f"{way:18}" + "   ".join(in_words(each, key) for key in ("seconds", "cpu", "MiB")))
    theirs, ours = (taken[way] for way in ("pycocotools", "numpy"))
    for key in ("cpu", "MiB"):
        ratios = [first[key] / second[key] for first, second in zip(theirs, ours, strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{key}: pycocotools takes {middle:.2f} times ({low:.2f} to {high:.2f}) what ours take")
    off = max(abs(ours[0]["numbers"][name] - value) for name, value in theirs[0]["numbers"].items())
    print(f"largest difference of the {len(theirs[0]['numbers'])} numbers: {off:.1e}")
    matching = [each["numbers"] for each in taken["intervals"]]
    print(f"of the intervals' seconds the matching: {in_words(matching, 'matching')}")


def in_words(measurements: list[dict[str, Any]], key: str) -> str:
    values = [each[key] for each in measurements]
    return f"{key} {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"images": 5000, "classes": 80, "detections": 100, "replicates": 1000, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", help="measure this one in this process, for the others")
    given = parser.parse_args()
    print(json.dumps(measured(given.only, given))) if given.only else in_turn(given)
