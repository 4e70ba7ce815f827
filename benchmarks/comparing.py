"""How often a difference is shown between two methods that are equally good, on made-up detections.

    python -m benchmarks.comparing [--images 60] [--trials 400]

Each trial draws images anew. How hard an image is differs for both methods alike, and for each in its own way; a run
finds a share of the boxes that its seed varies. Of 95% intervals, 5 % should exclude 0. Beside the interval that
compare.py gives for groups of seeds stand two that leave something out, for three seeds: of images or of seeds alone.
"""

import argparse
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

import metrics
from machine import usable_cores

SEEDS, BOXES = 3, 4  # of a method, of an image
SHARE, HARD_FOR_ALL, HARD_FOR_ONE = 0.7, 0.15, 0.15  # found, and how much that varies by image
SEED_DEVIATIONS = (0.0, 0.04)  # of the share that a run finds
PLACES = [[100 * place, 10, 40, 40] for place in range(BOXES)]
NOWHERE = [[100 * place, 200, 40, 40] for place in range(2)]


def run(truth: dict, shares: np.ndarray, random: np.random.Generator) -> metrics.Evaluated:
    """A run that finds such a share (images,) of the boxes, and sees some where none are."""
    results = []
    for image_id, share in enumerate(np.clip(shares, 0.02, 0.98)):
        there = [(box, random.uniform(0.4, 1)) for box in PLACES if random.random() < share]
        wrong = [(box, random.uniform(0.1, 0.8)) for box in NOWHERE if random.random() < 0.3]
        results += [
            {"image_id": image_id, "category_id": 1, "bbox": box, "score": score} for box, score in [*there, *wrong]
        ]
    return metrics.evaluated(metrics.match(truth, results), replicates=300)


def trial(images: int, deviation: float, seed: int) -> dict[str, bool]:
    """Whether 0 is outside of each interval."""
    random = np.random.default_rng([images, round(1000 * deviation), seed])
    boxes = [{"image_id": image_id, "category_id": 1, "bbox": box} for image_id in range(images) for box in PLACES]
    truth = {
        "images": [{"id": image_id} for image_id in range(images)],
        "annotations": [each | {"area": 1600, "iscrowd": 0} for each in boxes],
        "categories": [{"id": 1, "name": "object"}],
    }
    for_all = random.normal(SHARE, HARD_FOR_ALL, images)
    sides = []
    for _ in range(2):
        own = for_all + random.normal(0, HARD_FOR_ONE, images)
        sides.append([run(truth, own + random.normal(0, deviation), random) for _ in range(SEEDS)])
    found = {
        "one seed a side": metrics.difference(sides[0][:1], sides[1][:1], "AP"),
        "two seeds a side": metrics.difference(*(side[:2] for side in sides), "AP"),
        "three seeds a side": metrics.difference(*sides, "AP"),
        "… by images alone": metrics.difference(*([mean(side)] for side in sides), "AP"),
        "… by seeds alone": metrics.difference(*(list(map(without_images, side)) for side in sides), "AP"),
    }
    return {name: each.is_shown for name, each in found.items()}


def mean(side: list[metrics.Evaluated]) -> metrics.Evaluated:
    """The mean of the seeds as if it were one run."""
    value = float(np.mean([each.values["AP"] for each in side]))
    drawn = np.mean([each.replicates["AP"] for each in side], axis=0)
    return replace(side[0], values={"AP": value}, replicates={"AP": drawn})


def without_images(one: metrics.Evaluated) -> metrics.Evaluated:
    return replace(one, replicates={"AP": np.full_like(one.replicates["AP"], one.values["AP"])})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--trials", type=int, default=400)
    options = parser.parse_args()
    for deviation in SEED_DEVIATIONS:
        print(f"seeds vary the share of found boxes by {deviation}: a difference was shown in")
        shown: Counter[str] = Counter()
        with ProcessPoolExecutor(usable_cores()) as processes:
            for each in processes.map(partial(trial, options.images, deviation), range(options.trials), chunksize=5):
                shown.update(each)
        for name, count in shown.items():
            print(f"  {name:<20} {count / options.trials:.3f}")


if __name__ == "__main__":
    main()
