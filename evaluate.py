"""Score a checkpoint on a dataset's split with the COCO metrics."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import commandline
import fetching
import stored_detections
import workspace
from data_options import DataOptions
from evaluating import scoring
from evaluating.subject import (
    Scene,
    Subject,
    about,
    in_mlflow,
    links,
    metric_prefix,
    read_subject,
    scene_of,
    scored_as_in_training,
)
from machine import require_precision
from models import record
from progress import say, say_page
from tracking.errors import StoreError
from tracking.records import FACTS

NOT_AS_EXPECTED = 1  # exit code
TOLERANCE = 0.001  # of scores in 0..1
PRECISIONS = {"off": "float32", "bf16": "bf16", "fp16": "fp16"}  # by --amp


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
    """Of a RUN: best, last or an epoch's number; `all`: each checkpoint that it has, as AP by epoch."""
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
    amp: commandline.Amp = None
    """Mixed precision: bf16 also on CPUs that have it (AVX-512 BF16, AMX), fp16 on GPUs. [as in training]"""
    reference: bool = False
    """Compute as torchvision's own modules do: none of the faster paths to the same results."""
    workers: commandline.Int = None
    """Processes that load images. [cores, at most 4; 0 for generated data]"""
    scorer: Literal["numpy", "pycocotools"] = scoring.SCORER
    """What computes the COCO metrics: the same numbers, by pycocotools itself in thirty times the time."""
    replicates: int = 1000
    """Draws of images that the 95% intervals are computed from; 0: no intervals."""
    seed: int = 0
    """Of these draws: the same ones for every checkpoint on the same images."""
    json: bool = False
    """Print JSON instead of a table."""
    output: commandline.File = None
    """Folder for detections.json and ground_truth.json (COCO), metrics.json and figures/."""
    worst: int = 6
    """Images with most errors at the best threshold to name and draw: figures/worst_images.jpg, _2.jpg …; 0: none."""
    expect_run: commandline.Text = None
    """Fail (exit code 1) where this RUN's checkpoint has other scores in MLflow: is what was restored the run's?"""
    tolerance: commandline.Float = None
    """With --expect-run: by how much each score may differ, as another processor's last digits are others. [0.001]"""
    no_log: bool = False
    """Do not write an evaluation run to MLflow."""

    def __post_init__(self):
        fetching.require_one_source(self)
        require_precision(self.amp, self.device)
        if self.workers is not None and self.workers < 0:
            raise commandline.ConfigError(f"--workers must not be negative, not {self.workers}")
        if self.batch_size is not None and self.batch_size < 1:
            raise commandline.ConfigError(f"--batch-size must be above 0, not {self.batch_size}")
        if 0 < self.replicates < scoring.FEWEST_REPLICATES:
            raise commandline.ConfigError(
                f"--replicates {self.replicates}: an interval takes {scoring.FEWEST_REPLICATES} draws at least; 0: none"
            )
        for name, value in {
            "--replicates": self.replicates,
            "--seed": self.seed,
            "--worst": self.worst,
            "--tolerance": self.tolerance,
        }.items():
            if value is not None and value < 0:
                raise commandline.ConfigError(f"{name} must not be negative, not {value}")
        if self.tolerance is not None and self.expect_run is None:
            raise commandline.ConfigError("--tolerance is of the comparison with --expect-run RUN: give that too")
        if self.which == "all" and self.expect_run is not None:
            raise commandline.ConfigError("--expect-run is about one checkpoint: leave out --which all")


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Score the checkpoint, or with --which all each of the run, and return what `--json` prints."""
    if config.output is not None:
        workspace.require_writable(config.output)
    store = store_for(config)
    import engine

    # What this machine does not have is refused before anything is fetched and read.
    engine.amp_dtype(config.amp or "off", engine.choose_device(config.device))
    if config.which == "all":
        from evaluating import by_epoch

        return by_epoch.main(store, config)
    with fetching.checkpoint_file(store, config) as path:
        subject = read_subject(path, config)
    say(f"scoring {workspace.introduce(subject.checkpoint)}")
    scene = scene_of(store, subject.checkpoint, config)
    # Read before these scores are logged: they would be found to be as expected.
    expected = None if config.expect_run is None else expected_of_run(store, subject, scene, config)
    scored = scored_as_in_training(subject, scene, config)
    report = reported(store, subject, scene, scored, config)
    if expected is not None:
        report |= compared(report["metrics"], expected, subject, config)
    return report


def reported(
    store: Any, subject: Subject, scene: Scene, scored: scoring.Score, config: EvaluateConfig
) -> dict[str, Any]:
    """The report on a score, written to --output and to MLflow."""
    from data.dataset import load_image
    from evaluating import error_report
    from evaluating import report as evaluation_report

    coco = scored.ground_truth, scored.results
    analysis = evaluation_report.analyse(*coco, replicates=config.replicates, seed=config.seed, worst=config.worst)
    classes = fetching.named_classes(subject.checkpoint)
    report = {
        "run_id": subject.checkpoint.get("run_id"),
        "model_id": None,
        "epoch": workspace.finished_epoch(subject.checkpoint.get("epoch")),
        "step": subject.checkpoint.get("step"),
        **about(scene),
        "metrics": scored.metrics,
        "per_class": scored.per_class,
        "classes_not_scored": [name for name in classes if name not in scored.per_class],
        **analysis.in_report(),
        "latency": scored.latency,
        "batch_size": scored.batch_size,
        "device": scored.device,
        "amp": subject.precision,
        "reference": subject.reference,
        "evaluation_run_id": None,
    }
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        place, pictures = (config.output or Path(folder)) / "figures", []
        if config.output is not None or not config.no_log:
            pictures += evaluation_report.draw(analysis, report, place)
            told = report["errors"], analysis.errors, *coco
            by_id = {record.image_id: record for record in scene.records}
            pictures += error_report.draw(*told, lambda image: load_image(by_id[image["id"]]), place)
        if not config.no_log:
            try:
                report |= log(store, report, subject, scene, pictures, scored)
            except StoreError as error:  # the score is there all the same
                say(f"error: the evaluation is not in MLflow: {error}")
        if config.output is not None:
            files = {"detections": scored.results, "ground_truth": scored.ground_truth, "metrics": report}
            for name, content in files.items():
                record.write_json(config.output / f"{name}.json", content)
    return report


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The scores that a run has of a checkpoint."""

    name: str  # the checkpoint's
    run_id: str
    metrics: dict[str, float]
    is_same: bool  # whether it is the one that is scored
    of_training: bool  # its validation's, not an evaluation's


def expected_of_run(store: Any, subject: Subject, scene: Scene, config: EvaluateConfig) -> Expected:
    """What the run of --expect-run has of this checkpoint, or of its best one where this is none of its."""
    from metrics import NAMES

    run_id = fetching.run_named(store, config.expect_run, config.experiment, config.metric).run_id
    known = store.checkpoints(run_id, metric=config.metric, with_pruned=True)
    same = [one for one in known if one.sha256 == subject.sha256]
    stored = same[0] if same else fetching.select(known, "best", config.metric, run_id)
    # Training's own scores come first: they are what is to be repeated.
    prefixes = (metric_prefix(scene), *(("val/",) if is_validation(scene, store, run_id) else ()))
    metrics = {
        name: stored.metrics[prefix + name] for prefix in prefixes for name in NAMES if prefix + name in stored.metrics
    }
    if not metrics:
        data = f" --data {shlex.quote(str(config.data))}" if config.data else ""
        raise workspace.WorkspaceError(
            f"Run {run_id} has no scores of {stored.name} on {scene.data.name} {scene.split} to expect. "
            f"Make them: python evaluate.py --run {run_id} --split {scene.split}{data}"
        )
    of_training = prefixes[-1] == "val/" and any(f"val/{name}" in stored.metrics for name in NAMES)
    return Expected(name=stored.name, run_id=run_id, metrics=metrics, is_same=bool(same), of_training=of_training)


def is_validation(scene: Scene, store: Any, run_id: str) -> bool:
    """Whether it is what the run was validated on, by its path or its images and boxes, as far as the store knows."""
    if scene.split != "val":
        return False
    facts = store.read_json(run_id, FACTS)
    if facts is None or scene.where == workspace.data_of(facts):
        return True
    return scene.data.split_fingerprint("val") == workspace.split_fingerprints(facts).get("val")


def compared(metrics: dict[str, float], expected: Expected, subject: Subject, config: EvaluateConfig) -> dict[str, Any]:
    """`expected` and `as_expected` of the report."""
    tolerance = TOLERANCE if config.tolerance is None else config.tolerance
    apart = {name: (value, metrics.get(name)) for name, value in expected.metrics.items()}
    wrong = [
        f"{name} {'none' if now is None else format(now, '.6f')}, expected {value:.6f} ± {tolerance:g}"
        for name, (value, now) in apart.items()
        if now is None or abs(now - value) > tolerance
    ]
    of_run = f"{expected.name} of run {expected.run_id}"
    if not expected.is_same:
        wrong.insert(
            0, f"this checkpoint is not one of run {expected.run_id}, whose {expected.name} it is compared with"
        )
    for line in wrong:
        say(f"not as expected: {line}")
    if wrong and expected.is_same and (cause := computed_otherwise(subject, config)):
        whose = "the run's scores were" if expected.of_training else "evaluations are, unless told otherwise,"
        say(f"the evident cause: {whose} computed {cause}")
    if not wrong:
        equal = "to the last digit" if all(value == now for value, now in apart.values()) else "within --tolerance"
        say(f"as expected: the {len(apart)} scores of {of_run}, {equal}")
    return {"expected": expected.metrics, "as_expected": not wrong}


def computed_otherwise(subject: Subject, config: EvaluateConfig) -> str | None:
    """How training's validation computed scores, and how these were, where that is not the same."""
    settings = subject.settings
    precision, batch = settings.get("amp") or "off", settings.get("batch_size")
    reference = bool((subject.checkpoint.get("config") or {}).get("reference"))
    modules = {False: "without --reference", True: "with --reference"}
    pairs = [
        (f"in {PRECISIONS[precision]}", f"in {PRECISIONS[subject.precision]}"),
        (modules[reference], modules[subject.reference]),
        (f"in batches of {batch}", f"in batches of {config.batch_size or batch}"),
    ]
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    if not differ:
        return None
    then, now = (", ".join(words) for words in zip(*differ, strict=True))
    return f"{then}, these {now}"


def store_for(config: EvaluateConfig) -> Any:
    """The store to fetch from, to log to or to compare with; None when nothing of that is asked for."""
    word = config.run or config.expect_run
    if word is None and config.no_log:
        return None
    try:
        return fetching.store_of(word) if word else fetching.open_store()
    except StoreError as error:
        hint = "" if word else "\nOr score without logging: --no-log"
        raise StoreError(f"{error}{hint}") from error


def log(
    store: Any,
    report: dict[str, Any],
    subject: Subject,
    scene: Scene,
    pictures: Sequence[Path],
    scored: scoring.Score,
) -> dict[str, Any]:
    """Write the evaluation's own MLflow run, linked to the checkpoint's LoggedModel where the store knows it."""
    from evaluating import report as evaluation_report

    checkpoint = subject.checkpoint
    run_id = checkpoint.get("run_id")
    known = store.checkpoints(run_id, with_pruned=True) if run_id else []
    stored = next((one for one in known if one.sha256 == subject.sha256), None)
    if stored is None:
        say(f"note: {store.uri} does not have this checkpoint: the evaluation is linked to none")
    values = evaluation_report.values(report).items()

    def note(own: str) -> str:
        pages = links(store, own, pictures, stored and stored.run_id)
        return evaluation_report.note(report, workspace.introduce(checkpoint), pages)

    with tempfile.TemporaryDirectory(prefix="detections-") as folder:
        kept = stored_detections.write(Path(folder), report["split"], scored.results, scored.ground_truth)
        evaluation_run = store.log_evaluation(
            {f"{metric_prefix(scene)}{name}": value for name, value in values},
            run_name=f"{checkpoint.get('run_name') or 'a checkpoint'} on {scene.data.name} {scene.split}",
            source_run_id=stored.run_id if stored else run_id,
            checkpoint=stored,
            step=checkpoint.get("step") or 0,
            files=dict.fromkeys(pictures, "figures") | dict.fromkeys(kept, stored_detections.FOLDER),
            tables=evaluation_report.tables(report),
            description=note,
            **in_mlflow(subject, scene),
        )
    say_page("evaluation", store.ui_urls(evaluation_run))
    return {"evaluation_run_id": evaluation_run, "model_id": stored.model_id if stored else None}


def script(config: EvaluateConfig) -> int:
    report = main(config)
    print(json.dumps(report) if config.json else text(report))
    if not config.no_log and not report["evaluation_run_id"]:
        return StoreError.exit_code
    return 0 if report.get("as_expected", True) else NOT_AS_EXPECTED


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    from evaluating import by_epoch
    from evaluating import report as evaluation_report

    return by_epoch.text(report) if "checkpoints" in report else evaluation_report.text(report)


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(EvaluateConfig))
