"""Whether the 95% intervals of AP hold what they promise, on made-up detections whose true AP is known.

    python -m benchmarks.coverage [--images 50 200 500] [--trials 500] [--first 0]

A trial is a data set of so many images with three classes, of 2, 1 and 0.25 boxes an image; images differ in how many
objects they have, and how hard these are to find and to place. The truth is the AP on 600,000 other images. COCO's AP
flatters small data sets, because the precision at a recall is the highest of those to its right; so the share of
intervals that hold the mean AP of data sets of the same number of images is given too.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

import metrics
from machine import usable_cores

BOXES_PER_IMAGE = (2.0, 1.0, 0.25)  # of each class
TRUTH_SETS, TRUTH_IMAGES = 20, 30_000
SHOWN = ("AP", "AP50", "AP75", "AR_100", "AP class 0", "AP class 1", "AP class 2")


def made_up(images: int, random: np.random.Generator) -> metrics.Matches:
    """Matched detections of so many images."""
    annotations, results = [], []
    for image_id in range(images):
        hard, busy = random.beta(2, 3), random.gamma(2, 0.5)
        for label, rate in enumerate(BOXES_PER_IMAGE):
            boxes = anywhere(random.poisson(rate * busy), random)
            near = boxes[random.random(len(boxes)) > 0.5 * hard]
            near += random.normal(0, 0.02 + 0.12 * hard, near.shape) * np.tile(near[:, 2:], 2)
            near[:, 2:] = np.maximum(near[:, 2:], 1)
            wrong = anywhere(random.poisson(0.2 + hard * rate), random)
            scores = np.concatenate([random.beta(5, 2, len(near)), random.beta(2, 4, len(wrong))]).tolist()
            of = {"image_id": image_id, "category_id": label}
            annotations += [of | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0} for box in boxes.tolist()]
            seen = zip([*near.tolist(), *wrong.tolist()], scores, strict=True)
            results += [of | {"bbox": box, "score": score} for box, score in seen]
    categories = [{"id": label, "name": f"class {label}"} for label in range(len(BOXES_PER_IMAGE))]
    there = [{"id": image_id} for image_id in range(images)]
    return metrics.match({"images": there, "annotations": annotations, "categories": categories}, results)


def anywhere(count: int, random: np.random.Generator) -> np.ndarray:
    """Boxes (count, 4) xywh of sides from 12 to 180 pixels."""
    return np.hstack([random.uniform(0, 500, (count, 2)), np.exp(random.uniform(2.5, 5.2, (count, 2)))])


def numbers(scores: metrics.Scores) -> dict[str, np.ndarray]:
    """(replicates,) of each of SHOWN."""
    per_class = {f"AP {name}": one["AP"] for name, one in scores.per_class().items()}
    return {name: each for name, each in (scores.metrics() | per_class).items() if name in SHOWN}


def unsampled(images: int, seed: int) -> dict[str, float]:
    """What a made-up data set scores; NaN for a class that it lacks."""
    matches = made_up(images, np.random.default_rng([images, seed]))
    scores = metrics.unsampled_scores(matches)
    return {name: float(value[0]) for name, value in numbers(scores).items()}


def trial(images: int, replicates: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Of each number what a made-up data set scores, and its interval; what the data set lacks is left out."""
    matches = made_up(images, np.random.default_rng([images, seed]))
    found = numbers(metrics.unsampled_scores(matches))
    drawn = numbers(metrics.bootstrap(matches, replicates=replicates, seed=seed)[0])
    there = {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])}
    return {name: (value, *metrics.interval(drawn[name], value)) for name, value in there.items()}


def covered(
    images: int, trials: int, replicates: int, truth: dict[str, float], *, first: int = 0
) -> dict[str, dict[str, float]]:
    """Of each number: the shares of intervals that hold the mean of the trials, and the truth, and their mean width."""
    with ProcessPoolExecutor(usable_cores()) as processes:
        results = list(processes.map(partial(trial, images, replicates), range(first, first + trials), chunksize=10))
    shares = {}
    for name in SHOWN:
        value, low, high = np.array([each[name] for each in results if name in each]).T
        holds = {"the mean": value.mean(), "the truth": truth[name]}
        shares[name] = {what: float(((low <= one) & (one <= high)).mean()) for what, one in holds.items()}
        shares[name] |= {"bias": float(value.mean() - truth[name]), "width": float((high - low).mean())}
    return shares


def true_scores() -> dict[str, float]:
    """The mean of what large data sets score."""
    with ProcessPoolExecutor(usable_cores()) as processes:
        scores = list(processes.map(partial(unsampled, TRUTH_IMAGES), range(TRUTH_SETS)))
    return {name: float(np.mean([one[name] for one in scores])) for name in SHOWN}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial: others make other data sets")
    given = parser.parse_args()
    truth = true_scores()
    print(f"{given.trials} trials, {given.replicates} replicates")
    print("| images | number | truth | mean of such sets | holds the mean | holds the truth | width |")
    print("|---|---|---|---|---|---|---|")
    for images in given.images:
        for name, one in covered(images, given.trials, given.replicates, truth, first=given.first).items():
            mean = truth[name] + one["bias"]
            shares = f"{100 * one['the mean']:.1f} % | {100 * one['the truth']:.1f} %"
            print(f"| {images} | {name} | {truth[name]:.3f} | {mean:.3f} | {shares} | {one['width']:.3f} |", flush=True)
