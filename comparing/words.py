"""A comparison in words that can be quoted: who is better, or what would tell, and of what that may be said."""

import math
from collections.abc import Mapping
from typing import Any

import metrics

MOST_IMAGES, MOST_SEEDS = 1_000_000, 1_000  # above: said in words
POWER = f"with a probability of {metrics.POWER:.0%}"

About = Mapping[str, Any]  # a comparison of the report


def in_report(found: metrics.Difference) -> dict[str, Any]:
    """A difference as JSON has it."""
    degrees = found.degrees_of_freedom
    return {
        "baseline": found.baseline,
        "candidate": found.candidate,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "shown": found.is_shown,
        "image_deviation": math.sqrt(found.image_variance),
        "seed_deviation": math.sqrt(found.seed_variance),
        "degrees_of_freedom": degrees if math.isfinite(degrees) else None,
    }


def verdict(about: About, images: int) -> str:
    """Whether the candidate is better and, where nothing is shown, what would tell.

    No advice on what is incomplete: other images and seeds would not tell what finished trainings will.
    """
    found, baseline, candidate = about["scores"].get("AP"), about["baseline"], about["candidate"]
    if found is None:
        return "There is no box in these images: nothing can be compared."
    low, high, value = found["low"], found["high"], found["difference"]
    if found["shown"]:
        word, size = ("better", (low, high)) if value > 0 else ("worse", (-high, -low))
        interval = f"95% interval {size[0]:.3f} to {size[1]:.3f}"
        return f"{candidate} is {word} than {baseline} by {abs(value):.3f} AP, {interval}."
    said = f"{value:+.3f} AP, 95% interval {low:+.3f} to {high:+.3f}"
    advice = "" if about["incomplete"] else f"; {enough(about, images)}"
    return f"No difference shown between {candidate} and {baseline}: {said}{advice}."


def enough(about: About, images: int) -> str:
    """How many images or seeds would show a difference of the size that was seen."""
    value = about["scores"]["AP"]["difference"]
    if not value:
        return "they score the same"
    number, seeds = about["images_needed"], about["seeds_needed"]
    ways = []
    # As many as there are were not enough: few seeds have a wider interval than `metrics.needed` reckons with.
    if number is not None and (number > images or seeds is None):
        number = max(number, images + 1)
        many = "more than a million" if number > MOST_IMAGES else f"about {_two_digits(number):,}"
        ways.append(f"{many} images (there are {images})")
    if seeds is not None:
        there = max(about["seeds"])
        many = f"about {math.ceil(seeds)}" if seeds > there else f"more than {there}"
        ways.append(f"{'more than a thousand' if seeds > MOST_SEEDS else many} seeds a side")
    if not ways:
        return f"to show {abs(value):.3f} would take both more images (there are {images}) and more seeds"
    return f"{' or '.join(ways)} would be needed to show {abs(value):.3f} {POWER}"


def _two_digits(number: float) -> int:
    number = math.ceil(number)
    digits = max(0, len(str(number)) - 2)
    return math.ceil(number / 10**digits) * 10**digits


def scope(about: About, images: int) -> str:
    """Of what the verdict may be said."""
    before, after = about["runs"]
    if about["incomplete"]:
        return (
            f"Not all of these trainings are whole: {'; '.join(about['incomplete'])}. That is of these checkpoints on "
            f"images like these {images}; of whole trainings and of the methods it says nothing.{_too_narrow(about)}"
        )
    if before == after == 1:
        return (
            f"That is of these two checkpoints on images like these {images}; "
            "of the methods it says nothing, as other seeds may differ: train several a side."
        )
    trained = [counted(*each) for each in zip(about["runs"], about["seeds"], strict=True)]
    if before > 1 and after > 1:
        each = f"{after} and {trained[0]}" if about["runs"] == about["seeds"] else f"{trained[1]} and {trained[0]}"
        return f"That is of the methods as trained here ({each}), on images like these {images}.{_too_narrow(about)}"
    single, method = ("baseline", "candidate") if before == 1 else ("candidate", "baseline")
    return (
        f"That is of the method {about[method]} ({trained[before == 1]}) and of this one checkpoint of "
        f"{about[single]}, on images like these {images}: train several seeds of that too.{_too_narrow(about)}"
    )


def counted(runs: int, seeds: int) -> str:
    """The runs of a side as its seeds or, where some have the same, as runs."""
    return f"{runs} seeds" if runs == seeds else f"{runs} runs ({seeds} {'seed' if seeds == 1 else 'seeds'})"


def _too_narrow(about: About) -> str:
    if not about["repeated"]:
        return ""
    return (
        " The interval is too narrow: trainings of the same seed and configuration as another of their side are no "
        f"independent trainings ({', '.join(about['repeated'])})."
    )
