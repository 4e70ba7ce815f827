"""Progress of long work on stderr: a bar on a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    """One message for people; stdout stays free for results. Does not tear a bar apart."""
    tqdm.write(text, file=sys.stderr)


def say_page(what: str, pages: Mapping[str, str]) -> None:
    """Where a run of such a kind is looked at; `pages` are those of Store.ui_urls."""
    say(f"{what}: {pages['run']}" + (f"\n  see it: {pages['command']}" if "command" in pages else ""))


class Progress:
    """Counts `total` things named `what`; use as a context manager, call `step` after each."""

    def __init__(self, what: str, total: int, *, done: int = 0, unit: str = "it"):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.started, self.begun_at, self.last_line = time.monotonic(), done, time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(desc=what, total=total, initial=done, unit=unit, dynamic_ncols=True, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def expect(self, total: int) -> None:
        """`total` is known better than at the start."""
        self.total = total
        if self.bar is not None:
            self.bar.total = total

    def step(self, count: int = 1, **shown: str) -> None:
        """Advance by `count`; `shown` are figures such as loss="0.41"."""
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            figures = "".join(f"  {name} {value}" for name, value in shown.items())
            print(
                f"{self.what}: {self.done}/{self.total} {self.unit}{figures}  {self._left()}",
                file=sys.stderr,
                flush=True,
            )

    def _left(self) -> str:
        seconds = (time.monotonic() - self.started) / max(1, self.done - self.begun_at) * (self.total - self.done)
        return f"{duration(seconds)} left"


def counted(items: Sequence[Any], what: str) -> Iterator[Any]:
    """The items, with progress as they are taken."""
    with Progress(what, len(items), unit="files") as progress:
        for item in items:
            yield item
            progress.step()


def duration(seconds: float) -> str:
    """75 → 1m15s; 7320 → 2h02m."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    )


def about(seconds: float) -> str:
    """An estimated duration, no finer than it is known: under a minute, about 12m, about 2h02m."""
    return "under a minute" if seconds < 60 else f"about {duration(60 * round(seconds / 60)).removesuffix('00s')}"
