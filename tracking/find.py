"""From a user's word (a run ID, the beginning of one, a run name, models:/NAME@ALIAS) to one run."""

import re
from dataclasses import dataclass

from tracking.errors import RunUnknown
from tracking.pages import every
from tracking.records import NO_TRAINING, ORIGIN, StoredCheckpoint, stored_checkpoint

SHORTEST_PREFIX = 4
MOST_LISTED = 8


@dataclass(frozen=True)
class RunReference:
    """A run and, where the word named one, a checkpoint of it."""

    run_id: str
    model_id: str | None = None


def find_run(client, word: str, experiment: str | None) -> RunReference:
    """The one run that the word names, within an experiment where that is given; RunUnknown otherwise."""
    if word.startswith("models:/"):
        return _find_registered(client, word)
    experiment_ids = experiment_ids_of(client, experiment)
    candidates = {run.info.run_id: run for run in _candidates(client, word, experiment_ids)}
    if word in candidates:
        return RunReference(word)
    copies = [run_id for run_id, run in candidates.items() if run.data.tags.get(ORIGIN) == word]
    if len(copies) == 1:
        return RunReference(copies[0])
    if len(candidates) == 1:
        return RunReference(next(iter(candidates)))
    if candidates:
        raise RunUnknown(
            f"{word!r} fits several runs. Name one by its ID, or its --experiment:\n{_listed(candidates.values())}"
        )
    raise RunUnknown(_unknown(client, word, experiment, experiment_ids))


def _candidates(client, word: str, experiment_ids: list[str]) -> list:
    if not experiment_ids:
        return []
    runs = _named(client, word, experiment_ids)
    if len(word) >= SHORTEST_PREFIX and re.fullmatch(r"[0-9a-f]+", word):
        runs += _search(client, experiment_ids, f"attributes.run_id LIKE '{word}%'")
        # Of a copy from another store the ID that it has there names it too; its evaluations are copies of their own.
        runs += _search(client, experiment_ids, f"tags.{ORIGIN} LIKE '{word}%'")
    return runs


def _beginning(client, word: str, experiment_ids: list[str]) -> list:
    """Runs whose names begin so, newest first; in the store's language _ and % stand for any characters."""
    found = _search(client, experiment_ids, f"attributes.run_name LIKE {_quoted(word + '%')}", 8 * MOST_LISTED)
    return [run for run in found if run.info.run_name.startswith(word)]


def run_copied_from(client, run_id: str):
    """mlflow's Run that is the copy of that run of another store, also where it was deleted; None without one."""
    from mlflow.entities import ViewType

    where = f"tags.{ORIGIN} = '{run_id}'"
    found = client.search_runs(experiment_ids_of(client, None), where, ViewType.ALL, max_results=MOST_LISTED)
    return min(found, key=lambda run: run.info.lifecycle_stage == "deleted", default=None)


def runs_named(client, run_name: str, experiment_id: str) -> list:
    """mlflow's Runs of that name in an experiment, newest first, evaluations and comparisons left out."""
    return [run for run in _named(client, run_name, [experiment_id]) if run.data.tags.get("kind") not in NO_TRAINING]


def stored_checkpoints(client, experiment_id: str, metric: str, run_id: str | None = None) -> list[StoredCheckpoint]:
    """The checkpoints that the store has whole or has pruned, of an experiment or of one run in it."""
    where = None if run_id is None else f"source_run_id = '{run_id}'"
    models = every(client.search_logged_models, [experiment_id], where)
    # The store's own filter on the status finds nothing at all.
    whole = [model for model in models if model.model_type == "checkpoint" and str(model.status) == "READY"]
    return [stored_checkpoint(model, metric) for model in whole]


def _named(client, run_name: str, experiment_ids: list[str]) -> list:
    return _search(client, experiment_ids, f"attributes.run_name = {_quoted(run_name)}")


def _search(client, experiment_ids: list[str], where: str, limit: int = MOST_LISTED) -> list:
    return list(client.search_runs(experiment_ids, where, max_results=limit, order_by=["start_time DESC"]))


def _quoted(word: str) -> str:
    # The store's filter language has no escapes: a name with both kinds of quotes cannot be asked for.
    if "'" in word and '"' in word:
        raise RunUnknown(f"A run name with both kinds of quotes cannot be looked up: {word}. Use the run's ID.")
    return f'"{word}"' if "'" in word else f"'{word}'"


def experiment_ids_of(client, experiment: str | None) -> list[str]:
    if experiment is not None:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(entry.name for entry in client.search_experiments(max_results=50))
            raise RunUnknown(f"No experiment {experiment!r}. There are: {', '.join(names)} (--experiment NAME)")
        return [found.experiment_id]
    return [entry.experiment_id for entry in every(client.search_experiments)]


def _find_registered(client, word: str) -> RunReference:
    match = re.fullmatch(r"models:/([^@/]+)@([\w-]+)", word)
    if match is None:
        raise RunUnknown(f"{word!r} is not of the form models:/NAME@ALIAS")
    name, alias = match.groups()
    models = list(client.search_registered_models(f"name = {_quoted(name)}"))
    if not models:
        names = sorted(model.name for model in client.search_registered_models(max_results=50))
        raise RunUnknown(f"No registered model {name!r}. There are: {', '.join(names) or 'none'}")
    if alias not in models[0].aliases:
        raise RunUnknown(f"Model {name!r} has no alias {alias!r}. It has: {', '.join(models[0].aliases) or 'none'}")
    version = client.get_model_version_by_alias(name, alias)
    # The version's own model_id is not stored everywhere; its source always names the checkpoint.
    model_id = re.search(r"\bm-[0-9a-f]{32}\b", version.source)
    return RunReference(version.run_id, model_id and model_id.group())


def _unknown(client, word: str, experiment: str | None, experiment_ids: list[str]) -> str:
    if experiment and (elsewhere := _candidates(client, word, experiment_ids_of(client, None))):
        run = elsewhere[0].info
        there = client.get_experiment(run.experiment_id).name
        return f"Run {word} ({run.run_id}, {run.run_name}) is in experiment {there!r}, not in {experiment!r}"
    newest = _trainings(_search(client, experiment_ids, "", 8 * MOST_LISTED)) if experiment_ids else []
    place = f" in experiment {experiment!r}" if experiment else ""
    if not newest:
        return f"No run {word!r}{place}: there are no runs yet. Start one: python train.py"
    short = f" (the beginning of an ID needs {SHORTEST_PREFIX} characters)" if len(word) < SHORTEST_PREFIX else ""
    if begun := _trainings(_beginning(client, word, experiment_ids)):
        return f"No run {word!r}{place}{short}. Names are given whole; so begin:\n{_listed(begun)}"
    return f"No run {word!r}{place}{short}. The newest are:\n{_listed(newest)}"


def _trainings(runs) -> list:
    """The first of them, evaluations and comparisons left out."""
    return [run for run in runs if run.data.tags.get("kind") not in NO_TRAINING][:MOST_LISTED]


def _listed(runs) -> str:
    return "\n".join(f"  {run.info.run_id}  {run.info.run_name}  {run.info.status}" for run in runs)
