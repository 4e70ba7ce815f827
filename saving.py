"""What becomes of a run's checkpoints: written beside the training, queued for MLflow, pruned, published."""

from typing import Any

import amounts
import disk
import publishing
from models import checkpoint as checkpoints
from models import record
from models.writer import Writer
from progress import say
from retention import KEEP_ALL, newest_and_best, parse_keep


def best_key(best: dict[str, Any]) -> str:
    """The metric that says the best so far: best/AP for val/AP."""
    return f"best/{best['metric'].removeprefix('val/')}"


class Saver:
    """Of one live_run.LiveRun. `optimizer` waits for a checkpoint's copy; `checkpoint_bytes` is the size of one."""

    def __init__(self, run: Any, *, optimizer: Any, checkpoint_bytes: int):
        self.run = run
        self.writer = Writer(optimizer)
        self.queued: dict[str, tuple[int, float]] = {}  # (step, value) of the scores on their way into the journal
        self.kept_elsewhere: dict[str, Any] = {}  # this run's checkpoints that only another machine's journal names
        limit = run.info.config["disk_budget"]
        self.budget = disk.Budget(
            limit=limit and amounts.parse_size(limit),
            folder=run.folder,
            artifacts=run.store.run_artifacts(run.info.run_id),
            checkpoint_bytes=checkpoint_bytes,
        )
        if run.resumed and run.info.config["keep"] != KEEP_ALL:
            stored = run.store.checkpoints(run.info.run_id)
            journal = run.tracked.journal
            self.kept_elsewhere = {one.name: one for one in stored if not journal.has_checkpoint(one.name)}
            self._prune(run.position["best"])

    def close(self) -> None:
        """Wait for the checkpoint that is being written; raises what hindered it."""
        self.writer.close()

    def save_last(self, checkpoint: dict[str, Any], *, share: bool) -> None:
        """Write the resumable last.pth of the run folder, beside the training; the previous stays until it is whole.

        With `share` it becomes the run's recovery point in the store, from which another machine can resume.
        """
        self.writer.write(checkpoint, lambda copy: self._save_last(copy, share))

    def _save_last(self, checkpoint: dict[str, Any], share: bool) -> str:
        self.run.log_steps()
        self.budget.require_room(self.run.tracked.journal.kept_checkpoints())
        sha256 = checkpoints.save(checkpoint, self.run.folder.last)
        if share:
            self.run.tracked.recovery_point(self.run.folder.last, step=checkpoint["step"], sha256=sha256)
        return sha256

    def has_checkpoint(self, name: str) -> bool:
        """Whether that checkpoint is on its way to the store, or there."""
        if self.run.tracked.journal.has_checkpoint(name):
            return True
        return any(one.name == name for one in self.run.store.checkpoints(self.run.info.run_id, with_pruned=True))

    def log_checkpoint(self, name: str, checkpoint: dict[str, Any], scores: dict[str, float]) -> None:
        """Save a finished epoch's checkpoint, queue it for MLflow, and publish it when it is the best so far.

        All beside the training, which goes on meanwhile.
        """
        self.run.pace.pause()
        self.run.position |= {key: checkpoint[key] for key in ("epoch", "step", "best")}
        self.queued = {key: (checkpoint["step"], value) for key, value in self.run.tracked.named(scores).items()}
        self.writer.write(checkpoint, lambda copy: self._log_checkpoint(name, copy, scores))

    def _log_checkpoint(self, name: str, checkpoint: dict[str, Any], scores: dict[str, float]) -> None:
        run, sha256 = self.run, self._save_last(checkpoint, share=False)
        data = run.info.dataset
        if not run.tracked.journal.has_checkpoint(name):
            self._log_best(checkpoint)
            run.tracked.checkpoint(
                name,
                run.folder.last,
                sha256=sha256,
                step=checkpoint["step"],
                metrics=scores,
                params={"architecture": run.info.architecture["builder"], "dataset": data["name"]},
                tags={"epoch": str(checkpoint["epoch"])},
                dataset=(f"{data['name']}-val", data["split_fingerprints"]["val"]),
            )
        run.folder.update(**{key: checkpoint[key] for key in ("epoch", "step", "best")}, checkpoint_sha256=sha256)
        self._prune(checkpoint["best"])
        run.tracked.tags(run.progress())
        run.describe("training")
        if checkpoint["best"] and checkpoint["best"]["step"] == checkpoint["step"]:
            self._publish(record.describe(checkpoint) | {"sha256": sha256, "role": "best"})

    def _prune(self, best: dict[str, Any] | None) -> None:
        """Queue that the files of checkpoints go that --keep does not name, save the best and the last."""
        keep = self.run.info.config["keep"]
        kept = self.kept_elsewhere | self.run.tracked.journal.kept_checkpoints()
        stay = newest_and_best(kept, best)
        for name in parse_keep(keep).superseded(kept, stay=stay):
            self.run.tracked.prune(name, f"--keep {keep}", metric=self.run.info.config["best_metric"])
            self.kept_elsewhere.pop(name, None)

    def _log_best(self, checkpoint: dict[str, Any]) -> None:
        """The best so far as a metric of its own: the UI's table of runs shows the newest value of each."""
        best, step = checkpoint["best"], checkpoint["step"]
        if best and step not in dict(self.run.history().get(best_key(best), ())):
            self.run.tracked.metrics({best_key(best): best["value"]}, step)

    def _publish(self, entry: dict[str, Any]) -> None:
        run = self.run
        try:
            store = run.store if run.store.answers() else None  # a server that hangs would hold this up for minutes
            outcome = publishing.publish(run.folder.last, entry, how=run.info.config["publish"], store=store)
        except (OSError, ValueError, RuntimeError) as error:  # not being able to publish never stops a run
            outcome = f"not published: {error}. Later: python restore.py {run.info.run_id}"
        say(f"  best so far, {outcome}")
        run.folder.update(published=outcome.startswith("published"), publishing_decided=entry["sha256"])

    def publish_missed(self) -> None:
        """Publish the checkpoint to continue from when it is the best and the run died before it came to that."""
        run = self.run
        best, last = run.position["best"], run.folder.last
        if not (run.resumed and best and best["step"] == run.position["step"] and last.exists()):
            return
        if not run.tracked.journal.has_checkpoint(best["name"]):  # it is logged again, and published then
            return
        verdict = record.inspect(last, verify=True)
        if verdict.state != "ready" or verdict.entry.get("step") != best["step"]:  # not what the run continues from
            return
        if run.folder.state().get("publishing_decided") != verdict.entry["sha256"]:
            self._publish(verdict.entry | {"role": "best"})
