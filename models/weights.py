"""Weights from elsewhere into a model: what matches is loaded, class rows go by name, and a report says the rest."""

import contextlib
import http.client
import pickle
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from models.backbones import TIMM_PREFIX, TORCHVISION_CLASSIFIERS, ModelError, body_key, check_timm_name, classifier
from models.record import NO_CLASS

StateDict = dict[str, Tensor]

# Rows a class has in each of the head's tensors; the first class is the background.
CLASS_HEAD_ROWS = {
    "roi_heads.box_predictor.cls_score.weight": 1,
    "roi_heads.box_predictor.cls_score.bias": 1,
    "roi_heads.box_predictor.bbox_pred.weight": 4,
    "roi_heads.box_predictor.bbox_pred.bias": 4,
}
CLASS_ROWS_KEY = "roi_heads.box_predictor.cls_score.weight"
WRAPPER_PREFIX = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
# torchvision's older COCO files hold the convolutions of the pyramid and of the RPN one level higher.
OLD_TORCHVISION_KEY = re.compile(r"^(?:(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)|(rpn\.head\.conv))\.(weight|bias)$")
# A counter that frozen norms do not have and that no result depends on.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a state dict. `skipped` were in the file only, or differ in shape; `missing` were not loaded."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    classes_carried: tuple[str, ...] = ()
    classes_fresh: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded", self.note]
        if self.missing:
            lines.append(f"{len(self.missing)} of the model stay as they were: {some(self.missing)}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} of the file not used: {some(self.skipped)}")
        if self.classes_carried:
            lines.append(f"classes carried over: {', '.join(self.classes_carried)}")
        if self.classes_fresh:
            lines.append(f"classes that start afresh: {', '.join(self.classes_fresh)}")
        return "\n".join(line for line in lines if line)


def load_matching(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    classes_from: Sequence[str] | None,
    classes_to: Sequence[str],
) -> LoadReport:
    """Load every tensor whose name and shape match; rows of the class head follow the names of their classes.

    classes_from and classes_to name the file's and the model's classes in label order, background not among them.
    Where classes_from is None, a head of the same shape is taken as it is. Nothing at all to load is a ModelError.
    """
    own = model.state_dict()
    given = {_current_key(key, own): tensor for key, tensor in without_prefixes(state_dict).items()}
    loaded = _matching(own, given)
    note = ""
    if classes_from is not None and CLASS_ROWS_KEY in given:
        loaded = [key for key in loaded if key not in CLASS_HEAD_ROWS]
        loaded += [key for key in CLASS_HEAD_ROWS if key in given and own[key].shape[1:] == given[key].shape[1:]]
    elif CLASS_ROWS_KEY in loaded:
        classes_from = classes_to
        note = "the class head is taken as it is, as the file does not name its classes"
    if not loaded:
        raise ModelError(f"No tensor of these weights fits: they have {_listed(given)}, the model {_listed(own)}")
    _copy(own, {key: given[key] for key in loaded if key not in CLASS_HEAD_ROWS})
    carried: tuple[str, ...] = ()
    if CLASS_ROWS_KEY in loaded:
        heads = {key: given[key] for key in loaded if key in CLASS_HEAD_ROWS}
        carried = _carry_classes(own, heads, classes_from, classes_to)
    fresh = tuple(name for name in classes_to if name not in carried)
    return _report(own, given, loaded, classes_carried=carried, classes_fresh=fresh, note=note)


def load_backbone(model: nn.Module, architecture: dict, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load a classification model's weights into the body of a detector's backbone.

    By name; where the names are another library's, by order, if the shapes are those of the whole classification
    model one after the other. Fewer than half of the body's tensors found is a ModelError.
    """
    own = model.backbone.body.state_dict()
    given = {key.removeprefix("backbone.body."): tensor for key, tensor in without_prefixes(state_dict).items()}
    named = {body_key(key, own.keys()) or key: tensor for key, tensor in given.items()}
    note = ""
    if not _half_found(own, named):
        found = len(_matching(own, named))
        named = _by_order(own, given, classifier(architecture["builder"]))
        note = "matched by order: the names are another library's, and the shapes agree one by one"
        if not _half_found(own, named):
            raise ModelError(
                f"These weights do not fit the backbone of {architecture['builder']}: of its {len(own)} tensors, "
                f"{found} are in the file by name, and by order the shapes differ. "
                f"The file has {_listed(given)}; the backbone needs {_listed(own)}"
            )
    loaded = _matching(own, named)
    _copy(own, {key: named[key] for key in loaded})
    return _report(own, named, loaded, note=note)


def coco_state(name: str) -> tuple[StateDict, tuple[str, ...]]:
    """torchvision's COCO weights of detector `name`, and the class of each row of its head after the background's.

    Rows without a class are named "N/A".
    """
    if name not in TORCHVISION_CLASSIFIERS:
        raise ModelError(
            f"There are no COCO weights for {name} (only for {', '.join(TORCHVISION_CLASSIFIERS)}). "
            "Start it with --weights backbone, --weights none, --weights FILE or --backbone-weights FILE"
        )
    weights = get_model_weights(name).DEFAULT
    return _torchvision_state(weights), tuple(weights.meta["categories"][1:])


def coco_classes() -> tuple[str, ...]:
    """The class of each row after the background's in torchvision's COCO heads; "N/A" for rows without one."""
    return tuple(get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.meta["categories"][1:])


def backbone_state(name: str) -> StateDict:
    """ImageNet weights of the classification model under detector `name`: torchvision's (V1, as its builders take)."""
    if name.startswith(TIMM_PREFIX):
        return _timm_state(name.removeprefix(TIMM_PREFIX))
    if name not in TORCHVISION_CLASSIFIERS:
        raise ModelError(f"There are no backbone weights for {name}: give --backbone-weights FILE or --weights none")
    return _torchvision_state(get_model_weights(TORCHVISION_CLASSIFIERS[name]).IMAGENET1K_V1)


def without_prefixes(state_dict: Mapping[str, Tensor]) -> StateDict:
    """The tensors of a state dict without what DistributedDataParallel and torch.compile put into their names."""
    return {WRAPPER_PREFIX.sub("", key): tensor for key, tensor in state_dict.items() if isinstance(tensor, Tensor)}


def _current_key(key: str, own: Mapping[str, Tensor]) -> str:
    renamed = OLD_TORCHVISION_KEY.sub(lambda m: f"{m[1]}.0.{m[3]}" if m[1] else f"{m[2]}.0.0.{m[3]}", key)
    return renamed if key not in own and renamed in own else key


def _matching(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return [key for key, tensor in own.items() if key in given and given[key].shape == tensor.shape]


def _half_found(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    return 2 * len(_matching(own, _uncounted(given))) >= len(_uncounted(own))


def _uncounted(state: Mapping[str, Tensor]) -> StateDict:
    return {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    # A state dict's tensors are the model's own memory.
    for key, tensor in given.items():
        own[key].copy_(tensor)


@torch.no_grad()
def _carry_classes(
    own: Mapping[str, Tensor], heads: Mapping[str, Tensor], classes_from: Sequence[str], classes_to: Sequence[str]
) -> tuple[str, ...]:
    """Copy the rows of the classes that both have, and the background's; returns the classes."""
    for whose, rows, classes in (
        ("file", len(heads[CLASS_ROWS_KEY]), classes_from),
        ("model", len(own[CLASS_ROWS_KEY]), classes_to),
    ):
        if rows != len(classes) + 1:
            raise ModelError(
                f"The {whose}'s head has {rows} rows (background and {rows - 1} classes), "
                f"but {len(classes)} classes are named for it: {some(classes)}"
            )
    row_of = {name: row for row, name in enumerate(classes_from, start=1) if name != NO_CLASS}
    pairs = [(0, 0)] + [(row, row_of[name]) for row, name in enumerate(classes_to, start=1) if name in row_of]
    to_rows, from_rows = (list(rows) for rows in zip(*pairs, strict=True))
    for key, tensor in heads.items():
        shape = (-1, CLASS_HEAD_ROWS[key])
        own[key].unflatten(0, shape)[to_rows] = tensor.to(own[key]).unflatten(0, shape)[from_rows]
    return tuple(name for name in classes_to if name in row_of)


def _by_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor], whole: nn.Module | None) -> StateDict:
    """`given` under the body's keys, paired by order with the classification model's tensors; empty if they differ."""
    expected = {} if whole is None else _uncounted(whole.state_dict())
    tensors = list(_uncounted(given).items())
    if len(tensors) != len(expected):
        return {}
    renamed: StateDict = {}
    for (key, wanted), (given_key, tensor) in zip(expected.items(), tensors, strict=True):
        in_body = body_key(key, own.keys())
        # The classifier's own last layers may have another number of classes.
        if in_body is not None and tensor.shape != wanted.shape:
            return {}
        renamed[in_body or given_key] = tensor
    return renamed


def _report(own: Mapping[str, Tensor], given: Mapping[str, Tensor], loaded: Sequence[str], **more) -> LoadReport:
    done = set(loaded)
    return LoadReport(
        loaded=tuple(loaded),
        skipped=tuple(key for key in _uncounted(given) if key not in done),
        missing=tuple(key for key in _uncounted(own) if key not in done),
        **more,
    )


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _listed(state: Mapping[str, Tensor]) -> str:
    return f"{len(state)} tensors: {some(f'{key} {tuple(tensor.shape)}' for key, tensor in state.items())}"


def _torchvision_state(weights: WeightsEnum) -> StateDict:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    return _download(
        lambda: weights.get_state_dict(progress=True, check_hash=True, weights_only=True),
        what=weights.url,
        by_hand=f"put that file at {path}" + (" (the one there is damaged: delete it)" if path.exists() else ""),
    )


def _timm_state(name: str) -> StateDict:
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    check_timm_name(name)
    pretrained = timm.get_pretrained_cfg(name)
    hub_name = pretrained.hf_hub_id if pretrained else None
    if not hub_name:
        raise ModelError(f"timm has no pretrained weights for {name}: give --backbone-weights FILE or --weights none")

    def get() -> StateDict:
        if not isinstance(try_to_load_from_cache(hub_name, "model.safetensors"), str):
            _check_reachable(constants.ENDPOINT)
        return timm.create_model(name, pretrained=True).state_dict()

    folder = Path(constants.HF_HUB_CACHE) / f"models--{hub_name.replace('/', '--')}"
    by_hand = f"run `hf download {hub_name}` where there is one and copy the folder to {folder}"
    return _download(get, what=f"{constants.ENDPOINT}/{hub_name}", by_hand=by_hand)


def _check_reachable(url: str) -> None:
    # Without a network the hub's client tries for most of a minute before it gives up.
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError as answer:
        answer.close()


def _download(get: Callable[[], StateDict], *, what: str, by_hand: str) -> StateDict:
    try:
        # torch.hub announces downloads on stdout, which belongs to a command's result.
        with contextlib.redirect_stdout(sys.stderr):
            return get()
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, pickle.UnpicklingError) as error:
        raise ModelError(
            f"Could not get the weights {what} ({error}). Without a network, {by_hand}; or start with --weights none, "
            "--weights FILE (a detector's checkpoint) or --backbone-weights FILE (a classifier's weights)"
        ) from error
