"""Who trains a run: a suspended job that wakes after another took the run up must not write to it any more."""

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracking.connection import import_mlflow
from tracking.errors import TakenOver

OWNER = "owner"  # tag of the run: the token of the process that began or resumed it last
OWNERS = "owners"  # file of its folder: the tokens of all processes that trained it from here, the newest last
LOST = "taken-over"  # file of a run folder whose run went on elsewhere: nothing of it is owed to the store
TRUSTED_SECONDS = 30.0  # nobody takes over a run that spoke within pulse.SILENT_SECONDS


def owners_of(folder: Path) -> list[str]:
    """The tokens of the processes that trained the run of this folder, the newest last."""
    try:
        return (folder / OWNERS).read_text().split()
    except FileNotFoundError:  # of before there were tokens
        return []


def is_ours(tags: Mapping[str, str], owners: Sequence[str]) -> bool:
    """Whether a run with these tags was claimed last by one of the owners, or by nobody."""
    return OWNER not in tags or tags[OWNER] in owners


def is_lost(folder: Path) -> bool:
    """Whether this folder's run was found to have gone on elsewhere."""
    return (folder / LOST).exists()


class Ownership:
    """The claim of a run folder (named by its run ID) on its run in the store. Several threads may ask.

    `lost` is the error of the thread that found the run taken over.
    """

    def __init__(self, folder: Path, store, run_id: str):
        self.folder, self.run_id, self._client = Path(folder), run_id, store.client
        self.lost: TakenOver | None = None
        self._token: str | None = None  # of this process, once it has claimed the run
        self._confirmed = 0.0

    def claim(self) -> bool:
        """Make the run this process's; whether another machine had trained it since this folder's last process."""
        went_on_elsewhere = not is_ours(self._tags(), owners_of(self.folder))
        self._token = uuid.uuid4().hex
        with (self.folder / OWNERS).open("a") as file:  # first: a run claimed by nobody we know could not be ended
            file.write(f"{self._token}\n")
        self._client.set_tag(self.run_id, OWNER, self._token)
        (self.folder / LOST).unlink(missing_ok=True)
        self._confirmed = time.time()
        return went_on_elsewhere

    def require(self) -> None:
        """TakenOver where another process claimed the run since; the store is asked, unless it was a moment ago."""
        if time.time() - self._confirmed < TRUSTED_SECONDS:  # that clock goes on while a machine sleeps
            return
        owners = owners_of(self.folder)
        if self._token in owners:  # an older one is in a store that was put back from a backup, a newer one took over
            owners = owners[: owners.index(self._token) + 1]
        if not is_ours(self._tags(), owners):
            (self.folder / LOST).touch()
            self.lost = TakenOver(
                f"run {self.run_id} went on elsewhere while this process was suspended or cut off: nothing more is "
                "written to it from here"
            )
            raise self.lost
        self._confirmed = time.time()

    def require_after(self, silent_seconds: float) -> None:
        """TakenOver where it is known, or where this process was silent for so long and the store says so."""
        if self.lost is not None:
            raise self.lost
        if silent_seconds < TRUSTED_SECONDS:
            return
        mlflow = import_mlflow()
        try:
            self.require()
        except (mlflow.MlflowException, OSError):
            return  # what cannot be asked cannot be written to either

    def _tags(self) -> dict[str, str]:
        return self._client.get_run(self.run_id).data.tags


def forget_superseded(journal, *, last_step: int, checkpoints: set[str]) -> None:
    """Of what waits from before a run went on elsewhere, keep the metrics and checkpoints that nobody sent since."""
    pending = list(journal.pending())
    for _, operation in pending:
        is_metrics, is_checkpoint = (operation["op"] == name for name in ("metrics", "checkpoint"))
        if (is_metrics and operation["step"] > last_step) or (is_checkpoint and operation["name"] not in checkpoints):
            journal.append(operation)
    if pending:
        journal.acknowledge(pending[-1][0])
