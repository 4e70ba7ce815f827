"""Reads a large JSON document one entry at a time: memory holds a window of it, never the whole.

COCO's training annotations are 448 MB, and 2.5 GB as Python objects.
"""

import json
import re
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data.records import DataError
from progress import Progress

TOP = ""  # stands for the key where the document itself is a list
WINDOW = 1 << 22  # characters
LONGEST_TOKEN = 10_000  # characters; an error this far before the window's end is not due to the cut, but see `value`
SPACE = re.compile(r"[ \t\n\r]*")
MEGABYTE = 10**6
DECODER = json.JSONDecoder()


def read_entries(path: Path, take: Callable[[str, int, Any], None]) -> dict[str, int]:
    """Calls take(key, number, entry) for each entry of each list of the document; returns {key: length of its list}.

    Values of the document that are not lists are skipped. NaN and Infinity are read as Python's json writes them.
    Raises DataError where the file cannot be read as JSON.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        total = path.stat().st_size // MEGABYTE
        with path.open(encoding=encoding) as file, Progress(f"Reading {path.name}", total, unit="MB") as progress:
            return _lists(_Window(file, progress), take)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not JSON: it is not in UTF-8 ({error.reason}). Export it again.") from error
    except RecursionError as error:
        raise DataError(f"{path} is not JSON of a data set: its values are nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg} at character {error.pos}. Export it again.") from error


class _Window:
    """The part of the document that is being read."""

    def __init__(self, file: TextIOWrapper, progress: Progress):
        self.file, self.progress = file, progress
        self.text, self.at, self.before, self.ended = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is no space; an empty string at the end."""
        while True:
            character = self.text[self.at : self.at + 1]
            if character > " ":  # as it mostly is
                return character
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._move()

    def skip(self, character: str) -> None:
        """Go past the next character, which must be this one."""
        if self.peek() != character:
            raise self.error(f"Expecting {character!r}")
        self.at += 1

    def value(self) -> Any:
        """The next value, past which it goes."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end + len("e-") < len(self.text) or self.ended:  # or else 0.5e-3 may be cut to a 0.5
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # An unterminated string is reported where it begins, which may be long ago.
                cut = error.pos > len(self.text) - LONGEST_TOKEN or error.msg.startswith("Unterminated")
                if self.ended or not cut:
                    raise self.error(error.msg, error.pos) from error
            except ValueError as error:  # an integer of more than 4300 digits
                raise self.error(str(error)) from error
            self._move()

    def error(self, message: str, at: int | None = None) -> json.JSONDecodeError:
        """With its place in the document."""
        error = json.JSONDecodeError(message, "", 0)
        error.pos = self.before + (self.at if at is None else at)
        return error

    def _move(self) -> None:
        """Leave what was read, and see at least as much again of what follows."""
        rest = self.text[self.at :]
        more = self.file.read(max(WINDOW, len(rest)))
        self.before += self.at
        self.text, self.at, self.ended = rest + more, 0, not more
        self.progress.step(self.file.buffer.tell() // MEGABYTE - self.progress.done)


def _lists(window: _Window, take: Callable[[str, int, Any], None]) -> dict[str, int]:
    lengths = {}
    if window.peek() == "[":
        lengths[TOP] = _entries(window, TOP, take)
    else:
        for key in _keys(window):
            if window.peek() == "[":
                if key in lengths:
                    raise window.error(f"A second list {key!r}")
                lengths[key] = _entries(window, key, take)
            else:
                window.value()
    if window.peek():
        raise window.error("Extra data")
    return lengths


def _keys(window: _Window) -> Iterator[str]:
    """The keys of an object; whoever takes one reads its value."""
    window.skip("{")
    while window.peek() != "}":
        key = window.value()
        if not isinstance(key, str):
            raise window.error("Expecting a name in double quotes")
        window.skip(":")
        yield key
        if window.peek() != "}":
            window.skip(",")
    window.skip("}")


def _entries(window: _Window, key: str, take: Callable[[str, int, Any], None]) -> int:
    number = 0
    window.skip("[")
    while window.peek() != "]":
        take(key, number, window.value())
        number += 1
        if window.peek() != "]":
            window.skip(",")
    window.skip("]")
    return number
