"""Order, samples and loaders: a function of (seed, epoch, index), whatever the workers and wherever one starts."""

import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from data.dataset import DetectionDataset, eval_loader, load_image, packed, planes, train_loader, unpacked, worker_init
from data.generated import generated_data
from data.records import DataError, Record
from data.sampling import EpochBatches
from data.transforms import build_transform

ROOT = Path(__file__).resolve().parents[1]


def record(width, height, boxes=(), crowd=(), path=None, area=None):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    crowd = np.array(crowd or [0] * len(boxes), dtype=np.uint8)
    area = np.array(area if area is not None else [1.0] * len(boxes), dtype=np.float64)
    labels = np.ones(len(boxes), dtype=np.int64)
    return Record(
        image_id=1,
        name="a",
        path=path,
        width=width,
        height=height,
        boxes=boxes,
        labels=labels,
        iscrowd=crowd,
        area=area,
    )


MIXED = [record(*((40, 30) if index % 3 else (30, 40))) for index in range(50)]


def test_every_sample_once_an_epoch_in_an_order_of_its_own():
    sampler = EpochBatches(MIXED, batch_size=4, seed=5)
    epochs = [sampler.batches(epoch) for epoch in range(3)]
    for epoch, batches in enumerate(epochs):
        keys = [key for batch in batches for key in batch]
        assert sorted(keys) == [(epoch, index) for index in range(50)]
        assert len(batches) == 14  # 33 landscape, 17 portrait
        assert all(1 <= len(batch) <= 4 for batch in batches)
    orders = {tuple(index for batch in batches for _, index in batch) for batches in epochs}
    assert len(orders) == 3 and tuple(range(50)) not in orders
    assert EpochBatches(MIXED, batch_size=4, seed=5).batches(2) == epochs[2]
    assert EpochBatches(MIXED, batch_size=4, seed=6).batches(2) != epochs[2]


def test_groups_do_not_mix():
    for batch in EpochBatches(MIXED, batch_size=4, seed=0).batches(0):
        assert len({MIXED[index].width > MIXED[index].height for _, index in batch}) == 1


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match="at least 1"):
        EpochBatches(MIXED, batch_size=0, seed=0)


def same(one, other):
    images, targets = one
    other_images, other_targets = other
    assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
    for a, b in zip(targets, other_targets, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key]
    return True


@pytest.fixture(scope="module")
def shapes():
    return generated_data(train=14, val=5, test=0, size=(96, 128)).records("train")


def test_workers_and_resuming_change_nothing_and_no_global_generator_is_used(shapes):
    def batches(workers, start_batch=0):
        dataset = DetectionDataset(shapes, seed=3, transform=build_transform("strong"), drop_crowd=True)
        keys = EpochBatches(shapes, batch_size=3, seed=3).batches(1)[start_batch:]
        return list(train_loader(dataset, keys, workers=workers))

    def global_states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = global_states()
    alone, helped, resumed = batches(0), batches(2), batches(2, start_batch=2)
    assert len(alone) == 5
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))
    assert all(same(one, other) for one, other in zip(alone[2:], resumed, strict=True))
    assert global_states() == before


def test_a_batch_leaves_a_worker_as_one_tensor(shapes, tmp_path):
    """Each would cost a file descriptor; and the images of a batch differ in size."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    samples = [DetectionDataset(shapes)[1], DetectionDataset([record(40, 30, path=tmp_path / "a.png")])[0]]
    pixels, sizes, targets = pickle.loads(pickle.dumps(packed(samples)))
    assert sizes == [(96, 128), (30, 40)] and pixels.ndim == 1
    assert not any(torch.is_tensor(value) for target in targets for value in target.values())
    assert same(unpacked((pixels, sizes, targets)), tuple(zip(*samples, strict=True)))


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size: arrays(np.uint8, (*size, 3))))
def test_planes_are_the_image_channel_by_channel(image):
    result = planes(image)
    assert result.is_contiguous() and np.array_equal(result.numpy(), image.transpose(2, 0, 1))


def test_samples_keep_the_contract_and_epochs_differ(shapes):
    dataset = DetectionDataset(shapes, seed=3, transform=build_transform("standard"))
    index = next(index for index, each in enumerate(shapes) if len(each.boxes) > 1)
    image, target = dataset[0, index]
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.is_contiguous()
    kinds = {"boxes": torch.float32, "labels": torch.int64, "area": torch.float32, "iscrowd": torch.uint8}
    assert {key: target[key].dtype for key in kinds} == kinds
    assert target["boxes"].shape == (len(target["labels"]), 4) and len(target["area"]) == len(target["boxes"])
    assert isinstance(target["image_id"], int) and target["image_id"] == index + 1
    assert same(([image], [target]), tuple([each] for each in dataset[index]))  # a plain index is epoch 0
    seeds = {dataset[epoch, i][1]["sample_seed"] for epoch in range(3) for i in range(3)}
    assert len(seeds) == 9 and all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)
    assert len({dataset[epoch, index][0].numpy().tobytes() for epoch in range(8)}) > 3


def test_an_image_without_objects_is_a_sample(shapes):
    empty = record(128, 96)
    dataset = DetectionDataset(
        [empty], transform=build_transform("strong"), render=lambda _: np.zeros((96, 128, 3), np.uint8)
    )
    for epoch in range(5):
        _, target = dataset[epoch, 0]
        assert target["boxes"].shape == (0, 4) and target["labels"].shape == target["area"].shape == (0,)


def test_crowds_are_dropped_for_training_only(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    crowded = record(40, 30, [[0, 0, 9, 9], [5, 5, 20, 20]], [1, 0], tmp_path / "a.png", area=[40.0, 90.0])
    assert DetectionDataset([crowded])[0][1]["iscrowd"].tolist() == [1, 0]
    for transform in (None, build_transform("flip")):
        _, target = DetectionDataset([crowded], drop_crowd=True, transform=transform)[0]
        assert target["iscrowd"].tolist() == [0] and target["area"].tolist() == pytest.approx([90.0])


def test_area_follows_its_box(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    masked = record(200, 100, [[80, 30, 120, 70]], path=tmp_path / "a.png", area=[800.0])  # half of its box
    dataset = DetectionDataset([masked], transform=build_transform("strong"))
    for epoch in range(10):
        _, target = dataset[epoch, 0]
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        torch.testing.assert_close(target["area"], sides.prod(dim=1) / 2)


def test_evaluation_goes_in_order(shapes):
    dataset = DetectionDataset(shapes)
    loaded = list(eval_loader(dataset, 4, workers=2))
    assert [target["image_id"] for _, targets in loaded for target in targets] == list(range(1, 15))
    assert [len(images) for images, _ in loaded] == [4, 4, 4, 2]


def test_a_file_that_changed_since_opening_is_named(tmp_path):
    Image.new("RGB", (41, 30)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 41×30 pixels now and was 40×30"):
        load_image(record(40, 30, path=tmp_path / "a.png"))


class SignalledDataset(DetectionDataset):
    """Sends its own worker the signals a scheduler sends to all processes of a job."""

    def __getitem__(self, key):
        if torch.utils.data.get_worker_info() is not None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
        return super().__getitem__(key)


def test_workers_outlive_signals(shapes):
    assert len(list(eval_loader(SignalledDataset(shapes), 4, workers=2))) == 4
    assert worker_init.__name__ == "worker_init"  # importable by name: a spawned worker needs it
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN  # and the main process still listens


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_one_message_from_workers_too(tmp_path, workers):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    records = [record(40, 30, path=tmp_path / name) for name in ("a.png", "a.png", "b.png")]
    arrived = []
    with pytest.raises(DataError) as caught:
        for images, _ in eval_loader(DetectionDataset(records), 1, workers=workers):
            arrived.append(len(images))
    assert arrived == [1, 1]
    assert "b.png" in str(caught.value) and "Traceback" not in str(caught.value)


def test_forgotten_workers_do_not_keep_a_process_from_ending(tmp_path):
    """An exception's traceback keeps the loader: its workers, deaf to SIGTERM, are ended all the same."""
    script = tmp_path / "forgetful.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from data.dataset import DetectionDataset, train_loader\n"
        "from data.generated import generated_data\n"
        "records = generated_data(train=40, val=1, test=0, size=(64, 64)).records('train')\n"
        "loader = train_loader(DetectionDataset(records), [[index] for index in range(40)], workers=1)\n"
        "sys.kept = loader, next(loader)\n"
    )
    process = subprocess.run([sys.executable, str(script)], timeout=300, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
