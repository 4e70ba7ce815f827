"""A run's note in the MLflow UI, in Markdown: what came out, and what to type next."""

from collections.abc import Mapping, Sequence
from typing import Any

import notes
import workspace
from tracking.connection import is_server
from tracking.run import metric_name

History = Mapping[str, Sequence[tuple[int, float]]]  # (step, value) by metric

LINKS = {"figures": "Figures", "experiment": "sample pictures and charts", "models": "checkpoints"}


def describe_run(
    info: Any, position: Mapping[str, Any], history: History, *, state: str, pages: Mapping[str, str]
) -> str:
    """The note of the run that `info` (a RunInfo) tells of, at this position; `state` in a word, `pages` of the UI."""
    links = notes.links((title, pages[page]) for page, title in LINKS.items())
    parts = [notes.opening(links, result(position, history)), commands(info, position)]
    parts += [training(info, position, state), classes_table(info, position, history)]
    return "\n\n".join(part for part in parts if part)


def training(info: Any, position: Mapping[str, Any], state: str) -> str:
    """What was trained on what, and how far."""
    config = info.config
    where = f"{state}, at step {position.get('step') or 0} of {info.total_steps}"
    what = f"`{info.architecture['builder']}` on **{info.dataset['name']}**, weights `{config['weights']}`, "
    return what + f"augmentation `{str(config['augmentation'])[:40]}`, seed {config['seed']}: {where}."


def result(position: Mapping[str, Any], history: History) -> str:
    """The best checkpoint's scores."""
    best = position.get("best")
    if not best:
        return "No validation yet."
    others = [f"{key} {value:.4f}" for key in ("val/AP", "val/AP50", "val/AP75") if (value := at(history, key, best))]
    scores = ", ".join(text for text in others if not text.startswith(f"{best['metric']} "))
    return f"**{best['metric']} {best['value']:.4f}** in `{best['name']}` ({scores})"


def at(history: History, key: str, best: Mapping[str, Any]) -> float | None:
    """The value of a metric at the best checkpoint's step."""
    return dict(history.get(key, ())).get(best["step"])


def classes_table(info: Any, position: Mapping[str, Any], history: History) -> str:
    """AP by class of the best checkpoint."""
    best = position.get("best")
    values = {name: at(history, metric_name(f"val/AP/{name}"), best) for name in info.classes} if best else {}
    rows = [[name, f"{value:.4f}"] for name, value in values.items() if value is not None]
    return notes.table(["class", "val/AP"], rows) if rows else ""


def commands(info: Any, position: Mapping[str, Any]) -> str:
    """How to restore, score and resume it."""
    best = position.get("best")
    by = workspace.choosing(best) if best else ""
    split = " --split test" if "test" in info.dataset["split_fingerprints"] else ""
    lines = [
        *([f"export MLFLOW_TRACKING_URI={info.tracking_uri}"] if is_server(info.tracking_uri) else []),
        f"python restore.py {info.run_id}{by}  # its best checkpoint → models/faster_rcnn",
        f"python evaluate.py --run {info.run_id}{by}{split}",
        f"python train.py --resume {info.run_id}  # after an interruption, or longer with --epochs N",
        f"python train.py --from-run {info.run_id}  # the same again, with other flags",
    ]
    return "\n".join(["```bash", *lines, "```"])
