"""Follows a run's journal and delivers it, in a background thread: the training loop never waits for MLflow."""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tracking.deliver import Delivery, Refused, Unavailable
from tracking.errors import TakenOver
from tracking.journal import Journal
from tracking.ownership import Ownership
from tracking.pulse import Pulse

MOST_METRICS_A_BATCH = 1000  # of mlflow's log_batch
POLL_SECONDS = 1.0  # one transaction for the steps of a second, not one a step
OUT_OF_TIME = "it takes long"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
SHORTEST_PAUSE_SECONDS = 0.05


class Courier:
    """Carries a journal's pending operations to the store in order, and confirms them.

    `refuse` takes an operation that the store will never take, and why. TakenOver where `ownership` is lost.
    """

    def __init__(
        self,
        journal: Journal,
        store,
        run_id: str,
        refuse: Callable[[dict, str], None] | None = None,
        ownership: Ownership | None = None,
    ):
        self.journal = journal
        self.delivery = Delivery(store, run_id, journal.folder, ownership)
        self._refuse = refuse or journal.refuse

    def deliver_next(self) -> int:
        """Delivers the next operation, or the next metrics together; how many it was. Unavailable: try again later."""
        end, operations = next(grouped(self.journal.pending()), (0, []))
        if not operations:
            return 0
        self.apply(operations)
        self.journal.acknowledge(end)
        for operation in operations:
            self._remove_spool(operation)
        return len(operations)

    def apply(self, operations: list[dict]) -> None:
        """Applies them together; where the store refuses that, part by part, so that only the culprit stays behind."""
        try:
            self.delivery.apply(operations)
        except Refused as error:
            parts = [[part] for part in _parts(operations)]
            if len(parts) > 1:
                for part in parts:
                    self.apply(part)
            else:
                self._refuse(operations[0], str(error))

    def _remove_spool(self, operation: dict) -> None:
        spool = operation.get("spool")
        if spool and not any(refusal.get("operation") == operation for refusal in self.journal.refused()):
            shutil.rmtree((self.journal.folder / spool).parent, ignore_errors=True)  # gone already: a rolling file


def grouped(operations: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, list[dict]]]:
    """A journal's operations as they are delivered, metrics together; each group with the offset where it ends."""
    group: list[dict] = []
    end = count = 0
    for offset, operation in operations:
        is_metrics = operation["op"] == "metrics"
        size = len(operation["metrics"]) if is_metrics else 0
        if group and (not is_metrics or count + size > MOST_METRICS_A_BATCH):
            yield end, group
            group, count = [], 0
        group.append(operation)
        end, count = offset, count + size
        if not is_metrics:
            yield end, group
            group, count = [], 0
    if group:
        yield end, group


def _parts(operations: list[dict]) -> list[dict]:
    if len(operations) > 1:
        return operations
    (operation,) = operations
    field = {"params": "params", "tags": "tags", "metrics": "metrics"}.get(operation["op"])
    values = operation.get(field) if field else None
    if not isinstance(values, dict) or len(values) < 2:
        return operations
    return [{**operation, field: {key: value}} for key, value in values.items()]


class Sender(threading.Thread):
    """Delivers the journal of a run folder (named by its run ID) while it grows.

    `trouble` is what the store last said while it does not take it. `heartbeat` returns what the heartbeat tag should
    say beside time and process: {"epoch": …, "step": …}; without it there are no system metrics either.
    """

    def __init__(
        self,
        folder: Path,
        store,
        *,
        heartbeat: Callable[[], dict] | None = None,
        run_id: str | None = None,
        ownership: Ownership | None = None,
    ):
        super().__init__(name="tracking-sender", daemon=True)
        run_id = run_id or Path(folder).name
        self.journal = Journal(folder)
        self.trouble: str | None = None
        ownership = ownership or Ownership(self.journal.folder, store, run_id)
        self._courier = Courier(self.journal, store, run_id, ownership=ownership)
        self._pulse = Pulse(self.journal, run_id, store, heartbeat, ownership) if heartbeat is not None else None
        self._stopping = threading.Event()
        self._attempts_failed = 0
        self._hurried = False

    def run(self) -> None:
        if self._pulse is not None:
            self._pulse.start()
        lock = self._wait_for_lock()
        if lock is None:
            return
        try:
            self._follow()
        finally:
            os.close(lock)

    def finish(self, timeout_seconds: float) -> bool:
        """Waits until the store has everything (True), or it does not take it, or the time is over (False)."""
        deadline = time.monotonic() + timeout_seconds
        patience = self._attempts_failed + 2  # one may be under way since before
        self._hurried = True
        try:
            while self.is_alive() and time.monotonic() < deadline and self._attempts_failed < patience:
                if self._is_done():
                    return True
                time.sleep(0.05)
            return self._is_done()
        finally:
            self._hurried = False

    def stop(self, timeout_seconds: float = 2.0) -> None:
        """Ends the thread and its heartbeat; what is not delivered stays in the journal."""
        self._stopping.set()
        if self._pulse is not None:
            self._pulse.stop(timeout_seconds)
        if self.is_alive():
            self.join(timeout_seconds)
        self.journal.close()

    def _is_done(self) -> bool:
        return next(self.journal.pending(), None) is None

    def _wait_for_lock(self) -> int | None:
        while not self._stopping.is_set():
            lock = self.journal.lock()
            if lock is not None:
                self.trouble = None
                return lock
            self.trouble = "another process is delivering this run"
            self._attempts_failed += 1
            self._stopping.wait(FIRST_PAUSE_SECONDS)
        return None

    def _follow(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                delivered = self._courier.deliver_next()
            except TakenOver as error:
                self.trouble = str(error)
                return
            except (Unavailable, OSError) as error:
                self.trouble = str(error)
                self._attempts_failed += 1
                self._rest(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
                continue
            self.trouble, pause_seconds = None, FIRST_PAUSE_SECONDS
            if not delivered:
                self._rest(POLL_SECONDS)

    def _rest(self, seconds: float) -> None:
        """Waits; for a moment only when someone waits for us."""
        deadline = time.monotonic() + seconds
        while not self._stopping.wait(SHORTEST_PAUSE_SECONDS) and not self._hurried and time.monotonic() < deadline:
            pass


def sync(folder: Path, store, run_id: str | None = None, *, seconds: float | None = None) -> dict:
    """Delivers all that is pending of a run folder (named by its run ID) now.

    Returns {delivered, unsent, trouble}: operations delivered, Journal.unsent() afterwards, and why it stopped early.
    After `seconds` it returns in any case; what is under way then goes on in the background, and nothing follows it.
    """
    journal = Journal(folder)
    run_id = run_id or Path(folder).name
    courier = Courier(journal, store, run_id, ownership=Ownership(journal.folder, store, run_id))
    summary = {"delivered": 0, "trouble": None}
    if seconds is None:
        _drain(courier, summary, math.inf)
        return summary | {"unsent": journal.unsent()}
    deadline = time.monotonic() + seconds
    thread = threading.Thread(target=_drain, args=(courier, summary, deadline), name="tracking-sync", daemon=True)
    thread.start()
    thread.join(seconds)
    return {**summary, "trouble": summary["trouble"] or (OUT_OF_TIME if thread.is_alive() else None)} | {
        "unsent": journal.unsent()
    }


def _drain(courier: Courier, summary: dict, deadline: float) -> None:
    lock = courier.journal.lock()
    if lock is None:
        summary["trouble"] = "another process is delivering this run"
        return
    try:
        while count := courier.deliver_next():
            summary["delivered"] += count
            if time.monotonic() > deadline:
                summary["trouble"] = OUT_OF_TIME
                return
    except (TakenOver, Unavailable, OSError) as error:
        summary["trouble"] = str(error)
    finally:
        os.close(lock)
