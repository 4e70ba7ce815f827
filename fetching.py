"""From a user's word to a verified checkpoint file, and from the file to a model.

Imports neither torch nor mlflow: the options of scripts are checked here too.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workspace
from commandline import ConfigError
from config import TrainConfig
from models import record
from progress import say
from tracking.connection import store_uri
from tracking.errors import RunUnknown
from tracking.metric_names import metrics_meant
from workspace import BEST, RunFolder, WorkspaceError, deliver_if_idle, local_run, run_folders

if TYPE_CHECKING:
    from data.columns import Records
    from data.detection_data import DetectionData


def store_of(word: str) -> Any:
    """The store to look for a RUN in; RunUnknown where there is none."""
    with naming_its_store(word, store_uri(workspace.ROOT)):
        return open_store(must_exist=True)


def open_store(*, must_exist: bool = False) -> Any:
    """The store, once it has got what runs of this machine owe it: all commands but status.py open it by this.

    See tracking.store.open_store for its errors.
    """
    from tracking import store as tracking_store

    store = tracking_store.open_store(workspace.ROOT, must_exist=must_exist)
    workspace.settle(store)
    return store


def file_named(word: str) -> Path | None:
    """The file that a word names where a file or a RUN may stand; `best` is a RUN whatever files there are.

    What lies there and is neither a file nor a folder (a pipe, a link to nothing) is named too: its reader refuses it.
    """
    return Path(word) if word != BEST and os.path.lexists(word) and not Path(word).is_dir() else None


def run_named(store: Any, word: str, experiment: str | None = None, metric: str = "val/AP") -> Any:
    """The run, and of models:/NAME@ALIAS the checkpoint, that a RUN names; within an experiment where that is given.

    `best` is that of one experiment in any case, by the metric.
    """
    if word == BEST:
        for folder in run_folders():
            deliver_if_idle(store, folder)
        return store.best_run(experiment or TrainConfig.experiment, metric)
    if experiment is not None:
        return store.find(word, experiment)
    with naming_its_store(word, store.uri):
        return store.find(word)


@contextlib.contextmanager
def naming_its_store(word: str, uri: str) -> Iterator[None]:
    """Of a run that was trained here, RunUnknown says where it is."""
    try:
        yield
    except RunUnknown as error:
        folder = RunFolder(local_run(word) or "")
        elsewhere = folder.state().get("tracking_uri")
        if elsewhere is None:
            raise
        message = f"The tracking store {uri} does not know run {folder.run_id}, which was trained here"
        if elsewhere != uri:
            message += f" into another store. Name that before the command: MLFLOW_TRACKING_URI={elsewhere} python …"
        elif folder.last.exists():
            message += f". Its last state is at hand: python restore.py --file {folder.last}"
        raise RunUnknown(message) from error


def choose(store: Any, word: str, which: str, metric: str, experiment: str | None = None) -> Any:
    """What the store knows of a RUN's checkpoint.

    models:/NAME@ALIAS names a checkpoint itself; of any other RUN, `which` and `metric` choose one.
    """
    named = run_named(store, word, experiment, metric)
    deliver_if_idle(store, RunFolder(named.run_id))
    known = store.checkpoints(named.run_id, with_pruned=True)
    run = None if known else store.run(named.run_id)
    if run and not run.is_training and not run.is_evaluation:
        raise WorkspaceError(f"{word} is a comparison of runs, it has no checkpoint itself")
    if run and run.is_evaluation:
        source = run.tags.get("source_run_id")
        raise WorkspaceError(f"{word} is the evaluation of run {source}, it has no checkpoint itself")
    registered = [one for one in known if one.model_id == named.model_id]
    return require_kept(registered[0], known) if registered else select(known, which, metric, named.run_id)


def select(checkpoints: list[Any], which: str, metric: str, run_id: str) -> Any:
    """The stored checkpoint of a run that `which` (best, last, an epoch's number or a checkpoint's name) names.

    Of pruned ones, the best gives way to the best that is left, which is said; any other is a WorkspaceError.
    """
    if not checkpoints:
        raise WorkspaceError(f"Run {run_id} has no checkpoint in the store (yet). See: python status.py")
    if which == "last":
        return require_kept(checkpoints[-1], checkpoints)
    if which == "best":
        scored = [one for one in checkpoints if metric in one.metrics]
        if not scored:
            told = metrics_meant(metric, {name for one in checkpoints for name in one.metrics})
            raise WorkspaceError(f"No checkpoint of run {run_id} has {metric!r}; {told}")
        return best_kept(scored, metric)
    name = f"epoch-{int(which):03d}" if which.isdecimal() else which
    matching = [one for one in checkpoints if one.name == name]
    if not matching:
        known = ", ".join(one.name for one in checkpoints if not one.pruned)
        raise WorkspaceError(
            f"Run {run_id} has no checkpoint {which!r}: best, last or an epoch's number; it has {known}"
        )
    return require_kept(matching[-1], checkpoints)


def best_kept(scored: list[Any], metric: str) -> Any:
    """The best by the metric, the earliest of equals, of those whose files were not pruned."""
    best = max(scored, key=lambda one: one.metrics[metric])
    kept = [one for one in scored if not one.pruned]
    if not kept or not best.pruned:
        return require_kept(best, scored)
    chosen = max(kept, key=lambda one: one.metrics[metric])
    say(
        f"note: {best.name} has the best {metric} ({best.metrics[metric]:.4f}), but was pruned ({best.pruned}); "
        f"the best that is left is {chosen.name} ({chosen.metrics[metric]:.4f})"
    )
    return chosen


def require_kept(checkpoint: Any, checkpoints: list[Any]) -> Any:
    """The checkpoint, or WorkspaceError that says when and why its file was pruned, and which of the run are there."""
    if checkpoint.pruned:
        there = ", ".join(one.name for one in checkpoints if not one.pruned) or "none"
        raise WorkspaceError(
            f"The file of {checkpoint.name} of run {checkpoint.run_id} was pruned ({checkpoint.pruned}); "
            f"its metrics are in MLflow. The run still has: {there}"
        )
    return checkpoint


def fetch(store: Any, word: str, which: str, metric: str, to: Path, experiment: str | None = None) -> tuple[Path, Any]:
    """Download a RUN's checkpoint as file `to`, verified by its sha256; and what the store knows of it."""
    stored = choose(store, word, which, metric, experiment)
    return store.download(stored, to), stored


def require_one_source(config: Any) -> None:
    """WorkspaceError when --run, --checkpoint, --which and --metric do not name one checkpoint together."""
    if config.run is not None and config.checkpoint is not None:
        raise WorkspaceError("--run and --checkpoint both name a checkpoint: choose one")
    if config.run is None and (config.which, config.metric, config.experiment) != ("best", "val/AP", None):
        raise WorkspaceError("--which, --metric and --experiment choose among runs and checkpoints: give --run")
    if config.run is not None and (config.model or config.classes):
        raise WorkspaceError("--model and --classes tell of a --checkpoint FILE what it does not: a RUN knows both")


@contextlib.contextmanager
def checkpoint_file(store: Any, config: Any) -> Iterator[Path]:
    """The local file that --run, --checkpoint or neither names; a RUN's is fetched, verified and removed after use."""
    if config.run is None:
        yield usable(config.checkpoint or workspace.PUBLISHED)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        to = Path(folder) / "checkpoint.pth"
        yield fetch(store, config.run, config.which, config.metric, to, config.experiment)[0]


def usable(path: Path) -> Path:
    """`path`, or CheckpointError with its state and the command that mends it."""
    verdict = record.inspect(path)
    if verdict.state != "ready" and verdict.detail != record.OLD_FORMAT:
        mend = "Restore one: python restore.py RUN (python status.py names the runs)"
        code = 2 if verdict.state == "absent" else verdict.exit_code
        raise record.CheckpointError(f"{path} is {verdict.state}: {verdict.detail}. {mend}", code)
    return path


def load_detector(
    path: Path, *, model: str | None = None, classes: str | None = None, reference: bool = False
) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint with its weights, on the CPU, and the checkpoint's other content."""
    from models import checkpoint

    content = whole(checkpoint.load(path), path, model=model, classes=classes)
    return build_as_said(content, path, reference=reference), content


def whole(
    content: dict[str, Any], path: Path, *, model: str | None, classes: str | None, aloud: bool = True
) -> dict[str, Any]:
    """The checkpoint at `path`, read into `content`, as one of ours; the gaps of others' are --model and --classes."""
    if record.says_what_it_is(content):
        if model or classes:
            raise ConfigError(f"{path} names its own model and classes: leave out --model and --classes")
        return content
    from models import foreign

    names = foreign.read_classes(classes) if classes else None
    adopted = foreign.adopt(content, path, model=model, classes=names)
    if aloud:
        say(f"{path}: {foreign.receipt(adopted)}")
    return adopted


def build_as_said(content: dict[str, Any], path: Path, *, reference: bool = False) -> Any:
    """The model of the architecture that a checkpoint names, with its weights; CheckpointError where they differ."""
    from models import detector

    try:
        model = detector.build(content["architecture"], reference=reference)
        model.load_state_dict(content["model_state_dict"])
    except detector.ModelError as error:
        run = f" of run {content['run_id']}" if content.get("run_id") else ""
        raise record.CheckpointError(f"The model in {path}{run} cannot be built here: {error}", exit_code=4) from error
    except RuntimeError as error:  # torch lists every key that differs
        message = f"{path}: its tensors contradict its own architecture: {' '.join(str(error).split())[:300]}"
        raise record.CheckpointError(message, exit_code=4) from error
    return model


def require_same_classes(content: dict[str, Any], classes: tuple[str, ...]) -> None:
    """A checkpoint and a dataset fit when their class names are the same, in order."""
    known = list(content["classes"])
    if known != list(classes):
        order = "in another order: " if sorted(known) == sorted(classes) else ""
        known = named_classes(content)
        message = f"The checkpoint has {len(known)} classes {known}, the dataset {order}{len(classes)} {list(classes)}"
        unknown = [name for name in classes if name not in known]
        hint = f" It does not know {those_meant(unknown, known)}." if unknown else ""
        transfer = "To carry its weights over by name, train: python train.py --weights CHECKPOINT --data …"
        raise WorkspaceError(f"{message}.{hint} {transfer}", exit_code=4)


def records_to_score(content: dict[str, Any], data: "DetectionData", split: str) -> "Records":
    """The split's records with the labels of the checkpoint, whose classes are matched with the data's by name.

    Those that the data lack are said. WorkspaceError where a box is of a class that the checkpoint does not know.
    """
    import numpy as np

    from data.readers.layout import listed
    from data.survey import boxes_by_class

    known, records = named_classes(content), data.records(split)
    counts = boxes_by_class(records.labels, len(data.classes))
    unknown = [name for name, count in zip(data.classes, counts, strict=True) if count and name not in known]
    if unknown:
        raise WorkspaceError(
            f"{split!r} of {data.name} has boxes of classes that the checkpoint does not know: "
            f"{those_meant(unknown, known)}. It knows: {listed(known)}. Rename them in the data if they are the same, "
            "or score data without such boxes; a model that knows them is trained by: "
            "python train.py --weights CHECKPOINT --data …",
            exit_code=4,
        )
    lacking = [name for name in known if name not in data.classes]
    if lacking:
        say(
            f"note: {data.name} lacks {len(lacking)} of the checkpoint's {len(known)} classes, "
            f"left out of the scores: {listed(lacking)}"
        )
    numbers = {name: label for label, name in enumerate(content["classes"], start=1)}
    return records.with_labels(np.array([0, *(numbers.get(name, 0) for name in data.classes)]))


def named_classes(content: dict[str, Any]) -> list[str]:
    """A checkpoint's classes without the numbers that are none."""
    return [name for name in content["classes"] if name != record.NO_CLASS]


def those_meant(unknown: list[str], known: list[str]) -> str:
    """Class names with what each may be meant to be; the first ten."""
    from data.class_names import meant
    from data.readers.layout import listed

    return listed(meant(name, known) for name in unknown)
