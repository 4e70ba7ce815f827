"""What is the status of the checkpoint file at models/faster_rcnn? Answers at once; writes nothing without --sync."""

import functools
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commandline
import series
import workspace
from models import record
from progress import about, duration
from tracking import connection, journal, moved, ownership, peek
from workspace import RunFolder


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say what lies at models/faster_rcnn, what ran here, and what to do next.

    Exit code 0: ready, 1: absent, 3: damaged, 4: incompatible, 6: a store is away, or --to did not get everything.
    """

    checkpoint: Path = workspace.PUBLISHED
    """Another checkpoint file to judge."""
    experiment: commandline.Text = None
    """Instead, the runs of this experiment: state, epoch, best and time left of each, and of its groups."""
    json: bool = False
    """Print JSON instead of a report."""
    verify: bool = False
    """Hash the file even when its size and time are as recorded."""
    remote: bool = False
    """Ask the store through mlflow, for as long as it takes (without: what it answers within 0.3 s)."""
    sync: bool = False
    """First send to MLflow what it has not yet got, and mark dead runs KILLED."""
    to: commandline.Uri = None
    """With --sync: then copy the runs, with all that belongs to them, into the store at this URI."""
    run: commandline.Text = None
    """With --sync --to: this RUN only. [all trained here]"""

    def __post_init__(self):
        if self.to is not None and not self.sync:
            raise commandline.ConfigError("--to URI says where --sync copies the runs to: give both")
        if self.run is not None and self.to is None:
            raise commandline.ConfigError("--run names the run that --sync --to URI copies: give all three")
        if self.to is not None and ":" not in self.to:
            raise commandline.ConfigError(
                f"--to takes a tracking URI (http://127.0.0.1:5000, sqlite:////path/mlflow.db), not {self.to!r}"
            )
        if self.experiment is not None and (self.checkpoint != StatusConfig.checkpoint or self.verify):
            raise commandline.ConfigError("--experiment tells of runs, --checkpoint and --verify are about a file")


def main(config: StatusConfig) -> dict[str, Any]:
    """The report that `--json` prints."""
    if config.sync:
        import syncing

        if config.to is None:
            syncing.synchronise()
        else:
            syncing.copy_to(config.to.rstrip("/"), config.run)
    uri = connection.store_uri(workspace.ROOT)
    ask = functools.cache(thoroughly if config.remote else quickly)
    if config.experiment is not None:
        return series.report(config.experiment, uri, *ask(uri))
    path = config.checkpoint.absolute()
    verdict = record.inspect(path, verify=config.verify)
    folders = workspace.run_folders()
    training = training_state(folders)
    entry = verdict.entry
    run_id = entry.get("run_id")
    home = moved.home_of(uri, peek.BUSY_SECONDS)
    recorded_uri = home.present_uri(entry.get("tracking_uri")) if home else entry.get("tracking_uri")
    state, detail = verdict.state, verdict.detail
    if state == "ready" and not (entry.get("architecture") and entry.get("classes")):
        state, detail = "incompatible", FOREIGN
    report = {
        "state": state,
        "reason": None,
        "detail": detail,
        "training": training,
        "path": str(path),
        **{key: entry.get(key) for key in ("run_id", "run_name", "experiment")},
        "tracking_uri": recorded_uri or uri,
        "moved_from": [str(folder) for folder in home.former] if home else [],
        "run_status": run_status(run_id, recorded_uri or uri, ask),
        "epoch": workspace.finished_epoch(entry.get("epoch")),
        **{key: entry.get(key) for key in ("epochs", "step", "batches_done", "metrics", "architecture", "classes")},
        **{key: entry.get(key) for key in ("dataset", "sha256", "size_bytes", "resumable", "role")},
        **{
            "pinned": bool(entry.get("pinned")),
            "best": best_known(recorded_run(path), folders, uri, ask),
            "unsent": unsent(folders),
        },
    }
    if state == "absent":
        report["reason"] = absence(training, folders, report["best"])
    report["next"] = next_command(report)
    return report


def training_state(folders: list[RunFolder]) -> dict[str, Any]:
    """The newest run here: a running one before all others."""
    chosen = next((folder for folder in folders if folder.is_alive()), folders[0] if folders else None)
    if chosen is None:
        return {"state": "none", "run_id": None, "epoch": None, "step": None}
    state = chosen.state()
    keys = ("run_name", "epoch", "epochs", "step", "total_steps", "seconds_left", "updated", "pid", "host", "error")
    known = {key: state.get(key) for key in keys}
    known["epoch"] = workspace.finished_epoch(known["epoch"])
    return {"state": chosen.training(), "run_id": chosen.run_id} | known


Ask = Callable[[str], tuple[Any, Any]]  # a store's URI → what answers questions on it, and its first argument there


def quickly(uri: str) -> tuple[Any, Any]:
    """A glance at the store, without mlflow."""
    return peek, uri


def thoroughly(uri: str) -> tuple[Any, Any]:
    """The store as mlflow opens it, where there is one."""
    from tracking import ask
    from tracking.store import RunUnknown, open_store

    try:
        return ask, open_store(workspace.ROOT, uri, must_exist=True)
    except RunUnknown:
        return quickly(uri)


def run_status(run_id: str | None, uri: str, ask: Ask) -> str | None:
    """The run's status in MLflow, where the store knows it."""
    if run_id is None:
        return None
    look, store = ask(uri)
    found = look.peek_run(store, run_id)
    return found["status"] if found else None


def recorded_run(path: Path) -> str | None:
    """The run that checkpoint.json names, whatever became of the file beside it."""
    return (record.read_record(path).get("current") or {}).get("run_id")


def best_known(recorded: str | None, folders: list[RunFolder], uri: str, ask: Ask) -> dict[str, Any] | None:
    """The best checkpoint of the run last put at models/faster_rcnn, else of the newest run here or in the store."""
    for folder in sorted(folders, key=lambda folder: folder.run_id != recorded):
        best = folder.state().get("best")
        if best:
            return {"run_id": folder.run_id} | workspace.best_told(best)
    look, store = ask(uri)
    for run in look.newest_runs(store, 20) or []:
        found = look.peek_checkpoints(store, run["run_id"])
        if found and found.get("best"):
            return {"run_id": run["run_id"]} | found["best"] | workspace.best_told(found["best"])
    return None


def unsent(folders: list[RunFolder]) -> dict[str, Any]:
    """What MLflow has not yet got, over all runs here."""
    total = {"operations": 0, "checkpoints": 0, "bytes": 0, "runs": []}
    for folder in folders:
        waiting = journal.Journal(folder.path).unsent()
        if waiting["operations"] and not ownership.is_lost(folder.path):
            total["runs"].append(folder.run_id)
            for key in ("operations", "checkpoints", "bytes"):
                total[key] += waiting[key]
    return total


def absence(training: dict[str, Any], folders: list[RunFolder], best: dict[str, Any] | None) -> str:
    """Why there is no checkpoint: the first that holds."""
    if training["state"] == "running":
        return "training"
    if training["state"] == "interrupted":
        return "interrupted"
    if folders and folders[0].state().get("published") is False:
        return "saved-elsewhere"
    return "restorable" if best else "never-trained"


def next_command(report: dict[str, Any]) -> str:
    """The command to type now."""
    training, best = report["training"], report["best"]
    elsewhere = report["path"] != str(workspace.PUBLISHED)
    can_resume = training["state"] == "interrupted" and RunFolder(training["run_id"]).can_resume()
    if report["state"] == "ready" and can_resume and not elsewhere:
        return f"python train.py --resume {training['run_id']}"
    if report["state"] == "ready":
        command = "python evaluate.py" + (f" --checkpoint {shlex.quote(report['path'])}" if elsewhere else "")
        return command if report["dataset"] else f"{command} --data PATH"
    if report["state"] == "incompatible" and "git pull" in report["detail"]:
        return "git pull"
    if report["detail"] == FOREIGN:
        return f"python restore.py --file {shlex.quote(shown(report['path']))}"
    if training["state"] == "running" and report["state"] == "absent":
        return "python status.py"
    if report["reason"] == "interrupted" and can_resume and not elsewhere:
        return f"python train.py --resume {training['run_id']}"
    if best:
        return f"python restore.py {best['run_id']}" + (f" --output {shlex.quote(report['path'])}" if elsewhere else "")
    if can_resume:
        return f"python train.py --resume {training['run_id']}"
    return "python train.py"


FOREIGN = "it does not say its architecture and classes, so it is not from here"
ROLES = {"best": "the run's best", "last": "the run's last", "epoch": "an epoch's checkpoint", "file": "from a file"}
HEADLINES = {
    "training": "absent: training now",
    "interrupted": "absent: the last training was interrupted",
    "saved-elsewhere": "absent: the last training was not published here",
    "restorable": "absent, but MLflow has a checkpoint to restore",
    "never-trained": "absent: nothing was trained here yet",
}


def report_text(report: dict[str, Any]) -> str:
    """The report for people."""
    is_published = report["path"] == str(workspace.PUBLISHED)
    headline = HEADLINES.get(report["reason"], report["state"]) if is_published else report["state"]
    lines = [f"{shown(report['path'])}: {headline}"]
    if report["detail"] and report["state"] != "absent":
        lines.append(f"  {report['detail']}")
    if report["state"] == "ready":
        role = ROLES.get(report["role"], "checkpoint") + (", pinned by restore.py" if report["pinned"] else "")
        role += "" if report["resumable"] else ", not resumable"
        lines.append(f"  {workspace.introduce(report)}")
        lines.append(f"  {role}, {report['size_bytes'] / 1e6:.1f} MB, sha256 {str(report['sha256'])[:12]}")
        classes = [name for name in report["classes"] or ["unknown"] if name != record.NO_CLASS]
        lines.append(f"  classes: {', '.join(classes)}")
        if report["run_id"]:
            known = report["run_status"] or "not known to the store, or that does not answer at once (--remote asks it)"
            lines.append(f"  run {report['run_id']}: {known} in {report['tracking_uri']}")
    lines += training_lines(report["training"])
    best = report["best"]
    if best and best["run_id"] != report["run_id"]:
        lines.append(
            f"to restore: the best of run {best['run_id']}, {best['metric']} {best['value']:.4f} in {best['name']}"
        )
    waiting = report["unsent"]
    if waiting["operations"] and report["training"]["state"] != "running":
        lines.append(
            f"unsent to MLflow: {waiting['operations']} operations, {waiting['checkpoints']} checkpoints "
            f"({waiting['bytes'] / 1e6:.1f} MB). Send: python status.py --sync"
        )
    if report["moved_from"]:
        lines.append(f"moved or copied from {', '.join(report['moved_from'])}: before training, python relocate.py")
    return "\n".join([*lines, f"next: {report['next']}"])


def training_lines(training: dict[str, Any]) -> list[str]:
    if training["state"] == "none":
        return []
    at = f"step {training['step'] or 0} of {training['total_steps']}"
    epoch = training["epoch"]
    if isinstance(epoch, int) and epoch >= 0:
        at = f"epoch {epoch} done ({epoch + 1} of {training['epochs']}), {at}"
    line = f"training: {training['state']}, run {training['run_id']} ({training['run_name']}), {at}"
    if training["updated"]:
        line += f", {duration(time.time() - training['updated'])} ago"
    if training["state"] == "running" and training["seconds_left"] is not None:
        line += f", {about(training['seconds_left'])} left"
    if training["state"] == "failed":
        return [line, f"  {(training['error'] or 'for a reason not recorded').splitlines()[0]}"]
    if training["state"] == "interrupted":
        return [line, f"  {RunFolder(training['run_id']).continuation()}"]
    if training["state"] == "running" and RunFolder(training["run_id"]).is_suspended():
        return [line, f"  its process is suspended. Wake it: kill -CONT {training['pid']}"]
    return [line]


def shown(path: str) -> str:
    return os.path.relpath(path) if path.startswith(str(workspace.ROOT)) else path


def script(config: StatusConfig) -> int:
    report = main(config)
    in_words = report_text if config.experiment is None else series.text
    print(json.dumps(report, indent=1) if config.json else in_words(report))
    if config.experiment is not None:
        return 0 if report["runs"] else 1
    return {"ready": 0, "absent": 1, "incompatible": 4}.get(report["state"], 3)


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(StatusConfig))
