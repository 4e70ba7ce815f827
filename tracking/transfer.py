"""A whole run into another store: out of its own store or, where that is lost, out of its journal.

mlflow does not let one choose a run's ID: the copy has its own, and a tag with its origin's by which it is found again.
"""

import posixpath
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from progress import Progress
from tracking.connection import failures, import_mlflow
from tracking.deliver import CHECKPOINT_FILE, NOTE, Unavailable, deliver, is_ours
from tracking.errors import DamagedArtifact, StoreError
from tracking.find import experiment_ids_of, run_copied_from
from tracking.journal import Journal, dropped_mark
from tracking.ownership import OWNER
from tracking.pages import every
from tracking.pruning import pruned_tag
from tracking.records import COPIED, ORIGIN, ORIGIN_STORE, PRUNED
from tracking.sender import Courier, grouped
from tracking.store import Store

ENDED = ("FINISHED", "FAILED", "KILLED")
NOT_COPIED = (ORIGIN, ORIGIN_STORE, COPIED, OWNER, "mlflow.runName")  # tags that the copy has of its own


@dataclass(kw_only=True)
class Copied:
    """What became of a run in the other store."""

    run_id: str
    sent: Counter = field(default_factory=Counter)  # how much arrived now, by kind
    lacking: list[str] = field(default_factory=list)  # what could not be given to it
    left_alone: str | None = None  # why nothing was given to it


def copy_run(source: Store, run_id: str, target: Store, folder: Path, *, progress: Progress) -> Copied:
    """Copies a run of `source` with its checkpoints, artifacts and evaluations, or completes the copy that there is.

    `folder` is for files on their way; `progress` (a progress.Progress) counts files. StoreError where one of the two
    stores fails.
    """
    if whose := _already_there(source, run_id, target):
        return Copied(run_id=whose, left_alone="is its origin")
    copying = _Copying(source, target, folder, progress)
    models = copying.models_of(run_id)
    copied = copying.run(run_id, models, {})
    if copied.left_alone:
        return copied
    with failures(source.uri, f"evaluations of run {run_id}"):
        where = f"tags.source_run_id = '{run_id}'"
        evaluations = list(every(source.client.search_runs, experiment_ids_of(source.client, None), where))
    for evaluation in evaluations:
        its = copying.run(evaluation.info.run_id, models, {"source_run_id": copied.run_id})
        copied.sent += its.sent
        copied.lacking += its.lacking
    return copied


def _already_there(source: Store, run_id: str, target: Store) -> str | None:
    """The origin of a run that is a copy itself and is as it was when it was made, where the target has that."""
    with failures(source.uri, f"run {run_id}"):
        run = source.client.get_run(run_id)
    origin = run.data.tags.get(ORIGIN)
    is_unchanged = run.data.tags.get(COPIED) == state_of(run)
    return origin if origin and is_unchanged and target.knows(origin) else None


class _Copying:
    def __init__(self, source: Store, target: Store, folder: Path, progress: Progress):
        self.source, self.target, self.folder, self.progress = source, target, folder, progress
        self.model_ids: dict[str, str] = {}  # of a checkpoint: in the source → in the target

    def models_of(self, run_id: str) -> list:
        """The run's checkpoints as mlflow's LoggedModels."""
        checkpoints = self.source.checkpoints(run_id, with_pruned=True)
        with failures(self.source.uri, f"checkpoints of run {run_id}"):
            return [self.source.client.get_logged_model(one.model_id) for one in checkpoints]

    def run(self, run_id: str, models: list, tags: Mapping[str, str]) -> Copied:
        """Copies one run, with such checkpoints among `models` as are its own; `tags` take the place of its own."""
        with failures(self.source.uri, f"run {run_id}"):
            run = self.source.client.get_run(run_id)
            experiment = self.source.client.get_experiment(run.info.experiment_id).name
        about = {"experiment": experiment, "run_name": run.info.run_name, "start_time": run.info.start_time}
        copy = _existing_or_new(self.target, run_id, origin_store=self.source.uri, **about)
        copied = Copied(run_id=copy.info.run_id, left_alone=_why_left_alone(copy))
        if copied.left_alone:
            return copied
        is_known = run.info.status in ENDED and copy.data.tags.get(COPIED) == state_of(run)
        with failures(self.target.uri, f"run {copied.run_id}"):
            self._words(run, copy, tags)
        self._checkpoints([one for one in models if one.source_run_id == run_id], copied)
        self._points(run, copy, copied, keep=is_known)
        self._links(run_id, models, copied)
        self._artifacts(run_id, copied, keep=is_known)
        self._model_inputs(run, copied.run_id)
        with failures(self.target.uri, f"run {copied.run_id}"):
            if run.info.status in ENDED and state_of(copy) != state_of(run):
                self.target.client.set_terminated(copied.run_id, run.info.status, run.info.end_time)
            elif run.info.status != copy.info.status:
                self.target.client.update_run(copied.run_id, run.info.status)
            mark_copied(self.target, copied.run_id)
        return copied

    def _words(self, run, copy, tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(*pair) for pair in (run.data.params.items() - copy.data.params.items())]
        wanted = {key: text for key, text in run.data.tags.items() if key not in NOT_COPIED} | dict(tags)
        if not is_ours(copy.data.tags):
            wanted.pop(NOTE, None)  # a user's
        tags = [RunTag(*pair) for pair in (wanted.items() - copy.data.tags.items())]
        self.target.client.log_batch(copy.info.run_id, params=params, tags=tags)
        known = {_dataset_key(entry) for entry in copy.inputs.dataset_inputs}
        datasets = [entry for entry in run.inputs.dataset_inputs if _dataset_key(entry) not in known]
        if datasets:
            self.target.client.log_inputs(copy.info.run_id, datasets=datasets)

    def _checkpoints(self, models: list, copied: Copied) -> None:
        there = self._copies(copied.run_id)
        known = self.source.checkpoints(models[0].source_run_id, with_pruned=True) if models else []
        files = {one.model_id: one for one in known}
        self.progress.expect(self.progress.done + len(models))
        for model in models:
            key = model.name, model.tags["sha256"]
            if key not in there:
                spool = self.folder / model.model_id / CHECKPOINT_FILE
                try:
                    if pruned := files[model.model_id].pruned:
                        _made(spool.parent)
                        dropped_mark(spool).write_text(pruned)
                    else:
                        self.source.download(files[model.model_id], spool)
                    self._deliver(copied.run_id, _checkpoint_operation(model, spool))
                except DamagedArtifact as error:
                    copied.lacking.append(f"checkpoint {model.name} ({error})")
                    continue
                finally:
                    shutil.rmtree(spool.parent, ignore_errors=True)  # where nothing was downloaded there is none
                there = self._copies(copied.run_id)
                copied.sent["checkpoints"] += 1
            self.progress.step()
            self.model_ids[model.model_id] = there[key]
            self._model_tags(model, there[key])

    def _copies(self, run_id: str) -> dict[tuple[str, str], str]:
        known = self.target.checkpoints(run_id, with_pruned=True)
        return {(one.name, one.sha256): one.model_id for one in known}

    def _model_tags(self, model, model_id: str) -> None:
        with failures(self.target.uri, f"checkpoint {model.name}"):
            known = self.target.client.get_logged_model(model_id).tags
            # Pruned in its own store, it may well have its file in the other.
            left_out = (PRUNED, NOTE) if PRUNED in model.tags else ()
            wanted = {key: text for key, text in model.tags.items() if key not in left_out}
            changed = dict(wanted.items() - known.items())
            if changed:
                self.target.client.set_logged_model_tags(model_id, changed)

    def _points(self, run, copy, copied: Copied, *, keep: bool) -> None:
        """Every point of the run's metrics; with `keep` not of those whose newest value is the same."""
        for key, newest in run.data.metrics.items():
            if keep and copy.data.metrics.get(key) == newest:
                continue
            with failures(self.source.uri, f"metric {key}"):
                points = self.source.client.get_metric_history(run.info.run_id, key)
            with failures(self.target.uri, f"metric {key}"):
                known = self.target.client.get_metric_history(copied.run_id, key) if key in copy.data.metrics else []
                copied.sent["metric values"] += self._log_points(copied.run_id, points, known)

    def _links(self, run_id: str, models: list, copied: Copied) -> None:
        """The points of the run that belong to checkpoints, and to the data that these were scored on."""
        for model in models:
            model_id = self.model_ids.get(model.model_id)
            points = [point for point in model.metrics or () if point.run_id == run_id]
            if model_id and points:
                with failures(self.target.uri, f"metrics of {model.name}"):
                    known = self.target.client.get_logged_model(model_id).metrics or ()
                    self._log_points(copied.run_id, points, known, model_id)

    def _log_points(self, run_id: str, points: Iterable, known: Iterable, model_id: str | None = None) -> int:
        from mlflow.entities import Metric

        there = {_point_key(point) for point in known}
        new = [
            Metric(
                point.key,
                point.value,
                point.timestamp,
                point.step,
                model_id,
                point.dataset_name,
                point.dataset_digest,
                run_id,
            )
            for point in points
            if _point_key(point) not in there
        ]
        if new:
            self.target.client.log_batch(run_id, metrics=new)
        return len(new)

    def _artifacts(self, run_id: str, copied: Copied, *, keep: bool) -> None:
        """The run's files; with `keep` those of which the target has one of that size are not sent again."""
        mlflow = import_mlflow()
        there = {} if not keep else dict(_files(self.target, copied.run_id))
        files = list(_files(self.source, run_id))
        self.progress.expect(self.progress.done + len(files))
        for path, size in files:
            if there.get(path) != size:
                place = self.folder / "artifacts"
                with failures(self.source.uri, f"{path} of run {run_id}"):
                    spool = mlflow.artifacts.download_artifacts(
                        run_id=run_id, artifact_path=path, dst_path=_made(place), tracking_uri=self.source.uri
                    )
                folder = posixpath.dirname(path) or None
                operation = {"op": "file", "spool": spool, "folder": folder, "rolling": False}
                self._deliver(copied.run_id, operation)
                shutil.rmtree(place)
                copied.sent["files"] += 1
            self.progress.step()

    def _model_inputs(self, run, copy_id: str) -> None:
        for entry in run.inputs.model_inputs:
            if model_id := self.model_ids.get(entry.model_id):
                self._deliver(copy_id, {"op": "model_input", "model_id": model_id})

    def _deliver(self, run_id: str, operation: dict) -> None:
        deliver(self.target, run_id, [operation], self.folder)


def copy_journal(
    journal: Journal,
    target: Store,
    *,
    run_id: str,
    origin_store: str,
    about: Mapping[str, object],
    tags: Mapping[str, str],
    spare: Mapping[str, Path],
    end: tuple[str, int] | None,
    folder: Path,
) -> Copied:
    """Copies what a run's own folder still has of it; `lacking` names what was in its own store only.

    `about` is experiment, run_name and start_time (ms); `spare` has checkpoint files by sha256; `end` is the state and
    time (ms) of a run whose journal does not end because it died. `folder` is for files on their way.
    """
    copy = _existing_or_new(target, run_id, origin_store=origin_store, **about)
    copied = Copied(run_id=copy.info.run_id, left_alone=_why_left_alone(copy))
    if copied.left_alone:
        return copied
    refused: list[dict] = []
    refused_before = [refusal.get("operation") for refusal in journal.refused()]
    courier = Courier(journal, target, copied.run_id, refuse=lambda operation, _: refused.append(operation))
    lacking: dict[str, None] = {}  # in their order
    try:
        if missing := tags.items() - copy.data.tags.items():
            courier.apply([{"op": "tags", "tags": dict(missing)}])
        for _, group in grouped(_with_files(journal, spare, folder)):
            refused.clear()
            courier.apply(group)
            for operation in group:
                lacking.pop(_name(operation), None)
            lacking |= dict.fromkeys(_name(operation) for operation in refused if operation not in refused_before)
            for operation in [one for one in refused if one["op"] == "checkpoint"]:  # its scores are the run's too
                courier.apply([{**operation, "op": "metrics", "checkpoint": None}])
        if end and not journal.has_ended():
            courier.apply([{"op": "end", "status": end[0], "end_time": end[1]}])
        mark_copied(target, copied.run_id)
    except Unavailable as error:
        raise StoreError(f"The tracking store {target.uri} did not take run {run_id}: {error}") from error
    copied.lacking = list(lacking)
    return copied


def _with_files(journal: Journal, spare: Mapping[str, Path], folder: Path) -> Iterator[tuple[int, dict]]:
    """The whole journal: checkpoints that were sent already get a spare file, files that nobody has become refusals.

    Of a pruned checkpoint no file is missed.
    """
    pruned = {
        operation["checkpoint"]: pruned_tag(operation["why"], operation["time"])
        for _, operation in journal.operations()
        if operation["op"] == "prune"
    }
    newest = {_name(operation): operation["spool"] for _, operation in journal.operations() if "spool" in operation}
    for end, operation in journal.operations():
        is_sent = "spool" in operation and not (journal.folder / operation["spool"]).exists()
        if operation["op"] == "checkpoint" and is_sent and operation["sha256"] in spare:
            spool = _made(folder / operation["name"]) / CHECKPOINT_FILE
            shutil.copyfile(spare[operation["sha256"]], spool)
            operation = {**operation, "spool": str(spool)}
        elif operation["op"] == "checkpoint" and is_sent and operation["name"] in pruned:
            spool = _made(folder / operation["name"]) / CHECKPOINT_FILE
            dropped_mark(spool).write_text(pruned[operation["name"]])
            operation = {**operation, "spool": str(spool)}
        if operation["op"] == "file":  # what a newer one replaces in the store is not missed
            is_newest = operation["spool"] == newest[_name(operation)]
            kept = journal.folder / posixpath.basename(operation["spool"])  # a recovery point lies in the folder too
            spool = str(kept) if is_newest and kept.exists() else operation["spool"]
            operation = {**operation, "spool": spool, "rolling": not is_newest}
        yield end, operation


def _name(operation: dict) -> str:
    """What a person calls it: a file by its place among the artifacts, anything else by its line in the journal."""
    match operation["op"]:
        case "checkpoint":
            return f"checkpoint {operation['name']}"
        case "file":
            return posixpath.join(operation["folder"] or "", posixpath.basename(operation["spool"]))
        case "image":
            return f"images/{posixpath.basename(operation['spool'])}"
    return f"{operation['op']} of the journal's {operation['time']}"


def state_of(run) -> str:
    """How a run of mlflow's ended and how often it was resumed: another word means that it went on."""
    end_time = run.info.end_time if run.info.status in ENDED else None
    return f"{run.info.status} {end_time} resumed {run.data.tags.get('resumed', 0)}"


def mark_copied(target: Store, run_id: str) -> None:
    with failures(target.uri, f"run {run_id}"):
        run = target.client.get_run(run_id)
        if run.data.tags.get(COPIED) != state_of(run):
            target.client.set_tag(run_id, COPIED, state_of(run))


def _existing_or_new(target: Store, origin: str, *, origin_store: str, experiment: str, run_name: str, start_time: int):
    with failures(target.uri, f"the copy of run {origin}"):
        if found := run_copied_from(target.client, origin):
            return found
    tags = {ORIGIN: origin, ORIGIN_STORE: origin_store}
    run_id, _ = target.create_run(experiment, run_name, tags, start_time=start_time)
    with failures(target.uri, f"run {run_id}"):
        return target.client.get_run(run_id)


def _why_left_alone(copy) -> str | None:
    if copy.info.lifecycle_stage == "deleted":
        return "was deleted there; restore it there to have it completed"
    if copy.data.tags.get(COPIED, state_of(copy)) != state_of(copy):
        return "went on there by itself"
    return None


def _checkpoint_operation(model, spool: Path) -> dict:
    """Without its metrics, which have times and data of their own."""
    return {
        "op": "checkpoint",
        "name": model.name,
        "spool": str(spool),
        "sha256": model.tags["sha256"],
        "step": int(model.tags["step"]),
        "time": model.creation_timestamp,
        "metrics": {},
        "params": dict(model.params or {}),
        "tags": dict(model.tags),
        "dataset": None,
    }


def _files(store: Store, run_id: str, folder: str | None = None) -> Iterator[tuple[str, int]]:
    """The path and size of every artifact of a run."""
    with failures(store.uri, f"artifacts of run {run_id}"):
        entries = store.client.list_artifacts(run_id, folder)
    for entry in entries:
        if entry.is_dir:
            yield from _files(store, run_id, entry.path)
        else:
            yield entry.path, entry.file_size


def _dataset_key(entry) -> tuple:
    return entry.dataset.name, entry.dataset.digest, *sorted((tag.key, tag.value) for tag in entry.tags)


def _point_key(point) -> tuple:
    return point.key, point.timestamp, point.step, repr(point.value)  # NaN is not equal to itself


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
