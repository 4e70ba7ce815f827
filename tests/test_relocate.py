"""A repository that was moved, renamed or copied: it restores at once, writes nothing elsewhere, and is mended."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import commandline
import train
import workspace
from config import TrainConfig
from models import record
from tests.conftest import SMALL, work_in
from tracking.moved import PLACES, home_of
from tracking.store import StoreError, open_store


@dataclass(frozen=True)
class Repository:
    """What was trained at `was`, and lies at `kept` since: nothing is at `was`."""

    kept: Path
    was: Path
    run_id: str


@pytest.fixture(scope="module")
def repository(tmp_path_factory, coco_folder, empty_database) -> Repository:
    root = tmp_path_factory.mktemp("moved") / "my repo é"
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    data = shutil.copytree(coco_folder, root / "data" / "shapes")
    config = commandline.parse(TrainConfig, ["--data", str(data), *SMALL, "--epochs", "1", "--run-name", "small"])
    with pytest.MonkeyPatch.context() as patch:
        work_in(root, patch)
        run_id = train.main(config)
        store = open_store(root)
        store.register(store.checkpoints(run_id)[0], "cells", "champion")
    return Repository(root.rename(root.with_name("kept")), root, run_id)


@pytest.fixture
def moved_to(repository, monkeypatch):
    """Puts the repository where it is to have been moved to, and works there as a new process does."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by run ID: in this process it still names the old place
    put = []

    def move(root: Path) -> Path:
        shutil.copytree(repository.kept, root)
        put.append(root)
        work_in(root, monkeypatch)
        return root

    yield move
    for root in (*put, repository.was):
        shutil.rmtree(root, ignore_errors=True)


def places(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {
            place
            for table, columns in PLACES.items()
            for column in columns
            for (place,) in connection.execute(f"SELECT {column} FROM {table}")
            if "mlartifacts" in place
        }


def files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_nothing_is_moved_where_nothing_was(repository, moved_to, run_script):
    root = moved_to(repository.was)
    assert home_of(f"sqlite:///{root}/mlflow.db").former == ()
    before = files(root)
    process = run_script("relocate.py")
    assert (process.returncode, process.stdout) == (0, "") and "nothing to mend" in process.stderr
    assert files(root) == before
    open_store(root).require_in_place()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["{}2", "{}/sub/repo", "{}/../elsewhere/my repo é"])
def test_a_moved_repository_restores_at_once_and_trains_when_mended(repository, moved_to, run_script, tmp_path, to):
    root = moved_to(Path(to.format(repository.was)).resolve())
    left_here = {path for path in repository.was.rglob("*") if not path.is_relative_to(root)}
    report = json.loads(run_script("status.py", "--json").stdout)
    expected = ("ready", "FINISHED", [str(repository.was)], f"sqlite:///{root}/mlflow.db")
    assert tuple(report[key] for key in ("state", "run_status", "moved_from", "tracking_uri")) == expected
    assert "before training, python relocate.py" in run_script("status.py").stdout
    for run in (repository.run_id[:8], "models:/cells@champion"):
        process = run_script("restore.py", run, "--output", tmp_path / "restored.pth")
        assert process.returncode == 0, process.stderr
    assert run_script("evaluate.py", "--run", "small", "--no-log").returncode == 0
    assert open_store(root).read_json(repository.run_id, "run.json")["run_name"] == "small"

    longer = ("train.py", "--resume", "small", "--epochs", "2")
    copying = ("status.py", "--sync", "--to", f"sqlite:///{tmp_path}/other.db")
    pruning = ("prune.py", repository.run_id, "--keep", "last")
    registering = ("restore.py", "small", "--register", "cells@next")
    for command in (longer, ("train.py", *SMALL), registering, ("status.py", "--sync"), copying, pruning):
        process = run_script(*command)
        assert process.returncode == 2 and "python relocate.py" in process.stderr, command
    scored = run_script("evaluate.py", "--run", "small", "--json")
    assert json.loads(scored.stdout)["evaluation_run_id"] is None and "python relocate.py" in scored.stderr

    before = files(root)
    told = run_script("relocate.py", "--dry-run").stdout
    assert files(root) == before and f"{repository.was} → {root}" in told
    process = run_script("relocate.py")
    assert process.returncode == 0 and process.stdout.startswith(told), process.stderr
    assert all(place.startswith((root / "mlartifacts").as_uri()) for place in places(root / "mlflow.db"))
    (backup,) = root.glob("mlflow.db.before-relocate-*")
    assert all(place.startswith((repository.was / "mlartifacts").as_uri()) for place in places(backup))
    after = files(root)
    assert "nothing to mend" in run_script("relocate.py").stderr and files(root) == after

    process = run_script(*longer)
    assert process.returncode == 0, process.stderr
    assert len(open_store(root).checkpoints(repository.run_id)) == 2
    assert {path for path in repository.was.rglob("*") if not path.is_relative_to(root)} == left_here
    assert run_script("restore.py", "small").returncode == 0
    report = json.loads(run_script("status.py", "--json").stdout)
    assert (report["run_status"], report["tracking_uri"]) == ("FINISHED", f"sqlite:///{root}/mlflow.db")


def test_a_copy_leaves_its_original_alone(repository, moved_to, run_script, tmp_path):
    shutil.copytree(repository.kept, repository.was)
    root = moved_to(tmp_path / "copy")
    before = files(repository.was)
    assert run_script("train.py", "--resume", "small", "--epochs", "2").returncode == 2
    report = json.loads(run_script("status.py", "--json").stdout)
    assert report["tracking_uri"] == f"sqlite:///{root}/mlflow.db"  # not the original, whose runs are others now
    assert run_script("relocate.py").returncode == 0
    assert run_script("train.py", "--resume", "small", "--epochs", "2").returncode == 0
    assert files(repository.was) == before


@pytest.mark.slow
def test_a_copy_without_the_artifacts_is_noticed_too_and_says_what_is_missing(
    repository, moved_to, run_script, tmp_path
):
    shutil.copytree(repository.kept, repository.was)
    root = moved_to(tmp_path / "copy")
    shutil.rmtree(root / "mlartifacts")
    assert run_script("restore.py", "small", "--output", tmp_path / "x.pth").returncode == 0  # from the original
    process = run_script("relocate.py")
    assert "the files of 1 checkpoints are in" in process.stderr
    command = process.stderr.partition("Copy them: cp -an ")[2].strip()
    assert command == f"{repository.was}/mlartifacts/. {root}/mlartifacts"
    assert run_script("restore.py", "small", "--output", tmp_path / "x.pth").returncode == 3


@pytest.mark.slow
def test_it_waits_for_no_training_and_mends_no_server(repository, moved_to, run_script, tmp_path, monkeypatch):
    root = moved_to(tmp_path / "moved")
    before = places(root / "mlflow.db")
    with workspace.RunFolder(repository.run_id).locked():
        process = run_script("relocate.py")
    assert process.returncode == 2 and "is training now" in process.stderr
    assert places(root / "mlflow.db") == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    process = run_script("relocate.py")
    assert process.returncode == 2 and "no sqlite file" in process.stderr


@pytest.mark.slow
def test_a_failure_leaves_the_database_as_it_was_and_the_next_time_mends_the_rest(
    repository, moved_to, run_script, tmp_path, monkeypatch
):
    root = moved_to(tmp_path / "moved")
    before, write = places(root / "mlflow.db"), record.write_json

    def full_disk(path: Path, content: object) -> None:
        if path.name == "checkpoint.json":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(record, "write_json", full_disk)
    assert run_script("relocate.py").returncode == 70
    assert places(root / "mlflow.db") == before
    monkeypatch.setattr(record, "write_json", write)
    assert run_script("relocate.py").returncode == 0
    assert record.read_record(workspace.PUBLISHED)["current"]["tracking_uri"] == f"sqlite:///{root}/mlflow.db"
    assert workspace.RunFolder(repository.run_id).state()["tracking_uri"] == f"sqlite:///{root}/mlflow.db"


@pytest.mark.slow
def test_a_writer_that_does_not_end_is_waited_for_and_named(repository, moved_to, run_script, tmp_path, monkeypatch):
    root = moved_to(tmp_path / "moved")
    monkeypatch.setattr("tracking.moved.STORE_LOCK_SECONDS", 0.1)
    with closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        process = run_script("relocate.py")
    assert process.returncode == StoreError.exit_code and "is as it was: database is locked" in process.stderr


def test_places_that_somebody_chose_stay(home, run_script, tmp_path):
    store = open_store(home)
    chosen = tmp_path / "big disk" / "mlartifacts" / "own"
    chosen.mkdir(parents=True)
    store.client.create_experiment("own", artifact_location=chosen.as_uri())
    store.require_in_place()
    assert "nothing to mend" in run_script("relocate.py").stderr
    assert chosen.as_uri() in places(home / "mlflow.db")
