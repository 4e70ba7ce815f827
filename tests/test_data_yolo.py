"""YOLO: the layouts, the rows, what is refused by file and line."""

import contextlib

import pytest

from data.open import open_data
from data.records import REFUSED, DataError
from tests.test_data_csv import mistakes
from tests.test_data_readers import write_image

ROW = "0 0.5 0.5 0.5 0.2\n"  # on 40×30: 10, 12, 30, 18
BOX = [10, 12, 30, 18]


def write_pairs(images, labels, rows):
    """Images with a text file each from {stem: text or None}."""
    for stem, text in rows.items():
        write_image(images / f"{stem}.jpg")
        if text is not None:
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{stem}.txt").write_text(text, encoding="utf-8")


def yaml_layout(root, text, rows=None):
    """train/ and valid/ with images/ and labels/, and a data.yaml."""
    for split, stem in (("train", "a"), ("valid", "v")):
        write_pairs(root / split / "images", root / split / "labels", {stem: ROW} | (rows or {} if stem == "a" else {}))
    (root / "data.yaml").write_text(text, encoding="utf-8")


def boxes(data, split="train"):
    return {record.name.rpartition("/")[2]: record.boxes.round(9).tolist() for record in data.records(split)}


ROBOFLOW = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"


def test_roboflows_yaml_with_its_dots_and_its_missing_test_split(tmp_path):
    yaml_layout(tmp_path / "set", ROBOFLOW)
    write_image(tmp_path / "train" / "images" / "stranger.jpg")  # where the dots lead by the letter
    for where in (tmp_path / "set", tmp_path / "set" / "data.yaml"):
        data = open_data(where)
        assert (data.format, data.classes, list(data.splits)) == ("yolo", ("cat", "dog"), ["train", "val"])
        assert boxes(data) == {"a.jpg": [BOX]}
        assert [(d.kind, d.severity, d.split) for d in data.defects] == [("split-missing", "warning", "test")]
        assert (
            "read as data.yaml says, but of its paths these were found elsewhere: "
            "train: ../train/images → train/images\n"
        ) in "\n".join(data.describe())


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        (
            "path: /home/someone/sets/mine\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 5: dog}",
            ["train: /home/someone/sets/mine/images/train → images/train", "val: /home/"],
        ),
        ("path: .\ntrain: ['images/train']\nvalid: images/val\nnames:\n  0: cat\n  5: dog\n", []),
        (
            "train: C:\\sets\\mine\\images\\train\nval: /content/mine/images/val\nnames: {0: cat, 5: dog}",
            ["train: C:\\sets\\mine\\images\\train → images/train", "val: /content/mine/images/val → images/val"],
        ),
        ("train: lists/train.txt\nval: images/val\nnames: {0: cat, 5: dog}", []),
    ],
)
def test_paths_of_a_yaml_lead_to_the_images_wherever_it_was_written(tmp_path, text, elsewhere):
    for split, rows in (("train", {"a b": "5 0.5 0.5 0.5 0.2", "ü#": ROW}), ("val", {"v": ROW})):
        write_pairs(tmp_path / "images" / split, tmp_path / "labels" / split, rows)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("./images/train/a b.jpg\r\n\r\n/home/x/images/train/ü#.jpg\n")
    (tmp_path / "my set.yaml").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "args.yaml").write_text("task: detect\nval: true\n")  # Ultralytics leaves its settings about
    data = open_data(tmp_path)
    assert data.classes == ("cat", "dog") and data.defects == []
    (note,) = data.notes
    assert note.count("→") == len(elsewhere) and all(each in note for each in elsewhere)
    assert boxes(data) == {"a b.jpg": [BOX], "ü#.jpg": [BOX]}
    assert [record.labels.tolist() for record in data.records("train")] == [[2], [1]]


def test_a_list_of_images_or_several_folders_make_a_split(tmp_path):
    write_pairs(tmp_path / "one", tmp_path / "one", {"a": ROW})
    write_pairs(tmp_path / "two" / "deep", tmp_path / "two" / "deep", {"b": ROW, "c": ""})
    write_pairs(tmp_path / "v", tmp_path / "v", {"v": ROW})
    (tmp_path / "d.yaml").write_text("train: [one, two]\nval: v\nnames: [cat]")
    assert boxes(open_data(tmp_path)) == {"a.jpg": [BOX], "b.jpg": [BOX], "c.jpg": []}

    listing = tmp_path / "all.txt"
    listing.write_text("one/a.jpg\ntwo/deep/b.jpg\none/a.jpg\nnowhere/x.jpg\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    data = open_data(listing, refuse=False)
    assert {record.name for records in data.splits.values() for record in records} == {"one/a.jpg", "two/deep/b.jpg"}
    assert {(d.kind, d.file) for d in data.defects} == {
        ("image-listed-twice", "one/a.jpg"),
        ("image-missing", "nowhere/x.jpg"),
    }


def test_without_a_yaml_the_folders_say_it(tmp_path):
    first = tmp_path / "first"  # images/train beside labels/train
    for split, rows in (("train", {"a": ROW, "b": "1 0.5 0.5 1 1"}), ("val", {"v": ROW})):
        write_pairs(first / "images" / split, first / "labels" / split, rows)
    (first / "classes.txt").write_text("\ufeffcat\r\ndog\r\n\r\n", encoding="utf-8")
    data = open_data(first)
    assert (data.classes, list(data.splits), mistakes(data)) == (("cat", "dog"), ["train", "val"], [])
    assert boxes(data)["b.jpg"] == [[0, 0, 40, 30]] and "classes.txt" in "\n".join(data.describe())

    second = tmp_path / "second"  # Label Studio's and CVAT's: images/ beside labels/
    write_pairs(second / "images", second / "labels", {"a": ROW, "b": ROW})
    (second / "classes.txt").write_text("cat\n")
    (second / "notes.json").write_text('{"categories": [], "info": {}}')
    assert sum(len(records) for records in open_data(second).splits.values()) == 2

    third = tmp_path / "third"  # LabelImg's: text files beside the images, and nothing names the classes
    write_pairs(third, third, {"a": ROW, "b": "7 0.5 0.5 0.1 0.1"})
    data = open_data(third)
    assert data.classes == ("0", "7") and "nothing names the classes" in "\n".join(data.describe())

    fourth = tmp_path / "fourth"  # Darknet's, as CVAT writes it
    write_pairs(fourth / "obj_train_data", fourth / "obj_train_data", {"a": ROW, "b": ROW})
    (fourth / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (fourth / "obj.names").write_text("cat\n")
    (fourth / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    data = open_data(fourth)
    assert data.classes == ("cat",) and "read as obj.data says" in "\n".join(data.describe())


def test_an_empty_text_file_is_a_negative_and_a_missing_one_is_named(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW, {"empty": "", "blank": "\r\n  \n", "missing": None})
    (tmp_path / "train" / "labels" / "orphan.txt").write_text(ROW)
    (tmp_path / "train" / "labels" / "._a.txt").write_bytes(b"\0\1")  # macOS
    write_image(tmp_path / "train" / "images" / "._a.jpg")
    data = open_data(tmp_path)
    assert boxes(data) == {"a.jpg": [BOX], "empty.jpg": [], "blank.jpg": [], "missing.jpg": []}
    named = {(d.kind, d.severity, d.file) for d in data.defects if d.kind != "split-missing"}
    assert named == {
        ("label-file-missing", "warning", "train/images/missing.jpg"),
        ("orphan-annotation", "warning", "train/labels/orphan.txt"),
    }


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("0 0.1 0.2 0.9 0.2 0.9 0.8", [4, 6, 36, 24]),  # polygon
        ("0.0 0.1 0.5 0.5 0.1 0.9 0.5 0.5 0.9", [4, 3, 36, 27]),  # oriented box
        ("1\t0.5  0.5 1.0001 1 \r", [0, 0, 40, 30]),  # over the edge by rounding
        ("\ufeff0 5e-1 .5 0.5 0.2", BOX),
    ],
)
def test_rows_are_boxes_and_polygons(tmp_path, row, box):
    yaml_layout(tmp_path, ROBOFLOW.replace("test: ../test/images\n", ""), {"b": row + "\n\n"})
    data = open_data(tmp_path)
    assert boxes(data)["b.jpg"] == [box] and mistakes(data) == []


def test_key_points_follow_the_box(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW + "kpt_shape: [2, 2]\n", {"b": ROW.strip() + " 0.1 0.1 0.9 0.9"})
    assert boxes(open_data(tmp_path))["b.jpg"] == [BOX]


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ("0 0.5 0.5 0.5 0.2 0.93", "row-malformed", "a sixth number is a confidence"),
        ("0 0.5 0.5 0.5", "row-malformed", "has 4 numbers, not a class with 4 numbers"),
        ("0 0.1 0.2 0.9 0.2 0.9 0.8 0.4", "row-malformed", "has 8 numbers"),
        ("0,0.5,0.5,0.5,0.2", "row-malformed", "'0,0.5,0.5,0.5,0.2' is no number"),
        ("cat 0.5 0.5 0.5 0.2", "row-malformed", "'cat' is no number"),
        (
            "2 0.5 0.5 0.5 0.2",
            "unknown-class",
            r"class 2 is not among the 2 classes, numbered 0 to 1 \(YOLO counts from 0",
        ),
        ("-1 0.5 0.5 0.5 0.2", "unknown-class", "class -1"),
        ("0.5 0.5 0.5 0.5 0.2", "unknown-class", "class 0.5"),
        ("0 20 15 20 6", "coordinates-in-pixels", "has pixels, where fractions"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path, row, kind, words):
    yaml_layout(tmp_path, ROBOFLOW, {"b": f"\n{ROW}{row}\n"})
    with pytest.raises(DataError, match=rf"1 {kind}: train: train/labels/b\.txt, line 3: .*{words}"):
        open_data(tmp_path)
    data = open_data(tmp_path, refuse=False)
    assert boxes(data)["b.jpg"] == [BOX]
    (defect,) = [d for d in data.defects if d.kind != "split-missing"]
    assert (defect.action, defect.severity) == (REFUSED, "error")


def test_numbers_that_never_begin_with_0_are_asked_about(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW, {"b": ROW.replace("0 ", "1 ", 1)})
    assert not any("count from 1" in note for note in open_data(tmp_path).notes)  # a.txt has a 0
    for file in tmp_path.rglob("labels/*.txt"):
        file.write_text(ROW.replace("0 ", "1 ", 1))
    assert "no row is of class 0 (cat): do the files count from 1? YOLO counts from 0" in open_data(tmp_path).notes


def test_boxes_in_pixels_are_one_defect_a_file_and_boxes_over_the_edge_are_clipped(tmp_path):
    yaml_layout(
        tmp_path, ROBOFLOW, {"b": "0 20 15 20 6\n0 5 5 2 2\n", "c": "0 0.9 0.5 0.4 0.2\n0 nan 1 1 1\n0 0 0 0 0"}
    )
    data = open_data(tmp_path, refuse=False)
    assert {(d.kind, d.file, d.object) for d in data.defects if d.kind != "split-missing"} == {
        ("coordinates-in-pixels", "train/labels/b.txt", "line 1"),
        ("box-over-edge", "train/images/c.jpg", "line 1 (cat)"),
        ("box-not-finite", "train/images/c.jpg", "line 2 (cat)"),
        ("box-no-size", "train/images/c.jpg", "line 3 (cat)"),
    }
    assert "so have 1 more lines" in data.defects[1].detail
    assert boxes(data)["c.jpg"] == [[28, 12, 40, 18]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: ../train/images\nval: ../valid/images\nnc: 3\nnames: [cat, dog]", r"names 2 classes, but says nc: 3"),
        ("train: ../train/images\nval: ../valid/images\nnames: [cat, cat]", r"names the class 'cat' twice"),
        ("train: ../train/images\nval: ../valid/images\nnames: []", r"names no classes"),
        ("train: ../train/images\nval: ../valid/images\nnames: cat dog", r"neither a list of class names"),
        (
            "train: ../train/images\nval: ../nowhere\nnames: [cat]",
            r"has val: \.\./nowhere, which is not there; looked in",
        ),
        ("train: ../train/labels\nval: ../valid/images\nnames: [cat]", r"train.labels has no images"),
        ("train: data.yaml\nval: ../valid/images\nnames: [cat]", r"neither a folder of images nor a \.txt list"),
        ("train: [../train/images\nval: x\nnames: [cat]", r"data\.yaml is not YAML: .*line 2"),
    ],
)
def test_mistakes_in_a_yaml_are_told(tmp_path, text, message):
    yaml_layout(tmp_path, text)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_a_yaml_is_read_as_data_only(tmp_path):
    yaml_layout(tmp_path, f"names: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\ntrain: train\nval: valid\n")
    with contextlib.suppress(DataError):
        open_data(tmp_path)
    assert not (tmp_path / "made").exists()


def test_images_without_any_text_file_are_no_negatives(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW)
    write_image(tmp_path / "test" / "images" / "t.jpg")
    data = open_data(tmp_path)
    assert list(data.splits) == ["train", "val"] and [d.kind for d in data.defects] == ["split-without-annotations"]
    (tmp_path / "valid" / "labels" / "v.txt").rename(tmp_path / "v.txt")
    with pytest.raises(
        DataError, match=r"None of the 1 images of 'val' has a text file .* would be .*valid/labels/v\.txt"
    ):
        open_data(tmp_path)


def test_all_text_files_empty_is_no_data_set_with_classes(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "labels", {"a": ROW, "b": "x y\n"})
    (tmp_path / "labels" / "a.txt").write_text("nan 1 1 1 1")
    with pytest.raises(DataError, match="There are images, but no annotations that are known"):
        open_data(tmp_path)
    (tmp_path / "list.txt").write_text("images/a.jpg\n")
    (tmp_path / "labels" / "a.txt").write_text("")
    with pytest.raises(DataError, match="has no classes"):
        open_data(tmp_path / "list.txt")


def test_classes_are_what_the_files_say_by_number(tmp_path):
    yaml_layout(tmp_path, ROBOFLOW.replace(ROBOFLOW[ROBOFLOW.index("names:") :], "names: [no, yes]\n"))
    assert open_data(tmp_path).classes == ("no", "yes")
    write_pairs(tmp_path / "more" / "images", tmp_path / "more" / "labels", {"a": ROW, "b": ROW})
    (tmp_path / "more" / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 2 is empty"):
        open_data(tmp_path / "more")


def test_a_text_file_of_two_images_is_refused(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "labels", {"a": ROW, "b": ROW})
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"label-file-shared: \w+: images/a\.png: its text file a\.txt is that of"):
        open_data(tmp_path)
