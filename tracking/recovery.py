"""A run's recovery point in the store: its last.pth of mid-epoch, one file that rolls, to resume on another machine."""

import json
from pathlib import Path

from tracking.errors import DamagedArtifact

FOLDER = "recovery"  # among the run's artifacts; the tag that says of which step its file is has the same name
FILE = "last.pth"
PLACE = f"{FOLDER}/{FILE}"


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
    path = store.fetch_artifact(run_id, PLACE, to)
    if path is None:
        raise DamagedArtifact(f"The recovery point of run {run_id} is gone from the store: {PLACE}")
    return path
