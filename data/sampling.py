"""The order of samples: a pure function of (seed, epoch), so an epoch can be taken up at any batch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from data.records import Record

ORDER_STREAM = 1  # a spawn key of its own: the seeds [seed, epoch] and [seed, epoch, 0] are one and the same to numpy


class EpochBatches(Sampler):
    """Batches of (epoch, index) keys that hold every sample once an epoch, in an order shuffled anew each epoch.

    With `group_by_aspect_ratio` a batch holds landscape or portrait images only, so that little of the padded batch
    is padding; two groups, as in torchvision's reference sampler, but nothing is left out or repeated: each group's
    last batch may be smaller. The number of batches is the same in every epoch.

    Iterating gives the batches of `epoch` from `start_batch` on.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        batch_size: int,
        seed: int,
        group_by_aspect_ratio: bool = True,
        epoch: int = 0,
        start_batch: int = 0,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        landscape = [record.width >= record.height for record in records]
        self.groups = np.array(landscape) if group_by_aspect_ratio else np.zeros(len(records), dtype=bool)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.start_batch = start_batch

    def batches(self, epoch: int, start_batch: int = 0) -> list[list[tuple[int, int]]]:
        """The lists of (epoch, index) of one epoch, from `start_batch` on."""
        stream = np.random.SeedSequence([self.seed, epoch], spawn_key=(ORDER_STREAM,))
        order = np.random.default_rng(stream).permutation(len(self.groups))
        full, started = [], {False: [], True: []}
        for index in order.tolist():
            group = started[bool(self.groups[index])]
            group.append((epoch, index))
            if len(group) == self.batch_size:
                full.append(group.copy())
                group.clear()
        return (full + [group for group in started.values() if group])[start_batch:]

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has: the same for all."""
        landscape = int(self.groups.sum())
        return sum(-(-count // self.batch_size) for count in (landscape, len(self.groups) - landscape))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches(self.epoch, self.start_batch))

    def __len__(self) -> int:
        return max(self.batches_per_epoch - self.start_batch, 0)
