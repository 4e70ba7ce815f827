"""What is not as it was when a run was trained: options, data, code, packages, threads."""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import config as options
import workspace
from config import TrainConfig
from data import fingerprint
from data.class_names import close_to, meant
from data.readers.layout import listed
from models.record import NO_CLASS
from tracking import environment
from tracking.errors import StoreError

if TYPE_CHECKING:
    from data.detection_data import DetectionData

OF_ONE_START = ("resume", "from_run", "strict", "dry_run", "allow_change", "tag", "run_name")
CHANGED = "changed_"
SPACE = ("keep", "disk_budget", "cache")  # of disk and memory, which no result depends on
CONTENTS = "data/splits.json"  # a run's artifact: data.fingerprint.contents of the data that it began with
DATA_DIFFER = "note: the data differ"
NAMED = 3  # images, of each kind of change


def changed_tag(step: int) -> str:
    """The tag that says what differed when the run was resumed at that step: changed_at_step_000120."""
    return f"{CHANGED}at_step_{step:06d}"


def contents_since(fingerprint: str) -> str:
    """The artifact with the contents of the data of that fingerprint, with which a run went on."""
    return CONTENTS.replace(".json", f"-{fingerprint}.json")


def contents_of(store: Any, run_id: str | None, fingerprint: str | None = None) -> dict[str, dict[str, str]]:
    """The data.fingerprint.contents of the data that the run began with; nothing where the store cannot tell.

    Those of the given fingerprint, where the run went on with such data.
    """
    try:
        since = run_id and store and fingerprint and store.read_json(run_id, contents_since(fingerprint))
        return since or (run_id and store and store.read_json(run_id, CONTENTS)) or {}
    except (StoreError, ValueError):  # of a run that is unknown there, too
        return {}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The images of a split that are in train of what a run knew."""

    names: list[str]
    converted: set[str]  # of these, with other bytes
    is_all: bool  # False where others, without objects, may have been converted, too: that cannot be told

    @property
    def count(self) -> str:
        """How many, in words."""
        return f"{'' if self.is_all else 'at least '}{len(self.names)}"


def trained_on(images: Mapping[str, str], *known: Mapping[str, Mapping[str, str]]) -> Seen:
    """Which of a split's images (data.fingerprint.contents) are in train of what a run knew, as they are or converted.

    Images without objects are not known again where they were converted. Where others were, there may be such.
    """
    trained = [contents.get("train", {}) for contents in known]
    digests = set.union(*(fingerprint.images_in(contents, "train") for contents in known))
    same = {name for name, digest in fingerprint.images_of(images).items() if digest in digests}
    alike = set.union(*(fingerprint.converted(images, train) for train in trained)) - same
    untold = set.union(*(fingerprint.possibly_converted(images, train) for train in trained)) - same
    names = [name for name in images if name in same | alike]
    return Seen(names=names, converted=alike, is_all=not (alike and untold))


def keeping_split(store: Any, run_id: str) -> str:
    """How data are split as the run had them."""
    folder, uri = f"outputs/{run_id[:8]}", f"MLFLOW_TRACKING_URI={shlex.quote(store.uri)}"
    fetch = f"{uri} mlflow artifacts download --run-id {run_id} --artifact-path {CONTENTS} --dst-path {folder}"
    return f"--splits {folder}/{Path(CONTENTS).name} keeps the run's own split, once it is fetched: {fetch}"


def of_data(saved: dict[str, Any], data: "DetectionData", store: Any) -> str:
    """Which splits are not as the run `saved` tells of had them, and how far that is known, in what."""
    had = list(saved.get("classes") or data.classes)
    gone = [name for name in had if name not in (NO_CLASS, *data.classes)]
    new = [name for name in data.classes if name not in (NO_CLASS, *had)]
    words = [f"gone: {listed(gone)}"] if gone else []
    words += [f"new: {listed(meant(name, gone) for name in new)}"] if new else []
    words = words or (["in another order"] if had != list(data.classes) else [])
    parts = [f"classes differ ({'; '.join(words)})"] if words else []
    before, contents = workspace.split_fingerprints(saved), None
    for split in dict.fromkeys((*before, *data.splits)):
        if split not in data.splits:
            parts.append(f"{split} is gone")
        elif split not in before:
            parts.append(f"{split} is new")
        elif data.split_fingerprint(split) == before[split]:
            parts.append(f"{split} is the same")
        else:
            if contents is None:
                contents = contents_of(store, saved.get("run_id"), saved["dataset"].get("fingerprint"))
            classes = [_before_renaming(name, gone, new) for name in data.classes]
            now = fingerprint.contents({split: data.records(split)}, classes)[split]
            parts.append(f"{split} differs" + _in_what(contents.get(split), now))
    return ", ".join(parts)


def _before_renaming(name: str, gone: list[str], new: list[str]) -> str:
    """What a new class was called, as far as that can be guessed: its annotations are not other ones for its name."""
    if name not in new:
        return name
    return close_to(name, gone) or (gone[0] if len(gone) == len(new) == 1 else name)


def _in_what(before: dict[str, str] | None, now: dict[str, str]) -> str:
    if before is None:
        return ""
    were, are = fingerprint.images_of(before), fingerprint.images_of(now)
    common = before.keys() & now.keys()
    images = {
        "more": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        "with other content": {name for name in common if were[name] != are[name]},
    }
    told = [f"{len(names)} {what}: {_first(names)}" for what, names in images.items() if names]
    words = f"images: {'; '.join(told)}" if told else "the same images"
    if were == before:  # of a time when annotations were not kept
        return f" ({words})" if told else f" ({words}, otherwise annotated)"
    annotated = {name for name in common if were[name] == are[name] and before[name] != now[name]}
    if annotated:
        return f" ({words}; annotations of {len(annotated)}: {_first(annotated)})"
    return f" ({words})" if told else f" ({words} and annotations)"


def _first(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (", …" if len(names) > NAMED else "")


def differences(
    saved: dict[str, Any], data: "DetectionData", code: dict[str, Any], *, threads: int, store: Any
) -> list[str]:
    """What is not as it was when the run `saved` tells of was trained: data, code, packages, CPU threads."""
    notes = []
    if saved["dataset"]["fingerprint"] != data.fingerprint:
        was, now = saved["dataset"], f"{data.name}, fingerprint {data.fingerprint}"
        which = of_data(saved, data, store)
        notes.append(f"{DATA_DIFFER} ({was['name']}, fingerprint {was['fingerprint']} → {now}): {which}")
    if saved["code_version"] != code["commit"]:
        files = environment.changed_files(workspace.ROOT, saved["code_version"]) if saved["code_version"] else []
        named = f": {', '.join(files[:10])}{', …' if len(files) > 10 else ''}" if files else ""
        notes.append(f"note: the code differs (commit {saved['code_version']} → {code['commit']}){named}")
    elif saved.get("code_digest") not in (None, environment.code_digest(code)):
        notes.append("note: the code differs (same commit, other uncommitted changes: code/ of the run has them)")
    packages = environment.decisive_packages()
    for name, before in (saved.get("packages") or {}).items():
        if packages.get(name) != before:
            notes.append(f"note: {name} {before} then, {packages.get(name, 'not installed')} now")
    cpu = environment.cpu_model()
    if (before := saved["evaluation"].get("cpu", cpu)) != cpu:
        notes.append(f"note: trained on {before}, this is {cpu}: the result is as right, but not the same bit for bit")
    before = saved["evaluation"].get("threads", threads)
    if before != threads:
        notes.append(
            f"note: {before} CPU threads then, {threads} now: the result is as right, but the same "
            f"bit for bit only with OMP_NUM_THREADS={before}"
        )
    return notes


def changed_options(facts: dict[str, Any], config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The options that are not as the run `facts` tells of had them: what each was, and is now."""
    before, now = facts["config"], options.to_plain(config)
    changed = [name for name in now if name in before and name not in OF_ONE_START and before[name] != now[name]]
    return {name: (before[name], now[name]) for name in changed}


def told(changed: dict[str, tuple[Any, Any]]) -> list[str]:
    """The changed options in words; the schedule follows the epochs."""
    bends = ", which the learning rate's schedule follows from here on" if "epochs" in changed else ""
    pairs = ", ".join(f"{options.flag(name)} {before} → {now}" for name, (before, now) in changed.items())
    return [f"note: {pairs}{bends}"] if changed else []


def repetition(
    facts: dict[str, Any],
    tags: Mapping[str, str],
    config: TrainConfig,
    data: "DetectionData",
    code: dict[str, Any],
    *,
    threads: int,
    store: Any,
) -> list[str]:
    """Where a run by --from-run differs from the run it repeats; with --strict that is a WorkspaceError.

    `tags` are that run's. Flags may differ: that is what one repeats a run for.
    """
    notes = [
        f"note: it changed on its way, {key[len(CHANGED) :]}: {tags[key]}"
        for key in sorted(tags)
        if key.startswith(CHANGED)
    ]
    notes += differences(facts, data, code, threads=threads, store=store)
    if config.strict and notes:
        raise workspace.WorkspaceError("\n".join([f"--strict: run {config.from_run} cannot be repeated here", *notes]))
    before, now = facts["config"], options.to_plain(config)
    ignored = {"run_name", "resume", "from_run", "strict", "dry_run", "tag", "publish", "workers", *SPACE}
    changed = [name for name in now if name not in ignored and now[name] != before.get(name)]
    changes = [f"  {options.flag(name)} {before.get(name)} → {now[name]}" for name in changed]
    return [f"repeating run {config.from_run}" + (", with" if changes else ""), *changes, *(notes or [as_then(code)])]


def as_then(code: dict[str, Any]) -> str:
    if code["commit"] is None:
        return "the data are as they were then; without git it cannot be told whether the code is"
    return "the data and the code are as they were then"
