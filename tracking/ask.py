"""The questions of tracking.peek, asked through mlflow: any kind of store, for as long as it takes."""

from tracking.errors import RunUnknown
from tracking.records import StoredRun
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
    found = store.newest_runs(8 * limit)  # evaluations among them
    return [_answer(run) for run in found if not run.is_evaluation][:limit]


def _answer(run: StoredRun) -> dict:
    keys = ("run_id", "name", "status", "experiment", "start_time", "end_time")
    return {key: getattr(run, key) for key in keys} | {"heartbeat": run.tags.get("heartbeat")}
