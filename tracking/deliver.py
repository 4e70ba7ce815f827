"""Applies journalled operations to an MLflow store; applying one twice changes nothing."""

import hashlib
import json
import math
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tracking.artifacts import link_into_store, sha256_of_file, write_preview
from tracking.connection import first_line, import_mlflow, local_folder
from tracking.errors import StoreError, TakenOver
from tracking.find import stored_checkpoints
from tracking.journal import OUTBOX, dropped_mark
from tracking.ownership import Ownership
from tracking.pruning import CannotFree, Registered, free_files, pruned_tag, pruned_tags
from tracking.records import CHECKPOINT_FILE, CHECKPOINT_FOLDER, NOTE, stored_checkpoint

NOTE_HASH = "description_sha256"  # of the note that we wrote last: any other note is a user's

# What a store answers when the operation itself is at fault: it would answer the same tomorrow.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS", "NOT_IMPLEMENTED"}


class Refused(ValueError):
    """The store will never take this operation."""


class Unavailable(RuntimeError):
    """The store does not take anything now; the operation is to be tried again."""


class Delivery:
    """Applies operations to one run of one store. `folder` is where the operations' spool files are.

    A spool that is an absolute path is itself where the file is.
    """

    def __init__(self, store, run_id: str, folder: Path, ownership: Ownership | None = None):
        self.store = store
        self.ownership = ownership  # without it whoever comes may write
        self.client = store.client
        self.run_id = run_id
        self.folder = Path(folder)
        self._run_info = None
        self._model_ids: dict[str, str | None] = {}
        self._has_images = False

    def apply(self, operations: list[dict]) -> None:
        """Applies one operation, or several metrics operations at once.

        Raises Refused where the operation is at fault, Unavailable where the store is.
        """
        mlflow = import_mlflow()
        try:
            if self.ownership is not None:
                self.ownership.require()
            if operations[0]["op"] == "metrics":
                self._metrics(operations)
            else:
                self._apply_one(operations[0])
        except mlflow.MlflowException as error:
            self._raise_as_ours(error)
        except (Refused, Unavailable, TakenOver):
            raise
        except (OSError, RuntimeError) as error:  # the disk, the network (requests' errors), an interpreter going down
            kind = Refused if _is_refused_upload(error) else Unavailable
            raise kind(f"{type(error).__name__}: {first_line(error)}") from error
        except Exception as error:  # an operation that is not what it says must not end the sender's thread
            raise Refused(f"{type(error).__name__}: {first_line(error)}") from error

    def _apply_one(self, operation: dict) -> None:
        match operation["op"]:
            case "params":
                self._params(operation["params"])
            case "tags":
                self._tags(operation["tags"])
            case "file":
                self._file(operation)
            case "remove":
                self._remove(operation["artifact_path"])
            case "image":
                self._image(operation)
            case "text":
                self.client.log_text(self.run_id, operation["text"], operation["artifact_path"])
            case "dataset":
                self._dataset(operation)
            case "checkpoint":
                self._checkpoint(operation)
            case "prune":
                self._prune(operation)
            case "model_input":
                self._model_input(operation["model_id"])
            case "description":
                self._description(operation["text"])
            case "resume":
                self.client.update_run(self.run_id, status="RUNNING")
            case "end":
                self.client.set_terminated(self.run_id, operation["status"], operation["end_time"])
            case other:
                raise Refused(f"no such operation: {other}")

    def _raise_as_ours(self, error) -> None:
        reason = f"{error.error_code}: {first_line(error)}"
        if error.error_code not in REFUSALS:
            raise Unavailable(reason) from error
        # A run deleted in the UI refuses everything; that is mended by restoring it, not by dropping what it lacks.
        try:
            stage = self.client.get_run(self.run_id).info.lifecycle_stage
        except (type(error), OSError) as second:
            raise Unavailable(f"{type(second).__name__}: {first_line(second)}") from second
        if stage == "deleted":
            raise Unavailable(
                f"run {self.run_id} is deleted in the store; restore it there to deliver the rest"
            ) from error
        raise Refused(reason) from error

    # -- numbers and words

    def _params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def _tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _metrics(self, operations: list[dict]) -> None:
        metrics = [metric for operation in operations for metric in self._entities(operation)]
        self.client.log_batch(self.run_id, metrics=metrics)

    def _entities(self, operation: dict) -> Iterator:
        from mlflow.entities import Metric

        model_id = operation.get("model_id") or self._model_id(operation.get("checkpoint"))
        name, digest = operation.get("dataset") or (None, None)
        for key, value in operation["metrics"].items():
            # A model's NaN is read back as 0.0 and sorted as 0.0: only the run gets it, and the model a tag.
            linked = model_id if math.isfinite(value) else None
            if model_id is not None and linked is None:
                self.client.set_logged_model_tags(model_id, {"nonfinite": "1"})
            yield Metric(
                key, value, operation["time"], operation["step"], linked, name, digest and digest[:36], self.run_id
            )

    def _description(self, text: str) -> None:
        if is_ours(self.client.get_run(self.run_id).data.tags):
            self._tags({NOTE: text, NOTE_HASH: _sha256_of_text(text)})

    def _dataset(self, operation: dict) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": operation["source"]})
        dataset = Dataset(operation["name"], operation["digest"][:36], "local", source)
        tags = {**operation["tags"], "mlflow.data.context": operation["context"]}
        inputs = [DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])]
        self.client.log_inputs(self.run_id, datasets=inputs)

    def _model_input(self, model_id: str) -> None:
        from mlflow.entities import LoggedModelInput

        inputs = self.client.get_run(self.run_id).inputs
        if model_id not in {model.model_id for model in inputs.model_inputs}:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

    # -- files

    def _file(self, operation: dict) -> None:
        spool, folder = self.folder / operation["spool"], operation["folder"]
        if not spool.exists():
            if operation["rolling"]:
                return  # a newer one follows
            self._require_artifact(posixpath.join(folder or "", spool.name))
            return
        self._upload(spool, folder)

    def _upload(self, spool: Path, folder: str | None) -> None:
        link_into_store(spool, self._artifact_uri(), folder)
        self.client.log_artifact(self.run_id, str(spool), folder)

    def _remove(self, path: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if any(entry.path == path for entry in self.client.list_artifacts(self.run_id, posixpath.dirname(path))):
            get_artifact_repository(self._artifact_uri(), self.store.uri).delete_artifacts(path)

    def _image(self, operation: dict) -> None:
        spool = self.folder / operation["spool"]
        if not spool.exists():
            self._require_artifact(f"images/{spool.name}")
            return
        with tempfile.TemporaryDirectory() as folder:
            preview = Path(folder) / f"{spool.stem}+compressed.webp"
            self._write_preview(spool, preview)
            self.client.log_artifact(self.run_id, str(preview), "images")
        self._upload(spool, "images")
        if not self._has_images:
            self._tags({"mlflow.loggedImages": "True"})
            self._has_images = True

    def _write_preview(self, spool: Path, preview: Path) -> None:
        from PIL import UnidentifiedImageError

        try:
            write_preview(spool, preview)
        except UnidentifiedImageError as error:
            raise Refused(first_line(error)) from error

    def _require_artifact(self, path: str) -> None:
        """A spool file is removed once the store has confirmed it: delivered again, the artifact must be there."""
        listed = {entry.path for entry in self.client.list_artifacts(self.run_id, posixpath.dirname(path) or None)}
        if path not in listed:
            raise Refused(f"its file is gone from the outbox, and {path} is not in the store")

    # -- checkpoints

    def _checkpoint(self, operation: dict) -> None:
        from mlflow.entities import LoggedModelOutput

        model = self._existing_model(operation) or self._new_model(operation)
        self._model_ids[operation["name"]] = model.model_id
        if str(model.status) == "READY":
            return
        dropped = dropped_mark(self.folder / operation["spool"])
        if dropped.exists():
            self.client.set_logged_model_tags(model.model_id, pruned_tags(dropped.read_text(), model.tags or {}))
        else:
            self._upload_checkpoint(operation, model)
        outputs = self.client.get_run(self.run_id).outputs
        if model.model_id not in {output.model_id for output in outputs.model_outputs}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, operation["step"])])
        self._metrics([{**operation, "checkpoint": operation["name"]}])
        self.client.finalize_logged_model(model.model_id, "READY")

    def _existing_model(self, operation: dict):
        models = self._models_named(operation["name"])
        return next((model for model in models if model.tags.get("sha256") == operation["sha256"]), None)

    def _new_model(self, operation: dict):
        spool = self.folder / operation["spool"]
        if not spool.exists() and not dropped_mark(spool).exists():
            raise Refused("its file is gone from the outbox, and the checkpoint is not in the store")
        return self.client.create_logged_model(
            experiment_id=self._info().experiment_id,
            name=operation["name"],
            source_run_id=self.run_id,
            tags=operation["tags"],
            params=operation["params"],
            model_type="checkpoint",
        )

    def _upload_checkpoint(self, operation: dict, model) -> None:
        spool = self.folder / operation["spool"]
        if not spool.exists():
            kind = Unavailable if dropped_mark(spool).exists() else Refused  # pruned just now: the next try sees that
            raise kind("its file is gone from the outbox before it was delivered")
        link_into_store(spool, model.artifact_location, CHECKPOINT_FOLDER)
        self.client.log_model_artifact(model.model_id, str(spool), CHECKPOINT_FOLDER)
        folder = local_folder(model.artifact_location)
        if folder is not None:
            self._verify_local(folder / CHECKPOINT_FOLDER / CHECKPOINT_FILE, spool, operation)
        elif shutil.disk_usage(self.folder).free > 2 * spool.stat().st_size:
            self._verify_remote(model)
        else:
            self._verify_size(model.model_id, spool)

    def _prune(self, operation: dict) -> None:
        tag = pruned_tag(operation["why"], operation["time"])
        best = self._best_model_id(operation["metric"])
        for model in self._models_named(operation["checkpoint"]):
            if model.model_id == best:
                continue
            try:
                free_files(self.store, model, tag)
            except Registered:
                continue
            except CannotFree as error:
                raise Refused(f"the files of {model.name} stay: {error}") from error

    def _best_model_id(self, metric: str | None) -> str | None:
        """The run's best checkpoint by a metric, the earliest of equals."""
        known = stored_checkpoints(self.client, self._info().experiment_id, metric, self.run_id) if metric else []
        scored = sorted((one for one in known if one.score is not None), key=lambda one: one.step)
        best = max(scored, key=lambda one: one.score, default=None)
        return best and best.model_id

    def _verify_local(self, stored: Path, spool: Path, operation: dict) -> None:
        if not stored.samefile(spool) and sha256_of_file(stored) != operation["sha256"]:
            stored.unlink()
            raise Unavailable(f"the store's copy {stored} differs from what was sent; sending it again")

    def _verify_remote(self, model) -> None:
        """Reads the file back, in the sender's own time: a server tells no hash."""
        outbox = self.folder / OUTBOX
        outbox.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=outbox, prefix="verify-") as folder:
            try:
                self.store.download(stored_checkpoint(model, ""), Path(folder) / CHECKPOINT_FILE)
            except StoreError as error:
                raise Unavailable(f"{first_line(error)}; sending it again") from error

    def _verify_size(self, model_id: str, spool: Path) -> None:
        files = self.client.list_logged_model_artifacts(model_id, CHECKPOINT_FOLDER)
        sizes = {posixpath.basename(entry.path): entry.file_size for entry in files}
        if sizes.get(CHECKPOINT_FILE) != spool.stat().st_size:
            raise Unavailable(f"the store has {sizes.get(CHECKPOINT_FILE)} bytes of {spool}; sending it again")

    def _model_id(self, name: str | None) -> str | None:
        """The checkpoint's LoggedModel; None where there is no such checkpoint, as after a refusal."""
        if name is None:
            return None
        if name not in self._model_ids:
            models = self._models_named(name)
            self._model_ids[name] = models[-1].model_id if models else None
        return self._model_ids[name]

    def _models_named(self, name: str) -> list:
        where = f"source_run_id = '{self.run_id}' AND name = '{name}'"
        models = self.client.search_logged_models([self._info().experiment_id], where)
        return sorted(models, key=lambda model: model.creation_timestamp)

    def _info(self):
        if self._run_info is None:
            self._run_info = self.client.get_run(self.run_id).info
        return self._run_info

    def _artifact_uri(self) -> str:
        return self._info().artifact_uri


def is_ours(tags: Mapping[str, str]) -> bool:
    """Whether the note of a run with these tags may be rewritten: no user has edited it."""
    present = tags.get(NOTE)
    return present is None or _sha256_of_text(present) == tags.get(NOTE_HASH)


def deliver(store, run_id: str, operations: Iterable[dict], folder: Path) -> None:
    """Applies operations one after the other; the first that fails raises StoreError."""
    delivery = Delivery(store, run_id, folder)
    for operation in operations:
        try:
            delivery.apply([operation])
        except (Refused, Unavailable) as error:
            raise StoreError(f"The tracking store {store.uri} did not take {operation['op']}: {error}") from error


def _is_refused_upload(error: Exception) -> bool:
    """Whether a server refused a file for what it is (requests' HTTPError), such as one larger than it takes."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) in {400, 413, 414, 422}


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
