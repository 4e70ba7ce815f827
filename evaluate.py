"""Score a checkpoint on a dataset's split with the COCO metrics."""

import json
import os
import shlex
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import commandline
import fetching
import stored_detections
import workspace
from config import TrainConfig
from data_options import DataOptions
from models import record
from progress import Progress, say
from tracking.errors import StoreError

if TYPE_CHECKING:
    from data.records import DetectionData


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataOptions):
    """Score a checkpoint: by default models/faster_rcnn on the validation split it was trained with."""

    run: commandline.Text = None
    """A RUN (ID, unique prefix, name, models:/NAME@ALIAS, best): its checkpoint instead of models/faster_rcnn's."""
    checkpoint: commandline.File = None
    """A checkpoint file. [models/faster_rcnn/checkpoint.pth]"""
    model: commandline.Text = None
    """Of a --checkpoint from elsewhere whose tensors do not tell: which model it is, as for train.py."""
    classes: commandline.Classes = None
    """Of a --checkpoint that does not tell: `coco`, or a file with a class name a line, in label order."""
    which: str = "best"
    """Of a RUN: best, last or an epoch's number."""
    metric: str = "val/AP"
    """What makes a checkpoint the best; the higher the better."""
    experiment: commandline.Text = None
    """Look for the RUN in this experiment only. [all; for `best`: faster-rcnn]"""
    data: commandline.Text = None
    """Dataset folder or file, or `generated`. [the run's own]"""
    split: str = "val"
    """Split to score; other usual words are understood (valid: val)."""
    batch_size: commandline.Int = None
    """Images at once. [as in training: padding makes scores depend on it in the last decimals]"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: commandline.Int = None
    """Processes that load images. [cores, at most 4; 0 for generated data]"""
    scorer: Literal["faster-coco-eval", "pycocotools"] = "faster-coco-eval"
    """What computes the COCO metrics: the same numbers, by pycocotools itself in seven times the time."""
    replicates: int = 1000
    """Draws of images that the 95% intervals are computed from; 0: no intervals."""
    seed: int = 0
    """Of these draws: the same ones for every checkpoint on the same images."""
    json: bool = False
    """Print JSON instead of a table."""
    output: commandline.File = None
    """Folder for detections.json and ground_truth.json (COCO), metrics.json and figures/."""
    worst: int = 6
    """Images with the most errors to name and draw: figures/worst_images.jpg; 0: none."""
    no_log: bool = False
    """Do not write an evaluation run to MLflow."""

    def __post_init__(self):
        fetching.require_one_source(self)
        if self.workers is not None and self.workers < 0:
            raise commandline.ConfigError(f"--workers must not be negative, not {self.workers}")
        if self.batch_size is not None and self.batch_size < 1:
            raise commandline.ConfigError(f"--batch-size must be above 0, not {self.batch_size}")
        for name, value in {"--replicates": self.replicates, "--seed": self.seed, "--worst": self.worst}.items():
            if value < 0:
                raise commandline.ConfigError(f"{name} must not be negative, not {value}")


@dataclass(frozen=True, kw_only=True)
class Score:
    """COCO metrics in 0..1 (overall and by class), with the detections and ground truth they come from."""

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    results: list[dict[str, Any]]
    ground_truth: dict[str, Any]
    latency: dict[str, float]  # forward_ms and whole_ms of an image, {} where none was


def score(
    model: Any,
    records: Sequence[Any],
    classes: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    device: Any,
    amp: Any = None,
    scorer: str = EvaluateConfig.scorer,
    title: str = "evaluate",
) -> Score:
    """Detect in every image and compare with the ground truth; training's validation is this function too."""
    import engine
    import metrics
    from data.dataset import DetectionDataset, eval_loader

    loader = eval_loader(DetectionDataset(records, drop_crowd=False), batch_size=batch_size, workers=workers)
    detections, forward, ends = [], [], [time.perf_counter()]
    with Progress(title, len(records), unit="images") as progress:
        for found in engine.predict(model, loader, device=device, amp=amp, seconds=forward):
            detections.append(found)
            ends.append(time.perf_counter())
            progress.step()
    ground_truth = metrics.coco_ground_truth(records, classes)
    results = metrics.coco_results(detections)
    return Score(
        results=results,
        ground_truth=ground_truth,
        latency=_latency(forward, ends, batch_size),
        **metrics.coco_metrics(ground_truth, results, scorer=scorer),
    )


def _latency(forward: Sequence[float], ends: Sequence[float], batch_size: int) -> dict[str, float]:
    """Of an image: the median time in the model, and the mean of all with loading; ends[0] is the start.

    The first batch, in which workers start and memory is first used, counts only where it is the only one.
    """
    if not forward:
        return {}
    first = batch_size if len(forward) > batch_size else 0
    whole = (ends[-1] - ends[first]) / (len(forward) - first)
    return {"forward_ms": 1000 * statistics.median(forward[first:]), "whole_ms": 1000 * whole}


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Score the checkpoint and return what `--json` prints."""
    import engine
    import error_report
    import evaluation_report
    from data.open import open_data
    from data.readers.layout import split_of_folder

    if config.output is not None:
        workspace.require_writable(config.output)
    store = store_for(config)
    with fetching.checkpoint_file(store, config) as path:
        model, checkpoint = fetching.load_detector(path, model=config.model, classes=config.classes)
        # The evaluation of a weights-only file is one of the checkpoint that it was taken from.
        entry = record.inspect(path).entry
        sha256 = entry.get("weights_of") or entry.get("sha256") or record.file_sha256(path)
    say(f"scoring {workspace.introduce(checkpoint)}")
    where = config.data or config.folder_of_files or workspace.data_of(checkpoint)
    if where is None:
        raise commandline.ConfigError("This checkpoint does not say what it was trained on: give --data PATH")
    split = split_of_folder(config.split) or config.split  # `valid` is val
    data = open_data(where, data_options(config, checkpoint, where), scored=split)
    data = data.with_classes_in_order(checkpoint["classes"])
    say("\n".join(data.describe()))
    records = fetching.records_to_score(checkpoint, data, split)
    for line in notes_on_data(store, checkpoint, data, split, is_own=where == workspace.data_of(checkpoint)):
        say(line)
    settings = checkpoint.get("evaluation") or {}
    device = engine.choose_device(config.device)
    amp = engine.amp_dtype(precision_as_in(settings, device.type), device)
    batch_size = config.batch_size or settings.get("batch_size") or 4
    with engine.cpu_threads(threads_as_in(settings)):
        scored = score(
            engine.place(model, device, amp),
            records,
            checkpoint["classes"],
            batch_size=batch_size,
            workers=loader_workers(config.workers, where),
            device=device,
            amp=amp,
            scorer=config.scorer,
            title=split,
        )
    coco = scored.ground_truth, scored.results
    analysis = evaluation_report.analyse(*coco, replicates=config.replicates, seed=config.seed, worst=config.worst)
    report = {
        "run_id": checkpoint.get("run_id"),
        "model_id": None,
        "epoch": checkpoint.get("epoch"),
        "dataset": data.name,
        "fingerprint": data.fingerprint,
        "split": split,
        "images": len(records),
        "metrics": scored.metrics,
        "per_class": scored.per_class,
        "classes_not_scored": [name for name in fetching.named_classes(checkpoint) if name not in scored.per_class],
        **analysis.in_report(),
        "latency": scored.latency,
        "batch_size": batch_size,
        "device": str(device),
        "evaluation_run_id": None,
    }
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        place, pictures = (config.output or Path(folder)) / "figures", []
        if config.output is not None or not config.no_log:
            pictures += evaluation_report.draw(analysis, report, place)
            shown_score = analysis.confusion_threshold
            told = report["errors"], analysis.errors, *coco
            pictures += error_report.draw(*told, records, place, shown_score=shown_score)
        if config.output is not None:
            files = {"detections": scored.results, "ground_truth": scored.ground_truth, "metrics": report}
            for name, content in files.items():
                record.write_json(config.output / f"{name}.json", content)
        if not config.no_log:
            try:
                report |= log(store, report, checkpoint, sha256, data, pictures, scored)
            except StoreError as error:  # the score is there all the same
                say(f"error: the evaluation is not in MLflow: {error}")
    return report


def store_for(config: EvaluateConfig) -> Any:
    """The store to fetch from or to log to; None when neither is asked for."""
    if config.run is None and config.no_log:
        return None
    try:
        return fetching.store_of(config.run) if config.run else fetching.open_store()
    except StoreError as error:
        hint = "" if config.run else "\nOr score without logging: --no-log"
        raise StoreError(f"{error}{hint}") from error


def threads_as_in(training: dict[str, Any]) -> int:
    """Training's number of CPU threads, where this machine has as many cores."""
    import torch

    threads, cores = training.get("threads") or torch.get_num_threads(), os.cpu_count() or 1
    if threads <= cores:
        return threads
    say(f"note: training used {threads} CPU threads, this machine has {cores} cores: the last decimals may differ")
    return torch.get_num_threads()


def precision_as_in(training: dict[str, Any], device: str) -> str:
    """Training's precision, where this device has it."""
    name = training.get("amp") or "off"
    if name == "fp16" and device == "cpu":
        say("note: validated in fp16, which this device does not have: scored in fp32")
        return "off"
    return name


def loader_workers(asked: int | None, where: str) -> int:
    """Generated images cost less than processes that would draw them."""
    if asked is not None:
        return asked
    return 0 if where == "generated" else min(4, os.cpu_count() or 1)


def data_options(config: EvaluateConfig, checkpoint: dict[str, Any], where: str) -> DataOptions:
    """How the data are read: as in training where they are the run's own and nothing else is asked for."""
    asked = DataOptions.of(vars(config))
    own = where == workspace.data_of(checkpoint)
    return DataOptions.of(checkpoint["config"]) if own and asked == DataOptions() else asked.with_absolute_paths()


def notes_on_data(
    store: Any, checkpoint: dict[str, Any], data: "DetectionData", split: str, *, is_own: bool
) -> list[str]:
    """What makes the score another than one on images that the checkpoint has not seen, or than training's own."""
    import changes
    from data.fingerprint import contents, images_of

    before = (checkpoint.get("dataset") or {}).get("split_fingerprints") or {}
    now = data.split_fingerprint(split)
    if now == before.get("train"):
        return [f"note: {split!r} is what the checkpoint was trained on: the score tells nothing of other images"]
    if now in before.values():
        return []
    notes = []
    if is_own and split in before:
        notes.append(f"note: the data are not as they were in training: {changes.of_data(checkpoint, data, store)}")
    run_id, fingerprint = checkpoint.get("run_id"), (checkpoint.get("dataset") or {}).get("fingerprint")
    first, known = changes.contents_of(store, run_id), changes.contents_of(store, run_id, fingerprint)
    trained_on = {image for each in (first, known) for image in images_of(each.get("train", {})).values()}
    images = images_of(contents({split: data.records(split)}, data.classes)[split])
    if not notes and images and set(images.values()) == set(images_of(known.get(split, {})).values()):
        notes.append(f"note: these are the images of the {split!r} that training knew, otherwise annotated")
    seen = [name for name, digest in images.items() if digest in trained_on]
    if seen:
        shown = ", ".join(seen[:3]) + (", …" if len(seen) > 3 else "")
        notes.append(f"note: {len(seen)} of these {len(images)} images were trained on, which flatters it: {shown}")
        trained_with = DataOptions.of(checkpoint["config"])
        given = {"--split-by": trained_with.split_by, "--splits": trained_with.splits}
        own = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in given.items() if value)
        if own and not is_own:
            notes.append(f"note: training's own splits were made by {own}")
    return notes


def log(
    store: Any,
    report: dict[str, Any],
    checkpoint: dict[str, Any],
    sha256: str,
    data: Any,
    pictures: Sequence[Path],
    scored: Score,
) -> dict[str, Any]:
    """Write the evaluation's own MLflow run, linked to the checkpoint's LoggedModel where the store knows it."""
    import evaluation_report

    run_id = checkpoint.get("run_id")
    known = store.checkpoints(run_id, with_pruned=True) if run_id else []
    stored = next((one for one in known if one.sha256 == sha256), None)
    if stored is None:
        say(f"note: {store.uri} does not have this checkpoint: the evaluation is linked to none")
    prefix = f"eval/{data.name}/{report['split']}"
    with tempfile.TemporaryDirectory(prefix="detections-") as folder:
        kept = stored_detections.write(Path(folder), report["split"], scored.results, scored.ground_truth)
        evaluation_run = store.log_evaluation(
            {f"{prefix}/{name}": value for name, value in evaluation_report.values(report).items()},
            experiment=checkpoint.get("experiment") or TrainConfig.experiment,
            run_name=f"{checkpoint.get('run_name') or 'a checkpoint'} on {data.name} {report['split']}",
            source_run_id=stored.run_id if stored else run_id,
            checkpoint=stored,
            step=checkpoint.get("step") or 0,
            dataset=(f"{data.name}-{report['split']}", data.split_fingerprint(report["split"])),
            dataset_source=str(data.root or "generated"),
            tags={"split": report["split"]},
            files=dict.fromkeys(pictures, "figures") | dict.fromkeys(kept, stored_detections.FOLDER),
            tables=evaluation_report.tables(report),
            description=evaluation_report.note(report, workspace.introduce(checkpoint)),
        )
    return {"evaluation_run_id": evaluation_run, "model_id": stored.model_id if stored else None}


def script(config: EvaluateConfig) -> int:
    import evaluation_report

    report = main(config)
    print(json.dumps(report) if config.json else evaluation_report.text(report))
    return 0 if config.no_log or report["evaluation_run_id"] else StoreError.exit_code


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(EvaluateConfig))
