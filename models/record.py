"""What lies at a checkpoint's path, told without importing torch: the record beside it, its hash, its own data.

Beside `checkpoint.pth` lies `checkpoint.json`. Two files cannot be replaced at one instant, so the record is written
first and describes both files a reader may find: `current` (about to be put in place) and `previous`.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import archive as archives

FORMAT = 1  # of our checkpoints; a file with a higher one was written by a newer version of this repository
ZIP_START, LEGACY_TORCH_START = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# COCO's category numbers have gaps (80 classes in 1..90), and torchvision's heads have a row for each gap.
NO_CLASS = "N/A"
OLD_FORMAT = "a file in PyTorch's old format, which carries no checksums"
MOST_VALUES, DEEPEST = 100_000, 50  # of what describes a checkpoint
DAMAGED = ("empty", "truncated", "corrupt", "not-a-checkpoint")


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used; `exit_code` 3 when damaged, 4 when it does not fit."""

    def __init__(self, message: str, exit_code: int = 3):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Verdict:
    """The state of one checkpoint file. `entry` is what is known of its content (run, epoch, metrics, classes …)."""

    state: str  # ready, absent, empty, not-a-checkpoint, truncated, corrupt, incompatible
    detail: str = ""
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return {"ready": 0, "absent": 1, "incompatible": 4}.get(self.state, 3)


def record_path(path: Path) -> Path:
    """`checkpoint.json` beside `checkpoint.pth`."""
    return path.with_suffix(".json")


def read_record(path: Path) -> dict[str, Any]:
    """The record beside the checkpoint at `path`; empty where there is none or it cannot be read."""
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the file's own data decide then
    return record if isinstance(record, dict) and isinstance(record.get("current"), dict) else {}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inspect(path: Path, verify: bool = False) -> Verdict:
    """Judge the file at `path`; it is hashed when its size or time differ from the record's, and with `verify`."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        dangling = f"it is a link to {path.readlink()}, where there is none" if path.is_symlink() else ""
        return Verdict("absent", dangling or "there is no file")
    except OSError as error:
        return Verdict("not-a-checkpoint", f"it cannot be looked at: {error.strerror}")
    if not path.is_file():
        return Verdict("not-a-checkpoint", f"it is a {'folder' if path.is_dir() else 'pipe or device'}, not a file")
    if stat.st_size == 0:
        return Verdict("empty", "it has no bytes")
    try:
        verdict = _judge(path, stat, verify)
        now = path.stat()
        is_replaced = (now.st_ino, now.st_size, now.st_mtime_ns) != (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        # What was read may be of two files, or of one with the other's record.
        return inspect(path, verify) if is_replaced and verdict.state != "ready" else verdict
    except FileNotFoundError:
        return Verdict("absent", "there is no file any more")
    except PermissionError as error:  # it may be as good as ever: whoever replaces it moves it aside
        return Verdict("not-a-checkpoint", f"it cannot be read: {error.strerror}")
    except OSError as error:
        return Verdict("corrupt", f"it cannot be read: {error.strerror or error}")


def _judge(path: Path, stat: os.stat_result, verify: bool) -> Verdict:
    record = read_record(path)
    recorded = (record.get("current"), record.get("previous"))
    entries = [well_formed(entry) for entry in recorded if isinstance(entry, dict)]
    if not verify:
        for entry in entries:
            if (entry.get("size_bytes"), entry.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
                return _fitting(entry)
    sha256 = file_sha256(path)
    for entry in entries:
        if entry.get("sha256") == sha256:
            return _fitting(entry)
    verdict = _judge_content(path)
    is_of_recorded_size = stat.st_size in [entry.get("size_bytes") for entry in entries]
    if verdict.state in ("truncated", "not-a-checkpoint") and is_of_recorded_size:
        return Verdict("corrupt", "it has its recorded size, but not the recorded hash")
    if verdict.state != "ready":
        return verdict
    own = verdict.entry | {"sha256": sha256}
    if not entries:
        return Verdict("ready", entry=own)
    if any((own.get("run_id"), own.get("step")) == (entry.get("run_id"), entry.get("step")) for entry in entries):
        return Verdict("corrupt", "its content is not what was recorded for this run and step (the hash differs)")
    return Verdict("ready", "not the file its record describes: it was put here by hand", own)


def _fitting(entry: dict[str, Any]) -> Verdict:
    return _incompatibility(entry) or Verdict("ready", entry=entry)


def _incompatibility(entry: dict[str, Any]) -> Verdict | None:
    if isinstance(entry.get("format"), int) and entry["format"] > FORMAT:
        detail = f"format {entry['format']}; this code reads up to {FORMAT}: update the repository (git pull)"
        return Verdict("incompatible", detail, entry)
    return None


def _judge_content(path: Path) -> Verdict:
    """The verdict from the file's own bytes: its zip structure, CRCs and plain data."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_TORCH_START))
    if start == LEGACY_TORCH_START:
        return Verdict("not-a-checkpoint", OLD_FORMAT)
    if not start.startswith(ZIP_START[: len(start)]):
        return Verdict("not-a-checkpoint", "it does not begin as a PyTorch file does")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                return Verdict("corrupt", f"the checksum of {damaged} inside it does not match")
            if contradiction := archives.defect(archive):
                return Verdict("corrupt", contradiction)
            content = read_plain(archive)
    except zipfile.BadZipFile as error:
        truncated = "not a zip file" in str(error)  # no directory at its end: the end is missing
        return Verdict("truncated" if truncated else "corrupt", "its end is missing" if truncated else str(error))
    except KeyError:
        return Verdict("not-a-checkpoint", "a zip archive, but not one that PyTorch wrote")
    except _NotPlain as error:
        return Verdict("not-a-checkpoint", f"it holds more than plain data: {error}")
    except Exception as error:  # any byte may be flipped in headers that no checksum covers
        return Verdict("corrupt", f"it cannot be decoded: {type(error).__name__}: {error}")
    if not isinstance(content, dict) or not _weights(content):
        return Verdict("not-a-checkpoint", "a PyTorch file without a model's weights in it")
    entry = describe(content) | {"size_bytes": path.stat().st_size}
    return _incompatibility(entry) or _contradiction(content, entry) or Verdict("ready", entry=entry)


def _weights(content: dict) -> dict:
    for key in ("model_state_dict", "model", "state_dict"):
        if isinstance(content.get(key), dict):
            return content[key]
    return content if any(isinstance(value, TensorShape) for value in content.values()) else {}


def _contradiction(content: dict, entry: dict[str, Any]) -> Verdict | None:
    weights = _weights(content).items()
    head = next((value for key, value in weights if str(key).endswith("box_predictor.cls_score.weight")), None)
    classes = entry.get("classes")
    if isinstance(head, TensorShape) and isinstance(classes, list) and head.shape[0] != len(classes) + 1:
        detail = f"its class head has {head.shape[0]} rows, its class list {len(classes)} names and background"
        return Verdict("incompatible", detail, entry)
    return None


DESCRIBED = {
    **dict.fromkeys(("run_id", "run_name", "experiment", "tracking_uri", "role", "code_version"), str),
    **dict.fromkeys(("format", "epoch", "epochs", "step", "batches_done"), int),
    **dict.fromkeys(("metrics", "best", "architecture", "dataset", "evaluation"), dict),
    "classes": list,
}


def describe(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of a checkpoint's content: everything plain that people and scripts ask for."""
    entry = well_formed({key: checkpoint[key] for key in DESCRIBED if key in checkpoint})
    # Only a run can be resumed: a stranger's optimizer state belongs to none.
    resumable = "run_id" in entry and isinstance(checkpoint.get("optimizer_state_dict"), dict)
    return entry | {"resumable": resumable}


def well_formed(entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` without what is not as we write it: a stranger's file may hold anything under these names."""
    return {key: value for key, value in entry.items() if key not in DESCRIBED or _is_well_formed(key, value)}


def says_what_it_is(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint names its architecture and classes, as ours do."""
    return {"architecture", "classes"} <= well_formed(checkpoint).keys()


def _is_well_formed(key: str, value: Any) -> bool:
    if type(value) is not DESCRIBED[key] or not _is_plain(value):
        return False
    if key == "run_id":
        return is_run_id(value)
    if key == "classes":
        return all(isinstance(name, str) for name in value)
    if key == "metrics":
        return all(isinstance(number, int | float) for number in value.values())
    return key != "dataset" or isinstance(value.get("name"), str)


def is_run_id(word: str) -> bool:
    """Whether a word can be a run's ID, and so the name of its folder: no path can."""
    return re.fullmatch(r"[\w-]+", word) is not None


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it; a stranger's lists may be endless, or double in length with every level."""
    left, visited = [(value, 0)], 0
    while left and visited < MOST_VALUES:
        visited += 1
        one, depth = left.pop()
        if isinstance(one, dict | list) and depth == DEEPEST:
            return False
        if isinstance(one, dict) and all(isinstance(key, str) for key in one):
            left += [(item, depth + 1) for item in one.values()]
        elif isinstance(one, list):
            left += [(item, depth + 1) for item in one]
        elif not isinstance(one, str | int | float | None):
            return False
    return not left


@dataclass(frozen=True)
class TensorShape:
    """Stands for a tensor when a checkpoint is read without torch."""

    shape: tuple[int, ...]


class _Mapping(dict):
    """Stands for OrderedDict: a state dict of torch carries an attribute (`_metadata`), which a dict cannot take."""


class _Inert:
    """Stands for any other class: a pickle can name it and call it, and nothing happens."""

    def __init__(self, *args, **kwargs):
        self.arguments = args

    def __setstate__(self, state):
        self.state = state


class _NotPlain(pickle.UnpicklingError):
    """The file names code that torch.load(weights_only=True) refuses too."""


# Beside torch's own, what checkpoint.load accepts (pickles of protocol 2 say __builtin__).
PLAIN_NAMES = {
    "collections.OrderedDict",
    "collections.Counter",
    "argparse.Namespace",
    "_codecs.encode",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads the structure of a torch file; tensors become their shapes and no code of the file can run."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, *rest: TensorShape(tuple(shape))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *rest: tensor
        if module.partition(".")[0] != "torch" and f"{module}.{name}" not in PLAIN_NAMES:
            raise _NotPlain(f"{module}.{name}")
        return _Inert

    def persistent_load(self, identifier):
        return identifier


def read_plain(archive: zipfile.ZipFile) -> Any:
    """The object that torch.save wrote into `archive`, with shapes for tensors; KeyError where there is none."""
    name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "data.pkl")
    with archive.open(name) as file:
        return _PlainUnpickler(file).load()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def put(source: Path, path: Path, entry: dict[str, Any], *, move: bool = False) -> None:
    """Place `source` at `path` as its own copy with its record, never losing the good file that was there.

    `entry` must carry the sha256 of `source`; a copy that does not match it is refused (CheckpointError).
    With `move`, `source` itself is renamed into place: it must be a private file on the same file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = source
    if not move:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        shutil.copyfile(source, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    try:
        if file_sha256(partial) != entry["sha256"]:
            raise CheckpointError(f"The copy of {source} does not have the recorded sha256 {entry['sha256'][:12]}…")
        stat = partial.stat()
        entry = entry | {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        previous = inspect(path)
        kept = previous.entry if previous.state == "ready" and "sha256" in previous.entry else None
        write_json(record_path(path), {"current": entry, "previous": kept})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
