"""What stands for the options of train.py that are left open, in a new run, one that goes on, and one that repeats."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from commandline import ConfigError
from config import MAY_BE_ALLOWED, MAY_CHANGE, NO_MILESTONES, TrainConfig, flag, option

# What `python train.py` alone runs: small images, few samples and proposals, because they decide a CPU's speed.
GENERATED = {
    "model": "timm/resnet10t",
    "weights": "none",
    "image_min_size": 128,
    "image_max_size": 160,
    "anchor_sizes": (16, 24, 40, 56, 80),
    "fpn_channels": 64,
    "roi_samples": 64,
    "proposals": 200,
    "epochs": 3,
    "batch_size": 4,
    "optimizer": "adamw",
    "lr": 2e-3,
    "schedule": "cosine",
    "warmup_steps": 50,
    "clip_norm": 10.0,
    "workers": 0,
}

# Options that are a detector's own, by the names its architecture has for them; what trains of it is another question.
OF_THE_MODEL = (
    *("image_min_size", "image_max_size", "multi_scale", "anchor_sizes", "fpn_channels"),
    *("roi_samples", "proposals", "score_threshold"),
)


def resolved(config: TrainConfig, *, cores: int) -> tuple[TrainConfig, dict[str, Any]]:
    """The configuration with every default filled in that does not need the data, and those defaults by name."""
    recipe = dict(GENERATED) if config.data == "generated" else {}
    if base_model(config.model or "").startswith("fasterrcnn_"):  # these have anchors and a pyramid of their own
        recipe = {name: value for name, value in recipe.items() if name not in ("anchor_sizes", "fpn_channels")}

    def pick(name: str, default: Any) -> Any:
        given = getattr(config, name)
        return recipe.get(name, default) if given is None else given

    optimizer, batch_size = pick("optimizer", "sgd"), pick("batch_size", 4)
    model = pick("model", "fasterrcnn_resnet50_fpn_v2")
    base = base_model(model)
    is_timm, is_torchvisions = base.startswith("timm/"), base.startswith("fasterrcnn_")
    is_own = not (is_timm or is_torchvisions)
    # timm has backbones, not detectors: no COCO weights; and of a researcher's own model there are none at all.
    pretrained = "backbone" if is_timm or config.backbone_weights else "coco" if is_torchvisions else "none"
    weights = pick("weights", pretrained)
    epochs = pick("epochs", 24)
    defaults = {
        "model": model,
        "weights": weights,
        # Small batches spoil batch statistics, so pretrained ones are kept; v2 is defined with batch norm.
        "norm": None if is_own else "batch" if weights == "none" or base.endswith("_v2") else "frozen",
        "trainable_layers": (6 if "mobilenet" in base else 5) if weights == "none" else 3,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "schedule": "multistep",
        "lr": 0.00125 * batch_size * config.accumulate if optimizer == "sgd" else 1e-4,
        "weight_decay": 1e-4 if optimizer == "sgd" else 0.05,
        "warmup_steps": 500,
        "augmentation": "flip",
        "workers": min(4, cores),
    } | recipe
    if not is_torchvisions:
        del defaults["trainable_layers"]  # all
    if pick("schedule", defaults["schedule"]) == "multistep":
        defaults["milestones"] = milestones_of(epochs)
    elif config.milestones is not None:
        raise ConfigError(NO_MILESTONES)
    chosen = {name: value for name, value in defaults.items() if getattr(config, name) is None and value is not None}
    return replace(config, **chosen), chosen


def with_model_of(config: TrainConfig, architecture: dict[str, Any]) -> TrainConfig:
    """`config` with the model of a checkpoint and its options, where these are left open; another --model stays."""
    if config.model not in (None, architecture["builder"]):
        return config
    built = {name: architecture["kwargs"].get(name) for name in OF_THE_MODEL}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in built.items()}
    # What the command line cannot say (sizes by level, proposals in two numbers) is the model's own default.
    sayable = {
        name: value
        for name, value in plain.items()
        if value not in (None, ())
        and (isinstance(value, str | int | float) or name != "proposals")
        and all(isinstance(one, int) for one in (value if isinstance(value, tuple) else ()))
    }
    left_open = {name: value for name, value in sayable.items() if getattr(config, name) is None}
    return replace(config, model=architecture["builder"], **left_open)


def for_resume(stored: TrainConfig, asked: TrainConfig, defaults: Sequence[str] = ()) -> TrainConfig:
    """`asked`, its open options taken from the run; ConfigError names each flag that differs and may not.

    `defaults` names what was left open when the run began.
    """
    # The line of --resume auto says everything: what limits the run holds only as long as it is there.
    said = ("max_steps", "patience") if asked.resume == "auto" else ()
    left_open = [f.name for f in fields(stored) if getattr(asked, f.name) is None and f.name not in said]
    asked = replace(asked, **{name: getattr(stored, name) for name in left_open})
    asked = replace(asked, tag=tuple(dict.fromkeys((*stored.tag, *asked.tag))))  # tags are added, never taken away
    changed = [f.name for f in fields(stored) if getattr(stored, f.name) != getattr(asked, f.name)]
    if asked.schedule == "cosine" and asked.milestones != stored.milestones:
        raise ConfigError(NO_MILESTONES)
    allowed = {option(name) for name in asked.allow_change}
    refused = [name for name in changed if name not in MAY_CHANGE and name not in allowed]
    if refused:
        told = ", ".join(f"{flag(name)} ({getattr(stored, name)} → {getattr(asked, name)})" for name in refused)
        new = "Start a new run" + (": give another --run-name" if asked.resume == "auto" else "")
        if all(name in MAY_BE_ALLOWED for name in refused):
            new += f", or bend this one: --allow-change {' '.join(flag(name)[2:] for name in refused)}"
        raise ConfigError(f"A resumed run keeps its configuration; these cannot change: {told}. {new}")
    asked = replace(asked, allow_change=())  # said for this once
    return asked if asked.milestones != stored.milestones else with_milestones(asked, stored, defaults)


def with_milestones(config: TrainConfig, stored: TrainConfig, defaults: Sequence[str]) -> TrainConfig:
    """`config` with the milestones of its schedule, where nobody chose any."""
    is_new = stored.schedule != config.schedule or ("milestones" in defaults and config.epochs != stored.epochs)
    if not is_new:
        return config
    return replace(config, milestones=milestones_of(config.epochs) if config.schedule == "multistep" else None)


def to_repeat(stored: TrainConfig, defaults: Sequence[str], *, cores: int) -> TrainConfig:
    """A run's configuration for another run; `defaults` names what was left open then.

    That is left open again, so that it follows today's flags (the rate the batch size, say), unless today's rule
    gives another value than it did.
    """
    if stored.data == "generated":  # its recipe belongs to the run, and other data would have other defaults
        defaults = [name for name in defaults if name not in GENERATED]
    opened = replace(stored, **{name: None for name in defaults if hasattr(stored, name)})
    again = resolved(opened, cores=cores)[0]
    # Workers follow the machine, and the warm-up was cut to the data's epoch.
    settled = [name for name in defaults if name not in ("workers", "warmup_steps") and hasattr(stored, name)]
    kept = {name: getattr(stored, name) for name in settled if getattr(again, name) != getattr(stored, name)}
    return replace(opened, run_name=None, resume=None, strict=False, dry_run=False, **kept)


def milestones_of(epochs: int) -> tuple[int, ...]:
    """Where the rate drops when nobody says: after two thirds and eleven twelfths."""
    return round(epochs * 2 / 3), round(epochs * 11 / 12)


def base_model(name: str) -> str:
    """The model that recipes change: recipes.new_loss/timm/resnet18 → timm/resnet18. Any other is its own base."""
    first, _, rest = name.partition("/")
    return base_model(rest) if rest and first.startswith("recipes.") else name


def absolute(data: str) -> str:
    """`--data` as it means the same from every folder."""
    if data == "generated":
        return data
    path = Path(data).expanduser()
    return str(path.resolve() if ".." in path.parts else path.absolute())  # the name of a link says more than its end
