"""Detecting in a split's images and comparing with the ground truth: evaluation, and training's validation."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from machine import usable_cores
from progress import Progress, say

SCORER = "numpy"
FEWEST_REPLICATES = 20  # of which one is outside of a 95% interval


@dataclass(frozen=True, kw_only=True)
class Score:
    """COCO metrics in 0..1 (overall and by class), with the detections and ground truth they come from."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    results: list[dict[str, Any]]
    ground_truth: dict[str, Any]
    latency: dict[str, float]  # forward_ms and whole_ms of an image, {} where none was
    batch_size: int
    device: str


def score(
    model: Any,
    records: Sequence[Any],
    classes: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    device: Any,
    amp: Any = None,
    scorer: str = SCORER,
    title: str = "evaluate",
    cache: Any = None,
) -> Score:
    """Detect in every image and compare with the ground truth; training's validation is this function too.

    `cache` is a data.cache.ImageCache of the records.
    """
    import engine
    import metrics
    from data.dataset import DetectionDataset, eval_loader

    dataset, pin_memory = DetectionDataset(records, drop_crowd=False, cache=cache), device.type == "cuda"
    loader = eval_loader(dataset, batch_size=batch_size, workers=workers, pin_memory=pin_memory)
    detections, forward, ends = [], [], [time.perf_counter()]
    with Progress(title, len(records), unit="images") as progress:
        for found in engine.predict(model, loader, device=device, amp=amp, seconds=forward):
            detections.append(found)
            ends.append(time.perf_counter())
            progress.step()
    ground_truth = metrics.coco_ground_truth(records, classes)
    results = metrics.coco_results(detections)
    return Score(
        results=results,
        ground_truth=ground_truth,
        latency=_latency(forward, ends, batch_size),
        batch_size=batch_size,
        device=str(device),
        **metrics.coco_metrics(ground_truth, results, scorer=scorer),
    )


def _latency(forward: Sequence[float], ends: Sequence[float], batch_size: int) -> dict[str, float]:
    """Of an image: the median time in the model, and the mean of all with loading; ends[0] is the start.

    The first batch, in which workers start and memory is first used, counts only where it is the only one.
    """
    if not forward:
        return {}
    first = batch_size if len(forward) > batch_size else 0
    whole = (ends[-1] - ends[first]) / (len(forward) - first)
    return {"forward_ms": 1000 * statistics.median(forward[first:]), "whole_ms": 1000 * whole}


def threads_as_in(training: dict[str, Any]) -> int:
    """Training's number of CPU threads, where this machine has as many cores."""
    import torch

    threads, cores = training.get("threads") or torch.get_num_threads(), usable_cores()
    if threads <= cores:
        return threads
    say(f"note: training used {threads} CPU threads, here are {cores} cores: the last decimals may differ")
    return torch.get_num_threads()


def precision_as_in(training: dict[str, Any], device: str) -> str:
    """Training's precision, where this device has it."""
    name = training.get("amp") or "off"
    if name == "fp16" and device == "cpu":
        say("note: validated in fp16, which this device does not have: scored in fp32")
        return "off"
    return name


def loader_workers(asked: int | None, where: str) -> int:
    """Generated images cost less than processes that would draw them."""
    if asked is not None:
        return asked
    return 0 if where == "generated" else min(4, usable_cores())
