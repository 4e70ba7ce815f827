"""The report on a data set: its numbers, figure and defects, as check_data.py prints it and every run keeps it."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from data.detection_data import DetectionData
from data.remedies import REMEDIES
from data.survey import STEPS_AN_OCTAVE, survey
from data.told import NAMED, defect_lines, tally
from survey_figure import survey_figure

MOST_CLASSES = 16  # in the table: of more, the commonest and the rarest
RAREST = 5
LONGEST_NAME = 32
BAR = 40  # characters


def report(data: DetectionData) -> dict[str, Any]:
    """What `check_data.py --json` prints."""
    return {
        **{"name": data.name, "format": data.format, "root": str(data.root) if data.root else None},
        **{"split_rule": data.split_rule, "fingerprint": data.fingerprint, "notes": list(data.notes)},
        **survey(data),
        "defects": [asdict(defect) for defect in data.all_defects],
        "what_to_do": {kind: REMEDIES[kind] for kind in sorted({defect.kind for defect in data.all_defects})},
    }


def text(data: DetectionData, numbers: dict[str, Any], named: int = NAMED) -> str:
    """The report for people, from `report`'s numbers; of each kind of defect the first `named`."""
    bars, shares = _histogram(numbers)
    parts = [
        _what(data),
        [*_table(_splits(numbers)), _sizes(numbers["image_sizes"])],
        _table(_classes(numbers)),
        [*_table(bars), shares],
        [tally(data.all_defects), *defect_lines(data.all_defects, named)],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def markdown(data: DetectionData, numbers: dict[str, Any]) -> str:
    """The report with all defects, as MLflow's UI shows it."""
    defects = [
        f"- {_plain(line.strip())}" if line.startswith(" ") else f"\n### {_plain(line)}\n"
        for line in defect_lines(data.all_defects, None)
    ]
    parts = [
        f"# {_plain(data.name)}",
        "\n\n".join(map(_plain, _what(data))),
        "![classes, sizes, places](survey.png)",
        *(_markdown_table(_splits(numbers)), _sizes(numbers["image_sizes"])),
        *(_markdown_table(_classes(numbers)), _histogram(numbers)[1]),
        "\n".join([f"## {tally(data.all_defects).capitalize()}", *defects]),
    ]
    return "\n\n".join(parts) + "\n"


def _what(data: DetectionData) -> list[str]:
    return [data.describe()[0], *data.notes, f"fingerprint {data.fingerprint}"]


def write(data: DetectionData, report: dict[str, Any], folder: Path) -> list[Path]:
    """Write the whole report into the folder: report.md, report.json and survey.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"report.md": markdown(data, report), "report.json": json.dumps(report, ensure_ascii=False)}
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    numbers = json.dumps({name: value for name, value in report.items() if name != "defects"})
    (folder / "survey.png").write_bytes(_figure(numbers, f"{data.name}, fingerprint {data.fingerprint}"))
    return [folder / name for name in (*contents, "survey.png")]


@cache  # a process that trains many runs on the same data draws them once: half a second
def _figure(numbers: str, title: str) -> bytes:
    return survey_figure(json.loads(numbers), title)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows in columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _markdown_table(rows: Iterable[Sequence[str]]) -> str:
    head, *rest = ([_plain(cell) for cell in row] for row in rows)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rest))


def _plain(words: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_<>|])", r"\\\1", words)


def _splits(numbers: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "split", "images", "without objects", "boxes", "an image: least", "median", "most"
    for split, counts in numbers["splits"].items():
        spread = numbers["boxes_an_image"][split].values()
        shown = counts["images"], counts["empty"], counts["boxes"], *spread
        yield split, *(f"{value:g}" if value < 1e6 else str(value) for value in shown)


def _sizes(sizes: Sequence[dict[str, int]]) -> str:
    if not sizes:
        return "no image can be read"
    shown = [f"{one['width']}×{one['height']}" for one in sizes[:3]]
    if len(sizes) == 1:
        return f"all images are {shown[0]} pixels"
    by_area = sorted((one["width"] * one["height"], one["width"], one["height"]) for one in sizes)
    ends = "{}×{} to {}×{} pixels".format(*by_area[0][1:], *by_area[-1][1:])
    return f"images: {len(sizes)} sizes, {ends}; the commonest {', '.join(shown)}"


def _classes(numbers: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    by_split, totals = numbers["classes_by_split"], numbers["classes"]
    yield "class", *by_split, "all", "share", "side in pixels: 5 %", "median", "95 %"
    every = sum(totals.values()) or 1
    names = sorted(totals, key=totals.get, reverse=True)
    left_out = len(names) - MOST_CLASSES
    for number, name in enumerate(names):
        if left_out > 1 and MOST_CLASSES - RAREST <= number < len(names) - RAREST:
            if number == MOST_CLASSES - RAREST:
                yield f"… {left_out} more", *([""] * (len(by_split) + 5))
            continue
        sides = numbers["box_sides"].get(name, ["", "", ""])
        counts = [*(str(boxes[name]) for boxes in by_split.values()), str(totals[name])]
        sides = [f"{side:.0f}" if side != "" else "" for side in sides]
        yield _short(name), *counts, f"{100 * totals[name] / every:.1f} %", *sides


def _histogram(numbers: dict[str, Any]) -> tuple[list[tuple[str, ...]], str]:
    """(rows with a bar for each doubling of the side, the shares by COCO's bounds)."""
    edges = numbers["side_histogram"]["edges"][::STEPS_AN_OCTAVE]
    fine = numbers["side_histogram"]["boxes"]
    counts = [sum(fine[start : start + STEPS_AN_OCTAVE]) for start in range(0, len(fine), STEPS_AN_OCTAVE)]
    held = [index for index, count in enumerate(counts) if count]
    if not held:
        return [], "no boxes"
    rows = [("side √(w·h)", "boxes", "")]
    for index in range(held[0], held[-1] + 1):
        bar = "█" * round(BAR * counts[index] / max(counts))
        rows.append((f"{edges[index]:g}–{edges[index + 1]:g}", str(counts[index]), bar.ljust(BAR)))
    total = sum(numbers["box_areas"].values())
    shares = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in numbers["box_areas"].items())
    return rows, f"by COCO's bounds of 32² and 96² pixels: {shares}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
