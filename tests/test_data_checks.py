"""Defects of files, boxes and classes, each by name, and what --on-defect and --empty make of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.checks.balance import class_defects
from data.checks.boxes import CLIP_TOLERANCE, Boxes
from data.checks.check import checked_records
from data.checks.pairs import first_of_same, near_pairs
from data.checks.plausible import implausible
from data.checks.scan import ImageScan
from data.open import open_data
from data.readers.found import FoundImage, FoundObject
from data.records import REFUSED, DataError
from data_options import DataOptions
from tests.conftest import REAL_DATA, needs_real_data
from tests.test_data_readers import VAL, coco, write_coco, write_image

CLASSES = ("cat", "dog")


def image_of(*boxes, name="a.jpg", declared=None):
    """A found image of (class, box) pairs, or (class, box, iscrowd)."""
    objects = [
        FoundObject(what=f"object {number}", class_name=kind, box=box, iscrowd=sum(rest))
        for number, (kind, box, *rest) in enumerate(boxes, start=1)
    ]
    return FoundImage(name=name, path=Path(name), declared_size=declared, objects=objects)


def checked(*images, split="train", size=(400, 300), **options):
    scans = {image.path: ImageScan(width=size[0], height=size[1], sha256="00" * 32) for image in images}
    return checked_records(split, images, CLASSES, scans, DataOptions(**options), "corners")


def kinds(defects):
    return [(defect.kind, defect.object, defect.action) for defect in defects]


FINE = ("cat", (10, 10, 50, 60))
OVER, ROUNDED = ("dog", (350, 10, 420, 60)), ("dog", (350, 10, 400 + CLIP_TOLERANCE, 60))
NOTHING, OUTSIDE, UNREAD = ("cat", (20, 20, 20, 50)), ("cat", (500, 10, 520, 60)), ("cat", None)


def test_what_is_outside_is_clipped_and_what_is_no_box_dropped():
    (record,), defects = checked(image_of(FINE, OVER, ROUNDED, NOTHING, OUTSIDE, UNREAD))
    assert record.boxes.tolist() == [[10, 10, 50, 60], [350, 10, 400, 60], [350, 10, 400, 60]]
    assert kinds(defects)[:4] == [
        ("box-malformed", "object 6", "box dropped"),
        ("box-no-size", "object 4", "box dropped"),
        ("box-outside", "object 5", "box dropped"),
        ("box-over-edge", "object 2", "box clipped"),
    ]
    assert {defect.severity for defect in defects} == {"warning"}
    assert defects[3].detail == "the box from (350, 10) to (420, 60) leaves the 400×300 image by 20 pixels"


def test_on_defect_drop_takes_boxes_that_leave_the_image_too_but_not_for_rounding():
    (record,), defects = checked(image_of(FINE, OVER, ROUNDED, ("cat", (-1, 10, 30, 60))), on_defect="drop")
    assert record.boxes.tolist() == [[10, 10, 50, 60], [350, 10, 400, 60]]
    assert kinds(defects) == [
        ("box-over-edge", "object 2", "box dropped"),
        ("box-over-edge", "object 4", "box dropped"),
    ]


def test_on_defect_fail_refuses_wrong_boxes_and_not_suspicious_ones():
    _, defects = checked(image_of(FINE, OVER, NOTHING, ("cat", (5, 5, 6, 6))), on_defect="fail")
    assert [(d.kind, d.severity, d.refused) for d in defects] == [
        ("box-no-size", "error", True),
        ("box-over-edge", "error", True),
        ("box-tiny", "warning", False),
    ]


def test_an_unknown_class_is_refused_under_every_policy():
    for on_defect in ("clip", "drop", "fail"):
        _, (defect,) = checked(image_of(FINE, ("cow", (5, 5, 60, 60)), ("dog", (0, 0, 9, 9))), on_defect=on_defect)
        assert kinds([defect]) == [("class-unknown", "object 2", REFUSED)] and defect.severity == "error"


def test_empty_drop_leaves_images_without_objects_out_of_train_alone():
    images = image_of(name="a.jpg"), image_of(FINE, name="b.jpg"), image_of(NOTHING, name="c.jpg")
    records, defects = checked(*images, empty="drop")
    assert [(record.image_id, record.name, len(record.boxes)) for record in records] == [(1, "b.jpg", 1)]
    left_out = [(d.file, d.severity) for d in defects if d.kind == "image-without-objects"]
    assert left_out == [("a.jpg", "note"), ("c.jpg", "note")]
    for split, empty in (("val", "drop"), ("train", "keep")):
        records, defects = checked(*images, split=split, empty=empty)
        assert [record.name for record in records] == ["a.jpg", "b.jpg", "c.jpg"]
        assert [d.kind for d in defects] == ["box-no-size"]


def test_suspicious_boxes_are_named_and_kept():
    boxes = [
        ("cat", (100, 100, 200, 200)),
        ("cat", (100, 100, 200, 200)),  # the same again
        ("dog", (100, 100, 200, 200)),  # the same, of another class
        ("cat", (102, 101, 201, 200)),  # nearly the same
        ("dog", (102, 101, 201, 200.5)),  # nearly the same as the dog
        ("dog", (0, 0, 400, 299)),  # all of the image
        ("cat", (7, 7, 8, 30)),  # narrow
        ("cat", (7, 7, 8, 30), 1),  # a crowd may be anything
    ]
    (record,), defects = checked(image_of(*boxes))
    assert len(record.boxes) == len(boxes)
    assert [(d.kind, d.object, d.severity) for d in defects] == [
        ("box-tiny", "object 7", "warning"),
        ("box-whole-image", "object 6", "warning"),
        ("box-duplicate", "object 2", "warning"),
        ("box-near-duplicate", "object 4", "warning"),
        ("box-near-duplicate", "object 5", "warning"),
        ("labels-conflict", "object 3", "warning"),
    ]
    details = [defect.detail for defect in defects]
    assert "1×23 pixels" in details[0] and "object 1" in details[2] and "object 3" in details[4]
    assert details[3] == "IoU 0.96 with object 1" and "object 1" in details[5]


def test_numbers_of_objects_hold_across_images_and_dropped_boxes():
    images = [image_of(NOTHING, ("cat", (1, 1, 9, 9), 1), FINE, FINE, name=f"{number}.jpg") for number in range(3)]
    _, defects = checked(*images[::-1])
    assert [(d.kind, d.file, d.object) for d in defects] == [
        *(("box-no-size", f"{number}.jpg", "object 1") for number in range(3)),
        *(("box-duplicate", f"{number}.jpg", "object 4") for number in range(3)),
    ]
    assert {d.detail for d in defects[3:]} == {"the same box and class as object 3"}


def test_a_label_is_suspect_where_the_size_is_another_classes():
    random = np.random.default_rng(0)

    def of_side(kind, side):
        x, y = random.uniform(5, 100, 2)
        return kind, (x, y, x + side, y + side)

    images = [
        image_of(of_side("cat", random.uniform(18, 22)), of_side("dog", random.uniform(90, 110)), name=f"{number}.jpg")
        for number in range(40)
    ]
    wrong = image_of(of_side("dog", 20), of_side("cat", 300), ("dog", (0, 5, 20, 25)), name="wrong.jpg")
    _, defects = checked(*images, wrong, size=(600, 600))
    # The second is like no class, and the edge cuts the third off.
    assert [(d.kind, d.file, d.object) for d in defects] == [("label-suspect", "wrong.jpg", "object 1")]
    assert "is 20 pixels, that of dog 9" in defects[0].detail and "of cat 19–2" in defects[0].detail


def test_sizes_of_images():
    (record,), (defect,) = checked(image_of(FINE, declared=(300, 400)))
    assert (defect.kind, defect.severity, record.width) == ("size-differs", "error", 400)
    assert defect.detail.endswith("(width and height are exchanged: was it turned since?)")
    (halved,) = checked(image_of(FINE, declared=(801, 600)))[1]
    assert "(was it resized? Then multiply its boxes, width and height by 0.4994)" in halved.detail
    assert "resized" not in checked(image_of(FINE, declared=(800, 500)))[1][0].detail
    assert [d.kind for d in checked(image_of(FINE), size=(8000, 7000))[1]] == ["image-huge"]
    assert [d.kind for d in checked(image_of(FINE), size=(4000, 60))[1]] == ["image-elongated"]


def test_boxes_that_leave_an_image_of_another_size_than_annotated_say_so_and_are_refused_as_before():
    boxes = (OUTSIDE, OVER, NOTHING)
    for on_defect in ("clip", "fail"):
        records, (size, *found) = checked(image_of(*boxes, declared=(800, 600)), on_defect=on_defect)
        as_annotated, plain = checked(image_of(*boxes, declared=(400, 300)), on_defect=on_defect)
        assert size.kind == "size-differs" and kinds(found) == kinds(plain)
        assert records[0].boxes.tolist() == as_annotated[0].boxes.tolist()
        told = {each.kind: each.detail.removesuffix(" (see size-differs)") != each.detail for each in found}
        assert told == {"box-no-size": False, "box-outside": True, "box-over-edge": True}
        assert "size-differs" not in "".join(each.detail for each in plain)


def test_what_is_unusual_of_files_is_noted_with_what_becomes_of_it(tmp_path):
    photo = Image.effect_noise((40, 30), 80)
    made = {
        "grey.jpg": (photo, {}),
        "alpha.png": (photo.convert("RGBA"), {}),
        "palette.png": (photo.convert("P"), {}),
        "deep.png": (Image.fromarray(np.asarray(photo).astype(np.uint16) * 256), {}),
        "print.jpg": (photo.convert("CMYK"), {}),
        "turned.jpg": (photo.convert("RGB").rotate(90, expand=True), {"exif": orientation(6)}),
        "odd.jpg": (photo.convert("RGB"), {"exif": orientation(65535)}),
        "plain.jpg": (photo.convert("RGB"), {"exif": orientation(1)}),
    }
    write_coco(tmp_path, {"train": coco(list(enumerate(made))), "val": coco([(1, "z.jpg")])})
    for name, (image, options) in made.items():
        image.save(tmp_path / "train2017" / name, **options)
    notes = {(Path(d.file).name, d.kind, d.action) for d in open_data(tmp_path).defects if d.severity == "note"}
    assert notes == {
        ("grey.jpg", "image-greyscale", "made RGB"),
        ("alpha.png", "image-alpha", "laid over white"),
        ("palette.png", "image-palette", "made RGB"),
        ("deep.png", "image-greyscale", "made RGB"),
        ("deep.png", "image-16-bit", "scaled to 8 bits"),
        ("print.jpg", "image-CMYK", "made RGB"),
        ("turned.jpg", "exif-turned", "turned as viewers show it"),
        ("odd.jpg", "exif-invalid", "not turned"),
    }


def test_twelve_bits_in_a_file_of_sixteen_are_told_as_almost_black(tmp_path):
    photo = np.asarray(Image.effect_noise((40, 30), 80)).astype(np.uint16)
    for split, bits in (("train", 4), ("val", 8)):
        write_coco(tmp_path, {split: coco([(1, f"{split}.png")])})
        Image.fromarray(photo << bits).save(tmp_path / f"{split}2017" / f"{split}.png")
    for _ in ("scanned", "known from the cache"):
        (dark,) = [d for d in open_data(tmp_path).defects if d.kind == "image-dark"]
        assert (dark.severity, dark.file) == ("warning", "train2017/train.png")
        assert f"is {photo.max() >> 4} of 255" in dark.detail and "hold 12 or fewer" in dark.detail


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_pairs_are_those_of_the_plain_definition():
    random = np.random.default_rng(1)
    corners = random.integers(0, 12, (300, 2)).astype(float)
    boxes = np.concatenate([corners, corners + random.integers(5, 12, (300, 2))], axis=1)
    group = np.sort(random.integers(0, 4, 300))

    def iou(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(0, width) * max(0, height)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    for least in (0.3, 0.8):
        first, second, overlap = near_pairs(group, boxes, least)
        plain = [(i, j, iou(boxes[i], boxes[j])) for i in range(300) for j in range(i + 1, 300) if group[i] == group[j]]
        expected = [(i, j, value) for i, j, value in plain if value > least]
        assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(i, j) for i, j, _ in expected]
        np.testing.assert_allclose(overlap, [value for _, _, value in expected])
    at_the_limit = np.array([[0, 0, 100, 10], [19, 0, 100, 10], [0, 50, 10, 150], [0, 69, 10, 150.0]])
    first, second, _ = near_pairs(np.zeros(4, dtype=int), at_the_limit, 0.8)
    assert (first.tolist(), second.tolist()) == ([0, 2], [1, 3])
    same = [next(j for j in range(300) if (group[j], *boxes[j]) == (group[i], *boxes[i])) for i in range(300)]
    assert first_of_same(group, boxes).tolist() == same
    assert len(near_pairs(group[:0], boxes[:0], 0.8)[0]) == len(first_of_same(group[:0], boxes[:0])) == 0


def test_a_crowded_image_has_its_near_boxes():
    """All 200 million pairs would take a minute, and more memory than there is."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 4000, (20_000, 2))
    boxes = np.concatenate([corners, corners + random.uniform(20, 60, (20_000, 2))], axis=1)
    first, other, overlap = near_pairs(np.zeros(20_000, dtype=int), boxes, 0.8)
    assert len(first) > 10 and (first < other).all() and (overlap > 0.8).all()


def test_classes_that_a_split_lacks_or_has_too_much_of():
    names = ("common", "rare", "unseen", "only-val", "only-train", "shifted")
    counts = {"train": np.array([4000, 100, 0, 0, 300, 300]), "val": np.array([300, 10, 0, 5, 0, 300])}
    found = [(d.kind, d.severity, d.split, d.object) for d in class_defects(counts, names)]
    assert found == [
        ("class-without-boxes", "warning", "train", "class unseen"),
        ("class-not-in-train", "error", "val", "class only-val"),
        ("class-not-in-split", "warning", "val", "class only-train"),
        ("class-imbalance", "warning", "train", "class rare"),
        ("class-balance-differs", "warning", "val", "class shifted"),
    ]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([0.2, 0.3, 0.5, 0.4], "are they fractions"),
        ([20, 20, 25, 28], "read as corners, none would"),
        ([20, 20, -10, -10], "have no size: is the order"),
        ([5, 5, 99, 99], "leave their images: are they of images of another size"),
        ([5, 5, 9, 9], None),
    ],
)
def test_boxes_that_are_mostly_impossible_are_an_error(tmp_path, box, reason):
    images = [(number, f"{number}.jpg") for number in range(20)]
    write_coco(tmp_path, {"train": coco(images, [(number, 1, box) for number, _ in images]), "val": VAL})
    found = [d for d in open_data(tmp_path, refuse=False).defects if d.kind == "boxes-implausible"]
    assert [(d.action, d.split, reason in d.detail) for d in found] == ([(REFUSED, "train", True)] if reason else [])


def many_boxes(written, read, *, amodal=False, largest=160):
    """400 boxes of 640×480 images that were written as one thing and are read as another."""
    random, size = np.random.default_rng(0), np.array([640, 480])
    width, height = random.uniform(largest / 8, largest, (2, 400))
    x, y = random.uniform(0, 1, (2, 400)) * (size[:, None] - (width, height))
    if amodal:  # two fifths reach over one of the four edges, and rightly
        x[:40], x[40:80], y[80:120], y[120:160] = -9, 650 - width[40:80], -9, 490 - height[120:160]
    a, b, c, d = {
        "corners": (x, y, x + width, y + height),
        "yx": (y, x, y + height, x + width),
        "origin": (x, y, width, height),
        "centre": (x + width / 2, y + height / 2, width, height),
        "xxyy": (x, x + width, y, y + height),
        "size first": (width, height, x + width / 2, y + height / 2),
    }[written]
    corners = {
        "corners": (a, b, c, d),
        "origin": (a, b, a + c, b + d),
        "centre": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[read]
    return Boxes(
        image=np.arange(400),
        corners=np.stack(corners, axis=1),
        labels=np.ones(400, np.int64),
        iscrowd=np.zeros(400, np.uint8),
        area=np.full(400, np.nan),
        size=np.tile(size, (400, 1)).astype(float),
    )


@pytest.mark.parametrize(
    ("written", "read", "meaning"),
    [
        ("yx", "corners", "corners, y before x"),
        ("origin", "corners", "left, top, width, height"),
        ("corners", "origin", "corners"),
        ("centre", "origin", "centre, width, height"),
        ("origin", "centre", "left, top, width, height"),
        ("xxyy", "corners", "corners, x x y y"),
        ("size first", "centre", "centre, width, height, the last two first"),
    ],
)
def test_boxes_that_were_meant_otherwise_are_refused_with_the_meaning(written, read, meaning):
    assert f"; read as {meaning}, none would" in implausible(many_boxes(written, read), read)


def test_percentages_are_told_from_boxes_in_one_corner():
    boxes = many_boxes("corners", "corners")
    percent = replace(boxes, corners=boxes.corners * 100 / np.tile(boxes.size, 2))
    assert "are they percentages" in implausible(percent, "corners")
    assert implausible(replace(percent, corners=percent.corners * 0.9), "corners") is None
    assert implausible(replace(percent, size=np.full((400, 2), 100.0)), "corners") is None


@pytest.mark.parametrize("read", ["corners", "origin", "centre"])
@pytest.mark.parametrize("largest", [10, 160])
def test_many_boxes_without_a_size_are_no_other_reading(read, largest):
    boxes = many_boxes(read, read, largest=largest)
    boxes.corners[:60, 2] = boxes.corners[:60, 0]
    assert implausible(boxes, read) is None


@pytest.mark.parametrize("amodal", [False, True])
def test_boxes_that_are_meant_so_are_not_refused(amodal):
    assert implausible(many_boxes("corners", "corners", amodal=amodal), "corners") is None


def test_a_split_without_a_box_is_no_warning():
    counts = {"train": np.array([5, 5]), "val": np.array([0, 0]), "test": np.array([0, 0])}
    found = [(d.kind, d.severity, str(d)) for d in class_defects(counts, ("cat", "dog"))]
    assert found == [
        ("split-without-boxes", "error", "error: val: none of its images has a box (training refuses the data)"),
        ("split-without-boxes", "warning", "warning: test: none of its images has a box (nothing to score)"),
    ]


def test_training_is_refused_by_name_and_told_otherwise(tmp_path):
    bad = [(1, 1, [5, 5, 0, 3]), (1, 1, [30, 5, 20, 3]), (1, 3, [1, 1, 9, 9])]
    write_coco(tmp_path, {"train": coco([(1, "a.jpg"), (2, "b.jpg")], bad), "val": coco([(1, "z.jpg")], bad[2:])})
    data = open_data(tmp_path, DataOptions(empty="drop"))
    told = "\n".join(data.describe(named=1))
    assert "warning: 1 box-no-size (box dropped)\n      what to do: draw it anew" in told
    assert "\n      train: train2017/a.jpg, annotation 0 (cat): the box" in told
    assert "1 box-over-edge (box clipped)" in told
    assert "note: 1 image-without-objects (left out of training (--empty drop))" in told
    assert "train: 1 images, 2 boxes, 0 images without objects" in told
    of_val = data.describe(scored="val")
    assert of_val[-1] == "  of other splits: 2 warnings, 1 note (check_data.py names them)"
    assert not any("train2017" in line for line in of_val) and data.describe(scored="train")[-1] != of_val[-1]
    with pytest.raises(DataError) as refused:
        open_data(tmp_path, DataOptions(on_defect="fail"))
    assert "1 box-no-size: train: train2017/a.jpg, annotation 0 (cat)" in str(refused.value)
    assert "1 box-over-edge" in str(refused.value) and "python check_data.py" in str(refused.value)


def test_to_score_a_split_what_is_wrong_in_others_is_no_obstacle(tmp_path):
    one = [(1, 1, [1, 1, 9, 9])]
    write_coco(tmp_path, {split: coco([(1, f"{split}.jpg")], one) for split in ("train", "val", "test")})
    (tmp_path / "val2017" / "val.jpg").unlink()
    for scored in (None, "val"):
        with pytest.raises(DataError, match=r"1 image-missing: val: val\.jpg"):
            open_data(tmp_path, scored=scored)
    data = open_data(tmp_path, scored="test")
    assert len(data.records("test")) == 1 and [each.kind for each in data.defects] == ["image-missing"]
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    (tmp_path / "train2017" / "train.jpg").unlink()
    assert open_data(tmp_path, scored="test").records("test") == data.records("test")
    with pytest.raises(DataError, match="no images to train on"):
        open_data(tmp_path)


def test_data_without_splits_are_scored_whole(tmp_path):
    images = [(number, f"{number}.jpg") for number in range(9)]
    write_coco(
        tmp_path, {"all": coco(images, [(number, 1, [1, 1, 9, 9]) for number, _ in images])}, "images", "all.json"
    )
    for split in ("val", "test", "train"):
        data = open_data(tmp_path, scored=split, whole=True)
        assert {name: len(records) for name, records in data.splits.items()} == {split: 9}
        assert data.split_rule == "all images, as the data have no splits"
    assert len(open_data(tmp_path, scored="val").records("val")) < 9  # of training's own data
    grouped = open_data(tmp_path, DataOptions(split_by=r"\d"), scored="val", whole=True)
    assert len(grouped.records("val")) < 9
    (tmp_path / "images" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"image-missing: test: 3\.jpg"):
        open_data(tmp_path, scored="test", whole=True)


def test_what_may_be_of_the_scored_split_refuses_it(tmp_path):
    """A row of a table with a column of splits is of that split; where we make the splits it may be of any."""
    rows = ["train.jpg,1,1,9,9,cat,train", "test.jpg,1,1,9,9,cat,test", "val.jpg,1,1,9,9,cat,val"]
    for name in ("train", "val", "test"):
        write_image(tmp_path / f"{name}.jpg")
    bad = {"train.jpg,1,1,oops,9,cat,train": {"train"}, "x.jpg,1,1,9,9,cat,strange": {"train", "val", "test"}}
    for row, refused in bad.items():
        (tmp_path / "all.csv").write_text("\n".join(["image,xmin,ymin,xmax,ymax,class,split", *rows, row]))
        assert {split for split in ("train", "val", "test") if not can_score(tmp_path, split)} == refused
    (tmp_path / "all.csv").write_text(
        "image,xmin,ymin,xmax,ymax,class\n"
        + "\n".join(line.rpartition(",")[0] for line in (*rows, "train.jpg,1,1,oops,9,cat,train"))
    )
    assert not can_score(tmp_path, "val") and not can_score(tmp_path, "train")
    folders = tmp_path / "folders"
    write_coco(folders, {split: coco([(1, f"{split}.jpg")], [(1, 1, [1, 1, 9, 9])]) for split in ("train", "test")})
    lost = coco([(n, f"{n}.jpg") for n in range(9)], [(1, 7, [1, 1, 9, 9])])  # of a category that there is not
    write_coco(folders, {"train": lost})
    assert [can_score(folders, split) for split in ("train", "val", "test")] == [False, False, True]


def can_score(folder, split):
    try:
        return bool(open_data(folder, scored=split).records(split))
    except DataError:
        return False


@needs_real_data
def test_bccd_defects_by_name():
    defects = open_data(Path(REAL_DATA) / "bccd").all_defects

    def files(kind):
        return [(Path(d.file).stem[-5:], d.split) for d in defects if d.kind == kind]

    assert files("box-no-size") == [("00343", "train"), ("00338", "val")]
    assert len(files("box-near-duplicate")) == 8
    assert files("label-suspect") == [("00113", "train"), ("00133", "train"), ("00135", "test")]
    assert {d.severity for d in defects if d.kind.startswith(("box", "label", "class"))} == {"warning"}


@needs_real_data
def test_facemask_defects_by_name():
    defects = open_data(Path(REAL_DATA) / "facemask").all_defects
    tiny = [defect for defect in defects if defect.kind == "box-tiny"]
    assert len(tiny) == 3 and all("the box is 1×2 pixels" in d.detail and d.action == "box kept" for d in tiny)
    assert [d.object for d in defects if d.kind == "class-imbalance"] == ["class mask_weared_incorrect"]
    assert not [d for d in defects if "dropped" in d.action]
