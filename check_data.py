"""Is the data set all right? Counts, sizes, defects by file and object, what training does about them, what to do."""

import json
from dataclasses import dataclass
from typing import Any

import commandline
from data_options import DataOptions
from progress import say


@dataclass(frozen=True, kw_only=True)
class CheckConfig(DataOptions):
    """Examine a data set: what is in it, every defect, what training will do about it, and what you can.

    Exit code 0: no errors, though there may be warnings; 1: errors, which make results wrong or training refuse;
    2: it cannot be read.
    """

    data: commandline.Positional[commandline.Data] = None
    """A folder or file as for train.py --data, or `generated`."""
    json: bool = False
    """Print JSON, with all defects, instead of a report."""
    output: commandline.File = None
    """Folder for the whole report (report.md, report.json) and its figure (survey.png)."""
    export: commandline.Export = None
    """Write the data, as training would use them, as COCO: to FILE.json, or a FOLDER's instances_SPLIT.json."""
    preview: commandline.File = None
    """Write a picture (.jpg, .png) of training images beside what training sees of them, epoch by epoch."""
    augmentation: commandline.Text = None
    """Of the --preview, as for train.py. [flip]"""

    def __post_init__(self):
        if self.data is None and not self.given_files:
            raise commandline.ConfigError("Which data? Give a folder or a file: python check_data.py PATH")
        if self.augmentation is not None and self.preview is None:
            raise commandline.ConfigError("--augmentation is shown by --preview FILE: give both")
        if self.export is not None and self.export[0] != "coco":
            raise commandline.ConfigError(f"--export writes coco, not {self.export[0]}: --export coco FILE.json")


def main(config: CheckConfig) -> dict[str, Any]:
    """The report that `--json` prints."""
    return examine(config)[1]


def examine(config: CheckConfig) -> tuple[Any, dict[str, Any]]:
    """(the data, the report on them)."""
    import data_report
    import workspace
    from data.export import export_coco
    from data.open import open_data

    if config.output is not None:
        workspace.require_writable(config.output)
    data = open_data(config.data or config.folder_of_files, config, refuse=False)
    report = data_report.report(data)
    if config.output is not None:
        data_report.write(data, report, config.output)
        say(f"the whole report, with a figure: {config.output}")
    if config.export is not None:
        if any(defect.refused for defect in data.all_defects):
            raise commandline.ConfigError(
                "Not exported: training refuses these data as they are. Leave out --export to see why"
            )
        _, place = config.export
        say(f"exported: {', '.join(map(str, export_coco(data, place)))}")
    if config.preview is not None:
        from preview import write_preview  # with albumentations' and torch's seconds

        write_preview(data, config.preview, augmentation=config.augmentation or "flip")
        say(f"what training sees: {config.preview}")
    return data, report


def script(config: CheckConfig) -> int:
    data, report = examine(config)
    if config.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        import data_report
        from data.told import leaves_out

        print(data_report.text(data, report))
        if leaves_out(data.all_defects):
            print("every defect by name: the same command with --json, or with --output DIR in its report.md")
    return int(any(defect["severity"] == "error" for defect in report["defects"]))


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(CheckConfig))
