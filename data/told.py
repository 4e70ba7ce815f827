"""Defects as people read them: the gravest first, and a flood of one kind as a number and a few examples."""

from collections.abc import Sequence

from data.records import Defect
from data.remedies import REMEDIES

SEVERITIES = ("error", "warning", "note")
NAMED = 3  # of each kind, where not all are


def alike(defects: Sequence[Defect]) -> list[list[Defect]]:
    """The defects that are one kind to people, the gravest first."""
    kinds: dict[tuple[str, str, str], list[Defect]] = {}
    for defect in defects:
        kinds.setdefault((defect.severity, defect.kind, defect.action), []).append(defect)
    return sorted(kinds.values(), key=lambda some: SEVERITIES.index(some[0].severity))


def defect_lines(defects: Sequence[Defect], named: int | None) -> list[str]:
    """Each kind with what becomes of it, and under it what to do and the first `named` defects, or all with None."""
    lines = []
    for some in alike(defects):
        first = some[0]
        lines.append(f"{first.severity}: {len(some)} {first.kind} ({first.action})")
        lines.append(f"    what to do: {REMEDIES[first.kind]}")
        lines += [f"    {defect.where}: {defect.detail}" for defect in some[:named]]
        if named and len(some) > named:
            lines.append(f"    … and {len(some) - named} more")
    return lines


def leaves_out(defects: Sequence[Defect]) -> bool:
    """Whether there are more than NAMED of a kind."""
    return any(len(some) > NAMED for some in alike(defects))


def tally(defects: Sequence[Defect]) -> str:
    """`2 errors, 60 warnings of 3 kinds`, or `no defects`."""
    kinds, told = alike(defects), []
    for severity in SEVERITIES:
        counts = [len(some) for some in kinds if some[0].severity == severity]
        of_kinds = f" of {len(counts)} kinds" if 1 < len(counts) < sum(counts) else ""
        if counts:
            told.append(f"{sum(counts)} {severity}{'s' if sum(counts) > 1 else ''}{of_kinds}")
    return ", ".join(told) or "no defects"
