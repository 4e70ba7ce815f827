"""The checkpoints of a store: found, fetched and verified, pruned, registered."""

import tempfile
from pathlib import Path

from tracking.artifacts import copy_of, sha256_of_file
from tracking.connection import failures, import_mlflow, is_server, local_folder
from tracking.errors import DamagedArtifact
from tracking.find import stored_checkpoints
from tracking.journal import now_ms
from tracking.moved import home_of
from tracking.pruning import free_files, is_registered, pruned_tag
from tracking.records import CHECKPOINT_FILE, CHECKPOINT_FOLDER, StoredCheckpoint


class CheckpointStore:
    """What tracking.store.Store does with checkpoints: it has the `uri`, the `client` and the runs."""

    def checkpoints(self, run_id: str, *, metric: str = "val/AP", with_pruned: bool = False) -> list[StoredCheckpoint]:
        """The checkpoints that the store has whole, by step; `score` is the metric's value. None of an unknown run.

        Another store's run has those of its copy. With those that were pruned, of which it has all but the files, where
        one asks for them.
        """
        run_id = self.known_as(run_id)
        if run_id is None:
            return []
        with failures(self.uri, f"checkpoints of run {run_id}"):
            experiment_id = self.client.get_run(run_id).info.experiment_id
            found = stored_checkpoints(self.client, experiment_id, metric, run_id)
        found = [one for one in found if with_pruned or not one.pruned]
        return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.created))

    def download(self, checkpoint: StoredCheckpoint, to: Path) -> Path:
        """The checkpoint's file at `to`, whole and verified or not at all; never the store's own inode."""
        to = Path(to)
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
            partial = Path(folder) / CHECKPOINT_FILE
            self._fetch(checkpoint, partial)
            found = sha256_of_file(partial)
            if found != checkpoint.sha256:
                raise DamagedArtifact(
                    f"Checkpoint {checkpoint.name} of run {checkpoint.run_id} is damaged in the store: "
                    f"{checkpoint.artifact_location} has sha256 {found}, {checkpoint.sha256} was sent. "
                    f"{_other_checkpoints(checkpoint)}"
                )
            partial.replace(to)
        return to

    def holds(self, checkpoint: StoredCheckpoint) -> bool:
        """Whether the checkpoint's file is really there: by its hash in a local store, by its size on a server."""
        folder = self._folder(checkpoint.artifact_location)
        if folder is not None:
            stored = folder / CHECKPOINT_FOLDER / CHECKPOINT_FILE
            return stored.is_file() and sha256_of_file(stored) == checkpoint.sha256
        return self.stored_bytes(checkpoint) == checkpoint.size_bytes

    def stored_bytes(self, checkpoint: StoredCheckpoint) -> int:
        """The size of the checkpoint's file in the store, 0 where it is gone."""
        with failures(self.uri, f"files of {checkpoint.name}"):
            files = self.client.list_logged_model_artifacts(checkpoint.model_id, CHECKPOINT_FOLDER)
        return sum(entry.file_size for entry in files if entry.path.endswith(CHECKPOINT_FILE))

    def is_registered(self, checkpoint: StoredCheckpoint) -> bool:
        """Whether a version of a registered model is this checkpoint."""
        with failures(self.uri, f"model versions of {checkpoint.name}"):
            return is_registered(self.client, checkpoint.model_id)

    def prune(self, checkpoint: StoredCheckpoint, why: str) -> None:
        """Frees the checkpoint's file and keeps the rest of it; CannotFree where that cannot be."""
        with failures(self.uri, f"pruning {checkpoint.name}"):
            model = self.client.get_logged_model(checkpoint.model_id)
            free_files(self, model, pruned_tag(why, now_ms()))

    def register(self, checkpoint: StoredCheckpoint, name: str, alias: str) -> str:
        """Registers the checkpoint as a version of the model `name`, sets the alias on it, and returns its URI."""
        self.require_in_place()
        with failures(self.uri, f"model {name}"):
            if not list(self.client.search_registered_models(f"name = '{name}'")):
                self.client.create_registered_model(name)
            version = self._version_of(checkpoint, name) or self._new_version(checkpoint, name)
            self.client.set_registered_model_alias(name, alias, version.version)
        return f"models:/{name}@{alias}"

    # -- inside

    def _folder(self, artifact_uri: str) -> Path | None:
        """The folder of this machine that an artifact URI names, after a move as well; None of any other place."""
        place = local_folder(artifact_uri)
        home = place and home_of(self.uri)
        now = home.present(place) if home else place
        return now if now is None or now.exists() else place

    def _version_of(self, checkpoint: StoredCheckpoint, name: str):
        versions = self.client.search_model_versions(f"name = '{name}'")
        return next((version for version in versions if checkpoint.model_id in version.source), None)

    def _new_version(self, checkpoint: StoredCheckpoint, name: str):
        # Without a server, mlflow looks a models:/ source up in whatever store it has as its default.
        source = f"models:/{checkpoint.model_id}" if is_server(self.uri) else checkpoint.artifact_location
        return self.client.create_model_version(name, source, checkpoint.run_id, model_id=checkpoint.model_id)

    def _fetch(self, checkpoint: StoredCheckpoint, to: Path) -> None:
        folder = self._folder(checkpoint.artifact_location)
        if folder is None:
            self._fetch_remote(checkpoint, to)
            return
        stored = folder / CHECKPOINT_FOLDER / CHECKPOINT_FILE
        if not stored.is_file():  # a pipe would be waited for
            raise DamagedArtifact(_gone(checkpoint, str(stored)))
        copy_of(stored, to)

    def _fetch_remote(self, checkpoint: StoredCheckpoint, to: Path) -> None:
        mlflow = import_mlflow()
        uri = f"{checkpoint.artifact_location}/{CHECKPOINT_FOLDER}/{CHECKPOINT_FILE}"
        with failures(self.uri, uri):
            files = self.client.list_logged_model_artifacts(checkpoint.model_id, CHECKPOINT_FOLDER)
            if not any(entry.path.endswith(CHECKPOINT_FILE) for entry in files):
                raise DamagedArtifact(_gone(checkpoint, uri))
            mlflow.artifacts.download_artifacts(uri, dst_path=str(to.parent), tracking_uri=self.uri)
        if not to.is_file():
            raise DamagedArtifact(_gone(checkpoint, uri))


def _gone(checkpoint: StoredCheckpoint, place: str) -> str:
    return (
        f"Checkpoint {checkpoint.name} of run {checkpoint.run_id} is registered in the store, but its file is gone: "
        f"{place}. {_other_checkpoints(checkpoint)}"
    )


def _other_checkpoints(checkpoint: StoredCheckpoint) -> str:
    return f"Take another of the run's checkpoints: python restore.py {checkpoint.run_id} --which last"
