"""Which files of a folder are read: COCO's and VOC's layouts, folders that fit two formats, files that are given."""

import json

import pytest

from config import TrainConfig
from data.open import open_data
from data.records import DataError
from data_options import DataOptions
from tests.test_data_readers import VAL, coco, voc_xml, write_coco, write_image, write_voc
from tests.test_data_yolo import ROBOFLOW, ROW, write_pairs, yaml_layout

CAT = coco([(1, "a.jpg"), (2, "b.jpg")], [(1, 1, [1, 2, 10, 5])])
XML = voc_xml("a.jpg", [("cat", 1, 2, 11, 7)])


def names(data):
    return sorted(record.name for records in data.splits.values() for record in records)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("json_name", "folder", "prefix"),
    [
        ("annotations/instances_default.json", "images/default", ""),  # CVAT
        ("annotations/instances_default.json", "images", ""),
        ("result.json", "images", "images/"),  # Label Studio
        ("result.json", "images", "images\\"),
        ("result.json", "images", "../../label-studio/upload/7/"),
        ("Annotations/labels.json", "JPEGImages", ""),
        ("deep/er/annotations/all.json", "deep/er/photos", "/data/x/photos/"),
    ],
)
def test_one_coco_json_without_splits_finds_its_images(tmp_path, json_name, folder, prefix):
    content = coco([(1, f"{prefix}a.jpg"), (2, f"{prefix}b.jpg")], [(1, 1, [1, 2, 10, 5])])
    put(tmp_path / json_name, json.dumps(content))
    for name in ("a", "b"):
        write_image(tmp_path / folder / f"{name}.jpg")
    put(tmp_path / "package.json", '{"name": "not of this"}')
    data = open_data(tmp_path)
    assert data.format == "coco" and "split off by us" in data.split_rule and data.defects == []
    assert [name.rpartition("/")[2] for name in names(data)] == ["a.jpg", "b.jpg"]


def test_numbers_and_entries_that_other_tools_write(tmp_path):
    content = coco([(2**40, "a.jpg"), (2**40 + 1, "B.JPG")], [(2**40, 3, [1, 2, 10, 5]), (2**40 + 1, 1, [0, 0, 4, 4])])
    content["annotations"][0] |= {"id": 0, "segmentation": {"counts": "0", "size": [30, 40]}, "iscrowd": 1}
    del content["annotations"][1]["id"]
    write_coco(tmp_path, {"train": content, "val": VAL})
    data = open_data(tmp_path)
    assert [(r.name, r.labels.tolist(), r.iscrowd.tolist()) for r in data.records("train")] == [
        ("train2017/B.JPG", [1], [0]),
        ("train2017/a.jpg", [2], [1]),
    ]
    assert data.defects == []


def test_a_file_that_is_no_coco_at_all_is_told_from_a_damaged_one(tmp_path):
    put(tmp_path / "annotations" / "instances_train.json", "")
    with pytest.raises(DataError, match=r"instances_train\.json is not JSON"):
        open_data(tmp_path)
    put(tmp_path / "annotations" / "instances_train.json", "{}")
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "annotations" / "via.json")
    with pytest.raises(DataError, match=r"via\.json has no 'images', so it is not COCO"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("xml_folder", "image_folder"),
    [
        ("Annotations", "JPEGImages"),
        ("annotations", "images"),
        ("annotations/xmls", "images"),
        (".", "."),
        ("Annotations", "."),
        ("labels", "photos of 2019"),
    ],
)
def test_voc_beside_its_images_or_in_folders_of_other_names(tmp_path, xml_folder, image_folder):
    for name in ("a", "b"):
        put(tmp_path / xml_folder / f"{name}.xml", XML.replace("a.jpg", f"{name}.jpg"))
        write_image(tmp_path / image_folder / f"{name}.jpg")
    put(tmp_path / xml_folder / "._a.xml", "\0")
    data = open_data(tmp_path)
    assert (data.format, data.classes, data.defects) == ("voc", ("cat",), [])
    assert [record.boxes.tolist() for records in data.splits.values() for record in records] == [[[1, 2, 11, 7]]] * 2


@pytest.mark.parametrize("layout", ["{split}", "{split}/annotations", "Annotations/{split}"])
def test_voc_by_folders_of_splits(tmp_path, layout):
    for split in ("train", "valid", "test"):
        put(
            tmp_path / layout.format(split=split) / "a.xml", XML
        )  # one name in all: those of another split are not taken
        images = tmp_path / (f"images/{split}" if layout.startswith("Ann") else split)
        write_image(images / "a.jpg", (40, 30 + len(split)))
    data = open_data(tmp_path)
    assert list(data.splits) == ["train", "val", "test"]
    heights = {split: records[0].height for split, records in data.splits.items()}
    assert heights == {"test": 34, "train": 35, "val": 35}
    assert data.records("val")[0].path.parent.name == "valid"


def test_voc_reads_what_is_odd_and_names_what_is_wrong(tmp_path):
    write_voc(tmp_path, {stem: [("cat", 1, 1, 5, 5)] for stem in "abcdefg"})
    folder = tmp_path / "Annotations"
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    box = "<bndbox><ymax>7.25</ymax><xmax> 11.5 </xmax><xmin>1</xmin><ymin>2</ymin></bndbox>"
    put(folder / "a.xml", f"<annotation><object>{part}<name>cat</name>{box}</object></annotation>")
    put(folder / "b.xml", "<annotation><object><name>cat</name></object></annotation>")
    put(folder / "c.xml", XML.replace("<width>40", "<width>nan").replace("a.jpg", "sub\\c.jpg"))
    put(folder / "d.xml", "<annotation><object>")
    put(folder / "e.xml", XML.replace("a.jpg", "e").replace("<name>cat</name>", ""))
    put(folder / "f.xml", XML.replace("a.jpg", "g.jpg"))
    (folder / "g.xml").write_bytes(XML.replace("a.jpg", "gone.jpg").encode("utf-16"))
    (tmp_path / "JPEGImages" / "g.jpg").unlink()
    data = open_data(tmp_path, refuse=False)
    assert sorted((d.kind, d.file.rpartition("/")[2], d.object) for d in data.defects) == [
        ("annotation-unreadable", "d.xml", None),
        ("box-malformed", "b.jpg", "object 1 (cat)"),
        ("class-missing", "e.xml", "object 1"),
        ("file-name-differs", "f.xml", None),
        ("image-missing", "gone.jpg", None),
    ]
    (differs,) = (d for d in data.defects if d.kind == "file-name-differs")
    assert "f.jpg" in differs.detail and "f.jpg" not in differs.action  # by which they are grouped
    records = {record.name[-5:]: record for records in data.splits.values() for record in records}
    assert records["a.jpg"].boxes.tolist() == [[1, 2, 11.5, 7.25]]
    assert records["f.jpg"].boxes.tolist() == records["c.jpg"].boxes.tolist() == [[1, 2, 11, 7]]
    with pytest.raises(DataError, match=r"(?s)1 annotation-unreadable.*1 class-missing.*1 image-missing"):
        open_data(tmp_path)


def test_what_lies_nearest_is_read_and_what_else_is_there_is_said(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW)
    assert open_data(tmp_path).notes[0].startswith("read as data.yaml says")
    for split in ("train", "valid"):
        put(tmp_path / split / "a.xml", XML)
        write_image(tmp_path / split / "a.jpg")
    (told,) = open_data(tmp_path).notes
    assert told == f"Pascal VOC is read; left unread: YOLO in {tmp_path}"
    write_coco(tmp_path, {"train": CAT, "val": VAL}, "{split}", "{split}/_annotations.coco.json")
    (tmp_path / "val").rename(tmp_path / "v")
    (tmp_path / "v" / "_annotations.coco.json").rename(tmp_path / "valid" / "_annotations.coco.json")
    (tmp_path / "v" / "z.jpg").rename(tmp_path / "valid" / "z.jpg")
    put(tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,cat\n")
    data = open_data(tmp_path)
    assert data.format == "coco"
    assert data.notes == [f"COCO is read; left unread: Pascal VOC in {tmp_path}, YOLO in {tmp_path}, CSV in {tmp_path}"]
    put(tmp_path / "above.csv", "image,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,cat\n")
    put(tmp_path / "other.yaml", ROBOFLOW)
    put(tmp_path / "third.yaml", ROBOFLOW)
    (tmp_path / "data.yaml").unlink()
    assert open_data(tmp_path).format == "coco"  # two tables, two YAML files: no reason to refuse what is read


def test_what_is_not_recognised_gets_a_guess(tmp_path):
    def guess():
        with pytest.raises(DataError) as refused:
            open_data(tmp_path)
        return str(refused.value)

    write_image(tmp_path / "photos" / "a.jpg")
    assert guess().endswith("found photos/. There are images, but no annotations that are known.")
    put(tmp_path / "Thumbs.db", "x")
    put(tmp_path / "annotations.xml", "<annotations><image/></annotations>")
    assert "annotations.xml has no <annotation>, so it is not Pascal VOC" in guess()
    put(tmp_path / "set.zip", "PK")
    assert "Is it in set.zip? Unpack that." in guess()
    for name, words in [
        ("set.zip", "is an archive. Unpack it, and give the folder"),
        ("annotations.xml", "is one XML file. Give the folder"),
        ("Thumbs.db", "is no .json, .csv, .yaml or .txt file"),
    ]:
        with pytest.raises(DataError, match=words):
            open_data(tmp_path / name)


def test_links_are_followed_once(tmp_path):
    write_pairs(tmp_path / "there" / "images", tmp_path / "there" / "labels", {"a": ROW, "b": ROW})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "there" / "images")
    (tmp_path / "set" / "labels").symlink_to(tmp_path / "there" / "labels")
    (tmp_path / "there" / "images" / "again").symlink_to(tmp_path / "there")
    assert names(open_data(tmp_path / "set")) == ["images/a.jpg", "images/b.jpg"]


def test_given_coco_files_are_the_splits(tmp_path):
    write_coco(tmp_path, {"train": CAT, "val": VAL}, "photos of {split}", "notes/{split}.json")
    given = {
        f"{split}_{what}": str(tmp_path / place.format(split))
        for split in ("train", "val")
        for what, place in (("annotations", "notes/{}.json"), ("images", "photos of {}"))
    }
    for where in ("generated", None, tmp_path):
        data = open_data(where, DataOptions(**given))
        assert (data.name, data.format, list(data.splits)) == (tmp_path.name, "coco", ["train", "val"])
        assert names(data) == ["photos of train/a.jpg", "photos of train/b.jpg", "photos of val/z.jpg"]
    only_val = {name: value for name, value in given.items() if name.startswith("val")}
    data = open_data(None, DataOptions(**only_val))
    assert list(data.splits) == ["val"] and data.split_rule == "the splits that are given"
    only_train = {name: value for name, value in given.items() if name.startswith("train")}
    assert list(open_data(None, DataOptions(**only_train)).splits) == ["train", "val"]


def test_given_files_of_the_other_formats(tmp_path):
    write_voc(tmp_path / "voc", {"a": [("cat", 1, 2, 11, 7)], "b": []})
    put(tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax,class\na,1,2,11,7,cat\nb,,,,,\n")
    put(tmp_path / "list.txt", "a.jpg\nb.jpg\n")
    put(tmp_path / "texts" / "a.txt", "0 0.15 0.15 0.25 0.1666666666666666")
    put(tmp_path / "texts" / "b.txt", "")
    put(tmp_path / "texts" / "classes.txt", "cat")
    images = str(tmp_path / "voc" / "JPEGImages")
    for place, kind in (("voc/Annotations", "voc"), ("boxes.csv", "csv"), ("texts", "yolo")):
        data = open_data(None, DataOptions(test_annotations=str(tmp_path / place), test_images=images))
        assert (data.format, list(data.splits), data.classes, data.defects) == (kind, ["test"], ("cat",), [])
        boxes = [record.boxes.round(9).tolist() for record in data.records("test")]
        assert boxes == [[[1, 2, 11, 7]], []]
    put(tmp_path / "voc" / "JPEGImages" / "a.txt", ROW)
    put(tmp_path / "voc" / "JPEGImages" / "b.txt", "")
    data = open_data(None, DataOptions(test_annotations=str(tmp_path / "list.txt"), test_images=images))
    assert names(data) == ["voc/JPEGImages/a.jpg", "voc/JPEGImages/b.jpg"] and data.classes == ("0",)


def test_half_given_files_are_told(tmp_path):
    write_coco(tmp_path, {"train": CAT, "val": VAL})
    put(tmp_path / "boxes.csv", "image,xmin,ymin,xmax,ymax,class\na,1,2,11,7,cat\n")
    put(tmp_path / "texts" / "a.txt", ROW)
    train = str(tmp_path / "annotations" / "instances_train2017.json")
    for options, message in [
        ({"val_images": str(tmp_path)}, "--val-images is given without --val-annotations"),
        ({"val_annotations": str(tmp_path / "no" / "x.json")}, r"--val-annotations: there is nothing at .*x\.json"),
        ({"train_annotations": train, "train_images": train}, r"--train-images: .* is no folder"),
        ({"train_annotations": train, "val_annotations": str(tmp_path / "boxes.csv")}, "train: COCO, val: CSV"),
        ({"val_annotations": str(tmp_path / "train2017")}, r"--val-annotations .*train2017 is none of these"),
        ({"val_annotations": str(tmp_path / "texts")}, "YOLO text files: give --val-images too"),
    ]:
        for where in (tmp_path, None):
            with pytest.raises(DataError, match=message):
                open_data(where, DataOptions(**options))


def test_given_files_take_the_place_of_the_generated_data(tmp_path):
    write_coco(tmp_path, {"train": CAT, "val": VAL})
    given = {
        "train_annotations": str(tmp_path / "annotations" / "instances_train2017.json"),
        "val_annotations": str(tmp_path / "annotations" / "instances_val2017.json"),
    }
    assert TrainConfig(**given).folder_of_files == str(tmp_path) and TrainConfig().folder_of_files is None
    assert open_data("generated", TrainConfig(**given)).root == tmp_path


def test_what_is_not_read_is_never_silent(tmp_path):
    """A split whose annotations are missing is no reason to make another; further folders and files are named."""
    box = "<annotation><size><width>40</width><height>30</height></size>{}</annotation>".format(
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    for red, split in enumerate(("train", "valid", "spare", "train/masks")):
        for name in "ab":
            write_image(tmp_path / "lost" / split / f"{name}.jpg", color=(60 * red, 60 * ord(name) % 256, 0))
    for name in "ab":
        put(tmp_path / "lost" / "train" / f"{name}.xml", box)
    found = {d.file: (d.kind, d.split, d.refused) for d in open_data(tmp_path / "lost", refuse=False).defects}
    assert found == {
        "valid/": ("folder-unread", "val", True),
        "spare/": ("folder-unread", "none", False),
        "train/masks/": ("folder-unread", "train", False),
    }
    for name in "ab":
        put(tmp_path / "lost" / "valid" / f"{name}.xml", box)
    assert [d.split for d in open_data(tmp_path / "lost").defects] == ["none", "train"]


def test_splits_by_other_usual_names(tmp_path):
    for year in ("train2017", "val2017"):
        write_image(tmp_path / "yolo" / "images" / year / f"{year}.jpg", color=(len(year), 0, 0))
        put(tmp_path / "yolo" / "labels" / year / f"{year}.txt", "0 0.5 0.5 0.2 0.2\n")
    put(tmp_path / "yolo" / "classes.txt", "cat\n")
    assert {name: len(records) for name, records in open_data(tmp_path / "yolo").splits.items()} == {
        "train": 1,
        "val": 1,
    }
    for lists in ("ImageSets", "."):
        root = tmp_path / f"voc-{len(lists)}"
        write_voc(root, {"a": [("cat", 1, 1, 9, 9)], "b": [("cat", 1, 1, 9, 9)]})
        put(root / lists / "train.txt", "JPEGImages/b.jpg Annotations/b.xml\n")
        put(root / lists / "val.txt", "a\n")
        assert [record.name for record in open_data(root).records("train")] == ["JPEGImages/b.jpg"]
    for split in ("train", "val"):
        root = tmp_path / "coco" / f"{split}2017"
        write_image(root / f"{split}.jpg", color=(len(split), 0, 0))
        put(root / "boxes.json", json.dumps(coco([(1, f"{split}.jpg")], [(1, 1, [1, 2, 9, 9])])))
    assert names(open_data(tmp_path / "coco")) == ["train2017/train.jpg", "val2017/val.jpg"]


def test_a_json_beside_the_splits_is_told(tmp_path):
    write_coco(tmp_path, {"train": coco([(1, "a.jpg")], [(1, 1, [1, 2, 9, 9])])})
    for name in ("val", "more"):
        put(tmp_path / "annotations" / f"{name}.json", json.dumps(coco([(1, "v.jpg")], [(1, 1, [1, 2, 9, 9])])))
    put(tmp_path / "annotations" / "info.json", '{"images": 8}')
    write_image(tmp_path / "val2017" / "v.jpg", color="red")
    data = open_data(tmp_path)
    assert [record.name for record in data.records("val")] == ["val2017/v.jpg"]
    assert data.notes == ["left unread, because its name says no split: more.json"]
