"""Which runs compare.py compares, as sides: single runs, groups of seeds, the groups of an experiment."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import config as options
import fetching
import stored_detections
import workspace
from commandline import ConfigError, meant
from comparing import differences
from config import TrainConfig
from progress import say
from stored_detections import Detected, NoDetections

OPTIONS = {field.name for field in fields(TrainConfig)}

Sides = dict[str, list[Detected]]  # by what they are called in the report, the baseline first


def by_name(
    store: Any,
    runs: Sequence[str],
    against: Sequence[str],
    *,
    experiment: str | None,
    metric: str,
    split: str | None,
    which: str,
) -> Sides:
    """Each of the RUNs as a side of its own or, `against` others, two groups.

    Without a split, an evaluation among them decides on it.
    """
    ids = {word: fetching.run_named(store, word, experiment, metric).run_id for word in (*runs, *against)}
    if split is None:
        split = _of_evaluations([store.run(run_id) for run_id in ids.values()])
    known = dict(zip(ids, detections_of(store, list(ids.values()), split, which), strict=True))
    if not against:
        # Two evaluations of one run are two, and so are a run and its evaluation.
        _require_different([known[word].holder for word in runs], "and would be compared with itself")
        return _labelled([[known[word]] for word in runs])
    groups = [[known[word] for word in words] for words in (against, runs)]
    for group in groups:
        _require_different([run.run for run in group], "in one group")
    _require_apart(*groups)
    return _labelled(groups)


def _of_evaluations(runs: Sequence[Any]) -> str | None:
    """The split that evaluations among the runs are on; ConfigError where they are on several."""
    splits = {run.run_id: run.tags["split"] for run in runs if run.is_evaluation and run.tags.get("split")}
    if len(set(splits.values())) > 1:
        named = ", ".join(f"{run_id} on {split}" for run_id, split in splits.items())
        raise ConfigError(
            f"These evaluations are on different splits, where AP does not compare: {named}. Name those of one split "
            "(python evaluate.py --run RUN --split SPLIT makes them)"
        )
    return next(iter(splits.values()), None)


def newest_two(store: Any, experiment: str | None, split: str | None, which: str = "best") -> tuple[str, str]:
    """The IDs of the two newest trainings that detected in the same data, the older first: it is the baseline.

    Finished ones, where there are two. WorkspaceError with what to do where there are none.
    """
    finished: dict[str | None, str] = {}
    by_data: dict[str | None, str] = {}
    unfinished_too: tuple[str, str] | None = None
    for run in stored_detections.newest(store, split, which, experiment):
        run_id, data = run.run.run_id, run.dataset["digest"]
        if run.run.status == "FINISHED":
            if data in finished:
                return run_id, finished[data]
            finished[data] = run_id
        if data in by_data:
            unfinished_too = unfinished_too or (run_id, by_data[data])
        by_data.setdefault(data, run_id)
    if unfinished_too:
        return unfinished_too
    where = f"experiment {experiment!r} of {store.uri}" if experiment else store.uri
    is_val = split in (None, "val")
    mend = (
        "Train another: python train.py --seed 1" if is_val else f"Score two: {stored_detections.command('RUN', split)}"
    )
    raise workspace.WorkspaceError(f"No two runs in {where} have detections on the same {split or 'val'}. {mend}")


def detections_of(store: Any, run_ids: Sequence[str], split: str | None, which: str) -> list[Detected]:
    """Of each run; WorkspaceError that names all without, and the commands that make them.

    ConfigError that names all evaluations on another split.
    """
    known, missing, on_others = [], [], []
    for run_id in run_ids:
        workspace.deliver_if_idle(store, workspace.RunFolder(run_id))
        try:
            known.append(stored_detections.of_run(store, run_id, split, which))
        except NoDetections as error:
            missing.append(error)
        except ConfigError as error:
            on_others.append(str(error))
    if on_others:
        raise ConfigError("\n  ".join(on_others))
    if len(missing) > 1:
        its_split, named = missing[0].split, ", ".join(error.run.name for error in missing)
        command = stored_detections.commands([error.run.run_id for error in missing], its_split, which)
        message = f"{len(missing)} runs have no detections on {its_split} in {store.uri} ({named}). Make them:"
        raise workspace.WorkspaceError(f"{message}\n  {command}")
    if missing:
        raise missing[0]
    return known


def _require_different(runs: Sequence[Any], where: str) -> None:
    ids = [run.run_id for run in runs]
    twice = next((run for run in runs if ids.count(run.run_id) > 1), None)
    if twice:
        raise ConfigError(f"Run {twice.run_id} ({twice.name}) is named twice {where}")


def _require_apart(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> None:
    """The interval takes the trainings of the sides as independent."""
    both = {run.run.run_id for run in baseline} & {run.run.run_id for run in candidate}
    if both:
        named = ", ".join(f"{run.run.run_id} ({run.run.name})" for run in candidate if run.run.run_id in both)
        raise ConfigError(
            f"On both sides of --against: {named}. Name each run on one side only. Two evaluations of one training "
            "compare without --against: python compare.py EVALUATION EVALUATION"
        )


def _labelled(groups: Sequence[list[Detected]]) -> Sides:
    """By name or group; where two are called the same, with the ID or, of one run, checkpoint and evaluation's ID."""
    labels = [_label(runs) for runs in groups]
    longer = [
        label if labels.count(label) == 1 else f"{label} ({runs[0].run.run_id[:8]})"
        for label, runs in zip(labels, groups, strict=True)
    ]
    unique = [
        long if longer.count(long) == 1 else f"{label} {runs[0].which} ({runs[0].holder.run_id[:8]})"
        for long, label, runs in zip(longer, labels, groups, strict=True)
    ]
    return dict(zip(unique, groups, strict=True))


def _label(runs: Sequence[Detected]) -> str:
    if len(runs) == 1:
        return runs[0].run.name
    groups = {run.run.tags.get("group") for run in runs}
    return groups.pop() if len(groups) == 1 and None not in groups else f"{runs[0].run.name} and {len(runs) - 1} more"


def by_experiment(store: Any, experiment: str, group_by: str, *, split: str | None, which: str) -> Sides:
    """The finished runs of the experiment, by the values of parameters or tags; what is left out is said."""
    runs = [run for run in store.runs_of(experiment) if run.is_training]
    finished = [run for run in runs if run.status == "FINISHED"]
    if len(finished) < len(runs):
        say(f"note: {len(runs) - len(finished)} of the {len(runs)} runs of {experiment} have not finished: left out")
    if not finished:
        raise workspace.WorkspaceError(f"No run of experiment {experiment!r} in {store.uri} has finished")
    if len(finished) == 1:
        (run,) = finished
        raise workspace.WorkspaceError(
            f"One run of experiment {experiment!r} in {store.uri} has finished, {run.name} ({run.run_id[:8]}), and a "
            f"comparison takes two groups. Train another: python train.py --from-run {run.run_id} with --group NAME "
            "and the options that are to differ; or name runs of other experiments, too: python compare.py RUN RUN"
        )
    keys = [key.strip() for key in group_by.split(",")]
    left_out = [line for key in keys if (line := _lacking(finished, key))]
    groups = {run.run_id: label for run in finished if (label := _group(run, keys))}
    if len(set(groups.values())) < 2:
        only = f"only one group ({next(iter(groups.values()))})" if groups else "no group"
        by_name = ["with these it is compared by name: python compare.py RUN … --against RUN …"] if groups else []
        lines = [f"--group-by {group_by} finds {only} in experiment {experiment!r}. {_advice(finished)}", *left_out]
        raise ConfigError("\n  ".join([*lines, *(by_name if left_out else [])]))
    for line in left_out:
        say(f"note: {line}")
    sides: Sides = {}
    for run in detections_of(store, list(groups), split, which):
        sides.setdefault(groups[run.run.run_id], []).append(run)
    return sides


def _group(run: Any, keys: Sequence[str]) -> str | None:
    """The run's group; None where it lacks one of the parameters or tags."""
    values = {key: _value(run, key) for key in keys}
    if None in values.values():
        return None
    return values["group"] if keys == ["group"] else ", ".join(f"{key} {value}" for key, value in values.items())


def _value(run: Any, key: str) -> str | None:
    return run.params.get(options.option(key), run.tags.get(key))


def _lacking(runs: Sequence[Any], key: str) -> str | None:
    """Which of the runs have no such parameter or tag, in words."""
    names = [run.name for run in runs if _value(run, key) is None]
    is_option = options.option(key) in OPTIONS
    if is_option:
        why = f"trained without {options.flag(options.option(key))}"
    else:
        why = f"having no option or tag {meant(key, [name.replace('_', '-') for name in sorted(OPTIONS)])}"
    return f"left out, {why}: {', '.join(names)}" if names else None


def _advice(runs: Sequence[Any]) -> str:
    """What to group by: the options that all of the runs have and not all alike."""
    names = OPTIONS - {*differences.SAY_NOTHING, "seed"}
    values = {name: {run.params.get(name) for run in runs} for name in sorted(names)}
    differing = [name for name, each in values.items() if None not in each and len(each) > 1]
    if not differing:
        return "No option that all of its runs have differs: name runs, python compare.py RUN RUN"
    return f"Group its runs by what differs, or a part of it: --group-by {','.join(differing)}"
