"""The runs of an experiment, from runs/ and the store: state, epoch, best and time left of each, and their groups."""

import shlex
import statistics
import time
from collections import Counter
from typing import Any

import workspace
from progress import about, duration
from tracking.connection import sqlite_path
from tracking.errors import StoreError
from tracking.pulse import SILENT_SECONDS
from tracking.records import HEARTBEAT, NO_TRAINING, PROGRESS, last_word
from workspace import RunFolder


def report(experiment: str, uri: str, look: Any, store: Any) -> dict[str, Any]:
    """What `status.py --experiment NAME --json` prints; `look` answers questions on `store`, as tracking.peek does.

    An experiment without runs is a WorkspaceError that names the others; where there are none either, `runs` is empty.
    """
    answer = look.experiment_runs(store, experiment)
    stored = {run["run_id"]: run for run in answer or ()}
    states = {folder.run_id: folder.state() for folder in workspace.run_folders()}
    here = {run_id: state for run_id, state in states.items() if state.get("experiment") == experiment}
    left_out = {run_id for run_id, run in stored.items() if run["deleted"] or run["tags"].get("kind") in NO_TRAINING}
    in_other_stores = {run_id for run_id in here.keys() - stored.keys() if here[run_id].get("tracking_uri") != uri}
    wanted = (here.keys() | stored.keys()) - left_out - in_other_stores
    runs = [described(run_id, here.get(run_id), stored.get(run_id)) for run_id in wanted]
    runs.sort(key=lambda run: (run["started"], run["run_id"]), reverse=True)
    has_answered = answer is not None or is_new(uri)
    notes = [] if has_answered else [f"{uri} has not answered within 0.3 s. Ask longer: --remote"]
    for other, count in Counter(here[run_id].get("tracking_uri") for run_id in in_other_stores).items():
        command = f"MLFLOW_TRACKING_URI={other} python status.py --experiment {shlex.quote(experiment)}"
        notes.append(f"{count} trained here into another store: {command}")
    if not runs:
        if not has_answered:
            raise StoreError("\n".join([f"No run of experiment {experiment!r} was trained here", *notes]))
        names = {state.get("experiment") for state in states.values()} | {*(look.experiment_names(store) or ())}
        if names := sorted(names - {experiment, "Default", None}):  # mlflow's own, in every store
            notes.insert(0, f"There are: {', '.join(names)}")
        if notes:
            raise workspace.WorkspaceError("\n".join([f"No run in experiment {experiment!r} of {uri}", *notes]))
    return {
        "experiment": experiment,
        "tracking_uri": uri,
        "store_answered": has_answered,
        "runs": runs,
        "groups": groups(runs),
        "notes": notes,
        "next": next_command(experiment, runs),
    }


def is_new(uri: str) -> bool:
    """Whether the store is a database that is not there yet: nothing was trained."""
    database = sqlite_path(uri)
    return database is not None and not database.exists()


# -- one run


def described(run_id: str, state: dict[str, Any] | None, stored: dict[str, Any] | None) -> dict[str, Any]:
    """A run as its folder here or the store tells it: whichever heard of it last."""
    folder = RunFolder(run_id)
    here, there = state and told_here(state), stored and told_by_store(stored)
    known = there if not here or (there and went_on_elsewhere(there, here)) else here
    now, status = time.time(), stored and stored["status"]
    # Of a run of this folder the lock tells whether it lives, of another's only how long ago its heart beat.
    silence = now - known["updated"] if known is there and status == "RUNNING" else None
    has_pulse = silence is not None and silence < SILENT_SECONDS
    resumable = False
    if folder.is_alive() or has_pulse:
        run_state, note = "running", f"on {known['host']}" if has_pulse and known["host"] else ""
    else:
        run_state = known["ended"]
        has_saved = folder.can_resume() or (there is not None and there["epoch"] is not None)
        resumable = has_saved and run_state != "finished"
        note = why(known, status, silence, resumable)
    left = known["seconds_left"] if run_state == "running" else None
    tags = {**(here["tags"] if here else {}), **(there["tags"] if there else {})}
    return {
        "run_id": run_id,
        "run_name": (there or here)["run_name"],
        "group": tags.get("group"),
        "state": run_state,
        "note": note,
        "resumable": resumable,
        "run_status": status,
        **{key: known[key] for key in ("epoch", "epochs", "step", "total_steps", "steps_per_epoch", "best")},
        "seconds_left": None if left is None else max(0.0, left - (now - known["updated"])),
        **{key: known[key] for key in ("seconds", "updated", "host")},
        "started": (there or here)["started"],
        "tags": tags,
    }


def went_on_elsewhere(there: dict[str, Any], here: dict[str, Any]) -> bool:
    return there["process"] not in (here["process"], (None, None)) and there["updated"] > here["updated"]


def told_here(state: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run."""
    config = state.get("config") or {}
    group = {"group": config["group"]} if config.get("group") else {}
    return told(state) | {
        "run_name": state.get("run_name"),
        "tags": group | dict(pair.split("=", 1) for pair in config.get("tag", ())),
        "ended": state["state"] if state.get("state") in ("finished", "failed") else "interrupted",
        "reason": state.get("error"),
        "started": state.get("started", 0.0),
        "updated": state.get("updated", 0.0),
    }


def told_by_store(run: dict[str, Any]) -> dict[str, Any]:
    """What the store says of a run: where it lives, what that was half a minute ago."""
    tags, said = run["tags"], last_word(run["tags"])
    return told(said) | {
        "run_name": run["name"],
        "tags": {key: value for key, value in tags.items() if key not in (HEARTBEAT, PROGRESS)},
        "ended": {"FINISHED": "finished", "FAILED": "failed"}.get(run["status"], "interrupted"),
        "reason": tags.get("ended_by"),
        "started": (run["start_time"] or 0) / 1000,
        "updated": max(said.get("time") or 0, run["end_time"] or 0, run["start_time"] or 0) / 1000,
    }


def told(position: dict[str, Any]) -> dict[str, Any]:
    """How far a run is, in the words that run.json and the tags share."""
    keys = ("epochs", "step", "total_steps", "steps_per_epoch", "seconds", "seconds_left", "host")
    best = position.get("best")
    return {
        **{key: position.get(key) for key in keys},
        "epoch": workspace.finished_epoch(position.get("epoch")),
        "best": best and workspace.best_told(best),
        "process": (position.get("host"), position.get("pid")),
    }


def why(known: dict[str, Any], status: str | None, silence: float | None, resumable: bool) -> str:
    """What is to be known of a run that does not train: why it ended, and whether it can go on."""
    if known["ended"] == "finished":
        return "stopped early" if (known["step"] or 0) < (known["total_steps"] or 0) else ""
    reason = (known["reason"] or "for a reason not recorded").splitlines()[0].rstrip(".")
    reasons = [reason] if known["ended"] == "failed" else []
    if silence is not None:
        reasons.append(f"no sign of life for {about(silence)}: dead, or cut off from the store")
    elif status == "RUNNING":
        reasons.append("its process died, which the store has not heard yet")
    return "; ".join([*reasons, "resumable" if resumable else "nothing saved"])


# -- all of them


def groups(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, best mean first: of their finished runs the mean and sample standard deviation of the best values.

    Where the runs of a group chose their bests by several metrics, those of the commonest count.
    """
    names = {run["group"] for run in runs if run["group"]}
    found = [group(name, [run for run in runs if run["group"] == name]) for name in sorted(names)]
    return sorted(found, key=lambda one: -1.0 if one["mean"] is None else one["mean"], reverse=True)


def group(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [run for run in runs if run["state"] == "finished" and run["best"]]
    metric = next((metric for metric, _ in Counter(run["best"]["metric"] for run in scored).most_common(1)), None)
    compared = [run for run in scored if run["best"]["metric"] == metric]
    values = [run["best"]["value"] for run in compared]
    best = max(compared, key=lambda run: run["best"]["value"], default=None)
    return {
        "group": name,
        "runs": len(runs),
        "finished": len(values),
        "metric": metric,
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
        "best": best and {"run_id": best["run_id"], "run_name": best["run_name"], "value": best["best"]["value"]},
    }


def next_command(experiment: str, runs: list[dict[str, Any]]) -> str:
    """The command to type now: what stopped goes on before results are taken."""
    named = shlex.quote(experiment)
    stopped = [run["run_id"] for run in runs if run["state"] == "interrupted" and run["resumable"]]
    if stopped:
        return f"python train.py --resume {stopped[0]}"
    if any(run["state"] == "running" for run in runs):
        return f"python status.py --experiment {named}"
    scored = [run["best"] for run in runs if run["best"]]
    if scored:
        return f"python restore.py best --experiment {named}{workspace.choosing(scored[0])}"
    failed = [run["run_id"] for run in runs if run["resumable"]]
    return f"python train.py --resume {failed[0]}" if failed else f"python train.py --experiment {named}"


# -- for people


def text(found: dict[str, Any]) -> str:
    """The report as a table."""
    runs, uri = found["runs"], found["tracking_uri"]
    if not runs:
        return f"{found['experiment']}: nothing was trained here yet\nnext: {found['next']}"
    counted = ", ".join(f"{count} {state}" for state, count in Counter(run["state"] for run in runs).most_common())
    lines = [f"{found['experiment']} in {uri}: {counted}"]
    lines += table([("run", "id", "group", "state", "epoch", "best", "time", ""), *map(row, runs)])
    lines += [f"note: {note}" for note in found["notes"]]
    if found["groups"]:
        lines.append("groups, by the best values of their finished runs (mean ± sample standard deviation):")
        lines += table([group_row(one) for one in found["groups"]])
    return "\n".join([*lines, f"next: {found['next']}"])


def row(run: dict[str, Any]) -> tuple[str, ...]:
    best, left, seconds = run["best"], run["seconds_left"], run["seconds"]
    score = f"{best['metric']} {best['value']:.4f} in {best['name']}" if best else "-"
    took = "-" if seconds is None else duration(seconds)
    if run["state"] == "running":
        took = "-" if left is None else f"{about(left)} left"
    name = run["run_name"] or "-"
    return name, run["run_id"][:8], run["group"] or "-", run["state"], how_far(run), score, took, run["note"]


def how_far(run: dict[str, Any]) -> str:
    """By epochs or, before the first ends and where --max-steps decides, by steps."""
    epochs, steps, total = run["epochs"], run["step"], run["total_steps"]
    if total is None:
        return "-"
    if run["epoch"] is None or total != epochs * run["steps_per_epoch"]:
        return f"step {steps or 0} of {total}"
    return f"{run['epoch'] + 1} of {epochs}"


def group_row(one: dict[str, Any]) -> tuple[str, ...]:
    count = f"{one['runs']} run{'s' if one['runs'] > 1 else ''}, {one['finished']} finished"
    if one["mean"] is None:
        return one["group"], count, "", ""
    spread = "" if one["standard_deviation"] is None else f" ± {one['standard_deviation']:.4f}"
    best = one["best"]
    score = f"{one['metric']} {one['mean']:.4f}{spread}"
    return one["group"], count, score, f"best {best['value']:.4f}: {best['run_name']} ({best['run_id'][:8]})"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, one, widths)).rstrip() for one in rows]
