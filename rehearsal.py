"""`train.py --dry-run`: one step of the largest batch, and what the whole run will take. Nothing is tracked or kept."""

import resource
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import engine
import workspace
from data.dataset import train_loader
from disk import in_words
from models import checkpoint as checkpoints
from prepare import Job, snapshot
from progress import duration

TIMED_STEPS = 3  # the first ones find their kernels and memory


def rehearse(job: Job) -> str:
    """The summary; WorkspaceError (exit code 5) when the disk has no room for the run's checkpoints."""
    config, plan = job.config, job.plan
    batch = largest_batch(job)
    step = time_step(job, batch)
    left = plan.last_step - job.position.step
    require_writing(job)
    if shortage := job.forecast.shortage():
        raise workspace.WorkspaceError(shortage, exit_code=5)
    parameters = list(job.model.parameters())
    training = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    cached = sum(cache.bytes for cache in (job.dataset.cache, job.val_cache) if cache)
    beside = f", beside it {in_words(cached)} of decoded images" if cached else ""
    batches = f"{config.accumulate} × " if config.accumulate > 1 else ""
    rows = {
        "data": job.data.describe()[0],
        "model": f"{job.info.architecture['builder']}, {total / 1e6:.1f} M parameters, {training / 1e6:.1f} M train",
        "run": f"{left} steps of {batches}{config.batch_size} images, {plan.steps_per_epoch} an epoch",
        "step": f"{step.seconds:.2f} s for the largest batch on {job.device} (loss {step.losses['loss']:.3f}): "
        f"at most about {duration(step.seconds * left)} for all, beside the validations",
        "memory": f"{in_words(peak_memory(job.device))} at the peak{beside}",
        "disk": f"{job.forecast}, {in_words(shutil.disk_usage(workspace.ROOT).free)} are free",
    }
    return "\n".join(f"{name:<7} {text}" for name, text in rows.items())


def largest_batch(job: Job) -> list[tuple[int, int]]:
    """Keys (epoch 0, index) of the images that are largest after resizing, of one orientation, most boxes first."""
    shortest, longest = max(job.model.transform.min_size), job.model.transform.max_size

    def pixels(index: int) -> tuple[float, int]:
        record = job.dataset.records[index]
        short, long = sorted((record.width, record.height))
        scale = min(shortest / short, longest / long)
        return scale * scale * short * long, len(record.boxes)

    groups: dict[bool, list[int]] = {}
    for index, record in enumerate(job.dataset.records):
        groups.setdefault(record.width >= record.height, []).append(index)
    chosen = [sorted(group, key=pixels, reverse=True)[: job.config.batch_size] for group in groups.values()]
    return [(0, index) for index in max(chosen, key=lambda group: sum(pixels(index)[0] for index in group))]


def time_step(job: Job, batch: Sequence[tuple[int, int]]) -> engine.Step:
    """The last of a few steps of that batch; training goes no further with these weights."""
    job.model.transform.min_size = (max(job.model.transform.min_size),)  # the largest that --multi-scale may draw
    batches = [list(batch)] * (TIMED_STEPS * job.config.accumulate)
    steps = engine.train_steps(
        job.model,
        train_loader(job.dataset, batches, workers=0),
        job.optimizer,
        job.schedule,
        job.scaler,
        steps_done=job.position.step,
        seed=job.config.seed,
        device=job.device,
        amp=job.amp,
        clip_norm=job.config.clip_norm,
        accumulate=job.config.accumulate,
        average=job.average,
    )
    return list(steps)[-1]


def require_writing(job: Job) -> None:
    """Write a checkpoint once for real: whatever hinders that is told now."""
    workspace.require_writable(workspace.RUNS, mend="Make it writable")
    with tempfile.TemporaryDirectory(dir=workspace.RUNS, prefix=".dry-run-") as folder:
        checkpoints.save(snapshot(job), Path(folder) / "checkpoint.pth")


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
