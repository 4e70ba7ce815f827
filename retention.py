"""Which checkpoints of a run keep their files (--keep), by their names alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KEEP_ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What --keep asks for; the run's best stays whatever it says."""

    all: bool = False
    last: bool = False
    every: int | None = None  # each so many epochs one: of 5, epoch-004, epoch-009 …

    def superseded(self, names: Iterable[str], *, stay: Iterable[str]) -> list[str]:
        """The names whose files go; those that `stay` (the best, the last while it is needed) are never among them."""
        return [] if self.all else [name for name in names if name not in set(stay) and not self._is_due(name)]

    def _is_due(self, name: str) -> bool:
        epoch = re.fullmatch(r"epoch-(\d+)", name)
        return bool(self.every and epoch) and (int(epoch[1]) + 1) % self.every == 0


def newest_and_best(checkpoints: Mapping[str, Any], best: Mapping[str, Any] | None) -> set[str]:
    """The names that stay in any case: of `checkpoints` by name (each with a `step`) the newest, and the run's best."""
    newest = {max(checkpoints, key=lambda name: checkpoints[name].step)} if checkpoints else set()
    return newest | ({best["name"]} if best else set())


def parse_keep(text: str) -> Keep:
    """`best,last,every:5` → Keep; ValueError says what --keep takes."""
    if text == KEEP_ALL:
        return Keep(all=True)
    words = text.split(",")
    numbers = [match[1] for word in words if (match := re.fullmatch(r"every:([1-9]\d*)", word))]
    if len(numbers) > 1 or len({*words} - {"best", "last"}) != len(numbers):
        raise ValueError(f"--keep takes all, or best, last and every:N joined by commas (best,every:5), not {text!r}")
    return Keep(last="last" in words, every=int(numbers[0]) if numbers else None)
