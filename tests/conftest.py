"""Fixtures: copies of this repository to run scripts in, small data sets, and a run trained once for many tests."""

import gc
import os
import pkgutil
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # no test asserts a time
settings.load_profile("untimed")
# Two processes test at once (pyproject.toml), and the networks are too small for more than a thread each.
os.environ["OMP_NUM_THREADS"] = "1"
# Python's own thresholds collect so often that it is a tenth of a training's time here.
gc.set_threshold(10_000, 20, 50)

# Whoever starts the tests in the background has SIGINT ignored, and every process that they start would have.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# A detector that trains in seconds; images of 96×128 become 64×85.
SMALL = (
    *("--model", "timm/test_resnet", "--weights", "none", "--image-min-size", "64", "--image-max-size", "96"),
    *("--anchor-sizes", "16", "32", "48", "64", "96", "--fpn-channels", "16", "--roi-samples", "16"),
    *("--proposals", "50", "--batch-size", "2", "--optimizer", "adamw", "--lr", "1e-3", "--schedule", "cosine"),
    *("--warmup-steps", "2", "--workers", "0", "--device", "cpu"),
)

NAMES = ("first", "second")  # of two_runs

# Of a checkpoint, what a resumed run must have as an uninterrupted one has it.
STATE = (
    *("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict"),
    *("epoch", "step", "batches_done", "metrics", "best"),
)

REAL_DATA = os.environ.get("REAL_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="REAL_DATA names no folder with bccd/ and facemask/")

Script = Callable[..., subprocess.CompletedProcess]


def pytest_runtest_setup() -> None:
    """Sets aside what the imports brought: every full garbage collection would go through torch and mlflow again."""
    if len(sys.modules) > imported[0] + 200:
        gc.collect()
        gc.freeze()
        imported[0] = len(sys.modules)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or extensions report leaks at the end of the process


imported = [0]


def copy_of_repository(folder: Path) -> Path:
    """The repository's code in `folder`: what scripts write there stays there."""
    artefacts = shutil.ignore_patterns(
        *("mlruns", "mlartifacts", "mlflow.db*", "runs", "outputs", ".git", ".venv", "tests", "__pycache__", "*.pth"),
        "checkpoint.json",
    )
    shutil.copytree(ROOT, folder, ignore=artefacts)
    return folder


def script_runner(folder: Path) -> Script:
    """Runs `python NAME …` in `folder`'s copy, from another working directory; returns the finished process."""

    def run(name: str, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        return subprocess.run(
            [sys.executable, str(folder / name), *map(str, arguments)],
            cwd=cwd or folder,
            env=ours | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session", autouse=True)
def scans_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what scans saw of images out of the repository's own folder."""
    from data.checks import scan_cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_cache, "FOLDER", tmp_path_factory.mktemp("scans"))
        yield scan_cache.FOLDER


@pytest.fixture(scope="session", autouse=True)
def few_pictures() -> Iterator[dict[str, Any]]:
    """Trainings show one image, not four, as small as it is, and no curves; evaluations lay theirs out undrawn.

    Pictures are a third of a small training's work otherwise. A test that looks at them asks for `pictures`.
    """
    import figures

    def dot(_: object, path: Path, **__: object) -> None:
        figures.write(np.zeros((1, 1, 3), np.uint8), path)

    fewer = {"tracking.view.SAMPLE_PICTURES": 1, "figures.LEGIBLE": 1}
    fewer |= dict.fromkeys(("figures.paint", "figures.loss_curves", "figures.ap_curves"), dot)
    real = {name: pkgutil.resolve_name(name) for name in fewer}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fewer.items():
            patch.setattr(name, value)
        yield real


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch, few_pictures: dict[str, Any]) -> None:
    """All of a training's pictures, drawn."""
    for name, value in few_pictures.items():
        monkeypatch.setattr(name, value)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, made once for all processes that test: it costs 5 seconds."""
    from tracking.connection import import_mlflow
    from tracking.store import open_store

    import_mlflow()  # as the project has it set up
    from mlflow.store.db import utils

    # What revision mlflow's tables are to have: it reads its 68 migrations for each store that is opened.
    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"
    folder.mkdir(exist_ok=True)
    open_store(folder, f"sqlite:///{folder}/mlflow.db")  # it lets one process at a time create it
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small COCO data set on disk: 8 training, 5 validation and 4 test images."""
    from data.generated import generated_data, write_coco

    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_coco(generated_data(train=8, val=5, test=4, size=(96, 128)), folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, coco_folder: Path, empty_database: Path) -> "Trained":
    """A copy of the repository in which two epochs were trained by this process; test_scripts.py has train.py do it."""
    import train

    folder = copy_of_repository(tmp_path_factory.mktemp("trained") / "repository")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        return Trained(folder, train.main(replace(small_config(coco_folder), run_name="small")))


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory, coco_folder: Path, empty_database: Path) -> "TwoRuns":
    """A copy of the repository in which runs named first and second were trained, of two seeds."""
    import train

    folder = copy_of_repository(tmp_path_factory.mktemp("two") / "repository")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        configs = [replace(small_config(coco_folder), run_name=name, seed=seed) for seed, name in enumerate(NAMES)]
        return TwoRuns(folder, [train.main(config) for config in configs])


@pytest.fixture
def run_here(trained: "Trained", monkeypatch: pytest.MonkeyPatch, run_script: Script) -> Script:
    """Runs a script of the trained repository in this process, without the seconds that a new one imports for."""
    import workspace

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(workspace, "ROOT", trained.folder)
    monkeypatch.setattr(workspace, "RUNS", trained.folder / "runs")
    monkeypatch.setattr(workspace, "PUBLISHED", trained.checkpoint)
    return run_script


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Script:
    """Runs a script in this process, in whatever repository `workspace` is set to (as by `home`)."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        out, errors = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, end.value.code or 0, out, errors)

    return run


@pytest.fixture
def refused(home, run_script):
    """Runs a script that must fail with the code and one message, and say nothing on stdout; returns the message."""

    def run(code: int, *arguments: object) -> str:
        process = run_script(*arguments)
        assert (process.returncode, process.stdout) == (code, ""), process.stderr
        assert "Traceback" not in process.stderr and "internal error" not in process.stderr
        return process.stderr

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """An empty repository root of its own for runs, the store and the published checkpoint."""
    work_in(tmp_path, monkeypatch)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


def work_in(root: Path, patch: pytest.MonkeyPatch) -> None:
    """From here on `root` is the repository, code apart."""
    import workspace

    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setattr(workspace, "ROOT", root)
    patch.setattr(workspace, "RUNS", root / "runs")
    patch.setattr(workspace, "PUBLISHED", root / "models" / "faster_rcnn" / "checkpoint.pth")


@pytest.fixture
def small(coco_folder: Path) -> Any:
    """The TrainConfig of two epochs of four steps."""
    return small_config(coco_folder)


@cache
def small_config(data: Path) -> Any:
    import commandline
    from config import TrainConfig

    return commandline.parse(TrainConfig, ["--data", str(data), *SMALL, "--epochs", "2"])


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, coco_folder: Path, empty_database: Path
) -> Callable[..., "Undisturbed"]:
    """What `small`, with changes, comes to when nothing stops it; trained once, in a home of its own."""
    made: dict[tuple, Undisturbed] = {}

    def of(**changes: Any) -> Undisturbed:
        key = tuple(sorted(changes.items()))
        if key not in made:
            import train

            root = tmp_path_factory.mktemp("undisturbed")
            shutil.copy(empty_database, root / "mlflow.db")
            with pytest.MonkeyPatch.context() as patch:
                work_in(root, patch)
                run_id = train.main(replace(small_config(coco_folder), **changes))
                made[key] = Undisturbed(run_id, open_store(), last_checkpoint(run_id))
        return made[key]

    return of


@dataclass(frozen=True)
class Undisturbed:
    """A finished run, its store and the content of its last.pth."""

    run_id: str
    store: Any
    last: dict


def given_scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Validations find these AP, one after the other."""
    from evaluating import scoring

    real, given = scoring.score, iter(values)

    def score(*arguments, **keywords):
        scored = real(*arguments, **keywords)
        scored.metrics["AP"] = next(given)
        return scored

    monkeypatch.setattr("evaluating.scoring.score", score)


def open_store() -> Any:
    """The store of the fixture `home`."""
    import workspace
    from tracking.store import open_store

    return open_store(workspace.ROOT)


def last_checkpoint(run_id: str) -> dict:
    """The content of a run's last.pth."""
    import workspace
    from models.checkpoint import load

    return load(workspace.RunFolder(run_id).last)


def equal(first: Any, second: Any) -> bool:
    """Equal to the bit, through nested dicts and lists."""
    import torch

    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def history(store: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, as the store has it."""
    return [(point.step, point.value) for point in store.client.get_metric_history(run_id, key)]


@dataclass(frozen=True)
class TwoRuns:
    """A repository and the IDs of its runs, in order of NAMES."""

    folder: Path
    run_ids: list[str]


class Trained:
    """Where a run was trained, and its ID."""

    def __init__(self, folder: Path, run_id: str):
        self.folder, self.run_id = folder, run_id
        self.run = script_runner(folder)
        self.checkpoint = folder / "models" / "faster_rcnn" / "checkpoint.pth"

    @property
    def store(self) -> Any:
        from tracking.store import open_store

        return open_store(self.folder, f"sqlite:///{self.folder}/mlflow.db")

    def runs(self) -> list[tuple[str, str]]:
        """Every run that MLflow has, and its status."""
        found = self.store.client.search_runs([str(number) for number in range(3)])
        return sorted((run.info.run_id, run.info.status) for run in found)
