"""What a run's result depends on besides its configuration: the code as it is, the machine, the command."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from machine import usable_cores

MOST_BYTES_OF_DIFF = 1_000_000
MOST_BYTES_A_FILE = 100_000
MOST_BYTES_OF_UNTRACKED = 1_000_000
GIT_SECONDS = 20
COMMIT = re.compile(r"[0-9a-f]{4,64}")
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "PYTHONHASHSEED",
    "TORCH_HOME",
    "SLURM_JOB_ID",
)
DECISIVE = ("torch", "torchvision", "numpy", "albumentations", "opencv-python-headless", "timm")


def code_state(root: Path) -> dict:
    """The commit, and what differs from it: {commit, branch, dirty, diff, untracked: {path: text}, left_out}.

    commit, branch, dirty and diff are None outside a git checkout (commit too before the first one). `left_out` says
    what was too big to be in `diff` or `untracked`; of the untracked files only Python modules are taken.
    """
    root = Path(root)
    state = {"commit": None, "branch": None, "dirty": None, "diff": None, "untracked": {}, "left_out": []}
    status = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    if status is None:
        return state
    state["commit"] = commit_of(root)
    state["branch"] = _word(_git(root, "symbolic-ref", "--short", "--quiet", "HEAD"))  # None: a detached head
    state["dirty"] = bool(status.strip())
    state["diff"], left_out = _diff(root, has_commit=state["commit"] is not None)
    state["untracked"], too_big = _untracked_modules(root)
    state["left_out"] = left_out + too_big
    return state


def commit_of(root: Path) -> str | None:
    """The commit that is checked out; None outside a git checkout and before the first one."""
    return _word(_git(root, "rev-parse", "--verify", "--quiet", "HEAD"))


def code_digest(state: dict) -> str | None:
    """What tells two working trees of one commit apart: a hash of the diff and the untracked modules; None without git.

    A clean tree has that of nothing.
    """
    if state["commit"] is None:
        return None
    parts = [state["diff"] or "", *(f"{name}\n{text}" for name, text in sorted(state["untracked"].items()))]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]


def changed_files(root: Path, *commits: str) -> list[str]:
    """The tracked files under `root` that are not as they were in a commit, or that differ between two.

    [] where git cannot tell.
    """
    if not all(map(COMMIT.fullmatch, commits)):  # a stranger's file may name anything, an option of git's too
        return []
    return (_git(Path(root), "diff", "--name-only", *commits, "--", ".") or "").splitlines()


def decisive_packages() -> dict[str, str]:
    """Python and those packages whose version can change a training's numbers."""
    installed = packages()
    return {"python": platform.python_version()} | {name: installed[name] for name in DECISIVE if name in installed}


def environment() -> dict:
    """The Python, the machine and the packages: {python, platform, host, cpu, cpus, packages, variables}."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_model(),
        "cpus": usable_cores(),
        "packages": packages(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


@functools.cache
def packages() -> dict[str, str]:
    """The installed distributions and their versions, by name."""
    named = ((entry.metadata["Name"], entry.version) for entry in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in named if name))


def command_line() -> str:
    """The command as it can be pasted into a shell."""
    program = [] if os.access(sys.argv[0], os.X_OK) else ["python"]
    return shlex.join([*program, *sys.argv])


def _git(root: Path, *arguments: str) -> str | None:
    # Without optional locks: reading the state must not get in the way of the user's own git.
    command = ["git", "--no-optional-locks", "-c", "core.quotepath=off", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or nothing of that name
        return None
    return done.stdout.decode(errors="replace")


def _word(text: str | None) -> str | None:
    return text.strip() or None if text is not None else None


def _diff(root: Path, *, has_commit: bool) -> tuple[str | None, list[str]]:
    if not has_commit:
        return None, []
    diff = _git(root, "diff", "--no-ext-diff", "--no-color", "HEAD", "--", ".") or ""
    if len(diff) <= MOST_BYTES_OF_DIFF:
        return diff, []
    return diff[:MOST_BYTES_OF_DIFF], [f"the diff after its first {MOST_BYTES_OF_DIFF} of {len(diff)} characters"]


def _untracked_modules(root: Path) -> tuple[dict[str, str], list[str]]:
    listing = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py") or ""
    texts, left_out, total = {}, [], 0
    for name in sorted(filter(None, listing.split("\0"))):
        if not (root / name).is_file():  # an editor's lock is a link to nowhere
            continue
        size = (root / name).stat().st_size
        if size > MOST_BYTES_A_FILE or total + size > MOST_BYTES_OF_UNTRACKED:
            left_out.append(f"{name} ({size} bytes)")
            continue
        texts[name] = (root / name).read_text(errors="replace")
        total += size
    return texts, left_out


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
