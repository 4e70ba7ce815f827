"""Superseded checkpoints: their files go for good, in training and by prune.py, and everything that reads knows."""

import json
import resource
import shutil
import sqlite3
from dataclasses import replace

import pytest

import fetching
import publishing
import train
import workspace
from config import TrainConfig
from prune import PruneConfig
from prune import main as prune
from tests.conftest import history, last_checkpoint, open_store
from tracking import ask, peek
from tracking.errors import StoreMoved
from tracking.journal import Journal
from tracking.run import TrackedRun
from tracking.sender import sync
from tracking.store import CannotFree, RunUnknown
from workspace import RunFolder, WorkspaceError


@pytest.fixture
def falling(monkeypatch):
    """Validations whose AP falls: epoch-000 is the best, whatever comes; AP50 rises."""
    from evaluating import scoring

    real_score, number = scoring.score, iter(range(1, 1000))

    def score(*arguments, **keywords):
        scored, count = real_score(*arguments, **keywords), next(number)
        scored.metrics.update({"AP": 0.9 / count, "AP50": 1 - 0.9 / count})
        return scored

    monkeypatch.setattr("evaluating.scoring.score", score)


def files(home) -> list[str]:
    """The checkpoint files that are there, by the name of their checkpoint."""
    store = open_store()
    by_model = {
        one.model_id: one.name
        for folder in workspace.run_folders()
        for one in store.checkpoints(folder.run_id, with_pruned=True)
    }
    return sorted(by_model[path.parents[2].name] for path in (home / "mlartifacts").rglob("checkpoint.pth"))


def names(run_id: str, **how) -> list[str]:
    return [one.name for one in open_store().checkpoints(run_id, **how)]


def test_a_training_frees_what_it_does_not_keep(home, small, falling, capfd):
    run_id = train.main(replace(small, epochs=4, keep="best,every:3"))
    every = [f"epoch-{number:03d}" for number in range(4)]
    kept = ["epoch-000", "epoch-002", "epoch-003"]
    assert (names(run_id), names(run_id, with_pruned=True), files(home)) == (kept, every, kept)
    assert RunFolder(run_id).last.stat().st_nlink == 2  # the last one is the store's file, and no other link is left
    store = open_store()
    pruned = [one for one in store.checkpoints(run_id, with_pruned=True) if one.pruned]
    assert all("val/AP" in one.metrics and "UTC, --keep best,every:3" in one.pruned for one in pruned)
    assert len(history(store, run_id, "val/AP")) == 4
    run = store.run(run_id)
    assert (run.params["keep"], run.tags["keep"]) == ("best,every:3", "best,every:3")
    assert run.tags["disk_forecast"].startswith("4 checkpoints of 27 MB, of which --keep best,every:3 leaves at most 3")

    assert peek.peek_checkpoints(store.uri, run_id) == ask.peek_checkpoints(store, run_id)
    assert peek.peek_checkpoints(store.uri, run_id)["count"] == 3
    assert peek.peek_checkpoints(store.uri, run_id, "val/AP50")["best"]["name"] == "epoch-003"
    fetched = fetching.choose(store, run_id, "best", "val/AP")
    assert fetched.name == "epoch-000"
    with pytest.raises(WorkspaceError, match=r"epoch-001 .* was pruned \(20.* UTC, --keep .* still has: epoch-000, ep"):
        fetching.choose(store, run_id, "1", "val/AP")
    one = pruned[0]
    entry = {"run_id": run_id, "sha256": one.sha256}
    assert not publishing.is_safe_elsewhere(entry, store) and not store.holds(one)
    assert publishing.is_safe_elsewhere({"run_id": run_id, "sha256": fetched.sha256}, store)

    # Delivered again from the beginning, nothing comes back and nothing is refused.
    folder = RunFolder(run_id)
    Journal(folder.path).acknowledge(0)
    assert sync(folder.path, store)["unsent"] == {
        **dict.fromkeys(("operations", "metrics", "checkpoints", "bytes", "refused"), 0)
    }
    assert (names(run_id), names(run_id, with_pruned=True), files(home)) == (kept, every, kept)


@pytest.mark.slow
def test_the_best_by_another_metric_gives_way_to_the_best_that_is_left(home, small, falling, capfd):
    run_id = train.main(replace(small, epochs=3, keep="best"))
    store = open_store()
    assert names(run_id) == ["epoch-000", "epoch-002"]  # the last: the run may go on
    prune(PruneConfig(runs=(run_id,), keep="best", yes=True))
    assert fetching.choose(store, run_id, "best", "val/AP50").name == "epoch-000"
    assert "epoch-002 has the best val/AP50" in capfd.readouterr().err
    assert store.best_run("faster-rcnn", "val/AP50").run_id == run_id
    assert not RunFolder(run_id).last.exists()  # it was the same file, which would have stayed
    for which in ("last", "2"):
        with pytest.raises(WorkspaceError, match=r"epoch-002 .* was pruned .*prune.py --keep best"):
            fetching.choose(store, run_id, which, "val/AP")
    with pytest.raises(WorkspaceError, match=f"cannot go on.*--weights {run_id}"):
        train.main(replace(small, epochs=4, resume=run_id, keep="all"))
    assert train.main(replace(small, epochs=3, resume=run_id)) == run_id  # it is finished, which needs no file


@pytest.mark.slow
def test_another_keep_on_resuming_holds_at_once_on_another_machine_too(home, small, falling):
    run_id = train.main(replace(small, epochs=4, max_steps=12))
    assert files(home) == ["epoch-000", "epoch-001", "epoch-002"]
    shutil.rmtree(home / "runs")
    train.main(replace(small, epochs=4, max_steps=16, resume=run_id, keep="best,last"))
    assert files(home) == names(run_id) == ["epoch-000", "epoch-003"]
    assert open_store().run(run_id).tags["keep"] == "best,last"
    assert last_checkpoint(run_id)["config"]["keep"] == "best,last"


def test_a_registered_checkpoint_stays(home, small, falling):
    run_id = train.main(replace(small, epochs=4, max_steps=8))
    store = open_store()
    uri = store.register(store.checkpoints(run_id)[1], "shapes", "champion")
    train.main(replace(small, epochs=4, max_steps=16, resume=run_id, keep="best,last"))
    assert files(home) == names(run_id) == ["epoch-000", "epoch-001", "epoch-003"]
    assert Journal(RunFolder(run_id).path).refused() == []
    report = prune(PruneConfig(runs=(run_id,), keep="best", yes=True))
    assert report["runs"][0]["keeps"] == {"epoch-000": "best", "epoch-001": "registered"}
    assert fetching.choose(store, uri, "best", "val/AP").name == "epoch-001"


@pytest.mark.slow
def test_the_best_stays_whatever_a_stale_process_thinks(home, small, falling):
    """It may not have heard of the best that the run reached elsewhere: on arrival the scores decide."""
    run_id = train.main(replace(small, epochs=3))
    folder, store = RunFolder(run_id), open_store()
    for name in ("epoch-000", "epoch-001"):
        TrackedRun(folder.path, run_id).prune(name, "--keep last", metric="val/AP")
    sync(folder.path, store)
    assert names(run_id) == files(home) == ["epoch-000", "epoch-002"]


@pytest.mark.slow
def test_what_waits_for_the_store_loses_its_file_at_once(home, small, falling, monkeypatch):
    """An outage does not fill the disk with what would be deleted on arrival; the metrics arrive all the same."""
    monkeypatch.setattr("tracking.sender.Courier.deliver_next", lambda courier: 0)
    monkeypatch.setattr("live_run.DELIVERY_SECONDS", 0.1)
    run_id = train.main(replace(small, epochs=4, keep="best,last"))
    folder = RunFolder(run_id)
    assert len(list(folder.path.glob("outbox/*/checkpoint.pth"))) == 2
    monkeypatch.undo()
    monkeypatch.setattr(workspace, "ROOT", home)
    monkeypatch.setattr(workspace, "RUNS", home / "runs")
    store = open_store()
    sync(folder.path, store)
    known = store.checkpoints(run_id, with_pruned=True)
    assert [(one.name, one.pruned is None, "val/AP" in one.metrics) for one in known] == [
        ("epoch-000", True, True),
        ("epoch-001", False, True),
        ("epoch-002", False, True),
        ("epoch-003", True, True),
    ]
    assert files(home) == ["epoch-000", "epoch-003"]
    assert list(folder.path.glob("outbox/*")) == []


def test_prune_says_first_and_frees_then(home, small, falling, run_script):
    first, second = (train.main(replace(small, epochs=3, run_name=name)) for name in ("first", "second"))
    script = ("prune.py", "--experiment", "faster-rcnn", "--keep", "last")
    said = run_script(*script)
    assert said.returncode == 0 and files(home).count("epoch-001") == 2
    assert (
        f"run {first} (first) keeps epoch-000 (best), epoch-002 (last)\n  would free 27 MB: epoch-001\n" in said.stdout
    )
    assert said.stdout.endswith("would free 55 MB in 2 checkpoints. To do it: add --yes\n")
    before = sum(path.stat().st_blocks for path in (home / "mlartifacts").rglob("*"))
    freed = json.loads(run_script(*script, "--yes", "--json").stdout)
    after = sum(path.stat().st_blocks for path in (home / "mlartifacts").rglob("*"))
    assert freed["bytes"] == pytest.approx((before - after) * 512, rel=0.01)
    assert [run["frees"][0]["name"] for run in freed["runs"]] == ["epoch-001"] * 2
    assert names(first) == names(second) == ["epoch-000", "epoch-002"]
    assert "nothing to free" in run_script(*script, "--yes").stdout
    assert train.main(replace(small, epochs=4, resume=first)) == first
    assert run_script("prune.py", "--keep", "last").returncode == 2
    assert run_script("prune.py", first, "--keep", "all").returncode == 2
    with pytest.raises(WorkspaceError, match=r"No experiment 'none' .* There are: .*faster-rcnn"):
        prune(PruneConfig(experiment="none", keep="best"))
    with pytest.raises(RunUnknown, match="'nobody'"):
        prune(PruneConfig(runs=("nobody",), keep="best"))


def test_a_run_that_trains_is_left_alone(home, small, falling):
    run_id = train.main(replace(small, run_name="one"))
    before = files(home)
    with RunFolder(run_id).locked():
        with pytest.raises(WorkspaceError, match=f"Run {run_id} is training now"):
            prune(PruneConfig(runs=("one",), keep="best", yes=True))
        report = prune(PruneConfig(experiment="faster-rcnn", keep="best", yes=True))
    assert (report["runs"], len(report["skipped"]), files(home)) == ([], 1, before)
    # On another machine its heart beats.
    store = open_store()
    store.client.update_run(run_id, status="RUNNING")
    store.client.set_tag(run_id, "heartbeat", json.dumps({"time": 1e15, "host": "far", "pid": 1}))
    with pytest.raises(WorkspaceError, match="is training now on far"):
        prune(PruneConfig(runs=("one",), keep="best", yes=True))


@pytest.mark.slow
def test_the_last_of_a_run_that_has_not_finished_stays(home, small, falling, monkeypatch):
    monkeypatch.setattr(
        "train.is_done", lambda job: (_ for _ in ()).throw(KeyboardInterrupt) if job.position.step == 8 else False
    )
    with pytest.raises(KeyboardInterrupt):
        train.main(replace(small, epochs=3, run_name="part"))
    report = prune(PruneConfig(runs=("part",), keep="best", yes=True))
    assert report["runs"][0]["keeps"] == {"epoch-000": "best", "epoch-001": "last"}


@pytest.mark.slow
def test_what_the_store_does_not_let_go_of_stays_whole_and_is_told(home, small, falling, run_script, monkeypatch):
    run_id = train.main(replace(small, epochs=3))
    elsewhere = home.parent / f"{home.name}-copy"
    shutil.copytree(home, elsewhere)
    monkeypatch.setattr(workspace, "ROOT", elsewhere)
    monkeypatch.setattr(workspace, "RUNS", elsewhere / "runs")
    copied = run_script("prune.py", run_id, "--keep", "last", "--yes")
    assert copied.returncode == StoreMoved.exit_code and "python relocate.py" in copied.stderr
    with pytest.raises(CannotFree, match=f"lies outside {elsewhere}"):
        open_store().prune(open_store().checkpoints(run_id)[1], "by hand")
    monkeypatch.setattr(workspace, "ROOT", home)
    monkeypatch.setattr(workspace, "RUNS", home / "runs")
    assert names(run_id) == files(home) == ["epoch-000", "epoch-001", "epoch-002"]

    def forbidden(repository, path=None):
        raise PermissionError("AccessDenied")

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.delete_artifacts", forbidden)
        said = run_script("prune.py", run_id, "--keep", "last", "--yes")
        assert said.returncode == 1 and "not freed: epoch-001: PermissionError: AccessDenied" in said.stdout
        # In training it is refused for good, with its reason, and what comes after it arrives.
        train.main(replace(small, epochs=4, resume=run_id, keep="best,last"))
    refused = Journal(RunFolder(run_id).path).refused()
    assert [entry["operation"]["checkpoint"] for entry in refused] == ["epoch-001", "epoch-002"]
    assert "AccessDenied" in refused[0]["reason"]
    store = open_store()
    assert store.run(run_id).status == "FINISHED"
    assert names(run_id) == ["epoch-000", "epoch-001", "epoch-002", "epoch-003"]

    with sqlite3.connect(home / "mlflow.db") as database:  # a place that is not the checkpoint's own
        database.execute("UPDATE logged_models SET artifact_location = ?", (str(home / "mlartifacts"),))
    with pytest.raises(CannotFree, match="not a folder of this checkpoint alone"):
        store.prune(store.checkpoints(run_id)[1], "by hand")
    assert len(files(home)) == 4


def test_a_training_that_will_not_fit_is_refused_before_it_begins(home, small):
    with pytest.raises(WorkspaceError, match="--keep best,last would fit, with 163 MB") as caught:
        train.main(replace(small, epochs=9, disk_budget="170MB"))
    assert caught.value.exit_code == 5
    assert not (home / "runs").exists() or list((home / "runs").iterdir()) == []
    with pytest.raises(WorkspaceError, match="Even --keep best,last needs 136 MB"):
        train.main(replace(small, disk_budget="50MB"))


@pytest.mark.slow
def test_a_training_that_passes_its_budget_stops_resumable(home, small, falling, monkeypatch, capfd):
    monkeypatch.setattr("disk.Forecast.over", lambda *_: None)  # something else took the space
    with pytest.raises(WorkspaceError, match="would pass --disk-budget 100 MB") as caught:
        train.main(replace(small, epochs=6, disk_budget="100MB", run_name="tight"))
    assert caught.value.exit_code == 5 and "The last good checkpoint stays" in str(caught.value)
    store = open_store()
    run_id = store.find_run("tight")
    assert (store.run(run_id).status, store.run(run_id).tags["resumable"]) == ("KILLED", "true")
    saved = last_checkpoint(run_id)["step"]
    assert saved < 24
    train.main(replace(small, epochs=6, resume=run_id, keep="best,last", disk_budget="240MB"))
    assert store.run(run_id).status == "FINISHED" and files(home) == ["epoch-000", "epoch-005"]
    told = capfd.readouterr().err
    assert "--keep all → best,last" in told and "--disk-budget 100MB → 240MB" in told


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(home, small):
    """A limit on the size of files, which is as good as a full disk to whoever writes one."""
    run_id = train.main(replace(small, max_steps=4))
    before = RunFolder(run_id).last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, hard))
    try:
        with pytest.raises(WorkspaceError, match=r"The disk is full: .* The last good checkpoint stays: ") as caught:
            train.main(replace(small, max_steps=8, resume=run_id))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 5 and f"train.py --resume {run_id}" in str(caught.value)
    assert RunFolder(run_id).last.read_bytes() == before
    assert open_store().run(run_id).status == "KILLED"
    train.main(replace(small, max_steps=8, resume=run_id))
    assert names(run_id) == ["epoch-000", "epoch-001"]


def test_the_store_says_that_its_disk_is_full(home):
    """A limit on the database's pages: sqlite's own words for it."""
    from sqlalchemy import event

    store = open_store()
    engine = store.client._tracking_client.store.engine
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 1"))
    engine.dispose()
    with pytest.raises(Exception, match="its disk is full") as caught:
        for number in range(100):
            store.create_run("faster-rcnn", "x" * 250, {f"tag-{number}": "x" * 4000})
    assert caught.value.exit_code == 5


def test_the_default_keeps_everything():
    assert TrainConfig().keep == "all"
