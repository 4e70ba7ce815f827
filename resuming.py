"""Which run is trained, a new one or one that continues; its last state found, put back, compared with today's.

Imports no torch before it is needed: that a run is finished is said at once.
"""

import tempfile
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config as options
import fetching
import workspace
from config import TrainConfig
from data_options import PATHS
from defaults import absolute, for_resume, resolved, to_repeat, with_model_of
from machine import usable_cores
from models import record
from models.record import CheckpointError
from progress import duration, say
from tracking.errors import DamagedArtifact, RunUnknown, StoreError
from tracking.ownership import is_ours, owners_of
from tracking.pulse import HEARTBEAT_SECONDS, SILENT_SECONDS
from tracking.records import FACTS, StoredRun, last_word
from tracking.recovery import download_recovery, recovery_point
from tracking.store import Store, open_store

if TYPE_CHECKING:
    pass

LIMITS = ("epochs", "max_steps", "patience")
OF_OPTIMIZATION = {"lr", "momentum", "weight_decay", "schedule", "milestones", "warmup_steps", "epochs"}
WATCH_SECONDS = 2.5 * HEARTBEAT_SECONDS


@dataclass(frozen=True, kw_only=True)
class Start:
    """The run to train and its whole configuration."""

    store: Store
    config: TrainConfig
    defaults: dict[str, Any]  # what the user left open and we chose
    run_id: str | None  # of the run that continues
    facts: dict[str, Any]  # what RunInfo says of it
    file: Path | None = None  # that a new run continues

    @property
    def is_over(self) -> bool:
        """Whether the run is finished and nothing more is asked of it."""
        if self.run_id is None or any(self.facts["config"].get(name) != getattr(self.config, name) for name in LIMITS):
            return False
        return has_finished(self.store, self.run_id)


def choose(config: TrainConfig) -> Start:
    """Open the store, end the dead, and find the run that --resume continues; WorkspaceError when that is training."""
    store = open_store(workspace.ROOT) if config.dry_run else fetching.open_store()
    say(f"tracking: {store.uri}")
    if not config.dry_run:
        store.require_in_place()
    config = config.with_absolute_paths()
    named = config.data if config.data != "generated" else config.folder_of_files or config.data
    config = replace(config, data=absolute(named))
    file = None if config.resume in (None, "auto") else fetching.file_named(config.resume)
    run_id = None if file else run_to_resume(store, config)
    if run_id is None:
        if file is None and (architecture := weights_of(store, config)):
            config = with_model_of(config, architecture)
        config, defaults = resolved(config, cores=usable_cores())
        return Start(store=store, config=config, defaults=defaults, run_id=None, facts={}, file=file)
    facts = stored_facts(store, run_id)
    stored = options.from_plain(facts["config"])
    given = ["data", *(name for name in PATHS if getattr(stored, name) and getattr(config, name))]
    # Moved: prepare compares what lies there.
    stored = replace(stored, **{name: getattr(config, name) for name in given})
    if stored.augmentation.startswith("{"):  # the content of a file: compared with today's
        from data.transforms import read_augmentation

        config = replace(config, augmentation=read_augmentation(config.augmentation))
    config = for_resume(stored, config, facts.get("defaults", ()))
    return Start(store=store, config=config, defaults={}, run_id=run_id, facts=facts)


def weights_of(store: Store, config: TrainConfig) -> dict[str, Any] | None:
    """The architecture of --weights FILE or RUN, which is what one means to train on; None where none is known."""
    word = config.weights
    if word in (None, "coco", "backbone", "none"):
        return None
    if file := fetching.file_named(word):
        return record.inspect(file).entry.get("architecture") or told_by_tensors(file, config)
    try:
        return stored_facts(store, run_id_of(store, word, config.experiment)).get("architecture")
    except RunUnknown:  # which is said where the weights are loaded
        return None


def told_by_tensors(file: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The model of a file from elsewhere, unless --model says it."""
    if config.model is not None:
        return None
    from models import checkpoint as checkpoints
    from models import foreign

    told = foreign.model_told(checkpoints.load(file), file)
    return told and {"builder": told, "kwargs": {}}


def has_finished(store: Store, run_id: str) -> bool:
    """Whether the run's last word was that it is finished: its folder's, or the store's of another machine's run."""
    if local_state(store, run_id):
        return workspace.RunFolder(run_id).training() == "finished"
    return store.run(run_id).status == "FINISHED"


def local_state(store: Store, run_id: str) -> dict[str, Any]:
    """What the run's folder says of it; nothing where there is none, or the run went on elsewhere since."""
    folder = workspace.RunFolder(run_id)
    state = folder.state()
    try:
        tags = store.run(run_id).tags if state else {}
    except RunUnknown:
        return state
    return state if is_ours(tags, owners_of(folder.path)) else {}


@dataclass(kw_only=True)
class Position:
    """How far the run got: what a resumed run continues from."""

    epoch: int = -1  # the last finished one, from 0
    step: int = 0  # optimizer steps done
    batches_done: int = 0  # in the epoch after `epoch`
    best: dict[str, Any] | None = None  # epoch, step, metric, value
    metrics: dict[str, float] = field(default_factory=dict)  # of this position; empty where it was not scored
    validations_since_best: int = 0

    @property
    def name(self) -> str:
        """What a checkpoint taken here is called in MLflow."""
        return f"epoch-{self.epoch:03d}" if self.batches_done == 0 else f"step-{self.step:06d}"


def run_id_of(store: Store, word: str, experiment: str) -> str:
    """The run that --resume or --from-run names; `best` is that of the --experiment, others may be in any."""
    best_in = experiment if word == workspace.BEST else None
    if local := workspace.local_run(word):
        return store.known_as(local) or local
    return fetching.run_named(store, word, best_in).run_id


def run_to_resume(store: Store, config: TrainConfig) -> str | None:
    """The run that --resume names; with `auto` the newest of its --run-name that saved anything, None to start it."""
    if config.resume is None:
        return None
    if config.resume != "auto":
        run_id = run_id_of(store, config.resume, config.experiment)
        with fetching.naming_its_store(run_id, store.uri):  # a run that another store has is not continued in this one
            require_idle(store, store.run(run_id))
        return run_id
    for run in store.runs_named(config.run_name, config.experiment):
        require_idle(store, run)
        if workspace.RunFolder(run.run_id).can_resume() or store.checkpoints(run.run_id) or recovery_point(run.tags):
            return run.run_id
    say(f"no run {config.run_name!r} in experiment {config.experiment!r} has saved anything yet: it starts now")
    return None


def require_idle(store: Store, run: StoredRun) -> None:
    """WorkspaceError when the run is training, here or on another machine.

    A run that the store calls RUNNING may have died: whoever spoke lately has its heart listened to.
    """
    folder, said = workspace.RunFolder(run.run_id), last_word(run.tags)
    folder.require_idle()
    if folder.has_said(said):
        return
    last_beat = said.get("time", 0)
    silent_for = time.time() - last_beat / 1000
    if run.status != "RUNNING" or silent_for > SILENT_SECONDS:
        return
    where = f"on {said.get('host')} (process {said.get('pid')})"
    ago = duration(silent_for)
    say(f"run {run.run_id} trained {where} {ago} ago: listening {WATCH_SECONDS:.0f} s whether it still does")
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        now = store.run(run.run_id)
        if now.status != "RUNNING":
            return
        if last_word(now.tags).get("time") != last_beat:
            raise workspace.WorkspaceError(f"Run {run.run_id} is training now {where}. See it: python status.py")


def stored_facts(store: Store, run_id: str) -> dict[str, Any]:
    """What RunInfo says of a run: from its folder or, on another machine, from MLflow."""
    facts = local_state(store, run_id) or store.read_json(run_id, FACTS) or resumable_checkpoint(store, run_id)[0]
    if not facts.get("config"):
        raise workspace.WorkspaceError(f"Run {run_id} was not trained by this repository: it records no configuration")
    return facts


def stored_config(store: Store, run_id: str) -> TrainConfig:
    """A run's configuration, as it was resolved."""
    return config_of(stored_facts(store, run_id))


def config_of(facts: dict[str, Any]) -> TrainConfig:
    return replace(options.from_plain(facts["config"]), data=workspace.data_of(facts))


def configuration(store: Store, run: str, experiment: str) -> TrainConfig:
    """The configuration of a RUN for a new one that repeats it, or varies it by `dataclasses.replace`."""
    run_id = run_id_of(store, run, experiment)
    facts = stored_facts(store, run_id)
    stored = config_of(facts)
    return replace(to_repeat(stored, facts.get("defaults", ()), cores=usable_cores()), from_run=run_id)


def resumable_checkpoint(store: Store, run_id: str) -> tuple[dict[str, Any], str]:
    """The newest state of a run, and where it was found.

    That is last.pth of its folder or, where MLflow has gone further, its recovery point or last checkpoint there.
    """
    from models import checkpoint as checkpoints

    last = workspace.RunFolder(run_id).last
    stored, point = store.checkpoints(run_id, with_pruned=True), recovery_point(store.run(run_id).tags)
    step_stored = max(stored[-1].step if stored else -1, point.get("step", -1))
    try:
        if last.exists():
            saved = checkpoints.load(last)
            if saved.get("step", 0) >= step_stored:
                return saved, str(last)
            say(f"{last} (step {saved.get('step')}) is behind MLflow (step {step_stored}): the run went on elsewhere")
    except CheckpointError as error:
        say(f"{error}; what MLflow has is used instead")
    is_recovered = bool(point) and (not stored or point["step"] > stored[-1].step)
    if stored and stored[-1].pruned and not is_recovered:
        raise workspace.WorkspaceError(
            f"Run {run_id} cannot go on: its last state, {stored[-1].name}, was pruned ({stored[-1].pruned}). "
            f"A new run can start from its best: python train.py --weights {run_id}"
        )
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        if is_recovered:
            try:
                return recovered(store, run_id, point, Path(folder)), "the recovery point in MLflow"
            except (CheckpointError, StoreError) as error:
                say(f"{error}; the run's last checkpoint is used instead")
        for one in reversed([one for one in stored if not one.pruned]):
            try:
                path = store.download(one, Path(folder) / "checkpoint.pth")
                return checkpoints.load(path), f"{one.name} in MLflow"
            except (CheckpointError, DamagedArtifact) as error:
                say(f"{error}. An older one is tried")
    if not stored:
        raise workspace.WorkspaceError(f"Run {run_id} has saved nothing that it could continue from")
    raise CheckpointError(f"Run {run_id} cannot go on: none of its states is whole, here or in {store.uri}")


def recovered(store: Store, run_id: str, point: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The run's recovery point, checked; CheckpointError or StoreError where it is not what was sent."""
    from models import checkpoint as checkpoints

    path = download_recovery(store, run_id, folder)
    saved = checkpoints.load(path)
    # The file arrives before the tag that tells its hash: one of another step is newer.
    if saved.get("step") == point["step"] and record.file_sha256(path) != point["sha256"]:
        raise CheckpointError(f"The recovery point of run {run_id} in MLflow is damaged: its hash is another")
    return saved


def restore(saved: dict[str, Any], model, optimizer, schedule, scaler, average=None) -> Position:
    """Put a checkpoint's state into the freshly built parts; CheckpointError when it is not a whole training state."""
    needed = ["optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "step"]
    needed += [] if average is None else ["raw_model_state_dict"]
    missing = [key for key in needed if key not in saved]
    if missing:
        raise CheckpointError(f"The checkpoint cannot be resumed from: it has no {', '.join(missing)}", exit_code=4)
    model.load_state_dict(saved["model_state_dict"] if average is None else saved["raw_model_state_dict"])
    if average is not None:
        average.module.load_state_dict(saved["model_state_dict"])
        average.n_averaged.fill_(saved["step"])
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    schedule.load_state_dict(saved["scheduler_state_dict"])
    if saved["scaler_state_dict"]:  # else the run had no scaler then
        scaler.load_state_dict(saved["scaler_state_dict"])
    return Position(**{one.name: saved[one.name] for one in fields(Position) if one.name in saved})


def adopt(config: TrainConfig, optimizer, schedule) -> None:
    """Let the restored optimizer and schedule go on with the options of `config` instead of the stored ones."""
    for group in optimizer.param_groups:
        now = {"initial_lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
        group |= {name: value for name, value in now.items() if name in group}
    schedule.base_lrs = [config.lr for _ in schedule.base_lrs]
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = config.lr * factor(schedule.last_epoch)


def receipt(saved: dict[str, Any], position: Position, source: str) -> str:
    """What is restored, and from where."""
    where = f"after epoch {position.epoch}" if position.batches_done == 0 else f"in epoch {position.epoch + 1}"
    parts = ["weights", "optimizer", "schedule"]
    parts += ["averaged weights"] if "raw_model_state_dict" in saved else []
    parts += ["gradient scaler"] if saved["scaler_state_dict"] else []
    if best := position.best:
        parts.append(f"best so far ({best['metric']} {best['value']:.4f} in {best['name']})")
    return f"resuming run {saved['run_id']} {where}, step {position.step}, from {source}: {', '.join(parts)}"
