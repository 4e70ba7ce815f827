"""Who trains a run: a suspended job that wakes after another took the run up must not write to it any more."""

import time
import uuid
from pathlib import Path

from tracking.connection import import_mlflow
from tracking.errors import TakenOver

OWNER = "owner"  # tag of the run, and file of its folder: the token of whoever began or resumed it last
LOST = "taken-over"  # file of a run folder whose run went on elsewhere: nothing of it is owed to the store
TRUSTED_SECONDS = 30.0  # nobody takes over a run that spoke within pulse.SILENT_SECONDS


def owner_of(folder: Path) -> str | None:
    """The token of the last process that trained the run of this folder; None of one before there were tokens."""
    try:
        return (folder / OWNER).read_text()
    except FileNotFoundError:
        return None


def is_lost(folder: Path) -> bool:
    """Whether this folder's run was found to have gone on elsewhere."""
    return (folder / LOST).exists()


class Ownership:
    """The claim of a run folder (named by its run ID) on its run in the store. Several threads may ask."""

    def __init__(self, folder: Path, store, run_id: str):
        self.folder, self.run_id, self._client = Path(folder), run_id, store.client
        self._confirmed = 0.0

    def claim(self) -> bool:
        """Make the run this process's; whether another machine had trained it since this folder's last process."""
        before = self._stored()
        went_on_elsewhere = before is not None and before != owner_of(self.folder)
        token = uuid.uuid4().hex
        self._client.set_tag(self.run_id, OWNER, token)
        (self.folder / OWNER).write_text(token)
        (self.folder / LOST).unlink(missing_ok=True)
        self._confirmed = time.time()
        return went_on_elsewhere

    def require(self) -> None:
        """TakenOver where another process claimed the run since; the store is asked, unless it was a moment ago."""
        if time.time() - self._confirmed < TRUSTED_SECONDS:  # that clock goes on while a machine sleeps
            return
        stored = self._stored()
        if stored is not None and stored != owner_of(self.folder):
            (self.folder / LOST).touch()
            raise TakenOver(
                f"run {self.run_id} went on elsewhere while this process was suspended or cut off: nothing more is "
                "written to it from here"
            )
        self._confirmed = time.time()

    def require_after(self, silent_seconds: float) -> None:
        """As `require`, where this process was silent for so long; a store out of reach says nothing."""
        if silent_seconds < TRUSTED_SECONDS:
            return
        mlflow = import_mlflow()
        try:
            self.require()
        except (mlflow.MlflowException, OSError):
            return  # what cannot be asked cannot be written to either

    def _stored(self) -> str | None:
        return self._client.get_run(self.run_id).data.tags.get(OWNER)


def forget_superseded(journal, *, last_step: int, checkpoints: set[str]) -> None:
    """Of what waits from before a run went on elsewhere, keep the metrics and checkpoints that nobody sent since."""
    pending = list(journal.pending())
    for _, operation in pending:
        is_metrics, is_checkpoint = (operation["op"] == name for name in ("metrics", "checkpoint"))
        if (is_metrics and operation["step"] > last_step) or (is_checkpoint and operation["name"] not in checkpoints):
            journal.append(operation)
    if pending:
        journal.acknowledge(pending[-1][0])
