"""Export to COCO, and round trips between formats: the same boxes, to each format's precision."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.export import export_coco
from data.open import open_data
from data.records import DataError
from data_options import DataOptions
from tests.conftest import REAL_DATA, needs_real_data
from tests.test_data_readers import coco, write_coco

SIZES = ((40, 30), (333, 517))
NAMES = ("cat", "größer Hund", "a,b;c")


@st.composite
def data_sets(draw):
    """[(size of the image, [(class, x1, y1, x2, y2)])], boxes with six decimals inside the image."""
    images = []
    for _ in range(draw(st.integers(2, 4))):
        width, height = size = draw(st.sampled_from(SIZES))
        objects = []
        for _ in range(draw(st.integers(0, 3))):
            name = draw(st.sampled_from(NAMES))
            x1, x2 = sorted(draw(st.tuples(*[st.integers(0, width * 10**6)] * 2)))
            y1, y2 = sorted(draw(st.tuples(*[st.integers(0, height * 10**6)] * 2)))
            if x2 - x1 >= 50_000 and y2 - y1 >= 50_000:
                objects.append((name, x1 / 10**6, y1 / 10**6, x2 / 10**6, y2 / 10**6))
        images.append((size, objects))
    images[0][1].extend((name, 1.0, 2.0, 3.5, 4.25) for name in NAMES)  # every class is there
    return images


def write_images(folder, images):
    """Photos that differ by their pixels as well."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (size, _) in enumerate(images):
        path = folder / f"Bild {number} #ä.png"
        if not path.exists() or Image.open(path).size != size:
            Image.new("L", size, number).save(path)
        yield number, path, size


def as_coco(root, images):
    content = {"images": [], "annotations": [], "categories": [{"id": 7 - i, "name": n} for i, n in enumerate(NAMES)]}
    for number, path, _ in write_images(root / "images", images):
        content["images"].append({"id": number, "file_name": path.name})
        for name, x1, y1, x2, y2 in images[number][1]:
            category = 7 - NAMES.index(name)
            content["annotations"].append(
                {"image_id": number, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )
    (root / "result.json").write_text(json.dumps(content))


def as_voc(root, images):
    (root / "Annotations").mkdir(parents=True)
    for number, path, (width, height) in write_images(root / "JPEGImages", images):
        objects = "".join(
            f"<object><bndbox><ymax>{y2}</ymax><xmax>{x2}</xmax><ymin>{y1}</ymin><xmin>{x1}</xmin></bndbox>"
            f"<name>{name}</name></object>"
            for name, x1, y1, x2, y2 in images[number][1]
        )
        size = f"<size><height>{height}</height><width>{width}</width></size>"
        text = f"<annotation>{size}<filename>{path.name}</filename>{objects}</annotation>"
        (root / "Annotations" / f"{path.stem}.xml").write_text(text, encoding="utf-8")


def as_yolo(root, images):
    (root / "labels").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    for number, path, (width, height) in write_images(root / "images", images):
        rows = [
            f"{NAMES.index(name)} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
            f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}"
            for name, x1, y1, x2, y2 in images[number][1]
        ]
        (root / "labels" / f"{path.stem}.txt").write_text("\n".join(rows))


def as_csv(root, images):
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for number, path, (width, height) in write_images(root / "images", images):
        rows = images[number][1] or [("", "", "", "", "")]
        lines += [f'{path.name},{width},{height},"{name}",{a},{b},{c},{d}' for name, a, b, c, d in rows]
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")


def everything(data):
    """{file name: [(class, box)]} of all splits."""
    return {
        record.name.rpartition("/")[2]: sorted(
            (data.classes[label - 1], *box)
            for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True)
        )
        for records in data.splits.values()
        for record in records
    }


@settings(max_examples=10)
@given(images=data_sets())
def test_the_same_boxes_come_from_every_format_and_from_their_export(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("formats")
    wanted = {f"Bild {number} #ä.png": sorted(objects) for number, (_, objects) in enumerate(images)}
    for write, name, tolerance in (
        (as_coco, "coco", 1e-9),
        (as_voc, "voc", 0),
        (as_yolo, "yolo", 1e-6),
        (as_csv, "csv", 0),
    ):
        write(folder / name, images) if name in ("voc", "yolo") else write(_made(folder / name), images)
        data = open_data(folder / name)
        changed = [each for each in data.defects if each.severity != "note" and not each.action.endswith("kept")]
        assert (data.format, changed, set(data.classes)) == (name, [], set(NAMES))
        found = everything(data)
        assert found.keys() == wanted.keys()
        for file, objects in wanted.items():
            assert [each[0] for each in found[file]] == [each[0] for each in objects]
            boxes = [np.array([each[1:] for each in one]).reshape(-1, 4) for one in (found[file], objects)]
            np.testing.assert_allclose(*boxes, rtol=0, atol=tolerance)
        export_coco(data, folder / f"{name} export")
        again = open_data(folder / f"{name} export")
        assert (again.format, again.classes) == ("coco", data.classes)
        for split, records in data.splits.items():
            for before, after in zip(records, again.records(split), strict=True):
                assert (before.image_id, before.width, before.height) == (after.image_id, after.width, after.height)
                assert before.path == after.path.resolve() and before.sha256 == after.sha256
                np.testing.assert_array_equal(before.labels, after.labels)
                np.testing.assert_allclose(before.boxes, after.boxes, rtol=0, atol=1e-12)
                np.testing.assert_allclose(before.area, after.area, rtol=1e-12)


def _made(folder):
    folder.mkdir()
    return folder


def test_export_keeps_areas_crowds_and_unused_classes_and_says_what_it_wrote(tmp_path):
    content = coco([(0, "a.jpg"), (1, "b.jpg")], [(0, 0, [0, 0, 10, 10])], categories=[(0, "zero"), (5, "never")])
    content["annotations"][0] |= {"area": 42.5, "iscrowd": 1}
    write_coco(
        tmp_path / "data", {"train": content, "val": coco([(0, "c.jpg")], categories=[(0, "zero"), (5, "never")])}
    )
    data = open_data(tmp_path / "data")
    export_coco(data, tmp_path / "folder")
    assert open_data(tmp_path / "folder").fingerprint == data.fingerprint
    files = export_coco(data, tmp_path / "here.json")
    assert [path.name for path in files] == ["here_train.json", "here_val.json"]
    written = json.loads(files[0].read_text())
    assert written["images"][0]["file_name"] == "data/train2017/a.jpg"
    assert written["categories"] == [{"id": 1, "name": "zero"}, {"id": 2, "name": "never"}]
    (annotation,) = written["annotations"]
    assert (annotation["area"], annotation["iscrowd"], annotation["category_id"]) == (42.5, 1, 1)
    (again,) = export_coco(
        open_data(files[0].parent, DataOptions(val_annotations=str(files[1]))), tmp_path / "one.json"
    )
    assert again.name == "one.json" and json.loads(again.read_text())["images"][0]["file_name"] == "data/val2017/c.jpg"
    with pytest.raises(DataError, match=r"here_train\.json is there already"):
        export_coco(data, tmp_path / "here.json")
    with pytest.raises(DataError, match="is drawn"):
        export_coco(open_data("generated", generated_images=(2, 1, 1)), tmp_path / "drawn")


@needs_real_data
@pytest.mark.slow
def test_real_data_keep_their_fingerprint(tmp_path):
    data = open_data(Path(REAL_DATA) / "facemask")
    export_coco(data, tmp_path)
    assert open_data(tmp_path).fingerprint == data.fingerprint
