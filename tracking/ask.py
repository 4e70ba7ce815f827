"""The questions of tracking.peek, asked through mlflow: any kind of store, for as long as it takes."""

from tracking.connection import failures
from tracking.errors import RunUnknown
from tracking.pages import every
from tracking.records import StoredRun, stored_run
from tracking.store import Store


def peek_run(store: Store, run_id: str) -> dict | None:
    """As tracking.peek.peek_run; StoreError where the store does not answer, as everywhere here."""
    try:
        return _answer(store.run(run_id))
    except RunUnknown:
        return None


def peek_checkpoints(store: Store, run_id: str, metric: str = "val/AP") -> dict:
    """As tracking.peek.peek_checkpoints."""
    known = store.checkpoints(run_id, metric=metric)
    best = max((one for one in known if one.score is not None), key=lambda one: one.score, default=None)
    row = best and {
        "model_id": best.model_id,
        "name": best.name,
        "epoch": best.epoch,
        "metric": metric,
        "value": best.score,
    }
    return {"count": len(known), "best": row}


def newest_runs(store: Store, limit: int = 8) -> list[dict]:
    """As tracking.peek.newest_runs."""
    found = store.newest_runs(8 * limit)  # evaluations and comparisons among them
    return [_answer(run) for run in found if run.is_training][:limit]


def experiment_runs(store: Store, experiment: str) -> list[dict]:
    """As tracking.peek.experiment_runs."""
    from mlflow.entities import ViewType

    with failures(store.uri, f"the runs of experiment {experiment}"):
        found = store.client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage == "deleted":
            return []
        shown = {"run_view_type": ViewType.ALL, "max_results": 1000}
        found_runs = every(store.client.search_runs, [found.experiment_id], **shown)
        runs = [stored_run(run, experiment) for run in found_runs]
    return [
        {
            **{key: getattr(run, key) for key in ("run_id", "name", "status", "start_time", "end_time")},
            "deleted": run.is_deleted,
            "tags": {key: value for key, value in run.tags.items() if not key.startswith("mlflow.")},
        }
        for run in runs
    ]


def experiment_names(store: Store) -> list[str]:
    """As tracking.peek.experiment_names."""
    with failures(store.uri, "its experiments"):
        return sorted(one.name for one in every(store.client.search_experiments))


def _answer(run: StoredRun) -> dict:
    keys = ("run_id", "name", "status", "experiment", "start_time", "end_time")
    return {key: getattr(run, key) for key in keys} | {"heartbeat": run.tags.get("heartbeat")}
