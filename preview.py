"""What training sees: sheets of training images, as they are and augmented, with their boxes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import figures
import workspace
from data.dataset import DetectionDataset
from data.detection_data import DetectionData
from data.records import DataError, Record
from data.transforms import build_transform, read_augmentation

CELL_PIXELS = 400  # on the longer side of each picture: the words beside boxes can be read
SUFFIXES = (".jpg", ".jpeg", ".png")
Column = tuple[str, DetectionDataset, int]  # title, samples, epoch


def write_preview(
    data: DetectionData, file: Path, *, augmentation: str, seed: int = 0, images: int = 6, variants: int = 4
) -> None:
    """A picture with a row an image: as it is, and as training with this augmentation and seed has it, epoch by epoch.

    WorkspaceError where the file cannot be written; DataError where an image cannot be read, or none has an object.
    """
    epochs = [(f"epoch {epoch}", _samples(data, augmentation, seed), epoch) for epoch in range(variants)]
    write_sheet(data, file, epochs, seed=seed, images=images)


def write_presets(data: DetectionData, file: Path, names: Sequence[str], *, seed: int = 0, images: int = 3) -> None:
    """A picture with a row an image: as it is, and as each augmentation has it in the first epoch."""
    write_sheet(data, file, [(name, _samples(data, name, seed), 0) for name in names], seed=seed, images=images)


def write_sheet(data: DetectionData, file: Path, columns: Sequence[Column], *, seed: int, images: int) -> None:
    """The chosen images in rows, each with its name, beside what the columns make of it."""
    if file.suffix.lower() not in SUFFIXES:
        raise workspace.WorkspaceError(f"{file} is to be a picture: end its name in .jpg or .png")
    workspace.require_writable(file.absolute().parent, "Choose another file")
    plain = _samples(data, "none", seed)
    rows = []
    for index in chosen(plain.records, images):
        name = plain.records[index].name.rpartition("/")[2]
        rows.append([_cell(*cell, index, data.classes) for cell in [(name, plain, 0), *columns]])
    if not rows:
        raise DataError(f"{data.name} has no training image with an object: there is nothing to preview")
    widest = max(cell.shape[1] for row in rows for cell in row)
    lines = [figures.side_by_side([figures.widened(cell, widest) for cell in row]) for row in rows]
    figures.write(figures.side_by_side(lines, axis=0), file)


def chosen(records: Sequence[Record], count: int) -> list[int]:
    """The indices of so many images with objects, or of all: in turn one of each class, spread over the images."""
    labels = [set(record.labels[record.iscrowd == 0].tolist()) for record in records]
    left = {index for index, present in enumerate(labels) if present}
    classes = sorted(set().union(*labels))
    picked: list[int] = []
    while left and len(picked) < count:
        number = len(picked)
        # More classes than rows: every so manieth of them.
        wanted = classes[number * len(classes) // count if len(classes) > count else number % len(classes)]
        having = sorted(index for index in left if wanted in labels[index]) or sorted(left)
        picked.append(having[number * len(having) // count])
        left.remove(picked[-1])
    return picked


def _samples(data: DetectionData, augmentation: str, seed: int) -> DetectionDataset:
    """The very samples of training: its transform, its seeds, its indices, and no crowds."""
    transform = build_transform(read_augmentation(augmentation))
    return DetectionDataset(data.records("train"), seed=seed, transform=transform, drop_crowd=True)


def _cell(title: str, samples: DetectionDataset, epoch: int, index: int, classes: Sequence[str]) -> np.ndarray:
    pixels, target = samples.sample((epoch, index))
    image, scale = figures.resized(pixels.numpy().transpose(1, 2, 0), CELL_PIXELS)
    labels = target["labels"].numpy()
    names = [classes[label - 1] for label in labels]
    return figures.under_title(title, figures.draw(image, target["boxes"].numpy() * scale, labels, names))
