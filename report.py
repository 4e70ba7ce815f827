"""What a run shows of itself in the MLflow UI: the same few images at every validation, curves, a table of classes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import engine
import figures
import metrics
from data.dataset import DetectionDataset, eval_loader, load_image
from data.records import Record
from data.survey import boxes_by_class
from live_run import LiveRun
from prepare import Job
from tracking import view
from tracking.run import PER_CLASS, metric_name

SHOWN_SCORE = 0.5
MOST_CLASSES = 16  # that one picture has curves for: the weakest
OVERALL = ("val/AP", "val/AP50", "val/AP75")


def sample_records(records: Sequence[Record]) -> list[Record]:
    """The images that every run on these data shows: evenly spread over those with objects."""
    shown = [record for record in records if len(record.boxes)]
    count = min(view.SAMPLE_PICTURES, len(shown))
    return [shown[number * len(shown) // count] for number in range(count)]


def log_first_samples(run: LiveRun, job: Job) -> None:
    """What the starting weights find, at step 0: there the UI opens its pictures."""
    records = sample_records(job.data.records("val"))
    loader = eval_loader(DetectionDataset(records), batch_size=job.config.batch_size)
    found = engine.predict(job.scored_model, loader, device=job.device, amp=job.amp)
    with tempfile.TemporaryDirectory(prefix="samples-") as folder:
        log_samples(run, job, metrics.coco_results(found), Path(folder))


def log_validation(run: LiveRun, job: Job, scored: Any, *, improved: bool) -> None:
    """Sample pictures and curves of a validation and, of the best so far, the samples in one and a table of classes."""
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        pictures = log_samples(run, job, scored.results, Path(folder))
        loss, ap, best = (Path(folder) / name for name in ("loss.png", "ap.png", "best_predictions.png"))
        history = run.history()
        figures.loss_curves(history, loss)
        weakest = sorted(scored.per_class, key=lambda name: scored.per_class[name]["AP"])[:MOST_CLASSES]
        by_class = {metric_name(f"val/AP/{name}"): name for name in weakest}
        figures.ap_curves(history, ap, best_step=job.position.best["step"], overall=OVERALL, by_class=by_class)
        if improved:
            figures.write(figures.side_by_side(pictures), best)
            run.tracked.table(*class_table(scored, job), PER_CLASS)
        for path in (loss, ap, best) if improved else (loss, ap):
            run.tracked.file(path, "figures", rolling=True)


def class_table(scored: Any, job: Job) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a class's AP, AP50 and numbers of boxes."""
    counts = {
        split: boxes_by_class(job.data.records(split).labels, len(job.data.classes)) for split in ("train", "val")
    }
    rows = []
    for number, name in enumerate(job.data.classes):
        scores = scored.per_class.get(name, {})  # none: the split has no box of it
        boxes = [int(counts[split][number]) for split in ("train", "val")]
        rows.append([name, *(round(scores[key], 4) if key in scores else None for key in ("AP", "AP50")), *boxes])
    return ["class", "AP", "AP50", "boxes in train", "boxes in val"], rows


def log_samples(run: LiveRun, job: Job, results: Sequence[dict[str, Any]], folder: Path) -> list[np.ndarray]:
    """The sample images with `results` (COCO) drawn, at the run's position; `folder` is for files on their way."""
    pictures = []
    for number, record in enumerate(sample_records(job.data.records("val")), start=1):
        found = [one for one in results if one["image_id"] == record.image_id and one["score"] >= SHOWN_SCORE]
        pictures.append(sample_picture(load_image(record), record, found, job.data.classes))
        figures.write(pictures[-1], folder / f"{number}.png")
        run.tracked.image(folder / f"{number}.png", f"predictions/{number}", job.position.step)
    return pictures


def sample_picture(
    image: np.ndarray, record: Record, found: Sequence[dict[str, Any]], classes: Sequence[str]
) -> np.ndarray:
    """Ground truth above or left, detections (COCO results of this image) below or right, of an image (H, W, 3)."""
    boxes = figures.corners([one["bbox"] for one in found])
    labels = np.array([one["category_id"] for one in found], dtype=int)
    texts = [f"{classes[one['category_id'] - 1]} {one['score']:.2f}" for one in found]
    truth = [classes[label - 1] for label in record.labels]
    return figures.marked(
        image,
        {
            f"ground truth: {record.name}": figures.Marks(record.boxes, record.labels, truth),
            f"detections, score {SHOWN_SCORE} or more": figures.Marks(boxes, labels, texts),
        },
    )
