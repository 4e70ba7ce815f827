"""One picture of a data set's numbers: classes, sizes of boxes and images, where the boxes lie."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}
COCO_BOUNDS = (32, 96)  # px of a box's side, between small, medium and large
MOST_CLASSES = 50  # whose names can be read beside each other
FEW_BARS = 16  # beside which their numbers can be written
LONGEST_NAME = 22  # characters
INCHES = (13, 8)


def survey_figure(numbers: Mapping[str, Any], title: str) -> bytes:
    """A PNG of what `data.survey` counted."""
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure it ever made

    figure = Figure(figsize=INCHES)
    figure.suptitle(_short(title, 100), x=0.02, ha="left", fontsize=11)
    _classes(figure.add_axes((0.15, 0.08, 0.33, 0.84)), numbers)  # matplotlib's own layout draws everything twice
    _box_sides(figure.add_axes((0.56, 0.57, 0.42, 0.35)), numbers["side_histogram"])
    _places(figure, figure.add_axes((0.56, 0.08, 0.17, 0.36)), numbers["places"])
    _image_sizes(figure.add_axes((0.82, 0.08, 0.16, 0.36)), numbers["image_sizes"])
    content = io.BytesIO()
    figure.savefig(content, dpi=90)
    return content.getvalue()


def _classes(axes: Any, numbers: Mapping[str, Any]) -> None:
    """A bar for each class and split, on a logarithmic axis: classes differ by orders of magnitude."""
    by_split = numbers["classes_by_split"]
    names = sorted(numbers["classes"], key=numbers["classes"].get, reverse=True)
    half = MOST_CLASSES // 2
    shown = names if len(names) <= MOST_CLASSES else names[:half] + names[-half:]
    height = 0.8 / len(by_split)
    rows = np.arange(len(shown))
    for number, (split, counts) in enumerate(by_split.items()):
        offset = (number - (len(by_split) - 1) / 2) * height
        bars = axes.barh(rows + offset, [counts[name] for name in shown], height, label=split, color=COLORS.get(split))
        if len(shown) * len(by_split) <= FEW_BARS:
            axes.bar_label(bars, padding=2, fontsize=8)
    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_yticks(rows, [_short(name, LONGEST_NAME) for name in shown], fontsize=9 if len(shown) <= 30 else 7)
    lowest = max(len(shown), 4) - 0.5  # few bars stay bars
    axes.set_ylim(lowest, -0.5)
    left_out = f" ({half} commonest and {half} rarest of {len(names)})" if len(shown) < len(names) else ""
    axes.set_title(f"boxes by class{left_out}", fontsize=10)
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(alpha=0.3, axis="x")


def _box_sides(axes: Any, histogram: Mapping[str, Sequence[float]]) -> None:
    edges, counts = np.array(histogram["edges"]), np.array(histogram["boxes"])
    held = np.flatnonzero(counts)
    if len(held):
        axes.set_xlim(edges[max(0, held[0] - 2)], edges[min(len(edges) - 1, held[-1] + 3)])
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="tab:grey")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for bound in COCO_BOUNDS:
        axes.axvline(bound, color="tab:red", linestyle="--", linewidth=1)
    axes.set_title("boxes by side, √(width × height) in pixels; COCO's bounds dashed", fontsize=10)
    axes.grid(alpha=0.3)


def _places(figure: Any, axes: Any, places: Sequence[Sequence[int]]) -> None:
    picture = axes.imshow(places, extent=(0, 100, 100, 0), cmap="viridis", aspect="auto", vmin=0)
    axes.set_title("where boxes have their centre", fontsize=10)
    axes.set(xlabel="% of the width", ylabel="% of the height")
    figure.colorbar(picture, cax=figure.add_axes((0.735, 0.08, 0.008, 0.36)))


def _image_sizes(axes: Any, sizes: Sequence[Mapping[str, int]]) -> None:
    """A dot for each size, its area by how many images have it."""
    axes.set_title("image sizes in pixels", fontsize=10)
    axes.set(xlabel="width", ylabel="height")
    axes.grid(alpha=0.3)
    if not sizes:
        return
    widths, heights, images = (np.array([one[key] for one in sizes]) for key in ("width", "height", "images"))
    axes.scatter(widths, heights, 15 + 250 * images / max(images), alpha=0.5)
    axes.set(xlim=(0, 1.15 * max(widths)), ylim=(0, 1.15 * max(heights)))


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
