"""What a run's result came from, written into the run: options, code, machine, command and data."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import data_report
import metrics
from changes import CONTENTS, DATA_DIFFER, changed_tag, contents_since
from live_run import LiveRun
from models.registry import recipes_of
from prepare import Job
from tracking import environment
from tracking.records import FACTS
from tracking.run import TrackedRun

LONGEST_TAG = 1000  # of MLflow's 8000 characters: what a person reads in a table
UNTRACKED = ("resume", "classes", "tag", "strict", "dry_run", "allow_change")  # options that say nothing of the result


def log_beginning(run: LiveRun, job: Job) -> None:
    """Parameters, code, environment, command line and data, into the run's journal."""
    tracked = run.tracked
    run.describe("training")
    tracked.tags({"keep": job.config.keep, "disk_forecast": str(job.forecast)})
    if job.resumed:
        step = job.position.step
        tracked.tags(job.config.tags | {"resumed_at_step": str(step), "resumed_by": environment.command_line()})
        said = "\n".join([environment.command_line(), *job.notes])
        tracked.text(said + "\n", f"code/resumed-at-step-{step:06d}.txt")
        log_code(tracked, job, f"code/resumed-at-step-{step:06d}")
        if job.notes:  # parameters stay as they were logged; a tag can be a column too
            notes = "; ".join(note.removeprefix("note: ") for note in job.notes)
            tracked.tags({changed_tag(step): notes[:LONGEST_TAG]})
        if job.changed:
            log_configuration(tracked, job)
        if any(note.startswith(DATA_DIFFER) for note in job.notes):
            tracked.text(json.dumps(job.data.contents, indent=1), contents_since(job.data.fingerprint))
        return
    machine = environment.environment()
    on_cpu = f"{machine['cpus']} cores of {machine['cpu']}"
    tracked.tags({"hardware": on_cpu if job.device.type == "cpu" else torch.cuda.get_device_name(job.device)})
    config, built = job.info.config, job.info.architecture["kwargs"]
    tracked.params(
        {name: short(value) for name, value in config.items() if value is not None and name not in UNTRACKED}
    )
    tracked.params(
        {f"architecture/{name}": value for name, value in built.items() if value not in (config.get(name), [])}
    )
    tracked.params({"defaults_chosen": ", ".join(sorted(job.defaults)), "classes": ", ".join(job.data.classes)})
    tracked.text(environment.command_line() + "\n", "code/command.txt")
    log_configuration(tracked, job)
    tracked.text(json.dumps(machine, indent=1), "code/environment.json")
    tracked.text("\n".join(job.notes) + "\n", "code/starting_weights.txt")
    log_code(tracked, job, "code")
    if job.config.augmentation.startswith("{"):
        tracked.text(job.config.augmentation, "augmentation.json")
    tracked.tags({f"mlflow.source.git.{key}": job.code[key] for key in ("commit", "branch") if job.code[key]})
    for split, context in (("train", "training"), ("val", "validation")):
        name = f"{job.data.name}-{split}"
        tracked.dataset(name, job.data.split_fingerprint(split), str(job.data.root or "generated"), context, {})
    with tempfile.TemporaryDirectory(prefix="data-") as folder:
        for path in data_report.write(job.data, data_report.report(job.data), Path(folder)):
            tracked.file(path, "data")
    tracked.params({"split_rule": job.data.split_rule})
    tracked.text(json.dumps(job.data.contents, indent=1), CONTENTS)
    run.log_detections("ground_truth_val", metrics.coco_ground_truth(job.data.records("val"), job.data.classes))


def log_configuration(tracked: TrackedRun, job: Job) -> None:
    """What the run goes by now, for whoever repeats it or resumes it elsewhere."""
    tracked.text(json.dumps(job.info.config, indent=1), "config.json")
    tracked.text(json.dumps(job.info.in_checkpoint(), indent=1), FACTS)


def log_code(tracked: TrackedRun, job: Job, folder: str) -> None:
    """What is not in the commit, and the recipes that the model is made by: without git they are nowhere else."""
    if job.code["diff"]:
        tracked.text(job.code["diff"], f"{folder}/uncommitted.diff")
    for name, text in job.code["untracked"].items():
        tracked.text(text, f"{folder}/untracked/{name}")
    for file in recipes_of(job.config.model):
        tracked.text(file.read_text(encoding="utf-8"), f"{folder}/recipes/{file.name}")


def short(value: Any) -> Any:
    """A parameter as a column can show it: of a whole pipeline the hash, by which runs are compared."""
    if isinstance(value, str) and value.startswith("{"):
        return f"augmentation.json {hashlib.sha256(value.encode()).hexdigest()[:8]}"
    return value
