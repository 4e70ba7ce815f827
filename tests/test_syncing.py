"""Whole runs in another store: everything arrives, once, and commands find the copy by either ID."""

import os
import shutil
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate
import infer
import restore
import syncing
import train
import workspace
from evaluate import EvaluateConfig
from infer import InferConfig
from live_run import LiveRun, Stopped
from models import record
from restore import RestoreConfig
from tests.conftest import equal, history, last_checkpoint, open_store
from tests.contents import everything, files
from tracking.errors import StoreError
from tracking.records import ORIGIN, ORIGIN_STORE
from tracking.store import Store
from tracking.store import open_store as open_any
from workspace import RunFolder


@pytest.fixture
def laptop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    """Another, empty store."""
    folder = tmp_path_factory.mktemp("laptop")
    shutil.copy(empty_database, folder / "mlflow.db")
    return open_any(folder, f"sqlite:///{folder}/mlflow.db")


def evaluations(store: Store, run_id: str) -> list[dict]:
    found = [run for run in store.newest_runs(50) if run.tags.get("source_run_id") == run_id]
    whole = [everything(store, run.run_id) for run in found]
    for one in whole:
        assert one["tags"].pop("source_run_id") == run_id
    return whole


def rows(store: Store) -> int:
    """How much the store's database has."""
    with sqlite3.connect(store.root / "mlflow.db") as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def copy_in(store: Store, run_id: str) -> str:
    copy = store.find_run(run_id)
    assert copy != run_id and store.find_run(run_id[:8]) == store.find_run(copy) == copy
    return copy


@pytest.mark.slow
def test_a_whole_run_arrives_once_and_is_completed_when_it_went_on(home, small, laptop, capfd):
    run_id = train.main(replace(small, run_name="a", group="g", tag=("who=me",), max_steps=4))
    evaluate.main(EvaluateConfig(run=run_id, split="test", workers=0))
    source = open_store()
    owe(run_id)
    syncing.copy_to(laptop.uri, None)
    copy = copy_in(laptop, run_id)
    assert everything(laptop, copy) == everything(source, run_id)
    assert "hardware" in laptop.run(copy).tags  # its own store got it first
    [evaluation] = evaluations(source, run_id)
    assert evaluations(laptop, copy) == [evaluation] and evaluation["points"]
    assert laptop.run(copy).tags[ORIGIN] == run_id and laptop.run(copy).tags[ORIGIN_STORE] == source.uri
    linked = {one.name: one.metrics for one in laptop.checkpoints(copy)}
    assert linked == {one.name: one.metrics for one in source.checkpoints(run_id)}
    assert "eval/shapes/test/AP" in linked["epoch-000"] and not list(workspace.RUNS.glob(".copying/*"))

    before = rows(laptop)
    capfd.readouterr()
    syncing.copy_to(laptop.uri, None)
    assert rows(laptop) == before and "nothing new" in capfd.readouterr().err

    train.main(replace(small, run_name="a", group="g", resume="auto"))
    shutil.rmtree(RunFolder(run_id).path)  # its store has it
    syncing.copy_to(laptop.uri, None)
    assert everything(laptop, copy) == everything(source, run_id)
    assert "2 checkpoints" not in (said := capfd.readouterr().err) and "1 checkpoints" in said
    assert len(laptop.checkpoints(copy)) == 2 and laptop.run(copy).tags["resumed"] == "1"


@pytest.mark.slow
def test_the_copy_is_restored_evaluated_repeated_and_resumed_by_either_id(
    home, small, laptop, monkeypatch, undisturbed, capfd
):
    run_id = train.main(replace(small, run_name="a", max_steps=4))
    syncing.copy_to(laptop.uri, run_id[:6])
    copy = copy_in(laptop, run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", laptop.uri)
    for word in (run_id, copy, run_id[:7]):
        path = restore.main(RestoreConfig(run=word, output=home / "restored"))
        entry = record.inspect(path).entry
        assert (entry["run_id"], entry["tracking_uri"]) == (copy, laptop.uri)
        report = evaluate.main(EvaluateConfig(run=word, split="test", workers=0, no_log=word != run_id))
    assert laptop.run(report["evaluation_run_id"] or copy)
    evaluation = evaluate.main(EvaluateConfig(checkpoint=path, split="test", workers=0))  # the file names its origin
    assert evaluation["model_id"] in {one.model_id for one in laptop.checkpoints(copy)}
    assert laptop.run(evaluation["evaluation_run_id"]).tags["source_run_id"] == copy
    assert train.configuration(run_id).run_name is None
    again = train.main(replace(small, max_steps=8, resume=run_id))
    assert again == copy
    assert equal(last_checkpoint(copy)["model_state_dict"], undisturbed().last["model_state_dict"])
    assert "went on there by itself" not in capfd.readouterr().err

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = rows(laptop)
    syncing.copy_to(laptop.uri, run_id)
    assert "went on there by itself" in capfd.readouterr().err and rows(laptop) == before
    assert not laptop.knows(run_id) and laptop.run(copy).status == "FINISHED"


@pytest.mark.slow
def test_what_a_lost_store_does_not_give_comes_from_the_run_folder_and_the_rest_is_named(home, small, laptop, capfd):
    run_id = train.main(replace(small, run_name="a", tag=("who=me",)))
    source = open_store()
    was = everything(source, run_id)
    lost = home / "lost.db"
    (home / "mlflow.db").rename(lost)
    workspace.PUBLISHED.unlink()
    with pytest.raises(StoreError, match=f"has not got everything of: {run_id}"):
        syncing.copy_to(laptop.uri, run_id)
    said = capfd.readouterr().err.rpartition(f"only in {source.uri}: ")[2]
    assert said.startswith("checkpoint epoch-000, ") and "epoch-001" not in said and "figures/ap.png" in said
    copy = copy_in(laptop, run_id)
    now = everything(laptop, copy)
    for key in ("run_name", "status", "end_time", "experiment", "params", "datasets"):
        assert now[key] == was[key], key
    for key, points in was["points"].items():
        assert now["points"][key] == points
    assert now["tags"]["who"] == "me" and list(now["checkpoints"]) == ["epoch-001"]
    assert now["checkpoints"]["epoch-001"]["sha256"] == was["checkpoints"]["epoch-001"]["sha256"]
    assert now["files"]["config.json"] == was["files"]["config.json"] and "figures/ap.png" not in now["files"]
    before = rows(laptop)
    with pytest.raises(StoreError):
        syncing.copy_to(laptop.uri, None)
    assert rows(laptop).keys() == before.keys() and everything(laptop, copy) == now

    lost.rename(home / "mlflow.db")  # it is back
    syncing.copy_to(laptop.uri, None)
    assert everything(laptop, copy) == was | {"start_time": now["start_time"]}


@pytest.mark.slow
def test_of_a_pruned_checkpoint_arrives_what_is_left(home, small, laptop, tmp_path_factory, empty_database, capfd):
    def whole(store: Store, run_id: str) -> list[tuple]:
        known = store.checkpoints(run_id, with_pruned=True)
        return [(one.name, one.pruned, one.metrics, store.stored_bytes(one)) for one in known]

    def new_store() -> Store:
        folder = tmp_path_factory.mktemp("new")
        shutil.copy(empty_database, folder / "mlflow.db")
        return open_any(folder, f"sqlite:///{folder}/mlflow.db")

    run_id = train.main(replace(small, run_name="a", epochs=3, max_steps=8))
    syncing.copy_to(laptop.uri, None)
    before = whole(laptop, copy_in(laptop, run_id))
    train.main(replace(small, run_name="a", epochs=3, max_steps=12, resume="auto", keep="last"))
    source = open_store()
    pruned = [(one.name, one.pruned) for one in source.checkpoints(run_id, with_pruned=True) if one.pruned]
    assert pruned
    syncing.copy_to(laptop.uri, None)
    assert whole(laptop, copy_in(laptop, run_id))[:2] == before  # what had arrived before keeps its file there
    other = new_store()
    syncing.copy_to(other.uri, None)
    assert whole(other, copy_in(other, run_id)) == whole(source, run_id)

    (home / "mlflow.db").unlink()  # what the run folder knows of it
    other = new_store()
    capfd.readouterr()
    with pytest.raises(StoreError):
        syncing.copy_to(other.uri, None)
    assert [(name, tag) for name, tag, *_ in whole(other, copy_in(other, run_id)) if tag] == pruned
    assert f"checkpoint {pruned[0][0]}" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("store", ["is there", "is lost"])
def test_a_run_stopped_in_mid_epoch_goes_on_from_its_copys_recovery_point(
    home, small, laptop, monkeypatch, undisturbed, store
):
    real = LiveRun.at

    def at(run, **position):
        real(run, **position)
        if position["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(LiveRun, "at", at)
        train.main(replace(small, run_name="part"))
    run_id = open_store().find_run("part")
    if store == "is there":
        syncing.copy_to(laptop.uri, run_id)
    else:
        (home / "mlflow.db").unlink()
        with pytest.raises(StoreError):
            syncing.copy_to(laptop.uri, run_id)
    shutil.rmtree(RunFolder(run_id).path)
    copy = copy_in(laptop, run_id)
    assert [entry.path for entry in laptop.client.list_artifacts(copy, "recovery")] == ["recovery/last.pth"]
    assert laptop.run(copy).status == "KILLED"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", laptop.uri)
    assert train.main(replace(small, run_name="part", resume="auto")) == copy
    assert equal(last_checkpoint(copy)["model_state_dict"], undisturbed().last["model_state_dict"])
    assert [step for step, _ in history(laptop, copy, "train/loss")] == list(range(1, 9))


@pytest.mark.slow
def test_of_pruned_checkpoints_the_scores_arrive_and_a_recovery_point_goes_when_it_goes(home, small, laptop):
    run_id = train.main(replace(small, keep="last", max_steps=6, checkpoint_every="5"))
    syncing.copy_to(laptop.uri, run_id)
    copy, source = copy_in(laptop, run_id), open_store()
    source.client.log_text(run_id, "as if it had been stopped", "recovery/last.pth")
    syncing.copy_to(laptop.uri, run_id)
    train.main(replace(small, keep="last", max_steps=8, resume=run_id))
    syncing.copy_to(laptop.uri, run_id)
    was, now = everything(source, run_id), everything(laptop, copy)
    pruned = {name: one["tags"].pop("pruned", None) for name, one in was["checkpoints"].items()}
    assert any(pruned.values()) and not all(pruned.values())
    for one in now["checkpoints"].values():
        one["tags"].pop("pruned", None)  # a file that was there already stays
    assert now == was


def test_a_dead_run_of_a_lost_store_is_not_running_for_ever(home, small, laptop):
    run_id = train.main(replace(small, run_name="a", max_steps=4))
    folder = RunFolder(run_id)
    lines = folder.path.joinpath("journal.jsonl").read_bytes().splitlines(keepends=True)
    folder.path.joinpath("journal.jsonl").write_bytes(b"".join(lines[:-1]))  # killed before it could say so
    folder.update(state="running")
    (home / "mlflow.db").unlink()
    with pytest.raises(StoreError):
        syncing.copy_to(laptop.uri, run_id)
    copy = laptop.run(copy_in(laptop, run_id))
    assert copy.status == "KILLED" and copy.end_time == int(1000 * folder.state()["updated"])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_holds_nothing_up(home, small, laptop, capfd):
    run_id = train.main(small)
    source = open_store()
    first, second = source.checkpoints(run_id)
    stored = Path(first.artifact_location.removeprefix("file://")) / "artifacts" / "checkpoint.pth"
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.unlink()
    stored.write_bytes(content)
    with pytest.raises(StoreError):
        syncing.copy_to(laptop.uri, None)
    assert "lacking: checkpoint epoch-000 (" in capfd.readouterr().err
    copy = copy_in(laptop, run_id)
    assert [one.sha256 for one in laptop.checkpoints(copy)] == [second.sha256]
    assert laptop.run(copy).status == "FINISHED" and "figures/ap.png" in files(laptop, copy)


@pytest.mark.slow
def test_a_copy_that_was_deleted_stays_so_and_one_that_is_as_it_was_does_not_come_back(
    home, small, laptop, monkeypatch, capfd
):
    run_id = train.main(replace(small, max_steps=1))
    syncing.copy_to(laptop.uri, None)
    copy, home_uri = copy_in(laptop, run_id), open_store().uri
    before = rows(open_store())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", laptop.uri)
    capfd.readouterr()
    syncing.copy_to(home_uri, copy)
    assert "is its origin" in capfd.readouterr().err and rows(open_any(home, home_uri)) == before
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    laptop.client.delete_run(copy)
    syncing.copy_to(laptop.uri, None)
    assert "was deleted there" in capfd.readouterr().err
    assert [run.run_id for run in laptop.newest_runs(5)] == []


def test_words_that_do_not_go_together_are_refused(home, run_script, laptop):
    for arguments, word in (
        (["--to", laptop.uri], "--sync"),
        (["--sync", "--run", "a"], "--to"),
        (["--sync", "--to", "laptop"], "tracking URI"),
        (["--sync", "--to", laptop.uri], "no run here"),
        (["--sync", "--to", open_store().uri], "another store"),
    ):
        process = run_script("status.py", *arguments)
        assert process.returncode == 2 and word in process.stderr, process.stderr
    process = run_script("status.py", "--sync", "--to", laptop.uri, "--run", "nobody")
    assert process.returncode == 2 and "No run 'nobody'" in process.stderr


def owe(run_id: str) -> None:
    """As if the store had been away when the run ended."""
    RunFolder(run_id).path.joinpath("journal.sent").unlink()
    open_store().client.delete_tag(run_id, "hardware")


@pytest.mark.slow
def test_every_command_that_opens_the_store_sends_what_it_was_owed(home, small, capfd):
    run_id = train.main(replace(small, max_steps=1))
    other = train.main(replace(small, max_steps=1, seed=1))
    picture = next(path for path in Path(small.data).rglob("*") if path.suffix in (".jpg", ".png"))
    commands = {
        "restore": lambda: restore.main(RestoreConfig(run=other, output=home / "restored")),
        "evaluate": lambda: evaluate.main(EvaluateConfig(split="test", workers=0)),
        "infer": lambda: infer.start(InferConfig(sources=(str(picture),), run=other)),
        "train": lambda: train.main(replace(small, max_steps=1, seed=2)),
        "a finished run": lambda: train.main(replace(small, max_steps=1, seed=1, resume=other)),
    }
    for name, command in commands.items():
        owe(run_id)
        capfd.readouterr()
        command()
        said = capfd.readouterr().err
        assert f"sent what run {run_id} still owed {open_store().uri}: " in said, name
        assert "hardware" in open_store().run(run_id).tags, name
    commands["restore"]()
    assert "still owed" not in capfd.readouterr().err
    owe(run_id)
    train.main(replace(small, max_steps=1, dry_run=True))
    assert "hardware" not in open_store().run(run_id).tags  # it writes nothing
