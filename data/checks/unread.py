"""Folders of images of which none is in the data set: a split that was not understood, or what is not part of it."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from data.readers.layout import split_of_folder
from data.readers.locate import images_under
from data.records import NO_SPLIT, REFUSED, Defect


def unread_folders(root: Path, read: Iterable[Path], splits: Collection[str]) -> list[Defect]:
    """A defect for each folder under `root` that has images, none of them among the `read` ones.

    Where its path says train or val, and `splits` have no such, it is refused: one would be made in its place.
    """
    used = {path.parent for path in read}
    counts = Counter(path.parent for path in images_under(root))
    return [_unread(folder.relative_to(root), count, splits) for folder, count in counts.items() if folder not in used]


def _unread(folder: Path, count: int, splits: Collection[str]) -> Defect:
    split = next(filter(None, map(split_of_folder, reversed(folder.parts))), None)
    is_lost = split in {"train", "val"} - set(splits)
    return Defect(
        kind="folder-unread",
        severity="error" if is_lost else "warning",
        split=split or NO_SPLIT,
        file=f"{folder.as_posix()}/",
        object=None,
        detail=f"no annotation names any of its {count} images",
        action=REFUSED if is_lost else "left out",
    )
