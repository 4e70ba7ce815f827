"""The table of faults, times tried and survived, which the suite writes into README.md of this folder."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
HEAD = "| fault | tried | survived | when | commit |\n|---|---|---|---|---|"


class Tally:
    """Counts, by fault, how often it was injected and how often everything held afterwards."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()

    @contextmanager
    def __call__(self, fault: str) -> Iterator[None]:
        """One injection: survived when the block ends without an error."""
        with self.several() as faults:
            faults[fault] += 1
            yield

    @contextmanager
    def several(self) -> Iterator[Counter[str]]:
        """A trial of several injections, which the block counts: all survived, or none."""
        faults: Counter[str] = Counter()
        try:
            yield faults
            self.survived += faults
        finally:
            self.tried += faults

    def write(self, document: Path) -> None:
        """Put today's counts into the document's table; rows of faults that were not tried today stay."""
        before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        table, _, after = rest.partition(END)
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if line.startswith("| ")}
        rows.pop("fault", None)
        for fault, tried in self.tried.items():
            rows[fault] = f"| {fault} | {tried} | {self.survived[fault]} | {date.today()} | {commit()} |"
        lines = [BEGIN, HEAD, *(rows[fault] for fault in sorted(rows)), "", f"On {machine()}.", END]
        document.write_text(before + "\n".join(lines) + after, encoding="utf-8")


def commit() -> str:
    """The commit that was tried, with a + where files in git were changed since."""
    described = ["git", "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"]
    folder = Path(__file__).parent
    return subprocess.run(described, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0].partition(':')[2].strip() if names else platform.machine()}"
