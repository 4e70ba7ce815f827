"""Splits: the one that we make, by groups or by a file, and images that are in two of them."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.checks.scan_cache import ImageScan
from data.open import open_data
from data.readers.found import FoundImage
from data.records import DataError
from data.splits import VAL_SHARE, complete_splits
from data_options import DataOptions
from tests.test_data_readers import coco, write_coco, write_voc


def made_split(names, look_of=None, split_by=None):
    """{name: split} of images that have these names and, some of them, {name: look}; without files."""
    images = [FoundImage(name=name, path=Path(name), declared_size=None, objects=()) for name in names]
    looks = look_of or {}
    scans = {
        Path(name): ImageScan(width=1, height=1, sha256=name.encode().hex(), look=looks.get(name)) for name in names
    }
    options = DataOptions(split_by=split_by)
    made, _, _ = complete_splits(Path("data"), {"train": images}, [], scans, options)
    return {image.name: split for split, images in made.items() for image in images}


def share(name):
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


NAMES = st.lists(st.from_regex(r"[ab]/v[0-9]{1,2}_[0-9]\.jpg", fullmatch=True), min_size=2, max_size=40, unique=True)


@settings(max_examples=50)
@given(NAMES, st.integers(0, 2**32 - 1))
def test_groups_and_images_alike_are_never_divided_whatever_the_order(names, seed):
    draw = np.random.default_rng(seed)
    looks = draw.integers(0, 256, (4, 40), np.uint8)
    look_of = {name: looks[draw.integers(4)].tobytes() for name in names if draw.random() < 0.2}
    try:
        made = made_split(names, look_of, r"v\d+")
    except DataError as error:
        assert "at least two are needed" in str(error)
        return
    assert set(made.values()) == {"train", "val"}
    for key in (lambda name: re.search(r"v\d+", name)[0], lambda name: look_of.get(name, name)):
        splits = {}
        assert all(splits.setdefault(key(name), split) == split for name, split in made.items())
    shuffled = [names[at] for at in draw.permutation(len(names))]
    assert made_split(shuffled, look_of, r"v\d+") == made


@given(NAMES)
def test_without_groups_and_images_alike_the_hash_of_the_file_name_decides(names):
    shares = {name: share(name.rpartition("/")[2]) for name in names}
    lowest, highest = min(shares.values()), max(shares.values())
    if lowest < highest:
        is_val = {name: each == lowest or (each < VAL_SHARE and each != highest) for name, each in shares.items()}
        assert made_split(names) == {name: "val" if is_val[name] else "train" for name in names}


def test_images_that_come_or_go_do_not_move_the_others():
    names = [f"patient{number // 4}/{number % 4}.jpg" for number in range(160)]
    whole, part = made_split(names, split_by="^[^/]+"), made_split(names[60:], split_by="^[^/]+")
    assert set(part.items()) < set(whole.items())
    assert {name.partition("/")[0]: split for name, split in whole.items()} == {
        f"patient{number}": "val" if share(f"patient{number}") < VAL_SHARE else "train" for number in range(40)
    }


def test_what_is_more_than_half_stays_in_train():
    small = next(f"v{number}" for number in range(100) if share(f"v{number}") < VAL_SHARE)
    others = [f"v{number}" for number in range(100) if share(f"v{number}") > VAL_SHARE][:3]
    made = made_split(
        [*(f"{small}_{at}.jpg" for at in range(9)), *(f"{other}_0.jpg" for other in others)], None, r"v\d+"
    )
    assert {made[f"{small}_{at}.jpg"] for at in range(9)} == {"train"} and "val" in made.values()


def test_a_group_is_what_the_parentheses_find():
    names = ["a_x_1.jpg", "a_y_1.jpg", "b_x_2.jpg", "b_y_2.jpg", "c_x_3.jpg", "d_x_4.jpg"]
    made = made_split(names, split_by=r"^(.)_._(.)")
    assert made["a_x_1.jpg"] == made["a_y_1.jpg"] and made["b_x_2.jpg"] == made["b_y_2.jpg"]
    with pytest.raises(DataError, match=r"finds nothing in 'c_x_3.jpg', as in 2 of the 6 images.*of its own: ") as told:
        made_split(names, split_by="[ab]_")
    alone = shlex.split(str(told.value).rpartition("--split-by ")[2])[0]
    made = made_split(["x/" + name for name in names], split_by=alone)
    assert made["x/a_x_1.jpg"] == made["x/a_y_1.jpg"] and made["x/b_x_2.jpg"] == made["x/b_y_2.jpg"]
    with pytest.raises(DataError, match=r"Without \^, which is where the path begins, .*: --split-by '\[abcd\]_'"):
        made_split(["x/" + name for name in names], split_by="^[abcd]_")
    with pytest.raises(DataError, match=r"as in 6 of the 6 images.* Mend the expression"):
        made_split(names, split_by="patient")
    with pytest.raises(DataError, match="is no regular expression"):
        made_split(names, split_by="(")


def test_how_many_groups_there_are_is_said(tmp_path):
    write_one_json(tmp_path, [f"v{number // 2}_{number % 2}.jpg" for number in range(8)])
    rule = open_data(tmp_path, DataOptions(split_by=r"v\d")).split_rule
    counts = [int(number) for number in re.findall(r"(\d+) groups", rule)]
    assert sum(counts) == 4 and "a group of its own" not in rule
    rule = open_data(tmp_path, DataOptions(split_by=".*")).split_rule
    assert ": every image is a group of its own) (" in rule


def write_one_json(root, names):
    """A COCO data set without splits."""
    boxes = [(number, 1, [1, 1, 5, 5]) for number in range(len(names))]
    write_coco(root, {"all": coco(list(enumerate(names)), boxes)}, "images", "labels.json")


def split_of(data):
    return {record.name: split for split, records in data.splits.items() for record in records}


def test_copies_and_resaved_copies_stay_together(tmp_path):
    names = [f"{number:02d}.jpg" for number in range(20)]
    write_one_json(tmp_path, names)
    before = split_of(open_data(tmp_path))
    val = sorted(name for name, split in before.items() if split == "val")
    train = sorted(before.keys() - val)
    shutil.copy(tmp_path / val[0], tmp_path / train[0])
    with Image.open(tmp_path / val[1]) as image:
        image.resize((80, 60)).save(tmp_path / train[1], quality=60)
    data = open_data(tmp_path)
    after = split_of(data)
    assert after[val[0]] == after[train[0]] and after[val[1]] == after[train[1]]
    others = before.keys() - {*val[:2], *train[:2]}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    found = {(each.kind, each.severity, each.file, each.detail) for each in data.defects if "duplicate" in each.kind}
    same, like = sorted((val[0], train[0])), sorted((val[1], train[1]))
    assert found == {
        ("duplicate-image", "warning", same[1], f"its content is that of {same[0]}"),
        ("near-duplicate-image", "warning", like[1], f"it looks like {like[0]}"),
    }
    file = tmp_path / "labels.json"
    content = json.loads(file.read_text())
    content["annotations"][names.index(Path(same[0]).name)]["bbox"][2] = 6
    file.write_text(json.dumps(content))
    (differs,) = [each for each in open_data(tmp_path).defects if each.kind == "duplicate-image"]
    assert differs.detail == f"its content is that of {same[0]}; its boxes or classes differ"


def test_what_is_in_two_splits_of_the_data_set_is_told(tmp_path):
    train = [f"{number}.jpg" for number in range(6)]
    write_coco(
        tmp_path, {"train": coco(list(enumerate(train))), "val": coco([(0, "0.jpg"), (1, "y.jpg"), (2, "z.jpg")])}
    )
    (tmp_path / "val2017" / "0.jpg").write_bytes((tmp_path / "train2017" / "5.jpg").read_bytes())
    with Image.open(tmp_path / "train2017" / "2.jpg") as image:
        image.resize((80, 60)).save(tmp_path / "val2017" / "y.jpg")
    data = open_data(tmp_path)
    assert [(d.kind, d.severity, d.split, d.file, d.detail) for d in data.defects if d.kind != "size-differs"] == [
        ("image-in-two-splits", "error", "val", "val2017/0.jpg", "its content is that of train2017/5.jpg in 'train'"),
        ("near-duplicate-in-two-splits", "warning", "val", "val2017/y.jpg", "it looks like train2017/2.jpg in 'train'"),
    ]
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 6, "val": 3}
    (divided,) = [d for d in open_data(tmp_path, DataOptions(split_by=r"[xyz012]")).defects if "group" in d.kind]
    assert (divided.kind, divided.severity, divided.file) == ("group-in-two-splits", "error", "val2017/0.jpg")


@pytest.mark.parametrize("form", ["names.json", "hashes.json", "rows.csv", "lists"])
def test_a_file_says_which_image_is_in_which_split(tmp_path, form):
    data, file = tmp_path / "data", tmp_path / form
    write_one_json(data, [f"{name}.jpg" for name in "abcdef"])
    (data / "images" / "e.jpg").write_bytes((data / "images" / "a.jpg").read_bytes())
    splits = {
        "train": ["images/a.jpg", "b.jpg"],
        "Valid": ["./images/c.jpg", "d"],
        "test": [str(data / "images/e.jpg")],
    }
    if form == "names.json":
        file.write_text(json.dumps(splits))
    elif form == "hashes.json":
        file.write_text(json.dumps({split: dict.fromkeys(names, "0123") for split, names in splits.items()}))
    elif form == "rows.csv":
        rows = [f"{name},{split}" for split, names in splits.items() for name in names]
        file.write_text("\n".join(["Filename,Split", *rows]))
    else:
        file.mkdir()
        for split, names in splits.items():
            (file / f"{split}.txt").write_text("\n".join(names) + "\n\n")
    opened = open_data(data, DataOptions(splits=str(file)))
    assert {split: [record.name[-5:] for record in records] for split, records in opened.splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg", "d.jpg"],
        "test": ["e.jpg"],
    }
    assert opened.split_rule == f"splits as in {file}; 1 of 6 images are not in it and left out"
    assert [(d.kind, d.split, d.file[-5:]) for d in opened.defects] == [("image-in-two-splits", "test", "e.jpg")]


def test_splits_of_a_run_hold_for_images_that_were_converted(tmp_path):
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(12)]
    write_one_json(tmp_path / "was", names)
    (tmp_path / "splits.json").write_text(json.dumps(open_data(tmp_path / "was").contents))
    write_one_json(tmp_path / "now", [name.replace("png", "jpg") for name in names])
    before, made = (split_of(open_data(tmp_path / folder)) for folder in ("was", "now"))
    after = split_of(open_data(tmp_path / "now", DataOptions(splits=str(tmp_path / "splits.json"))))
    assert {name.replace("jpg", "png"): split for name, split in after.items()} == before
    assert made != after


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a.jpg"], "val": ["x.jpg"]}, r"names no image of .*: x\.jpg\. Its images are called like"),
        ({"train": ["y.jpg"], "val": ["x.jpg"]}, r"names 2 that are no images of .*: y\.jpg, x\.jpg\. Its"),
        ({"train": ["a.jpg"], "val": ["b.jpg", "JPEGImages/a.jpg"]}, r"has JPEGImages/a\.jpg in two splits"),
        ({"train": ["a.jpg"]}, "names no image of val"),
        ({"train": "a.jpg"}, "is not of the form"),
        (["a.jpg"], "is not of the form"),
        ("{", "is not of the form"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, content, message):
    write_voc(tmp_path / "data", {"a": [("cat", 1, 1, 5, 5)], "b": []})
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"splits\.json {message}"):
        open_data(tmp_path / "data", DataOptions(splits=str(tmp_path / "splits.json")))


def test_a_file_that_cannot_be_used_is_refused(tmp_path):
    write_voc(tmp_path / "data", {"a": [("cat", 1, 1, 5, 5)], "b": []})
    for name, text, message in [
        ("splits.json", "{", r"splits\.json is not JSON"),
        ("splits.yaml", "", r"is not a \.json file"),
        ("splits.csv", "name;part\n", r"needs a header with the columns name and split; it has: name, part"),
        ("typo.csv", "name;split\na.jpg;trian\n", r"typo\.csv has a split 'trian' for a\.jpg: splits are called"),
        ("more.csv", "name,split\na.jpg,\n", r"more\.csv, line 2"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            open_data(tmp_path / "data", DataOptions(splits=str(tmp_path / name)))
    with pytest.raises(DataError, match=r"There is no splits file .*data/splits\.json"):
        open_data(tmp_path / "data", DataOptions(splits=str(tmp_path / "nowhere.json")))
    with pytest.raises(DataError, match="leave out --split-by"):
        open_data(tmp_path / "data", DataOptions(splits="splits.json", split_by="x"))
    with pytest.raises(DataError, match="generated data are drawn in their splits"):
        open_data("generated", DataOptions(split_by="x"))


def test_a_name_that_several_images_have_is_not_guessed(tmp_path):
    write_one_json(tmp_path / "data", ["x/a.jpg", "y/a.jpg", "b.jpg"])
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a.jpg"], "val": ["b.jpg"]}))
    with pytest.raises(DataError, match=r"names 'a\.jpg', which may be any of images/x/a\.jpg, images/y/a\.jpg"):
        open_data(tmp_path / "data", DataOptions(splits=str(tmp_path / "splits.json")))
