"""Where a resumed run continues: its recovery point on another machine, options that are allowed to change."""

import os
import shutil
import signal
from dataclasses import replace

import pytest

import config as options
import train
import workspace
from live_run import LiveRun, Stopped
from tests.conftest import equal, history, last_checkpoint, open_store
from tracking.recovery import recovery_point

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

STATE = (
    *("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict"),
    *("epoch", "step", "batches_done", "metrics", "best"),
)


def artifacts(run_id: str, folder: str) -> list[str]:
    return [entry.path for entry in open_store().client.list_artifacts(run_id, folder)]


@pytest.mark.parametrize("how", ["signal", "death"])
def test_a_run_resumes_in_mid_epoch_on_another_machine(home, small, monkeypatch, capfd, how):
    """Without runs/: the recovery point that it left in the store is all there is beside the epochs' checkpoints."""
    config = replace(small, augmentation="standard")
    whole = train.main(config)
    real, at_step = LiveRun.at, 6 if how == "signal" else 7

    def at(run, **position):
        real(run, **position)
        if position["step"] == at_step:
            if how == "death":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises((Stopped, KeyboardInterrupt)) as caught:
        patched.setattr(LiveRun, "at", at)
        train.main(replace(config, run_name="part", checkpoint_every="3"))
    if how == "signal":
        assert caught.value.exit_code == 143
    store = open_store()
    part = store.find_run("part")
    assert recovery_point(store.run(part).tags)["step"] == 6
    assert artifacts(part, "recovery") == ["recovery/last.pth"]
    shutil.rmtree(workspace.RunFolder(part).path)
    capfd.readouterr()
    assert train.main(replace(config, run_name="part", resume="auto")) == part
    assert f"resuming run {part} in epoch 1, step 6, from the recovery point in MLflow" in capfd.readouterr().err
    first, second = last_checkpoint(whole), last_checkpoint(part)
    assert [key for key in STATE if not equal(first[key], second[key])] == []
    for key in ("train/loss", "train/lr", "val/AP", "epoch"):
        assert history(store, whole, key) == history(store, part, key)
    assert artifacts(part, "recovery") == []  # the last checkpoint says more
    assert store.run(part).status == "FINISHED"


def test_a_damaged_recovery_point_gives_way_to_the_last_checkpoint(home, small, capfd):
    run_id = train.main(replace(small, max_steps=4))
    store = open_store()
    store.client.set_tag(run_id, "recovery", '{"step": 6, "sha256": "0"}')
    shutil.rmtree(workspace.RunFolder(run_id).path)
    train.main(replace(small, resume=run_id, max_steps=5))
    errors = capfd.readouterr().err
    assert "The recovery point of run" in errors and "is gone from the store" in errors
    assert "step 4, from epoch-000 in MLflow" in errors


def test_a_changed_option_bends_the_run_and_is_recorded(home, small, capfd):
    run_id = train.main(replace(small, max_steps=4))
    with pytest.raises(options.ConfigError, match="--allow-change lr"):
        train.main(replace(small, resume=run_id, lr=5e-4, max_steps=8))
    bending = replace(small, resume=run_id, lr=5e-4, weight_decay=0.5, max_steps=8)
    train.main(replace(bending, allow_change=("lr", "weight-decay")))
    assert "note: --max-steps 4 → 8, --lr 0.001 → 0.0005, --weight-decay 0.05 → 0.5" in capfd.readouterr().err
    store, whole = open_store(), train.main(small)
    bent, straight = dict(history(store, run_id, "train/lr")), dict(history(store, whole, "train/lr"))
    assert [bent[step] for step in (1, 4)] == [straight[step] for step in (1, 4)]
    assert [bent[step] for step in (5, 8)] == pytest.approx([straight[step] / 2 for step in (5, 8)])
    assert last_checkpoint(run_id)["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 0.5
    assert "lr 0.001 → 0.0005" in store.run(run_id).tags["changed_at_step_000004"]
    assert store.read_json(run_id, "run.json")["config"]["lr"] == 5e-4
    assert train.main(replace(bending, max_steps=None)) == run_id  # these are its options now
