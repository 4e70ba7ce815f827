"""The detections that MLflow keeps of a run on a split: what a comparison needs, without a GPU and without images.

A training keeps those of its best and its last checkpoint on val, an evaluation those that it scored, each with the
ground truth, as COCO has them.
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workspace
from commandline import ConfigError
from progress import say
from tracking.errors import DamagedArtifact
from tracking.records import FACTS, last_word
from workspace import WorkspaceError

if TYPE_CHECKING:
    import numpy as np

FOLDER = "detections"  # of a run's artifacts
MOST_LOOKED_AT = 1000  # runs, for the newest


def compressed(content: Any) -> bytes:
    """JSON, gzipped; the same content gives the same bytes."""
    return gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0)


def names(split: str, prefix: str = "") -> tuple[str, str]:
    """The file names of a split's detections and ground truth."""
    split = split.replace("/", "_")
    return f"{prefix}{split}.json.gz", f"ground_truth_{split}.json.gz"


def write(folder: Path, split: str, results: Sequence[Any], ground_truth: Any) -> list[Path]:
    """Both as files in `folder`, for an evaluation's artifacts."""
    paths = [folder / name for name in names(split)]
    for path, content in zip(paths, (results, ground_truth), strict=True):
        path.write_bytes(compressed(content))
    return paths


class NoDetections(WorkspaceError):
    """A run without stored detections on a split."""

    def __init__(self, run: Any, split: str, which: str, store: Any):
        named = f"Run {run.run_id} ({run.name}) has no detections on {split} in {store.uri}"
        super().__init__(f"{named}. Make them: {command(run.run_id, split, which)}")
        self.run, self.split, self.which, self.store = run, split, which, store


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What a checkpoint detected in a split's images; the files are read when they are asked for."""

    store: Any
    run: Any  # the StoredRun that was trained or, where that is not known, the evaluation
    holder: Any  # the StoredRun that keeps the detections: the training itself, or its evaluation
    split: str
    checkpoint: str | None  # its name, where it is known
    results_file: str
    facts: dict[str, Any]  # run.json of the training: configuration, code, data; empty where it is not known

    @property
    def is_chosen_on_it(self) -> bool:
        """Whether the split's scores made this checkpoint the run's best."""
        if self.split != "val":
            return False
        if self.holder is self.run:
            return self.results_file.startswith("best_")
        return self.checkpoint is not None and self.checkpoint == _checkpoint_name(self.store, self.run, "best")

    @property
    def which(self) -> str:
        """The checkpoint as evaluate.py's --which has it."""
        if self.holder is self.run:
            return "last" if self.results_file.startswith("last_") else "best"
        return self.checkpoint or "best"

    @property
    def computed(self) -> dict[str, str | None]:
        """`amp` and `reference` as the options have them; None where they were not recorded, or changed on resuming."""
        known = {name: self.holder.params.get(name) for name in ("amp", "reference")}
        if self.holder is not self.run:
            return known
        later = self.facts.get("config") or {}  # MLflow keeps a parameter's first value
        return {name: value if str(later.get(name, value)) == value else None for name, value in known.items()}

    @property
    def dataset(self) -> dict[str, Any]:
        """Name, digest and source (a folder, or `generated`) of the split, as far as the store knows."""
        found = [one for one in self.holder.datasets if one["name"].endswith(f"-{self.split}")]
        if not found:
            return {"name": None, "digest": None, "source": None}
        source = json.loads(found[0]["source"] or "{}").get("uri")
        name = found[0]["name"].removesuffix(f"-{self.split}")
        return {"name": name, "digest": found[0]["digest"], "source": source or None}

    @property
    def places(self) -> list[str]:
        """Where the images may lie: `generated`, or a folder that their names are relative to.

        MLflow keeps one source of a dataset, that of the run that had it first; a training's own --data may be another.
        """
        own = workspace.data_of(self.facts) if self.holder is self.run else None
        return list(dict.fromkeys(filter(None, (self.dataset["source"], own))))

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dictionary."""
        return self._read(names(self.split)[1])

    def results(self) -> list[dict[str, Any]]:
        """COCO results."""
        return self._read(self.results_file)

    def pixels(self, image: Mapping[str, Any]) -> "np.ndarray | None":
        """uint8 (H, W, 3) of an image of the ground truth, read from where the run had its data, or drawn.

        None where it is not here, or is another one: of that name, but not of that size.
        """
        for source in self.places:
            found = _drawn(self.split, image) if source == "generated" else _read(Path(source), image["file_name"])
            if found is not None and found.shape[:2] == (image["height"], image["width"]):
                return found
        return None

    def _read(self, name: str) -> Any:
        damage = f"{FOLDER}/{name} of run {self.holder.run_id} in {self.store.uri} is"
        try:
            content = self.store.read_json(self.holder.run_id, f"{FOLDER}/{name}")
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise DamagedArtifact(
                f"{damage} damaged ({error}). Make it anew: {command(self.run.run_id, self.split)}"
            ) from error
        if content is None:
            raise DamagedArtifact(f"{damage} gone. Make it anew: {command(self.run.run_id, self.split)}")
        return content


def _drawn(split: str, image: Mapping[str, Any]) -> "np.ndarray | None":
    from data.dataset import load_image
    from data.open import open_data

    records = open_data("generated").records(split)
    return next((load_image(record) for record in records if record.name == image["file_name"]), None)


def _read(folder: Path, name: str) -> "np.ndarray | None":
    from data.images import read_image
    from data.records import DataError

    # What a store names may lead nowhere but into that folder.
    if ".." in Path(name).parts or Path(name).is_absolute() or not (folder / name).is_file():
        return None
    try:
        return read_image(folder / name)
    except DataError as error:
        say(f"note: {error}")
        return None


def command(run_id: str, split: str, which: str = "best") -> str:
    """What makes the detections of a run that has none."""
    return f"python evaluate.py --run {run_id} --split {split}" + (f" --which {which}" if which != "best" else "")


def commands(run_ids: Sequence[str], split: str, which: str = "best") -> str:
    """The same for several, as one line."""
    if len(run_ids) == 1:
        return command(run_ids[0], split, which)
    return f"for run in {' '.join(run_ids)}; do {command('$run', split, which)}; done"


def commands_of(runs: Sequence[Detected], split: str) -> str:
    """What scores the checkpoints that are compared on a split, as one line."""
    by_which: dict[str, dict[str, None]] = {}
    for run in runs:
        by_which.setdefault(run.which, {})[run.run.run_id] = None
    return "; ".join(commands(list(run_ids), split, which) for which, run_ids in by_which.items())


def evaluation_of(run: Detected, split: str) -> Any:
    """The newest evaluation (a StoredRun) of this checkpoint on a split of the run's own data that keeps detections.

    It is what a comparison on that split takes; None where there is none.
    """
    for one in run.store.evaluations(run.run.run_id):
        is_of_it = (one.tags.get("split"), one.tags.get("checkpoint")) == (split, run.checkpoint)
        if is_of_it and _is_on_own_data(one, run.facts, split) and _keeps(run.store, one):
            return one
    return None


def newest(store: Any, split: str | None, which: str = "best", experiment: str | None = None) -> Iterator[Detected]:
    """Of every training that has some (of an experiment, where one is named), newest first."""
    for run in store.runs_of(experiment) if experiment else store.newest_runs(MOST_LOOKED_AT):
        if run.is_training:
            with contextlib.suppress(NoDetections):
                yield of_run(store, run.run_id, split, which)


def of_run(store: Any, run_id: str, split: str | None, which: str) -> Detected:
    """The stored detections of a training's checkpoint on a split (val), or those of an evaluation.

    On val they are the training's own, on other splits those of the newest evaluation, of that checkpoint where there
    is one. WorkspaceError with the command that makes them where there are none.
    """
    run = store.run(run_id)
    if run.is_evaluation:
        return _of_evaluation(store, run, split)
    if not run.is_training:
        raise WorkspaceError(f"{run_id} is a comparison itself: name the runs that it compares")
    split = split or "val"
    if split == "val":
        kept, (results, truth) = store.artifact_names(run_id, FOLDER), names(split, f"{which}_")
        if {results, truth} <= kept:
            return _detected(store, run, run, split, _checkpoint_name(store, run, which), results)
    return _newest_evaluation(store, run, split, which)


def _detected(store: Any, run: Any, holder: Any, split: str, checkpoint: str | None, results: str) -> Detected:
    facts = store.read_json(run.run_id, FACTS) if run.is_training else None
    return Detected(
        store=store,
        run=run,
        holder=holder,
        split=split,
        checkpoint=checkpoint,
        results_file=results,
        facts=facts or {},
    )


def _checkpoint_name(store: Any, run: Any, which: str) -> str | None:
    if which == "best":
        return (last_word(run.tags).get("best") or {}).get("name")
    known = store.checkpoints(run.run_id, with_pruned=True)
    return known[-1].name if known else None


def _of_evaluation(store: Any, evaluation: Any, split: str | None) -> Detected:
    source = evaluation.tags.get("source_run_id")
    source = source and store.known_as(source)
    run = store.run(source) if source else evaluation
    if not _keeps(store, evaluation):
        mend = "python evaluate.py"
        if source:  # without a checkpoint it is of several
            which = evaluation.tags.get("checkpoint", "NAME")
            mend = command(run.run_id, evaluation.tags.get("split", "test"), which)
        raise WorkspaceError(
            f"Evaluation {evaluation.run_id} ({evaluation.name}) keeps no detections. Score a checkpoint alone: {mend}"
        )
    its_split = evaluation.tags["split"]
    if split not in (None, its_split):
        other = command(run.run_id, split, evaluation.tags.get("checkpoint", "best"))
        mend = f". The same on {split}: {other}" if source else ""
        raise ConfigError(f"{evaluation.run_id} is an evaluation on {its_split}, not on --split {split}{mend}")
    return _detected(store, run, evaluation, its_split, evaluation.tags.get("checkpoint"), names(its_split)[0])


def _keeps(store: Any, evaluation: Any) -> bool:
    split = evaluation.tags.get("split")
    return split is not None and set(names(split)) <= store.artifact_names(evaluation.run_id, FOLDER)


def _is_on_own_data(evaluation: Any, facts: Mapping[str, Any], split: str) -> bool:
    own = workspace.split_fingerprints(facts).get(split)
    return any(dataset["digest"] == own for dataset in evaluation.datasets)


def _newest_evaluation(store: Any, run: Any, split: str, which: str) -> Detected:
    """Of those on the run's own data, where there are any; else on any data."""
    on_it = [one for one in store.evaluations(run.run_id) if one.tags.get("split") == split and _keeps(store, one)]
    wanted = _checkpoint_name(store, run, which)
    if not on_it:
        raise NoDetections(run, split, which, store)
    facts = store.read_json(run.run_id, FACTS) or {}

    def fits(one: Any) -> tuple[bool, bool, int]:
        return _is_on_own_data(one, facts, split), one.tags.get("checkpoint") == wanted, one.start_time

    newest = max(on_it, key=fits)
    checkpoint = newest.tags.get("checkpoint")
    if checkpoint != wanted:
        say(
            f"note: of run {run.run_id} ({run.name}) not its {which} checkpoint ({wanted}) but {checkpoint} was "
            f"scored on {split}. The {which}: {command(run.run_id, split, which)}"
        )
    return _detected(store, run, newest, split, checkpoint, names(split)[0])
