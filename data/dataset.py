"""From records to batches of tensors. Every random draw of a sample comes from (seed, epoch, index)."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data import generated
from data.cache import ImageCache
from data.images import read_image
from data.records import DataError, Record

if TYPE_CHECKING:
    from data.transforms import Transform  # takes albumentations' 4 s, which evaluation does not need

Key = int | tuple[int, int]  # a plain index, or (epoch, index)
Sample = tuple[torch.Tensor, dict[str, Any]]  # uint8 (3, H, W), target
Batch = tuple[list[torch.Tensor], list[dict[str, Any]]]
Packed = tuple[torch.Tensor, list[tuple[int, int]], list[dict[str, Any]]]  # all pixels, (H, W) of each, targets


class DetectionDataset(Dataset):
    """Samples of some records, by key: (epoch, index) in training; a plain index is epoch 0, for evaluation.

    A sample is (uint8 tensor (3, H, W), target) with target = boxes float32 (N, 4) xyxy in absolute pixels,
    labels int64 (N,) from 1, area float32 (N,), iscrowd uint8 (N,), image_id int, and sample_seed int for whatever
    else is drawn for this sample. Train with drop_crowd=True (a crowd's box is no example of one object);
    evaluation needs the crowds, to forgive detections inside them.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        seed: int = 0,
        transform: "Transform | None" = None,
        drop_crowd: bool = False,
        render: Callable[[Record], np.ndarray] = generated.render,
        cache: ImageCache | None = None,
    ):
        self.records = records
        self.seed = seed
        self.transform = transform
        self.drop_crowd = drop_crowd
        self.render = render
        self.cache = cache  # laid out for the same records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample | DataError:
        """The sample; a DataError travels as a value, because a worker's exception would arrive as a traceback."""
        try:
            return self.sample(key)
        except DataError as error:
            return error

    def sample(self, key: Key) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        sample_seed, transform_seed = sample_seeds(self.seed, epoch, index)
        image = self._pixels(index, record)
        kept = np.flatnonzero(record.iscrowd == 0) if self.drop_crowd else np.arange(len(record.boxes))
        boxes, labels, area = record.boxes[kept], record.labels[kept], record.area[kept]
        iscrowd = record.iscrowd[kept]
        if self.transform is not None:
            try:
                image, moved, labels, still = self.transform(image, boxes, labels, transform_seed)
            except DataError as error:
                raise DataError(f"{record.path or record.name}: {error}") from error
            # The mask's share of its box stays what it was.
            area = area[still] * (_box_areas(moved) / _box_areas(boxes[still]))
            boxes, iscrowd = moved, iscrowd[still]
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(labels),
            "area": torch.from_numpy(area.astype(np.float32)),
            "iscrowd": torch.from_numpy(iscrowd),
            "image_id": record.image_id,
            "sample_seed": sample_seed,
        }
        return planes(image), target

    def _pixels(self, index: int, record: Record) -> np.ndarray:
        read = partial(load_image, render=self.render)
        return read(record) if self.cache is None else self.cache.image(index, record, read)


def planes(image: np.ndarray) -> torch.Tensor:
    """uint8 (3, H, W) of (H, W, 3): OpenCV takes the channels apart in a third of the time that numpy does."""
    result = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, list(result))
    return torch.from_numpy(result)


def load_image(record: Record, *, render: Callable[[Record], np.ndarray] = generated.render) -> np.ndarray:
    """uint8 (H, W, 3) RGB pixels of a record, read or drawn."""
    image = render(record) if record.path is None else read_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        height, width = image.shape[:2]
        raise DataError(
            f"{record.path or record.name} is {width}×{height} pixels now and was {record.width}×{record.height} "
            "when the data set was opened. Start again with files that do not change."
        )
    return image


def sample_seeds(seed: int, epoch: int, index: int) -> tuple[int, int]:
    """Two independent seeds of a sample: 63 bits for the model's own draws, 32 for the augmentation."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(2, np.uint64)
    return int(state[0]) >> 1, int(state[1]) >> 32


def _box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def collate(batch: Sequence[Sample | DataError]) -> Batch | DataError:
    """(images, targets) as lists: images of a batch differ in size. The first DataError among them stands for all."""
    for sample in batch:
        if isinstance(sample, DataError):
            return sample
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def packed(batch: Sequence[Sample | DataError]) -> Packed | DataError:
    """As collate, for the way out of a worker: each tensor costs a file descriptor and a connection, so one has all."""
    collated = collate(batch)
    if isinstance(collated, DataError):
        return collated
    images, targets = collated
    arrays = [
        {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in target.items()}
        for target in targets
    ]
    return torch.cat([image.flatten() for image in images]), [tuple(image.shape[1:]) for image in images], arrays


def unpacked(batch: Packed) -> Batch:
    """What collate gives; the images are parts of one tensor."""
    pixels, sizes, arrays = batch
    parts = pixels.split([3 * height * width for height, width in sizes])
    images = [part.view(3, *size) for part, size in zip(parts, sizes, strict=True)]
    targets = [
        {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in target.items()}
        for target in arrays
    ]
    return images, targets


def worker_init(_worker_id: int) -> None:
    """Leave signals to the main process, which stops between steps, and threads to the other workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@atexit.register
def end_workers() -> None:
    """Workers ignore SIGTERM, with which multiprocessing would end forgotten ones, to wait for them for ever."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


def train_loader(
    dataset: DetectionDataset, batches: Sequence[list[Key]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches of one epoch, given as lists of keys (EpochBatches.batches); equal for any number of workers."""
    return _loader(dataset, batch_sampler=batches, workers=workers, pin_memory=pin_memory)


def eval_loader(
    dataset: DetectionDataset, batch_size: int, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Every sample once, in order."""
    return _loader(dataset, batch_size=batch_size, workers=workers, pin_memory=pin_memory)


def _loader(dataset: DetectionDataset, *, workers: int, **options: Any) -> Iterator[Batch]:
    """Raises the DataError of a sample when its batch's turn comes."""
    if workers:
        cv2.setNumThreads(0)  # a fork of a process whose OpenCV has a thread pool can hang in the child
    loader = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=packed if workers else collate,
        worker_init_fn=worker_init if workers else None,
        # Without a generator of its own, a loader draws from the global one whenever it is started.
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield unpacked(batch) if workers else batch
