"""What differs between runs beside their scores: configuration, code, packages, data.

All of it from what the runs keep (run.json, data/splits.json): the repository may have moved on since.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import changes
import config as options
import stored_detections
import workspace
from data_options import PATHS
from stored_detections import Detected
from tracking import environment

# Options that say nothing of the result; what the data are, their fingerprints tell.
SAY_NOTHING = (
    *(*changes.OF_ONE_START, *changes.SPACE, *PATHS, "data", "experiment", "group", "publish", "workers"),
    "checkpoint_every",
)
# What evaluations record of how they were computed, in words.
COMPUTED = {
    "amp": {"off": "in float32", "bf16": "in bf16", "fp16": "in fp16"},
    "reference": {"False": "without --reference", "True": "with --reference"},
}
LONGEST_VALUE = 60  # characters
FILES_NAMED = 10

Facts = Mapping[str, Any]
Values = list[str]


def configuration(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> dict[str, tuple[Values, Values]]:
    """The options whose values differ: those of the baseline's runs, and those of the candidate's.

    Seeds count only where each side has one.
    """
    ignored = set(SAY_NOTHING) | (set() if seeds(baseline) == seeds(candidate) == 1 else {"seed"})
    sides = [[_configuration(run.facts) for run in side] for side in (baseline, candidate)]
    names = dict.fromkeys(name for side in sides for one in side for name in one if name not in ignored)
    found = {name: tuple(_values(one.get(name) for one in side) for side in sides) for name in names}
    return {name: values for name, values in found.items() if values[0] != values[1]}


def within(runs: Sequence[Detected]) -> list[str]:
    """What differs in a group beside the seed, so that its spread is not the seeds' alone."""
    found = {}
    each = [_configuration(run.facts) for run in runs]
    for name in dict.fromkeys(name for one in each for name in one if name not in (*SAY_NOTHING, "seed")):
        values = _values(one.get(name) for one in each)
        if len(values) > 1:
            found[options.flag(name)] = values
    found |= {key: values for key, values in _settings(runs).items() if len(values) > 1}
    notes = [f"{name} {', '.join(values)}" for name, values in found.items()]
    return notes + [f"scored {', '.join(values)}" for values in _computed(runs).values() if len(values) > 1]


def seeds(runs: Sequence[Detected]) -> int:
    """How many different ones a group has; a run of which it is not known counts as one of its own."""
    known = [seed for run in runs if (seed := _configuration(run.facts).get("seed")) is not None]
    return len(set(known)) + len(runs) - len(known)


def repeated(runs: Sequence[Detected]) -> list[Detected]:
    """The runs of a group with the seed and the configuration of one before."""
    each = [
        {name: value for name, value in _configuration(run.facts).items() if name not in SAY_NOTHING} for run in runs
    ]
    return [run for n, run in enumerate(runs) if each[n].get("seed") is not None and each[n] in each[:n]]


def _configuration(facts: Facts) -> dict[str, Any]:
    return facts.get("config") or {}


def _values(values: Any) -> Values:
    return sorted({short(value) for value in values})


def short(value: Any) -> str:
    """An option's value as a line can show it: of a whole pipeline the hash."""
    text = "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if text.startswith("{"):
        return f"a pipeline {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _settings(runs: Sequence[Detected]) -> dict[str, Values]:
    """Code, processor, threads and packages: each with its values."""
    found: dict[str, set[str]] = {}
    for run in runs:
        known = {
            "commit": (run.facts.get("code_version") or "unknown")[:10],
            "uncommitted code": run.facts.get("code_digest") or "unknown",
            **{name: (run.facts.get("evaluation") or {}).get(name) for name in ("cpu", "threads")},
            **(run.facts.get("packages") or {}),
        }
        for name, value in known.items():
            if value is not None:
                found.setdefault(name, set()).add(str(value))
    return {name: sorted(values) for name, values in found.items()}


def scoring(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> list[str]:
    """How the precision and the modules differ that detected, in lines; what was not recorded differs from nothing."""
    before, after = _computed(baseline), _computed(candidate)
    differs = [name for name in COMPUTED if before[name] and after[name] and before[name] != after[name]]
    lines = [f"{' or '.join(before[name])} → {' or '.join(after[name])}" for name in differs]
    unknown = [run for run in (*baseline, *candidate) if None in run.computed.values()]
    if unknown:
        named = ", ".join(dict.fromkeys(run.run.name for run in unknown))
        command = stored_detections.commands_of([run for run in unknown if run.run.is_training], unknown[0].split)
        mend = f". Score it anew, and give the evaluation's ID: {command}" if command else ""
        lines.append(f"precision not on record of {named} (scored by an older version, or resumed in another){mend}")
    return lines or [f"the same, {' '.join(' or '.join(before[name]) for name in COMPUTED)}"]


def _computed(runs: Sequence[Detected]) -> dict[str, Values]:
    known = {name: {run.computed[name] for run in runs} - {None} for name in COMPUTED}
    return {name: sorted(COMPUTED[name].get(value, value) for value in values) for name, values in known.items()}


def code(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> list[str]:
    """How code, machine and packages differ, in lines; where nothing does, that."""
    sides = [_settings(baseline), _settings(candidate)]
    names = dict.fromkeys((*sides[0], *sides[1]))
    differs = {
        name: tuple(", ".join(side.get(name, ["unknown"])) for side in sides)
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    }
    lines = []
    commits, digests = differs.pop("commit", None), differs.pop("uncommitted code", None)
    if commits:
        files = _files_between(baseline, candidate)
        more = ", …" if len(files) > FILES_NAMED else ""
        named = f": {', '.join(files[:FILES_NAMED])}{more}" if files else ""
        lines.append(f"commit {commits[0]} → {commits[1]}{named}")
    elif sides[0]["commit"] != ["unknown"]:
        other = ", with other uncommitted changes: see the runs' artifacts code/" if digests else ""
        lines.append(f"the same commit, {', '.join(sides[0]['commit'])}{other}")
    else:
        lines.append("unknown: the runs were not trained from a git checkout")
    return lines + [f"{name} {before} → {after}" for name, (before, after) in differs.items()]


def _files_between(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> list[str]:
    before, after = ({run.facts.get("code_version") for run in side} for side in (baseline, candidate))
    if len(before) != 1 or len(after) != 1 or None in before | after:
        return []
    return environment.changed_files(workspace.ROOT, before.pop(), after.pop())


def data(baseline: Sequence[Detected], candidate: Sequence[Detected]) -> list[str]:
    """How the data that the runs were trained and scored on differ, in lines."""
    sides = [_fingerprints(side) for side in (baseline, candidate)]
    lines, equal = [], []
    for split in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (side.get(split, {"none"}) for side in sides)
        if before == after and len(before) == 1:
            equal.append(f"{split} ({next(iter(before))})")
        else:
            lines.append(f"{split}: fingerprint {' or '.join(sorted(before))} → {' or '.join(sorted(after))}")
    return lines + [f"the same in {', '.join(equal)}"] * bool(equal) or ["unknown"]


def _fingerprints(side: Sequence[Detected]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for run in side:
        for split, fingerprint in workspace.split_fingerprints(run.facts).items():
            found.setdefault(split, set()).add(fingerprint)
    return found


def trained_on(runs: Sequence[Detected], image_names: Sequence[str]) -> list[str]:
    """Of which runs the compared images were in the training split, also as converted images, and how many."""
    contents = [changes.contents_of(run.store, run.run.run_id) for run in runs]
    compared = {}
    for run, known in zip(runs, contents, strict=True):
        of_split = known.get(run.split, {})
        compared |= {name: of_split[name] for name in image_names if name in of_split}
    notes = []
    for run, known in zip(runs, contents, strict=True):
        seen = changes.trained_on(compared, known)
        if seen.names:
            notes.append(
                f"{run.run.name} ({run.run.run_id[:8]}) was trained on {seen.count} of these {len(image_names)} "
                "images, which flatters it"
            )
    return notes
