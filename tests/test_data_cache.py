"""Decoded images in memory: the same batches as without, bounded, read once, shared by workers, safe from changes."""

import multiprocessing
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import train
from amounts import cache_bytes
from commandline import ConfigError
from config import TrainConfig
from data import dataset
from data.cache import ImageCache, available_memory
from data.dataset import DetectionDataset, eval_loader, load_image, train_loader
from data.generated import generated_data
from data.images import read_image
from data.open import open_data
from data.records import DataError
from data.sampling import EpochBatches
from data.transforms import build_transform
from prepare import image_caches
from tests.conftest import STATE, equal, history, last_checkpoint, open_store
from tests.test_data_sampling import record, same

ROOT = Path(__file__).resolve().parents[1]
SIZES = [(40, 30), (16, 20), (64, 48), (1, 7)]  # width, height; 3600, 960, 9216 and 21 bytes of pixels, and a byte each


@pytest.fixture
def records(tmp_path):
    random = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(replace(record(width, height, [[0, 0, 1, 5]], path=path), image_id=number + 1))
    return made


def read_by(dataset, workers):
    return list(eval_loader(dataset, 1, workers=workers))


def spoil(records):
    """The files are images no more."""
    for each in records:
        each.path.write_bytes(b"no image")


@pytest.mark.parametrize(("workers", "held"), [(0, 8), (2, 8), (2, 3)])
def test_batches_are_the_same_with_and_without_a_cache_in_every_epoch(coco_folder, workers, held):
    data = open_data(str(coco_folder)).records("train")
    parts = {"seed": 3, "transform": build_transform("strong"), "drop_crowd": True}
    order = EpochBatches(data, batch_size=3, seed=3)
    with_cache = DetectionDataset(data, **parts, cache=ImageCache(data, held * (1 + 3 * 96 * 128)))
    assert with_cache.cache.held == held
    for epoch in range(2):
        without = train_loader(DetectionDataset(data, **parts), order.batches(epoch))
        cached = train_loader(with_cache, order.batches(epoch), workers=workers)
        assert all(same(one, other) for one, other in zip(without, cached, strict=True))


@pytest.mark.parametrize(("fills", "reads"), [(0, 0), (0, 2), (2, 2)])
def test_what_one_process_has_read_all_others_find(records, fills, reads):
    """Workers of one epoch, those of the next and the main process: no file is opened twice."""
    dataset = DetectionDataset(records, cache=ImageCache(records, 10**6))
    first = read_by(dataset, fills)
    spoil(records)
    assert all(same(one, other) for one, other in zip(first, read_by(dataset, reads), strict=True))
    with pytest.raises(DataError, match=r"0\.png"):
        read_by(DetectionDataset(records), 0)


def test_workers_that_fill_one_place_at_once_leave_the_image(records):
    dataset = DetectionDataset([records[2]], cache=ImageCache(records[2:3], 10**6))
    batches = list(train_loader(dataset, [[(epoch, 0)] for epoch in range(8)], workers=2))
    spoil(records)
    batches += train_loader(dataset, [[(0, 0)]])
    images = [images[0] for images, _ in batches]
    assert len(images) == 9 and all(equal(image, images[0]) for image in images)


def test_changing_an_image_changes_no_other_reading_of_it(records):
    cache = ImageCache(records, 10**6)
    for index, each in enumerate(records):
        for _ in range(3):
            image = cache.image(index, each, load_image)
            assert np.array_equal(image, load_image(each))
            image[:] = 255 - image


@pytest.mark.parametrize(("limit", "held"), [(0, 0), (21, 0), (22, 1), (982, 1), (983, 2), (4584, 3), (13801, 4)])
def test_a_cache_holds_as_many_images_as_fit_and_reads_the_others_each_time(records, limit, held):
    cache = ImageCache(records, limit)
    assert (cache.held, cache.wanted) == (held, 4) and cache.bytes <= limit
    dataset = DetectionDataset(records, cache=cache)
    read_by(dataset, 0)
    spoil(records)
    smallest = [3, 1, 0, 2]
    for place, index in enumerate(smallest):
        is_held = not isinstance(dataset[index], DataError)
        assert is_held == (place < held)


def test_a_file_of_another_size_is_named_and_never_kept(records):
    wrong = replace(records[0], width=41)
    dataset = DetectionDataset([wrong], cache=ImageCache([wrong], 10**6))
    for _ in range(2):
        assert "0.png is 40×30 pixels now and was 41×30" in str(dataset[0])


def test_what_is_not_written_to_its_end_is_not_believed(records):
    cache = ImageCache(records, 10**6)
    with pytest.raises(ValueError, match="broadcast"):
        cache.image(0, records[0], lambda each: load_image(each)[: each.height // 2])
    assert np.array_equal(cache.image(0, records[0], load_image), load_image(records[0]))


def test_drawn_images_have_no_place():
    drawn = generated_data(train=3, val=1, test=0, size=(64, 64)).records("train")
    cache = ImageCache(drawn, 10**6)
    assert (cache.held, cache.wanted, cache.bytes) == (0, 0, 0)
    cached, plain = (DetectionDataset(drawn, cache=each) for each in (cache, None))
    assert all(same(one, other) for one, other in zip(read_by(cached, 0), read_by(plain, 0), strict=True))


def test_a_process_that_is_not_forked_goes_without(records):
    dataset = pickle.loads(pickle.dumps(DetectionDataset(records, cache=ImageCache(records, 10**6))))
    assert dataset.cache is None
    assert all(
        same(one, other) for one, other in zip(read_by(dataset, 0), read_by(DetectionDataset(records), 0), strict=True)
    )


def test_where_workers_are_not_forked_that_is_said(coco_folder, capsys):
    data = open_data(str(coco_folder))
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert image_caches(data, 10**6, workers=2) == (None, None)
        assert "cache: none: loader workers are not forked here" in capsys.readouterr().err
        assert None not in image_caches(data, 10**6, workers=0)
    finally:
        multiprocessing.set_start_method("fork", force=True)


def test_memory_is_taken_as_images_come_and_no_more_of_it(tmp_path):
    """By what the kernel counts as this process's shared memory."""
    Image.new("RGB", (1000, 1000), "red").save(tmp_path / "a.png")
    big = [record(1000, 1000, path=tmp_path / "a.png") for _ in range(8)]

    def shared():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssShmem:")[2].split()[0])

    before = shared()
    dataset = DetectionDataset(big, cache=ImageCache(big, 13_000_000))
    assert (dataset.cache.held, dataset.cache.bytes) == (4, 12_000_004)
    assert shared() - before < 100_000
    for number, expected in enumerate([3e6, 6e6, 9e6, 12e6, 12e6, 12e6, 12e6, 12e6]):
        dataset[number]
        assert expected <= shared() - before < expected + 100_000
    del dataset
    assert shared() - before < 100_000


def test_memory_that_the_system_does_not_give_is_one_message():
    script = (
        "import resource\n"
        "from data.cache import ImageCache\n"
        "from data.records import DataError\n"
        "from types import SimpleNamespace as Record\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))\n"
        "try:\n"
        "    ImageCache([Record(path='a.png', width=10**5, height=10**5)], 10**12)\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "There are no 30,000,000,001 bytes of memory for --cache: Cannot allocate memory\n"


MACHINE = psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("listing", "files", "free"),
    [
        # Version 2, in a container, whose own group is the top.
        ("0::/", {"": ("max", 77, 0)}, None),
        ("0::/", {"": (9000, 5000, 300)}, 4300),
        # … on a cluster: the job's limit lies above the step's, and there is none at the top.
        ("0::/job/step", {"job/step": ("max", 10, 0), "job": (6000, 1000, 0)}, 5000),
        ("0::/job/step", {"job/step": (3000, 10, 0), "job": (6000, 4000, 0)}, 2000),
        ("0::/job", {"job": (6000, 7000, 0)}, 0),
        # Version 1 beside it: in a container the group has a name that is not there.
        ("4:cpu,cpuacct:/a\n3:memory:/docker/1f\n0::/", {"memory": (8000, 3000, 100)}, 5100),
        ("3:memory:/a", {"memory/a": (8000, 3000, 0), "memory": (2**63 - 4096, 9, 0)}, 5000),
        ("", {}, None),
    ],
)
def test_available_memory_is_the_least_that_machine_and_control_groups_leave(tmp_path, listing, files, free):
    (tmp_path / "own").write_text(listing)
    for name, (limit, used, in_files) in files.items():
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        is_first = name.startswith("memory")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_first else ("memory.max", "memory.current")
        for file, value in zip(names, (limit, used), strict=True):
            (folder / file).write_text(f"{value}\n")
        prefix = "total_" if is_first else ""
        below = f"inactive_file 5\nactive_file 5\n{prefix}inactive_file {in_files - 40}\n{prefix}active_file 40\n"
        (folder / "memory.stat").write_text(f"anon 1\n{below}")
    found = available_memory(tmp_path / "groups", tmp_path / "own")
    assert found == free if free is not None else MACHINE / 100 < found <= MACHINE


def test_this_machine_says_what_is_available():
    assert 0 < available_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("1.5gib", 3 * 2**29), ("25%", 2**40 // 4), ("0.5%", 2**40 // 200)]
)
def test_sizes_of_a_cache(text, size):
    assert cache_bytes(text, 2**40) == size


@pytest.mark.parametrize("text", ["0%", "100%", "120%", "-5%", "0GB", "4", "4XB", "much", "0", "nan%", ""])
def test_nonsense_is_refused_before_anything_is_read(text):
    with pytest.raises(ConfigError, match="--cache takes"):
        TrainConfig(cache=text)


def test_more_than_there_is_is_refused_in_one_message(refused):
    message = refused(2, "train.py", "--cache", "900TB")
    assert "error: --cache 900TB is more than the " in message and len(message.splitlines()) == 2
    assert "--cache takes" in refused(2, "train.py", "--cache", "120%")


def test_train_comes_first_and_val_gets_what_is_left(coco_folder, capsys):
    data = open_data(str(coco_folder))
    image = 1 + 3 * 96 * 128
    for limit, held, told in (
        (7 * image, (7, 0), "cache: 7 of 13 images fit into 0 MB\n"),
        (11 * image - 1, (8, 2), "cache: 10 of 13 images fit into 0 MB\n"),
        (99_000_000, (8, 5), "cache: 13 of 13 images, 0 MB of memory\n"),
    ):
        assert tuple(cache.held for cache in image_caches(data, limit, workers=0)) == held
        assert capsys.readouterr().err == told
    drawn = generated_data(train=2, val=1, test=0, size=(64, 64))
    image_caches(drawn, 10**6, workers=0)
    assert capsys.readouterr().err == "cache: nothing to hold: these images are drawn, not read\n"


def test_a_rehearsal_counts_the_memory_that_the_cache_will_have(home, small):
    assert "at the peak, beside it 0 MB of decoded images" in train.main(replace(small, cache="100MB", dry_run=True))
    assert "decoded" not in train.main(replace(small, dry_run=True))


@pytest.mark.slow
def test_training_with_a_cache_reads_each_image_once_and_comes_to_the_same(
    home, small, undisturbed, capsys, monkeypatch
):
    """Stopped in mid-epoch and resumed with another cache, too."""
    plain = undisturbed()
    part = train.main(replace(small, cache="10%", workers=2, max_steps=2))
    assert "cache: 13 of 13 images, 0 MB of memory" in capsys.readouterr().err
    read = []
    monkeypatch.setattr(dataset, "read_image", lambda path: read.append(path) or read_image(path))
    train.main(replace(small, cache="100MB", resume=part, max_steps=8))
    assert sorted(Counter(read).values()) == [1] * 12 + [3]  # one is painted after each of the two validations
    told = capsys.readouterr().err
    assert "--cache 10% → 100MB" in told
    cached = last_checkpoint(part)
    assert [key for key in STATE if not equal(plain.last[key], cached[key])] == []
    assert history(open_store(), part, "val/AP")[1:] == history(plain.store, plain.run_id, "val/AP")
