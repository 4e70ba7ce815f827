"""A tenth of what `python -m benchmarks.large_data` measures: memory, and that nothing is lost on the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.large_data import write

# The most that the process ever took beyond its imports, in KiB, and each box of train in the order of its image.
READ = """
import json, resource, sys
from pathlib import Path
from data.readers.coco import CocoFile, read_coco
root = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files = [CocoFile(split="train", path=root / "annotations/instances_train.json", image_folders=[root / "train"])]
(images,) = read_coco(root, files).splits.values()
count = sum(1 for image in images for _ in image.objects)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
json.dump([[each.box, each.class_name] for image in images for each in image.objects], sys.stdout)
"""


@pytest.mark.slow
def test_ninety_thousand_boxes_are_read_in_little_memory(tmp_path):
    write(tmp_path / "large", 10_000, 10, polygons=False)
    process = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "large")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    first, rest = process.stdout.split("\n", 1)
    count, kibibytes = map(int, first.split())
    assert count == 90_000
    assert kibibytes < 48 * 1024  # it takes 28, and json.loads of the file alone 66

    content = json.loads((tmp_path / "large" / "annotations" / "instances_train.json").read_text())
    annotations = sorted(content["annotations"], key=lambda each: each["image_id"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    boxes, classes = zip(*json.loads(rest), strict=True)
    assert list(classes) == [names[each["category_id"]] for each in annotations]
    xywh = np.array([each["bbox"] for each in annotations])
    np.testing.assert_allclose(boxes, np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]))
