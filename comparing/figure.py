"""A comparison in pictures: differences with their intervals, and the scores of seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import figures

SHOWN, OPEN = "tab:blue", "grey"  # a difference that excludes 0, and one that does not


def differences(rows: Mapping[str, tuple[float, float, float]], path: Path, *, title: str) -> None:
    """A row for each (difference, low, high), the first on top, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=1)
    for place, (value, low, high) in enumerate(reversed(rows.values())):
        color = SHOWN if low > 0 or high < 0 else OPEN
        axes.plot([low, high], [place, place], color=color, linewidth=2, marker="|", markersize=8)
        axes.plot(value, place, color=color, marker="o", markersize=6)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="difference and its 95% interval", ylim=(-0.6, len(rows) - 0.4), title=title)
    axes.grid(alpha=0.3, axis="x")
    figures.paint(figure, path)


def seeds(sides: Mapping[str, tuple[Sequence[float], tuple[float, float] | None]], path: Path, *, title: str) -> None:
    """A row a side: the score of each seed, their mean and its 95% interval over seeds, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.5 * len(sides)), layout="constrained")
    axes = figure.add_subplot()
    for place, (scores, interval) in enumerate(reversed(sides.values())):
        axes.plot(scores, [place] * len(scores), "o", color=SHOWN, alpha=0.6)
        axes.plot(sum(scores) / len(scores), place, marker="|", markersize=22, color="black")
        if interval:
            axes.plot(interval, [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(sides)), list(reversed(sides)))
    axes.set(xlabel="AP; mean and 95% interval over seeds", ylim=(-0.6, len(sides) - 0.4), title=title)
    axes.grid(alpha=0.3, axis="x")
    figures.paint(figure, path)
