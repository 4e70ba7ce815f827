"""COCO files as the world writes them: each is read rightly, or refused by name."""

import json

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.open import open_data
from data.readers import json_entries
from data.readers.coco import CocoFile, read_coco
from data.readers.masks import box_of_mask
from data.records import REFUSED, DataError
from tests.test_data_readers import coco, write_image


def read(folder, content, split="train", **others):
    """What is found in contents (or texts) by split; a.jpg and b.jpg are there for all."""
    for name in ("a.jpg", "b.jpg"):
        write_image(folder / name)
    files = []
    for each, written in ({split: content} | others).items():
        path = folder / f"{each}.json"
        text = written if isinstance(written, str | bytes) else json.dumps(written)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        files.append(CocoFile(split=each, path=path, image_folders=[folder]))
    return read_coco(folder, files)


def objects(found, split="train"):
    """{image name: [(what, box)]}"""
    return {image.name: [(each.what, each.box) for each in image.objects] for image in found.splits[split]}


def defects(found):
    return [(each.kind, each.object, each.refused) for each in found.defects]


def refusal(folder, content, **others):
    with pytest.raises(DataError) as refused:
        read(folder, content, **others)
    return str(refused.value)


def one(**changes):
    """Content with one annotation on a.jpg, changed; None removes a key."""
    content = coco([(1, "a.jpg")], [(1, 3, [1, 2, 10, 5])])
    content["annotations"][0] |= changes
    return content


def test_ids_are_what_they_mean(tmp_path):
    """0, past 64 bits, texts, floats; gaps of categories are closed, 0 is a class; info and the like are not needed."""
    big = 2**70
    content = coco(
        [(0, "a.jpg"), (big, "b.jpg")],
        [(0, 0, [0, 0, 1, 1]), (big, 7, [0, 0, 2, 2]), ("0", "7", [0, 0, 3, 3]), (0.0, 0, [0, 0, 4, 4])],
        categories=[(7, "late"), ("0", "zero")],
    )
    content["annotations"][1]["id"] = 2**31 + 5
    content["annotations"][2]["id"] = big
    content["annotations"][3]["id"] = "six"
    del content["annotations"][0]["id"]
    found = read(tmp_path, content)
    assert found.classes == ("zero", "late") and found.defects == []
    assert objects(found) == {
        "a.jpg": [
            ("annotation number 0 (zero)", (0, 0, 1, 1)),
            (f"annotation {big} (late)", (0, 0, 3, 3)),
            ("annotation six (zero)", (0, 0, 4, 4)),
        ],
        "b.jpg": [("annotation 2147483653 (late)", (0, 0, 2, 2))],
    }
    first = next(iter(found.splits["train"][0].objects))
    assert (first.iscrowd, first.area) == (0, None)


def test_ids_of_images_collide_between_splits(tmp_path):
    other = coco([(1, "b.jpg")], [(1, 1, [5, 5, 1, 1])], categories=[(1, "dog"), (2, "cat")])
    found = read(tmp_path, one(), val=other)
    assert found.classes == ("cat", "dog")
    assert objects(found, "val") == {"b.jpg": [("annotation 0 (dog)", (5, 5, 6, 6))]}
    assert objects(found, "train") == {"a.jpg": [("annotation 0 (dog)", (1, 2, 11, 7))]}


@pytest.mark.parametrize(
    ("changes", "box"),
    [
        ({"bbox": ["1", "2.5", "3", "4"]}, (1, 2.5, 4, 6.5)),
        ({"bbox": None}, None),
        ({"bbox": []}, None),
        ({"bbox": [1, 2, 3, 4, 0.5]}, None),
        ({"bbox": [1, 2, 3, None]}, None),
        ({"bbox": "1234"}, None),
        ({"bbox": [1, 2, 3, 10**400]}, None),
        ({"bbox": {"x": 1}}, None),
        ({"bbox": [1, 2, 3, 4, 5], "segmentation": [[0, 0, 9, 0, 9, 9]]}, None),  # a wrong box is not made up for
        ({"bbox": None, "segmentation": [[3, 4, 9, 4, 9, 8], [1, 5, 2, 6, 2, 7]]}, (1, 4, 9, 8)),
        ({"bbox": [], "segmentation": [3, 4, 9, 4, 9, 8]}, (3, 4, 9, 8)),
        ({"bbox": None, "segmentation": {"size": [5, 4], "counts": [6, 2, 12]}}, (1, 1, 2, 3)),
        ({"bbox": None, "segmentation": {"size": [5, 4], "counts": [6, 2]}}, None),
        ({"bbox": None, "segmentation": [["x"]]}, None),
        ({"bbox": None, "segmentation": "x"}, None),
    ],
)
def test_boxes(tmp_path, changes, box):
    found = read(tmp_path, one(**changes))
    assert objects(found) == {"a.jpg": [("annotation 0 (dog)", box)]}
    of_mask = bool(box and changes["bbox"] in (None, []))
    assert defects(found) == ([("box-of-mask", "annotation 0", False)] if of_mask else [])


def test_numbers_that_json_does_not_have(tmp_path):
    text = json.dumps(one(bbox=[float("nan"), 1, float("inf"), 2], area=float("-inf")))
    assert "NaN" in text and "Infinity" in text
    (image,) = read(tmp_path, text).splits["train"]
    (found,) = image.objects
    np.testing.assert_equal(found.box, (np.nan, 1, np.nan, 3))
    assert found.area == -np.inf


@settings(max_examples=100)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_the_box_of_a_run_length_mask_is_pycocotools(height, width, data):
    pixels = data.draw(st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width))
    mask = np.array(pixels, np.uint8).reshape(height, width)
    runs = pycocotools.mask.encode(np.asfortranarray(mask))
    x, y, w, h = pycocotools.mask.toBbox(runs)
    found = box_of_mask({"size": runs["size"], "counts": runs["counts"].decode()})
    assert found == ((x, y, x + w, y + h) if mask.any() else None)


def test_crowds_and_areas(tmp_path):
    runs = {"size": [30, 40], "counts": [6, 2, 1192]}
    for crowd, expected in ((1, 1), ("1", 1), ("0", 0), (0, 0), (None, 0), (True, 1)):
        (image,) = read(tmp_path, one(iscrowd=crowd, area="12.5", segmentation=runs)).splits["train"]
        (found,) = image.objects
        assert (found.iscrowd, found.area, found.box) == (expected, 12.5, (1, 2, 11, 7))


def test_what_a_person_must_mend_is_named_and_reading_goes_on(tmp_path):
    of = [(1, 3), (6, 9), (6, 9), (6, None), (None, 1), (77, 3), (77, 1)]
    content = coco(
        [(1, "a.jpg"), (1, "b.jpg"), (2, "a.jpg"), (None, "c.jpg"), (5, None), (6, "b.jpg")],
        [(image, category, [0, 0, 1, 1]) for image, category in of],
    )
    content["annotations"][2]["id"] = 1
    found = read(tmp_path, content)
    assert sorted(defects(found)) == [
        ("annotation-id-twice", "annotation 1", False),
        ("image-id-twice", "image 1 (b.jpg)", True),
        ("image-listed-twice", "image 2 (a.jpg)", True),
        ("image-without-file-name", "image 5", True),
        ("image-without-id", "image number 3", True),
        ("orphan-annotation", "annotation 4 (cat)", False),
        ("orphan-annotation", "annotation 5 (dog) and 1 more", False),
        ("unknown-class", "annotation 1 and 1 more", True),
        ("unknown-class", "annotation 3", True),
    ]
    assert {each.severity for each in found.defects if each.refused} == {"error"}
    assert objects(found) == {"a.jpg": [("annotation 0 (dog)", (0, 0, 1, 1))], "b.jpg": []}
    with pytest.raises(DataError, match=r"2 unknown-class: train: train\.json, annotation"):
        open_data(tmp_path / "train.json")
    assert {each.kind for each in open_data(tmp_path / "train.json", refuse=False).defects if each.refused} == {
        kind for kind, _, refused in defects(found) if refused
    }


def test_categories_that_differ_between_splits(tmp_path):
    """Fewer are fine, others are dropped where nothing is of them; that of a split's objects must be training's."""
    fewer = coco([(1, "b.jpg")], [(1, 8, [0, 0, 1, 1])], categories=[(8, "dog")])
    assert objects(read(tmp_path, one(), val=fewer), "val") == {"b.jpg": [("annotation 0 (dog)", (0, 0, 1, 1))]}
    more = coco([(1, "b.jpg")], [(1, 8, [0, 0, 1, 1])], categories=[(8, "dog"), (9, "cow")])
    found = read(tmp_path, one(), val=more)
    assert found.classes == ("cat", "dog")
    assert defects(found) == [("unused-class", "category 9 (cow)", False)]
    more["annotations"][0]["category_id"] = 9
    found = read(tmp_path, one(), val=more)
    assert defects(found) == [("unknown-class", "category 9 (cow)", True)] and objects(found, "val") == {"b.jpg": []}
    assert "cat, dog" in found.defects[0].detail and found.defects[0].action == REFUSED


def test_lvis_names_its_images_by_url(tmp_path):
    content = one()
    content["images"][0] = {
        "id": 1,
        "coco_url": "http://images.example.org/train2017/a.jpg",
        "width": "40",
        "height": 30,
    }
    (image,) = read(tmp_path, content).splits["train"]
    assert (image.name, image.path, image.declared_size) == ("a.jpg", tmp_path / "a.jpg", (40, 30))


def test_what_is_another_thing_is_called_by_its_name(tmp_path):
    captions = one(caption="a dog")
    del captions["annotations"][0]["bbox"]
    assert "holds captions, not boxes" in refusal(tmp_path, captions)
    panoptic = one(segments_info=[])
    del panoptic["annotations"][0]["bbox"]
    assert "holds panoptic segments" in refusal(tmp_path, panoptic)
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1, 1], "score": 0.5}]
    assert "is a list of results" in refusal(tmp_path, results)
    assert "is a list" in refusal(tmp_path, [1]) and "no list 'images'" in refusal(tmp_path, [])
    assert "no list 'annotations'" in refusal(tmp_path, {"images": [], "categories": [], "annotations": {}})
    assert "entry 0 of 'images' is no object" in refusal(tmp_path, {"images": ["a.jpg"]})
    keypoints = one(keypoints=[1, 2, 2], num_keypoints=1)
    assert objects(read(tmp_path, keypoints)) == {"a.jpg": [("annotation 0 (dog)", (1, 2, 11, 7))]}


def test_encodings(tmp_path):
    content = coco([(1, "a.jpg")], [(1, 3, [1, 2, 10, 5])], categories=[(3, "Ærfugl")])
    text = json.dumps(content, ensure_ascii=False)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        assert read(tmp_path, text.encode(encoding)).classes == ("Ærfugl",)
    assert "train.json is not JSON: it is not in UTF-8" in refusal(tmp_path, text.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting '{' at character 0"),
        ("{'images': []}", "Expecting value at character 1"),
        ('{"images": [{"id": 1}, {"id": }]}', "Expecting value at character 30"),
        ('{"images": [{"id": 1} {"id": 2}]}', "Expecting ',' at character 22"),
        ('{"info": [1', "Expecting ',' at character 11"),
        ('{"images": []} x', "Extra data at character 15"),
        ('{"images": [], "images": []}', "A second list 'images' at character 25"),
        ('{"info": "abc', "Unterminated string starting at at character 9"),
        ('{"info": ' + "[" * 100_000, "nested too deeply"),
        ('{"info": ' + "1" * 5000 + "}", "4300"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(tmp_path, monkeypatch, text, message):
    for window in (json_entries.WINDOW, 7):
        monkeypatch.setattr(json_entries, "WINDOW", window)
        assert message in refusal(tmp_path, text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1), VALUES), st.integers(1, 40), st.sampled_from([None, 2]))
def test_a_window_of_any_width_shows_what_the_whole_holds(tmp_path_factory, content, width, indent):
    path = tmp_path_factory.getbasetemp() / "window.json"
    path.write_text(json.dumps(content, indent=indent))
    taken = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_entries, "WINDOW", width)
        lengths = json_entries.read_entries(path, lambda key, _, entry: taken.setdefault(key, []).append(entry))
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    assert lengths == {key: len(value) for key, value in lists.items()}
    np.testing.assert_equal(taken, {key: value for key, value in lists.items() if value})
