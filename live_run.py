"""A run while it trains: its folder and lock, journal and sender, checkpoints and publishing, as one object."""

import json
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import disk
import stored_detections
import workspace
from description import describe_run
from pace import Pace
from progress import duration, say
from saving import Saver
from tracking.errors import TakenOver
from tracking.journal import REFUSED, now_ms
from tracking.ownership import Ownership, forget_superseded
from tracking.pulse import whoami
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
    evaluation: dict[str, Any]  # what the validation score depends on: batch_size, amp, threads, cpu, averaged
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


class LiveRun:
    """A context manager: leaving it ends the run truthfully (FINISHED, KILLED or FAILED) and delivers the rest."""

    def __init__(
        self,
        store: Any,
        info: RunInfo,
        *,
        resumed: bool,
        position: dict[str, Any],
        optimizer: Any,
        checkpoint_bytes: int,
    ):
        self.store, self.info, self.resumed = store, info, resumed
        self.optimizer, self.checkpoint_bytes = optimizer, checkpoint_bytes
        self.folder = RunFolder(info.run_id)
        self.stack = ExitStack()
        self.position = dict(position)  # epoch, step and best
        self.steps: deque[tuple[dict[str, float], int, int]] = deque()  # metrics, step, time in ms: not yet journalled
        self.logging_steps = threading.Lock()
        self.over = threading.Event()
        self.untold: OSError | None = None  # what hindered the writing of either

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
        from tracking.run import TrackedRun
        from tracking.sender import Sender

        info = self.info
        self.folder.sweep()
        self.tracked = TrackedRun(self.folder.path, info.run_id)
        self.stack.callback(self.tracked.close)
        self.ownership = Ownership(self.folder.path, self.store, info.run_id)
        went_on_elsewhere = self.ownership.claim()
        self.spoke, self.silent = time.time(), 0.0
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
        before = {} if went_on_elsewhere else self.folder.state()
        if self.resumed:
            before = before or last_word(self.store.run(info.run_id).tags)
        self.pace = Pace(
            total_steps=info.total_steps,
            steps_per_epoch=info.steps_per_epoch,
            seconds_before=before.get("seconds", 0.0),
        )
        self.folder.update(
            **info.in_checkpoint() | whoami() | self.position | self.times(),
            **{
                "total_steps": info.total_steps,
                "state": "running",
                "started": before.get("started", time.time()),
                "resumed": time.time(),
                "error": None,  # what its last end said holds no longer
                "ended": None,
            },
        )
        if self.resumed:  # after run.json, by which the run is ended if this is as far as we get
            self.store.resume_run(info.run_id)
        self.saver = Saver(self, optimizer=self.optimizer, checkpoint_bytes=self.checkpoint_bytes)
        self.sender = Sender(self.folder.path, self.store, heartbeat=self.heartbeat, ownership=self.ownership)
        self.sender.start()
        teller = threading.Thread(target=self._tell, name="run-state", daemon=True)
        self.stack.callback(teller.join)
        self.stack.callback(self.over.set)
        teller.start()
        self.saver.publish_missed()

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
        self._listen()
        silent, self.silent = self.silent, 0.0
        self.ownership.require_after(silent)
        self.position |= position
        self.pace.step(position["step"])
        if self.untold is not None:
            raise self.untold

    def _listen(self) -> None:
        """Note for how long nothing of this process ran; in a long validation the teller's thread goes on."""
        now = time.time()
        self.silent, self.spoke = max(self.silent, now - self.spoke), now

    def _tell(self) -> None:
        """Keep journal and run.json up to date, in a thread of its own."""
        told = time.monotonic()
        while not self.over.wait(STEPS_EVERY_SECONDS):
            self._listen()
            try:
                self.log_steps()
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

    def log_steps(self) -> None:
        """Journal the steps so far; before a checkpoint is saved, since a run that resumes from it skips them."""
        with self.logging_steps:
            while self.steps:
                values, step, at = self.steps[0]
                self.tracked.metrics(values, step, at=at)
                self.steps.popleft()  # only now: on a full disk the end tries again

    def log_detections(self, name: str, content: Any) -> None:
        """Queue COCO detections or ground truth as detections/NAME.json.gz."""
        file = self.folder.path / f"{name}.json.gz"
        file.write_bytes(stored_detections.compressed(content))
        self.tracked.file(file, stored_detections.FOLDER)
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
            self.saver.close()
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
            self.log_steps()
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
        self.log_steps()
        own = self.tracked.journal.history()
        points = {
            key: self.elsewhere.get(key, []) + own.get(key, []) for key in self.elsewhere | own | self.saver.queued
        }
        for key, point in self.saver.queued.items():
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
