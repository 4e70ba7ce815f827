"""A data set as COCO JSON files, for other tools; images stay where they are."""

import json
import math
import os
from pathlib import Path
from typing import Any

from data.detection_data import DetectionData
from data.records import DataError, Record


def export_coco(data: DetectionData, to: Path) -> list[Path]:
    """Write a JSON for each split and return them: FOLDER/instances_SPLIT.json, or for FILE.json FILE_SPLIT.json.

    With one split FILE.json itself is written. The images' file names lead from the JSON's folder to where they are;
    labels become the category ids, 1..C. Opened again, the files give the same records and classes. DataError where
    the images are drawn, so that there are no files, or where a file of that name is there already.
    """
    if any(record.path is None for records in data.splits.values() for record in records):
        raise DataError(
            f"{data.name} is drawn, not read; this writes it with its images: python -m data.generated FOLDER"
        )
    to = Path(to).expanduser().absolute()
    if to.suffix.lower() != ".json":
        files = {split: to / f"instances_{split}.json" for split in data.splits}
    elif len(data.splits) == 1:
        files = dict.fromkeys(data.splits, to)
    else:
        files = {split: to.with_name(f"{to.stem}_{split}.json") for split in data.splits}
    there = next((path for path in files.values() if path.exists()), None)
    if there:
        raise DataError(f"{there} is there already. Remove it, or export to another place.")
    for split, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _content(data, data.records(split), path.parent)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return list(files.values())


def _content(data: DetectionData, records: list[Record], folder: Path) -> dict[str, Any]:
    images, annotations = [], []
    for record in records:
        images.append(
            {
                "id": record.image_id,
                "file_name": _file_name(record.path, folder),
                "width": record.width,
                "height": record.height,
            }
        )
        for box, label, iscrowd, area in zip(
            record.boxes.tolist(),
            record.labels.tolist(),
            record.iscrowd.tolist(),
            record.area.tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": label,
                    "bbox": [x1, y1, _extent(x1, x2), _extent(y1, y2)],
                    "area": area,
                    "iscrowd": iscrowd,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(data.classes, start=1)]
    return {
        "info": {"description": data.name},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _file_name(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _extent(start: float, end: float) -> float:
    """end - start, so that start + it is `end` to the last bit wherever a number does that; a short one if possible."""
    extent = end - start
    candidates = (round(extent, 6), extent, math.nextafter(extent, math.inf), math.nextafter(extent, -math.inf))
    return next((each for each in candidates if start + each == end), extent)
