"""Runs and checkpoints as plain values, read from mlflow's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

EVALUATION = "evaluation"  # the tag `kind` that tells an evaluation's run from a training …
COMPARISON = "comparison"  # … and a comparison's
NO_TRAINING = (EVALUATION, COMPARISON)
HEARTBEAT = "heartbeat"  # tag, JSON: what trains the run, when it last said so, and how far it was
NOTE = "mlflow.note.content"  # tag: what the UI shows as the description
PRUNED = "pruned"  # tag of a LoggedModel: when and why its files were deleted
CHECKPOINT_FILE = "checkpoint.pth"
CHECKPOINT_FOLDER = "artifacts"  # of a LoggedModel's artifacts: MLflow's own name for a model's data
FACTS = "run.json"  # a run's artifact: what RunInfo says of it
PROGRESS = "progress"  # tag, JSON: how far it was at its last checkpoint or at its end, and its best
ORIGIN = "origin_run_id"  # tag of a copy: the run that it was made from …
ORIGIN_STORE = "origin_tracking_uri"  # … and the store which has that
COPIED = "copied"  # tag of a copy: its state when it had been copied; in another it went on by itself


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as the store has it; times in ms since 1970."""

    run_id: str
    name: str
    status: str
    experiment: str
    experiment_id: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    start_time: int
    end_time: int | None
    artifact_uri: str
    datasets: tuple[dict, ...] = ()  # name, digest, source, context
    is_deleted: bool = False

    @property
    def is_evaluation(self) -> bool:
        return self.tags.get("kind") == EVALUATION

    @property
    def is_training(self) -> bool:
        return self.tags.get("kind") not in NO_TRAINING


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint (a LoggedModel) that the store has, or had: of a pruned one only the file is gone."""

    name: str
    model_id: str
    run_id: str
    step: int
    epoch: int | None
    sha256: str
    size_bytes: int
    artifact_location: str
    created: int  # ms since 1970
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    score: float | None = None  # the metric that was asked for
    scored_on: tuple[str, str] | None = None  # name and digest of the data of that score

    @property
    def pruned(self) -> str | None:
        """When and why its file was deleted; None while the store has it."""
        return self.tags.get(PRUNED)


def stored_run(run, experiment: str) -> StoredRun:
    """mlflow's Run, with its experiment's name."""
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        experiment=experiment,
        experiment_id=run.info.experiment_id,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        start_time=run.info.start_time,
        end_time=run.info.end_time,
        artifact_uri=run.info.artifact_uri,
        datasets=tuple(_dataset_of(entry) for entry in run.inputs.dataset_inputs),
        is_deleted=run.info.lifecycle_stage == "deleted",
    )


def _dataset_of(entry) -> dict:
    context = next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), None)
    tags = {tag.key: tag.value for tag in entry.tags}
    dataset = entry.dataset
    return {"name": dataset.name, "digest": dataset.digest, "source": dataset.source, "context": context, "tags": tags}


def stored_checkpoint(model, metric: str) -> StoredCheckpoint:
    tags = dict(model.tags or {})
    ordered = sorted(model.metrics or [], key=lambda entry: (entry.step, entry.timestamp))
    metrics = {entry.key: entry.value for entry in ordered}
    scored = next((entry for entry in reversed(ordered) if entry.key == metric), None)
    return StoredCheckpoint(
        name=model.name,
        model_id=model.model_id,
        run_id=model.source_run_id,
        step=int(tags["step"]),
        epoch=int(tags["epoch"]) if "epoch" in tags else None,
        sha256=tags["sha256"],
        size_bytes=int(tags["size_bytes"]),
        artifact_location=model.artifact_location,
        created=model.creation_timestamp,
        metrics=metrics,
        tags=tags,
        score=scored and scored.value,
        scored_on=scored and (scored.dataset_name, scored.dataset_digest),
    )


def last_word(tags: Mapping[str, str]) -> dict:
    """What a run's tags say of it: time (ms), host, pid, boot, epoch, step, epochs, total_steps, best and so on."""
    beat, progress = _from_json(tags.get(HEARTBEAT)), _from_json(tags.get(PROGRESS))
    is_further = (beat.get("step") or 0) > (progress.get("step") or 0)  # a beat while it validates is of before
    return progress | beat if is_further else beat | progress


def _from_json(text: str | None) -> dict:
    try:
        found = json.loads(text or "{}")
    except ValueError:  # anyone may edit a tag
        return {}
    return found if isinstance(found, dict) else {}
