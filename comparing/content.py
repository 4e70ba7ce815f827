"""What compare.py finds, as the plain data that --json prints; `config` is a CompareConfig."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import metrics
import stored_detections
import workspace
from comparing import differences, incomplete, words
from comparing.same_images import SameImages
from metrics import Evaluated
from metrics.bootstrap import FEW_IMAGES, LEVEL
from stored_detections import Detected


@dataclass(frozen=True, kw_only=True)
class Side:
    """A run, or the seeds of one method, and what they scored."""

    label: str
    runs: list[Detected]
    scores: list[Evaluated]  # of each run


def scored(label: str, runs: list[Detected], same: SameImages, config: Any) -> Side:
    scores = []
    for run in runs:
        matches = metrics.match(same.ground_truth, same.results_of(run))
        scores.append(metrics.evaluated(matches, replicates=config.replicates, seed=config.seed))
    return Side(label=label, runs=runs, scores=scores)


def reported(sides: Sequence[Side], same: SameImages, config: Any) -> dict[str, Any]:
    """The report as plain data; the first side is what the others are compared with."""
    first = sides[0].runs[0]
    names = list(dict.fromkeys(name for side in sides for one in side.scores for name in one.values))
    return {
        "dataset": first.dataset["name"],
        "split": first.split,
        "images": len(same.image_names),
        "images_left_out": same.left_out,
        "level": LEVEL,
        "replicates": config.replicates,
        "seed": config.seed,
        "baseline": sides[0].label,
        "sides": [side_in_report(side, names) for side in sides],
        "comparisons": [compared(sides[0], side, names, same, config) for side in sides[1:]],
        "notes": notes(sides, same, config),
        "comparison_run_id": None,
    }


def side_in_report(side: Side, names: Sequence[str]) -> dict[str, Any]:
    runs = [
        {
            "run_id": run.run.run_id,
            "run_name": run.run.name,
            "evaluation_run_id": None if run.holder is run.run else run.holder.run_id,
            "checkpoint": run.checkpoint,
            "status": run.run.status,
            "amp": run.computed["amp"],
            "reference": {"True": True, "False": False}.get(run.computed["reference"]),
            "seed": (run.facts.get("config") or {}).get("seed"),
            "score_threshold": one.score_threshold,
            "scores": one.values,
        }
        for run, one in zip(side.runs, side.scores, strict=True)
    ]
    scores = {}
    for name in names:
        values = [one.values[name] for one in side.scores if name in one.values]
        if len(values) == len(side.scores):
            over = metrics.spread(values)
            scores[name] = {"mean": over.mean, "deviation": over.deviation, "interval": over.interval}
    return {"label": side.label, "seeds": differences.seeds(side.runs), "runs": runs, "scores": scores}


def compared(baseline: Side, candidate: Side, names: Sequence[str], same: SameImages, config: Any) -> dict[str, Any]:
    """One comparison of the report."""
    by_score = {name: metrics.difference(baseline.scores, candidate.scores, name) for name in names}
    scores = {name: words.in_report(found) for name, found in by_score.items() if found}
    about = {
        "baseline": baseline.label,
        "candidate": candidate.label,
        "runs": [len(baseline.runs), len(candidate.runs)],
        "seeds": [differences.seeds(side.runs) for side in (baseline, candidate)],
        "repeated": [
            f"{run.run.name} ({run.run.run_id[:8]})"
            for side in (baseline, candidate)
            for run in differences.repeated(side.runs)
        ],
        "incomplete": list(
            dict.fromkeys(line for side in (baseline, candidate) for line in incomplete.trainings(side.runs))
        ),
        "scores": scores,
        "images_needed": None,
        "seeds_needed": None,
    }
    if (found := by_score.get("AP")) and not about["incomplete"]:
        needed = metrics.needed(found, images=len(same.image_names), seeds=tuple(about["runs"]))
        about |= dict(zip(("images_needed", "seeds_needed"), needed, strict=True))
    about |= {
        "verdict": words.verdict(about, len(same.image_names)),
        "scope": words.scope(about, len(same.image_names)),
        "configuration": differences.configuration(baseline.runs, candidate.runs),
        "scoring": differences.scoring(baseline.runs, candidate.runs),
        "code": differences.code(baseline.runs, candidate.runs),
        "data": differences.data(baseline.runs, candidate.runs),
        "changed_images": changed_images(baseline, candidate, same.image_names, config.images),
    }
    return about


def changed_images(baseline: Side, candidate: Side, image_names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The images whose errors (metrics.comparison.image_errors; of seeds their mean) changed most, most first."""
    before, after = (sum(one.errors for one in side.scores) / len(side.scores) for side in (baseline, candidate))
    change = after - before
    order = sorted(range(len(image_names)), key=lambda index: (-abs(change[index]), image_names[index]))
    return [
        {"file_name": image_names[index], "baseline": float(before[index]), "candidate": float(after[index])}
        for index in order[:most]
        if change[index]
    ]


def notes(sides: Sequence[Side], same: SameImages, config: Any) -> list[str]:
    """What a reader must know to quote the result."""
    every = [run for side in sides for run in side.runs]
    runs = list({run.run.run_id: run for run in every}.values())
    said = []
    chosen = [run for run in every if run.is_chosen_on_it]
    if chosen:
        said.append(f"val was also used to choose {flattered(every, chosen)}. {instead(sides, config)}")
    if same.left_out:
        said.append(f"{same.left_out} images are left out, which not all runs have alike (--common-images)")
    if len({run.dataset["digest"] for run in runs}) > 1 and not same.left_out:
        said.append("names, sizes and boxes of the images agree, the fingerprints of the data do not: see their pixels")
    said += differences.trained_on(runs, same.image_names)
    for side in sides:
        if len(side.runs) > 1 and (differing := differences.within(side.runs)):
            beside = "more than the seed" if differences.seeds(side.runs) > 1 else "other things than the seed"
            said.append(f"the runs of {side.label} differ in {beside}: {'; '.join(differing)}")
    said += few_images(same.ground_truth)
    said.append("each interval is at 95% by itself: of twenty rows without a true difference, one shows one")
    if len(sides) > 2 and not config.runs:
        said.append("the best of several groups is in part the luckiest one: its lead is rather too large")
    return said


def few_images(truth: dict[str, Any]) -> list[str]:
    """The classes whose intervals hold less often."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    pairs = {(names[each["category_id"]], each["image_id"]) for each in truth["annotations"] if not each["iscrowd"]}
    counts = Counter(name for name, _ in pairs)
    few = [f"{name} ({counts[name]})" for name in names.values() if 0 < counts[name] < FEW_IMAGES]
    return [f"in few images, so that their intervals hold less often: {', '.join(few)}"] if few else []


def flattered(runs: Sequence[Detected], chosen: Sequence[Detected]) -> str:
    """Which checkpoints val chose, and what that does."""
    if len(chosen) == len(runs):
        return "each run's best checkpoint, which flatters the scores of all of them"
    named = dict.fromkeys(f"{run.run.name} ({run.run.run_id[:8]})" for run in chosen)
    return f"the best checkpoint of {', '.join(named)}, which flatters its scores, and not those of the others"


def instead(sides: Sequence[Side], config: Any) -> str:
    """The commands that compare on a split which chose nothing: what is scored there already is not scored anew."""
    runs = [run for side in sides for run in side.runs]
    if not all("test" in workspace.split_fingerprints(run.facts) for run in runs):
        return "The data have no test split; of RUNs, --which last compares checkpoints that no score chose"
    found = {run.holder.run_id: stored_detections.evaluation_of(run, "test") for run in runs}
    missing = [run for run in runs if found[run.holder.run_id] is None]
    on_test = "On test nothing was chosen: "
    on_test += f"{stored_detections.commands_of(missing, 'test')}; " if missing else ""
    if all(run.holder is run.run for run in runs):
        line = _line([[run.run.run_id for run in side.runs] for side in sides], config)
        return f"{on_test}python compare.py {shlex.join(line)} --split test"
    if missing:  # an evaluation is on its own split, and these have no ID yet
        there = " ".join(one.run_id for one in found.values() if one)
        return f"{on_test}then python compare.py with the IDs of these evaluations" + (f" and {there}" if there else "")
    line = _line([[found[run.holder.run_id].run_id for run in side.runs] for side in sides], config)
    return f"{on_test}python compare.py {shlex.join(line)}"


def _line(ids: Sequence[Sequence[str]], config: Any) -> list[str]:
    """The arguments of compare.py: the sides' IDs, as names may fit several runs, or the experiment of its groups."""
    first, *others = ids
    rest = [run_id for side in others for run_id in side]
    line = [*rest, "--against", *first] if config.against else [*first, *rest]
    if not config.runs:
        line = ["--experiment", config.experiment, *(["--group-by", config.group_by] if config.group_by else [])]
    return line + (["--common-images"] if config.common_images else [])
