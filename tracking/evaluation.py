"""An evaluation's or comparison's own small run, written at once but by the operations of a training's journal."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tracking.deliver import deliver
from tracking.environment import commit_of
from tracking.errors import StoreError
from tracking.journal import Journal
from tracking.records import EVALUATION, StoredCheckpoint
from tracking.run import Dataset, TrackedRun


def log_evaluation(
    store,
    metrics: Mapping[str, float] | Mapping[int, Mapping[str, float]],
    *,
    experiment: str,
    kind: str = EVALUATION,
    run_name: str | None = None,
    source_run_id: str | None = None,
    checkpoint: StoredCheckpoint | None = None,
    step: int = 0,
    dataset: Dataset | None = None,
    dataset_source: str = "",
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    files: Mapping[Path, str | None] | None = None,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[object]]]] | None = None,
    description: Callable[[str], str] | None = None,
) -> str:
    """Logs a finished run with these numbers, linked to the checkpoint where the store has it; returns its ID.

    `metrics` are of `step`, or a mapping of steps to metrics;
    `source_run_id` is the run that was evaluated, which this store need not know; `files` gives each file's folder;
    `tables` gives columns and rows by artifact path, `description` the note of the run with this ID.
    """
    origin = {"source_run_id": source_run_id, "checkpoint": checkpoint and checkpoint.name}
    origin["mlflow.source.git.commit"] = commit_of(store.root)
    known = {key: value for key, value in origin.items() if value is not None}
    run_id, _ = store.create_run(experiment, run_name, {**(tags or {}), **known, "kind": kind})
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = TrackedRun(Path(folder), run_id)
            run.params(params or {})
            if dataset:
                run.dataset(*dataset, dataset_source, "evaluation")
            for path, place in (files or {}).items():
                run.file(path, place)
            for place, content in (tables or {}).items():
                run.table(*content, place)
            if description:
                run.description(description(run_id))
            by_step = metrics if all(isinstance(key, int) for key in metrics) else {step: metrics}
            for each, values in by_step.items():
                run.metrics(values, each, dataset=dataset)
            run.end("FINISHED")
            run.close()
            deliver(store, run_id, _operations(run.journal, checkpoint), Path(folder))
    except (StoreError, OSError):
        store.end(run_id, "FAILED")
        raise
    return run_id


def _operations(journal: Journal, checkpoint: StoredCheckpoint | None) -> Iterator[dict]:
    """The journalled operations, with the metrics given to the checkpoint too."""
    if checkpoint is not None:
        yield {"op": "model_input", "model_id": checkpoint.model_id}
    for _, operation in journal.operations():
        is_linked = checkpoint is not None and operation["op"] == "metrics"
        yield {**operation, "model_id": checkpoint.model_id} if is_linked else operation
