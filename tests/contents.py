"""All that a store has of a run, to compare what two of them have."""

import tempfile
from pathlib import Path

from models import record
from tracking.connection import import_mlflow
from tracking.ownership import OWNER
from tracking.records import COPIED, ORIGIN, ORIGIN_STORE
from tracking.store import Store


def everything(store: Store, run_id: str) -> dict:
    """All that a store knows of a run, with its checkpoints' names for their IDs; files by their hashes."""
    run, experiment = store.client.get_run(run_id), store.run(run_id).experiment
    models = {one.model_id: one for one in store.checkpoints(run_id, with_pruned=True)}
    own = (ORIGIN, ORIGIN_STORE, COPIED, OWNER)
    return {
        **{key: getattr(run.info, key) for key in ("run_name", "status", "start_time", "end_time")},
        "experiment": experiment,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in own},
        "points": {
            key: [(one.step, one.timestamp, repr(one.value)) for one in store.client.get_metric_history(run_id, key)]
            for key in run.data.metrics
        },
        "datasets": sorted(repr(entry.to_dictionary()) for entry in run.inputs.dataset_inputs),
        "outputs": sorted((models[one.model_id].name, one.step) for one in run.outputs.model_outputs),
        "checkpoints": {one.name: checkpoint(store, one) for one in models.values()},
        "files": files(store, run_id),
    }


def checkpoint(store: Store, stored) -> dict:
    model = store.client.get_logged_model(stored.model_id)
    links = [
        (one.key, one.value, one.step, one.timestamp, one.dataset_name, one.dataset_digest) for one in model.metrics
    ]
    if not stored.pruned:
        with tempfile.TemporaryDirectory() as folder:
            store.download(stored, Path(folder) / "checkpoint.pth")  # which compares its hash
    return {"tags": model.tags, "params": model.params, "sha256": stored.sha256, "links": sorted(links)}


def files(store: Store, run_id: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        fetch = import_mlflow().artifacts.download_artifacts
        root = Path(fetch(run_id=run_id, artifact_path="", dst_path=folder, tracking_uri=store.uri))
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): record.file_sha256(path) for path in found}
