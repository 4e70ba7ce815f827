"""Everything of a training run before its first step: data, model, starting weights, optimizer, where it continues."""

import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import config as options
import engine
import metrics
import workspace
from config import TrainConfig
from data.dataset import DetectionDataset
from data.open import open_data
from data.records import DetectionData
from data.sampling import EpochBatches
from data.transforms import build_transform
from live_run import RunInfo
from models import checkpoint as checkpoints
from models import detector, weights
from models.record import FORMAT
from progress import say
from resuming import Position, differences, receipt, restore, resumable_checkpoint, stored_config
from tracking import environment
from tracking.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of the run in optimizer steps."""

    steps_per_epoch: int
    total_steps: int  # of all epochs: the learning-rate schedule follows these
    last_step: int  # where this run ends: total_steps, or --max-steps

    @property
    def log_every(self) -> int:
        return max(1, self.steps_per_epoch // 250)  # MLflow draws no more points than that well


@dataclass(kw_only=True)
class Job:
    """A training run, ready for its next step."""

    config: TrainConfig
    defaults: dict[str, Any]  # what the user left open and we chose
    store: Store
    info: RunInfo
    data: DetectionData
    dataset: DetectionDataset  # the training split, augmented
    order: EpochBatches
    plan: Plan
    device: torch.device
    amp: torch.dtype | None
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    position: Position
    code: dict[str, Any]
    resumed: bool
    notes: list[str]  # how the weights were loaded, what differs since the run began


def prepare(config: TrainConfig) -> Job:
    """Check and build everything; the MLflow run is created last, so that bad input leaves nothing half-made."""
    store = open_store(workspace.ROOT)
    say(f"tracking: {store.uri}")
    for dead in workspace.end_dead_runs(store):
        say(f"run {dead.run_id} had died; it is marked KILLED; {dead.continuation()}")
    config = replace(config, data=options.absolute(config.data))
    run_id = (workspace.local_run(config.resume) or store.find_run(config.resume)) if config.resume else None
    if run_id:
        workspace.RunFolder(run_id).require_idle()
        config, defaults = options.for_resume(stored_config(store, run_id), config), {}
    else:
        config, defaults = options.resolved(config, cores=os.cpu_count() or 1)
    device = engine.choose_device(config.device)
    transform = build_transform(config.augmentation)
    build_architecture(config, num_classes=2)  # a wrong word is told before the data are read
    data = open_data(config.data)
    say("\n".join([*data.describe(), *named(data.defects)]))
    require_metric(config.best_metric, data)
    model, architecture, notes = build_model(config, data.classes, store, fresh=run_id is None)
    amp = engine.amp_dtype(config.amp, device)
    engine.place(model, device, amp)
    order = EpochBatches(data.records("train"), batch_size=config.batch_size, seed=config.seed)
    plan = make_plan(config, steps_per_epoch=len(order.batches(0)))
    if "warmup_steps" in defaults:  # at most one epoch, unless the user says otherwise
        defaults["warmup_steps"] = min(config.warmup_steps, plan.steps_per_epoch)
        config = replace(config, warmup_steps=defaults["warmup_steps"])
    if defaults:
        say("chosen by default: " + ", ".join(f"{name} {value}" for name, value in sorted(defaults.items())))
    optimizer, schedule = optimization(config, plan, model)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    position, code = Position(), environment.code_state(workspace.ROOT)
    if run_id:
        saved = resumable_checkpoint(store, run_id)
        workspace.require_same_classes(saved, data.classes)
        require_same_steps(saved, plan)
        position = restore(saved, model, optimizer, schedule, scaler)
        notes += differences(saved, data, code, threads=torch.get_num_threads())
        say(receipt(saved, position))
    for note in notes:
        say(note)
    info = run_info(config, store, run_id, data, architecture, plan, code)
    return Job(
        config=config,
        defaults=defaults,
        store=store,
        info=info,
        data=data,
        dataset=DetectionDataset(data.records("train"), seed=config.seed, transform=transform, drop_crowd=True),
        order=order,
        plan=plan,
        device=device,
        amp=amp,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        scaler=scaler,
        position=position,
        code=code,
        resumed=run_id is not None,
        notes=notes,
    )


def require_same_steps(saved: dict[str, Any], plan: Plan) -> None:
    """WorkspaceError when the position of the checkpoint means nothing on today's data, or lies past the end."""
    before = saved.get("steps_per_epoch", plan.steps_per_epoch)
    if before != plan.steps_per_epoch:
        raise workspace.WorkspaceError(
            f"An epoch had {before} steps and has {plan.steps_per_epoch} with today's data: the run cannot continue. "
            f"Start a new one from its weights: python train.py --weights {saved['run_id']} --data …"
        )
    if saved["step"] > plan.last_step:
        raise workspace.WorkspaceError(f"The run is at step {saved['step']} already, past step {plan.last_step}")


def named(defects: list[Any], most: int = 10) -> list[str]:
    """The first defects by file and object, and how many more there are."""
    more = [f"  … and {len(defects) - most} more: data/report.txt of the run"] if len(defects) > most else []
    return [f"  {defect}" for defect in defects[:most]] + more


def require_metric(name: str, data: DetectionData) -> None:
    """ConfigError before training when validation will never log `name`."""
    for split in ("train", "val"):
        if not any(len(record.boxes) for record in data.records(split)):
            raise options.ConfigError(f"No image of {split!r} has a box: there is nothing to learn or to score")
    truth = metrics.coco_ground_truth(data.records("val"), data.classes)
    scores = validation_metrics(metrics.coco_metrics(truth, []))
    if name not in scores:
        raise options.ConfigError(f"--best-metric {name} is not logged here; there are: {', '.join(sorted(scores))}")


def validation_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """COCO metrics under the keys they have in MLflow: val/AP, val/AP50 …, val/AP/CLASS."""
    overall = {f"val/{name}": value for name, value in scores["metrics"].items()}
    return overall | {f"val/AP/{name}": values["AP"] for name, values in scores["per_class"].items()}


def build_architecture(config: TrainConfig, *, num_classes: int) -> dict[str, Any]:
    """The detector's builder and keyword arguments; ModelError names a wrong one."""
    # torchvision's COCO weights for this model were trained with an eps of zero; ImageNet's were not.
    return detector.resolve_architecture(
        config.model,
        num_classes=num_classes,
        trainable_layers=config.trainable_layers,
        norm=config.norm,
        norm_eps=1e-5 if config.weights == "backbone" and config.model == "fasterrcnn_resnet50_fpn" else None,
        image_min_size=config.image_min_size,
        image_max_size=config.image_max_size,
        anchor_sizes=None if config.anchor_sizes is None else list(config.anchor_sizes),
        fpn_channels=config.fpn_channels,
        roi_samples=config.roi_samples,
        proposals=config.proposals,
        score_threshold=config.score_threshold,
    )


def build_model(
    config: TrainConfig, classes: tuple[str, ...], store: Store, *, fresh: bool
) -> tuple[torch.nn.Module, dict[str, Any], list[str]]:
    """The detector with its starting weights (random until restored when not `fresh`), its architecture, and notes."""
    architecture = build_architecture(config, num_classes=len(classes) + 1)
    torch.manual_seed(engine.seed_of(config.seed))
    model = detector.build(architecture)
    notes = load_starting_weights(model, architecture, config, classes, store) if fresh else []
    return model, architecture, notes


def load_starting_weights(
    model: torch.nn.Module, architecture: dict[str, Any], config: TrainConfig, classes: tuple[str, ...], store: Store
) -> list[str]:
    """--weights coco|backbone|none|FILE|RUN and --backbone-weights FILE; says what was loaded and what was not."""
    if config.backbone_weights is not None:
        if not config.backbone_weights.is_file():
            raise options.ConfigError(f"--backbone-weights: there is no file {config.backbone_weights}")
        state = checkpoints.load(config.backbone_weights)["model_state_dict"]
        return [str(weights.load_backbone(model, architecture, state))]
    if config.weights == "none":
        return ["weights: random"]
    if config.weights == "backbone":
        return [str(weights.load_backbone(model, architecture, weights.backbone_state(config.model)))]
    if config.weights == "coco":
        state, names = weights.coco_state(config.model)
    else:
        saved = checkpoint_named(config.weights, store)
        state, names = saved["model_state_dict"], saved.get("classes")
    return [str(weights.load_matching(model, state, classes_from=names, classes_to=classes))]


def checkpoint_named(word: str, store: Store) -> dict[str, Any]:
    """A checkpoint by its file's path, or a RUN's best."""
    if Path(word).is_file():
        return checkpoints.load(Path(word))
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        path, _ = workspace.fetch(store, word, "best", "val/AP", Path(folder) / "checkpoint.pth")
        return checkpoints.load(path)


def make_plan(config: TrainConfig, *, steps_per_epoch: int) -> Plan:
    total = config.epochs * steps_per_epoch
    return Plan(steps_per_epoch=steps_per_epoch, total_steps=total, last_step=min(total, config.max_steps or total))


def optimization(
    config: TrainConfig, plan: Plan, model: torch.nn.Module
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and its learning rate by step."""
    optimizer = engine.build_optimizer(
        model, config.optimizer, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )

    def factor(step: int) -> float:
        return engine.learning_rate_factor(
            step,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=plan.total_steps,
            milestone_steps=[epoch * plan.steps_per_epoch for epoch in config.milestones or ()],
        )

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def run_info(
    config: TrainConfig,
    store: Store,
    run_id: str | None,
    data: DetectionData,
    architecture: dict,
    plan: Plan,
    code: dict,
) -> RunInfo:
    """The run's lasting facts; creates the MLflow run unless one is resumed."""
    if run_id is None:
        workspace.require_writable(workspace.RUNS, mend="Make it writable")
        run_id, run_name = store.create_run(config.experiment, config.run_name, config.tags)
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
        evaluation={"batch_size": config.batch_size, "amp": config.amp, "threads": torch.get_num_threads()},
        epochs=config.epochs,
        total_steps=plan.last_step,
        steps_per_epoch=plan.steps_per_epoch,
        code_version=code["commit"],
    )


def snapshot(job: Job) -> dict[str, Any]:
    """The whole state of the run as plain data: DESIGN of the checkpoint file, see models/faster_rcnn/README.md."""
    return {
        "format": FORMAT,
        **asdict(job.position),
        **job.info.in_checkpoint(),
        # The layout that is fast here is no part of the weights.
        "model_state_dict": {key: value.contiguous() for key, value in job.model.state_dict().items()},
        "optimizer_state_dict": job.optimizer.state_dict(),
        "scheduler_state_dict": job.schedule.state_dict(),
        "scaler_state_dict": job.scaler.state_dict(),
    }
