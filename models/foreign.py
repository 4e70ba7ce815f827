"""A checkpoint from elsewhere as one of ours: what its tensors tell, what has to be given, and every tensor checked."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from models import detector
from models.backbones import TIMM_PREFIX, TORCHVISION_CLASSIFIERS, ModelError
from models.record import FORMAT, NO_CLASS, CheckpointError
from models.weights import CLASS_ROWS_KEY, COUNTER, coco_classes, load_matching, some, without_prefixes

# The first of these tensors that a file has tells which of torchvision's models it is. The two MobileNets differ in
# the size of their images and the number of their proposals only.
TELLING = {
    "roi_heads.box_head.5.weight": ("fasterrcnn_resnet50_fpn_v2",),
    "backbone.body.layer4.2.conv3.weight": ("fasterrcnn_resnet50_fpn",),
    "backbone.body.16.0.weight": ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"),
}
CLASS_KEYS = ("classes", "class_names", "categories", "CLASSES")
KEPT = ("epoch", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict")
COCO = "coco"


def read_classes(word: str) -> list[str]:
    """Class names in label order: of `coco` a name for each row of torchvision's heads, of a file one a line."""
    if word == COCO:
        return list(coco_classes())
    try:
        lines = Path(word).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ModelError(f"--classes {word} cannot be read: {reason}. Give `coco`, or a file of names") from error
    names = [line.strip() for line in lines if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1 and name != NO_CLASS]
    if twice or not names:
        raise ModelError(f"--classes {word} names {some(twice) + ' twice' if twice else 'no class'}: one a line")
    return names


def adopt(
    content: Mapping[str, Any], path: Path, *, model: str | None, classes: Sequence[str] | None
) -> dict[str, Any]:
    """The checkpoint at `path`, read into `content`, as a whole file of ours; `model` and `classes` fill its gaps.

    CheckpointError says what to give (exit code 2), or what does not fit (4). Anchors and image sizes are no tensors:
    they are the model's defaults.
    """
    state = without_prefixes(content["model_state_dict"])
    if CLASS_ROWS_KEY not in state:
        listed = some(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
        raise CheckpointError(f"{path} holds no Faster R-CNN: it has no {CLASS_ROWS_KEY}, but {listed}", exit_code=4)
    rows = len(state[CLASS_ROWS_KEY])
    names = list(classes) if classes is not None else named_classes(content, rows)
    candidates = (model,) if model else _told_by(state, content)
    if len(candidates) != 1 or names is None:
        raise CheckpointError(f"{path}: {_wanted(candidates, names, rows)}", exit_code=2)
    if len(names) != rows - 1:
        hint = ": leave out the background's" if len(names) == rows else ""
        raise CheckpointError(
            f"{path} has a head of {rows} rows, for the background and {rows - 1} classes, "
            f"but {len(names)} names are given{hint}",
            exit_code=4,
        )
    architecture = detector.resolve_architecture(candidates[0], num_classes=rows, norm=_norm(candidates[0], state))
    return {
        "format": FORMAT,
        **{key: content[key] for key in KEPT if isinstance(content.get(key), int | dict)},
        "model_state_dict": _fitted(architecture, state, path),
        "architecture": architecture,
        "classes": names,
    }


def model_told(content: Mapping[str, Any], path: Path) -> str | None:
    """The model that a checkpoint's tensors tell; CheckpointError where they are those of two, None for any other."""
    candidates = _told_by(without_prefixes(content["model_state_dict"]), content)
    if len(candidates) > 1:
        raise CheckpointError(f"{path}: {_wanted(candidates, [], 0)}", exit_code=2)
    return candidates[0] if candidates else None


def _told_by(state: Mapping[str, Tensor], content: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that have such tensors; of two, the one that torchvision's own options name."""
    candidates = next((TELLING[key] for key in TELLING if key in state), ())
    args = content.get("args")
    named = args.get("model") if isinstance(args, Mapping) else None
    return (named,) if named in candidates else candidates


def receipt(content: Mapping[str, Any]) -> str:
    """What was made of a file from elsewhere, and what no tensor tells."""
    name, options = content["architecture"]["builder"], content["architecture"]["kwargs"]
    untold = ["image_min_size", "image_max_size", "anchor_sizes"]
    untold += ["norm_eps"] if options.get("norm") == "frozen" else []
    assumed = ", ".join(f"{option} {options[option]}" for option in untold if option in options)
    classes = [one for one in content["classes"] if one != NO_CLASS]
    return f"{name} of {len(classes)} classes: {some(classes)}\n  no tensor tells, so as {name} has it: {assumed}"


def _wanted(candidates: Sequence[str], names: list[str] | None, rows: int) -> str:
    """One message for all that neither the file nor the options say."""
    wanted = []
    if len(candidates) > 1:
        wanted.append(f"its tensors are those of two models: give --model {' or --model '.join(candidates)}")
    elif not candidates:
        wanted.append(f"its tensors do not tell the model: give --model NAME ({', '.join(detector.known_models())})")
    if names is None:
        coco = "`--classes coco` if they are torchvision's COCO categories, else " if rows == 91 else ""
        wanted.append(
            f"it does not name its {rows - 1} classes: give {coco}--classes FILE, one name a line in label order, "
            "background not among them"
        )
    return "; ".join(wanted)


def named_classes(content: Mapping[str, Any], rows: int) -> list[str] | None:
    """The names that a file carries for its classes, where there are as many as its head has; None otherwise."""
    holders = [content, *(content[key] for key in ("data", "config") if isinstance(content.get(key), Mapping))]
    for holder in holders:
        for key in CLASS_KEYS:
            names = holder.get(key)
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                continue
            if names and names[0].strip("_").lower() == "background":
                names = names[1:]
            if len(names) == rows - 1:
                return list(names)
    return None


def _norm(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Batch norms count batches, frozen ones do not; None for builders that may know neither."""
    if name not in TORCHVISION_CLASSIFIERS and not name.startswith(TIMM_PREFIX):
        return None
    counts = any(key.startswith("backbone.body.") and key.endswith(COUNTER) for key in state)
    return "batch" if counts else "frozen"


def _fitted(architecture: dict[str, Any], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The model's own tensors with the file's values; CheckpointError unless each has its counterpart."""
    built = detector.build(architecture)
    by_position = [str(row) for row in range(1, architecture["kwargs"]["num_classes"])]  # gaps of COCO's rows too
    report = load_matching(built, state, classes_from=None, classes_to=by_position)
    if report.missing or report.skipped:
        shapes = [key for key in report.missing if key in report.skipped]
        differing = {
            "lacks": [key for key in report.missing if key not in shapes],
            "has besides": [key for key in report.skipped if key not in shapes],
            "has in another shape": shapes,
        }
        told = "; ".join(f"it {what} {len(keys)} tensors ({some(keys)})" for what, keys in differing.items() if keys)
        raise CheckpointError(f"{path} is no {architecture['builder']}: {told}. Another one: --model NAME", exit_code=4)
    return built.state_dict()
