"""evaluate.py --which all: the AP of each checkpoint of a run, with its interval."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fetching
import figures
import metrics
import notes
import workspace
from evaluating.report import number
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
from models import record
from progress import say, say_page
from tracking.errors import StoreError
from workspace import RunFolder, WorkspaceError

SHOWN = ("AP", "AP50", "AP75")
# An evaluation keeps the detections of one checkpoint, so that compare.py need not be told which.
COMPARING = (
    "score each alone, which keeps its detections (--which NAME instead of all), "
    "then python compare.py with the IDs of these evaluations"
)


def main(store: Any, config: Any) -> dict[str, Any]:
    """Score every checkpoint of --run that was not pruned on one split; what `--json` prints."""
    run_id = fetching.run_named(store, config.run, config.experiment, config.metric).run_id
    workspace.deliver_if_idle(store, RunFolder(run_id))
    kept = store.checkpoints(run_id, metric=config.metric)
    if not kept:
        raise WorkspaceError(f"Run {run_id} has no checkpoint in the store. See: python status.py")
    scene, rows = None, []
    for stored in kept:
        subject = _fetched(store, stored, config)
        scene = scene or scene_of(store, subject.checkpoint, config)
        rows.append(_row(stored, subject, scene, config, aloud=not rows))
        say(f"scored {stored.name}, {len(rows)} of {len(kept)}")
    best = max(rows, key=lambda row: row["metrics"].get("AP", 0.0))["checkpoint"]
    report = {"run_id": run_id, **about(scene), "checkpoints": rows, "best": best, "evaluation_run_id": None}
    _keep(store, report, subject, scene, config)
    if len(rows) > 1:
        say(f"to compare two of them: {COMPARING}")
    return report


def _fetched(store: Any, stored: Any, config: Any) -> Subject:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        return read_subject(store.download(stored, Path(folder) / "checkpoint.pth"), config)


def _row(stored: Any, subject: Subject, scene: Scene, config: Any, *, aloud: bool) -> dict[str, Any]:
    scored = scored_as_in_training(subject, scene, config, aloud=aloud)
    found = {}
    if config.replicates:
        matches = metrics.match(scored.ground_truth, scored.results)
        found = metrics.intervals(matches, replicates=config.replicates, seed=config.seed)["metrics"]
    return {
        "checkpoint": stored.name,
        "model_id": stored.model_id,
        "epoch": workspace.finished_epoch(stored.epoch),
        "step": stored.step,
        "metrics": scored.metrics,
        "intervals": found,
    }


def _keep(store: Any, report: dict[str, Any], subject: Subject, scene: Scene, config: Any) -> None:
    """Write the report and its figure to --output and to MLflow: a run whose charts are by step."""
    with tempfile.TemporaryDirectory(prefix="figures-") as folder:
        picture = (config.output or Path(folder)) / "figures" / "ap_by_epoch.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        curves = _curves(report["checkpoints"], subject.checkpoint["steps_per_epoch"])
        figures.ap_by_epoch(curves, picture, title=_title(subject, scene))
        if not config.no_log:
            try:
                report["evaluation_run_id"] = _logged(store, report, subject, scene, picture)
                say_page("evaluation", store.ui_urls(report["evaluation_run_id"]))
            except StoreError as error:  # the scores are there all the same
                say(f"error: the evaluation is not in MLflow: {error}")
        if config.output is not None:
            record.write_json(config.output / "metrics.json", report)


def _title(subject: Subject, scene: Scene) -> str:
    name = subject.checkpoint.get("run_name") or subject.checkpoint.get("run_id")
    return f"{name} on {scene.data.name} {scene.split}"


def _curves(
    rows: Sequence[dict[str, Any]], steps_per_epoch: int
) -> dict[str, list[tuple[float, float, tuple[float, float] | None]]]:
    """{metric: [(epoch, value, interval)]}, epochs as checkpoints count them: the first ends at 0."""
    return {
        name: [
            (row["step"] / steps_per_epoch - 1, row["metrics"][name], row["intervals"].get(name))
            for row in rows
            if name in row["metrics"]
        ]
        for name in SHOWN[:2]
    }


def _logged(store: Any, report: dict[str, Any], subject: Subject, scene: Scene, picture: Path) -> str:
    prefix, columns = metric_prefix(scene), ["checkpoint", "epoch", "step"]
    columns += [f"{name}{end}" for name in SHOWN for end in ("", "_low", "_high")]
    rows, series = [], {}
    for row in report["checkpoints"]:
        values = {}
        for name in SHOWN:
            low, high = row["intervals"].get(name, (None, None))
            values |= {name: row["metrics"].get(name), f"{name}_low": low, f"{name}_high": high}
        rows.append([row["checkpoint"], row["epoch"], row["step"], *values.values()])
        series[row["step"]] = {f"{prefix}{name}": value for name, value in values.items() if value is not None}
    name = subject.checkpoint.get("run_name") or report["run_id"]
    return store.log_evaluation(
        series,
        run_name=f"{name}: every checkpoint on {scene.data.name} {scene.split}",
        source_run_id=report["run_id"],
        files={picture: "figures"},
        tables={"tables/checkpoints.json": (columns, rows)},
        description=lambda own: _note(report, links(store, own, [picture], report["run_id"])),
        **in_mlflow(subject, scene),
    )


def _note(report: dict[str, Any], links: str) -> str:
    rows = [[row["checkpoint"], *_cells(row, SHOWN[:2])] for row in report["checkpoints"]]
    first = f"Every checkpoint of run `{report['run_id']}` on **{report['dataset']}** {report['split']}."
    return "\n\n".join(
        [notes.opening(links, first), notes.table(["checkpoint", *SHOWN[:2]], rows), f"To compare two: {COMPARING}."]
    )


def _cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [number(row["metrics"][name], row["intervals"].get(name)) for name in names if name in row["metrics"]]


def _line(row: dict[str, Any]) -> str:
    cells = zip((name for name in SHOWN if name in row["metrics"]), _cells(row, SHOWN), strict=True)
    return "  ".join([row["checkpoint"], *(f"{name} {cell}" for name, cell in cells)])


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    has_intervals = any(row["intervals"] for row in report["checkpoints"])
    head = f"{report['dataset']} {report['split']}: {report['images']} images"
    lines = [head + "; in brackets 95% intervals" * has_intervals]
    lines += [f"  {_line(row)}" for row in report["checkpoints"]]
    chosen = " (and these images chose it, which flatters it)" if report["split"] == "val" else ""
    return "\n".join([*lines, f"  best AP: {report['best']}{chosen}"])
