"""The table of faults, times tried and survived, which the suite writes into README.md of this folder."""

import fcntl
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
    """Counts, by fault, how often it was injected and how often everything held, in the table of a document, if any."""

    def __init__(self, document: Path | None) -> None:
        self.document = document

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
        survived: Counter[str] = Counter()
        try:
            yield faults
            survived = faults
        finally:
            if self.document is not None:
                write(self.document, faults, survived)


def write(document: Path, tried: Counter[str], survived: Counter[str]) -> None:
    """Put counts into the document's table: added to those of the same commit, in place of any other's."""
    with document.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # pytest may have several processes
        before, _, rest = file.read().partition(BEGIN)
        table, _, after = rest.partition(END)
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        rows = {row[0]: row[1:] for row in cells if len(row) == len(HEAD.splitlines()[0].split("|")) - 2}
        now = commit()
        for fault, count in tried.items():
            held = survived[fault]
            if fault in rows and rows[fault][3] == now:
                count, held = count + int(rows[fault][0]), held + int(rows[fault][1])
            rows[fault] = [str(count), str(held), str(date.today()), now]
        lines = [f"| {fault} | {' | '.join(row)} |" for fault, row in sorted(rows.items()) if row[0].isdecimal()]
        file.seek(0)
        file.write(before + "\n".join([BEGIN, HEAD, *lines, "", f"On {machine()}.", END]) + after)
        file.truncate()


def commit() -> str:
    """The commit that was tried, with a + where files in git were changed since, the table's own apart."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)README.md")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def git(*arguments: str) -> str:
    folder = Path(__file__).parent
    process = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return process.stdout.strip()


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0].partition(':')[2].strip() if names else platform.machine()}"
