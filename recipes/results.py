"""Write a table of results in git from the evaluations in MLflow, and the README's table from it.

python -m recipes.results --experiment bccd --split test --output results/bccd.csv
"""

import argparse
import csv
import re
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import workspace
from tracking.store import Store, open_store

COLUMNS = (
    "run_name",
    "seed",
    "AP",
    "AP50",
    "epoch",
    "minutes",
    "run_id",
    "evaluation_run_id",
    "commit",
    "date",
    "hardware",
)


def main(arguments: list[str] | None = None) -> None:
    """Read the evaluations of one experiment and split, write the CSV, and renew the README's table."""
    parser = argparse.ArgumentParser(prog="python -m recipes.results", description=__doc__)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows = result_rows(open_store(workspace.ROOT), options.experiment, options.split)
    if not rows:
        sys.exit(f"error: experiment {options.experiment!r} has no evaluation of a run on {options.split!r}")
    write_csv(options.output, rows)
    readme = workspace.ROOT / "README.md"
    readme.write_text(
        with_table(readme.read_text(encoding="utf-8"), options.output.stem, markdown(rows)), encoding="utf-8"
    )
    print(options.output)


def result_rows(store: Store, experiment: str, split: str) -> list[dict[str, Any]]:
    """One row for each run that was evaluated on the split (its newest evaluation), in order of its name."""
    experiment_id = store.experiment(experiment)
    evaluations = store.client.search_runs([experiment_id], "tags.kind = 'evaluation'", order_by=["start_time ASC"])
    rows = [row for one in evaluations if (row := result_row(store, one, split)) is not None]
    newest = {row["run_id"]: row for row in rows}
    return sorted(newest.values(), key=lambda row: (row["run_name"], row["date"]))


def result_row(store: Store, evaluation: Any, split: str) -> dict[str, Any] | None:
    pattern = re.compile(rf"eval/[^/]+/{re.escape(split)}/(.+)")
    scores = {match[1]: value for key, value in evaluation.data.metrics.items() if (match := pattern.fullmatch(key))}
    if "AP" not in scores:
        return None
    run = store.run(evaluation.data.tags["source_run_id"])
    name = evaluation.data.tags.get("checkpoint")
    checkpoint = next((one for one in store.checkpoints(run.run_id, with_pruned=True) if one.name == name), None)
    classes = {
        f"AP {key.removeprefix('AP/')}": f"{value:.4f}" for key, value in scores.items() if key.startswith("AP/")
    }
    return {
        **{
            "run_name": run.name,
            "seed": run.params["seed"],
            "AP": f"{scores['AP']:.4f}",
            "AP50": f"{scores['AP50']:.4f}",
        },
        **classes,
        "epoch": workspace.finished_epoch(checkpoint.epoch) if checkpoint else None,
        "minutes": f"{(run.end_time - run.start_time) / 60000:.0f}",
        "run_id": run.run_id,
        "evaluation_run_id": evaluation.info.run_id,
        "commit": run.tags.get("mlflow.source.git.commit", "")[:10],
        "date": date.fromtimestamp(run.start_time / 1000).isoformat(),
        "hardware": run.tags.get("hardware"),
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [*COLUMNS[:4], *sorted({key for row in rows for key in row} - set(COLUMNS)), *COLUMNS[4:]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row a run, and their mean with the sample standard deviation."""
    scores = ["AP", "AP50", *sorted(key for key in rows[0] if key.startswith("AP ") and key not in COLUMNS)]
    lines = ["| run | " + " | ".join(scores) + " | minutes | run ID | commit |", "|---" * (len(scores) + 4) + "|"]
    for row in rows:
        cells = [
            row["run_name"],
            *(f"{float(row[key]):.3f}" for key in scores),
            row["minutes"],
            row["run_id"][:8],
            row["commit"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    means = []
    for key in scores:
        values = [float(row[key]) for row in rows]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        means.append(f"**{statistics.mean(values):.3f}**{spread}")
    lines.append(f"| **mean of {len(rows)}** | " + " | ".join(means) + " | | | |")
    return "\n".join([*lines, "", f"On {rows[0]['hardware']}, {rows[0]['date']}."])


def with_table(readme: str, name: str, table: str) -> str:
    """The README with the lines between the markers of table `name` replaced."""
    begin, end = f"<!-- results: {name} -->", "<!-- end of results -->"
    if begin not in readme:
        sys.exit(f"error: README.md has no line {begin}")
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


if __name__ == "__main__":
    main()
