"""A quick look into the tracking store, without mlflow (seconds to import); None where it cannot be told."""

import base64
import http.client
import json
import os
import urllib.parse
import urllib.request

from tracking.connection import is_server, read_database
from tracking.records import NO_TRAINING, PRUNED

SERVER_SECONDS = 0.3
BUSY_SECONDS = 0.05  # as long as to wait for a writer's lock
READY = 2  # mlflow's LoggedModelStatus in its database

RUN_COLUMNS = """
    SELECT r.run_uuid AS run_id, r.name, r.status, e.name AS experiment, r.start_time, r.end_time,
           (SELECT value FROM tags WHERE run_uuid = r.run_uuid AND key = 'heartbeat') AS heartbeat
    FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id
"""
CHECKPOINTS = f"""
    SELECT m.model_id, m.name,
           (SELECT tag_value FROM logged_model_tags WHERE model_id = m.model_id AND tag_key = 'epoch') AS epoch,
           (SELECT metric_value FROM logged_model_metrics WHERE model_id = m.model_id AND metric_name = ?
            ORDER BY metric_step DESC, metric_timestamp_ms DESC LIMIT 1) AS value
    FROM logged_models m
    WHERE m.source_run_id = ? AND m.status = ? AND m.model_type = 'checkpoint' AND m.lifecycle_stage = 'active'
    AND NOT EXISTS (SELECT 1 FROM logged_model_tags WHERE model_id = m.model_id AND tag_key = '{PRUNED}')
    ORDER BY m.creation_timestamp_ms
"""
NEWEST_RUNS = f"""
    {RUN_COLUMNS} WHERE r.lifecycle_stage = 'active'
    AND NOT EXISTS (SELECT 1 FROM tags WHERE run_uuid = r.run_uuid AND key = 'kind' AND value IN {NO_TRAINING})
    ORDER BY r.start_time DESC LIMIT ?
"""
EXPERIMENT_RUNS = """
    SELECT r.run_uuid AS run_id, r.name, r.status, r.start_time, r.end_time, r.lifecycle_stage = 'deleted' AS deleted
    FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id
    WHERE e.name = ? AND e.lifecycle_stage = 'active'
"""
EXPERIMENT_TAGS = """
    SELECT t.run_uuid AS run_id, t.key, t.value
    FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid JOIN experiments e ON e.experiment_id = r.experiment_id
    WHERE e.name = ? AND t.key NOT LIKE 'mlflow.%'
"""
MOST_RUNS = 50_000  # that a server gives at once

Answer = dict[str, object]


def peek_run(uri: str, run_id: str) -> Answer | None:
    """The run's {run_id, name, status, experiment, start_time, end_time, heartbeat (as text)}."""
    if is_server(uri):
        found = _ask(uri, "runs/get", query={"run_id": run_id})
        return None if found is None else _server_run(uri, found["run"])
    rows = _query(uri, f"{RUN_COLUMNS} WHERE r.run_uuid = ?", run_id)
    return rows[0] if rows else None


def peek_checkpoints(uri: str, run_id: str, metric: str = "val/AP") -> Answer | None:
    """How many checkpoints of the run the store has whole, and the best by a metric where higher is better.

    {count, best: {model_id, name, epoch, metric, value} or None}
    """
    rows = (
        _server_checkpoints(uri, run_id, metric) if is_server(uri) else _query(uri, CHECKPOINTS, metric, run_id, READY)
    )
    if rows is None:
        return None
    for row in rows:
        row |= {"epoch": None if row["epoch"] is None else int(row["epoch"]), "metric": metric}
    scored = [row for row in rows if row["value"] is not None]
    return {"count": len(rows), "best": max(scored, key=lambda row: row["value"], default=None)}


def newest_runs(uri: str, limit: int = 8) -> list[Answer] | None:
    """The newest runs, evaluations and comparisons apart, newest first; as peek_run has them."""
    return _server_newest(uri, limit) if is_server(uri) else _query(uri, NEWEST_RUNS, limit)


def experiment_runs(uri: str, experiment: str) -> list[Answer] | None:
    """Every run of an experiment, evaluations and deleted ones too; none where there is no such experiment.

    {run_id, name, status, start_time, end_time, deleted, tags (without mlflow's own)} each.
    """
    if is_server(uri):
        return _server_experiment_runs(uri, experiment)
    runs, tags = _query(uri, EXPERIMENT_RUNS, experiment), _query(uri, EXPERIMENT_TAGS, experiment)
    if runs is None or tags is None:
        return None
    tags_of: dict[object, dict] = {run["run_id"]: {} for run in runs}
    for tag in tags:
        tags_of.get(tag["run_id"], {})[tag["key"]] = tag["value"]
    return [{**run, "deleted": bool(run["deleted"]), "tags": tags_of[run["run_id"]]} for run in runs]


def experiment_names(uri: str) -> list[str] | None:
    """The names of the experiments."""
    if not is_server(uri):
        rows = _query(uri, "SELECT name FROM experiments WHERE lifecycle_stage = 'active' ORDER BY name")
        return None if rows is None else [row["name"] for row in rows]
    found = _ask(uri, "experiments/search", body={"max_results": 1000})
    return None if found is None else sorted(one["name"] for one in found.get("experiments", ()))


# -- a database file


def _query(uri: str, query: str, *values: object) -> list[Answer] | None:
    return read_database(uri, query, *values, seconds=BUSY_SECONDS)


# -- a server


def _server_run(uri: str, run: dict, experiments: dict[str, str] | None = None) -> Answer | None:
    info, tags = run["info"], _by_key(run["data"].get("tags", ()))
    experiment_id = info["experiment_id"]
    if experiments is None:
        found = _ask(uri, "experiments/get", query={"experiment_id": experiment_id})
        experiments = {} if found is None else {experiment_id: found["experiment"]["name"]}
    return {
        "run_id": info["run_id"],
        "name": info.get("run_name"),
        "status": info["status"],
        "experiment": experiments.get(experiment_id),
        "start_time": info.get("start_time"),
        "end_time": info.get("end_time"),
        "heartbeat": tags.get("heartbeat"),
    }


def _server_checkpoints(uri: str, run_id: str, metric: str) -> list[Answer] | None:
    run = _ask(uri, "runs/get", query={"run_id": run_id})
    if run is None:
        return None
    experiment_id = run["run"]["info"]["experiment_id"]
    body = {"experiment_ids": [experiment_id], "filter": f"source_run_id = '{run_id}'", "max_results": 1000}
    found = _ask(uri, "logged-models/search", body=body)
    return None if found is None else [_server_checkpoint(model, metric) for model in _ready(found)]


def _ready(found: dict) -> list[dict]:
    models = found.get("models", ())
    wanted = ("checkpoint", "LOGGED_MODEL_READY")
    ready = [model for model in models if (model["info"].get("model_type"), model["info"]["status"]) == wanted]
    return [model for model in ready if PRUNED not in _by_key(model["info"].get("tags", ()))]


def _server_checkpoint(model: dict, metric: str) -> Answer:
    info = model["info"]
    values = [entry for entry in model["data"].get("metrics", ()) if entry["key"] == metric]
    newest = max(values, key=lambda entry: (entry["step"], entry["timestamp"]), default={"value": None})
    epoch = _by_key(info.get("tags", ())).get("epoch")
    return {"model_id": info["model_id"], "name": info["name"], "epoch": epoch, "value": newest["value"]}


def _server_newest(uri: str, limit: int) -> list[Answer] | None:
    experiments = _ask(uri, "experiments/search", body={"max_results": 1000})
    if experiments is None:
        return None
    names = {entry["experiment_id"]: entry["name"] for entry in experiments.get("experiments", ())}
    # The filter language cannot ask for runs without a tag: evaluations are asked for too, and left out here.
    body = {"experiment_ids": list(names), "max_results": 8 * limit, "order_by": ["start_time DESC"]}
    found = _ask(uri, "runs/search", body=body)
    if found is None:
        return None
    runs = [run for run in found.get("runs", ()) if _by_key(run["data"].get("tags", ())).get("kind") not in NO_TRAINING]
    return [_server_run(uri, run, names) for run in runs[:limit]]


def _server_experiment_runs(uri: str, experiment: str) -> list[Answer] | None:
    experiments = _ask(uri, "experiments/search", body={"max_results": 1000})
    if experiments is None:
        return None
    ids = [one["experiment_id"] for one in experiments.get("experiments", ()) if one["name"] == experiment]
    if not ids:
        return []
    found = _ask(uri, "runs/search", body={"experiment_ids": ids, "max_results": MOST_RUNS, "run_view_type": "ALL"})
    return None if found is None else [_server_experiment_run(run) for run in found.get("runs", ())]


def _server_experiment_run(run: dict) -> Answer:
    info, tags = run["info"], _by_key(run["data"].get("tags", ()))
    return {
        "run_id": info["run_id"],
        "name": info.get("run_name"),
        "status": info["status"],
        "start_time": info.get("start_time"),
        "end_time": info.get("end_time"),
        "deleted": info.get("lifecycle_stage") == "deleted",
        "tags": {key: value for key, value in tags.items() if not key.startswith("mlflow.")},
    }


def _by_key(entries) -> dict[str, str]:
    return {entry["key"]: entry.get("value", "") for entry in entries}


def _ask(uri: str, call: str, *, query: dict | None = None, body: dict | None = None) -> dict | None:
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/{call}"
    if query:
        address += f"?{urllib.parse.urlencode(query)}"
    headers = {"Content-Type": "application/json", **_credentials()}
    request = urllib.request.Request(address, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):  # no answer in time, a refusal, or not mlflow's
        return None


def _credentials() -> dict[str, str]:
    """mlflow's own variables for servers that ask who is there."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
