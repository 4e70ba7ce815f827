"""Experiments in series: one line that starts, continues or is done; repeating a run; rehearsing one."""

import gc
import json
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import train
import workspace
from commandline import ConfigError
from config import TrainConfig
from data.generated import generated_data, write_coco
from defaults import resolved, to_repeat
from tests.conftest import SMALL, copy_of_repository, equal, last_checkpoint, open_store
from tracking.records import last_word
from workspace import WorkspaceError


def run_ids() -> list[str]:
    return [run.run_id for run in open_store().newest_runs(20)]


def test_resume_auto_starts_a_run_continues_it_and_is_done(home, small, capfd):
    line = replace(small, run_name="lr1-seed0", resume="auto", group="lr1")
    run_id = train.main(replace(line, max_steps=3))
    assert train.main(line) == run_id
    assert last_checkpoint(run_id)["step"] == 8
    whole = last_checkpoint(run_id)
    capfd.readouterr()
    assert train.main(line) == run_id
    assert "is finished" in capfd.readouterr().err
    assert equal(last_checkpoint(run_id)["model_state_dict"], whole["model_state_dict"])
    assert run_ids() == [run_id]
    assert open_store().run(run_id).tags["group"] == "lr1"


def test_resume_auto_looks_in_its_own_experiment_and_passes_over_what_saved_nothing(home, small, monkeypatch):
    monkeypatch.setattr("resuming.WATCH_SECONDS", 1.0)
    line = replace(small, run_name="a", resume="auto", max_steps=1)
    first = train.main(line)
    assert train.main(replace(line, experiment="other")) != first
    open_store().create_run(small.experiment, "a")  # died at once
    assert train.main(line) == first
    open_store().client.delete_run(first)
    assert train.main(line) != first


def test_resume_auto_needs_a_name_and_keeps_the_configuration(home, small):
    with pytest.raises(ConfigError, match="--run-name"):
        replace(small, resume="auto")
    line = replace(small, run_name="a", resume="auto", max_steps=1)
    train.main(line)
    with pytest.raises(ConfigError, match="--lr "):
        train.main(replace(line, lr=0.5))


def test_a_finished_run_is_done_before_its_data_are_read_and_delivers_what_was_held_back(home, small, tmp_path, capfd):
    data = shutil.copytree(small.data, tmp_path / "copy")
    line = replace(small, data=str(data), run_name="a", resume="auto", max_steps=1)
    run_id = train.main(line)
    shutil.rmtree(data)
    workspace.RunFolder(run_id).path.joinpath("journal.sent").unlink()  # the server was away at the end
    open_store().client.delete_tag(run_id, "hardware")
    assert train.main(line) == train.main(replace(small, data=str(data), max_steps=1, resume=run_id)) == run_id
    assert "hardware" in open_store().run(run_id).tags
    assert f"{run_id} (a) is finished" in train.main(replace(line, dry_run=True))
    with pytest.raises(ValueError, match="no data at"):
        train.main(replace(line, max_steps=2))
    shutil.rmtree(home / "runs" / run_id)  # trained on another machine
    capfd.readouterr()
    assert train.main(line) == run_id
    assert "--max-steps (it was 1)" in capfd.readouterr().err
    assert not (home / "runs" / run_id).exists()


def test_a_run_that_failed_goes_on_where_it_saved_and_keeps_its_group_and_tags(home, small, monkeypatch):
    line = replace(small, run_name="a", resume="auto", group="g", tag=("first=1", "who=me"))
    run_id = train.main(replace(line, max_steps=1))
    # After an epoch's last step, and before the first step of the process that goes on from there.
    for broken, epoch in (("train.validate_and_save", -1), ("provenance.log_beginning", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(broken, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train.main(line)
        run = open_store().run(run_id)
        said = last_word(run.tags)
        assert (run.status, run.tags["resumable"], said["best"]["name"]) == ("FAILED", "true", "step-000001")
        assert (said["epoch"], said["step"]) == (epoch, 4)
    assert train.main(replace(line, group=None, tag=("who=you",))) == run_id
    run, config = open_store().run(run_id), workspace.RunFolder(run_id).state()["config"]
    assert (run.status, run.tags["resumable"], run.tags["ended_by"]) == ("FINISHED", "false", "its last step")
    assert (run.tags["group"], run.tags["first"], run.tags["who"]) == ("g", "1", "you")
    assert (config["group"], config["tag"]) == ("g", ["first=1", "who=me", "who=you"])


def test_a_name_is_trained_by_one_process_at_a_time(home, small):
    line = replace(small, run_name="a", resume="auto", max_steps=1)
    with workspace.name_taken("a", line.experiment, open_store().uri):
        with pytest.raises(WorkspaceError, match="is training now") as caught:
            train.main(line)
        assert caught.value.exit_code == 2 and run_ids() == []
        train.main(replace(line, run_name="b"))
    run_id = train.main(line)
    with workspace.RunFolder(run_id).locked(), pytest.raises(WorkspaceError, match="is training now"):
        train.main(replace(line, max_steps=2))


@pytest.mark.parametrize("heart", ["beats", "is still", pytest.param("stopped long ago", marks=pytest.mark.slow)])
def test_a_run_that_another_machine_trains_is_left_alone_until_its_heart_stops(home, small, monkeypatch, capfd, heart):
    line = replace(small, run_name="a", resume="auto")
    run_id = train.main(replace(line, max_steps=4))
    shutil.rmtree(home / "runs" / run_id)
    store, now = open_store(), int(1000 * time.time())

    def beat(at: int) -> None:
        store.client.set_tag(run_id, "heartbeat", json.dumps({"time": at, "host": "node7", "pid": 5, "step": 4}))

    beat(now if heart != "stopped long ago" else now - 3_600_000)
    store.client.update_run(run_id, status="RUNNING")
    monkeypatch.setattr("resuming.WATCH_SECONDS", 2.0)
    if heart == "beats":
        timer = threading.Timer(0.5, beat, [now + 30_000])
        timer.start()
        with pytest.raises(WorkspaceError, match=r"training now on node7 \(process 5\)") as caught:
            train.main(line)
        timer.join()
        assert caught.value.exit_code == 2
        return
    assert train.main(line) == run_id
    assert last_checkpoint(run_id)["step"] == 8
    assert ("whether it still does" in capfd.readouterr().err) == (heart == "is still")


def test_a_run_goes_on_with_its_data_at_another_place_but_not_with_others(home, small, tmp_path):
    run_id = train.main(replace(small, max_steps=1))
    moved = shutil.copytree(small.data, tmp_path / "moved" / "shapes")
    assert train.main(replace(small, max_steps=2, resume=run_id, data=str(moved))) == run_id
    others = tmp_path / "others"
    write_coco(generated_data(train=8, val=5, test=4, size=(96, 128), seed=3), others)
    with pytest.raises(ConfigError, match=r"--data .* differ"):
        train.main(replace(small, max_steps=3, resume=run_id, data=str(others)))


@pytest.mark.slow
def test_runs_in_one_process_leave_no_thread_file_or_signal_handler(home, small, monkeypatch):
    monkeypatch.setattr("tracking.pulse.SAMPLE_SECONDS", 0.05)  # what a run of some minutes does
    # MLflow's pool keeps as many connections (5 at most) as threads have ever wanted at once: a matter of chance
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")

    def held() -> tuple[int, list[str], list]:
        gc.collect()
        handlers = [signal.getsignal(number) for number in train.EXIT_CODES]
        files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return threading.active_count(), files, handlers

    train.main(replace(small, max_steps=1))  # libraries keep what they open first
    before = held()
    for seed in range(1, 4):
        train.main(replace(small, max_steps=1, seed=seed))
    threads, files, handlers = held()
    assert (threads, handlers) == (before[0], before[2])
    assert len(files) <= len(before[1]), Counter(files) - Counter(before[1])


def test_a_run_repeated_from_its_record_has_the_same_weights(home, small, capfd):
    first = train.main(replace(small, max_steps=1, run_name="first"))
    weights = last_checkpoint(first)["model_state_dict"]
    for copy_of_runs in (False, True):
        if copy_of_runs:  # on another machine, only MLflow knows the run
            shutil.rmtree(home / "runs" / first)
        config = train.configuration("first")
        assert (config.from_run, config.run_name, config.max_steps) == (first, None, 1)
        again = train.main(config)
        assert again != first
        assert equal(last_checkpoint(again)["model_state_dict"], weights)
        assert open_store().run(again).params["from_run"] == first
        assert f"repeating run {first}\n" in capfd.readouterr().err


def test_what_was_left_open_follows_the_flags_and_what_was_given_stays(coco_folder):
    stored, chosen = resolved(TrainConfig(data=str(coco_folder), weight_decay=0.001), cores=2)
    assert stored.lr == 0.005
    again = to_repeat(stored, sorted(chosen), cores=2)
    now = resolved(replace(again, batch_size=8, accumulate=2, epochs=12), cores=2)[0]
    assert (now.lr, now.milestones, now.weight_decay) == (0.02, (8, 11), 0.001)
    assert resolved(again, cores=2)[0] == stored
    given = to_repeat(replace(stored, lr=0.004), sorted({*chosen} - {"lr"}), cores=2)
    assert resolved(replace(given, batch_size=8), cores=2)[0].lr == 0.004


def test_a_default_that_has_changed_since_is_kept_as_it_was(coco_folder):
    stored, chosen = resolved(TrainConfig(data=str(coco_folder)), cores=2)
    older = replace(stored, lr=0.0123)  # of a version with another rule
    assert to_repeat(older, sorted(chosen), cores=2).lr == 0.0123


def test_from_run_says_what_differs_and_strict_refuses(home, small, tmp_path, capfd):
    first = train.main(replace(small, max_steps=1))
    other = tmp_path / "shapes"
    write_coco(generated_data(train=8, val=5, test=4, size=(96, 128), seed=3), other)
    capfd.readouterr()
    train.main(replace(train.configuration(first), data=str(other), lr=0.002))
    said = capfd.readouterr().err
    assert "--lr 0.001 → 0.002" in said
    assert "the data differ" in said
    with pytest.raises(WorkspaceError, match=r"--strict: .*\n.*the data differ") as caught:
        train.main(replace(train.configuration(first), data=str(other), strict=True))
    assert caught.value.exit_code == 2
    assert "1 steps" in train.main(replace(train.configuration(first), strict=True, dry_run=True))


def test_from_run_on_the_command_line_takes_flags_over_the_runs_own(home, small, monkeypatch):
    first = train.main(replace(small, max_steps=1, seed=3, tag=("a=b",)))
    monkeypatch.setattr("sys.argv", ["train.py", "--from-run", first[:8], "--seed", "0", "--max-steps", "2"])
    config = train.read()
    assert (config.seed, config.max_steps, config.lr, config.model) == (0, 2, small.lr, small.model)
    monkeypatch.setattr("sys.argv", ["train.py", "--from-run", first, "--resume", first])
    with pytest.raises(ConfigError, match="choose one"):
        train.read()
    monkeypatch.setattr("sys.argv", ["train.py", "--strict"])
    with pytest.raises(ConfigError, match="--from-run"):
        train.read()


def test_a_dry_run_tells_the_cost_and_leaves_nothing(home, small, capfd):
    config = replace(small, dry_run=True, accumulate=2, multi_scale=(64,))
    summary = train.main(config)
    rows = dict(line.split(maxsplit=1) for line in summary.splitlines())
    assert rows["run"] == "4 steps of 2 × 2 images, 2 an epoch"
    assert rows["model"].startswith("timm/test_resnet, ")
    assert rows["disk"].startswith("2 checkpoints of ")
    assert run_ids() == []
    assert list((home / "runs").iterdir()) == []
    assert not workspace.PUBLISHED.exists()
    assert "largest batch" in rows["step"]


def test_a_dry_run_finds_a_disk_that_is_too_small_and_wrong_data(home, small, monkeypatch, tmp_path):
    usage = shutil.disk_usage(home)
    monkeypatch.setattr("rehearsal.shutil.disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(WorkspaceError, match="2 checkpoints of") as caught:
        train.main(replace(small, dry_run=True))
    assert caught.value.exit_code == 5
    with pytest.raises(ValueError, match="no data at"):
        train.main(replace(small, dry_run=True, data=str(tmp_path / "nothing")))


def test_a_dry_run_of_a_stopped_run_leaves_it_as_it_was(home, small):
    run_id = train.main(replace(small, max_steps=2))
    before = (workspace.RunFolder(run_id).state(), workspace.RunFolder(run_id).last.read_bytes())
    summary = train.main(replace(small, resume=run_id, max_steps=8, dry_run=True))
    assert "6 steps of 2 images" in summary
    assert (workspace.RunFolder(run_id).state(), workspace.RunFolder(run_id).last.read_bytes()) == before


@pytest.mark.slow  # four processes import torch and mlflow at once
def test_trainings_at_once_in_one_checkout_all_run(tmp_path):
    import subprocess
    import sys

    folder = copy_of_repository(tmp_path / "repository")
    line = [sys.executable, str(folder / "train.py"), "--data", "generated", *SMALL, "--max-steps", "3"]
    line += ["--resume", "auto", "--run-name"]
    started = [
        subprocess.Popen([*line, f"at-once-{name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for name in "0120"
    ]
    finished = [process.communicate(timeout=500) for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 0, 0, 2], [errors.decode()[-500:] for _, errors in finished]
    _, refused = finished.pop(codes.index(2))
    assert "'at-once-0'" in refused.decode() and "is training now" in refused.decode()
    from tracking.store import open_store as open_any

    store = open_any(folder, f"sqlite:///{folder}/mlflow.db")
    for out, _ in finished:
        run_id = out.decode().strip()
        assert store.run(run_id).status == "FINISHED"
        assert [one.step for one in store.checkpoints(run_id)] == [3]


def test_a_run_that_starts_from_anothers_weights_has_its_model(home, small, capfd):
    first = train.main(replace(small, max_steps=1))
    open_model = dict.fromkeys(("model", "anchor_sizes", "fpn_channels", "image_min_size", "image_max_size"))
    left_open = replace(small, **open_model, max_steps=1)
    for word in (first, str(workspace.RunFolder(first).last)):
        capfd.readouterr()
        second = train.main(replace(left_open, weights=word))
        said = capfd.readouterr().err
        assert "classes carried over: circle, square, star, triangle" in said and "stay as they were" not in said
        built = [workspace.RunFolder(run_id).state()["architecture"] for run_id in (first, second)]
        assert built[0]["kwargs"] == built[1]["kwargs"] | {"norm": built[0]["kwargs"]["norm"]}


@pytest.mark.slow
def test_other_epochs_on_resuming_are_told_and_recorded(home, small, capfd):
    run_id = train.main(replace(small, max_steps=1))
    train.main(replace(small, resume=run_id, epochs=3, max_steps=2))
    said = "note: --epochs 2 → 3, --max-steps 1 → 2, which the learning rate's schedule follows from here on"
    assert said in capfd.readouterr().err
    text = open_store().client.download_artifacts(run_id, "code/resumed-at-step-000001.txt")
    assert said in Path(text).read_text(encoding="utf-8")
