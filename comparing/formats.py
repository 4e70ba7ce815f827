"""The report of compare.py as text, Markdown, LaTeX and CSV, as figures, and as what MLflow keeps of it."""

import csv as csv_files
import io
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import notes
from comparing import figure, words
from metrics import OVERALL
from models import record

SHOWN = ("AP", "AP50", "AP75")  # of each side, in tables of sides
LONGEST_LABEL = 26  # characters: two such columns of a table fit into 120
LONGEST_NOTE = 4500  # characters: MLflow takes 5000 or more, by its version
ZEROS_NAMED = 5
MOST_SCORES = 300  # three numbers each: MLflow takes 1000
ERRORS = "by errors (false positives and misses at IoU 0.5, from the score of the best F1 on)"

Report = Mapping[str, Any]
Table = tuple[Sequence[str], list[list[str]]]  # header, rows


# -- as a document


def text(report: Report) -> str:
    """For a terminal."""
    return _document(report, _aligned, lambda title: title)


def markdown(report: Report) -> str:
    """For notes and MLflow."""
    return _document(report, lambda table: notes.table(*table, gap=""), lambda title: f"### {title}", between="\n\n")


def _document(report: Report, table: Callable[[Table], str], heading: Callable[[str], str], between: str = "\n") -> str:
    report, legend = lettered(report)
    parts = [introduction(report), *_bulleted("compared", legend), table(sides_table(report))]
    for about in report["comparisons"]:
        parts += [heading(f"{about['candidate']} against {about['baseline']}"), about["verdict"], about["scope"]]
        parts += [table(scores_table(about)), *zeros_told(about)]
        parts += _bulleted("beside the scores", _differences(about))
        if about["changed_images"]:
            parts += [f"images that changed most, {ERRORS}:", table(images_table(about))]
    parts += _bulleted("notes", report["notes"])
    return between.join(parts)


def lettered(report: Report) -> tuple[Report, list[str]]:
    """The report with its sides called A, B … and which is which, where a label is too long for a table's column.

    Verdicts keep the whole labels: they are quoted alone.
    """
    labels = [side["label"] for side in report["sides"]]
    if max(map(len, labels)) <= LONGEST_LABEL:
        return report, []
    letters = string.ascii_uppercase
    short = {label: f"{letters[n % len(letters)]}{n // len(letters) or ''}" for n, label in enumerate(labels)}
    sides = [side | {"label": short[side["label"]]} for side in report["sides"]]
    comparisons = [
        about | {key: short[about[key]] for key in ("baseline", "candidate")} for about in report["comparisons"]
    ]
    return {**report, "sides": sides, "comparisons": comparisons}, [f"{short[label]}: {label}" for label in labels]


def _bulleted(title: str, lines: Sequence[str]) -> list[str]:
    return ["\n".join([f"{title}:", *(f"- {line}" for line in lines)])] if lines else []


def _differences(about: Report) -> list[str]:
    options = [
        f"--{name.replace('_', '-')} {' or '.join(before)} → {' or '.join(after)}"
        for name, (before, after) in about["configuration"].items()
    ]
    told = {
        "configuration": options or ["the same"],
        "scoring": about["scoring"],
        "code": about["code"],
        "data": about["data"],
    }
    return [f"{name}: {line}" for name, lines in told.items() for line in lines]


def introduction(report: Report) -> str:
    data = " ".join(filter(None, (report["dataset"], report["split"])))
    left_out = f" ({report['images_left_out']} left out)" if report["images_left_out"] else ""
    return (
        f"{data}: {report['images']} images{left_out}; 95% intervals from {report['replicates']} draws of the images, "
        "the same for all, and from the seeds where there are several"
    )


def sides_table(report: Report) -> Table:
    """A row a side: what it scores and, of several seeds, ± their standard deviation."""
    rows = []
    for side in report["sides"]:
        runs = side["runs"]
        which = f"{runs[0]['run_id'][:8]} {runs[0]['checkpoint'] or ''}".strip()
        if len(runs) > 1:
            which = words.counted(len(runs), side["seeds"])
        if unfinished := sum(run["status"] != "FINISHED" for run in runs):
            which += f", {unfinished} unfinished" if len(runs) > 1 else ", unfinished"
        rows.append([side["label"], which, *(_with_spread(side["scores"].get(name)) for name in SHOWN)])
        interval = side["scores"].get("AP", {}).get("interval")
        rows[-1].append(f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
    header = ["", "runs", *SHOWN, "AP, 95% over seeds"]
    if not any(row[-1] for row in rows):
        return header[:-1], [row[:-1] for row in rows]
    return header, rows


def _with_spread(score: Report | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.3f}" + ("" if score["deviation"] is None else f" ± {score['deviation']:.3f}")


def scores_table(about: Report) -> Table:
    rows = [
        [
            name,
            *(f"{found[key]:.3f}" for key in ("baseline", "candidate")),
            f"{found['difference']:+.3f}",
            f"{found['low']:+.3f} to {found['high']:+.3f}",
            "shown" if found["shown"] else "",
        ]
        for name, found in telling(about).items()
    ]
    return ["", about["baseline"], about["candidate"], "difference", "95% interval", ""], rows


def telling(about: Report) -> dict[str, Report]:
    """AP, and the other scores but for those that are 0 on both sides whatever images are drawn."""
    ends = ("baseline", "candidate", "low", "high")
    return {name: found for name, found in about["scores"].items() if name == "AP" or any(found[key] for key in ends)}


def zeros_told(about: Report) -> list[str]:
    """Which rows `telling` leaves out, as one line or none."""
    shown = telling(about)
    names = [name for name in about["scores"] if name not in shown]
    more = ", …" if len(names) > ZEROS_NAMED else ""
    return [f"0 on both sides, left out: {len(names)} ({', '.join(names[:ZEROS_NAMED])}{more})"] if names else []


def images_table(about: Report) -> Table:
    rows = [[one["file_name"], f"{one['baseline']:.3g}", f"{one['candidate']:.3g}"] for one in about["changed_images"]]
    return ["", about["baseline"], about["candidate"]], rows


def _aligned(table: Table) -> str:
    rows = [table[0], *table[1]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


# -- for papers and for programs


def latex(report: Report) -> str:
    """A tabular of the sides with the difference in AP, for the package booktabs."""
    report, legend = lettered(report)
    header = [*SHOWN, r"$\Delta$AP", r"95\% interval"]
    compared = {about["candidate"]: about["scores"].get("AP") for about in report["comparisons"]}
    lines = [rf"\begin{{tabular}}{{l{'r' * len(header)}}}", r"\toprule"]
    lines += [" & ".join(["", *header]) + r" \\", r"\midrule"]
    for side in report["sides"]:
        cells = [_with_spread(side["scores"].get(name)).replace("±", r"$\pm$") for name in SHOWN]
        found = compared.get(side["label"])
        delta = (
            [f"${found['difference']:+.3f}$", f"$[{found['low']:+.3f}, {found['high']:+.3f}]$"] if found else ["", ""]
        )
        lines.append(" & ".join([escaped(side["label"]), *cells, *delta]) + r" \\")
    whole = rf"\multicolumn{{{len(header) + 1}}}{{l}}{{\footnotesize "
    lines += [r"\bottomrule", *(rf"{whole}{escaped(line)}}} \\" for line in legend)]
    return "\n".join([*lines, r"\end{tabular}"])


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: special.get(found[0], rf"\{found[0]}"), text)


def csv(report: Report) -> str:
    """A row for each side and score; of all sides but the baseline with the difference from that."""
    out = io.StringIO()
    writer = csv_files.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(report))
    return out.getvalue().rstrip("\n")


COLUMNS = (
    *("side", "runs", "score", "mean", "standard_deviation"),
    *("baseline", "difference", "low", "high", "shown"),
)


def _rows(report: Report) -> Iterable[list[Any]]:
    compared = {about["candidate"]: about["scores"] for about in report["comparisons"]}
    for side in report["sides"]:
        for name, score in side["scores"].items():
            found = compared.get(side["label"], {}).get(name)
            row = [side["label"], len(side["runs"]), name, score["mean"], score["deviation"]]
            told = (
                [report["baseline"], *(found[key] for key in ("difference", "low", "high", "shown"))]
                if found
                else [None] * 5
            )
            yield [*row, *told]


FORMATS = {"table": text, "markdown": markdown, "latex": latex, "csv": csv}


def values(report: Report) -> dict[str, float]:
    """Numbers for MLflow: difference/AP, difference_low/AP …, of several comparisons difference/CANDIDATE/AP …

    Classes are left out where there are more numbers than MLflow takes at once; the tables have them.
    """
    named = {}
    every = sum(len(about["scores"]) for about in report["comparisons"])
    for about in report["comparisons"]:
        prefix = "difference" if len(report["comparisons"]) == 1 else f"difference/{about['candidate']}"
        for name, found in about["scores"].items():
            if name not in OVERALL and every > MOST_SCORES:
                continue
            named[f"{prefix}/{name}"] = found["difference"]
            named |= {f"{prefix}_{end}/{name}": found[end] for end in ("low", "high")}
    return named


def tables(report: Report) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows by their paths as MLflow tables."""
    images = [
        [about["candidate"], *(one[key] for key in ("file_name", "baseline", "candidate"))]
        for about in report["comparisons"]
        for one in about["changed_images"]
    ]
    return {
        "tables/scores.json": (list(COLUMNS), list(_rows(report))),
        "tables/changed_images.json": (["side", "image", "errors of the baseline", "errors"], images),
    }


def note(report: Report, links: str) -> str:
    """The comparison's Markdown note in the MLflow UI: what report.md begins with, as far as it has room."""
    report, legend = lettered(report)
    first, *others = report["comparisons"]
    parts = [notes.opening(links, first["verdict"]), first["scope"]]
    parts += [f"{about['verdict']} {about['scope']}" for about in others]
    parts += [introduction(report), *_bulleted("Compared", legend), notes.table(*sides_table(report))]
    for about in report["comparisons"]:
        parts += _bulleted(f"{about['candidate']} against {about['baseline']}", _differences(about))
        parts += [notes.table(*scores_table(about)), *zeros_told(about)]
    parts += _bulleted("Notes", report["notes"])
    kept = "\n\n".join(parts)
    return (
        kept if len(kept) <= LONGEST_NOTE else f"{kept[:LONGEST_NOTE].rpartition(chr(10))[0]}\n\n… in whole: report.md"
    )


def write(report: Report, folder: Path) -> list[Path]:
    """report.md and report.json."""
    paths = [folder / f"report.{kind}" for kind in ("md", "json")]
    paths[0].write_text(markdown(report) + "\n", encoding="utf-8")
    record.write_json(paths[1], report)
    return paths


def draw(report: Report, folder: Path) -> list[Path]:
    """The figures: differences with their intervals and, where a side has several seeds, their scores."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, about in enumerate(report["comparisons"], start=1):
        rows = {name: (found["difference"], found["low"], found["high"]) for name, found in telling(about).items()}
        if rows:
            single = len(report["comparisons"]) == 1
            paths.append(folder / ("differences.png" if single else f"differences_{number}.png"))
            between = "\n" if max(len(about["candidate"]), len(about["baseline"])) > LONGEST_LABEL else " "
            figure.differences(rows, paths[-1], title=f"{about['candidate']}{between}− {about['baseline']}")
    by_side = {
        side["label"]: ([run["scores"]["AP"] for run in side["runs"]], side["scores"]["AP"]["interval"])
        for side in report["sides"]
        if "AP" in side["scores"]
    }
    if any(len(values) > 1 for values, _ in by_side.values()):
        paths.append(folder / "seeds.png")
        figure.seeds(by_side, paths[-1], title=f"AP on {report['split']}, a point a run")
    return paths
