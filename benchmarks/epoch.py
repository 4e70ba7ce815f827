"""A whole epoch of train.py against a plain script: reading the data, augmentation, tracking, checkpoint, validation.

    python -m benchmarks.epoch --data PATH [--model NAME] [--image-min-size 320] [--repeats 2]

Each is a process of its own, from its start to its end, on the CPU, in turn: A B C, C B A. The plain script opens
images by PIL, flips them, trains as torchvision's references do, writes a checkpoint by torch.save and scores val by
pycocotools.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from benchmarks.in_turn import spread

BATCH_SIZE, WORKERS = 4, 2
WAYS = ("plain", "train.py", "train.py --amp bf16")


class Images(Dataset):
    """(float image, target) of records, half of them flipped in training."""

    def __init__(self, records: Any, *, training: bool):
        self.records, self.training = records, training

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        record = self.records[index]
        image = F.to_dtype(F.pil_to_tensor(Image.open(record.path).convert("RGB")), torch.float32, scale=True)
        boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
        if self.training and torch.rand(1) < 0.5:
            image, boxes = image.flip(-1), boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            boxes[:, [0, 2]] += image.shape[-1]
        return image, {"boxes": boxes, "labels": torch.tensor(record.labels), "image_id": record.image_id}


def plainly(arguments: argparse.Namespace, folder: Path) -> None:
    import engine
    import metrics
    from benchmarks import plain
    from data.open import open_data

    data = open_data(arguments.data)
    size = {"min_size": arguments.image_min_size, "max_size": 2 * arguments.image_min_size}
    model = plain.model(arguments.model, len(data.classes) + 1, **size).train()
    optimizer = plain.sgd(model)
    step = plain.training_step(model, optimizer, torch.device("cpu"))

    def loader(split: str, *, training: bool) -> DataLoader:
        images = Images(data.records(split), training=training)
        options = {
            "batch_size": BATCH_SIZE,
            "num_workers": WORKERS,
            "collate_fn": lambda batch: zip(*batch, strict=True),
        }
        return DataLoader(images, shuffle=training, **options)

    for number, (images, targets) in enumerate(loader("train", training=True), start=1):
        print(number, step(images, targets), file=sys.stderr)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "checkpoint.pth")
    model.eval()
    found = []
    for images, targets in loader("val", training=False):
        with torch.no_grad():
            outputs = model(list(images))
        for target, output in zip(targets, outputs, strict=True):
            arrays = (output[key].numpy() for key in ("boxes", "labels", "scores"))
            found.append(engine.Detections(target["image_id"], *arrays))
    truth = metrics.coco_ground_truth(data.records("val"), data.classes)
    print(metrics.coco_metrics(truth, metrics.coco_results(found), scorer="pycocotools")["metrics"])


def ours(arguments: argparse.Namespace, folder: Path, amp: str) -> None:
    import train
    import workspace
    from config import TrainConfig

    workspace.ROOT, workspace.RUNS = folder, folder / "runs"
    workspace.PUBLISHED = folder / "models" / "faster_rcnn" / "checkpoint.pth"
    size = {"image_min_size": arguments.image_min_size, "image_max_size": 2 * arguments.image_min_size}
    same = {"weights": "none", "norm": "frozen", "trainable_layers": 3, "lr": 1e-4, "workers": WORKERS, "device": "cpu"}
    config = TrainConfig(
        data=arguments.data, model=arguments.model, epochs=1, batch_size=BATCH_SIZE, amp=amp, **size, **same
    )
    print(train.main(config))


def in_turn(arguments: argparse.Namespace) -> None:
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(arguments.repeats):
        for way in list(WAYS)[:: -1 if repeat % 2 else 1]:
            command = [sys.executable, "-m", "benchmarks.epoch", *sys.argv[1:], "--only", way]
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            taken[way].append(time.perf_counter() - started)
            print(f"{way}: {taken[way][-1]:.1f} s", file=sys.stderr)
    print(f"{arguments.model} on {arguments.data}, {arguments.repeats} times each: medians, times as fast as plain")
    for way, seconds in taken.items():
        ratios = [first / own for first, own in zip(taken["plain"], seconds, strict=True)]
        print(f"{way:20} {statistics.median(seconds):6.1f} s   {spread(ratios, '.2f', ' ×')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="fasterrcnn_mobilenet_v3_large_320_fpn")
    parser.add_argument("--image-min-size", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is None:
        in_turn(given)
    else:
        with tempfile.TemporaryDirectory() as place:
            if given.only == "plain":
                plainly(given, Path(place))
            else:
                ours(given, Path(place), "bf16" if "bf16" in given.only else "off")
