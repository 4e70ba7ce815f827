"""The same ground truth for all runs that are compared, or a refusal that names what differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.record import NO_CLASS
from stored_detections import Detected
from workspace import WorkspaceError

NAMED = 3  # images of a kind of difference

Truth = Mapping[str, Any]  # a COCO dictionary


@dataclass(frozen=True, kw_only=True)
class SameImages:
    """The ground truth that all have, its images numbered 1.. by name, and how many images were left out."""

    ground_truth: dict[str, Any]
    left_out: int

    @property
    def image_names(self) -> list[str]:
        """By image id."""
        return [image["file_name"] for image in self.ground_truth["images"]]

    def results_of(self, run: Detected) -> list[dict[str, Any]]:
        """The run's detections in these images, with the ids that images and classes have here."""
        own, here = run.ground_truth(), self.ground_truth
        image_ids = {image["file_name"]: image["id"] for image in here["images"]}
        class_ids = {category["name"]: category["id"] for category in here["categories"]}
        images = {image["id"]: image_ids.get(image["file_name"]) for image in own["images"]}
        classes = {category["id"]: class_ids.get(category["name"]) for category in own["categories"]}
        renamed = (
            each | {"image_id": images.get(each["image_id"]), "category_id": classes.get(each["category_id"])}
            for each in run.results()
        )
        return [each for each in renamed if each["image_id"] is not None and each["category_id"] is not None]


def same_images(runs: Sequence[Detected], *, only_common: bool) -> SameImages:
    """What the runs were scored on; WorkspaceError where that differs, unless `only_common` takes what they share.

    Images are the same where name, size and annotations are. Their pixels are not looked at.
    """
    first = runs[0].ground_truth()
    shared, total = annotated(first), {image["file_name"] for image in first["images"]}
    for run in runs[1:]:
        truth = run.ground_truth()
        _require_classes(runs[0], first, run, truth)
        there = annotated(truth)
        total |= there.keys()
        if not only_common and there != shared:
            raise WorkspaceError(_refusal(runs[0], shared, run, there))
        shared = {name: each for name, each in shared.items() if there.get(name) == each}
    if not shared:
        raise WorkspaceError("The runs were scored on different images: not one of them has the same name and boxes")
    return SameImages(ground_truth=_restricted(first, shared), left_out=len(total) - len(shared))


def annotated(truth: Truth) -> dict[str, tuple]:
    """What is known of each image, by name: size and annotations, to a hundredth of a pixel."""
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    objects: dict[int, list[tuple]] = {image["id"]: [] for image in truth["images"]}
    for each in truth["annotations"]:
        numbers = (round(value, 2) for value in (*each["bbox"], each["area"]))
        objects[each["image_id"]].append((classes[each["category_id"]], each["iscrowd"], *numbers))
    return {
        image["file_name"]: (image["width"], image["height"], *sorted(objects[image["id"]]))
        for image in truth["images"]
    }


def _restricted(truth: Truth, shared: Mapping[str, Any]) -> dict[str, Any]:
    kept = sorted(
        (image for image in truth["images"] if image["file_name"] in shared), key=lambda one: one["file_name"]
    )
    number = {image["id"]: new for new, image in enumerate(kept, start=1)}
    annotations = [
        each | {"image_id": number[each["image_id"]]} for each in truth["annotations"] if each["image_id"] in number
    ]
    images = [image | {"id": number[image["id"]]} for image in kept]
    return {"info": {}, "images": images, "annotations": annotations, "categories": truth["categories"]}


def _require_classes(first: Detected, truth: Truth, run: Detected, other: Truth) -> None:
    classes, others = ({each["name"] for each in one["categories"]} - {NO_CLASS} for one in (truth, other))
    if classes != others:
        raise WorkspaceError(
            f"The runs have other classes: {_title(first)} {sorted(classes)}, {_title(run)} {sorted(others)}. "
            "Only runs with the same class names can be compared",
            exit_code=4,
        )


def _refusal(first: Detected, shared: Mapping[str, Any], run: Detected, there: Mapping[str, Any]) -> str:
    both = shared.keys() & there.keys()
    differs = {name for name in both if shared[name] != there[name]}
    lines = [f"{_title(first)} and {_title(run)} were scored on different data, where AP does not compare:"]
    kinds = {
        f"only in {_title(first)}": shared.keys() - there.keys(),
        f"only in {_title(run)}": there.keys() - shared.keys(),
        "in both with other boxes, classes or sizes": differs,
    }
    for kind, names in kinds.items():
        if names:
            more = ", …" if len(names) > NAMED else ""
            lines.append(f"  {len(names)} images {kind}: {', '.join(sorted(names)[:NAMED])}{more}")
    equal = len(both - differs)
    mend = f"Compare them on the {equal} images that are the same: --common-images" if equal else "They share no image"
    return "\n".join([*lines, f"{mend}. Or score both on one set of data: python evaluate.py --run RUN --data PATH"])


def _title(run: Detected) -> str:
    data = run.dataset["name"]
    return f"{run.run.name} ({run.run.run_id[:8]}" + (f", {data} {run.split})" if data else f", {run.split})")
