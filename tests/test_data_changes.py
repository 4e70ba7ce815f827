"""A run keeps which image was in which split; what differs from that later is said by split and image."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

import changes
import prepare
import resuming
from commandline import ConfigError
from data import fingerprint
from data.open import open_data
from data_options import DataOptions
from evaluating.subject import notes_on_data
from models import checkpoint as checkpoints
from tracking.store import open_store
from workspace import WorkspaceError


@pytest.fixture
def store(trained, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return open_store(trained.folder)


@pytest.fixture
def folder(coco_folder, tmp_path):
    """A copy of the data of the trained run."""
    return shutil.copytree(coco_folder, tmp_path / "elsewhere" / "shapes")


@pytest.fixture
def checkpoint(trained):
    return checkpoints.load(trained.checkpoint)


def spoil(folder):
    """Of the training images one goes to val and another gets the pixels of a test image; a box of test shrinks."""
    train, val, test = (folder / "annotations" / f"instances_{split}.json" for split in ("train", "val", "test"))
    contents = {path: json.loads(path.read_text()) for path in (train, val, test)}
    moved = contents[train]["images"].pop(0)
    own = [each for each in contents[train]["annotations"] if each["image_id"] == moved["id"]]
    contents[train]["annotations"] = [each for each in contents[train]["annotations"] if each not in own]
    contents[val]["images"].append(moved | {"id": 999, "file_name": "moved.png"})
    contents[val]["annotations"] += [each | {"image_id": 999, "id": 999 + n} for n, each in enumerate(own)]
    contents[test]["annotations"][0]["bbox"][2] -= 1
    for path, content in contents.items():
        path.write_text(json.dumps(content))
    (folder / "train" / moved["file_name"]).rename(folder / "val" / "moved.png")
    shutil.copy(folder / "test" / "00000.png", folder / "train" / "00001.png")


def test_the_splits_of_a_run_are_its_artifact_and_make_the_same_data_again(trained, store, folder, tmp_path):
    kept = changes.contents_of(store, trained.run_id)
    data = open_data(folder)
    assert kept == data.contents and {split: len(names) for split, names in kept.items()} == {
        "train": 8,
        "val": 5,
        "test": 4,
    }
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    again = open_data(folder, DataOptions(splits=str(tmp_path / "kept.json")))
    assert again.fingerprint == data.fingerprint and again.split_rule == f"splits as in {tmp_path / 'kept.json'}"
    assert store.client.get_run(trained.run_id).data.params["split_rule"] == "the data set's own splits"


def test_what_differs_is_said_by_split_and_image(checkpoint, store, folder):
    assert (
        changes.of_data(checkpoint, open_data(folder), store) == "train is the same, val is the same, test is the same"
    )
    spoil(folder)
    data = open_data(folder)
    assert changes.of_data(checkpoint, data, store) == (
        "train differs (images: 1 gone: train/00000.png; 1 with other content: train/00001.png), "
        "val differs (images: 1 more: val/moved.png), test differs (the same images; annotations of 1: test/00001.png)"
    )
    assert changes.of_data(checkpoint, data, None) == "train differs, val differs, test differs"


def test_both_images_and_annotations_that_differ_are_said_and_classes_by_another_name(checkpoint, store, folder):
    train = folder / "annotations" / "instances_train.json"
    content = json.loads(train.read_text())
    content["images"] = content["images"][1:]
    for path in train.parent.iterdir():
        other = content if path == train else json.loads(path.read_text())
        for category in other["categories"]:
            category |= {"name": category["name"].replace("square", "Square"), "id": 10 - category["id"]}
        for annotation in other["annotations"]:
            annotation["category_id"] = 10 - annotation["category_id"]
        path.write_text(json.dumps(other))
    assert changes.of_data(checkpoint, open_data(folder), store) == (
        "classes differ (gone: square; new: 'Square' (is it 'square'?)), "
        "train differs (images: 1 gone: train/00000.png), "
        "val differs (the same images and annotations), test differs (the same images and annotations)"
    )
    for annotation in content["annotations"]:
        annotation["bbox"][3] -= 1
    train.write_text(json.dumps(content))
    said = changes.of_data(checkpoint, open_data(folder), store)
    assert "train differs (images: 1 gone: train/00000.png; annotations of" in said
    assert "train/00001.png, " in said and said.count(".png") == 4


def test_the_contents_of_a_run_from_before_annotations_were_kept_tell_images(checkpoint, folder, monkeypatch):
    kept = {split: fingerprint.images_of(contents) for split, contents in open_data(folder).contents.items()}
    monkeypatch.setattr(changes, "contents_of", lambda *_: kept)
    spoil(folder)
    assert changes.of_data(checkpoint, open_data(folder), None) == (
        "train differs (images: 1 gone: train/00000.png; 1 with other content: train/00001.png), "
        "val differs (images: 1 more: val/moved.png), test differs (the same images, otherwise annotated)"
    )


def test_an_evaluation_says_what_flatters_its_score(trained, checkpoint, store, folder):
    data = open_data(folder)
    assert notes_on_data(store, checkpoint, data, "val", is_own=True) == []
    (note,) = notes_on_data(store, checkpoint, data, "train", is_own=False)
    assert "'train' is what the checkpoint was trained on" in note
    spoil(folder)
    data = open_data(folder)
    note, way = notes_on_data(store, checkpoint, data, "val", is_own=False)
    assert note == "note: 1 of these 6 images were trained on, which flatters it: val/moved.png"
    assert way == (
        f"note: --splits outputs/{trained.run_id[:8]}/splits.json keeps the run's own split, once it is fetched: "
        f"MLFLOW_TRACKING_URI={store.uri} mlflow artifacts download --run-id {trained.run_id} "
        f"--artifact-path data/splits.json --dst-path outputs/{trained.run_id[:8]}"
    )
    grouped = checkpoint | {"config": checkpoint["config"] | {"split_by": r"^\d+"}}
    assert notes_on_data(store, grouped, data, "val", is_own=False) == [
        note,
        r"note: training's own splits were made by --split-by '^\d+'",
    ]
    differs, *again = notes_on_data(store, checkpoint, data, "val", is_own=True)
    assert "train differs" in differs and again == [note, way]
    assert notes_on_data(store, checkpoint, data, "test", is_own=False) == [
        "note: these are the images of the 'test' that training knew, otherwise annotated"
    ]


def test_images_that_were_converted_were_trained_on_if_their_annotations_are_the_same_too(checkpoint, store, folder):
    for split in ("train", "val", "test"):
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(file.read_text().replace(".png", ".bmp"))
        for path in (folder / split).glob("*.png"):
            with Image.open(path) as image:
                image.save(path.with_suffix(".bmp"))
            path.unlink()
    train = folder / "annotations" / "instances_train.json"
    content = json.loads(train.read_text())
    without = {content["images"][0]["id"], *(each["id"] for each in content["images"][5:])}
    other = content["images"][1]["id"]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] not in without]
    next(each for each in content["annotations"] if each["image_id"] == other)["bbox"][2] -= 1
    train.write_text(json.dumps(content))
    data = open_data(folder)
    was, way = notes_on_data(store, checkpoint, data, "train", is_own=False)
    assert was.startswith("note: at least 3 of these 8 images were trained on, which flatters it: train/00002.bmp, ")
    assert was.endswith(" (3 with other bytes, as converted images: the same path and boxes)")
    assert notes_on_data(store, checkpoint, data, "test", is_own=False) == []
    plan = prepare.make_plan(resuming.config_of(checkpoint), batches_per_epoch=99)
    with pytest.raises(WorkspaceError, match=r"--weights \w+ --data …$"):
        prepare.require_same_steps(checkpoint, plan, data, store)
    data.splits["val"] = data.splits["train"]  # as where a val is made of what was converted
    with pytest.raises(
        WorkspaceError, match=r"at least 3 of val's 8 images were trained on; --splits .* mlflow artifacts"
    ) as no:
        prepare.require_same_steps(checkpoint, plan, data, store)
    assert way.removeprefix("note: ") in str(no.value)


@pytest.mark.parametrize(
    ("empty", "other", "count"),
    [
        ({"train/empty.bmp": "f3"}, "f1", "at least 1"),  # may be the image that was trained on, or another
        ({"train/empty.png": "3"}, "f1", "2"),
        ({"train/else.bmp": "f3"}, "f1", "1"),
        ({}, "f1", "1"),
        ({"train/empty.bmp": "f3"}, "1", "1"),  # nothing else was converted
        ({"train/empty.bmp": "f3"}, "f9", "0"),
    ],
)
def test_images_without_objects_that_may_have_been_converted_make_the_number_the_least(empty, other, count):
    trained = {"train/a.png": "1 x", "train/empty.png": f"3 {fingerprint.NO_OBJECTS}"}
    name = "train/a.bmp" if other != "f9" else "train/b.bmp"
    now = {name: f"{other} x"} | {name: f"{value} {fingerprint.NO_OBJECTS}" for name, value in empty.items()}
    assert changes.trained_on(now, {"train": {}}, {"train": trained}).count == count


def test_a_run_goes_on_with_its_splits_file_at_another_place_if_the_data_are_the_same(
    trained, run_here, checkpoint, folder, tmp_path, monkeypatch
):
    contents, file = open_data(folder).contents, tmp_path / "moved.json"
    file.write_text(json.dumps(contents))
    facts = checkpoint | {"config": checkpoint["config"] | {"splits": "/there/splits.json"}}
    monkeypatch.setattr(resuming, "stored_facts", lambda *_: facts)
    asked = replace(resuming.config_of(facts), resume=trained.run_id, data=str(folder), splits=str(file), epochs=3)
    start = resuming.choose(asked)
    assert (start.run_id, start.config.splits, start.config.data) == (trained.run_id, str(file), str(folder))
    prepare.require_same_data(start, open_data(folder, start.config))
    contents["val"] |= {"train/00000.png": contents["train"].pop("train/00000.png")}
    file.write_text(json.dumps(contents))
    with pytest.raises(
        ConfigError, match=r"--splits .*moved\.json .*train differs \(images: 1 gone: .*test is the same"
    ):
        prepare.require_same_data(start, open_data(folder, start.config))
