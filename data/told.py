"""Defects as people read them: the gravest first, and a flood of one kind as a number and a few examples."""

from collections.abc import Sequence

from data.records import Defect

SEVERITIES = ("error", "warning", "note")


def defect_lines(defects: Sequence[Defect], named: int | None) -> list[str]:
    """A line for each kind with what becomes of it, under it the first `named` defects, or all with None."""
    kinds: dict[tuple[str, str, str], list[Defect]] = {}
    for defect in defects:
        kinds.setdefault((defect.severity, defect.kind, defect.action), []).append(defect)
    lines = []
    for (severity, kind, action), alike in sorted(kinds.items(), key=lambda item: SEVERITIES.index(item[0][0])):
        lines.append(f"{severity}: {len(alike)} {kind} ({action})")
        lines += [f"    {defect.where}: {defect.detail}" for defect in alike[:named]]
        if named and len(alike) > named:
            lines.append(f"    … and {len(alike) - named} more")
    return lines


def tally(defects: Sequence[Defect]) -> str:
    """`2 errors, 10 warnings`, or `no defects`."""
    counts = {severity: sum(defect.severity == severity for defect in defects) for severity in SEVERITIES}
    told = [f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count]
    return ", ".join(told) or "no defects"
