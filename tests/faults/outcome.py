"""What a training leaves behind, in a form in which two trainings that must be equal can be compared."""

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import workspace
from models.checkpoint import load
from models.record import inspect
from tests.conftest import equal

PARTS = ("tracking", "data", "forward", "backward", "optimizer")
TIMINGS = ("system/", "train/images_per_second", *(f"train/{part}_seconds" for part in PARTS))
IDENTITY = ("run_id", "tracking_uri", "config")  # where and under which name it ran, which flags asked for it


@dataclass
class Outcome:
    """The end of one run in the store, in its run folder and at models/faster_rcnn."""

    status: str
    last: dict[str, Any]
    published: dict[str, Any]
    metrics: dict[str, list[tuple[int, float]]]  # every point that the store has
    checkpoints: dict[str, list[Any]]  # name → step, metrics, content of its file


def outcome(store: Any, run_id: str) -> Outcome:
    """Of a run that ended in the home that `workspace` is set to; AssertionError where a hash or a state is wrong."""
    run = store.run(run_id)
    published = inspect(workspace.PUBLISHED, verify=True)
    is_ours = (published.state, published.entry.get("run_id")) == ("ready", run_id)
    metrics = {}
    for key in run.metrics:
        if not key.startswith(TIMINGS):
            points = store.client.get_metric_history(run_id, key)
            in_time = sorted(points, key=lambda point: (point.timestamp, point.step))
            assert [point.step for point in in_time] == sorted(point.step for point in points), f"{key} is out of order"
            metrics[key] = sorted((point.step, point.value) for point in points)
    return Outcome(
        status=run.status,
        last=essence(workspace.RunFolder(run_id).last),
        published=essence(workspace.PUBLISHED) if is_ours else {"nothing": published.state},
        metrics=metrics,
        checkpoints=checkpoints(store, run),
    )


def checkpoints(store: Any, run: Any) -> dict[str, list[Any]]:
    """Every checkpoint of a run, its hash verified; one that is doubled or not whole in the store fails."""
    models = store.client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    states = sorted((model.name, str(model.status)) for model in models)
    assert states == [(name, "READY") for name in sorted({model.name for model in models})], states
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for one in store.checkpoints(run.run_id):
            file = store.download(one, Path(folder) / f"{one.name}.pth")
            found[one.name] = [one.step, one.metrics, essence(file)]
    return found


def essence(file: Path) -> dict[str, Any]:
    """A checkpoint's content but for where it ran."""
    return {key: value for key, value in load(file).items() if key not in IDENTITY}


def differences(first: Outcome, second: Outcome) -> list[str]:
    """What is not equal to the bit, by name."""
    found = []
    for one in fields(Outcome):
        before, after = getattr(first, one.name), getattr(second, one.name)
        if not isinstance(before, dict):
            before, after = {"": before}, {"": after}
        for key in sorted(before.keys() | after.keys()):
            if not (key in before and key in after and equal(before[key], after[key])):
                shown = "" if one.name not in ("status", "metrics") else f": {before.get(key)} → {after.get(key)}"
                missing = " is missing" * (key not in after) + " is too much" * (key not in before)
                found.append(f"{one.name} {key}{missing or shown}")
    return found
