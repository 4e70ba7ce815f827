"""Rows of text files, whether their words are divided by spaces (YOLO) or by commas (CSV)."""

import codecs
from collections.abc import Sequence
from pathlib import Path

FRACTION_LIMIT = 2.0  # what is above is no fraction of an image, however far the box leaves it


def encoding_of(path: Path) -> str:
    """UTF-16 where the file's first bytes say so, as in Excel's "Unicode text"; else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_text(path: Path) -> str:
    """The content of a text file."""
    return path.read_text(encoding=encoding_of(path))


class BadRow(ValueError):
    """A row that cannot be read, with the kind of its defect."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_number(text: str) -> bool:
    """Whether float() takes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def shown(fields: Sequence[str], between: str) -> str:
    """A row as it stands in its file, for messages; the first 80 characters."""
    text = between.join(fields)
    return repr(text if len(text) < 80 else text[:77] + "…")
