"""The drawn data set: boxes that are exact, images that depend on their arguments alone, and its copy on disk."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import generated
from data.generated import CLASSES, generated_data, render
from data.images import read_image
from data.open import open_data
from data.records import DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data():
    return generated_data(train=120, val=20, test=20)


def test_splits_classes_and_variety(data):
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 120, "val": 20, "test": 20}
    records = data.records("train")
    counts = [len(r.boxes) for r in records]
    assert min(counts) == 0 and max(counts) == 5 and 2 <= np.mean(counts) <= 4
    assert counts.count(0) < 25
    assert set(np.bincount(np.concatenate([r.labels for r in records]), minlength=5)[1:] > 40) == {True}
    assert [r.image_id for r in records] == list(range(1, 121)) and records[0].name == "train/00000.png"
    boxes = np.concatenate([r.boxes for r in records])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 14 and sides.max() <= 111
    assert boxes.min() >= 0 and (boxes[:, 2:] <= [160, 128]).all()


def test_a_box_holds_exactly_the_visible_pixels_of_its_shape(data, monkeypatch):
    """Painted in flat colours on black, each shape's pixels can be found in the picture again."""
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]], dtype=np.float32)
    left = []
    monkeypatch.setattr(generated, "_ground", lambda _, height, width: np.zeros((height, width, 3), np.float32))
    monkeypatch.setattr(generated, "_shape_pixels", lambda _, kind, pixels: np.zeros_like(pixels) + left.pop(0))
    for record in data.records("train"):
        left[:] = colours
        image = render(record).astype(np.float32)
        for box, colour in zip(record.boxes, colours, strict=False):
            rows, columns = np.nonzero(np.abs(image - colour).max(axis=2) < 60)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_an_image_depends_on_its_arguments_alone(data):
    again = generated_data(train=3, val=3, test=3)  # fewer images: the same ones
    for split in ("train", "val", "test"):
        for one, other in zip(data.records(split), again.records(split), strict=False):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(render(one), render(other))
    first = [render(data.records(split)[0]) for split in ("train", "val", "test")]
    first.append(render(generated_data(seed=1, train=1, val=1, test=1).records("train")[0]))
    assert len({image.tobytes() for image in first}) == 4
    assert all(image.dtype == np.uint8 and image.shape == (128, 160, 3) for image in first)


def test_fingerprint_is_of_the_parameters():
    few = {"train": 2, "val": 1, "test": 1}
    prints = [
        generated_data(**few).fingerprint,
        generated_data(**few, seed=1).fingerprint,
        generated_data(**few, size=(128, 128)).fingerprint,
        generated_data(**few | {"train": 3}).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert generated_data(**few).fingerprint == prints[0]


def test_each_class_has_its_own_hues(data):
    """A detector can learn the classes in minutes: hues of two classes overlap little."""
    hues = {label: [] for label in range(1, len(CLASSES) + 1)}
    for record in data.records("train"):
        image = cv2.cvtColor(render(record), cv2.COLOR_RGB2HSV)
        for (x1, y1, x2, y2), label in zip(record.boxes.astype(int), record.labels, strict=True):
            hues[label].append(int(image[(y1 + y2) // 2, (x1 + x2) // 2, 0]))
    for label, hue in enumerate(generated.HUES, start=1):
        away = np.abs((np.array(hues[label]) - hue + 90) % 180 - 90)
        assert np.mean(away < 17) > 0.6  # what is left is hidden at its middle, or a star's rim


def test_the_copy_on_disk_is_the_same_data_set(tmp_path):
    folder = tmp_path / "shapes"
    command = [sys.executable, "-m", "data.generated", str(folder), "--train", "6", "--val", "3", "--test", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}\n"
    read, drawn = open_data(folder), open_data("generated", generated_images=(6, 3, 2))
    assert (read.format, drawn.format, read.classes, read.defects) == ("coco", "generated", drawn.classes, [])
    for split in ("train", "val", "test"):
        for one, other in zip(read.records(split), drawn.records(split), strict=True):
            assert (one.name, one.image_id, one.width, one.height) == (
                other.name,
                other.image_id,
                other.width,
                other.height,
            )
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(read_image(one.path), render(other))
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "is not empty" in refused.stderr and "Traceback" not in refused.stderr


def test_wishes_that_cannot_be_drawn():
    with pytest.raises(DataError, match="too small"):
        generated_data(size=(20, 200))
    with pytest.raises(DataError, match="train needs an image"):
        generated_data(train=0)
