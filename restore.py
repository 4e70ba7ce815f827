"""Put a checkpoint into models/faster_rcnn, checked: a run's from MLflow, or a file from elsewhere."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commandline
import fetching
import publishing
import workspace
from models import record
from progress import say
from tracking.errors import RunUnknown, StoreError

REGISTERED = re.compile(r"[^@/:'\"\s][^@/:'\"]*@(?!(?:latest|v\d+)$)[\w-]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class RestoreConfig:
    """Restore a run's checkpoint, or a file, to models/faster_rcnn (pinned there: training will not replace it)."""

    run: commandline.Positional[commandline.Run] = None
    """The run: its ID, a unique prefix of it, its name, models:/NAME@ALIAS, or `best` (by --metric in --experiment)."""
    which: str = "best"
    """best, last, or an epoch's number (from 0, as in epoch-003)."""
    metric: str = "val/AP"
    """What makes a checkpoint the best; the higher the better."""
    experiment: commandline.Text = None
    """Look for the RUN in this experiment only. [all; for `best`: faster-rcnn]"""
    output: commandline.File = None
    """Another folder or .pth file to restore to. [models/faster_rcnn/checkpoint.pth]"""
    weights_only: bool = False
    """Leave out what only resuming needs (optimizer, raw weights): a smaller file to share."""
    register: commandline.Registered = None
    """Instead of restoring: make the checkpoint a version of this registered model, NAME@ALIAS, and set the alias."""
    file: commandline.File = None
    """A checkpoint from elsewhere instead of a RUN: ours, torchvision's, {epoch, model_state_dict, …}, a state dict."""
    model: commandline.Text = None
    """Of a --file that does not tell: which model it is, as for train.py."""
    classes: commandline.Classes = None
    """Of a --file that does not tell: `coco`, or a file with a class name a line, in label order, no background."""

    def __post_init__(self):
        if self.run is None and self.file is None:
            raise commandline.ConfigError("Give a RUN (python status.py names the last) or a checkpoint: --file FILE")
        if self.run is not None and self.file is not None:
            raise commandline.ConfigError("A RUN and --file both name a checkpoint: choose one")
        if self.run is not None and self.run.endswith(".pth"):
            raise commandline.ConfigError(f"{self.run} is a file, not a RUN: python restore.py --file {self.run}")
        of_a_run = (self.which, self.metric, self.experiment, self.register) != ("best", "val/AP", None, None)
        if self.file and of_a_run:
            raise commandline.ConfigError(
                "--which, --metric, --experiment and --register belong to a RUN, not to --file"
            )
        if not self.file and (self.model or self.classes):
            raise commandline.ConfigError("--model and --classes tell of a --file what it does not: a RUN knows both")
        if self.register and (self.output or self.weights_only):
            raise commandline.ConfigError("--register restores nothing: leave out --output and --weights-only")
        if self.register is not None and not REGISTERED.fullmatch(self.register):
            raise commandline.ConfigError(
                f"--register takes NAME@ALIAS, such as cells@champion, not {self.register!r} (no / : @ or quotes in "
                "the name, only letters, digits, - and _ in the alias; `latest` and v1, v2 … are MLflow's own)"
            )


def main(config: RestoreConfig) -> Path | str:
    """Restore the checkpoint and return its path; with --register the registered model's URI."""
    if config.register:
        return register(config)
    target = target_file(config.output)
    partial = target.with_name(f".{target.name}.{os.getpid()}.download")
    try:
        what, entry, store = from_file(config, partial) if config.file else from_store(config, partial)
        if config.weights_only:
            entry = strip(partial, entry)
        with publishing.publishing():
            keep_what_is_only_there(target, entry, store)
            record.put(partial, target, entry, move=True)
    finally:
        partial.unlink(missing_ok=True)
    say(f"restored {what}: {workspace.introduce(entry)}")
    return target


def register(config: RestoreConfig) -> str:
    """Make the checkpoint a version of a registered model (once) and set the alias on it."""
    store = fetching.store_of(config.run)
    stored = fetching.choose(store, config.run, config.which, config.metric, config.experiment)
    if not store.holds(stored):
        message = f"The file of {stored.name} of run {stored.run_id} is gone from the store"
        raise workspace.WorkspaceError(f"{message}. Choose another: --which last", exit_code=3)
    uri = store.register(stored, *config.register.split("@"))
    say(f"registered {stored.name} of run {stored.run_id}. To have it: python restore.py {uri}")
    return uri


def from_store(config: RestoreConfig, partial: Path) -> tuple[str, dict[str, Any], Any]:
    """Fetch a RUN's checkpoint into `partial`; what it is, its record's entry, and the store."""
    store = fetching.store_of(config.run)
    _, stored = fetching.fetch(store, config.run, config.which, config.metric, partial, config.experiment)
    verdict = record.inspect(partial)  # it has no record: its own content is judged
    if verdict.state != "ready":
        raise record.CheckpointError(f"{stored.name} of run {stored.run_id}: {verdict.detail}", verdict.exit_code)
    is_chosen = config.which in ("best", "last") and not config.run.startswith("models:/")
    # The file names the run and the store that it was trained into, as these were called then.
    entry = verdict.entry | {"run_id": stored.run_id, "tracking_uri": store.uri, "sha256": stored.sha256}
    entry |= {"role": config.which if is_chosen else "epoch", "pinned": True}
    return f"{stored.name} of run {stored.run_id}", entry, store


def from_file(config: RestoreConfig, partial: Path) -> tuple[str, dict[str, Any], None]:
    """Write a checkpoint from elsewhere into `partial`, as a whole one of ours; as from_store, but asks no store."""
    from models import checkpoint as checkpoints

    content = checkpoints.load(config.file)
    is_ours = record.says_what_it_is(content)
    content = fetching.whole(content, config.file, model=config.model, classes=config.classes)
    if is_ours:
        fetching.build_as_said(content, config.file)
        shutil.copyfile(config.file, partial)
        copy = record.inspect(partial)
        if copy.state != "ready":
            raise record.CheckpointError(f"{config.file} was changed while it was copied: {copy.detail}. Try again")
        entry = copy.entry
    else:
        entry = record.describe(content) | {"sha256": checkpoints.save(content, partial)}
    return str(config.file), entry | {"role": "file", "pinned": True}, None


def strip(partial: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Leave in the file what sharing needs; its entry, which names the file it was made from."""
    from models import checkpoint as checkpoints

    before = partial.stat().st_size
    content = checkpoints.without_training_state(checkpoints.load(partial))
    sha256 = checkpoints.save(content, partial)
    say(f"weights only: {before / 1e6:.1f} MB → {partial.stat().st_size / 1e6:.1f} MB; it cannot be resumed from")
    return entry | record.describe(content) | {"sha256": sha256, "weights_of": entry["sha256"]}


def target_file(output: Path | None) -> Path:
    """The file to write; WorkspaceError when its folder cannot be made or written."""
    target = output or workspace.PUBLISHED
    if target.suffix != ".pth":
        target = target / workspace.PUBLISHED.name
    workspace.require_writable(target.parent)
    return target.absolute()


def keep_what_is_only_there(target: Path, entry: dict[str, Any], store: Any) -> None:
    """Move the present file aside unless it is the same, or can be had again."""
    there = publishing.known_entry(target)
    if not target.exists() or there.get("sha256") == entry["sha256"]:
        return
    if publishing.is_safe_elsewhere(there, store or store_if_any()):
        return
    if aside := publishing.move_aside(target):
        say(f"what was there exists nowhere else: it is kept as {aside}")


def store_if_any() -> Any:
    """The store, unless there is none or it is away."""
    try:
        return fetching.open_store(must_exist=True)
    except (RunUnknown, StoreError):
        return None


def script(config: RestoreConfig) -> int:
    print(main(config))
    return 0


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(RestoreConfig))
