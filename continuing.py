"""--resume FILE: a new run that goes on where a checkpoint file stopped, with whatever of its state the file holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commandline
import config as options
import fetching
import workspace
from config import TrainConfig
from defaults import to_repeat
from machine import usable_cores
from models import record
from models.record import CheckpointError
from resuming import Position

if TYPE_CHECKING:
    from torch.optim import Optimizer


def read(file: Path, asked: TrainConfig, *, aloud: bool = True) -> dict[str, Any]:
    """The checkpoint as a whole one of ours; of another pipeline's with the options (`args`) that it was trained by."""
    from models import checkpoint as checkpoints

    content = checkpoints.load(file)
    if record.says_what_it_is(content):
        return content
    given = {"model": asked.model, "classes": asked.classes}
    return fetching.whole(content, file, **given, aloud=aloud) | {"args": content.get("args")}


def configuration(file: Path, asked: TrainConfig) -> TrainConfig:
    """The configuration that the file was trained by, as far as it tells; `asked` says --model and --classes."""
    content = read(file, asked, aloud=False)  # it is read again, and told, when the run is prepared
    if "args" in content:
        return _as_theirs(content, file, asked)
    try:
        stored = options.from_plain(content["config"])
        return to_repeat(stored, content.get("defaults", ()), cores=usable_cores())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{file} does not hold the options of its training as we write them. Start from its weights: "
        raise CheckpointError(f"{message}python train.py --weights {file} --data …", exit_code=4) from error


def _as_theirs(content: dict[str, Any], file: Path, asked: TrainConfig) -> TrainConfig:
    """What torchvision's reference options and the optimizer's own record say in our terms; the rest stays open."""
    args = content["args"] if isinstance(content["args"], dict) else {}
    group = _first_group(content.get("optimizer_state_dict"))
    built = content["architecture"]
    optimizer = "adamw" if "betas" in group else "sgd" if "momentum" in group else None
    said = {
        "epochs": _number(args, "epochs", int),
        "batch_size": _product(_number(args, "batch_size", int), _number(args, "world_size", int)),
        "lr": _number(group, "initial_lr", float) or _number(group, "lr", float),
        "weight_decay": _number(group, "weight_decay", float),
        "momentum": _number(group, "momentum", float),
        "schedule": {"multisteplr": "multistep", "cosineannealinglr": "cosine"}.get(str(args.get("lr_scheduler"))),
        "trainable_layers": _trainable_layers(built, len(group.get("params", ()))),
    }
    steps = args.get("lr_steps")
    if said["schedule"] == "multistep" and isinstance(steps, list) and all(type(one) is int for one in steps):
        said["milestones"] = tuple(steps)
    try:
        return TrainConfig(
            model=built["builder"],
            norm=built["kwargs"].get("norm"),
            weights=str(file),
            classes=asked.classes,
            optimizer=optimizer,
            **{name: value for name, value in said.items() if value is not None},
        )
    except commandline.ConfigError as error:  # a stranger's file may say anything
        raise CheckpointError(f"{file} was trained by options that are none of ours: {error}", exit_code=4) from error


def _first_group(state: Any) -> Mapping[str, Any]:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    first = groups[0] if isinstance(groups, list) and groups else None
    return first if isinstance(first, Mapping) and isinstance(first.get("params"), list) else {}


def _number(values: Mapping[str, Any], name: str, kind: type) -> Any:
    value = values.get(name)
    return kind(value) if type(value) in (int, kind) else None


def _product(batch_size: int | None, processes: int | None) -> int | None:
    # torchvision's batch size is that of each of its processes, its learning rate that of all together.
    return None if batch_size is None else batch_size * (processes or 1)


def _trainable_layers(architecture: dict[str, Any], trained: int) -> int | None:
    """How many stages of the backbone train where so many parameters do: the optimizer's state fits no other number."""
    import torch

    from models import detector

    is_torchvisions = architecture["builder"].startswith("fasterrcnn_")
    for layers in range(7) if trained and is_torchvisions else ():
        with torch.device("meta"):  # shapes alone
            kwargs = architecture["kwargs"] | {"trainable_layers": layers}
            model = detector.build(architecture | {"kwargs": kwargs})
        if sum(parameter.requires_grad for parameter in model.parameters()) == trained:
            return layers
    return None


def origin(content: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Tags of the new run that say where it comes from."""
    run = {"continued_from_run": content["run_id"]} if "run_id" in record.describe(content) else {}
    return run | {"continued_from": str(file.absolute()), "continued_from_sha256": record.file_sha256(file)}


def restore(
    content: dict[str, Any],
    file: Path,
    model,
    optimizer,
    schedule,
    scaler,
    average,
    *,
    steps_per_epoch: int,
    last_step: int,
) -> tuple[Position, list[str]]:
    """Put what the file holds into the freshly built parts; where that leads, and what it held and what not.

    Rates, momentum and the like are the configuration's; of the optimizer come its moments.
    """
    position, where = _position(content, file, steps_per_epoch, last_step)
    raw = content.get("raw_model_state_dict")
    try:
        model.load_state_dict(content["model_state_dict"] if average is None or raw is None else raw)
    except RuntimeError as error:
        message = f"The options make another model than {file} is of: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(message, exit_code=4) from error
    about = workspace.introduce(record.describe(content))
    notes = [f"continuing {file} ({about}) in a new run: {where}", "  weights: restored"]
    if average is not None:
        average.module.load_state_dict(content["model_state_dict"])
        average.n_averaged.fill_(position.step)
        notes += [] if raw else ["  moving average: it starts at the weights of the file, which holds no average"]
    misfit = _misfit(content.get("optimizer_state_dict"), optimizer)
    kind = type(optimizer).__name__
    if misfit is None:
        count = _put_back(content["optimizer_state_dict"], optimizer)
        notes.append(f"  optimizer: {kind} state of {count} parameters restored")
    else:
        notes.append(f"  optimizer: {kind} starts afresh, {misfit}")
    _go_to(schedule, optimizer, position.step)
    theirs = ", by our schedule: another pipeline's is not taken over" if "args" in content else ""
    notes.append(f"  schedule: at step {position.step}, learning rate {schedule.get_last_lr()[0]:.3g}{theirs}")
    if scaler.is_enabled() and content.get("scaler_state_dict"):
        scaler.load_state_dict(content["scaler_state_dict"])
    return position, [*notes, "  best so far: none yet, it counts from here"]


def _position(content: dict[str, Any], file: Path, steps_per_epoch: int, last_step: int) -> tuple[Position, str]:
    """Where the new run begins, and that in words; ConfigError where nothing is left to train."""
    epoch = content.get("epoch")
    if type(epoch) is not int or epoch < -1:
        return Position(), "it holds no epoch, so from the first"
    step, batches_done = (epoch + 1) * steps_per_epoch, 0
    where = f"its epoch {epoch} is done"
    if content.get("steps_per_epoch") == steps_per_epoch:
        step, batches_done = content["step"], content["batches_done"]
        where = f"in its epoch {epoch + 1}" if batches_done else where
    elif content.get("batches_done"):
        where += f", epoch {epoch + 1} is begun again, as its batches are others here"
    if step >= last_step:
        raise commandline.ConfigError(
            f"{file} has {epoch + 1} epochs behind it, step {step}, and the run would end at step {last_step}: "
            "raise --epochs (and --max-steps, where that is set)"
        )
    return Position(epoch=epoch, step=step, batches_done=batches_done), f"{where}, step {step} of {last_step}"


def _misfit(state: Any, optimizer: "Optimizer") -> str | None:
    """Why the state cannot be that of this optimizer; None where every parameter finds its moments."""
    import torch

    if not isinstance(state, Mapping):
        return "the file holds no state of one"
    groups, moments = state.get("param_groups"), state.get("state")
    if not isinstance(moments, Mapping) or not isinstance(groups, list):
        return "the file's state is not as PyTorch writes it"
    own = optimizer.param_groups[0]["params"]  # there is one group
    theirs = _first_group(state).get("params", ())
    if len(groups) != 1 or len(theirs) != len(own):
        many = f" in {len(groups)} groups" if len(groups) != 1 else ""
        return f"the file's state is of {len(theirs)} parameters{many}, and {len(own)} train here (--trainable-layers)"
    expected = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for key, parameter in zip(theirs, own, strict=True):
        known = moments.get(key)
        if known is not None and set(known) != expected:
            return f"the file's state is of another kind ({', '.join(map(str, known))})"
        tensors = [value for value in (known or {}).values() if isinstance(value, torch.Tensor) and value.dim()]
        if any(tensor.shape != parameter.shape for tensor in tensors):
            return "the file's state has tensors of other shapes than the parameters"
    return None


def _put_back(state: Mapping[str, Any], optimizer: "Optimizer") -> int:
    """Load the moments under our own rates; of how many parameters there are any."""
    keys = state["param_groups"][0]["params"]
    moments = {number: state["state"][key] for number, key in enumerate(keys) if key in state["state"]}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return len(moments)


def _go_to(schedule, optimizer: "Optimizer", step: int) -> None:
    """Let the schedule stand as it does after `step` steps."""
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.load_state_dict(schedule.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
