"""Everything of a training run before its first step: data, model, starting weights, optimizer, where it continues."""

import multiprocessing
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import torch
from torch.optim.swa_utils import AveragedModel

import amounts
import changes
import commandline
import config as options
import continuing
import disk
import engine
import fetching
import metrics
import resuming
import workspace
from building import build_architecture, build_model, optimization
from config import TrainConfig
from data.cache import ImageCache, available_memory
from data.dataset import DetectionDataset
from data.detection_data import DetectionData
from data.open import open_data
from data.sampling import EpochBatches
from data.told import leaves_out
from data.transforms import build_transform, read_augmentation
from data_options import PATHS
from live_run import RunInfo
from models.record import FORMAT
from progress import say
from resuming import Position, Start
from retention import newest_and_best, parse_keep
from tracking import environment
from tracking.journal import Journal
from tracking.metric_names import metrics_meant
from tracking.store import Store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of the run in optimizer steps."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int  # of all epochs: the learning-rate schedule follows these
    last_step: int  # where this run ends: total_steps, or --max-steps

    @property
    def log_every(self) -> int:
        return max(1, self.steps_per_epoch // 250)  # MLflow draws no more points than that well


class Parts(NamedTuple):
    """What has a state that a checkpoint holds."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    average: AveragedModel | None  # the weights' moving average, under --ema


@dataclass(kw_only=True)
class Job:
    """A training run, ready for its next step."""

    config: TrainConfig
    defaults: dict[str, Any]  # what the user left open and we chose
    store: Store
    info: RunInfo
    data: DetectionData
    dataset: DetectionDataset  # the training split, augmented
    val_cache: ImageCache | None  # of decoded images of the validation split
    order: EpochBatches
    plan: Plan
    device: torch.device
    amp: torch.dtype | None
    model: torch.nn.Module
    average: AveragedModel | None  # the weights' moving average, under --ema
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    position: Position
    forecast: disk.Forecast
    code: dict[str, Any]
    resumed: bool
    changed: dict[str, tuple[Any, Any]]  # options of a resumed run: what each was, and is now
    notes: list[str]  # how the weights were loaded, what differs since the run began

    @property
    def scored_model(self) -> torch.nn.Module:
        """The model with the weights that are validated and kept."""
        return self.model if self.average is None else self.average.module


def prepare(start: Start) -> Job:
    """Check and build everything; the MLflow run is created last, so that bad input leaves nothing half-made."""
    store, run_id, defaults = start.store, start.run_id, dict(start.defaults)
    config = replace(start.config, augmentation=read_augmentation(start.config.augmentation))
    device = engine.choose_device(config.device)
    amp = engine.amp_dtype(config.amp, device)
    if config.compile:
        engine.require_compiler(device)
    cache_limit = 0 if config.cache == "none" else amounts.cache_bytes(config.cache, available_memory())
    transform = build_transform(config.augmentation)
    build_architecture(config, num_classes=2)  # a wrong word is told before the data are read
    data = usable_data(start, config)
    code = environment.code_state(workspace.ROOT)
    model, architecture, notes = build_model(config, data.classes, store, fresh=run_id is None and start.file is None)
    if engine.emulates(amp, device):
        notes.append(f"note: this {device.type} has no instructions for --amp {config.amp}: it will be slower than off")
    if config.compile:
        notes.append("note: --compile: the first step of each shape of batches compiles, which may take minutes")
    model.to(device)
    average = None if config.ema is None else engine.averaged(model, config.ema)
    order = EpochBatches(data.records("train"), batch_size=config.batch_size, seed=config.seed)
    plan = make_plan(config, batches_per_epoch=len(order.batches(0)))
    if "warmup_steps" in defaults:  # at most one epoch, unless the user says otherwise
        defaults["warmup_steps"] = min(config.warmup_steps, plan.steps_per_epoch)
        config = replace(config, warmup_steps=defaults["warmup_steps"])
    if config.from_run and run_id is None:
        config = replace(config, from_run=resuming.run_id_of(store, config.from_run, config.experiment))
        before, tags = resuming.stored_facts(store, config.from_run), store.run(config.from_run).tags
        notes += changes.repetition(before, tags, config, data, code, threads=torch.get_num_threads(), store=store)
    if defaults:
        say("chosen by default: " + ", ".join(f"{name} {value}" for name, value in sorted(defaults.items())))
    optimizer, schedule = optimization(
        config, model, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    parts = Parts(model, optimizer, schedule, scaler, average)
    changed = changes.changed_options(start.facts, config) if run_id else {}
    position, origin, told = continued(start, config, parts, plan, data, code, changed)
    notes += told
    for note in notes:
        say(note)
    forecast = disk_forecast(config, store, position, plan, checkpoint_bytes(model, average, optimizer, config))
    require_budget(config, forecast, store, run_id, position)
    train_cache, val_cache = image_caches(data, cache_limit, workers=config.workers)
    left_open = tuple(sorted(defaults)) if run_id is None else tuple(start.facts.get("defaults", ()))
    info = run_info(config, store, run_id, data, architecture, plan, code, left_open, origin)
    return Job(
        config=config,
        defaults=defaults,
        store=store,
        info=info,
        data=data,
        dataset=DetectionDataset(
            data.records("train"), seed=config.seed, transform=transform, drop_crowd=True, cache=train_cache
        ),
        val_cache=val_cache,
        order=order,
        plan=plan,
        device=device,
        amp=amp,
        **parts._asdict(),
        position=position,
        forecast=forecast,
        code=code,
        resumed=run_id is not None,
        changed=changed,
        notes=notes,
    )


def usable_data(start: Start, config: TrainConfig) -> DetectionData:
    """The data, their defects said; an error where a run that goes on had others, or there is nothing to score."""
    data = open_data(config.data, config)
    say("\n".join(data.describe()))
    if leaves_out(data.all_defects):
        command = f"python check_data.py {shlex.quote(config.data)} --json"
        say(f"  every defect by name: {command}, and data/report.md of the run")
    require_same_data(start, data)
    require_metric(config.best_metric, data)
    return data


def continued(
    start: Start,
    config: TrainConfig,
    parts: Parts,
    plan: Plan,
    data: DetectionData,
    code: dict[str, Any],
    changed: dict[str, tuple[Any, Any]],
) -> tuple[Position, dict[str, str], list[str]]:
    """Put the run of --resume, or the file, into the parts: where that is, tags of where it comes from, and notes."""
    if start.run_id is None and start.file is None:
        return Position(), {}, []
    if start.run_id:
        saved, source = resuming.resumable_checkpoint(start.store, start.run_id)
        fetching.require_same_classes(saved, data.classes)
        require_same_steps(saved, plan, data, start.store)
        position, notes, origin = resuming.restore(saved, *parts), changes.told(changed), {}
        if changed.keys() & resuming.OF_OPTIMIZATION:
            resuming.adopt(config, parts.optimizer, parts.schedule)
        say(resuming.receipt(saved, position, source))
    else:
        saved = continuing.read(start.file, config)
        fetching.require_same_classes(saved, data.classes)
        length = {"steps_per_epoch": plan.steps_per_epoch, "last_step": plan.last_step}
        position, notes = continuing.restore(saved, start.file, *parts, **length)
        origin = continuing.origin(saved, start.file)
    engine.lay_out_as_parameters(parts.optimizer)
    if start.run_id or "continued_from_run" in origin:  # of another pipeline's file no more is known
        notes += changes.differences(saved, data, code, threads=torch.get_num_threads(), store=start.store)
    return position, origin, notes


def image_caches(data: DetectionData, limit: int, *, workers: int) -> tuple[ImageCache | None, ImageCache | None]:
    """Of train and, in what that leaves of the limit, of val; says how much of both there will be. None without one."""
    if limit and workers and multiprocessing.get_start_method() != "fork":
        say("cache: none: loader workers are not forked here, and share no memory. --workers 0 has one")
        limit = 0
    if not limit:
        return None, None
    train = ImageCache(data.records("train"), limit)
    val = ImageCache(data.records("val"), limit - train.bytes)
    held, wanted, size = train.held + val.held, train.wanted + val.wanted, train.bytes + val.bytes
    if not wanted:
        say("cache: nothing to hold: these images are drawn, not read")
    elif held == wanted:
        say(f"cache: {held:,} of {wanted:,} images, {disk.in_words(size)} of memory")
    else:
        say(f"cache: {held:,} of {wanted:,} images fit into {disk.in_words(limit)}")
    return train, val


def require_same_data(start: Start, data: DetectionData) -> None:
    """ConfigError when a run that continues is given other paths and the data there are others."""
    stored = start.facts["config"] if start.run_id else {}
    moved = [name for name in ("data", *PATHS) if name in stored and getattr(start.config, name) != stored[name]]
    if moved and data.fingerprint != start.facts["dataset"]["fingerprint"]:
        given = " ".join(f"{options.flag(name)} {getattr(start.config, name)}" for name in moved)
        raise commandline.ConfigError(
            f"A resumed run keeps its data, and those of {given} differ from those of "
            f"{', '.join(str(stored[name]) for name in moved)}: {changes.of_data(start.facts, data, start.store)}"
        )


def require_same_steps(saved: dict[str, Any], plan: Plan, data: DetectionData, store: Store) -> None:
    """WorkspaceError when the position of the checkpoint means nothing on today's data, or lies past the end."""
    before = saved.get("steps_per_epoch", plan.steps_per_epoch)
    if before != plan.steps_per_epoch:
        val, run_id = data.contents["val"], saved["run_id"]
        known = [changes.contents_of(store, run_id, each) for each in (None, saved["dataset"].get("fingerprint"))]
        seen = changes.trained_on(val, *known)
        leak = f"{seen.count} of val's {len(val)} images were trained on; {changes.keeping_split(store, run_id)}"
        raise workspace.WorkspaceError(
            f"An epoch had {before} steps and has {plan.steps_per_epoch} with today's data: the run cannot continue "
            f"({changes.of_data(saved, data, store)}). Put the data back as they were, or "
            f"start a new one from its weights: python train.py --weights {run_id} --data …"
            + (f" ({leak})" if seen.names else "")
        )
    if saved["step"] > plan.last_step:
        raise workspace.WorkspaceError(f"The run is at step {saved['step']} already, past step {plan.last_step}")


def require_metric(name: str, data: DetectionData) -> None:
    """ConfigError before training when validation will never log `name`."""
    for split in ("train", "val"):
        if not any(len(record.boxes) for record in data.records(split)):
            raise commandline.ConfigError(f"No image of {split!r} has a box: there is nothing to learn or to score")
    truth = metrics.coco_ground_truth(data.records("val"), data.classes)
    scores = validation_metrics(metrics.coco_metrics(truth, []))
    if name not in scores:
        told = metrics_meant(name, scores)
        raise commandline.ConfigError(f"--best-metric {name} is not logged here; {told}")


def validation_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """COCO metrics under the keys they have in MLflow: val/AP, val/AP50 …, val/AP/CLASS."""
    overall = {f"val/{name}": value for name, value in scores["metrics"].items()}
    return overall | {f"val/AP/{name}": values["AP"] for name, values in scores["per_class"].items()}


def make_plan(config: TrainConfig, *, batches_per_epoch: int) -> Plan:
    steps = -(-batches_per_epoch // config.accumulate)  # the last step of an epoch takes the batches that are left
    total = config.epochs * steps
    last = min(total, config.max_steps or total)
    return Plan(batches_per_epoch=batches_per_epoch, steps_per_epoch=steps, total_steps=total, last_step=last)


def checkpoint_bytes(
    model: torch.nn.Module, average: AveragedModel | None, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> int:
    """The size of a checkpoint of this run, before the optimizer has a state to be measured."""

    def size(tensors: Iterable[torch.Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    weights = size(model.state_dict().values()) * (1 if average is None else 2)
    moments = {"sgd": 1 if config.momentum else 0, "adamw": 2}[config.optimizer]
    return weights + moments * size(one for group in optimizer.param_groups for one in group["params"])


def disk_forecast(
    config: TrainConfig, store: Store, position: Position, plan: Plan, checkpoint_bytes: int
) -> disk.Forecast:
    """The space that what is left of the run needs."""
    names = [f"epoch-{epoch:03d}" for epoch in range(position.epoch + 1, plan.last_step // plan.steps_per_epoch)]
    names += [f"step-{plan.last_step:06d}"] if plan.last_step % plan.steps_per_epoch else []
    return disk.Forecast(
        checkpoint_bytes=checkpoint_bytes,
        names=tuple(names) if position.step < plan.last_step else (),
        keep=config.keep,
        artifact_root=store.artifact_root,
        publishes=config.publish != "never",
    )


def require_budget(
    config: TrainConfig, forecast: disk.Forecast, store: Store, run_id: str | None, position: Position
) -> None:
    """WorkspaceError (exit code 5) when what is left of the run will not fit into its --disk-budget."""
    if config.disk_budget is None:
        return
    limit, held = amounts.parse_size(config.disk_budget), 0
    if run_id and store.artifact_root:  # of what the run has, what it may keep
        kept = Journal(workspace.RunFolder(run_id).path).kept_checkpoints()
        gone = parse_keep(config.keep).superseded(kept, stay=newest_and_best(kept, position.best))
        held = sum(one.size_bytes for name, one in kept.items() if name not in gone)
    if message := forecast.over(limit, held):
        raise workspace.WorkspaceError(message, exit_code=5)


def run_info(
    config: TrainConfig,
    store: Store,
    run_id: str | None,
    data: DetectionData,
    architecture: dict,
    plan: Plan,
    code: dict,
    defaults: tuple[str, ...],
    origin: dict[str, str],
) -> RunInfo:
    """The run's lasting facts; creates the MLflow run unless one is resumed, or this is a rehearsal."""
    if config.dry_run:
        run_id, run_name = "dry-run", config.run_name or "dry-run"
    elif run_id is None:
        workspace.require_writable(workspace.RUNS, mend="Make it writable")
        run_id, run_name = store.create_run(
            config.experiment, config.run_name or made_up_name(config, data), config.tags | origin
        )
    else:
        run_name = store.run(run_id).name
    return RunInfo(
        run_id=run_id,
        run_name=run_name,
        experiment=config.experiment,
        tracking_uri=store.uri,
        config=options.to_plain(config),
        classes=data.classes,
        architecture=architecture,
        dataset={
            "name": data.name,
            "fingerprint": data.fingerprint,
            "split_fingerprints": {split: data.split_fingerprint(split) for split in data.splits},
        },
        evaluation={
            "batch_size": config.batch_size,
            "amp": config.amp,
            "threads": torch.get_num_threads(),
            "cpu": environment.cpu_model(),
            "averaged": config.ema is not None,
        },
        epochs=config.epochs,
        total_steps=plan.last_step,
        steps_per_epoch=plan.steps_per_epoch,
        code_version=code["commit"],
        code_digest=environment.code_digest(code),
        packages=environment.decisive_packages(),
        defaults=defaults,
    )


def made_up_name(config: TrainConfig, data: DetectionData) -> str:
    """What a run without --run-name is called: resnet10t-generated-seed0-1124-204512, the last being date and time."""
    model = config.model.rpartition("/")[2].removeprefix("fasterrcnn_")
    return f"{model}-{data.name}-seed{config.seed}-{datetime.now():%m%d-%H%M%S}"


def snapshot(job: Job) -> dict[str, Any]:
    """The whole state of the run as plain data: DESIGN of the checkpoint file, see models/faster_rcnn/README.md."""
    raw = {} if job.average is None else {"raw_model_state_dict": job.model.state_dict()}
    return {
        "format": FORMAT,
        **asdict(job.position),
        **job.info.in_checkpoint(),
        "model_state_dict": job.scored_model.state_dict(),
        **raw,
        "optimizer_state_dict": job.optimizer.state_dict(),
        "scheduler_state_dict": job.schedule.state_dict(),
        "scaler_state_dict": job.scaler.state_dict(),
    }
