"""Frees the files of a checkpoint; its LoggedModel stays, with its metrics and a tag that says when and why."""

import time
from collections.abc import Mapping

from tracking.connection import first_line, import_mlflow, is_full, local_folder, sqlite_path
from tracking.records import CHECKPOINT_FOLDER, NOTE, PRUNED


class CannotFree(RuntimeError):
    """The files stay: the checkpoint is registered, or the store does not let go of them."""


class Registered(CannotFree):
    """A version of a registered model is this checkpoint: it is kept for that."""


def pruned_tag(why: str, milliseconds: int) -> str:
    """What the tag says: `2026-11-25 00:10 UTC, --keep best`."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000)) + f", {why}"


def pruned_tags(tag: str, known: Mapping[str, str]) -> dict[str, str]:
    """The tag, and what the UI shows as the checkpoint's description, where it has none."""
    note = f"The file of this checkpoint was pruned ({tag}). Its metrics stay."
    return {PRUNED: tag} | ({} if NOTE in known else {NOTE: note})


def free_files(store, model, tag: str) -> None:
    """Deletes the artifacts of mlflow's LoggedModel `model`; doing it again changes nothing.

    CannotFree says why they stay. MLflow's own errors mean that the store is away.
    """
    if is_registered(store.client, model.model_id):
        raise Registered("it is registered as a model version")
    require_own_place(store, model)
    # The tag first: whoever looks meanwhile is not offered a file that is going.
    known = model.tags or {}
    is_tagged = PRUNED in known or _set_tags(store, model, tag)
    refusal = _refusal_to_delete(store, model)
    if refusal is None and not is_tagged:
        store.client.set_logged_model_tags(model.model_id, pruned_tags(tag, known))
    if refusal is not None:
        if PRUNED not in known:
            for key in pruned_tags(tag, known):  # which fails where it is the store that is away
                store.client.delete_logged_model_tag(model.model_id, key)
        raise CannotFree(refusal)


def _set_tags(store, model, tag: str) -> bool:
    """Whether there was room for it: on a full disk the file has to go first."""
    try:
        store.client.set_logged_model_tags(model.model_id, pruned_tags(tag, model.tags or {}))
    except import_mlflow().MlflowException as error:
        if not is_full(error):
            raise
        return False
    return True


def is_registered(client, model_id: str) -> bool:
    """Whether a version of a registered model, with an alias or without, is this checkpoint."""
    return bool(client.search_model_versions(f"source_path LIKE '%{model_id}%'", max_results=1))


def require_own_place(store, model) -> None:
    """CannotFree for a local folder that is not this store's: a copied database still names the original's files."""
    folder, database = local_folder(model.artifact_location), sqlite_path(store.uri)
    if folder is None:
        return
    if model.model_id not in folder.parts:
        raise CannotFree(f"{folder} is not a folder of this checkpoint alone")
    own = database and database.resolve().parent
    if own and not folder.resolve().is_relative_to(own):
        raise CannotFree(
            f"{folder} lies outside {own}, where this store is: it may be the original of a copied repository. "
            "Free it there, or mend this one first: python relocate.py"
        )


def _refusal_to_delete(store, model) -> str | None:
    """Deletes; why the file is still there, if it is."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(model.artifact_location, tracking_uri=store.uri).delete_artifacts()
        left = store.client.list_logged_model_artifacts(model.model_id, CHECKPOINT_FOLDER)
    except Exception as error:  # boto's, requests', mlflow's: every kind of artifact store raises its own
        return f"{type(error).__name__}: {first_line(error)}"
    return "its artifact store said yes to deleting it, but still has it" if left else None
