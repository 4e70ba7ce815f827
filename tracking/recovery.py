"""A run's recovery point in the store: its last.pth of mid-epoch, one file that rolls, to resume on another machine."""

import json
from pathlib import Path

from tracking.connection import failures, import_mlflow
from tracking.errors import DamagedArtifact

FOLDER = "recovery"  # among the run's artifacts; the tag that says of which step its file is has the same name
FILE = "last.pth"


def recovery_tag(step: int, sha256: str) -> dict[str, str]:
    return {FOLDER: json.dumps({"step": step, "sha256": sha256})}


def recovery_point(tags: dict[str, str]) -> dict:
    """The step and sha256 of a run's recovery point; empty where it has none."""
    try:
        found = json.loads(tags.get(FOLDER) or "{}")
    except ValueError:  # anyone may edit a tag
        return {}
    is_whole = isinstance(found, dict) and isinstance(found.get("step"), int) and "sha256" in found
    return found if is_whole else {}


def download_recovery(store, run_id: str, to: Path) -> Path:
    """The recovery point's file in the folder `to`; DamagedArtifact where the store has lost it."""
    mlflow = import_mlflow()
    path = f"{FOLDER}/{FILE}"
    with failures(store.uri, f"{path} of run {run_id}"):
        if all(entry.path != path for entry in store.client.list_artifacts(run_id, FOLDER)):
            raise DamagedArtifact(f"The recovery point of run {run_id} is gone from the store: {path}")
        uri = f"runs:/{run_id}/{path}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(to), tracking_uri=store.uri))
