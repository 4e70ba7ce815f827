"""Holds the star of the README: scripts → what joins the nouns → nouns, never back, and no noun imports another.

import-linter would be the tool, but it takes packages only, and our modules are flat files.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A module imports from the layers below its own only; modules of one layer do not import each other.
LAYERS = (
    ("benchmarks",),
    ("recipes",),  # models/registry.py imports one when it is asked for by name, and from nowhere else
    ("train",),
    ("compare", "evaluate", "infer", "restore", "status", "prune", "relocate", "check_data"),
    ("provenance", "rehearsal", "report"),
    ("prepare",),
    ("continuing",),
    ("live_run", "resuming", "building", "sources", "comparing", "evaluating"),
    ("saving", "changes"),
    ("publishing", "description", "stored_detections", "series", "fetching", "syncing", "disk"),
    ("data_report", "preview"),
    ("workspace", "defaults"),
    (
        "config",
        "engine",
        "metrics",
        "figures",
        "survey_figure",
        "formats",
        "tracking",
        "models",
        "data",
    ),
    ("data_options", "amounts"),
    ("commandline", "progress", "pace", "retention", "notes", "machine"),
)
PACKAGES = (
    *("tracking", "models", "metrics", "comparing", "evaluating", "recipes", "benchmarks"),
    *("data", "data/readers", "data/checks"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(tree: ast.AST) -> set[str]:
    """The first parts of all absolute imports, wherever they stand."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def violations() -> list[str]:
    found = []
    for file in (*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).glob("*.py"))):
        owner = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if owner not in LEVEL:
            found.append(f"{file.name} has no place in the layers of {Path(__file__).name}")
            continue
        names = imported(ast.parse(file.read_text(encoding="utf-8"))) & LEVEL.keys() - {owner}
        back = sorted(name for name in names if LEVEL[name] <= LEVEL[owner])
        found += [f"{file.relative_to(ROOT)} imports {name}, which is not below it" for name in back]
    return found


if __name__ == "__main__":
    broken = violations()
    print("\n".join(broken) or "the import contract holds")
    sys.exit(1 if broken else 0)
