"""`best` as a RUN: of an experiment's runs the one with the best checkpoint, where all were scored on the same data."""

from collections import defaultdict

from tracking.errors import RunUnknown
from tracking.find import RunReference, experiment_ids_of, stored_checkpoints
from tracking.metric_names import metrics_meant
from tracking.pages import every
from tracking.records import StoredCheckpoint


def best_run(client, experiment: str, metric: str) -> RunReference:
    """The run whose checkpoint has the highest `metric`, the earliest of equals; deleted and pruned ones do not count.

    RunUnknown where there is none, and where the metric was measured on different data: those are no comparison.
    """
    (experiment_id,) = experiment_ids_of(client, experiment)
    runs = _present_runs(client, experiment_id)
    found = stored_checkpoints(client, experiment_id, metric)
    known = [one for one in found if one.run_id in runs and not one.pruned]
    scored = sorted((one for one in known if one.score is not None), key=lambda one: one.created)
    if not scored:
        told = metrics_meant(metric, {name for one in known for name in one.metrics})
        raise RunUnknown(f"No checkpoint in experiment {experiment!r} has {metric!r}; {told}")
    by_data: dict[str, list[StoredCheckpoint]] = defaultdict(list)
    for one in scored:
        by_data[one.scored_on[1]].append(one)
    if len(by_data) > 1:
        raise RunUnknown(
            f"The runs of experiment {experiment!r} were scored on different data, where {metric} does not compare:\n"
            + "\n".join(_group(checkpoints, runs) for checkpoints in by_data.values())
            + "\nName the run instead of `best`, or an experiment with one set of data: --experiment NAME"
        )
    return RunReference(max(scored, key=lambda one: one.score).run_id)


def _present_runs(client, experiment_id: str) -> dict[str, str]:
    """Names of the experiment's runs by ID; deleted ones, whose checkpoints the store still lists, are left out."""
    return {run.info.run_id: run.info.run_name for run in every(client.search_runs, [experiment_id])}


def _group(checkpoints: list[StoredCheckpoint], runs: dict[str, str]) -> str:
    best = max(checkpoints, key=lambda one: one.score)
    name, digest = best.scored_on
    count = len({one.run_id for one in checkpoints})
    its_best = f"best {best.score:.4f} in run {best.run_id} ({runs[best.run_id]})"
    return f"  {name}, fingerprint {digest}: {count} run{'s' if count > 1 else ''}, {its_best}"
