"""Mend the tracking store of a repository that was moved, renamed or copied: MLflow noted where it was, in full."""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commandline
import publishing
import workspace
from models import record
from progress import say
from tracking import connection, moved
from tracking.moved import Home


@dataclass(frozen=True, kw_only=True)
class RelocateConfig:
    """Let the tracking store of this repository, which was moved, renamed or copied, lead to where its files are now.

    Its database is copied first, and changed in one transaction. Restoring works before that too; training does not.
    """

    dry_run: bool = False
    """Say what would be changed, and change nothing."""


def main(config: RelocateConfig) -> list[str]:
    """Mend what leads elsewhere and return, line by line, what was changed; nothing where all is in place."""
    uri = connection.store_uri(workspace.ROOT)
    if connection.sqlite_path(uri) is None:
        message = f"The tracking store {uri} is no sqlite file: where its artifacts lie is its own affair"
        raise workspace.WorkspaceError(f"{message}. This mends a repository's own: unset MLFLOW_TRACKING_URI")
    home = moved.home_of(uri)
    if home is None or not home.former:
        say(f"{uri}: " + ("there is no store" if home is None else "all of it is in place") + ", nothing to mend")
        return []
    for folder in workspace.run_folders():
        folder.require_idle()
    lines = [f"{', '.join(map(str, home.former))} → {home.folder}"]
    say_if_incomplete(home)
    if config.dry_run:
        return [*lines, *told(moved.changes(home)), *map(str, stale_records(home))]
    backup = home.folder / f"{home.database}.before-relocate-{time.strftime('%Y%m%d-%H%M%S')}"
    # The records go first: until the database is changed, its places tell where all this was.
    with publishing.publishing(), moved.mended(home, backup) as changed:
        records = stale_records(home)
        for path in records:
            record.write_json(path, as_now(read(path), home))
    return [*lines, *told(changed), *map(str, records), f"the database as it was: {backup}"]


def told(changed: dict[str, int]) -> list[str]:
    """The database's changes in words."""
    return [f"{table.replace('_', ' ')}: {count}" for table, count in changed.items() if count]


def stale_records(home: Home) -> list[Path]:
    """The run folders' run.json, and the record of the published checkpoint, that name the store as it was."""
    files = [folder.path / "run.json" for folder in workspace.run_folders()]
    files.append(record.record_path(workspace.PUBLISHED))
    return [path for path in files if read(path) != as_now(read(path), home)]


def read(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):  # none, or none of ours
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def as_now(content: Any, home: Home) -> Any:
    """A record, or the entries in one, with the store's URI as it is now, and the place of data beside the store."""
    if not isinstance(content, dict):
        return content
    entries = {key: as_now(content[key], home) for key in ("current", "previous") if key in content}
    uri = {"tracking_uri": home.present_uri(content["tracking_uri"])} if "tracking_uri" in content else {}
    data = workspace.data_of(content)
    moved_data = {"config": content["config"] | {"data": data}} if data else {}
    return content | entries | uri | moved_data


def say_if_incomplete(home: Home) -> None:
    """Of a copy, checkpoints whose files did not come along."""
    if count := moved.left_behind(home):
        there = next(path for former in home.former if (path := former / moved.ARTIFACTS).is_dir())
        here = home.folder / moved.ARTIFACTS
        say(f"note: the files of {count} checkpoints are in {there} only. Copy them: cp -an {there}/. {here}")


def script(config: RelocateConfig) -> int:
    for line in main(config):
        print(line)
    return 0


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(RelocateConfig))
