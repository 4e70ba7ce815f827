"""What --keep keeps, and what the forecast says of it."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

import disk
import prepare
import rehearsal
import resuming
import workspace
from disk import Budget, Forecast, OverBudget, in_words, is_full
from models.checkpoint import save
from retention import newest_and_best, parse_keep
from tracking.errors import StoreError, StoreFull
from tracking.journal import Queued
from workspace import RunFolder

EPOCHS = tuple(f"epoch-{number:03d}" for number in range(10))
MB = 1_000_000


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", EPOCHS),
        ("best", ("epoch-003", "epoch-009")),  # what is told to stay: the best, the newest
        ("best,last", ("epoch-003", "epoch-009")),
        ("every:5", ("epoch-003", "epoch-004", "epoch-009")),
        ("last,every:4,best", ("epoch-003", "epoch-007", "epoch-009")),
        ("every:1", EPOCHS),
    ],
)
def test_what_is_superseded(keep, kept):
    steps = {name: Queued(step, 1) for step, name in enumerate(EPOCHS)}
    stay = newest_and_best(steps, {"name": "epoch-003"})
    assert [name for name in EPOCHS if name not in parse_keep(keep).superseded(EPOCHS, stay=stay)] == list(kept)


def test_a_checkpoint_in_mid_epoch_is_no_epochs():
    assert parse_keep("every:1").superseded(["step-000004", "epoch-000"], stay=()) == ["step-000004"]
    assert newest_and_best({}, None) == set()


@pytest.mark.parametrize(
    "text", ["", "none", "all,best", "best,", "every:0", "every:x", "every:2,every:3", "best,best,x"]
)
def test_a_keep_that_says_nothing_is_told(text):
    with pytest.raises(ValueError, match="--keep takes all, or best, last and every:N"):
        parse_keep(text)


def forecast(**changes) -> Forecast:
    facts = {"checkpoint_bytes": 10 * MB, "names": EPOCHS, "keep": "all", "publishes": True}
    return Forecast(**facts | {"artifact_root": workspace.ROOT / "mlartifacts"} | changes)


@pytest.mark.parametrize(
    ("changes", "files"),
    [
        ({}, 9 + 3 + 1),  # nine in the store, last.pth, recovery point and the next one, models/faster_rcnn
        ({"publishes": False}, 9 + 3),
        ({"names": EPOCHS[:1]}, 3 + 1),
        ({"names": ()}, 0),
        ({"keep": "best,last"}, 2 + 3 + 1),
        ({"keep": "every:5"}, 4 + 3 + 1),
        ({"artifact_root": None}, 4 + 1),  # a server has them; one waits in the outbox
        ({"artifact_root": Path("/dev/shm/nowhere")}, 4 + 1 + 10),  # another disk: nothing is shared
    ],
)
def test_the_space_a_run_needs(home, changes, files):
    assert forecast(**changes).bytes() == files * 10 * MB


def test_too_little_space_is_told_with_numbers_and_what_to_do(home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: usage(0, 0, 100 * MB))
    said = forecast().shortage()
    assert "10 checkpoints of 10 MB need 130 MB at the peak" in said
    assert f"{home} has 100 MB free" in said and "--keep best,last needs 60 MB" in said
    assert forecast(keep="best,last").shortage() is None
    assert forecast().over(130 * MB, 0) is None
    assert "--keep best,last,every:5 would fit, with 80 MB" in forecast().over(85 * MB, 0)
    assert "beside 40 MB that the run has already" in forecast().over(85 * MB, 40 * MB)
    assert "Even --keep best,last needs 100 MB" in forecast().over(85 * MB, 40 * MB)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "ema": 0.9}, {"optimizer": "sgd", "momentum": 0.0}])
def test_the_forecast_size_is_that_of_the_file(home, small, changes):
    job = prepare.prepare(resuming.choose(replace(small, dry_run=True, **changes)))
    rehearsal.time_step(job, rehearsal.largest_batch(job))
    save(prepare.snapshot(job), home / "one.pth")
    assert job.forecast.checkpoint_bytes == pytest.approx((home / "one.pth").stat().st_size, rel=0.02)


def test_a_budget_counts_each_checkpoint_once(home):
    folder = RunFolder("a" * 32)
    folder.path.mkdir(parents=True)
    (folder.path / "journal.jsonl").write_bytes(b"x" * 100)
    folder.last.write_bytes(b"x" * 1000)
    place = folder.path / "outbox" / "one" / "checkpoint.pth"
    place.parent.mkdir(parents=True)
    place.hardlink_to(folder.last)
    kept = {"epoch-000": Queued(1, 1000), "epoch-001": Queued(2, 1000)}
    facts = {"folder": folder, "checkpoint_bytes": 1000}
    here, away = (Budget(limit=3000, artifacts=artifacts, **facts) for artifacts in (home / "artifacts", None))
    assert (here.used(kept), away.used(kept)) == (2100, 1100)
    with pytest.raises(OverBudget, match="The run uses 0 MB") as caught:
        here.require_room(kept)
    assert is_full(caught.value)
    away.require_room(kept)
    (home / "artifacts").mkdir()
    folder.last.unlink()
    folder.last.write_bytes(b"y" * 1000)  # of mid-epoch, and the recovery point in the store
    (home / "artifacts" / "last.pth").hardlink_to(folder.last)
    assert (here.used(kept), away.used(kept)) == (3100, 2100)
    Budget(limit=None, artifacts=None, **facts).require_room(kept)


def test_a_full_disk_is_known_by_what_it_came_from():
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("torch") from error
    except RuntimeError as error:
        assert is_full(error)
    assert is_full(StoreFull("x")) and not is_full(StoreError("x")) and not is_full(OSError(2, "x"))
    assert in_words(2.5e9) == "2.5 GB"
