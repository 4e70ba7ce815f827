"""Opens a data set by its path or its files: what a reader finds is scanned, split, checked, and refused or not."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from data.checks.balance import alike_classes, class_defects
from data.checks.check import checked_records
from data.checks.leakage import duplicates
from data.checks.scan import scan_images
from data.checks.unread import unread_folders
from data.detection_data import DetectionData
from data.generated import generated_data
from data.readers.found import Found, FoundImage
from data.readers.given_files import existing, read_given
from data.readers.layout import listed
from data.readers.recognise import read_path
from data.records import NO_SPLIT, DataError, Defect
from data.remedies import REMEDIES
from data.split_file import usual_order
from data.splits import OWN_RULE, Splits, complete_splits
from data.survey import boxes_by_class
from data_options import SPLITS, DataOptions

DEFAULTS = DataOptions()
GIVEN_RULE = "the splits that are given"
WHOLE_RULE = "all images, as the data have no splits"
UTF8 = re.compile("[^\ud800-\udfff]*")  # Python has lone surrogates for the other bytes


def open_data(
    where: Path | str | None,
    options: DataOptions = DEFAULTS,
    *,
    refuse: bool = True,
    scored: str | None = None,
    whole: bool = False,
    seed: int = 0,
    generated_images: tuple[int, int, int] = (400, 100, 100),
) -> DetectionData:
    """The data set at a path, that of the files in `options`, or the drawn one for the word "generated".

    `seed` and `generated_images` (train, val, test) belong to the drawn one. Raises DataError where nothing
    is recognised or the data cannot be used; what can be used with care is in the result's `defects`, and what
    cannot as well when told not to `refuse`. To score the split `scored`, the others need not be usable, nor be there;
    `whole` makes it all the images of data without splits.
    """
    given = existing(options.given_files)
    if given and str(where) in ("None", "generated"):
        where = options.folder_of_files
    if str(where) == "generated":
        if options.splits or options.split_by:
            raise DataError("--splits and --split-by are for image files: generated data are drawn in their splits")
        train, val, test = generated_images
        return generated_data(seed=seed, train=train, val=val, test=test)
    path = Path(where).expanduser().resolve()
    if not path.exists():
        raise DataError(f"There are no data at {path}. Give a folder or a file, or the word: generated")
    found = read_given(path if path.is_dir() else path.parent, given) if given else read_path(path)
    name = path.stem if path.is_file() else path.name
    is_whole = whole and list(found.splits) == ["train"] and not options.splits and not options.split_by
    if is_whole:
        found = _all_in(scored, found)
    is_alone = scored and any(found.splits.values()) and not found.splits.get("train") and not options.splits
    if found.splits.get("train") == [] and not is_alone:  # what is wrong with them says more than that there are none
        _refuse(name, found.defects, path)
    images = [image for images in found.splits.values() for image in images]
    _require_names(images)
    scans = scan_images([image.path for image in images if image.path is not None], found.root)
    if (
        is_whole or is_alone or (given and "train" not in found.splits and not options.splits)
    ):  # there is nothing to split
        rule = WHOLE_RULE if is_whole else GIVEN_RULE if given else OWN_RULE
        parts, defects = found.splits, found.defects
    else:
        parts, defects, rule = complete_splits(path, found.splits, found.defects, scans, options)
    splits = {}
    for split, images in sorted(parts.items(), key=lambda part: usual_order(part[0])):
        splits[split], more = checked_records(split, images, found.classes, scans, options, found.shape)
        defects += more
    if path.is_dir() and not given and not options.splits:
        told = {each.split for each in defects if each.kind == "split-without-annotations"}
        defects += [each for each in unread_folders(path, scans, found.splits) if each.split not in told]
    counts = {split: boxes_by_class(records.labels, len(found.classes)) for split, records in splits.items()}
    data = DetectionData(
        name=name,
        format=found.format,
        root=found.root,
        classes=found.classes,
        splits=splits,
        defects=defects + duplicates(parts, scans),
        class_defects=(class_defects(counts, found.classes) if "train" in counts else [])
        + alike_classes(counts, found.classes),
        split_rule=rule,
        notes=found.notes,
    )
    if refuse:
        made = SPLITS if options.splits else () if rule in (OWN_RULE, GIVEN_RULE, WHOLE_RULE) else ("train", "val")
        _refuse(name, data.defects if scored is None else _that_may_be_of(scored, data.defects, parts, made), path)
    return data


def _all_in(split: str, found: Found) -> Found:
    """What was found, its one split called otherwise."""
    defects = [replace(each, split=split) if each.split == "train" else each for each in found.defects]
    return replace(found, splits={split: found.splits["train"]}, defects=defects)


def _require_names(images: Sequence[FoundImage]) -> None:
    """DataError for names that neither JSON nor MLflow can hold."""
    odd = [image.name for image in images if not UTF8.fullmatch(image.name)]
    if odd:
        raise DataError(f"The names of {len(odd)} images are not UTF-8, such as {odd[0]!a}. Rename them")


def _that_may_be_of(scored: str, defects: Sequence[Defect], parts: Splits, made: Collection[str]) -> list[Defect]:
    """The defects save those that are certainly another split's.

    Of splits that are `made`, only images and whole splits are certain: what else a file has may be in any of them.
    """
    elsewhere = {image.name for split, images in parts.items() if split != scored for image in images} | {""}
    return [
        each
        for each in defects
        if each.split in (scored, NO_SPLIT) or ({scored, each.split} <= set(made) and each.file not in elsewhere)
    ]


def _refuse(name: str, defects: Sequence[Defect], path: Path) -> None:
    """DataError where something must be mended before anything is trained or scored: each kind, and what to do."""
    by_kind = {}
    for defect in defects:
        if defect.refused:
            by_kind.setdefault(defect.kind, []).append(defect)
    if not by_kind:
        return
    lines = [f"{name} has defects that must be mended first; all of them: python check_data.py {path} --json"]
    for kind, (first, *others) in by_kind.items():
        more = f"; also {listed([each.file or each.split for each in others])}" if others else ""
        lines.append(f"  {1 + len(others)} {kind}: {first.where}: {first.detail}{more}")
        lines.append(f"    what to do: {REMEDIES[kind]}")
    raise DataError("\n".join(lines))
