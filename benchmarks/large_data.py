"""What a data set of 100,000 images and 1,000,000 boxes takes: memory and seconds, each measured in its own process.

    python -m benchmarks.large_data [--images 100000] [--boxes 10] [--polygons] [--workers 4] [--folder DIR]

The images are small, in a hundred folders, and no two of them are alike. In turn: reading the annotations (the million
objects made and dropped once), open_data with its scan of the images and then with the scan kept, and an epoch of a
loader with workers, of each of which the memory that it shares with nobody is read as it begins and as it ends.
--polygons gives each object 25 points, about as COCO's have: the JSON is then of the size of instances_train2017.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FOLDERS, SIDE, COARSE, CLASSES, POINTS = 100, 64, 16, 80, 25
MEBIBYTE = 2**20


def write(root: Path, images: int, boxes: int, *, polygons: bool) -> None:
    """A COCO data set with a tenth of its images in val; every tenth image has no box."""
    from PIL import Image

    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
    for split, count in (("train", images - images // 10), ("val", images // 10)):
        path = root / "annotations" / f"instances_{split}.json"
        with path.open("w", encoding="utf-8") as file:
            file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
            for number in range(count):
                name = f"{number % FOLDERS:02d}/{number:012d}.jpg"
                (root / split / name).parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((SIDE, SIDE)).save(root / split / name)
                entry = {"id": number, "file_name": name, "width": SIDE, "height": SIDE, "license": 1}
                file.write((", " if number else "") + json.dumps(entry))
            file.write('], "annotations": [')
            with_boxes = np.flatnonzero(np.arange(count) % 10)
            for number, image in enumerate(random.choice(with_boxes, count * boxes).tolist()):
                file.write((", " if number else "") + json.dumps(_annotation(random, number, image, polygons)))
            file.write("]}")


def _annotation(random: np.random.Generator, number: int, image: int, polygons: bool) -> dict:
    x, y, width, height = random.uniform(1, SIDE / 2 - 2, 4).round(2).tolist()
    points = random.uniform(1, SIDE - 1, 2 * POINTS).round(2).tolist() if polygons else []
    mask = {"segmentation": [points]} if polygons else {}
    box = {"bbox": [x, y, width, height], "area": round(width * height, 3), "iscrowd": 0}
    return {"id": 10**6 + number, "image_id": image, "category_id": 1 + number % CLASSES, **box, **mask}


class Clock:
    """Seconds since it was last asked: by the wall, and of the processors, which others' work does not lengthen."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall, cpu = self.wall, self.cpu
        self.__init__()
        return f"{self.wall - wall:.1f} s ({self.cpu - cpu:.1f} s of CPU)"


def annotations(root: Path) -> str:
    """Reading the JSON files and making every object once."""
    from data.readers.coco import CocoFile, read_coco

    clock = Clock()
    files = [(split, root / "annotations" / f"instances_{split}.json") for split in ("train", "val")]
    found = read_coco(root, [CocoFile(split=name, path=path, image_folders=[root / name]) for name, path in files])
    read = f"{clock} to read {sum(path.stat().st_size for _, path in files) / 1e6:.0f} MB of JSON"
    images = [image for images in found.splits.values() for image in images]
    objects = sum(1 for image in images for _ in image.objects)
    return f"{read}, {clock} for the {objects} objects of {len(images)} images, {_peak()}"


def opened(root: Path) -> str:
    """The whole of open_data, and the fingerprint."""
    from data.open import open_data

    clock = Clock()
    open_data(root, refuse=False)
    first = str(clock)
    data = open_data(root, refuse=False)
    again = str(clock)
    boxes = sum(len(records.boxes) for records in data.splits.values())
    told = f"{boxes} boxes and {len(data.defects)} defects"
    return f"{first} to open, {again} again, with {told}, fingerprint {data.fingerprint} in {clock}, {_peak()}"


def loader(root: Path, workers: int) -> str:
    """An epoch of training batches without augmentation; each worker's own memory at its first and last sample."""
    from data.dataset import DetectionDataset, train_loader
    from data.open import open_data
    from data.sampling import EpochBatches

    class Watched(DetectionDataset):
        """Says with each sample how much memory only its process has."""

        def sample(self, key):
            image, target = super().sample(key)
            asked = target["image_id"] % 500 == 0 or getattr(self, "first", True)
            self.first = False
            return image, target | {"private": (os.getpid(), private_memory()) if asked else None}

    records = open_data(root).records("train")
    batches = EpochBatches(records, batch_size=16, seed=0).batches(0)
    own: dict[int, list[int]] = {}
    clock = Clock()
    for _, targets in train_loader(Watched(records), batches, workers=workers):
        for process, size in filter(None, (target["private"] for target in targets)):
            own.setdefault(process, []).append(size)
    took = str(clock)
    growth = [f"{sizes[0] // MEBIBYTE} to {max(sizes) // MEBIBYTE}" for sizes in own.values()]
    return f"{took} an epoch, each worker's own memory in MiB: {', '.join(growth)}; the main process: {_peak()}"


def private_memory() -> int:
    """Bytes that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB at the peak"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=10, help="an image, on average [10]")
    parser.add_argument("--polygons", action="store_true")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to write, or a data set written before [a temporary folder]")
    parser.add_argument("--only", choices=["annotations", "opened", "loader"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        parts = {"annotations": annotations, "opened": opened, "loader": lambda root: loader(root, options.workers)}
        print(f"{options.only:12}", parts[options.only](options.folder))
        return
    from data.checks.scan_cache import ScanCache

    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary).resolve() / "large"
        if not root.exists():
            write(root, options.images, options.boxes, polygons=options.polygons)
        for part in [options.only] if options.only else ["annotations", "opened", "loader"]:
            given = ["--here", "--only", part, "--folder", str(root), "--workers", str(options.workers)]
            subprocess.run([sys.executable, "-m", "benchmarks.large_data", *given], check=True)
        ScanCache(root.resolve()).path.unlink(missing_ok=True)  # the next time is the first again


if __name__ == "__main__":
    main()
