"""What a run's result came from, written into the run: options, code, machine, command and data."""

import json

import torch

import metrics
from live_run import LiveRun
from prepare import Job
from tracking import environment


def log_beginning(run: LiveRun, job: Job) -> None:
    """Parameters, code, environment, command line and data, into the run's journal."""
    tracked = run.tracked
    if job.resumed:
        about = {"resumed_at_step": str(job.position.step), "resumed_by": environment.command_line()}
        tracked.tags(job.config.tags | about)
        return
    machine = environment.environment()
    on_cpu = f"{machine['cpus']} cores of {machine['cpu']}"
    tracked.tags({"hardware": on_cpu if job.device.type == "cpu" else torch.cuda.get_device_name(job.device)})
    tracked.params({name: value for name, value in job.info.config.items() if name not in ("resume", "tag")})
    tracked.params({f"architecture/{name}": value for name, value in job.info.architecture["kwargs"].items()})
    tracked.params({"defaults_chosen": ", ".join(sorted(job.defaults)), "classes": ", ".join(job.data.classes)})
    tracked.text(environment.command_line() + "\n", "code/command.txt")
    tracked.text(json.dumps(job.info.config, indent=1), "config.json")
    tracked.text(json.dumps(machine, indent=1), "code/environment.json")
    tracked.text("\n".join(job.notes) + "\n", "code/starting_weights.txt")
    if job.code["diff"]:
        tracked.text(job.code["diff"], "code/uncommitted.diff")
    for name, text in job.code["untracked"].items():
        tracked.text(text, f"code/untracked/{name}")
    tracked.tags({f"mlflow.source.git.{key}": job.code[key] for key in ("commit", "branch") if job.code[key]})
    for split, context in (("train", "training"), ("val", "validation")):
        name = f"{job.data.name}-{split}"
        tracked.dataset(name, job.data.split_fingerprint(split), str(job.data.root or "generated"), context, {})
    tracked.text("\n".join([*job.data.describe(), *map(str, job.data.defects)]) + "\n", "data/report.txt")
    run.log_detections("ground_truth_val", metrics.coco_ground_truth(job.data.records("val"), job.data.classes))
