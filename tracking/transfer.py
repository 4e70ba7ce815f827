"""A whole run out of its store into another; what the copy has already is not sent twice."""

import posixpath
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from progress import Progress
from tracking import recovery
from tracking.connection import failures, import_mlflow
from tracking.copies import ENDED, Copied, existing_or_new, made, mark_copied, state_of, why_left_alone
from tracking.deliver import NOTE, deliver, is_ours
from tracking.errors import DamagedArtifact
from tracking.find import experiment_ids_of
from tracking.journal import dropped_mark
from tracking.ownership import OWNER
from tracking.pages import every
from tracking.records import CHECKPOINT_FILE, COPIED, ORIGIN, ORIGIN_STORE, PRUNED
from tracking.store import Store

NOT_COPIED = (ORIGIN, ORIGIN_STORE, COPIED, OWNER, "mlflow.runName")  # tags that the copy has of its own


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
        copy = existing_or_new(self.target, run_id, origin_store=self.source.uri, **about)
        copied = Copied(run_id=copy.info.run_id, left_alone=why_left_alone(copy))
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
        there = self._known_checkpoints(copied.run_id)
        files = {one.model_id: one for one in self.source.checkpoints(models[0].source_run_id)} if models else {}
        self.progress.expect(self.progress.done + len(models))
        for model in models:
            key = model.name, model.tags["sha256"]
            if key not in there:
                spool = self.folder / model.model_id / CHECKPOINT_FILE
                try:
                    if model.model_id in files:
                        self.source.download(files[model.model_id], spool)
                    else:
                        dropped_mark(made(spool.parent) / spool.name).write_text(model.tags[PRUNED])
                    self._deliver(copied.run_id, _checkpoint_operation(model, spool))
                except DamagedArtifact as error:
                    copied.lacking.append(f"checkpoint {model.name} ({error})")
                    continue
                finally:
                    shutil.rmtree(spool.parent, ignore_errors=True)  # where nothing was downloaded there is none
                there = self._known_checkpoints(copied.run_id)
                copied.sent["checkpoints"] += 1
            self.progress.step()
            self.model_ids[model.model_id] = there[key]
            self._model_tags(model, there[key])

    def _known_checkpoints(self, run_id: str) -> dict[tuple[str, str], str]:
        known = self.target.checkpoints(run_id, with_pruned=True)
        return {(one.name, one.sha256): one.model_id for one in known}

    def _model_tags(self, model, model_id: str) -> None:
        with failures(self.target.uri, f"checkpoint {model.name}"):
            known = self.target.client.get_logged_model(model_id).tags
            changed = dict(model.tags.items() - known.items())
            changed.pop(PRUNED, None)  # what was pruned there later is kept here
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
                        run_id=run_id, artifact_path=path, dst_path=made(place), tracking_uri=self.source.uri
                    )
                folder = posixpath.dirname(path) or None
                operation = {"op": "file", "spool": spool, "folder": folder, "rolling": False}
                self._deliver(copied.run_id, operation)
                shutil.rmtree(place)
                copied.sent["files"] += 1
            self.progress.step()
        if recovery.PLACE not in dict(files):  # it was, and a finished run has none
            self._deliver(copied.run_id, {"op": "remove", "artifact_path": recovery.PLACE})

    def _model_inputs(self, run, copy_id: str) -> None:
        for entry in run.inputs.model_inputs:
            if model_id := self.model_ids.get(entry.model_id):
                self._deliver(copy_id, {"op": "model_input", "model_id": model_id})

    def _deliver(self, run_id: str, operation: dict) -> None:
        deliver(self.target, run_id, [operation], self.folder)


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
