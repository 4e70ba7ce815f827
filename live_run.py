"""A run while it trains: its folder and lock, journal and sender, checkpoints and publishing, as one object."""

import gzip
import json
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import config as options
import disk
import publishing
import workspace
from description import describe_run
from models import record
from pace import Pace
from progress import duration, say
from retention import KEEP_ALL, newest_and_best, parse_keep
from tracking.errors import TakenOver
from tracking.journal import REFUSED, now_ms
from tracking.ownership import Ownership, forget_superseded
from tracking.records import PROGRESS, last_word
from workspace import RunFolder

DELIVERY_SECONDS = 120.0  # how long a finished run waits for a store that still takes what it is sent
AWAY_SECONDS = 5.0  # … and for one that does not answer
STEPS_EVERY_SECONDS, STATE_EVERY_SECONDS = 0.2, 5.0


class Stopped(Exception):
    """A signal asked the run to stop; it is saved and can be resumed."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What stays the same over the life of a run, and what every checkpoint carries."""

    run_id: str
    run_name: str
    experiment: str
    tracking_uri: str
    config: dict[str, Any]
    classes: tuple[str, ...]
    architecture: dict[str, Any]
    dataset: dict[str, Any]  # name, fingerprint, split_fingerprints
    evaluation: dict[str, Any]  # what the validation score depends on: batch_size, amp, threads, averaged
    epochs: int
    total_steps: int
    steps_per_epoch: int
    code_version: str | None
    code_digest: str | None  # of what is not in that commit
    packages: dict[str, str]
    defaults: tuple[str, ...]  # the options that were left open

    def in_checkpoint(self) -> dict[str, Any]:
        """As plain data: lists for tuples."""
        facts = {key: value for key, value in asdict(self).items() if key != "total_steps"}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def best_key(best: dict[str, Any]) -> str:
    """The metric that says the best so far: best/AP for val/AP."""
    return f"best/{best['metric'].removeprefix('val/')}"


class LiveRun:
    """A context manager: leaving it ends the run truthfully (FINISHED, KILLED or FAILED) and delivers the rest."""

    def __init__(
        self,
        store: Any,
        info: RunInfo,
        *,
        publish: str,
        resumed: bool,
        position: dict[str, Any],
        optimizer: Any,
        checkpoint_bytes: int,
    ):
        self.store, self.info, self.how_to_publish, self.resumed = store, info, publish, resumed
        self.optimizer = optimizer  # which waits for a checkpoint's copy
        self.folder = RunFolder(info.run_id)
        self.stack = ExitStack()
        self.position = dict(position)  # epoch, step and best
        self.kept_elsewhere: dict[str, Any] = {}  # this run's checkpoints that only another machine's journal names
        self.budget = disk.Budget(
            limit=info.config["disk_budget"] and options.parse_size(info.config["disk_budget"]),
            folder=self.folder,
            artifacts=store.run_artifacts(info.run_id),
            checkpoint_bytes=checkpoint_bytes,
        )
        self.steps: deque[tuple[dict[str, float], int, int]] = deque()  # metrics, step, time in ms: not yet journalled
        self.logging_steps = threading.Lock()
        self.over = threading.Event()
        self.untold: OSError | None = None  # what hindered the writing of either
        self.queued: dict[str, tuple[int, float]] = {}  # (step, value) of the scores on their way into the journal

    def __enter__(self) -> "LiveRun":
        try:
            self.stack.enter_context(self.folder.locked())
            self._begin()
        except workspace.WorkspaceError:  # another process has the run
            raise
        except BaseException:  # the MLflow run is there already, and must not stay RUNNING for ever
            with self.stack:
                self.store.end(self.info.run_id, "KILLED" if self.resumed else "FAILED")
            raise
        return self

    def _begin(self) -> None:
        from models.writer import Writer
        from tracking.run import TrackedRun
        from tracking.sender import Sender

        info = self.info
        for partial in self.folder.path.glob(".*.partial"):  # of a process that died writing: the lock is ours
            partial.unlink()
        self.writer = Writer(self.optimizer)
        self.tracked = TrackedRun(self.folder.path, info.run_id)
        self.stack.callback(self.tracked.close)
        self.ownership = Ownership(self.folder.path, self.store, info.run_id)
        went_on_elsewhere = self.ownership.claim()
        self.spoke = time.time()
        self.pages = self.store.ui_urls(info.run_id)
        self.elsewhere: dict[str, list[tuple[int, float]]] = {}
        self.first_new_step = self.tracked.journal.last_step() + 1
        if self.resumed:
            last_stored = self.store.last_train_step(info.run_id)
            if went_on_elsewhere:
                names = {one.name for one in self.store.checkpoints(info.run_id, with_pruned=True)}
                forget_superseded(self.tracked.journal, last_step=last_stored, checkpoints=names)
            if last_stored >= self.first_new_step:
                self.elsewhere = self.store.histories(info.run_id, ("train/", "val/"))
                self.first_new_step = last_stored + 1
        before = self.folder.state()
        if self.resumed:
            before = before or last_word(self.store.run(info.run_id).tags)
        self.pace = Pace(
            total_steps=info.total_steps,
            steps_per_epoch=info.steps_per_epoch,
            seconds_before=before.get("seconds", 0.0),
        )
        self.folder.update(
            **info.in_checkpoint() | workspace.whoami() | self.position | self.times(),
            **{
                "total_steps": info.total_steps,
                "state": "running",
                "started": before.get("started", time.time()),
            },
        )
        if self.resumed:  # after run.json, by which the run is ended if this is as far as we get
            self.store.resume_run(info.run_id)
        if self.resumed and info.config["keep"] != KEEP_ALL:
            stored = self.store.checkpoints(info.run_id)
            self.kept_elsewhere = {one.name: one for one in stored if not self.tracked.journal.has_checkpoint(one.name)}
            self._prune(self.position["best"])
        self.sender = Sender(self.folder.path, self.store, heartbeat=self.heartbeat)
        self.sender.start()
        teller = threading.Thread(target=self._tell, name="run-state", daemon=True)
        self.stack.callback(teller.join)
        self.stack.callback(self.over.set)
        teller.start()
        self._publish_missed()

    def times(self) -> dict[str, float | None]:
        left = self.pace.seconds_left
        return {"seconds": round(self.pace.seconds, 1), "seconds_left": None if left is None else round(left, 1)}

    def heartbeat(self) -> dict[str, Any]:
        info, position = self.info, {key: self.position.get(key) for key in ("epoch", "step")}
        plan = {"epochs": info.epochs, "total_steps": info.total_steps, "steps_per_epoch": info.steps_per_epoch}
        return position | plan | self.times()

    def progress(self) -> dict[str, str]:
        """The tag by which other machines see how far an ended run got, and its best."""
        return {PROGRESS: json.dumps(self.heartbeat() | {"best": self.position.get("best")})}

    def at(self, **position: Any) -> None:
        """Say how far the run is; run.json follows every few seconds, so that status.py can tell.

        TakenOver where this process was suspended and the run went on elsewhere meanwhile.
        """
        silent, self.spoke = time.time() - self.spoke, time.time()
        self.ownership.require_after(silent)
        self.position |= position
        self.pace.step(position["step"])
        if self.untold is not None:
            raise self.untold

    def _tell(self) -> None:
        """Keep journal and run.json up to date, in a thread of its own."""
        told = time.monotonic()
        while not self.over.wait(STEPS_EVERY_SECONDS):
            try:
                self._log_steps()
                if time.monotonic() - told > STATE_EVERY_SECONDS:
                    told = time.monotonic()
                    self.folder.update(**self.position | self.times())
            except OSError as error:  # the loop raises it: a full disk ends the run
                self.untold = error

    def log_step(self, values: dict[str, float], step: int) -> None:
        """Training metrics of one step; a step replayed after a resume has been sent before and is left out.

        They wait in memory for a moment: while a checkpoint is written, the disk lets others wait.
        """
        if step >= self.first_new_step:
            self.steps.append((values, step, now_ms()))

    def _log_steps(self) -> None:
        """Journal the steps so far; before a checkpoint is saved, since a run that resumes from it skips them."""
        with self.logging_steps:
            while self.steps:
                values, step, at = self.steps[0]
                self.tracked.metrics(values, step, at=at)
                self.steps.popleft()  # only now: on a full disk the end tries again

    def save_last(self, checkpoint: dict[str, Any], *, share: bool) -> None:
        """Write the resumable last.pth of the run folder, beside the training; the previous stays until it is whole.

        With `share` it becomes the run's recovery point in the store, from which another machine can resume.
        """
        self.writer.write(checkpoint, lambda copy: self._save_last(copy, share))

    def _save_last(self, checkpoint: dict[str, Any], share: bool) -> str:
        from models.checkpoint import save

        self._log_steps()
        self.budget.require_room(self.tracked.journal.kept_checkpoints())
        sha256 = save(checkpoint, self.folder.last)
        if share:
            self.tracked.recovery_point(self.folder.last, step=checkpoint["step"], sha256=sha256)
        return sha256

    def has_checkpoint(self, name: str) -> bool:
        """Whether that checkpoint is on its way to the store, or there."""
        if self.tracked.journal.has_checkpoint(name):
            return True
        return any(one.name == name for one in self.store.checkpoints(self.info.run_id, with_pruned=True))

    def log_checkpoint(self, name: str, checkpoint: dict[str, Any], scores: dict[str, float]) -> None:
        """Save a finished epoch's checkpoint, queue it for MLflow, and publish it when it is the best so far.

        All beside the training, which goes on meanwhile.
        """
        self.pace.pause()
        self.position |= {key: checkpoint[key] for key in ("epoch", "step", "best")}
        self.queued = {key: (checkpoint["step"], value) for key, value in self.tracked.named(scores).items()}
        self.writer.write(checkpoint, lambda copy: self._log_checkpoint(name, copy, scores))

    def _log_checkpoint(self, name: str, checkpoint: dict[str, Any], scores: dict[str, float]) -> None:
        sha256 = self._save_last(checkpoint, share=False)
        digest = self.info.dataset["split_fingerprints"]["val"]
        if not self.tracked.journal.has_checkpoint(name):
            self._log_best(checkpoint)
            self.tracked.checkpoint(
                name,
                self.folder.last,
                sha256=sha256,
                step=checkpoint["step"],
                metrics=scores,
                params={"architecture": self.info.architecture["builder"], "dataset": self.info.dataset["name"]},
                tags={"epoch": str(checkpoint["epoch"])},
                dataset=(f"{self.info.dataset['name']}-val", digest),
            )
        self.folder.update(**{key: checkpoint[key] for key in ("epoch", "step", "best")}, checkpoint_sha256=sha256)
        self._prune(checkpoint["best"])
        self.tracked.tags(self.progress())
        self.describe("training")
        if checkpoint["best"] and checkpoint["best"]["step"] == checkpoint["step"]:
            self._publish(record.describe(checkpoint) | {"sha256": sha256, "role": "best"})

    def _prune(self, best: dict[str, Any] | None) -> None:
        """Queue that the files of checkpoints go that --keep does not name, save the best and the last."""
        keep = self.info.config["keep"]
        kept = self.kept_elsewhere | self.tracked.journal.kept_checkpoints()
        stay = newest_and_best(kept, best)
        for name in parse_keep(keep).superseded(kept, stay=stay):
            self.tracked.prune(name, f"--keep {keep}")
            self.kept_elsewhere.pop(name, None)

    def _log_best(self, checkpoint: dict[str, Any]) -> None:
        """The best so far as a metric of its own: the UI's table of runs shows the newest value of each."""
        best, step = checkpoint["best"], checkpoint["step"]
        if best and step not in dict(self.history().get(best_key(best), ())):
            self.tracked.metrics({best_key(best): best["value"]}, step)

    def _publish(self, entry: dict[str, Any]) -> None:
        try:
            store = self.store if self.store.answers() else None  # a server that hangs would hold this up for minutes
            outcome = publishing.publish(self.folder.last, entry, how=self.how_to_publish, store=store)
        except (OSError, ValueError, RuntimeError) as error:  # not being able to publish never stops a run
            outcome = f"not published: {error}. Later: python restore.py {self.info.run_id}"
        say(f"  best so far, {outcome}")
        self.folder.update(published=outcome.startswith("published"), publishing_decided=entry["sha256"])

    def _publish_missed(self) -> None:
        """Publish the checkpoint to continue from when it is the best and the run died before it came to that."""
        best, last = self.position["best"], self.folder.last
        if not (self.resumed and best and best["step"] == self.position["step"] and last.exists()):
            return
        if not self.tracked.journal.has_checkpoint(best["name"]):  # it is logged again, and published then
            return
        sha256 = record.file_sha256(last)
        if self.folder.state().get("publishing_decided") != sha256:
            self._publish(record.inspect(last).entry | {"sha256": sha256, "role": "best"})

    def log_detections(self, name: str, content: Any) -> None:
        """Queue COCO detections or ground truth as detections/NAME.json.gz."""
        file = self.folder.path / f"{name}.json.gz"
        file.write_bytes(gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0))
        self.tracked.file(file, "detections")
        file.unlink()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        with self.stack:  # the lock goes last, whatever happens here
            unwritten = self._finish_writing()
            if unwritten and (error is None or isinstance(error, Stopped)):
                error = unwritten
            self._end(error)
            if disk.is_full(error):
                raise workspace.WorkspaceError(disk.told(error, self.folder), exit_code=5) from error
            if error is unwritten and unwritten is not None:
                raise unwritten

    def _finish_writing(self) -> BaseException | None:
        """Wait for the checkpoint that is being written; what hindered it."""
        try:
            self.writer.close()
        except BaseException as error:  # whatever it was: it is raised again once the run has ended
            return error
        return None

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, TakenOver):
            self.folder.update(state="interrupted", error=str(error))
            self.sender.stop()
            return
        resumable = isinstance(error, Stopped | KeyboardInterrupt | OSError) or disk.is_full(error)
        status = "FINISHED" if error is None else "KILLED" if resumable else "FAILED"
        try:
            self._log_steps()
            state = {"FINISHED": "finished", "KILLED": "interrupted", "FAILED": "failed"}[status]
            self.folder.update(
                **self.position | self.times(),
                state=state,
                error=error and str(error)[:500],
                ended=datetime.now().astimezone().isoformat(timespec="seconds"),
            )
            self.tracked.tags(self.progress())
            if error is not None or self.resumed:  # what its last end said holds no longer
                is_resumable = error is not None and self.folder.last.exists()
                ended_by = "its last step" if error is None else str(error)[:500]
                self.tracked.tags({"resumable": str(is_resumable).lower(), "ended_by": ended_by})
            self.describe(state)
            if status == "FINISHED":
                self.tracked.drop_recovery_point()  # the last checkpoint says more
            self.tracked.end(status)
        except OSError as full:
            say(f"the end of the run could not be written ({full}); the next command marks it KILLED")
        self._deliver(DELIVERY_SECONDS if error is None else 15.0)

    def describe(self, state: str) -> None:
        """Renew the run's note in the MLflow UI."""
        note = describe_run(self.info, self.position, self.history(), state=state, pages=self.pages)
        self.tracked.description(note)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """The (step, value) of every metric so far; what was trained on another machine comes from the store."""
        self._log_steps()
        own = self.tracked.journal.history()
        points = {key: self.elsewhere.get(key, []) + own.get(key, []) for key in self.elsewhere | own | self.queued}
        for key, point in self.queued.items():
            if point not in points[key]:
                points[key].append(point)
        return points

    def _deliver(self, seconds: float) -> None:
        began = time.monotonic()
        is_there = any(self.store.answers() for _ in range(2))  # a busy server may miss one
        delivered = self.sender.finish(seconds if is_there else AWAY_SECONDS)
        self.sender.stop()
        unsent = self.tracked.journal.unsent()
        if unsent["refused"]:
            refused = self.folder.path / REFUSED
            say(
                f"MLflow refused {unsent['refused']} operations for good: they are kept, with its reasons, in {refused}"
            )
        if delivered or not unsent["operations"]:
            return
        waited = duration(time.monotonic() - began)
        why = self.sender.trouble if is_there else "the store does not answer"
        say(
            f"MLflow has not got everything: {unsent['operations']} operations and {unsent['checkpoints']} checkpoints "
            f"wait after {waited} ({why}). Nothing is lost: it lies in {self.folder.path}. "
            "The next command that reaches the store sends it, as does: python status.py --sync"
        )
