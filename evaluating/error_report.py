"""What evaluate.py tells of errors: in words, as a table, as bars, and drawn on the worst images."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import figures
from metrics.errors import BACKGROUND, ERRORS, FOREGROUND, WRONG, Errors, Kind

A_ROW, A_PAGE = 3, 9  # worst images beside each other, and in one picture
NARROW = 10  # so manieth part of an image's width, below which the words on a box are as few as can be
COLUMNS = ["error", "AP50 lost", "count at any score"]
# Of boxes and bars, tab10's.
COLORS = {
    Kind.HIT: 2,
    Kind.IGNORED: 7,
    Kind.LOCALISATION: 1,
    Kind.CLASSIFICATION: 4,
    Kind.DUPLICATE: 9,
    Kind.BACKGROUND: 3,
    Kind.BOTH: 5,
    Kind.MISSED: 6,
}
MEANINGS = {
    Kind.HIT: "right: an object, and what found it",
    Kind.MISSED: "an object not found by what is drawn",
    Kind.CLASSIFICATION: "classification: on one of another class",
    Kind.LOCALISATION: "localisation: beside an object",
    Kind.BOTH: "both: beside one of another class",
    Kind.DUPLICATE: "duplicate: on one found already",
    Kind.BACKGROUND: "background: on nothing",
    Kind.IGNORED: "a crowd, not counted",
}
LEGEND = {text: COLORS[kind] for kind, text in MEANINGS.items()}

Coco = Sequence[Mapping[str, Any]]  # annotations or results
Pixels = Callable[[Mapping[str, Any]], np.ndarray | None]  # an image of the ground truth → uint8 (H, W, 3)


def in_report(
    errors: Errors, ground_truth: Mapping[str, Any], results: Coco, *, worst: int, shown_score: float
) -> dict[str, Any]:
    """As JSON has it; AP50 is what the errors cost, None where no class has an object.

    Kinds and all else count every detection that there is, whatever its score. The worst images are those with most
    errors of detections from `shown_score` on: wrong ones, and objects that none of them finds.
    """
    wrong, unfound = sum(map(errors.count, WRONG)), int(errors.unfound().sum())
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    images = errors.worst(worst, shown_score)
    kinds = {image_id: Counter() for image_id in images}
    for each, kind in zip(results, errors.kinds, strict=True):
        if each["image_id"] in images and kind in WRONG and each["score"] >= shown_score:
            kinds[each["image_id"]][Kind(kind).title] += 1
    return {
        "lowest_score": min((each["score"] for each in results), default=None),
        "iou": FOREGROUND,
        "background_iou": BACKGROUND,
        "kinds": {kind.title: {"AP50": errors.cost(kind), "count": errors.count(kind)} for kind in ERRORS},
        "false_positives": {"AP50": errors.cost_of_false_positives(), "count": wrong},
        "false_negatives": {"AP50": errors.cost_of_false_negatives(), "count": unfound},
        "worst_images_score_threshold": shown_score,
        "worst_images": [
            {
                "image": names[image_id],
                "image_id": image_id,
                "wrong": wrong,
                "not_found": not_found,
                "kinds": dict(kinds[image_id]),
            }
            for image_id, (wrong, not_found) in images.items()
        ],
    }


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of what `in_report` gave."""
    specials = {"all wrong detections": "false_positives", "all objects not found": "false_negatives"}
    every = report["kinds"] | {name: report[key] for name, key in specials.items()}
    return COLUMNS, [[name, one["AP50"], one["count"]] for name, one in every.items()]


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table in words, and the names of the worst images."""
    _, rows = table(report)
    width = max(len(name) for name, *_ in rows)
    told = [f"errors, with the AP50 that each kind costs and how many there are {_counted_from(report)}:"]
    for name, cost, count in rows:
        told.append(f"  {name:<{width}}  {'–' if cost is None else format(cost, '.4f'):<6}  {count}")
    if report["worst_images"]:
        score = report["worst_images_score_threshold"]
        named = ", ".join(f"{one['image']} ({one['wrong']} + {one['not_found']})" for one in report["worst_images"])
        told.append(f"worst images (wrong detections + objects not found, from score {score:.3f} on): {named}")
    return told


def _counted_from(report: Mapping[str, Any]) -> str:
    lowest = report["lowest_score"]
    return "at any score" + ("" if lowest is None else f", from {lowest:.2g} on")


def draw(
    report: Mapping[str, Any],
    errors: Errors,
    ground_truth: Mapping[str, Any],
    results: Coco,
    pixels_of: Pixels,
    folder: Path,
) -> list[Path]:
    """Writes the costs as bars and the worst images of the report, where there are any; returns their paths.

    Of more than A_PAGE images each further A_PAGE have a page of their own: worst_images_2.jpg, worst_images_3.jpg …
    Images that `pixels_of` has not are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if all(one["AP50"] is not None for one in report["kinds"].values()):
        paths.append(folder / "errors.png")
        bars = {name: (one["AP50"], one["count"]) for name, one in report["kinds"].items()}
        figures.error_bars(bars, [COLORS[kind] for kind in ERRORS], paths[-1], counted=_counted_from(report))
    by_id = {image["id"]: image for image in ground_truth["images"]}
    chosen = [by_id[one["image_id"]] for one in report["worst_images"]]
    told = errors, ground_truth, results, report["worst_images_score_threshold"]
    pictures = (picture(pixels, each, *told) for each in chosen if (pixels := pixels_of(each)) is not None)
    for stale in folder.glob("worst_images_[0-9]*.jpg"):  # of an evaluation that drew more
        stale.unlink()
    for number in itertools.count(1):
        page = list(itertools.islice(pictures, A_PAGE))
        if not page:
            return paths
        paths.append(folder / ("worst_images.jpg" if number == 1 else f"worst_images_{number}.jpg"))
        rows = [figures.side_by_side(page[at : at + A_ROW]) for at in range(0, len(page), A_ROW)]
        figures.write(figures.under_legend(LEGEND, figures.side_by_side(rows, axis=0)), paths[-1])


def picture(
    pixels: np.ndarray,
    image: Mapping[str, Any],
    errors: Errors,
    ground_truth: Mapping[str, Any],
    results: Coco,
    shown_score: float,
) -> np.ndarray:
    """Ground truth above or left, detections with their errors below or right, on the pixels (H, W, 3) of an image.

    Detections are those from `shown_score` on, and what none of them finds is drawn as not found.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    there, found = (
        [(place, each) for place, each in enumerate(given) if each["image_id"] == image["id"]]
        for given in (ground_truth["annotations"], results)
    )
    kinds = [(Kind(errors.kinds[place]), each) for place, each in found]
    found = [pair for pair in kinds if pair[1]["score"] >= shown_score]
    hidden = sum(kind in WRONG for kind, _ in kinds) - sum(kind in WRONG for kind, _ in found)
    found.sort(key=lambda pair: pair[0] != Kind.HIT)  # errors are drawn over hits
    objects = [
        (*_said_of_object(errors, place, names[each["category_id"]], each["iscrowd"], shown_score), each["bbox"])
        for place, each in there
    ]
    detections = [(kind, _said_of_detection(kind, names, each, pixels.shape[1]), each["bbox"]) for kind, each in found]
    above = _objects_counted(errors, [place for place, _ in there], shown_score)
    below = _detections_counted([kind for kind, _ in found], hidden)
    return figures.marked(
        pixels,
        {
            f"{image['file_name']}\nground truth: {above}": _marks(objects),
            f"detections from score {shown_score:.3f} on: {below}": _marks(detections),
        },
    )


def _objects_counted(errors: Errors, places: Sequence[int], shown_score: float) -> str:
    """2 found, 3 not found (lower scores find 1)"""
    score, unfound = errors.found_at[places], errors.unfound(shown_score)[places]
    found, below = (int(each.sum()) for each in (score >= shown_score, score < shown_score))
    return f"{found} found, {unfound.sum()} not found" + (f" (lower scores find {below})" if below else "")


def _detections_counted(kinds: Sequence[Kind], hidden: int) -> str:
    """3 right, 12 wrong, 20 wrong below, and on a line of its own: 9 background, 2 duplicate, 1 both"""
    wrong = Counter(kind.title for kind in kinds if kind in WRONG)
    by_kind = ", ".join(f"{count} {name}" for name, count in wrong.most_common())
    counts = f"{kinds.count(Kind.HIT)} right, {wrong.total()} wrong" + (f", {hidden} wrong below" if hidden else "")
    return f"{counts}\n{by_kind}"


def _said_of_object(errors: Errors, place: int, name: str, crowd: int, shown_score: float) -> tuple[Kind, str]:
    """Its colour and text; what is found, and drawn beside it, needs none."""
    score = errors.found_at[place]
    if crowd:
        return Kind.IGNORED, f"{name}, crowd"
    if score >= shown_score:
        return Kind.HIT, ""
    return Kind.MISSED, name if np.isnan(score) else f"{name}, found at {score:.2f}"


def _said_of_detection(kind: Kind, names: Mapping[int, str], each: Mapping[str, Any], width: int) -> str:
    """What is wrong with it; of a narrow one in an image of that width the colour alone tells the kind."""
    if kind not in WRONG:
        return ""
    said = f"{names[each['category_id']]} {each['score']:.2f}"
    return f"{kind.title}: {said}" if each["bbox"][2] >= width / NARROW else said


def _marks(drawn: Sequence[tuple[Kind, str, Sequence[float]]]) -> figures.Marks:
    """Of a kind, a text and a box (xywh) each."""
    boxes = figures.corners([box for *_, box in drawn])
    return figures.Marks(
        boxes, np.array([COLORS[kind] for kind, *_ in drawn], dtype=int), [text for _, text, _ in drawn]
    )
