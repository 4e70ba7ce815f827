"""Free the files of superseded checkpoints of runs that are not training; their metrics stay in MLflow."""

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import amounts
import commandline
import fetching
import workspace
from disk import in_words
from models import record
from retention import KEEP_ALL, parse_keep
from tracking.errors import StoreFull
from tracking.pulse import SILENT_SECONDS
from tracking.records import NO_TRAINING, last_word
from workspace import RunFolder, WorkspaceError


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Say which checkpoints' files would go, and how many bytes; with --yes they go. Metrics and tags stay.

    Never the run's best (by its --best-metric), a registered one, nor the last of a run that has not finished. Runs
    that are training are left alone: they prune themselves (train.py --keep). Exit code 1: some could not be freed.
    """

    runs: commandline.Positional[commandline.Runs] = ()
    """The runs: IDs, unique prefixes, names."""
    experiment: commandline.Text = None
    """All runs of this experiment; with RUNs, where to look for them."""
    keep: str
    """What stays: best, last, every:N (epochs), joined by commas; a finished run without its last cannot go on."""
    yes: bool = False
    """Free them now; without, nothing is changed."""
    json: bool = False
    """Print JSON instead of a report."""

    def __post_init__(self):
        amounts.require_keep(self.keep)
        if self.keep == KEEP_ALL:
            raise commandline.ConfigError("--keep all frees nothing: best, last, every:N, joined by commas")
        if not self.runs and self.experiment is None:
            raise commandline.ConfigError("Give RUNs (python status.py names the last) or --experiment NAME")


def main(config: PruneConfig) -> dict[str, Any]:
    """The report that `--json` prints."""
    store = fetching.store_of(config.runs[0] if config.runs else "")
    store.require_in_place()  # a copied store names the original's files
    workspace.end_dead_runs(store)
    report = {"keep": config.keep, "freed": config.yes, "runs": [], "skipped": []}
    for run_id in chosen(store, config):
        folder = RunFolder(run_id)
        workspace.deliver_if_idle(store, folder)
        run = store.run(run_id)
        try:
            require_idle(run)
            with held(folder):
                found, going = plan(store, run, config.keep)
                if config.yes:
                    free(store, found, going, f"prune.py --keep {config.keep}")
        except WorkspaceError as error:
            if config.runs:
                raise
            report["skipped"].append(str(error))
            continue
        report["runs"].append(found)
    report["bytes"] = sum(one["bytes"] for run in report["runs"] for one in run["frees"] if not one["refused"])
    return report


def chosen(store: Any, config: PruneConfig) -> list[str]:
    """The IDs of the runs that the options name; of an experiment only trainings that are not deleted."""
    from tracking import ask

    if config.runs:
        named = [fetching.run_named(store, word, config.experiment).run_id for word in config.runs]
        return list(dict.fromkeys(named))
    names = ask.experiment_names(store)
    if config.experiment not in names:
        raise WorkspaceError(f"No experiment {config.experiment!r} in {store.uri}. There are: {', '.join(names)}")
    runs = ask.experiment_runs(store, config.experiment)
    return [run["run_id"] for run in runs if not run["deleted"] and run["tags"].get("kind") not in NO_TRAINING]


def require_idle(run: Any) -> None:
    """WorkspaceError when the run is training, here or, by its heartbeat, elsewhere."""
    folder, said = RunFolder(run.run_id), last_word(run.tags)
    folder.require_idle()
    if (
        run.status == "RUNNING"
        and not folder.has_said(said)
        and time.time() - said.get("time", 0) / 1000 < SILENT_SECONDS
    ):
        raise WorkspaceError(f"Run {run.run_id} is training now on {said.get('host')}. See it: python status.py")


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Nobody begins to train the run meanwhile; a run of another machine has no folder to hold."""
    with folder.locked() if folder.state() else contextlib.nullcontext():
        yield


def plan(store: Any, run: Any, keep: str) -> tuple[dict[str, Any], list[Any]]:
    """What of the run stays, and why, and what goes; and the stored checkpoints that go."""
    metric = run.params.get("best_metric", "val/AP")
    known = store.checkpoints(run.run_id, metric=metric, with_pruned=True)
    stays = dict.fromkeys(best_names(run, known), "best")
    if known and (parse_keep(keep).last or run.status != "FINISHED"):
        stays.setdefault(known[-1].name, "last")
    superseded = set(parse_keep(keep).superseded([one.name for one in known], stay=stays))
    keeps, frees, going = {}, [], []
    for one in known:
        size = store.stored_bytes(one)
        if one.pruned and not size:  # otherwise a command broke off between the two
            continue
        if one.name not in superseded:
            keeps[one.name] = stays.get(one.name, "every")
        elif store.is_registered(one):
            keeps[one.name] = "registered"
        else:
            going.append(one)
            frees.append({"name": one.name, "bytes": size, "is_last": one is known[-1], "refused": None})
    return {"run_id": run.run_id, "run_name": run.name, "keeps": keeps, "frees": frees}, going


def best_names(run: Any, known: list[Any]) -> set[str]:
    """The best as training noted it, here and in the store, and as the scores have it."""
    noted = [source.get("best") for source in (RunFolder(run.run_id).state(), last_word(run.tags))]
    best = max((one for one in known if one.score is not None), key=lambda one: one.score, default=None)
    return {one["name"] for one in noted if one} | ({best.name} if best else set())


def free(store: Any, found: dict[str, Any], going: list[Any], why: str) -> None:
    """Free what the plan lists; what the store does not let go of is noted there."""
    from tracking.store import CannotFree

    for entry, checkpoint in zip(found["frees"], going, strict=True):
        remove = functools.partial(remove_last, RunFolder(found["run_id"]), checkpoint.sha256)
        try:
            store.prune(checkpoint, why)
        except CannotFree as error:
            entry["refused"] = str(error)
            continue
        except StoreFull:  # the file is gone from the store, but its space is not free yet, which the tag needs
            remove()
            store.prune(checkpoint, why)
        if entry["is_last"]:
            remove()


def remove_last(folder: RunFolder, sha256: str) -> None:
    """Remove last.pth where it is that checkpoint: as a hard link it holds the space."""
    if folder.last.exists() and record.file_sha256(folder.last) == sha256:
        folder.last.unlink()


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines, count = [], 0
    for run in report["runs"]:
        stays = ", ".join(f"{name} ({why})" for name, why in run["keeps"].items()) or "nothing"
        lines.append(f"run {run['run_id']} ({run['run_name']}) keeps {stays}")
        going = [one for one in run["frees"] if not one["refused"]]
        count += len(going)
        verb = "freed" if report["freed"] else "would free"
        if going:
            size = in_words(sum(one["bytes"] for one in going))
            named = ", ".join(one["name"] + " (the last: it cannot train longer)" * one["is_last"] for one in going)
            lines.append(f"  {verb} {size}: {named}")
        lines += [f"  not freed: {one['name']}: {one['refused']}" for one in run["frees"] if one["refused"]]
    lines += [f"left alone: {message}" for message in report["skipped"]]
    total = f"{in_words(report['bytes'])} in {count} checkpoint{'' if count == 1 else 's'}"
    if not count:
        return "\n".join([*lines, f"nothing to free under --keep {report['keep']}"])
    return "\n".join([*lines, f"freed {total}" if report["freed"] else f"would free {total}. To do it: add --yes"])


def script(config: PruneConfig) -> int:
    report = main(config)
    print(json.dumps(report, indent=1) if config.json else text(report))
    return 1 if any(one["refused"] for run in report["runs"] for one in run["frees"]) else 0


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(PruneConfig))
