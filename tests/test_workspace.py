"""Run folders and who is alive in them, choosing checkpoints, and publishing without losing anything."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fetching
import publishing
import status
import train
import workspace
from data.open import open_data
from fetching import select
from models import record
from models.checkpoint import save
from publishing import move_aside, publish
from tests.conftest import open_store
from tests.test_data_readers import coco, write_coco
from tracking.pulse import whoami
from tracking.records import StoredCheckpoint
from workspace import RunFolder, WorkspaceError

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys, time, pathlib
sys.path.insert(0, sys.argv[1])
import workspace
from tracking import pulse
workspace.RUNS = pathlib.Path(sys.argv[2])
folder = workspace.RunFolder(sys.argv[3])
with folder.locked():
    folder.update(**pulse.whoami(), state="running")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(workspace, "ROOT", tmp_path)
    monkeypatch.setattr(workspace, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(workspace, "PUBLISHED", tmp_path / "models" / "faster_rcnn" / "checkpoint.pth")
    return tmp_path


@pytest.fixture
def hold(place):
    """Starts a process that holds a run's lock until it is ended."""
    processes = []

    def start(run_id: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(ROOT), str(workspace.RUNS), run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def asked_by_another_process(run_id: str) -> str:
    """What another process says of the run: alive or not, and whether it may have the lock."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import workspace\n"
        "workspace.RUNS = pathlib.Path(sys.argv[2]); folder = workspace.RunFolder(sys.argv[3])\n"
        "alive = folder.is_alive()\n"
        "try:\n    with folder.locked(): print(alive, 'taken')\n"
        "except workspace.WorkspaceError as error: print(alive, error.exit_code, error)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(workspace.RUNS), run_id]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.strip()


def test_a_run_belongs_to_one_process_until_that_dies(hold):
    folder = RunFolder("run-a")
    process = hold("run-a")
    assert folder.is_alive() and folder.training() == "running"
    with (
        pytest.raises(WorkspaceError, match=rf"run-a is training now \(process {process.pid}\)") as caught,
        folder.locked(),
    ):
        pass
    assert caught.value.exit_code == 2
    assert folder.is_alive(), "being refused, and asking, must not free another process's lock"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.is_alive()
    assert folder.training() == "interrupted"
    with folder.locked():
        assert folder.is_alive()
    assert not folder.is_alive()


def test_asking_does_not_free_ones_own_lock():
    folder = RunFolder("run-a")
    with folder.locked():
        for _ in range(2):
            assert folder.is_alive() and RunFolder("run-a").is_alive()
        assert asked_by_another_process("run-a").startswith("True 2 Run run-a is training now")
        with pytest.raises(WorkspaceError, match="in this process"), RunFolder("run-a").locked():
            pass
        assert asked_by_another_process("run-a").startswith("True 2")
    assert asked_by_another_process("run-a") == "False taken"


def test_the_lock_is_freed_by_an_error():
    folder = RunFolder("run-a")
    with pytest.raises(KeyError), folder.locked():
        raise KeyError
    assert not folder.is_alive()
    with folder.locked():
        pass


def test_asking_writes_nothing(place):
    assert not RunFolder("run-a").is_alive()
    assert (RunFolder("run-a").training(), RunFolder("run-a").state()) == ("interrupted", {})
    assert workspace.run_folders() == []
    assert list(place.iterdir()) == []


def test_state_is_merged_and_unreadable_state_is_none():
    folder = RunFolder("run-a")
    before = time.time()
    folder.update(state="running", step=3)
    folder.update(step=4)
    state = folder.state()
    assert (state["state"], state["step"]) == ("running", 4)
    assert state["updated"] >= before
    folder.update(state="finished")
    assert folder.training() == "finished"
    (folder.path / "run.json").write_text('{"state": "fin')
    assert folder.state() == {}


def test_runs_are_listed_newest_first_and_found_by_word():
    for started, (run_id, name) in enumerate([("aaaa1", "first"), ("aaaa2", "second"), ("bbbb1", "first")]):
        RunFolder(run_id).update(started=started, run_name=name)
    (workspace.RUNS / "not-a-run").mkdir()
    assert [folder.run_id for folder in workspace.run_folders()] == ["bbbb1", "aaaa2", "aaaa1"]
    assert [workspace.local_run(word) for word in ("aaaa1", "bbbb", "second")] == ["aaaa1", "bbbb1", "aaaa2"]
    assert [workspace.local_run(word) for word in ("aaaa", "bbb", "first", "nobody")] == [None] * 4


def stored(epoch: int | None, step: int, sha256: str = "", run_id: str = "run-a", **metrics: float) -> StoredCheckpoint:
    return StoredCheckpoint(
        name=f"step-{step:06d}" if epoch is None else f"epoch-{epoch:03d}",
        model_id=f"m-{step}",
        run_id=run_id,
        step=step,
        epoch=epoch,
        sha256=sha256,
        size_bytes=1,
        artifact_location="",
        created=0,
        metrics={name.replace("_A", "/A"): value for name, value in metrics.items()},
    )


CHECKPOINTS = [
    stored(0, 10, val_AP=0.1, val_AR=0.2),
    stored(1, 20, val_AP=0.4, val_AR=0.4),
    stored(2, 30, val_AP=0.4, val_AR=0.5),
]


def chosen(which: str, metric: str = "val/AP", among=CHECKPOINTS) -> str:
    return select(among, which, metric, "run-a").name


def test_best_last_and_epoch_are_chosen():
    assert chosen("best") == "epoch-001"  # the earliest of equals
    assert chosen("best", "val/AR") == "epoch-002"
    assert chosen("last") == "epoch-002"
    assert [chosen(str(epoch)) for epoch in range(3)] == ["epoch-000", "epoch-001", "epoch-002"]
    unscored = [*CHECKPOINTS, stored(3, 40)]
    assert (chosen("best", among=unscored), chosen("last", among=unscored)) == ("epoch-001", "epoch-003")
    # A checkpoint in mid-epoch carries the number of the last finished one.
    inside = replace(stored(2, 35), name="step-000035")
    assert (chosen("2", among=[*CHECKPOINTS, inside]), chosen("step-000035", among=[inside])) == (
        "epoch-002",
        "step-000035",
    )


@pytest.mark.parametrize(
    ("which", "metric", "words"),
    [
        ("best", "val/AP50", ("'val/AP50'", "val/AP, val/AR")),
        ("7", "val/AP", ("'7'", "epoch-000, epoch-001, epoch-002")),
        ("newest", "val/AP", ("'newest'", "best, last or an epoch")),
        ("-1", "val/AP", ("'-1'",)),
    ],
)
def test_an_unknown_checkpoint_is_exit_2_and_says_what_there_is(which, metric, words):
    with pytest.raises(WorkspaceError) as caught:
        chosen(which, metric)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in (*words, "run-a"))


def test_a_run_without_checkpoints_is_exit_2():
    with pytest.raises(WorkspaceError, match=r"status\.py") as caught:
        chosen("best", among=[])
    assert caught.value.exit_code == 2


def checkpoint(run_id: str | None, step: int, folder: Path) -> tuple[Path, dict]:
    """A file in `folder` and its entry, as training makes them."""
    torch.manual_seed(step)
    content = {
        "format": 1,
        "run_id": run_id,
        "step": step,
        "epoch": step // 10,
        "model_state_dict": {"w": torch.randn(3)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "last.pth"
    sha256 = save(content, path)
    return path, record.describe(content) | {"sha256": sha256, "role": "best"}


class Shelf:
    """A store that has these checkpoints; their files are there unless they are `gone`."""

    def __init__(self, *checkpoints: StoredCheckpoint, gone: bool = False):
        self.has, self.gone = checkpoints, gone

    def holds(self, checkpoint: StoredCheckpoint) -> bool:
        return checkpoint in self.has and not self.gone

    def checkpoints(self, run_id: str) -> list[StoredCheckpoint]:
        return [one for one in self.has if one.run_id == run_id]


def published(run_id: str, step: int, *, how: str = "auto", store: Shelf | None = None) -> str:
    path, entry = checkpoint(run_id, step, RunFolder(run_id).path)
    return publish(path, entry, how=how, store=store or Shelf())


def there() -> tuple[str | None, int | None]:
    verdict = record.inspect(workspace.PUBLISHED, verify=True)
    assert verdict.state in ("ready", "absent"), verdict
    return verdict.entry.get("run_id"), verdict.entry.get("step")


def kept() -> list[Path]:
    return sorted(workspace.PUBLISHED.parent.glob("*.kept-*"))


def restored(run_id: str, step: int, **more) -> dict:
    """What restore.py leaves at models/faster_rcnn."""
    path, entry = checkpoint(run_id, step, workspace.ROOT / "download")
    record.put(path, workspace.PUBLISHED, entry | more, move=True)
    return entry


def test_a_runs_better_checkpoint_replaces_its_own():
    assert published("run-a", 10) == "published to models/faster_rcnn/checkpoint.pth"
    assert there() == ("run-a", 10)
    assert published("run-a", 20) == "published to models/faster_rcnn/checkpoint.pth"
    assert (there(), kept()) == (("run-a", 20), [])
    assert publishing.current_entry()["role"] == "best"
    assert workspace.PUBLISHED.stat().st_ino != RunFolder("run-a").last.stat().st_ino


def test_never_publishes_nothing(place):
    assert "--publish never" in published("run-a", 10, how="never")
    assert not workspace.PUBLISHED.parent.exists()


def test_a_pinned_file_stays_unless_always():
    restored("run-b", 5, pinned=True)
    assert "pinned" in published("run-a", 10)
    assert there() == ("run-b", 5)
    published("run-a", 10, how="always")
    assert there() == ("run-a", 10)
    assert not publishing.current_entry().get("pinned")


def test_a_live_runs_file_stays_unless_always_and_a_dead_ones_goes(hold):
    published("run-b", 5)
    process = hold("run-b")
    assert "run run-b is publishing" in published("run-a", 10)
    assert there() == ("run-b", 5)
    published("run-a", 11, how="always")
    assert there() == ("run-a", 11)
    published("run-b", 6, how="always")
    process.kill()
    process.wait()
    published("run-a", 12)
    assert there() == ("run-a", 12)


def test_what_was_seen_elsewhere_is_replaced_and_what_exists_only_here_is_kept():
    entry = restored("run-b", 5)
    shelf = Shelf(stored(0, 5, sha256=entry["sha256"], run_id="run-b"))
    said = published("run-a", 10, store=shelf)
    assert said == f"published to models/faster_rcnn/checkpoint.pth, in place of {workspace.introduce(entry)}"
    assert "(run-b), epoch 0" in said and kept() == []
    restored("run-b", 5)
    published("run-a", 11, store=Shelf(*shelf.has, gone=True))  # known, but its file was removed
    [aside] = kept()
    aside.unlink()
    restored("run-c", 6)
    outcome = published("run-a", 20, store=shelf)
    [aside] = kept()
    assert aside.name in outcome and "nowhere else" in outcome and "(run-c)" in outcome
    assert record.inspect(aside).entry["run_id"] == "run-c"
    assert there() == ("run-a", 20)


def test_a_file_put_there_by_hand_is_kept_even_with_always():
    path, _ = checkpoint(None, 3, workspace.PUBLISHED.parent)
    path.replace(workspace.PUBLISHED)
    published("run-a", 10, how="always")
    [aside] = kept()
    assert record.inspect(aside).entry["step"] == 3
    workspace.PUBLISHED.write_bytes(b"not a checkpoint, but somebody's")
    published("run-a", 20)
    assert b"not a checkpoint, but somebody's" in [path.read_bytes() for path in kept()]


def test_the_runs_own_file_changed_by_hand_is_kept():
    published("run-a", 10)
    path, _ = checkpoint("run-a", 11, workspace.ROOT / "by-hand")
    path.replace(workspace.PUBLISHED)
    published("run-a", 20)
    assert [record.inspect(aside).entry["step"] for aside in kept()] == [11]


def test_moving_aside_loses_nothing_also_twice_in_a_second(tmp_path):
    path = tmp_path / "checkpoint.pth"
    assert move_aside(path) is None
    path.touch()
    assert move_aside(path) is None
    asides = []
    for text in ("one", "two", "three"):
        path.write_text(text)
        asides.append(move_aside(path))
        assert not path.exists()
    assert [aside.read_text() for aside in asides] == ["one", "two", "three"]
    assert all(aside.name.startswith("checkpoint.kept-") and aside.suffix == ".pth" for aside in asides)
    (path / "inside").mkdir(parents=True)
    assert (move_aside(path) / "inside").is_dir()


def test_a_file_is_safe_elsewhere_by_its_hash_alone():
    _, entry = checkpoint("run-a", 10, RunFolder("run-a").path)
    assert publishing.is_safe_elsewhere(entry, Shelf())
    checkpoint("run-a", 20, RunFolder("run-a").path)  # last.pth went on
    assert not publishing.is_safe_elsewhere(entry, Shelf(stored(1, 10, sha256="other")))
    assert not publishing.is_safe_elsewhere(entry, Shelf(stored(1, 10, sha256=entry["sha256"], run_id="run-b")))
    assert publishing.is_safe_elsewhere(entry, Shelf(stored(1, 10, sha256=entry["sha256"])))
    assert not publishing.is_safe_elsewhere(entry, Shelf(stored(1, 10, sha256=entry["sha256"]), gone=True))
    assert not publishing.is_safe_elsewhere({"run_id": "run-a"}, Shelf(stored(1, 10)))
    assert not publishing.is_safe_elsewhere({"sha256": entry["sha256"]}, Shelf())


def test_a_folder_is_made_or_refused_before_the_work(tmp_path):
    workspace.require_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match=r"--output") as caught:
        workspace.require_writable(tmp_path / "file" / "b")
    assert caught.value.exit_code == 2
    with pytest.raises(WorkspaceError):
        workspace.require_writable(Path("/proc/1/nothing"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        workspace.require_writable(tmp_path / "locked")


def test_an_unusable_checkpoint_says_its_state_and_the_command_that_mends_it(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for prepare, exit_code, state in ((None, 2, "absent"), (path.touch, 3, "empty")):
        if prepare:
            prepare()
        with pytest.raises(record.CheckpointError, match=rf"is {state}: .*restore.py") as caught:
            fetching.usable(path)
        assert caught.value.exit_code == exit_code


def test_classes_must_be_the_same_in_order():
    fetching.require_same_classes({"classes": ["a", "b"]}, ("a", "b"))
    for other in (("b", "a"), ("a", "b", "c")):
        with pytest.raises(WorkspaceError, match="--weights") as caught:
            fetching.require_same_classes({"classes": ["a", "b"]}, other)
        assert caught.value.exit_code == 4
    assert "has 2 classes ['a', 'b'], the dataset 3 ['a', 'b', 'c']" in str(caught.value)
    with pytest.raises(WorkspaceError, match=r"does not know 'rbc' \(is it 'RBC'\?\)\. To carry"):
        fetching.require_same_classes({"classes": ["RBC", "N/A"]}, ("rbc",))


def test_what_is_scored_has_the_checkpoints_labels_by_name(tmp_path, capfd):
    rows = {"train": [(1, 1, [2, 3, 20, 10]), (1, 3, [5, 5, 12, 20])], "val": [(1, 3, [5, 5, 12, 20])]}
    write_coco(tmp_path, {split: coco([(1, f"{split}.jpg")], boxes) for split, boxes in rows.items()})
    data = open_data(tmp_path)
    records = fetching.records_to_score({"classes": ["bird", "N/A", "dog"]}, data, "val")  # of cats there is no box
    assert records[0].labels.tolist() == [3]
    assert "lacks 1 of the checkpoint's 2 classes, left out of the scores: bird\n" in capfd.readouterr().err
    with pytest.raises(
        WorkspaceError, match=r"'train' of .* not know: 'cat' \(is it 'cats'\?\)\. It knows: cats, dog"
    ) as no:
        fetching.records_to_score({"classes": ["cats", "dog"]}, data, "train")
    assert no.value.exit_code == 4


def test_a_checkpoint_is_introduced_in_one_line():
    entry = {
        **{"run_id": "0123456789", "run_name": "calm-owl", "epoch": 3, "epochs": 12},
        **{"dataset": {"name": "bccd"}, "metrics": {"val/AP": 0.61234}},
    }
    expected = "run calm-owl (01234567), epoch 3 (4 of 12), trained on bccd, val/AP 0.6123"
    assert workspace.introduce(entry) == expected
    assert "step 7, in epoch 4" in workspace.introduce(entry | {"step": 7, "batches_done": 3})
    assert workspace.introduce({}) == "a checkpoint without a run"


def test_the_process_is_described_for_others():
    me = json.loads(json.dumps(whoami()))
    assert me["pid"] == os.getpid() and me["host"]


def test_copies_of_run_folders_and_damaged_ones_stop_no_command(home, small, capfd):
    run_id = train.main(replace(small, max_steps=1))
    folder = workspace.RunFolder(run_id)
    shutil.copytree(folder.path, folder.path.with_name(f"{run_id}.bak"))
    folder.update(state="running")
    (folder.path / "metric_names.json").write_text("")
    (folder.path / "journal.sent").unlink()
    (folder.path / "journal.sent").mkdir()
    workspace.settle(open_store())
    assert f"note: run {run_id} could not be settled" in capfd.readouterr().err
    assert [one.run_id for one in workspace.run_folders()] == [run_id]
    assert status.main(status.StatusConfig())["training"]["run_id"] == run_id
