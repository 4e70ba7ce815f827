"""The order of samples: a pure function of (seed, epoch), so an epoch can be taken up at any batch."""

from collections.abc import Sequence

import numpy as np

from data.records import Record

ORDER_STREAM = 1  # a spawn key of its own: the seeds [seed, epoch] and [seed, epoch, 0] are one and the same to numpy


class EpochBatches:
    """Batches of (epoch, index) keys that hold every sample once an epoch, in an order shuffled anew each epoch.

    A batch holds landscape or portrait images only, so that little of the padded batch is padding; two groups, as in
    torchvision's reference sampler, but nothing is left out or repeated: each group's last batch may be smaller. The
    number of batches is the same in every epoch.
    """

    def __init__(self, records: Sequence[Record], *, batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.landscape = [record.width >= record.height for record in records]
        self.batch_size = batch_size
        self.seed = seed

    def batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The lists of (epoch, index) of one epoch."""
        stream = np.random.SeedSequence([self.seed, epoch], spawn_key=(ORDER_STREAM,))
        order = np.random.default_rng(stream).permutation(len(self.landscape))
        full, started = [], {False: [], True: []}
        for index in order.tolist():
            group = started[self.landscape[index]]
            group.append((epoch, index))
            if len(group) == self.batch_size:
                full.append(group.copy())
                group.clear()
        return full + [group for group in started.values() if group]
