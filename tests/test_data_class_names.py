"""Names of classes that may be meant to be one: what is told, and what is left alone."""

import json

import pytest

from data.class_names import alike, meant
from data.open import open_data
from data.records import DataError
from tests.test_data_readers import coco, write_coco

ONE = [("RBC", "rbc"), ("with_mask", "With Mask"), ("traffic-light", "trafficlight"), ("Platelets", "Platlets")]
ONE += [
    ("Platelets", "Plateltes"),
    ("Platelets", "Plazelets"),
    ("platelets", "Platelet"),
    ("big Platlets", "big_platelets"),
    ("with_mask", "with_masks"),
    ("with_mask", "with_msak"),
]
TWO = [
    ("class1", "class2"),
    ("car", "cat"),
    ("a", "A"),
    ("classA", "classB"),
    ("dog", "dogs"),
    ("dog", "god"),
    ("RBC", "WBC"),
    ("with_mask", "without_mask"),
]
TWO += [
    ("typical", "atypical"),
    ("grade II cell", "grade III cell"),
    ("platelets", "platelets 2"),
    ("sensor01a", "sensor02a"),
    ("size 1_1", "size 11"),
]


@pytest.mark.parametrize("names", ONE)
def test_one_name_typed_in_two_ways_is_told(names):
    assert [pair[:2] for pair in alike(["between", *names])] == [(1, 2)]
    assert len(list(alike(names[::-1]))) == 1


@pytest.mark.parametrize("names", TWO)
def test_names_of_two_classes_are_left_alone(names):
    assert list(alike(names)) == []


def test_a_name_is_taken_for_the_closest_or_for_none():
    classes = ["RBC", "WBC", "Platelets", "class2", "without_mask"]
    assert meant("rbc", classes) == "'rbc' (is it 'RBC'?)"
    assert meant("Platlets", classes) == "'Platlets' (is it 'Platelets'?)"
    assert [meant(name, classes) for name in ("class1", "with_mask", "cell")] == ["'class1'", "'with_mask'", "'cell'"]


def test_alike_classes_are_a_warning_and_a_refused_one_has_a_hint(tmp_path):
    cells = ((1, "RBC"), (2, "Platelets"), (3, "Platlets"))
    rows = [(1, 1, [2, 3, 20, 10]), (1, 2, [5, 5, 12, 20]), (1, 2, [9, 5, 12, 20]), (1, 3, [1, 1, 30, 20])]
    write_coco(tmp_path, {"train": coco([(1, "a.jpg")], rows, cells), "val": coco([(1, "v.jpg")], rows, cells)})
    (alike,) = [each for each in open_data(tmp_path).class_defects if each.kind == "classes-alike"]
    assert str(alike) == (
        "warning: class Platlets: 2 boxes; its name differs from 'Platelets', which has 4, by one letter only "
        "(kept as two classes)"
    )
    val = tmp_path / "annotations" / "instances_val2017.json"
    val.write_text(json.dumps(coco([(1, "v.jpg")], rows, ((1, "rbc"), *cells[1:]))))
    with pytest.raises(DataError, match=r"instances_train2017\.json has no class 'rbc' \(is it 'RBC'\?\)"):
        open_data(tmp_path)


def test_letters_that_changed_places_are_told_as_such_even_in_short_words():
    assert list(alike(["RBC", "RCB", "Platelets", "Platlets"])) == [
        (0, 1, "the order of two letters"),
        (2, 3, "one letter"),
    ]
