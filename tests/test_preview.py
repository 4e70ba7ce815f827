"""The sheet of augmented samples: what it shows is what training sees, and the images on it stand for all classes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import figures
import preview
from data.dataset import DetectionDataset, train_loader
from data.generated import generated_data
from data.records import DataError
from data.sampling import EpochBatches
from data.transforms import build_transform
from recipes import augmentation
from tests.test_data_sampling import record
from workspace import WorkspaceError


@pytest.fixture(scope="module")
def shapes():
    """Drawn images; the last of several objects is called a crowd, which training leaves out."""
    data = generated_data(train=12, val=1, test=1, size=(96, 128))
    crowds = [np.arange(len(one.boxes)) == len(one.boxes) - 1 for one in data.records("train")]
    changed = [
        replace(one, iscrowd=(crowd & (len(crowd) > 1)).astype(np.uint8))
        for one, crowd in zip(data.records("train"), crowds, strict=True)
    ]
    return replace(data, splits=data.splits | {"train": changed})


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_it_shows_what_the_training_loader_gives(shapes, tmp_path):
    preview.write_preview(shapes, tmp_path / "sheet.png", augmentation="strong", seed=5, images=2, variants=3)
    sheet = pixels(tmp_path / "sheet.png")
    records = shapes.records("train")
    dataset = DetectionDataset(records, seed=5, transform=build_transform("strong"), drop_crowd=True)
    top = 0
    for index in preview.chosen(records, 2):
        tallest = 0
        for epoch in range(3):
            batches = EpochBatches(records, batch_size=4, seed=5).batches(epoch)
            batches = [batch for batch in batches if (epoch, index) in batch]
            given = {
                target["image_id"]: (image, target)
                for images, targets in train_loader(dataset, batches)
                for image, target in zip(images, targets, strict=True)
            }
            image, target = given[records[index].image_id]
            image, scale = figures.resized(image.numpy().transpose(1, 2, 0), 400)
            names = [shapes.classes[label - 1] for label in target["labels"]]
            drawn = figures.draw(image, target["boxes"].numpy() * scale, target["labels"].numpy(), names)
            height, width = drawn.shape[:2]
            left, below = (epoch + 1) * (400 + figures.GAP_PIXELS), top + figures.TITLE_PIXELS
            np.testing.assert_array_equal(sheet[below : below + height, left : left + width], drawn)
            tallest = max(tallest, height, 300)  # the image as it is: 96 × 128
        top += figures.TITLE_PIXELS + tallest + figures.GAP_PIXELS


def test_the_images_stand_for_all_classes_and_have_objects():
    def of(*labels, crowd=()):
        one = record(40, 30, [[0, 0, 9, 9]] * len(labels), list(crowd))
        return replace(one, labels=np.array(labels, dtype=np.int64))

    common = [of(1), of(), of(1), of(1, 2), of(1), of(3, crowd=[1]), of(1), of(2), of(1)]
    shown = preview.chosen(common, 4)
    assert len(set(shown)) == 4 and not {1, 5} & set(shown)
    assert sum(2 in common[index].labels for index in shown) == 2
    assert sorted(preview.chosen(common, 99)) == [0, 2, 3, 4, 6, 7, 8]
    many = [of(number % 20 + 1) for number in range(200)]
    assert len({int(many[index].labels[0]) for index in preview.chosen(many, 5)}) == 5
    first = [index // 50 for index in preview.chosen([of(1)] * 200, 4)]
    assert first == [0, 1, 2, 3]  # of one class: spread over the images


def test_what_cannot_be_drawn_or_written_is_one_message(shapes, tmp_path):
    for file in (tmp_path / "sheet", tmp_path / "sheet.txt"):
        with pytest.raises(WorkspaceError, match=r"is to be a picture: end its name in \.jpg or \.png"):
            preview.write_preview(shapes, file, augmentation="flip")
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="file cannot be made"):
        preview.write_preview(shapes, tmp_path / "file" / "sheet.png", augmentation="flip")
    with pytest.raises(DataError, match="no augmentation 'mild'"):
        preview.write_preview(shapes, tmp_path / "sheet.png", augmentation="mild")
    empty = replace(shapes, splits={"train": [record(40, 30)]})
    with pytest.raises(DataError, match="nothing to preview"):
        preview.write_preview(empty, tmp_path / "sheet.png", augmentation="flip")


def test_the_readmes_picture_has_a_column_a_preset(coco_folder, tmp_path, capsys):
    augmentation.main([str(coco_folder), str(tmp_path / "presets.jpg")])
    assert capsys.readouterr().out == f"{tmp_path / 'presets.jpg'}\n"
    assert pixels(tmp_path / "presets.jpg").shape[1] == 6 * (400 + figures.GAP_PIXELS)
