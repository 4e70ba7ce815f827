"""Results of infer.py as JSON lines, CSV or COCO. A writer takes results as they come; failures are named elsewhere."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

Results = Iterable[dict[str, Any]]


def write_json(results: Results, classes: Sequence[str], file: TextIO) -> None:
    """A line an image or frame, failures too."""
    for result in results:
        print(json.dumps(result), file=file, flush=True)


def write_csv(results: Results, classes: Sequence[str], file: TextIO) -> None:
    """A row a detection; the column `frame` is empty for images."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "frame", "label", "score", "x1", "y1", "x2", "y2"])
    for result in results:
        for one in result.get("detections", []):
            writer.writerow([result["image"], result.get("frame"), one["label"], one["score"], *one["box"]])
        file.flush()


def write_coco(results: Results, classes: Sequence[str], file: TextIO) -> None:
    """One COCO document, at the end; its annotations have scores, so that pycocotools' loadRes takes them."""
    pictures, annotations = [], []
    for result in results:
        if "error" in result:
            continue
        frame = {key: result[key] for key in ("frame", "seconds") if key in result}
        size = {"width": result["width"], "height": result["height"]}
        pictures.append({"id": len(pictures) + 1, "file_name": result["image"], **size, **frame})
        for one in result["detections"]:
            x1, y1, x2, y2 = one["box"]
            width, height = round(x2 - x1, 2), round(y2 - y1, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(pictures),
                    "category_id": classes.index(one["label"]) + 1,
                    "bbox": [x1, y1, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": one["score"],
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
    print(json.dumps({"info": {}, "images": pictures, "categories": categories, "annotations": annotations}), file=file)


WRITERS: dict[str, Callable[[Results, Sequence[str], TextIO], None]] = {
    "json": write_json,
    "coco": write_coco,
    "csv": write_csv,
}
