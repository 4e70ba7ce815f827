"""The writer of one run: all that training reports goes into the run folder's journal, never straight to MLflow."""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracking import recovery
from tracking.journal import OUTBOX, Journal, dropped_mark, now_ms
from tracking.pruning import pruned_tag

METRIC_NAMES = "metric_names.json"
PER_CLASS = "tables/per_class.json"
REFUSED_CHARACTERS = re.compile(r"[^/\w.\- :]")
LONGEST_NAME = 250

Dataset = tuple[str, str]  # name, digest


def metric_name(text: str) -> str:
    """The name under which MLflow takes a metric, parameter or tag: the same text wherever it is allowed.

    Elsewhere the offending characters give way to "_" and six hex digits of the text's own hash follow, so that two
    names never become one, whatever their order.
    """
    if _is_allowed(text):
        return text
    cleaned = posixpath.normpath(REFUSED_CHARACTERS.sub("_", text).strip("/")).replace("..", "_")
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{cleaned[: LONGEST_NAME - 7]}-{digest}"


def _is_allowed(text: str) -> bool:
    normal = posixpath.normpath(text)
    is_path = normal == text and normal != "." and not normal.startswith(("..", "/"))
    return is_path and len(text) <= LONGEST_NAME and not REFUSED_CHARACTERS.search(text)


class TrackedRun:
    """Queues a run's parameters, metrics, files and checkpoints for delivery.

    Opening one that had ended means that it goes on: it will be RUNNING again.
    """

    def __init__(self, folder: Path, run_id: str):
        self.folder = Path(folder)
        self.run_id = run_id
        self.journal = Journal(self.folder)
        self._outbox = self.folder / OUTBOX
        self._outbox.mkdir(parents=True, exist_ok=True)
        names = self.folder / METRIC_NAMES
        self._mapped_names: dict[str, str] = json.loads(names.read_text()) if names.exists() else {}
        self._naming = threading.Lock()
        self._tables: list[dict[str, str]] = []
        self._rolling: dict[tuple, str] = {}  # the newest spool of each rolling file
        self._remove_spool_of_none()
        if self.journal.has_ended():
            # The end may still be waiting for delivery: it must not have the last word on a run that goes on.
            self.journal.append({"op": "resume"})

    def params(self, params: Mapping[str, object]) -> None:
        self.journal.append({"op": "params", "params": self.named({k: str(v) for k, v in params.items()})})

    def tags(self, tags: Mapping[str, object]) -> None:
        self.journal.append({"op": "tags", "tags": self.named({k: str(v) for k, v in tags.items()})})

    def metrics(
        self,
        metrics: Mapping[str, float],
        step: int,
        *,
        checkpoint: str | None = None,
        dataset: Dataset | None = None,
        at: int | None = None,
    ) -> None:
        """Numbers at a global optimizer step, linked to a checkpoint queued before and to a dataset where named.

        They are of the time `at` (ms), or of now.
        """
        values = self.named({name: float(value) for name, value in metrics.items()})
        operation = {
            "op": "metrics",
            "step": int(step),
            "metrics": values,
            "checkpoint": checkpoint,
            "dataset": dataset,
        }
        self.journal.append(operation if at is None else {**operation, "time": at})

    def file(self, path: Path, folder: str | None = None, *, rolling: bool = False) -> None:
        """Queues a file as a run artifact `folder/<its name>`, as it is now.

        A rolling file (a recovery checkpoint) is hard-linked, not copied, and takes the place of its unsent
        predecessors: its writer must replace the file (os.replace), never write into it.
        """
        spool = self._spool(Path(path), link=rolling)
        operation = {"op": "file", "spool": spool, "folder": folder, "rolling": rolling}
        self.journal.append(operation)
        if rolling:
            self._supersede(operation)

    def recovery_point(self, path: Path, *, step: int, sha256: str) -> None:
        """Queues a resumable file of mid-epoch, in the place of the one before; see tracking.recovery."""
        self.file(path, recovery.FOLDER, rolling=True)
        self.tags(recovery.recovery_tag(step, sha256))

    def drop_recovery_point(self) -> None:
        self.journal.append({"op": "remove", "artifact_path": recovery.PLACE})

    def image(self, path: Path, key: str, step: int) -> None:
        """Queues a picture for the UI's image grid, under `key` at `step`."""
        # The UI reads key, step and time from the file name (mlflow.MlflowClient.log_image).
        name = f"{metric_name(key).replace('/', '~')}+step+{int(step)}+timestamp+{now_ms()}+{uuid.uuid4()}"
        self.journal.append({"op": "image", "spool": self._spool(Path(path), name=f"{name}.png")})

    def text(self, text: str, artifact_path: str) -> None:
        self.journal.append({"op": "text", "text": text, "artifact_path": artifact_path})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], artifact_path: str) -> None:
        """Queues a table as mlflow's log_table writes one, which the UI shows as a table."""
        self.text(json.dumps({"columns": list(columns), "data": list(rows)}), artifact_path)
        here = {"path": artifact_path, "type": "table"}
        self._tables += [here] if here not in self._tables else []
        self.tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def dataset(self, name: str, digest: str, source: str, context: str, tags: Mapping[str, object] | None = None):
        """Records a dataset as an input of the run; MLflow keeps at most 36 characters of the digest."""
        tags = {key: str(value) for key, value in (tags or {}).items()}
        self.journal.append(
            {"op": "dataset", "name": name, "digest": digest, "source": str(source), "context": context, "tags": tags}
        )

    def checkpoint(
        self,
        name: str,
        path: Path,
        *,
        sha256: str,
        step: int,
        metrics: Mapping[str, float],
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        """Queues a checkpoint file as the LoggedModel `name`, its metrics linked to it.

        The file is hard-linked, so that it costs no space and no time: its writer must replace it (os.replace), never
        write into it.
        """
        path = Path(path)
        about = {"sha256": sha256, "step": int(step), "size_bytes": path.stat().st_size}
        self.journal.append(
            {
                "op": "checkpoint",
                "name": name,
                "spool": self._spool(path, link=True, name="checkpoint.pth"),
                "sha256": sha256,
                "step": int(step),
                "metrics": self.named({key: float(value) for key, value in metrics.items()}),
                "params": {key: str(value) for key, value in (params or {}).items()},
                "tags": {key: str(value) for key, value in {**(tags or {}), **about}.items()},
                "dataset": dataset,
            }
        )

    def prune(self, name: str, why: str, *, metric: str | None = None) -> None:
        """Queues that a checkpoint queued before loses its file; one that is not yet sent loses it now.

        Its metrics reach the store all the same, in the order in which they were queued. It stays whole where it is
        the run's best by that metric when this arrives: the run may have gone on elsewhere.
        """
        operation = {"op": "prune", "checkpoint": name, "why": why, "metric": metric, "time": now_ms()}
        self.journal.append(operation)
        for _, queued in self.journal.pending():
            if queued["op"] == "checkpoint" and queued["name"] == name:
                spool = self.folder / queued["spool"]
                with contextlib.suppress(FileNotFoundError):  # the sender has just removed it, and its folder
                    dropped_mark(spool).write_text(pruned_tag(why, operation["time"]))  # first: who sends looks here
                spool.unlink(missing_ok=True)

    def description(self, markdown: str) -> None:
        """The run's Markdown note; delivery leaves a note alone that a user has edited."""
        self.journal.append({"op": "description", "text": markdown})

    def end(self, status: str) -> None:
        """Ends the run now: FINISHED, FAILED or KILLED."""
        self.journal.append({"op": "end", "status": status, "end_time": now_ms()})

    def close(self) -> None:
        self.journal.close()

    def named(self, values: Mapping[str, object]) -> dict:
        """`values` under the names that MLflow takes; which name stands for what is an artifact of the run."""
        with self._naming:
            return self._named(values)

    def _named(self, values: Mapping[str, object]) -> dict:
        names = {key: metric_name(key) for key in values}
        changed = {key: name for key, name in names.items() if key != name and key not in self._mapped_names}
        if changed:
            self._mapped_names.update(changed)
            partial = self.folder / f"{METRIC_NAMES}.partial"
            partial.write_text(json.dumps(self._mapped_names, indent=2, ensure_ascii=False))
            partial.replace(self.folder / METRIC_NAMES)
            self.file(self.folder / METRIC_NAMES)
        return {names[key]: value for key, value in values.items()}

    def _spool(self, path: Path, *, link: bool = False, name: str | None = None) -> str:
        """Puts the file as it is now into a folder of its own in the outbox; returns its place in the run folder."""
        place = Path(tempfile.mkdtemp(dir=self._outbox)) / (name or path.name)
        if not (link and _linked(path, place)):
            shutil.copyfile(path, place)
        for entry in (place, place.parent, self._outbox):
            _sync_to_disk(entry)
        return place.relative_to(self.folder).as_posix()

    def _supersede(self, newer: dict) -> None:
        """Removes what a rolling file replaces: known by heart, since a dead server's journal is long to read."""
        target = newer["folder"], posixpath.basename(newer["spool"])
        older, self._rolling[target] = self._rolling.get(target), newer["spool"]
        if older is not None:
            shutil.rmtree((self.folder / older).parent, ignore_errors=True)  # gone already where it was delivered

    def _remove_spool_of_none(self) -> None:
        """Removes what a crash left: files queued but not journalled, or delivered but not removed."""
        operations = [operation for _, operation in self.journal.pending()]
        for operation in [one for one in operations if one["op"] == "file" and one["rolling"]]:
            self._supersede(operation)
        operations += [refusal.get("operation", {}) for refusal in self.journal.refused()]
        wanted = {posixpath.dirname(operation["spool"]) for operation in operations if operation.get("spool")}
        for entry in self._outbox.iterdir():
            if f"{OUTBOX}/{entry.name}" not in wanted:
                shutil.rmtree(entry)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
