"""A real MLflow server that dies in the middle of a run: nothing is lost, nothing comes twice."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.server import Server
from tracking import ask, peek
from tracking.run import TrackedRun
from tracking.sender import Sender, sync
from tracking.store import DamagedArtifact, StoreError, open_store

pytestmark = pytest.mark.slow  # two server starts of some 15 s each


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.kill()


def queue_epoch(run: TrackedRun, epoch: int) -> None:
    for step in range(50 * epoch, 50 * (epoch + 1)):
        run.metrics({"train/loss": float(step), "train/lr": 0.1}, step)
    content = f"weights {epoch}".encode() * 10_000
    path = run.folder / "last.pth"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    run.checkpoint(
        f"epoch-{epoch:03d}",
        path,
        sha256=hashlib.sha256(content).hexdigest(),
        step=50 * (epoch + 1),
        metrics={"val/AP": 0.1 * epoch},
        tags={"epoch": epoch},
        dataset=("val", "abc"),
    )


def test_a_server_that_dies_costs_nothing(server, tmp_path, capfd):
    store = open_store(tmp_path, server.uri)
    run_id, name = store.create_run("blood", None)
    assert name
    run = TrackedRun(tmp_path / run_id, run_id)
    run.params({"lr": 1})
    run.dataset("val", "abc", "/data", "validation")
    queue_epoch(run, 0)
    sender = Sender(run.folder, store, heartbeat=lambda: {"epoch": 0, "step": 50})
    sender.start()
    assert sender.finish(60), sender.trouble

    server.kill()
    queue_epoch(run, 1)
    assert not sender.finish(60)
    assert sender.trouble and run.journal.unsent()["checkpoints"] == 1
    sender.stop()
    assert peek.peek_run(server.uri, run_id) is None
    assert "Unavailable" not in sync(run.folder, store)["trouble"]
    with pytest.raises(StoreError, match="Start it, with the --backend-store-uri that it had"):
        open_store(tmp_path, server.uri)

    server.start()
    sender = Sender(run.folder, store)
    sender.start()
    queue_epoch(run, 2)
    run.end("FINISHED")
    assert sender.finish(60), sender.trouble
    sender.stop()

    history = store.client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(150)]
    assert [point.timestamp for point in history] == sorted(point.timestamp for point in history)
    checkpoints = store.checkpoints(run_id)
    assert [(checkpoint.epoch, checkpoint.score) for checkpoint in checkpoints] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert peek.peek_run(server.uri, run_id)["status"] == "FINISHED"

    # Delivered again from the beginning, with the spool gone, nothing is doubled.
    run.journal.acknowledge(0)
    assert sync(run.folder, store)["unsent"]["refused"] == 0
    assert len(store.client.get_metric_history(run_id, "train/loss")) == 150
    assert [checkpoint.model_id for checkpoint in store.checkpoints(run_id)] == [each.model_id for each in checkpoints]
    assert len(store.client.get_run(run_id).outputs.model_outputs) == 3

    upload = store.client.log_model_artifact

    def spoil(model_id, path, folder):
        spoilt = tmp_path / "spoilt" / "checkpoint.pth"
        spoilt.parent.mkdir()
        spoilt.write_bytes(Path(path).read_bytes().replace(b"9", b"8"))  # of the same size
        upload(model_id, str(spoilt), folder)

    store.client.log_model_artifact = spoil
    queue_epoch(run, 9)
    summary = sync(run.folder, store)
    assert "is damaged in the store" in summary["trouble"] and "sending it again" in summary["trouble"]
    assert summary["unsent"]["checkpoints"] == 1 and len(store.checkpoints(run_id)) == 3
    store.client.log_model_artifact = upload
    assert sync(run.folder, store)["trouble"] is None and len(store.checkpoints(run_id)) == 4
    assert not any((run.folder / "outbox").iterdir())
    store.client.delete_logged_model(store.checkpoints(run_id)[3].model_id)

    newest = peek.newest_runs(server.uri)
    assert [(each["run_id"], each["experiment"]) for each in newest] == [(run_id, "blood")]
    assert peek.experiment_runs(server.uri, "blood") == ask.experiment_runs(store, "blood")
    assert [run["run_id"] for run in peek.experiment_runs(server.uri, "blood")] == [run_id]
    assert peek.experiment_runs(server.uri, "bones") == ask.experiment_runs(store, "bones") == []
    assert peek.experiment_names(server.uri) == ask.experiment_names(store) == ["Default", "blood"]
    best = peek.peek_checkpoints(server.uri, run_id)
    assert (best["count"], best["best"]["name"], best["best"]["epoch"]) == (3, "epoch-002", 2)
    assert store.find_run(run_id[:8]) == store.find_run(name) == run_id
    assert store.ui_urls(run_id)["run"].startswith(f"{server.uri}/#/experiments/")
    uri = store.register(checkpoints[2], "blood-cells", "champion")
    assert store.find(uri).model_id == checkpoints[2].model_id

    assert store.holds(checkpoints[1])
    restored = store.download(checkpoints[1], tmp_path / "models" / "checkpoint.pth")
    assert restored.read_bytes() == b"weights 1" * 10_000
    (stored,) = (server.folder / "artifacts").rglob(f"{checkpoints[1].model_id}/**/checkpoint.pth")
    stored.write_bytes(b"weights X" * 10_000)
    with pytest.raises(DamagedArtifact, match="damaged"):
        store.download(checkpoints[1], restored)
    stored.unlink()
    assert not store.holds(checkpoints[1])
    with pytest.raises(DamagedArtifact, match="gone"):
        store.download(checkpoints[1], restored)
    assert restored.read_bytes() == b"weights 1" * 10_000
    assert capfd.readouterr() == ("", "")


def test_a_server_frees_pruned_checkpoints(server, tmp_path):
    """Through its proxy of artifacts, in training's order and by hand; the rest of the checkpoint stays."""
    store = open_store(tmp_path, server.uri)
    run_id, _ = store.create_run("blood", None)
    run = TrackedRun(tmp_path / run_id, run_id)
    for epoch in range(5):
        queue_epoch(run, epoch)
    assert not sync(run.folder, store)["trouble"]
    uri = store.register(store.checkpoints(run_id)[1], "blood-cells", "champion")
    run.prune("epoch-000", "--keep last")
    run.prune("epoch-001", "--keep last")  # registered: it stays
    queue_epoch(run, 5)
    run.prune("epoch-005", "--keep last")  # before it is sent: only its metrics are
    assert sync(run.folder, store)["unsent"]["refused"] == 0
    assert not store.is_registered(store.checkpoints(run_id)[1])
    store.prune(store.checkpoints(run_id)[1], "by hand")

    def files() -> int:
        return len(list((server.folder / "artifacts").rglob("checkpoint.pth")))

    known = store.checkpoints(run_id, with_pruned=True)
    assert [one.name for one in known if one.pruned] == ["epoch-000", "epoch-002", "epoch-005"]
    assert [store.stored_bytes(one) > 0 for one in known] == [one.pruned is None for one in known]
    assert files() == 3 and all("val/AP" in one.metrics for one in known)
    assert known[2].pruned.endswith("UTC, by hand")
    assert store.find(uri).model_id == known[1].model_id and store.holds(known[1])
    assert peek.peek_checkpoints(server.uri, run_id) == ask.peek_checkpoints(store, run_id)
    assert peek.peek_checkpoints(server.uri, run_id)["count"] == 3

    run.journal.acknowledge(0)
    assert sync(run.folder, store)["unsent"]["refused"] == 0
    assert files() == 3 and len(store.checkpoints(run_id, with_pruned=True)) == 6

    # Its storage refuses: what comes after that arrives, and the checkpoint is as it was.
    (stored,) = (server.folder / "artifacts").rglob(f"{known[3].model_id}/**/checkpoint.pth")
    protects = subprocess.run(["sh", "-c", f"chattr +i {stored}"], capture_output=True, check=False).returncode == 0
    run.prune("epoch-003", "--keep last")
    run.metrics({"train/loss": 0.0}, 1000)
    summary = sync(run.folder, store)
    if protects:
        subprocess.run(["chattr", "-i", stored], check=True)
    assert summary["trouble"] is None and summary["unsent"]["operations"] == 0
    if protects:
        assert summary["unsent"]["refused"] == 1 and "epoch-003 stay" in run.journal.refused()[0]["reason"]
        assert not next(one for one in store.checkpoints(run_id) if one.name == "epoch-003").pruned

    # It is away: that is no refusal, and is tried again.
    run.prune("epoch-004", "--keep last")
    server.kill()
    assert sync(run.folder, store)["unsent"]["operations"] == 1
    server.start()
    assert sync(run.folder, store)["unsent"]["operations"] == 0
    assert "epoch-004" not in [one.name for one in store.checkpoints(run_id)]
