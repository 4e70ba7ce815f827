"""How data sets are laid out, whatever their format: the words for the splits, the choice among several files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.records import DataError

SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}
SPLIT_WORD = re.compile(r"(?<![a-z])(training|train|validation|valid|val|testing|test)(?=20\d\d|[^a-z0-9]|$)")


def split_of_folder(name: str) -> str | None:
    """The split that a folder is by its name: valid → val, train2017 → train."""
    return SPLIT_NAMES.get(re.sub(r"20\d\d$", "", name.lower()))


def split_in(name: str) -> str | None:
    """The split that the name of a file says: instances_val2017 → val. Where it says several, the last."""
    words = SPLIT_WORD.findall(name.lower())
    return SPLIT_NAMES[words[-1]] if words else None


def one_of_several(found: Sequence[Path], what: str, folder: Path) -> Path:
    """The only one; DataError where there are more."""
    if len(found) > 1:
        raise DataError(f"{folder} holds several {what}: {listed(found)}. Give one of them, or leave the one to use.")
    return found[0]


def listed(items: Iterable[Path | str]) -> str:
    """The first ten names, for messages."""
    names = [item.name if isinstance(item, Path) else str(item) for item in items]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
