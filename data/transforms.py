"""Augmentation presets. Albumentations is used nowhere else."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Its import asks a server for newer versions otherwise.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import yaml
from albumentations.core.type_definitions import Targets

from data.records import DataError

PRESETS = ("none", "flip", "dihedral", "standard", "strong", "lsj")

SMALLEST_SIDE = 0.5  # px; what a crop or a smaller scale leaves of a box below that is nothing to learn from
ROUNDING = 0.002  # px; what a box that keeps its size loses to Albumentations' single precision, at most
SMALLEST_VISIBLE_SHARE = 0.25
FILL = (124, 116, 104)  # ImageNet's mean colour, which the detectors' normalisation maps to 0


class BoxSafeCrop(A.BBoxSafeRandomCrop):
    """A crop that cuts no box and at most a quarter of the image from each side.

    Albumentations' own crops down to the boxes, so that few small ones leave an image of some pixels, or of none
    (it raises), and it loses the fraction of a pixel at a box's far edge.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """The corners of the crop, in pixels."""
        height, width = params["shape"][:2]
        boxes = np.array([box[:4] for box in data["bboxes"]]).reshape(-1, 4)  # in 0..1 of the image
        free = *boxes[:, :2].min(axis=0, initial=1), *(1 - boxes[:, 2:]).min(axis=0, initial=1)
        left, top, right, bottom = (self.py_random.random() * min(max(share, 0), 0.25) for share in free)
        far = math.ceil(width * (1 - right)), math.ceil(height * (1 - bottom))
        return {"crop_coords": (int(width * left), int(height * top), *far)}


class LargeScaleJitter(A.DualTransform):
    """The image at 0.1 to 2 times its size, of which a random part, or beside which a fill colour, makes up its size.

    After "Simple Copy-Paste" (arXiv 2012.07177) and torchvision's ScaleJitter with FixedSizeCrop, but a small
    image lies anywhere, not in the upper left corner. What is enlarged is the part alone: nothing gets larger than the
    image was.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES)

    def __init__(self, scale_range: tuple[float, float] = (0.1, 2.0), fill: tuple[int, ...] = FILL, p: float = 1.0):
        super().__init__(p=p)
        self.scale_range, self.fill = scale_range, fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, list[int]]:
        """(first pixel, pixels) of the part that is taken and of where it goes, by axis: x, y."""
        scale = self.py_random.uniform(*self.scale_range)
        taken, given = [], []
        for side in params["shape"][1::-1]:
            part = max(1, round(side / max(scale, 1)))
            place = max(1, round(side * min(scale, 1)))
            taken.append((self.py_random.randint(0, side - part), part))
            given.append((self.py_random.randint(0, side - place), place))
        return {"taken": taken, "given": given}

    def apply(
        self, img: np.ndarray, taken: list[tuple[int, int]], given: list[tuple[int, int]], **_: Any
    ) -> np.ndarray:
        """The new image, of the same shape."""
        (x, width), (y, height) = taken
        (new_x, new_width), (new_y, new_height) = given
        # The mean of what becomes one pixel; lines and dots would come and go otherwise.
        method = cv2.INTER_AREA if new_width < width or new_height < height else cv2.INTER_LINEAR
        result = np.full_like(img, self.fill)
        result[new_y : new_y + new_height, new_x : new_x + new_width] = cv2.resize(
            img[y : y + height, x : x + width], (new_width, new_height), interpolation=method
        )
        return result

    def apply_to_bboxes(
        self, bboxes: np.ndarray, taken: list[tuple[int, int]], given: list[tuple[int, int]], **params: Any
    ) -> np.ndarray:
        """Boxes in 0..1 of the image, which may leave it."""
        moved = bboxes.copy()
        for axis, side in enumerate(params["shape"][1::-1]):
            (start, length), (new_start, new_length) = taken[axis], given[axis]
            corners = bboxes[:, [axis, axis + 2]] * side
            moved[:, [axis, axis + 2]] = ((corners - start) * (new_length / length) + new_start) / side
        return moved


class Transform:
    """One augmentation pipeline; its result depends on its arguments alone."""

    def __init__(self, steps: Sequence[A.BasicTransform]):
        boxes = A.BboxParams(
            format="pascal_voc", label_fields=["index"], clip=True, min_visibility=SMALLEST_VISIBLE_SHARE
        )
        self.pipeline = A.Compose(steps, bbox_params=boxes)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(image, boxes, labels, kept) of a uint8 (H, W, 3) image with boxes (N, 4) xyxy in absolute pixels.

        `kept` holds the indices of the boxes that are left, in the order of the result: whatever else belongs to
        a box is picked with it. The image's size may change.
        """
        self._seed(seed)
        index, before = np.arange(len(boxes)), _smaller_sides(np.asarray(boxes).reshape(-1, 4))
        result = self.pipeline(image=image, bboxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4), index=index)
        height, width = result["image"].shape[:2]
        boxes = np.asarray(result["bboxes"], dtype=np.float64).reshape(-1, 4).clip(0, [width, height, width, height])
        kept = np.asarray(result["index"], dtype=np.int64)  # label fields come back as floats
        big_enough = _smaller_sides(boxes) >= np.minimum(SMALLEST_SIDE, before[kept] - ROUNDING)
        boxes, kept = boxes[big_enough], kept[big_enough]
        return np.ascontiguousarray(result["image"]), boxes, np.asarray(labels, dtype=np.int64)[kept], kept

    def _seed(self, seed: int) -> None:
        # Compose gives every step the same seed, so that all of them draw alike (only flipped images get blurred).
        for number, step in enumerate(self.pipeline.transforms):
            step.set_random_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))


def _smaller_sides(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1)


class UserTransform(Transform):
    """A pipeline from a file, whose faults are its author's: DataError says what went wrong."""

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As Transform's."""
        height, width = image.shape[:2]
        where = f"the --augmentation file, on {width}×{height} pixels"
        try:
            result = super().__call__(image, boxes, labels, seed)
        except Exception as error:  # whatever its steps raise
            raise DataError(f"{where}: {type(error).__name__}: {error}") from error
        pixels = result[0]
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            got = f"{pixels.dtype} of shape {tuple(pixels.shape)}"
            raise DataError(
                f"{where}: must leave uint8 (H, W, 3), not {got}: take out Normalize, ToFloat, ToTensorV2 …"
            )
        return result


def read_augmentation(word: str | None) -> str | None:
    """--augmentation as it is kept in a run's configuration: a preset's name, or a file's pipeline as JSON text."""
    if word is None or word in PRESETS or word.startswith("{"):
        return word
    path = Path(word)
    if not path.is_file():
        raise DataError(
            f"There is no augmentation {word!r}. There are: {', '.join(PRESETS)}, "
            "or a file that albumentations.save wrote (JSON or YAML)"
        )
    try:
        text = path.read_text(encoding="utf-8")
        pipeline = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
        text = json.dumps(pipeline, sort_keys=True)
        build_transform(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no Albumentations pipeline: {error}") from error
    return text


def build_transform(name: str) -> Transform | None:
    """The Transform of a preset, or of a pipeline as JSON text; None for "none"."""
    if name.startswith("{"):
        return UserTransform(_steps(json.loads(name)))
    if name not in PRESETS:
        raise DataError(f"There is no augmentation {name!r}. There are: {', '.join(PRESETS)}")
    return None if name == "none" else Transform(STEPS[name]())


def _steps(pipeline: dict[str, Any]) -> list[A.BasicTransform]:
    """The steps of a serialised pipeline; its own settings for boxes give way to Transform's."""
    try:
        loaded = A.from_dict(pipeline)
    except Exception as error:  # Albumentations raises whatever the content leads to
        raise DataError(
            f"The --augmentation file is no Albumentations pipeline: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, A.Compose):  # one step, or OneOf, Sequential …
        return [loaded]
    steps = list(loaded.transforms)
    return steps if loaded.p == 1 else [A.Sequential(steps, p=loaded.p)]


def _flip() -> list[A.BasicTransform]:
    return [A.HorizontalFlip(p=0.5)]


def _dihedral() -> list[A.BasicTransform]:
    """The 8 symmetries of a square, for images without an up: microscopes, aerial photos."""
    return [A.D4(p=1.0)]


def _standard() -> list[A.BasicTransform]:
    """Mild changes of place, size and light that most photos allow."""
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.8, 1.25), translate_percent=(-0.1, 0.1), keep_ratio=True, fill=FILL, p=0.5),
        A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=0.5),
    ]


def _strong() -> list[A.BasicTransform]:
    """For small data sets and long schedules: crops that keep every box, and harder changes of scale and colour."""
    return [
        A.HorizontalFlip(p=0.5),
        BoxSafeCrop(p=0.3),
        A.Affine(scale=(0.5, 1.5), translate_percent=(-0.2, 0.2), keep_ratio=True, fill=FILL, p=0.7),
        A.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.5, 1.5), hue=(-0.06, 0.06), p=0.8),
        # Grey; A.ToGray loses an axis of images that are one pixel wide.
        A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=(0, 0), hue=(0, 0), p=0.1),
        A.GaussianBlur(sigma_limit=(0.3, 1.5), p=0.15),
        A.GaussNoise(std_range=(0.01, 0.06), p=0.15),
    ]


def _lsj() -> list[A.BasicTransform]:
    """Large-scale jitter: objects at a tenth to twice their size, for long schedules."""
    return [A.HorizontalFlip(p=0.5), LargeScaleJitter()]


STEPS = {"flip": _flip, "dihedral": _dihedral, "standard": _standard, "strong": _strong, "lsj": _lsj}
