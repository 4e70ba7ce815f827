"""What evaluate.py tells of detections beside the COCO numbers, in words, figures, tables and MLflow metrics.

Everything is made from detections and ground truth alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import figures
import metrics
import notes
from evaluating import error_report
from metrics import errors as error_analysis

PER_CLASS = ("AP", "AP50", "AR_100")  # what is said of each class
POINTS = ("score_threshold", "precision", "recall", "F1")
IOU = 0.5  # of thresholds and confusion
CURVES_AT = (0.5, 0.75)
UNDETECTED_THRESHOLD = 0.5  # of the confusion matrix where nothing was detected

Table = tuple[list[str], list[list[Any]]]  # columns, rows


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Of one evaluation: intervals, thresholds, what was taken for what."""

    intervals: dict[str, Any] | None
    curve: metrics.ThresholdCurve  # of the objects of all classes
    best: dict[str, float] | None  # the threshold of the highest F1, where anything was detected
    best_per_class: dict[str, dict[str, float]]
    precision_by_recall: dict[float, dict[str, np.ndarray]]  # by IoU and class
    confusion_threshold: float
    confusion_names: tuple[str, ...]
    confusion: np.ndarray
    errors: error_analysis.Errors
    errors_told: dict[str, Any]

    def in_report(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "intervals": self.intervals,
            "thresholds": {"iou": IOU, "best": self.best, "best_per_class": self.best_per_class},
            "confusion": {
                "iou": IOU,
                "score_threshold": self.confusion_threshold,
                "classes": list(self.confusion_names),
                "counts": self.confusion.tolist(),
            },
            "errors": self.errors_told,
        }


def analyse(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    replicates: int,
    seed: int,
    worst: int = 0,
    score_threshold: float | None = None,
) -> Analysis:
    """COCO ground truth and results, analysed; without replicates no intervals; so many of the worst images named.

    The confusion matrix and the worst images are of the detections from `score_threshold` on; None: from that of the
    highest F1 on.
    """
    matches = metrics.match(ground_truth, results)
    curve = metrics.threshold_curve(matches, iou=IOU)
    best = curve.best()
    if score_threshold is None:
        score_threshold = best["score_threshold"] if best else UNDETECTED_THRESHOLD
    names, counts = metrics.confusion(ground_truth, results, score_threshold=score_threshold, iou=IOU)
    by_class = {name: metrics.threshold_curve(matches, name, iou=IOU).best() for name in matches.classes}
    errors = error_analysis.analyse(ground_truth, results)
    return Analysis(
        intervals=metrics.intervals(matches, replicates=replicates, seed=seed) if replicates else None,
        curve=curve,
        best=best,
        best_per_class={name: each for name, each in by_class.items() if each},
        precision_by_recall={iou: metrics.precision_by_recall(matches, iou=iou) for iou in CURVES_AT},
        confusion_threshold=score_threshold,
        confusion_names=names,
        confusion=counts,
        errors=errors,
        errors_told=error_report.in_report(errors, ground_truth, results, worst=worst, shown_score=score_threshold),
    )


def draw(analysis: Analysis, report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the figures that there is something for into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("precision_recall", "thresholds", "confusion", "ap_by_class")
    curves, thresholds, confusion, classes = paths = [folder / f"{name}.png" for name in names]
    if not report["per_class"]:
        return []  # nothing is there to be found
    figures.precision_recall_curves(analysis.precision_by_recall, curves)
    values = {name: one["AP"] for name, one in report["per_class"].items()}
    bounds = {name: one["AP"] for name, one in intervals_of(report)["per_class"].items() if "AP" in one}
    figures.class_bars(values, bounds, classes, x="AP" + (" and its 95% interval" if bounds else ""))
    title = f"detections of score {analysis.confusion_threshold:.3f} or more, IoU {IOU} or more"
    figures.confusion_matrix(analysis.confusion_names, analysis.confusion, confusion, title=title)
    if analysis.best is None:
        return [curves, confusion, classes]
    lines = {"precision": analysis.curve.precision, "recall": analysis.curve.recall, "F1": analysis.curve.f1}
    best, x = analysis.best["score_threshold"], f"score threshold (all classes together, IoU {IOU} or more)"
    figures.threshold_curves(lines, analysis.curve.threshold, thresholds, best=best, x=x)
    return paths


def intervals_of(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report's intervals, empty where none were asked for."""
    return report["intervals"] or {"metrics": {}, "per_class": {}}


def values(report: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by the names that they have under eval/DATA/SPLIT/ in MLflow: AP, AP_low, AP_high, AP/CLASS …"""
    intervals = intervals_of(report)
    named = dict(report["metrics"])
    for name, (low, high) in intervals["metrics"].items():
        named |= {f"{name}_low": low, f"{name}_high": high}
    for name, one in report["per_class"].items():
        named[f"AP/{name}"] = one["AP"]
        if "AP" in intervals["per_class"].get(name, {}):
            named[f"AP_low/{name}"], named[f"AP_high/{name}"] = intervals["per_class"][name]["AP"]
    named |= report["thresholds"]["best"] or {}
    kinds = report["errors"]["kinds"].items()
    named |= {f"AP50_lost/{kind}": one["AP50"] for kind, one in kinds if one["AP50"] is not None}
    return named | {f"latency/{name}": value for name, value in report["latency"].items()}


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """Columns and rows by their paths as MLflow tables."""
    bounded = [f"{key}{end}" for key in PER_CLASS for end in ("", "_low", "_high")]
    rows = []
    for name, one in report["per_class"].items():
        bounds = intervals_of(report)["per_class"].get(name, {})
        best = report["thresholds"]["best_per_class"].get(name, {})
        cells = [value for key in PER_CLASS for value in (one[key], *bounds.get(key, (None, None)))]
        rows.append([name, *cells, *(best.get(key) for key in POINTS)])
    classes, counts = report["confusion"]["classes"], report["confusion"]["counts"]
    return {
        "tables/per_class.json": (["class", *bounded, *POINTS], rows),
        "tables/confusion.json": (
            ["ground truth", *(f"detected as {name}" for name in classes)],
            [[name, *row] for name, row in zip(classes, counts, strict=True)],
        ),
        "tables/errors.json": error_report.table(report["errors"]),
    }


def text(report: Mapping[str, Any]) -> str:
    """The report for people, AP in 0..1."""
    intervals = intervals_of(report)
    lines = [f"{report['dataset']} {report['split']}: {report['images']} images{how_bounded(report)}"]
    lines += [
        f"  {name:<10} {number(value, intervals['metrics'].get(name))}" for name, value in report["metrics"].items()
    ]
    width = max((len(name) for name in report["per_class"]), default=0)
    for name, one in report["per_class"].items():
        bounds = intervals["per_class"].get(name, {})
        cells = (f"{key} {number(one[key], bounds.get(key))}" for key in PER_CLASS)
        lines.append("  ".join([f"  {name:<{width}}", *cells]))
    return "\n".join([*lines, *(f"  {line}" for line in remarks(report) + error_report.lines(report["errors"]))])


def note(report: Mapping[str, Any], checkpoint: str, links: str) -> str:
    """The evaluation's Markdown note in the MLflow UI."""
    intervals = intervals_of(report)
    scores = [
        f"{name} {number(report['metrics'][name], intervals['metrics'].get(name))}"
        for name in ("AP", "AP50", "AP75")
        if name in report["metrics"]
    ]
    where = f"**{report['dataset']}** {report['split']} ({report['images']} images{how_bounded(report)})"
    rows = [
        [name, *(number(one[key], intervals["per_class"].get(name, {}).get(key)) for key in PER_CLASS)]
        for name, one in report["per_class"].items()
    ]
    said = [f"{line[0].upper()}{line[1:]}{'' if line.endswith('…') else '.'}" for line in remarks(report)]
    parts = [notes.opening(links, ", ".join(scores)), f"On {where}, of {checkpoint}.", *said]
    return "\n\n".join([*parts, notes.table(["class", *PER_CLASS], rows)])


def number(value: float, interval: Sequence[float] | None) -> str:
    """0.4377 [0.401, 0.472]"""
    return f"{value:.4f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def how_bounded(report: Mapping[str, Any]) -> str:
    """What the brackets are."""
    if not report["intervals"]:
        return ""
    return f"; in brackets 95% intervals, from {report['intervals']['replicates']} draws of the images"


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What was not scored, the best threshold, what an image takes, and which intervals are not to be trusted."""
    lines = []
    if lacking := report["classes_not_scored"]:
        lines.append(f"not scored, because no box is of them: {', '.join(lacking)}")
    if best := report["thresholds"]["best"]:
        at = f"score {best['score_threshold']:.3f}: precision {best['precision']:.3f}, recall {best['recall']:.3f}"
        lines.append(f"best F1 {best['F1']:.3f} at {at} (IoU {IOU}, all classes together)")
    if few := (report["intervals"] or {}).get("few_images"):
        shown = ", ".join(f"{name} ({count})" for name, count in list(few.items())[:5]) + (
            ", …" if len(few) > 5 else ""
        )
        lines.append(f"in few images, so that their intervals hold less often: {shown}")
    if latency := report["latency"]:
        lines.append(
            f"an image takes {latency['forward_ms']:.1f} ms in the model, {latency['whole_ms']:.1f} ms with loading "
            f"(batches of {report['batch_size']} on {report['device']})"
        )
    return lines
