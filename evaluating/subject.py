"""What is scored, on what, and how: the parts of evaluate.py that one checkpoint and all of a run's have in common."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commandline
import fetching
import notes
import workspace
from config import TrainConfig
from data_options import DataOptions
from evaluating import scoring
from models import record
from progress import say

if TYPE_CHECKING:
    from data.detection_data import DetectionData
    from data.records import Record


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A checkpoint that is scored."""

    model: Any
    checkpoint: dict[str, Any]  # its content, but for the weights
    sha256: str
    device: Any
    precision: str  # as --amp has it: that of training's validation, unless another is asked for
    reference: bool  # by torchvision's own modules

    @property
    def settings(self) -> dict[str, Any]:
        """Those of training's validation, as far as they are known."""
        return self.checkpoint.get("evaluation") or {}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What it is scored on."""

    where: str  # --data, or the run's own
    split: str
    data: "DetectionData"  # its classes in the checkpoint's order
    records: Sequence["Record"]


def read_subject(path: Path, config: Any) -> Subject:
    """The checkpoint of a local file, and how it is computed."""
    import engine

    model, checkpoint = fetching.load_detector(
        path, model=config.model, classes=config.classes, reference=config.reference
    )
    entry = record.inspect(path).entry
    # The evaluation of a weights-only file is one of the checkpoint that it was taken from.
    sha256 = entry.get("weights_of") or entry.get("sha256") or record.file_sha256(path)
    device = engine.choose_device(config.device)
    return Subject(
        model=model,
        checkpoint=checkpoint,
        sha256=sha256,
        device=device,
        precision=config.amp or scoring.precision_as_in(checkpoint.get("evaluation") or {}, device.type),
        reference=config.reference,
    )


def scene_of(store: Any, checkpoint: dict[str, Any], config: Any) -> Scene:
    """The data to score on; what they are, and what is to be said of them, is said."""
    from data.open import open_data
    from data.readers.layout import split_of_folder

    where = config.data or config.folder_of_files or workspace.data_of(checkpoint)
    if where is None:
        raise commandline.ConfigError("This checkpoint does not say what it was trained on: give --data PATH")
    split = split_of_folder(config.split) or config.split  # `valid` is val
    is_own = where == workspace.data_of(checkpoint)
    data = open_data(where, data_options(config, checkpoint, is_own=is_own), scored=split, whole=not is_own)
    data = data.with_classes_in_order(checkpoint["classes"])
    say("\n".join(data.describe(scored=split)))
    records = fetching.records_to_score(checkpoint, data, split)
    for line in notes_on_data(store, checkpoint, data, split, is_own=is_own):
        say(line)
    return Scene(where=where, split=split, data=data, records=records)


def scored_as_in_training(subject: Subject, scene: Scene, config: Any, *, aloud: bool = True) -> scoring.Score:
    """With the batches, threads and precision of training's validation, as far as the options do not say otherwise."""
    import engine

    amp = engine.amp_dtype(subject.precision, subject.device)
    if amp is not None and aloud:
        say(f"scoring in {subject.precision}" + ("" if config.amp else ", as in training; in float32: --amp off"))
    with engine.cpu_threads(scoring.threads_as_in(subject.settings)):
        return scoring.score(
            subject.model.to(subject.device),
            scene.records,
            subject.checkpoint["classes"],
            batch_size=config.batch_size or subject.settings.get("batch_size") or 4,
            workers=scoring.loader_workers(config.workers, scene.where),
            device=subject.device,
            amp=amp,
            scorer=config.scorer,
            title=scene.split,
        )


def about(scene: Scene) -> dict[str, Any]:
    """What was scored on, as reports have it."""
    data = scene.data
    return {
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "split": scene.split,
        "images": len(scene.records),
    }


def data_options(config: Any, checkpoint: dict[str, Any], *, is_own: bool) -> DataOptions:
    """How the data are read: as in training where they are the run's own and nothing else is asked for."""
    asked = DataOptions.of(vars(config))
    return DataOptions.of(checkpoint["config"]) if is_own and asked == DataOptions() else asked.with_absolute_paths()


def notes_on_data(
    store: Any, checkpoint: dict[str, Any], data: "DetectionData", split: str, *, is_own: bool
) -> list[str]:
    """What makes the score another than one on images that the checkpoint has not seen, or than training's own."""
    import changes
    from data.fingerprint import contents, images_in, images_of

    before = workspace.split_fingerprints(checkpoint)
    now = data.split_fingerprint(split)
    if now == before.get("train"):
        return [f"note: {split!r} is what the checkpoint was trained on: the score tells nothing of other images"]
    if now in before.values():
        return []
    said = []
    if is_own and split in before:
        said.append(f"note: the data are not as they were in training: {changes.of_data(checkpoint, data, store)}")
    run_id, fingerprint = checkpoint.get("run_id"), (checkpoint.get("dataset") or {}).get("fingerprint")
    first, known = changes.contents_of(store, run_id), changes.contents_of(store, run_id, fingerprint)
    images = contents({split: data.records(split)}, data.classes)[split]
    if not said and images and set(images_of(images).values()) == images_in(known, split):
        said.append(f"note: these are the images of the {split!r} that training knew, otherwise annotated")
    seen = changes.trained_on(images, first, known)
    if seen.names:
        shown = ", ".join(seen.names[:3]) + (", …" if len(seen.names) > 3 else "")
        if seen.converted:
            shown += f" ({len(seen.converted)} with other bytes, as converted images: the same path and boxes)"
        said.append(f"note: {seen.count} of these {len(images)} images were trained on, which flatters it: {shown}")
        trained_with = DataOptions.of(checkpoint["config"])
        given = {"--split-by": trained_with.split_by, "--splits": trained_with.splits}
        own = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in given.items() if value)
        if own and not is_own:
            said.append(f"note: training's own splits were made by {own}")
        else:
            said.append(f"note: {changes.keeping_split(store, run_id)}")
    return said


def links(store: Any, own: str, pictures: Sequence[Path], trained: str | None) -> str:
    """Of an evaluation's note: to the first of its pictures, and to the run that was trained."""
    pages = [("Figures", store.ui_urls(own, figure=path.name)["figures"]) for path in pictures[:1]]
    return notes.links([*pages, *([("the training", store.ui_urls(trained)["run"])] if trained else [])])


def metric_prefix(scene: Scene) -> str:
    """Of an evaluation's metrics in MLflow."""
    return f"eval/{scene.data.name}/{scene.split}/"


def in_mlflow(subject: Subject, scene: Scene) -> dict[str, Any]:
    """Where an evaluation stands there, on what it is, and how it was computed, as a training's options say it."""
    return {
        "experiment": subject.checkpoint.get("experiment") or TrainConfig.experiment,
        "dataset": (f"{scene.data.name}-{scene.split}", scene.data.split_fingerprint(scene.split)),
        "dataset_source": str(scene.data.root or "generated"),
        "params": {"amp": subject.precision, "reference": subject.reference},
        "tags": {"split": scene.split},
    }
