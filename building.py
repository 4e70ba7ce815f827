"""The detector of a run: built, given its starting weights, and its optimizer."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import commandline
import engine
import fetching
import workspace
from config import TrainConfig
from defaults import base_model
from models import checkpoint as checkpoints
from models import detector, foreign, record, weights
from models.compiled import compile_backbone
from tracking.store import RunUnknown, Store


def build_architecture(config: TrainConfig, *, num_classes: int) -> dict[str, Any]:
    """The detector's builder and keyword arguments; ModelError names a wrong one."""
    base = base_model(config.model)
    # torchvision's COCO weights for this model were trained with an eps of zero; ImageNet's were not.
    return detector.resolve_architecture(
        config.model,
        num_classes=num_classes,
        trainable_layers=config.trainable_layers,
        norm=config.norm,
        norm_eps=1e-5 if config.weights == "backbone" and base == "fasterrcnn_resnet50_fpn" else None,
        image_min_size=config.image_min_size,
        image_max_size=config.image_max_size,
        multi_scale=None if config.multi_scale is None else list(config.multi_scale),
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
    model = detector.build(architecture, reference=config.reference)
    if config.compile:
        compile_backbone(model)
    notes = load_starting_weights(model, architecture, config, classes, store) if fresh else []
    return model, architecture, notes


def load_starting_weights(
    model: torch.nn.Module, architecture: dict[str, Any], config: TrainConfig, classes: tuple[str, ...], store: Store
) -> list[str]:
    """--weights coco|backbone|none|FILE|RUN and --backbone-weights FILE; says what was loaded and what was not."""
    base = base_model(config.model)
    backbone_of = architecture | {"builder": base}
    if config.backbone_weights is not None:
        if not config.backbone_weights.is_file():
            raise commandline.ConfigError(f"--backbone-weights: there is no file {config.backbone_weights}")
        state = checkpoints.load(config.backbone_weights)["model_state_dict"]
        return [str(weights.load_backbone(model, backbone_of, state))]
    if config.weights == "none":
        return ["weights: random"]
    if config.weights == "backbone":
        return [str(weights.load_backbone(model, backbone_of, weights.backbone_state(base)))]
    notes = []
    if config.weights == "coco":
        state, names = weights.coco_state(base)
    else:
        saved = checkpoint_named(config.weights, store, config.experiment)
        about = record.describe(saved)
        state, names = saved["model_state_dict"], about.get("classes") or classes_of(saved, config.classes)
        notes.append(f"weights of {config.weights}: {workspace.introduce(about)}")
    return [*notes, str(weights.load_matching(model, state, classes_from=names, classes_to=classes))]


def classes_of(saved: dict[str, Any], word: str | None) -> Sequence[str] | None:
    """The classes of a checkpoint from elsewhere: those of --classes, else those that it names itself, if it does."""
    if word is not None:
        return foreign.read_classes(word)
    rows = saved["model_state_dict"].get(weights.CLASS_ROWS_KEY, ())
    return foreign.named_classes(saved, len(rows))


def checkpoint_named(word: str, store: Store, experiment: str) -> dict[str, Any]:
    """A checkpoint by its file's path, or a RUN's best; `best` is that of the experiment."""
    if file := fetching.file_named(word):
        return checkpoints.load(file)
    best_in = experiment if word == workspace.BEST else None
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        to = Path(folder) / "checkpoint.pth"
        try:
            path, _ = fetching.fetch(store, word, "best", "val/AP", to, best_in)
        except RunUnknown as error:
            message = f"--weights {word} is none of coco, backbone and none, no file, and no run: {error}"
            raise commandline.ConfigError(message) from error
        return checkpoints.load(path)


def optimization(
    config: TrainConfig, model: torch.nn.Module, *, steps_per_epoch: int, total_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and its learning rate by step."""
    optimizer = engine.build_optimizer(
        model,
        config.optimizer,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        reference=config.reference,
    )

    def factor(step: int) -> float:
        return engine.learning_rate_factor(
            step,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            total_steps=total_steps,
            milestone_steps=[epoch * steps_per_epoch for epoch in config.milestones or ()],
        )

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
