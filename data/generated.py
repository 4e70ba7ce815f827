"""A data set drawn on the fly: coloured shapes on textured grounds, a few milliseconds an image, nothing on disk.

The class is the shape, and each has its own range of hues, so that a detector learns them within minutes on a CPU;
texture, size, rotation and place are noise. Shapes hide one another, but never more
than 60 %, so everything that is drawn is annotated; a box holds exactly the visible pixels of its shape.
`python -m data.generated FOLDER` writes the same images as a COCO data set.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.columns import Records
from data.detection_data import DetectionData
from data.records import DataError, Record

VERSION = 2  # part of every fingerprint: raise it with any change to what is drawn
CLASSES = ("circle", "square", "star", "triangle")
HUES = (0, 55, 115, 150)  # of OpenCV's 180, in the order of the classes: red, green, blue, violet
HUE_SPREAD = 8
SPLITS = ("train", "val", "test")
LARGEST_OBJECTS = 5
EMPTY_SHARE = 0.08
LONGER_SIDE = (28, 110)  # px
VISIBLE_SHARE = 0.4
SMALLEST_SIDE = 14  # px of what is visible


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that an image is drawn from; its str() is the image's identity in fingerprints."""

    seed: int
    split: str
    index: int
    height: int
    width: int
    version: int = VERSION


def generated_data(
    *, seed: int = 0, train: int = 400, val: int = 100, test: int = 100, size: tuple[int, int] = (128, 160)
) -> DetectionData:
    """The drawn data set: so many images a split, of `size` (height, width) pixels; equal arguments, equal images."""
    height, width = size
    if min(size) < 2 * LONGER_SIDE[0]:
        raise DataError(f"Images of {height}×{width} are too small to draw in: at least {2 * LONGER_SIDE[0]} pixels.")
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(counts.values()) < 0 or train == 0:
        raise DataError(f"Cannot draw a data set of {counts}: train needs an image, and no split fewer than none.")
    splits = {
        split: Records.of(
            _record(Scene(seed=seed, split=split, index=index, height=height, width=width)) for index in range(count)
        )
        for split, count in counts.items()
        if count
    }
    return DetectionData(
        name="generated",
        format="generated",
        root=None,
        classes=CLASSES,
        splits=splits,
        split_rule=f"drawn from seed {seed}, each split with its own images",
    )


def render(record: Record) -> np.ndarray:
    """uint8 (H, W, 3) RGB pixels of a drawn record."""
    scene = record.source
    label_map, kinds = _layout(scene)
    random = _random(scene, stream=1)
    image = _ground(random, scene.height, scene.width)
    for number, kind in enumerate(kinds, start=1):
        mask = label_map == number
        image[mask] = _shape_pixels(random, kind, image[mask])
    grain = random.standard_normal((scene.height, scene.width, 1), dtype=np.float32)
    image += grain * np.float32(random.uniform(2, 7))
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _record(scene: Scene) -> Record:
    label_map, kinds = _layout(scene)
    boxes = np.array([_extent(label_map == number) for number in range(1, len(kinds) + 1)], dtype=np.float64)
    boxes = boxes.reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Record(
        image_id=scene.index + 1,
        name=f"{scene.split}/{scene.index:05d}.png",
        path=None,
        width=scene.width,
        height=scene.height,
        boxes=boxes,
        labels=np.array(kinds, dtype=np.int64) + 1,
        iscrowd=np.zeros(len(boxes), dtype=np.uint8),
        area=sides[:, 0] * sides[:, 1],
        source=scene,
    )


def _random(scene: Scene, *, stream: int) -> np.random.Generator:
    """Layout (0) and paint (1) have their own streams, so that a box never depends on how much paint was drawn."""
    return np.random.default_rng(
        [scene.version, scene.seed, SPLITS.index(scene.split), scene.index, scene.height, scene.width, stream]
    )


def _layout(scene: Scene) -> tuple[np.ndarray, list[int]]:
    """(int map of which shape is visible where, 0 for the ground; the kinds of shapes 1..N)."""
    random = _random(scene, stream=0)
    label_map = np.zeros((scene.height, scene.width), np.uint8)
    kinds, whole_areas = [], []
    wanted = 0 if random.random() < EMPTY_SHARE else random.integers(1, LARGEST_OBJECTS + 1)
    for _ in range(4 * wanted):  # a shape that would hide another one is tried elsewhere
        kind = int(random.integers(len(CLASSES)))
        mask = _mask(random, kind, scene.height, scene.width)
        candidate = np.where(mask, np.uint8(len(kinds) + 1), label_map)
        if _all_visible(candidate, [*whole_areas, mask.sum()]):
            label_map = candidate
            kinds.append(kind)
            whole_areas.append(mask.sum())
        if len(kinds) == wanted:
            break
    return label_map, kinds


def _all_visible(label_map: np.ndarray, whole_areas: Sequence[int]) -> bool:
    visible_areas = np.bincount(label_map.ravel(), minlength=len(whole_areas) + 1)[1:]
    if np.any(visible_areas < VISIBLE_SHARE * np.array(whole_areas)):
        return False
    extents = [_extent(label_map == number) for number in range(1, len(whole_areas) + 1)]
    return all(min(x2 - x1, y2 - y1) >= SMALLEST_SIDE for x1, y1, x2, y2 in extents)


def _mask(random: np.random.Generator, kind: int, height: int, width: int) -> np.ndarray:
    """bool (H, W) of one whole shape, somewhere in the image."""
    outline = _outline(CLASSES[kind])
    angle = random.uniform(0, 2 * np.pi)
    outline = outline @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline -= outline.min(axis=0)
    longest = min(LONGER_SIDE[1], 0.57 * min(height, width))
    side = np.exp(random.uniform(np.log(LONGER_SIDE[0]), np.log(longest)))
    outline *= (side - 1) / outline.max()
    room = np.array([width, height]) - 1 - outline.max(axis=0)
    points = np.round(outline + random.uniform(0, 1, 2) * room).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points], 1)
    return mask.astype(bool)


def _outline(class_name: str) -> np.ndarray:
    """float (points, 2) of a shape around the origin."""
    corners = {"circle": 48, "square": 4, "star": 10, "triangle": 3}[class_name]
    angles = 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, 0.42, 1.0) if class_name == "star" else np.ones(corners)
    return radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the mask's pixels, as edges: the last pixel's right and lower edge are the box's."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _ground(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 (H, W, 3): soft clouds of colour, stripes across them."""
    clouds = random.uniform(-45, 45, (random.integers(3, 9), random.integers(3, 9), 3)) + random.uniform(70, 185, 3)
    ground = cv2.resize(clouds.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    angle, wavelength = random.uniform(0, np.pi), random.uniform(5, 40)
    across = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) * 2 * np.pi / wavelength)
    down = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle) * 2 * np.pi / wavelength)
    stripes = np.sin(down[:, None] + across)[:, :, None]
    ground += stripes * random.uniform(-12, 12, 3).astype(np.float32)
    return ground


def _shape_pixels(random: np.random.Generator, kind: int, ground_pixels: np.ndarray) -> np.ndarray:
    """Colours for a shape's pixels, lightly speckled: the first drawn that stands out from the ground below."""
    ground = ground_pixels.mean(axis=0)
    hues = (HUES[kind] + random.normal(0, HUE_SPREAD, 6)) % 180
    colours = np.column_stack([hues, random.uniform(120, 255, 6), random.uniform(90, 255, 6)]).astype(np.uint8)
    colours = cv2.cvtColor(colours[None], cv2.COLOR_HSV2RGB)[0].astype(np.float64)
    colour = colours[np.argmax(np.abs(colours - ground).sum(axis=1) > 150)]
    speckle = random.standard_normal((len(ground_pixels), 1), dtype=np.float32) * np.float32(random.uniform(0, 10))
    return colour.astype(np.float32) + speckle


def write_coco(data: DetectionData, folder: Path | str) -> None:
    """Write a drawn data set as COCO: annotations/instances_SPLIT.json and the images of each split in SPLIT/."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Give a new folder, or remove it: rm -r {folder}")
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, records in data.splits.items():
        (folder / split).mkdir()
        for record in records:
            bgr = np.ascontiguousarray(render(record)[:, :, ::-1])
            if not cv2.imwrite(str(folder / record.name), bgr):
                raise OSError(f"could not write {folder / record.name}")
        text = json.dumps(_coco_content(records), indent=1)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def _coco_content(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    images, annotations = [], []
    for record in records:
        file_name = record.name.rpartition("/")[2]
        images.append({"id": record.image_id, "file_name": file_name, "width": record.width, "height": record.height})
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the drawn data set to a folder."""
    parser = argparse.ArgumentParser(prog="python -m data.generated", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for split, count in zip(SPLITS, (400, 100, 100), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, metavar="IMAGES")
    options = parser.parse_args(arguments)
    try:
        data = generated_data(seed=options.seed, train=options.train, val=options.val, test=options.test)
        write_coco(data, options.folder)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(data.describe()), file=sys.stderr)
    print(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
