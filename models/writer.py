"""Checkpoints written beside the training: a thread copies the tensors and writes the copy to the disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import torch

from models.checkpoint import plain

Write = Callable[[dict[str, Any]], object]  # gets the copy, and may keep it until it returns


class Writer:
    """Writes one checkpoint after the other. What a write raised, the next call here raises.

    Weights that `optimizer` trains, and its state, change in its step alone: on a CPU they are copied while the loop
    computes the next gradients, and the step waits for that. All else is copied at once. The copy lies in buffers that
    are allocated once: fresh memory costs more than the copying.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None):
        self._optimizer = optimizer
        self._hook = optimizer and optimizer.register_step_pre_hook(self._before_step)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._buffers: dict[str, torch.Tensor] = {}
        self._writing: Future | None = None
        self._copied = Event()
        self._copied.set()

    def write(self, checkpoint: dict[str, Any], write: Write) -> None:
        """Let `write` have a copy of `checkpoint` as it is now, after waiting for the write before."""
        self.wait()
        steady = {tensor.data_ptr() for tensor in self._steady()}
        later: list[tuple[torch.Tensor, torch.Tensor]] = []
        gpus: set[torch.device] = set()
        copy = self._copy(plain(checkpoint), "", steady, later, gpus)
        # Copies from a GPU are under way, in the order of its other work.
        arrived = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]
        self._copied.clear()

        def work() -> None:
            try:
                for buffer, tensor in later:
                    buffer.copy_(tensor)
            finally:
                self._copied.set()
            for event in arrived:
                event.synchronize()
            write(copy)

        self._writing = self._executor.submit(work)

    def wait(self) -> None:
        """Return when nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait for the last write and end the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            if self._hook is not None:
                self._hook.remove()

    def _before_step(self, *_: Any) -> None:
        self._copied.wait()

    def _steady(self) -> Iterator[torch.Tensor]:
        """The tensors on the CPU that change in the optimizer's step alone."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if not parameter.is_cuda:
                    yield parameter
                    yield from (
                        value for value in self._optimizer.state.get(parameter, {}).values() if torch.is_tensor(value)
                    )

    def _copy(self, value: Any, where: str, steady: set[int], later: list, gpus: set[torch.device]) -> Any:
        if isinstance(value, torch.Tensor):
            buffer = self._buffer(value, where)
            if value.data_ptr() in steady:
                later.append((buffer, value))
            else:
                buffer.copy_(value, non_blocking=True)
            if value.is_cuda:
                gpus.add(value.device)
            return buffer
        if isinstance(value, dict):
            return {key: self._copy(item, f"{where}/{key}", steady, later, gpus) for key, item in value.items()}
        if isinstance(value, list):
            return [self._copy(item, f"{where}/{number}", steady, later, gpus) for number, item in enumerate(value)]
        return value

    def _buffer(self, tensor: torch.Tensor, where: str) -> torch.Tensor:
        buffer = self._buffers.get(where)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            # Contiguous: the layout that is fast here is no part of a file.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[where] = buffer
        return buffer
