"""The options of train.py, what they are checked for, which of them a run that goes on may change; as plain values."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from amounts import cache_bytes, parse_interval, parse_size, require_keep
from commandline import (
    Classes,
    ConfigError,
    File,
    Float,
    Int,
    Ints,
    Names,
    Norm,
    Optimizer,
    Repeated,
    Schedule,
    Size,
    Text,
    flag,
)
from data_options import DataOptions
from machine import require_precision
from retention import KEEP_ALL


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataOptions):
    """Train a Faster R-CNN; MLflow keeps its parameters, metrics and every checkpoint. Prints the run ID.

    Defaults in brackets are for your data; for the generated set they are those of recipes/generated.sh.
    """

    data: str = "generated"
    """Dataset: a folder or file (COCO, Pascal VOC, YOLO, CSV), or `generated` for the built-in coloured shapes."""
    model: Text = None
    """torchvision's by name, timm/NAME (any timm backbone), or recipes.NAME (yours). [fasterrcnn_resnet50_fpn_v2]"""
    weights: Text = None
    """Start from: coco, backbone (ImageNet), none, a checkpoint file, or a RUN. [coco; none for generated data]"""
    classes: Classes = None
    """Of a --weights or --resume FILE that does not name its classes: `coco`, or a file with a name a line."""
    backbone_weights: File = None
    """A file with classification weights for the backbone (nothing is downloaded then)."""
    trainable_layers: Int = None
    """Backbone stages that train, counted from the last. [torchvision's models 3 after pretraining; all otherwise]"""
    norm: Norm = None
    """Batch norm of the backbone: frozen statistics, or trained. [frozen after pretraining]"""
    image_min_size: Int = None
    """Images are resized to this shorter side …. [the model's own, mostly 800]"""
    image_max_size: Int = None
    """… unless the longer side would pass this. [the model's own, mostly 1333]"""
    multi_scale: Ints = None
    """Further shorter sides that training draws from, image by image; scores use --image-min-size. [none]"""
    anchor_sizes: Ints = None
    """Anchor side in pixels for each feature level, finest first. [the model's own]"""
    fpn_channels: Int = None
    """Width of the feature pyramid (timm models). [256]"""
    roi_samples: Int = None
    """Proposals sampled per image to train the box head. [512]"""
    proposals: Int = None
    """Proposals kept per image. [torchvision's: 2000 in training, 1000 after]"""
    score_threshold: Float = None
    """The model drops detections below this score; 0 keeps all. [0.05]"""

    epochs: Int = None
    """Passes over the training split. [24]"""
    max_steps: Int = None
    """Stop after this many optimizer steps in all, with a last evaluation and checkpoint."""
    batch_size: Int = None
    """Images in a batch. [4]"""
    accumulate: int = 1
    """Batches whose mean gradient makes one optimizer step."""
    optimizer: Optimizer = None
    """SGD with momentum, or AdamW. [sgd]"""
    lr: Float = None
    """Learning rate; a given one is not scaled. [sgd: 0.00125 × images in a step, as torchvision; adamw: 1e-4]"""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: Float = None
    """[sgd: 1e-4; adamw: 0.05]"""
    schedule: Schedule = None
    """After the warm-up: ÷10 at each milestone, or a cosine to zero. [multistep]"""
    milestones: Ints = None
    """Epochs after which multistep divides the rate by 10. [two thirds and eleven twelfths of the epochs]"""
    warmup_steps: Int = None
    """Steps of linear warm-up. [500, at most one epoch]"""
    clip_norm: Float = None
    """Clip the gradient to this norm. [off]"""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision: bf16 also on CPUs that have it (AVX-512 BF16, AMX), fp16 on GPUs."""
    reference: bool = False
    """Compute as torchvision's own modules do: none of the faster paths to the same results."""
    compile: bool = False
    """Train with a backbone that torch.compile has compiled, for a GPU: minutes at the start, and for each new shape
    of batches, which are padded to multiples of 128 pixels. Scores are computed without it."""
    ema: Float = None
    """Score and keep the weights' exponential moving average, of this decay (0.999); raw ones go on training. [off]"""
    augmentation: Text = None
    """none, flip, dihedral (turns), standard, strong, lsj (large-scale jitter), or an Albumentations file. [flip]"""
    seed: int = 0
    """Every random draw follows from it, whatever the number of workers."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Int = None
    """Processes that load images; the result does not depend on it. [cores, at most 4; 0 for generated data]"""
    cache: str = "none"
    """Memory for decoded images, which are then read and decoded once: none, a size (4GB), or a share of what is
    available (25%). What does not fit is decoded in every epoch; the result does not depend on it."""
    evaluate_every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    best_metric: str = "val/AP"
    """The validation metric that makes a checkpoint the best; the higher the better."""
    patience: Int = None
    """Stop early when this many validations in a row have not beaten the best. [off]"""
    checkpoint_every: str = "10m"
    """Also write the resumable last.pth in mid-epoch: 500 (steps) or 10m (minutes)."""
    keep: str = KEEP_ALL
    """Checkpoints that keep their files: all, or best, last, every:N (epochs), joined by commas (best,every:5).
    The others keep their metrics. The best, the last while the run may go on, and registered ones stay in any case."""
    disk_budget: Size = None
    """Space this run may use on this machine (20GB), where a quota is not what df shows. [the disk's free space]
    Refused before training where the checkpoints will not fit; passed in training, it is a full disk: stop, resumable.
    It counts runs/<run id>, the run's checkpoints in a local store, and its copy at models/faster_rcnn."""
    publish: Literal["auto", "always", "never"] = "auto"
    """Keep models/faster_rcnn at the run's best: unless another run publishes or it is pinned; always; never."""

    experiment: str = "faster-rcnn"
    """MLflow experiment."""
    run_name: Text = None
    """Readable name of the run. [model, data, seed and time]"""
    tag: Annotated[tuple[str, ...], Repeated] = ()
    """KEY=VALUE for the MLflow run; repeat the flag for more."""
    group: Text = None
    """What this run repeats with another seed, say: the runs of a group are seen together."""
    resume: Text = None
    """Continue this RUN (ID, prefix or name) in its own MLflow run, or a checkpoint FILE in a new one; `auto`: the run
    of --run-name, or start that."""
    allow_change: Names = ()
    """With --resume RUN: options that may differ from the run's, as in --lr 0.001 --allow-change lr; it is recorded."""
    from_run: Text = None
    """A new run with this RUN's configuration, flags overriding; says where code or data differ."""
    strict: bool = False
    """With --from-run: refuse where code or data differ."""
    dry_run: bool = False
    """Check everything and time one step of the largest batch, then stop: nothing is tracked or saved."""

    def __post_init__(self):
        require_precision(self.amp, self.device)
        positive = ("epochs", "max_steps", "batch_size", "lr", "image_min_size", "image_max_size", "fpn_channels")
        positive += ("roi_samples", "proposals", "clip_norm", "evaluate_every", "accumulate", "patience")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{flag(name)} must be above 0, not {value}")
        for name in ("workers", "warmup_steps", "weight_decay", "momentum", "seed", "score_threshold"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{flag(name)} must not be negative, not {value}")
        if self.image_min_size and self.image_max_size and self.image_min_size > self.image_max_size:
            raise ConfigError(f"--image-min-size {self.image_min_size} is above --image-max-size {self.image_max_size}")
        if self.backbone_weights is not None and self.weights not in (None, "none", "backbone"):
            raise ConfigError(f"--backbone-weights and --weights {self.weights} both give the backbone: choose one")
        if self.compile and self.reference:
            raise ConfigError("--compile is a faster path, and --reference leaves out all of them: choose one")
        if self.classes and self.weights in (None, "coco", "backbone", "none") and self.resume in (None, "auto"):
            raise ConfigError(
                "--classes names those of a --weights or --resume FILE that does not: --data names its own"
            )
        if self.milestones is not None and self.schedule == "cosine" and self.resume is None:  # a run has its own
            raise ConfigError(NO_MILESTONES)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"--ema is a decay between 0 and 1, such as 0.999, not {self.ema}")
        if any(side < 1 for side in self.multi_scale or ()):
            raise ConfigError(f"--multi-scale takes sides in pixels, not {list(self.multi_scale)}")
        if self.resume == "auto" and not self.run_name:
            raise ConfigError("--resume auto continues the run of a name, or starts it: give --run-name NAME")
        if self.allow_change and self.resume is None:
            raise ConfigError("--allow-change is about a run that continues: give --resume RUN too")
        unknown = [name for name in self.allow_change if option(name) not in MAY_BE_ALLOWED]
        if unknown:
            others = ", ".join(map(flag, MAY_BE_ALLOWED)).replace("--", "")
            raise ConfigError(f"--allow-change {' '.join(unknown)}: what can be allowed to change is {others}")
        if self.strict and self.from_run is None:
            raise ConfigError("--strict compares with the run of --from-run: give that too")
        if not self.experiment.strip():
            raise ConfigError("--experiment needs a name")
        parse_interval(self.checkpoint_every)
        require_keep(self.keep)
        if self.disk_budget is not None:
            parse_size(self.disk_budget)
        if self.cache != "none":
            cache_bytes(self.cache, available=sys.maxsize)
        for pair in self.tag:
            if not pair.partition("=")[0] or "=" not in pair:
                raise ConfigError(f"--tag takes KEY=VALUE, not {pair!r}")

    @property
    def tags(self) -> dict[str, str]:
        """The --tag pairs by key, and the group."""
        group = {} if self.group is None else {"group": self.group}
        return group | dict(pair.split("=", 1) for pair in self.tag)


# Of a run that is resumed, these may change …
MAY_CHANGE = (
    *("epochs", "max_steps", "patience", "device", "workers", "checkpoint_every", "publish", "tag"),
    *("keep", "disk_budget", "cache"),
    *("resume", "from_run", "strict", "dry_run", "allow_change"),
)
# … and these bend its course: only when --allow-change says so. Others would contradict its weights, its position in
# the data, or the scores that it has.
MAY_BE_ALLOWED = (
    *("lr", "momentum", "weight_decay", "schedule", "milestones", "warmup_steps", "clip_norm", "amp", "augmentation"),
    *("multi_scale", "roi_samples", "proposals", "seed", "evaluate_every", "reference", "compile"),
)
NO_MILESTONES = "--milestones belong to --schedule multistep, not to cosine"


def option(name: str) -> str:
    """The name of an option as --allow-change may spell it: weight-decay → weight_decay."""
    return name.removeprefix("--").replace("-", "_")


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON-able values."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def from_plain(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_plain`; names of an older or newer version that are unknown here are left out."""
    known = {f.name for f in fields(TrainConfig)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in known}
    if values.get("backbone_weights") is not None:
        values["backbone_weights"] = Path(values["backbone_weights"])
    return TrainConfig(**values)
