"""Checkpoints as plain data: written whole or not at all, read without running code. The only door to torch.save."""

import argparse
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.record import FORMAT, OLD_FORMAT, CheckpointError, inspect, sync_folder

PLAIN_TYPES = (type(None), bool, int, float, str)
TRAINING_STATE = ("raw_model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


class _HashingFile:
    """Hashes what torch.save writes on its way to the disk: a second read of 300 MB is saved."""

    def __init__(self, file):
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save(checkpoint: dict[str, Any], path: Path) -> str:
    """Write `checkpoint` to `path` atomically and return its sha256; an older file stays until the new one is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(plain(checkpoint), hashing)
            except RuntimeError:  # torch says nothing of a full disk
                if hashing.error is not None:
                    raise hashing.error from None
                raise
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return hashing.sha256.hexdigest()


def plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` as tensors, numbers, strings, lists and dicts; TypeError names what cannot be plain data."""
    if type(value) in PLAIN_TYPES:  # not isinstance: numpy's float64 is a float, and torch refuses to load it
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        for key in value:
            plain(key, f"{where}: the key {key!r}")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}: checkpoints hold tensors and plain data only")


def without_training_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The scored weights and what describes them: enough for everything but resuming."""
    return {key: value for key, value in checkpoint.items() if key not in TRAINING_STATE}


def load(path: Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint in any of the known forms into ours; CheckpointError says what is wrong with the file.

    Known: ours; torchvision's reference form (`model`, `optimizer`, `lr_scheduler`, `epoch`, `args`); the plain form
    (`epoch`, `model_state_dict`, `optimizer_state_dict`); a bare state dict. `module.` and `_orig_mod.` are stripped.
    `args`, the options that a file was trained by, become a dict.
    """
    verdict = inspect(path, verify=True)  # torch.load compares no checksum: it would load flipped bits
    if verdict.state == "absent":
        raise CheckpointError(f"No checkpoint at {path}: {verdict.detail}. What exists: python status.py", exit_code=2)
    if verdict.state != "ready" and verdict.detail != OLD_FORMAT:  # which torch reads, though without checksums
        raise CheckpointError(f"{path} is {verdict.state}: {_with_mend(verdict.detail)}", verdict.exit_code)
    try:
        # A Namespace is inert; it is in torchvision's reference form. Of what it refuses, torch warns beside raising.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch parses whatever bytes there are, and raises whatever they lead to
        raise CheckpointError(f"{path} cannot be loaded: {_with_mend(_refusal(error))}") from error
    return _our_form(content, path)


def _refusal(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"it holds more than plain data, or it is damaged: {first}"


def _with_mend(reason: str) -> str:
    if "more than plain data" not in reason:
        return reason
    return f"{reason}. Whoever made it can save plain data: torch.save(model.state_dict(), FILE)"


def _our_form(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        message = f"{path} has format {content['format']}; this code reads up to {FORMAT}. Update it: git pull"
        raise CheckpointError(message, exit_code=4)
    if "model_state_dict" not in content and isinstance(content.get("model"), Mapping):
        renamed = {"model": "model_state_dict", "optimizer": "optimizer_state_dict"}
        renamed["lr_scheduler"] = "scheduler_state_dict"
        content = {renamed.get(key, key): value for key, value in content.items()}
    if isinstance(content.get("args"), argparse.Namespace):
        content = content | {"args": vars(content["args"])}
    if "model_state_dict" not in content:
        if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise CheckpointError(f"{path} holds no model weights (no model_state_dict, no model)")
        content = {"model_state_dict": content}
    state = content["model_state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path}: its model_state_dict is no mapping of names to tensors")
    return content | {"model_state_dict": unwrapped(content["model_state_dict"])}


def unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without the prefixes that wrappers put before every key."""
    for prefix in WRAPPER_PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return unwrapped({key.removeprefix(prefix): value for key, value in state.items()})
    return dict(state)
