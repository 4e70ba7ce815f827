"""Readers: what is recognised, what is refused by name, what is kept, and that reading needs no torch."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.open import open_data
from data.records import DataError
from tests.conftest import REAL_DATA, needs_real_data


def write_image(path, size=(40, 30), color="", **options):
    """An image that looks like no other of another name, or of the same name and another color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(list(f"{path.name}{color}".encode())).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(cells).resize(size).save(path, **options)


def coco(images, annotations=(), categories=((1, "cat"), (3, "dog"))):
    """COCO content from (id, file name) images, (image id, category id, bbox) annotations and categories."""
    return {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in images],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": bbox}
            for number, (image, category, bbox) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }


def write_coco(root, split_contents, folder="{split}2017", json_name="annotations/instances_{split}2017.json"):
    for split, content in split_contents.items():
        path = root / json_name.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in content["images"]:
            write_image(root / folder.format(split=split) / image["file_name"])


def write_voc(root, xmls, lists=None):
    """Pascal VOC from {stem: [(class, xmin, ymin, xmax, ymax)]} and {split: stems}."""
    (root / "Annotations").mkdir(parents=True)
    for stem, objects in xmls.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", objects))
    for split, stems in (lists or {}).items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems) + "\n")


def voc_xml(filename, objects, size=(40, 30)):
    text = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{text}</annotation>"


TRAIN = coco([(0, "b.jpg"), (7, "a.jpg"), (8, "c.jpg")], [(0, 3, [1, 2, 10, 5]), (7, 1, [0, 0, 30, 20])])
TWO_ON_ONE = coco([(0, "b.jpg"), (7, "a.jpg")], [(0, 3, [1, 2, 10, 5]), (0, 1, [0, 0, 9, 9]), (7, 1, [0, 0, 4, 3])])
VAL = coco([(0, "z.jpg")], [(0, 1, [5, 5, 5, 5])])


def test_coco_folder_closes_id_gaps_numbers_images_by_name_and_keeps_empty_ones(tmp_path):
    write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")  # COCO's own folder has these
    data = open_data(tmp_path)
    assert (data.format, data.classes, list(data.splits)) == ("coco", ("cat", "dog"), ["train", "val"])
    records = data.records("train")
    assert [(r.image_id, r.name) for r in records] == [(i, f"train2017/{n}.jpg") for i, n in enumerate("abc", 1)]
    np.testing.assert_array_equal(records[1].boxes, [[1, 2, 11, 7]])
    assert [r.labels.tolist() for r in records] == [[1], [2], []]
    assert records[1].boxes.dtype == np.float64 and records[2].boxes.shape == (0, 4)
    assert records[1].area.tolist() == [50] and records[1].iscrowd.tolist() == [0]
    assert data.defects == [] and data.split_rule == "the data set's own splits"
    assert "train: 3 images, 2 boxes, 1 images without objects" in "\n".join(data.describe())


def test_category_0_is_a_class_and_area_and_crowds_are_kept(tmp_path):
    content = coco([(0, "a.jpg"), (1, "b.jpg")], [(0, 0, [0, 0, 10, 10])], categories=[(0, "zero"), (5, "never")])
    content["annotations"][0] |= {"area": 42.5, "iscrowd": 1, "segmentation": {"counts": "x", "size": [30, 40]}}
    write_coco(tmp_path, {"train": content, "val": content})
    data = open_data(tmp_path)
    record = data.records("train")[0]
    assert data.classes == ("zero", "never")
    assert (record.labels.tolist(), record.area.tolist(), record.iscrowd.tolist()) == ([1], [42.5], [1])


def test_roboflow_layout_and_its_placeholder_category(tmp_path):
    categories = [(0, "animals"), (1, "cat"), (2, "dog")]
    for split in ("train", "valid", "test"):
        content = coco([(0, f"{split}.jpg")], [(0, 2, [1, 1, 5, 5])], categories)
        for category in content["categories"]:
            category["supercategory"] = "none" if category["id"] == 0 else "animals"
        write_coco(tmp_path, {split: content}, "{split}", "{split}/_annotations.coco.json")
    data = open_data(tmp_path)
    assert sorted(data.splits) == ["test", "train", "val"]
    assert data.classes == ("cat", "dog")
    assert data.records("val")[0].name == "valid/valid.jpg"
    assert {(d.kind, d.severity) for d in data.defects} == {("placeholder-category", "warning")}


def test_one_json_is_split_stably_and_defects_follow_their_image(tmp_path):
    images = [(i, f"{i:03d}.jpg") for i in range(60)]
    boxes = [(i, 1, box) for i in range(60) for box in ([9, 9, 0, 5], [28, 18, 9, 9])]
    write_coco(tmp_path, {"all": coco(images, boxes)}, "images", "labels.json")
    whole, by_file = open_data(tmp_path), open_data(tmp_path / "labels.json")
    names = {r.name for r in whole.records("val")}
    assert names == {r.name for r in by_file.records("val")} and 4 <= len(names) <= 22
    assert names.isdisjoint(r.name for r in whole.records("train"))
    assert [r.image_id for r in whole.records("val")] == list(range(1, len(names) + 1))
    assert "split off by us" in whole.split_rule
    assert {d.file for d in whole.defects if d.split == "val" and d.file} == names

    fewer = coco(images[:30])  # an image stays where it is when others leave
    (tmp_path / "labels.json").write_text(json.dumps(fewer))
    assert {r.name for r in open_data(tmp_path).records("val")} == {n for n in names if int(n[7:10]) < 30}


def test_versions_of_one_photo_stay_in_one_split(tmp_path):
    names = [f"{photo}_jpg.rf.{version:032x}.jpg" for photo in range(12) for version in range(3)]
    write_coco(tmp_path, {"all": coco(list(enumerate(names)))}, "images", "labels.json")
    data = open_data(tmp_path)
    photos = [{r.name.split("_jpg")[0] for r in data.records(split)} for split in ("train", "val")]
    assert photos[0].isdisjoint(photos[1]) and all(photos)

    write_coco(tmp_path, {"all": coco(list(enumerate(names[:3])))}, "images", "labels.json")
    with pytest.raises(DataError, match="cannot be made of one photo"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("bbox", "kind", "kept"),
    [
        ([5, 5, 0, 3], "box-no-size", None),
        ([5, 5, 4, -3], "box-no-size", None),
        ([50, 5, 4, 3], "box-outside", None),
        ([30, 20, 20, 5], "box-over-edge", [30, 20, 40, 25]),
        ([-4, -2, 10, 10], "box-over-edge", [0, 0, 6, 8]),
        ([float("nan"), 1, 2, 3], "box-not-finite", None),
        ([1, 1, float("inf"), 3], "box-not-finite", None),
        ([1, 2, 3], "box-malformed", None),
        (None, "box-malformed", None),
    ],
)
def test_bad_boxes_are_named_and_the_image_is_kept(tmp_path, bbox, kind, kept):
    content = coco([(4, "a.jpg")], [(4, 1, [1, 1, 2, 2]), (4, 3, bbox)])
    write_coco(tmp_path, {"train": content, "val": VAL})
    data = open_data(tmp_path)
    (defect,) = data.defects
    assert (defect.kind, defect.severity, defect.split) == (kind, "warning", "train")
    assert (defect.file, defect.object) == ("train2017/a.jpg", "annotation 1 (dog)")
    assert defect.file in str(defect) and defect.action in str(defect)
    boxes = data.records("train")[0].boxes.tolist()
    assert boxes == [[1, 1, 3, 3]] + ([kept] if kept else [])


def test_an_annotation_without_its_image_is_an_orphan(tmp_path):
    write_coco(tmp_path, {"train": coco([(1, "a.jpg")], [(99, 1, [1, 1, 2, 2])]), "val": VAL})
    (defect,) = open_data(tmp_path).defects
    assert (defect.kind, defect.object) == ("orphan-annotation", "annotation 0 (cat)")


def test_coco_mistakes_are_refused_with_the_place(tmp_path):
    def refusal(train, val=VAL):
        write_coco(tmp_path, {"train": train, "val": val})
        with pytest.raises(DataError) as refused:
            open_data(tmp_path)
        assert refused.value.exit_code == 2
        return str(refused.value)

    assert "annotation 0" in refusal(coco([(1, "a.jpg")], [(1, 2, [1, 1, 2, 2])]))
    assert "twice" in refusal(coco([(1, "a.jpg"), (2, "a.jpg")]))
    assert "another image has the id 1" in refusal(coco([(1, "a.jpg"), (1, "b.jpg")]))
    assert "two categories" in refusal(coco([(1, "a.jpg")], categories=[(1, "cat"), (2, "cat")]))
    message = refusal(TRAIN, coco([(1, "z.jpg")], [(1, 3, [1, 1, 2, 2])], categories=[(1, "cat"), (3, "cow")]))
    assert "(cow)" in message and "dog" in message
    assert "no list 'categories'" in refusal(TRAIN | {"categories": None})
    (tmp_path / "annotations" / "instances_train2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_train2017\.json is not JSON"):
        open_data(tmp_path)


def test_missing_and_unreadable_images_are_named_and_counted(tmp_path):
    write_coco(tmp_path, {"train": coco([(i, f"{i}.jpg") for i in range(8)]), "val": VAL})
    for i in range(7):
        (tmp_path / "train2017" / f"{i}.jpg").unlink()
    with pytest.raises(
        DataError, match=r"(?s)7 image-missing: train: 0\.jpg: there is no such file in .*train2017.*also 1\.jpg"
    ):
        open_data(tmp_path)
    for i in range(7):
        (tmp_path / "train2017" / f"{i}.jpg").write_text("no image")
    with pytest.raises(
        DataError, match=r"7 image-unreadable: train: train2017/0\.jpg: Cannot read the image .*it is not an image"
    ):
        open_data(tmp_path)


def test_a_size_that_disagrees_with_the_file_is_an_error_and_exif_is_seen(tmp_path):
    write_coco(tmp_path, {"train": coco([(1, "a.jpg"), (2, "b.jpg")]), "val": VAL})
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "train2017" / "a.jpg", exif=exif)  # annotated 40×30, shown as 30×40
    data = open_data(tmp_path)
    defect, turned = data.defects
    assert (turned.kind, turned.severity) == ("exif-turned", "note")
    assert (defect.kind, defect.severity, defect.file) == ("size-differs", "error", "train2017/a.jpg")
    assert "EXIF" in defect.detail
    assert (data.records("train")[0].width, data.records("train")[0].height) == (30, 40)


def test_an_image_in_two_splits_is_an_error(tmp_path):
    write_coco(tmp_path, {"train": TRAIN, "val": coco([(1, "a.jpg")])}, "images")
    (defect,) = open_data(tmp_path).defects
    assert (defect.kind, defect.severity, defect.file) == ("image-in-two-splits", "error", "images/a.jpg")


def test_voc_uses_coordinates_as_they_are_and_keeps_difficult_objects(tmp_path):
    xmls = {"b": [("dog", 1, 1, 40, 30)], "a": [("cat", 2.5, 3, 9.25, 8)], "c": [], "d": [("cat", 1, 1, 2, 2)]}
    write_voc(tmp_path / "VOC2007", xmls, {"train": ["b", "a.jpg"], "val": ["c  1"], "trainval": ["a", "b", "c"]})
    for where in (tmp_path, tmp_path / "VOC2007"):
        data = open_data(where)
        assert (data.format, data.classes, data.root) == ("voc", ("cat", "dog"), tmp_path / "VOC2007")
        a, b = data.records("train")
        assert (a.name, b.name) == ("JPEGImages/a.jpg", "JPEGImages/b.jpg")
        assert a.boxes.tolist() == [[2.5, 3, 9.25, 8]] and b.boxes.tolist() == [[1, 1, 40, 30]]
        assert (a.labels.tolist(), b.labels.tolist(), b.iscrowd.tolist()) == ([1], [2], [0])
        assert [len(r.boxes) for r in data.records("val")] == [0]
        (defect,) = data.defects
        assert (defect.kind, defect.file) == ("orphan-annotation", "Annotations/d.xml")


def test_voc_without_lists_is_split_and_images_without_xml_are_named(tmp_path):
    write_voc(tmp_path, {f"{i:02d}": [("cat", 1, 1, 5, 5)] for i in range(20)})
    write_image(tmp_path / "JPEGImages" / "extra.png")
    data = open_data(tmp_path)
    assert sum(len(records) for records in data.splits.values()) == 20 and set(data.splits) == {"train", "val"}
    assert [(d.kind, d.file) for d in data.defects] == [("image-without-annotation", "JPEGImages/extra.png")]


def test_voc_mistakes(tmp_path):
    write_voc(tmp_path, {"a": [("cat", 1, 1, 5, 5)], "b": [("cat", 5, 5, 5, 9)]}, {"train": ["a"], "val": ["b"]})
    xml = tmp_path / "Annotations" / "a.xml"
    xml.write_text(voc_xml("other.png", [("cat", 1, 1, 5, 5)], size=(0, 0)))
    data = open_data(tmp_path)
    assert [(d.kind, d.split) for d in data.defects] == [("file-name-differs", "train"), ("box-no-size", "val")]
    assert data.records("train")[0].name == "JPEGImages/a.jpg"

    bomb = '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'
    for text, message in [
        ("<annotation>", r"1 annotation-unreadable: train: Annotations/a\.xml: it cannot be read as XML: no element"),
        (bomb, r"Annotations/a\.xml: it cannot be read as XML: EntitiesForbidden"),
        (
            voc_xml("a.jpg", [(" ", 1, 1, 5, 5)]),
            r"1 class-missing: train: Annotations/a\.xml, object 1: it has no class",
        ),
    ]:
        xml.write_text(text)
        with pytest.raises(DataError, match=message):
            open_data(tmp_path)
    xml.unlink()
    with pytest.raises(
        DataError, match=r"1 annotation-missing: train: ImageSets/Main/train\.txt, a: a has no XML in .*Annotations"
    ):
        open_data(tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="There are no data at"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="an empty folder"):
        open_data(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"Looked for COCO .* Pascal VOC .*found notes\.txt"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt is no list of image paths"):
        open_data(tmp_path / "notes.txt")
    write_voc(tmp_path / "one", {"a": []})
    write_voc(tmp_path / "two", {"a": []})
    with pytest.raises(DataError, match="several Pascal VOC folders: one, two"):
        open_data(tmp_path)
    write_coco(tmp_path / "coco", {"val": VAL})
    with pytest.raises(DataError, match="no images to train on; its splits: val"):
        open_data(tmp_path / "coco")
    write_coco(tmp_path / "coco", {"train": TRAIN})
    with pytest.raises(DataError, match=r"no split 'test'\. It has: train, val"):
        open_data(tmp_path / "coco").records("test")


def test_fingerprints_follow_the_content_alone(tmp_path):
    write_coco(tmp_path / "first", {"train": TWO_ON_ONE, "val": VAL})
    shuffled = {key: entries[::-1] for key, entries in TWO_ON_ONE.items()}
    write_coco(tmp_path / "elsewhere", {"train": shuffled, "val": VAL}, "images/{split}")
    first, second = open_data(tmp_path / "first"), open_data(tmp_path / "elsewhere")
    assert first.fingerprint == second.fingerprint and len(first.fingerprint) == 16
    assert first.split_fingerprint("train") != first.split_fingerprint("val")

    Image.new("RGB", (40, 30), "red").save(tmp_path / "first" / "train2017" / "a.jpg")
    other_pixels = open_data(tmp_path / "first")
    assert other_pixels.fingerprint != first.fingerprint
    assert other_pixels.split_fingerprint("val") == first.split_fingerprint("val")
    moved = [(0, 3, [1, 2, 10, 6]), (0, 1, [0, 0, 9, 9]), (7, 1, [0, 0, 4, 3])]
    write_coco(tmp_path / "elsewhere", {"train": TWO_ON_ONE | {"annotations": coco([], moved)["annotations"]}})
    assert open_data(tmp_path / "elsewhere").fingerprint != second.fingerprint


def test_reading_does_not_import_torch(tmp_path):
    write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    code = (
        "import sys; from data.open import open_data; open_data(sys.argv[1]).fingerprint;"
        "open_data('generated', generated_images=(2, 1, 1)).fingerprint;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'albumentations')))"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=True)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("cam1", "cam2"):
        for name in ("a", "b"):
            write_image(tmp_path / "frames" / folder / f"{name}.jpg", color=(len(folder), ord(name), 9))
    for written in ("cam2/{}.jpg", "/home/u/set/frames/CAM2/{}.jpg", "C:\\set\\cam2\\{}.jpg"):
        content = coco([(i, written.format(name)) for i, name in enumerate("ab")], [(0, 1, [1, 2, 5, 5])])
        (tmp_path / "all.json").write_text(json.dumps(content))
        records = [record for split in open_data(tmp_path).splits.values() for record in split]
        assert sorted(record.name for record in records) == ["frames/cam2/a.jpg", "frames/cam2/b.jpg"]
    content["images"][0]["file_name"] = "a.jpg"
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image-missing: \w+: a\.jpg"):  # which of the two?
        open_data(tmp_path)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    name = os.fsdecode(b"\xe4.jpg")
    write_image(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / name)
    write_image(tmp_path / "images" / "b.jpg", color="red")
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    for image in (name, "b.jpg"):
        (tmp_path / "labels" / image).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"1 images are not UTF-8, such as 'images/\\udce4\.jpg'"):
        open_data(tmp_path)


def test_a_missing_image_is_not_another_splits_of_that_name(tmp_path):
    write_coco(tmp_path, {"train": TRAIN, "val": coco([(0, "a.jpg")])}, folder="pictures/{split}")
    assert [record.name for record in open_data(tmp_path).records("val")] == ["pictures/val/a.jpg"]
    (tmp_path / "pictures" / "train" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"image-missing: train: a\.jpg"):
        open_data(tmp_path)


def test_a_mask_is_not_taken_for_a_missing_photo(tmp_path):
    write_voc(tmp_path, {"a": [("cat", 1, 1, 5, 5)], "b": []})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    write_image(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(DataError, match="image-missing"):
        open_data(tmp_path)


@needs_real_data
def test_bccd():
    data = open_data(Path(REAL_DATA) / "bccd")
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(len(r.boxes) for records in data.splits.values() for r in records) == 4888 - 2
    assert [(d.kind, d.split, Path(d.file).stem) for d in data.defects if d.action == "box dropped"] == [
        ("box-no-size", "train", "BloodImage_00343"),
        ("box-no-size", "val", "BloodImage_00338"),
    ]
    (leak,) = [d for d in data.defects if "two-splits" in d.kind]
    assert (Path(leak.file).stem, leak.split, leak.kind) == ("BloodImage_00037", "val", "near-duplicate-in-two-splits")
    assert leak.detail == "it looks like JPEGImages/BloodImage_00038.jpg in 'train'"
    assert data.fingerprint == open_data(Path(REAL_DATA) / "bccd" / "BCCD").fingerprint


@needs_real_data
def test_facemask():
    data = open_data(Path(REAL_DATA) / "facemask")
    assert data.classes == ("mask_weared_incorrect", "with_mask", "without_mask")
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 677, "val": 171}
    boxes = np.concatenate([r.boxes for records in data.splits.values() for r in records])
    labels = np.concatenate([r.labels for records in data.splits.values() for r in records])
    assert len(boxes) == 4021 and np.bincount(labels).tolist()[:2] == [0, 121]
    assert sum(d.kind.startswith("box") and d.action == "box dropped" for d in data.defects) == 0
    kinds = Counter(d.kind for d in data.defects if d.kind.endswith(("duplicate-image", "two-splits")))
    assert kinds == {"near-duplicate-image": 18, "near-duplicate-in-two-splits": 2}  # each looked at: the same scene
