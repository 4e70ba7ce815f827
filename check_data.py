"""Is the data set all right? Counts, sizes, and every defect by file and object, with what training does about it."""

import json
from dataclasses import dataclass
from typing import Any

import commandline
from data_options import DataOptions
from progress import say

DEFECTS_NAMED = 5  # of each kind


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataOptions):
    """Examine a data set: what is in it, and every defect with what training will do about it.

    Exit code 0: no errors, though there may be warnings; 1: errors, which make results wrong or training refuse;
    2: it cannot be read.
    """

    data: commandline.Positional[commandline.Data] = None
    """A folder or file as for train.py --data, or `generated`."""
    json: bool = False
    """Print JSON, with all defects, instead of a report."""
    output: commandline.File = None
    """Folder for the whole report (report.md, report.json) and its figure (survey.png)."""


def main(config: CheckConfig) -> dict[str, Any]:
    """The report that `--json` prints."""
    return examine(config)[1]


def examine(config: CheckConfig) -> tuple[Any, dict[str, Any]]:
    """(the data, the report on them)."""
    import data_report
    import workspace
    from data.open import open_data

    if config.data is None and config.train_annotations is None:
        raise commandline.ConfigError("Which data? Give a folder or file: python check_data.py PATH")
    if config.output is not None:
        workspace.require_writable(config.output)
    data = open_data(config.data, config, refuse=False)
    report = data_report.report(data)
    if config.output is not None:
        data_report.write(data, report, config.output)
        say(f"the whole report, with a figure: {config.output}")
    return data, report


def script(config: CheckConfig) -> int:
    data, report = examine(config)
    if config.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        import data_report

        print(data_report.text(data, report, DEFECTS_NAMED))
    return int(any(defect["severity"] == "error" for defect in report["defects"]))


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(CheckConfig))
