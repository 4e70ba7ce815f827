"""The tracking store as the scripts see it: experiments, runs, checkpoints, and where to look at them."""

import getpass
import gzip
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tracking.best import best_run
from tracking.checkpoints import CheckpointStore
from tracking.connection import connect, failures, import_mlflow, is_server, local_folder, probe, sqlite_path, store_uri
from tracking.errors import DamagedArtifact, ExperimentDeleted, RunUnknown, StoreError
from tracking.find import RunReference, experiment_ids_of, find_run, run_copied_from, runs_named
from tracking.journal import now_ms
from tracking.moved import ARTIFACTS, home_of
from tracking.ownership import is_ours
from tracking.pages import every
from tracking.pruning import CannotFree
from tracking.pulse import heartbeat_text
from tracking.records import (
    HEARTBEAT,
    StoredCheckpoint,
    StoredRun,
    stored_run,
)
from tracking.view import VIEW, arrange_charts

__all__ = [
    "CannotFree",
    "DamagedArtifact",
    "ExperimentDeleted",
    "RunReference",
    "RunUnknown",
    "Store",
    "StoreError",
    "StoredCheckpoint",
    "StoredRun",
    "open_store",
    "store_uri",
]

LOCAL_UI = "http://127.0.0.1:5000"  # where `mlflow ui` listens


def open_store(root: Path, uri: str | None = None, *, must_exist: bool = False) -> "Store":
    """The store; StoreError where it does not answer.

    Where it is an sqlite file that is not there yet, it is created, or RunUnknown with `must_exist`.
    """
    uri = uri or store_uri(root)
    database = sqlite_path(uri)
    if must_exist and database is not None and not database.exists():
        raise RunUnknown(f"There is no run yet: no tracking store at {uri}. Train one: python train.py")
    return Store(uri, Path(root).resolve(), connect(uri))


class Store(CheckpointStore):
    """One MLflow tracking store. Failures of the store are StoreErrors."""

    def __init__(self, uri: str, root: Path, client):
        self.uri, self.root, self.client = uri, root, client

    def answers(self) -> bool:
        """Whether a call would be answered within seconds; a server that hangs would let it wait for minutes."""
        try:
            probe(self.uri)
        except StoreError:
            return False
        return True

    def require_in_place(self) -> None:
        """StoreMoved where what is written now would go to a folder from before a move; see tracking.moved."""
        if home := home_of(self.uri):
            home.require_in_place()

    # -- runs

    def experiment(self, name: str) -> str:
        """The ID of the experiment, created where there is none; in a local store its artifacts lie beside it."""
        self.require_in_place()
        with failures(self.uri, f"experiment {name}"):
            found = self.client.get_experiment_by_name(name) or self._new_experiment(name)
        if found.lifecycle_stage == "deleted":
            raise ExperimentDeleted(
                f"Experiment {name!r} is deleted in {self.uri}. Restore it: "
                f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore --experiment-id {found.experiment_id}, "
                "or choose another: --experiment NAME"
            )
        return found.experiment_id

    def create_run(
        self,
        experiment: str,
        run_name: str | None,
        tags: Mapping[str, object] | None = None,
        *,
        start_time: int | None = None,
    ) -> tuple[str, str]:
        """Starts a run in the experiment of that name; its ID and its name, made up where none is given.

        It started at `start_time` (ms), or now. Its first heartbeat comes with it: the process may die before it can
        say another word.
        """
        experiment_id = self.experiment(experiment)
        given = {key: str(value) for key, value in (tags or {}).items()}
        every_tag = {**_context_tags(), HEARTBEAT: heartbeat_text({}), **given}
        with failures(self.uri, f"a new run in {experiment}"):
            arrange_charts(self.client, experiment_id)
            info = self.client.create_run(experiment_id, start_time, every_tag, run_name).info
        return info.run_id, info.run_name

    def resume_run(self, run_id: str) -> int:
        """Sets the run RUNNING again; returns how often that happened, which is its tag `resumed` too."""
        with failures(self.uri, f"run {run_id}"):
            count = int(self.client.get_run(run_id).data.tags.get("resumed", "0")) + 1
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "resumed", str(count))
        return count

    def end(self, run_id: str, status: str, end_time: int | None = None) -> None:
        """Ends a run: FINISHED, FAILED or KILLED, at a time in ms (now)."""
        with failures(self.uri, f"run {run_id}"):
            self.client.set_terminated(run_id, status, end_time or now_ms())

    def end_dead(self, run_id: str, owners: Sequence[str]) -> bool:
        """Ends a run whose process is dead as KILLED, at its last heartbeat.

        False where it had ended already, or where another process than the `owners` (tracking.ownership) has it.
        """
        run = self.run(run_id)
        if run.status != "RUNNING" or run.is_deleted or not is_ours(run.tags, owners):
            return False
        self.end(run_id, "KILLED", _heartbeat_time(run.tags))
        return True

    def running(self) -> list[StoredRun]:
        """The runs of all experiments that are RUNNING, as the store has it."""
        with failures(self.uri, "its running runs"):
            names = {one.experiment_id: one.name for one in every(self.client.search_experiments)}
            found = every(self.client.search_runs, list(names), "attributes.status = 'RUNNING'")
            return [stored_run(run, names[run.info.experiment_id]) for run in found]

    def last_train_step(self, run_id: str) -> int:
        """The highest step whose training metrics the store has; 0 before the first."""
        with failures(self.uri, f"metrics of run {run_id}"):
            return max((point.step for point in self.client.get_metric_history(run_id, "train/loss")), default=0)

    def histories(self, run_id: str, prefixes: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
        """The (step, value) of the run's metrics whose names begin with one of these."""
        keys = [key for key in self.run(run_id).metrics if key.startswith(prefixes)]
        with failures(self.uri, f"metrics of run {run_id}"):
            found = {key: self.client.get_metric_history(run_id, key) for key in keys}
        return {key: [(point.step, point.value) for point in points] for key, points in found.items()}

    def find(self, word: str, experiment: str | None = None) -> RunReference:
        """The run (and, for models:/NAME@ALIAS, the checkpoint) that a user's word names; RunUnknown otherwise."""
        with failures(self.uri, f"run {word}"):
            return find_run(self.client, word, experiment)

    def find_run(self, word: str, experiment: str | None = None) -> str:
        return self.find(word, experiment).run_id

    def best_run(self, experiment: str, metric: str) -> RunReference:
        """The run of an experiment that has the best checkpoint by a metric; see tracking.best."""
        with failures(self.uri, f"the best run of {experiment}"):
            return best_run(self.client, experiment, metric)

    def knows(self, run_id: str) -> bool:
        """Whether the store has that run."""
        try:
            self.run(run_id)
        except RunUnknown:
            return False
        return True

    def known_as(self, run_id: str) -> str | None:
        """The run's ID in this store: its own, or that of its copy where it is another store's; None of an unknown."""
        if self.knows(run_id):
            return run_id
        with failures(self.uri, f"run {run_id}"):
            copy = run_copied_from(self.client, run_id)
        return copy and copy.info.run_id

    def run(self, run_id: str) -> StoredRun:
        with failures(self.uri, f"run {run_id}"):
            run = self.client.get_run(run_id)
            return stored_run(run, self.client.get_experiment(run.info.experiment_id).name)

    def runs_of(self, experiment: str) -> list[StoredRun]:
        """The runs of an experiment, evaluations among them, newest first; RunUnknown where there is none such."""
        with failures(self.uri, f"the runs of experiment {experiment}"):
            found = every(self.client.search_runs, experiment_ids_of(self.client, experiment))
            return [stored_run(run, experiment) for run in found]

    def runs_named(self, run_name: str, experiment: str) -> list[StoredRun]:
        """The runs of that name in an experiment, newest first; none where there is no such experiment."""
        with failures(self.uri, f"runs named {run_name}"):
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                return []
            return [stored_run(run, experiment) for run in runs_named(self.client, run_name, found.experiment_id)]

    def read_json(self, run_id: str, artifact_path: str) -> dict | None:
        """A JSON artifact of a run, compressed or not; None where the run has none of that name."""
        with tempfile.TemporaryDirectory(prefix="artifact-") as to:
            path = self.fetch_artifact(run_id, artifact_path, Path(to))
            with failures(self.uri, f"{artifact_path} of run {run_id}"):
                content = path and path.read_bytes()
        return path and json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)

    def fetch_artifact(self, run_id: str, artifact_path: str, to: Path) -> Path | None:
        """A copy of a run's artifact in the folder `to`; None where the run has none of that name."""
        with failures(self.uri, f"{artifact_path} of run {run_id}"):
            place = self._folder(self.client.get_run(run_id).info.artifact_uri)
            if place is not None:
                file = place / artifact_path
                return Path(shutil.copy(file, to)) if file.is_file() else None
            folder = artifact_path.rpartition("/")[0] or None
            if all(entry.path != artifact_path for entry in self.client.list_artifacts(run_id, folder)):
                return None
            uri = f"runs:/{run_id}/{artifact_path}"
            # `to` is a folder that mlflow's downloads cannot leave.
            return Path(import_mlflow().artifacts.download_artifacts(uri, dst_path=str(to), tracking_uri=self.uri))

    def artifact_names(self, run_id: str, folder: str) -> set[str]:
        """The names of the files in a folder of a run's artifacts."""
        with failures(self.uri, f"files of run {run_id}"):
            place = self._folder(self.client.get_run(run_id).info.artifact_uri)
            if place is not None:
                return {entry.name for entry in (place / folder).glob("*")}
            return {entry.path.rpartition("/")[2] for entry in self.client.list_artifacts(run_id, folder)}

    def newest_runs(self, limit: int) -> list[StoredRun]:
        """The newest runs of all experiments, newest first."""
        with failures(self.uri, "its newest runs"):
            names = {one.experiment_id: one.name for one in self.client.search_experiments()}
            found = self.client.search_runs(list(names), max_results=limit, order_by=["start_time DESC"])
            return [stored_run(run, names[run.info.experiment_id]) for run in found]

    # -- evaluations and comparisons

    def evaluations(self, run_id: str) -> list[StoredRun]:
        """The evaluations of a run's checkpoints, in any experiment, newest first."""
        with failures(self.uri, f"evaluations of run {run_id}"):
            names = {one.experiment_id: one.name for one in every(self.client.search_experiments)}
            where = f"tags.source_run_id = '{run_id}'"
            found = every(self.client.search_runs, list(names), where, order_by=["start_time DESC"])
            return [stored_run(run, names[run.info.experiment_id]) for run in found]

    def log_evaluation(self, metrics: Mapping[str, float], *, experiment: str, **about) -> str:
        """A small finished run with the numbers of an evaluation or a comparison; see tracking.evaluation. Its ID."""
        from tracking.evaluation import log_evaluation

        return log_evaluation(self, metrics, experiment=experiment, **about)

    # -- looking at it

    def ui_urls(self, run_id: str, figure: str = "ap.png") -> dict[str, str]:
        """Pages of the run, its figures (one is open), its checkpoints and its experiment.

        Without a server also the command that shows them.
        """
        with failures(self.uri, f"run {run_id}"):
            experiment_id = self.client.get_run(run_id).info.experiment_id
        base = f"{self.uri.rstrip('/') if is_server(self.uri) else LOCAL_UI}/#/experiments/{experiment_id}"
        mode = "workflowType=machine_learning"  # the UI opens for language models otherwise, where runs hide
        pages = {
            "run": f"{base}/runs/{run_id}?{mode}",
            "figures": f"{base}/runs/{run_id}/artifacts/figures/{figure}?{mode}",
            "models": f"{base}/models?{mode}",
            "experiment": f"{base}/runs?{mode}&compareRunsMode=CHART&viewStateShareKey={VIEW}",
        }
        if is_server(self.uri):
            return pages
        return pages | {"command": f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"}

    @cached_property
    def artifact_root(self) -> Path | None:
        """The folder of this machine that has the store's artifacts; None where they are elsewhere."""
        if is_server(self.uri) or self.uri.startswith("databricks"):
            return None  # the server decides
        database = sqlite_path(self.uri)
        return (database.resolve().parent if database else self.root) / ARTIFACTS

    def run_artifacts(self, run_id: str) -> Path | None:
        """The folder of a run's artifacts, where the store has them on this machine."""
        return local_folder(self.run(run_id).artifact_uri) if self.artifact_root else None

    # -- inside

    def _new_experiment(self, name: str):
        mlflow = import_mlflow()
        # mlflow's default would be a folder of wherever the command was started, for good.
        folder = self.artifact_root and self.artifact_root / _folder_name(name)
        try:
            experiment_id = self.client.create_experiment(name, artifact_location=folder and folder.as_uri())
        except mlflow.MlflowException:
            found = self.client.get_experiment_by_name(name)  # someone else was faster
            if found is None:
                raise
            return found
        return self.client.get_experiment(experiment_id)


def _folder_name(experiment: str) -> str:
    name = re.sub(r"[^\w.-]", "_", experiment)
    return name if name.strip(".") else "_"  # dots alone would lead out of the folder


def _context_tags() -> dict[str, str]:
    tags = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    try:
        return {**tags, "mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user without a name
        return tags


def _heartbeat_time(tags: Mapping[str, str]) -> int | None:
    try:
        return int(json.loads(tags["heartbeat"])["time"])
    except (KeyError, TypeError, ValueError):
        return None
