"""Images a second of the training loader, with 0 and 2 workers, with decoded images cached and without.

    python -m benchmarks.loading --data PATH [--batch-size 4] [--epochs 7]

Whole epochs in turn (their workers' start with them), augmented by flips, without a model: what a GPU that takes no
time would see. The caches are filled in the first epoch, which is not counted; its batches are compared.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Iterator

from benchmarks.in_turn import spread
from data.cache import ImageCache, available_memory
from data.dataset import Batch, DetectionDataset, train_loader
from data.open import open_data
from data.sampling import EpochBatches
from data.transforms import build_transform

Epoch = Callable[[int], Iterator[Batch]]
CACHED = ", cache"


def ways(data: str, batch_size: int) -> dict[str, Epoch]:
    """By name the batches of an epoch."""
    records = open_data(data).records("train")
    order, flip = EpochBatches(records, batch_size=batch_size, seed=0), build_transform("flip")

    def way(workers: int, cache: ImageCache | None) -> Epoch:
        dataset = DetectionDataset(records, transform=flip, drop_crowd=True, cache=cache)
        return lambda epoch: train_loader(dataset, order.batches(epoch), workers=workers)

    found = {}
    for workers in (0, 2):
        cache = ImageCache(records, available_memory() // 4)
        print(f"{workers} workers, cache: {cache.held} of {cache.wanted} images, {cache.bytes / 1e6:.0f} MB")
        found |= {f"{workers} workers": way(workers, None), f"{workers} workers{CACHED}": way(workers, cache)}
    return found


def digest(batches: Iterator[Batch]) -> str:
    """Of all pixels and boxes."""
    content = hashlib.sha256()
    for images, targets in batches:
        for image, target in zip(images, targets, strict=True):
            content.update(image.numpy().tobytes() + target["boxes"].numpy().tobytes())
    return content.hexdigest()


def measured(batches: Iterator[Batch]) -> dict[str, float]:
    """Images a second of an epoch, and a second of CPU (the workers' too)."""
    before, started = os.times(), time.perf_counter()
    images = sum(len(images) for images, _ in batches)
    seconds, after = time.perf_counter() - started, os.times()
    return {"second": images / seconds, "second of CPU": images / (sum(after[:4]) - sum(before[:4]))}


def report(data: str, batch_size: int, epochs: int) -> None:
    each = ways(data, batch_size)
    contents = {name: digest(epoch(0)) for name, epoch in each.items()}
    assert len(set(contents.values())) == 1, contents
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in each}
    for number in range(1, epochs + 1):
        for name in list(each)[:: -1 if number % 2 else 1]:
            taken[name].append(measured(each[name](number)))
    print("all batches of epoch 0 are equal; medians [range] of an epoch; × how many times those without a cache")
    for unit in ("second", "second of CPU"):
        for name, those in taken.items():
            rates, plain = ([one[unit] for one in some] for some in (those, taken[name.removesuffix(CACHED)]))
            ratios = [rate / other for rate, other in zip(rates, plain, strict=True)]
            print(f"{name:18} {spread(rates, '.0f')} images a {unit}, × {spread(ratios, '.2f')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    report(arguments.data, arguments.batch_size, arguments.epochs)
