"""Training steps and predictions: generators that the scripts drive. Nothing here logs or saves."""

import contextlib
import itertools
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from machine import DeviceError, require_precision

Batch = tuple[list[Tensor], list[dict[str, Any]]]
ON_DEVICE = ("forward", "backward", "optimizer")  # parts of a step; the others are the loop's: tracking and data


class NonFiniteLoss(RuntimeError):
    """A loss or the gradient is NaN or infinite: the batch that caused it is in `image_ids` and `boxes`."""

    exit_code = 7

    def __init__(self, message: str, *, step: int, losses: dict[str, float], targets: Sequence[dict]):
        super().__init__(message)
        self.step, self.losses = step, losses
        self.image_ids = [int(target["image_id"]) for target in targets]
        self.boxes = [target["boxes"].tolist() for target in targets]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One finished optimizer step."""

    index: int  # optimizer steps done in the run, this one included
    losses: dict[str, float]  # `loss` is their sum; means over the step's batches
    gradient_norm: float  # before clipping
    learning_rate: float
    batches: int  # whose gradients it took
    images: int
    seconds: float  # the whole step, with what the caller did since the step before
    watch: "Stopwatch"  # `watch.parts()`: the seconds of its parts


class Stopwatch:
    """Takes the time of a step's parts; a GPU is asked for its own times, and waited for, only in `parts`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._marks = [("", *self._now())]

    def mark(self, part: str) -> None:
        """What was done since the last mark is `part`."""
        self._marks.append((part, *self._now()))

    def parts(self) -> dict[str, float]:
        """Seconds by part, in their order; those of a part that came several times are summed."""
        seconds: dict[str, float] = {}
        for (_, begun, first), (part, ended, last) in itertools.pairwise(self._marks):
            if last is not None and part in ON_DEVICE:
                last.synchronize()
                begun, ended = 0.0, first.elapsed_time(last) / 1000
            seconds[part] = seconds.get(part, 0.0) + ended - begun
        return seconds

    def _now(self) -> tuple[float, torch.cuda.Event | None]:
        event = torch.cuda.Event(enable_timing=True) if self.device.type == "cuda" else None
        if event is not None:
            event.record(torch.cuda.current_stream(self.device))
        return time.perf_counter(), event


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from a tuple of integers; near tuples give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def train_steps(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    *,
    steps_done: int,
    seed: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    clip_norm: float | None = None,
    accumulate: int = 1,
    average: AveragedModel | None = None,
) -> Iterator[Step]:
    """Train on `batches` of (uint8 images, targets), yielding after every optimizer step.

    A step takes the mean gradient of `accumulate` batches (of those that are left, at the end), and its weights enter
    `average`. Each batch first seeds torch from (seed, step, batch): dropout and the like need no saved generator
    state. NonFiniteLoss is raised before the weights are touched.
    """
    model.train()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    started, watch = time.perf_counter(), Stopwatch(device)
    for index, group in enumerate(_groups(batches, accumulate), start=steps_done + 1):
        watch.mark("data")
        optimizer.zero_grad(set_to_none=True)
        rows = []
        for number, (images, targets) in enumerate(group):
            torch.manual_seed(seed_of(seed, index, number, 0))  # (seed, step, micro-batch, rank)
            torch.clear_autocast_cache()  # where a `predict` has been left open: its weights are old
            with autocast(device, amp):
                losses = model([to_float(image, device) for image in images], to_device(targets, device))
                total = torch.stack(list(losses.values())).sum()
            watch.mark("forward")
            scaler.scale(total / len(group)).backward()
            rows.append(torch.stack([total, *losses.values()]).detach().float())
            watch.mark("backward")
        scaler.unscale_(optimizer)
        norm = gradient_norm(parameters, clip_norm)
        values, norm = _numbers(["loss", *losses], rows, norm, group, index, skips_infinite=scaler.is_enabled())
        learning_rate = optimizer.param_groups[0]["lr"]
        scaler.step(optimizer)
        scaler.update()
        with warnings.catch_warnings(action="ignore"):  # torch warns where a scaler skips the first step
            schedule.step()
        if average is not None:
            average.update_parameters(model)
        watch.mark("optimizer")
        step = Step(
            index=index,
            losses=values,
            gradient_norm=norm,
            learning_rate=learning_rate,
            batches=len(group),
            images=sum(len(images) for images, _ in group),
            seconds=time.perf_counter() - started,
            watch=watch,
        )
        started, watch = time.perf_counter(), Stopwatch(device)
        yield step
        watch.mark("tracking")


def _numbers(
    names: Sequence[str],
    rows: Sequence[Tensor],
    norm: Tensor,
    group: Sequence[Batch],
    index: int,
    *,
    skips_infinite: bool,
) -> tuple[dict[str, float], float]:
    """(mean losses, gradient norm) of a step, of each batch's `rows` (losses,), with NonFiniteLoss where one is none.

    The one time that a step waits for a GPU: no weight is touched before these are known to be numbers.
    `skips_infinite`: a scaler skips a step of such a norm and lowers its scale.
    """
    *numbers, length = torch.cat([*rows, norm.float().reshape(1)]).tolist()
    starts = range(0, len(numbers), len(names))
    by_batch = [dict(zip(names, numbers[start : start + len(names)], strict=True)) for start in starts]
    for values, (_, targets) in zip(by_batch, group, strict=True):
        _require_finite(values, index, targets)
    means = {name: statistics.fmean(one[name] for one in by_batch) for name in names}
    if not math.isfinite(length) and not skips_infinite:
        targets = [target for _, targets in group for target in targets]
        raise NonFiniteLoss(f"The gradient of step {index} is {length}", step=index, losses=means, targets=targets)
    return means, length


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def gradient_norm(parameters: Sequence[nn.Parameter], clip_norm: float | None) -> Tensor:
    """The norm of all gradients as one vector, which are clipped to `clip_norm` if that is given."""
    if clip_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, clip_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _require_finite(losses: dict[str, float], index: int, targets: Sequence[dict]) -> None:
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        message = f"Step {index}: {', '.join(f'{name} is {losses[name]}' for name in bad)}"
        raise NonFiniteLoss(message, step=index, losses=losses, targets=targets)


@dataclass(frozen=True, slots=True)
class Detections:
    """Found in one image, best first: boxes (N, 4) xyxy in absolute pixels, labels (N,) 1..C, scores (N,)."""

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    amp: torch.dtype | None = None,
    seconds: list[float] | None = None,
) -> Iterator[Detections]:
    """Detect in every image, in its original size; the model is in evaluation mode meanwhile.

    `seconds` gets what each image took in the model (resizing and the way to and from the device with it), its share
    of its batch.
    """
    was_training = model.training
    model.eval()
    torch.autocast_increment_nesting()  # weights that autocast has cast serve all batches, not one
    try:
        for images, targets in batches:
            started = time.perf_counter()
            # Not inference_mode, in which autocast keeps no weights.
            with torch.compiler.set_stance("force_eager"), torch.no_grad(), autocast(device, amp):
                outputs = model([to_float(image, device) for image in images])
            arrays = [
                (*(output[key].float().cpu().numpy() for key in ("boxes", "scores")), output["labels"].cpu().numpy())
                for output in outputs
            ]
            if seconds is not None:
                seconds += [(time.perf_counter() - started) / len(images)] * len(images)
            for target, (boxes, scores, labels) in zip(targets, arrays, strict=True):
                yield Detections(int(target["image_id"]), boxes, labels, scores)
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        model.train(was_training)


def to_float(image: Tensor, device: torch.device) -> Tensor:
    """uint8 (3, H, W) → float32 in 0..1 on the device: a quarter of the bytes travel."""
    return image.to(device, non_blocking=True).float().div_(255)


def to_device(targets: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    return [
        {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in target.items()
        }
        for target in targets
    ]


def autocast(device: torch.device, amp: torch.dtype | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if amp is None else torch.autocast(device.type, dtype=amp)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads: another number adds in another order, which rounds differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float, reference: bool = False
) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the parameters that train; torch's plain kernels for `reference`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kernels = {} if reference else {"fused": True}
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, **kernels)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, **kernels)


@torch.no_grad()
def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory layout of its parameters: fused kernels take that for granted."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` whose weights follow it as an exponential moving average; `.module` is the detector.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n steps, so that short runs do not average their random
    beginning (TensorFlow's ExponentialMovingAverage with num_updates). Statistics of batch norms are averaged too,
    as in torchvision's references.
    """

    @torch.no_grad()
    def follow(averages: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        if averages[0].is_floating_point():
            done = int(updates)
            torch._foreach_lerp_(averages, current, 1 - min(decay, (1 + done) / (10 + done)))
        else:  # counters
            torch._foreach_copy_(averages, current)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)


def learning_rate_factor(
    step: int, *, schedule: str, warmup_steps: int, total_steps: int, milestone_steps: Sequence[int] = ()
) -> float:
    """The factor on the base rate for the step after `step` finished ones.

    Linear warm-up from 1/1000 (torchvision's reference), then ÷10 at each milestone or half a cosine to zero.
    """
    warmup = 1e-3 + (1 - 1e-3) * step / warmup_steps if step < warmup_steps else 1.0
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return warmup * 0.1 ** sum(step >= milestone for milestone in milestone_steps)


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cpu" and device.index:  # which torch takes for the one CPU
            raise RuntimeError("there is one CPU")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise DeviceError(f"--device {name}: {str(error).splitlines()[0]}. This machine has: {_devices()}") from error
    return device


def _devices() -> str:
    return ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])


def require_compiler(device: torch.device) -> None:
    """DeviceError where torch.compile would find no compiler for the device's programs."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise DeviceError("--compile needs Triton, which does not work with this GPU: leave it out")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise DeviceError("--compile needs a C++ compiler: install g++, or leave it out") from error


def emulates(amp: torch.dtype | None, device: torch.device) -> bool:
    """Whether the device computes in `amp` without instructions for it, which is slower than in float32."""
    if amp != torch.bfloat16:
        return False
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return has["architecture"] == "x86_64" and not (has["avx512_bf16"] or has["amx_bf16"])


def amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """`off`, `bf16` or `fp16` as a dtype; DeviceError where the device does not have it."""
    require_precision(name, device.type)
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
