"""Compare runs, or groups of seeds: what differs, and whether the difference in AP is more than chance."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import commandline
import fetching
import notes
import workspace
from commandline import ConfigError
from data_options import SPLITS
from evaluating.scoring import FEWEST_REPLICATES
from progress import say, say_page
from tracking.errors import StoreError

if TYPE_CHECKING:
    from comparing.content import Side
    from comparing.same_images import SameImages

MOST_LINKED = 10  # runs, in the note


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare each RUN with the first, or the RUNs as seeds of one method with those --against, or an experiment's
    groups with the best of them. It takes the detections that MLflow keeps: no GPU and no images are needed.

    A RUN is an ID, a unique prefix, a name, models:/NAME@ALIAS, best, or an evaluation's ID.
    """

    runs: commandline.Positional[commandline.Runs] = ()
    """The runs, the baseline first; with --against the seeds of one method."""
    against: commandline.OtherRuns = ()
    """The baseline's seeds: the RUNs before are one group then, and these the other."""
    experiment: commandline.Text = None
    """Without RUNs: compare the groups of this experiment. With RUNs: where to look for them."""
    group_by: commandline.Text = None
    """Options or tags that a group's runs share, as in lr,augmentation; runs without are left out. [their --group]"""
    split: commandline.Text = None
    """Split whose images they are compared on (valid: val): its newest evaluation is taken. [val; an evaluation's]"""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of each run. On val, nothing chose the last one."""
    common_images: bool = False
    """Compare runs that were scored on different data on the images that have the same name and boxes in all."""
    metric: str = "val/AP"
    """Of the RUN `best`: what makes it the best."""
    replicates: int = 1000
    """Draws of images that the 95% intervals are computed from."""
    seed: int = 0
    """Of these draws."""
    images: int = 6
    """How many of the images that changed most are named and drawn."""
    format: Literal["table", "markdown", "latex", "csv", "json"] = "table"
    """What is printed."""
    json: bool = False
    """The same as --format json."""
    output: commandline.File = None
    """Folder for report.md, report.json and figures/."""
    no_log: bool = False
    """Do not write the comparison to MLflow."""

    def __post_init__(self):
        if not self.runs and self.against:
            raise ConfigError("--against takes the baseline's runs: give the RUNs to compare with them before it")
        if not self.runs and self.experiment is None:
            raise ConfigError(
                "Give two RUNs or more, or --experiment NAME (python status.py --experiment NAME has them)"
            )
        if len(self.runs) == 1 and not self.against:
            raise ConfigError("One RUN alone is no comparison: give two, or --against RUN")
        if self.group_by is not None and (self.runs or self.experiment is None):
            raise ConfigError("--group-by makes groups of an experiment's runs: give --experiment NAME, and no RUNs")
        if self.json and self.format not in ("table", "json"):
            raise ConfigError(f"--json and --format {self.format} contradict each other: give one of them")
        if self.split is not None and self.split_name is None:
            raise ConfigError(f"--split is one of {', '.join(SPLITS)}, not {self.split}")
        for name, value, least in (
            ("--replicates", self.replicates, FEWEST_REPLICATES),
            ("--seed", self.seed, 0),
            ("--images", self.images, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} must be {least} or more, not {value}")

    @property
    def split_name(self) -> str | None:
        """Of the split, by whatever usual word it is asked for; None of an unknown one."""
        from data.readers.layout import split_of_folder

        return self.split and split_of_folder(self.split)


def main(config: CompareConfig) -> dict[str, Any]:
    """The report that `--json` prints."""
    from comparing import content, formats, runs
    from comparing.same_images import same_images

    if config.output is not None:
        workspace.require_writable(config.output)
    store = fetching.store_of(config.runs[0] if config.runs else "")
    if config.runs:
        chosen = runs.by_name(
            store,
            config.runs,
            config.against,
            experiment=config.experiment,
            metric=config.metric,
            split=config.split_name,
            which=config.which,
        )
    else:
        chosen = runs.by_experiment(
            store, config.experiment, config.group_by or "group", split=config.split_name, which=config.which
        )
    same = same_images([run for side in chosen.values() for run in side], only_common=config.common_images)
    sides = [content.scored(label, side, same, config) for label, side in chosen.items()]
    if not config.runs:  # the best is what the others are compared with
        sides.sort(key=lambda side: -sum(one.values.get("AP", 0.0) for one in side.scores) / len(side.scores))
    report = content.reported(sides, same, config)
    with tempfile.TemporaryDirectory(prefix="comparison-") as folder:
        pictures = (config.output or Path(folder)) / "figures"
        drawings = [*formats.draw(report, pictures), *drawn(sides, same, report, pictures)]
        files = dict.fromkeys(drawings, "figures") | dict.fromkeys(formats.write(report, pictures.parent))
        if not config.no_log:
            try:
                report["comparison_run_id"] = log(store, report, sides, files)
            except StoreError as error:  # the comparison is there all the same
                say(f"error: the comparison is not in MLflow: {error}")
    return report


def drawn(sides: Sequence["Side"], same: "SameImages", report: dict[str, Any], folder: Path) -> list[Path]:
    """The images that changed most, of the first run of each side, where their files are here; else that is said."""
    from comparing import changed_images

    files = []
    for number, (side, about) in enumerate(zip(sides[1:], report["comparisons"], strict=True), start=1):
        if about["changed_images"]:
            shown = [(one.runs[0], one.scores[0]) for one in (sides[0], side)]
            names = [one["file_name"] for one in about["changed_images"]]
            name = "changed_images" if len(sides) == 2 else f"changed_images_{number}"
            path = changed_images.draw(shown, same, names, folder / f"{name}.jpg")
            files += [path] if path else []
    return files


def log(store: Any, report: dict[str, Any], sides: Sequence["Side"], files: dict[Path, str | None]) -> str:
    """Write the comparison's own MLflow run, in the experiment of the first run; its ID."""
    from comparing import formats
    from tracking.records import COMPARISON

    first = sides[0].runs[0]
    data = first.dataset
    labels = [side.label for side in sides]
    others = labels[1] if len(labels) == 2 else f"{len(labels) - 1} others"
    compared = [run.run for side in sides for run in side.runs]

    def links(run_id: str) -> str:
        figures = [store.ui_urls(run_id, figure=path.name)["figures"] for path in files if path.suffix == ".png"]
        runs = [(run.name, store.ui_urls(run.run_id)["run"]) for run in compared[:MOST_LINKED]]
        return notes.links([*(("Figures", url) for url in figures[:1]), *runs])

    run_id = store.log_evaluation(
        formats.values(report),
        experiment=first.run.experiment,
        kind=COMPARISON,
        run_name=f"{others} against {labels[0]} on {data['name']} {report['split']}"[:200],
        dataset=(f"{data['name']}-{report['split']}", data["digest"]) if data["name"] and data["digest"] else None,
        dataset_source=data["source"] or "",
        params={key: report[key] for key in ("baseline", "split", "images", "replicates", "seed")},
        tags={"compared_runs": " ".join(run.run_id for run in compared)[:5000]},
        files=files,
        tables=formats.tables(report),
        description=lambda run_id: formats.note(report, links(run_id)),
    )
    say_page("comparison", store.ui_urls(run_id))
    return run_id


def script(config: CompareConfig) -> int:
    from comparing import formats

    report = main(config)
    kind = "json" if config.json else config.format
    print(json.dumps(report, indent=1) if kind == "json" else formats.FORMATS[kind](report))
    return 0 if config.no_log or report["comparison_run_id"] else StoreError.exit_code


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(CompareConfig))
