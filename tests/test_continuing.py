"""train.py --resume FILE: ours goes on to the bit, others as far as they hold their state; and what is refused."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from torchvision.models import detection

import continuing
import train
import workspace
from config import TrainConfig
from models.checkpoint import load, save
from models.record import CheckpointError
from tests.conftest import SMALL, equal, history, last_checkpoint, open_store

MOBILE_320 = "fasterrcnn_mobilenet_v3_large_320_fpn"
SHAPES = ["circle", "square", "star", "triangle"]
LEFT_BEHIND = {"run_id", "run_name", "config", "best", "validations_since_best", "metrics"}  # they are another run's


def continued(file, **changes) -> str:
    config = continuing.configuration(file, TrainConfig())
    return train.main(replace(config, resume=str(file), **changes))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What torchvision's reference script writes after its epoch 7, and the model and optimizer it is of."""
    torch.manual_seed(0)
    model = getattr(detection, MOBILE_320)(weights=None, weights_backbone=None, num_classes=5)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.04, momentum=0.8, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 22])
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer.step()
    for _ in range(8):
        schedule.step()
    args = argparse.Namespace(
        **{"model": MOBILE_320, "lr": 0.04, "batch_size": 2, "world_size": 2, "epochs": 26, "weights": None},
        **{"lr_scheduler": "multisteplr", "lr_steps": [3, 22], "opt": "sgd", "data_path": "/datasets/coco"},
    )
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7, "args": args}
    path = tmp_path_factory.mktemp("reference") / "model_7.pth"
    torch.save(content | {"lr_scheduler": schedule.state_dict()}, path)
    return path, model, optimizer


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(SHAPES))
    return file


# -- ours


@pytest.mark.parametrize(
    "stopped_at",
    [pytest.param(3, id="in mid-epoch"), pytest.param(4, id="at an epoch's end", marks=pytest.mark.slow)],
)
def test_our_file_goes_on_in_a_new_run_as_if_nothing_had_happened(
    home, small, tmp_path, undisturbed, capfd, stopped_at
):
    whole = undisturbed(ema=0.9)
    first = train.main(replace(small, ema=0.9, max_steps=stopped_at, tag=("who=me",)))
    file = tmp_path / "from a colleague.pth"
    save(last_checkpoint(first), file)
    capfd.readouterr()
    second = continued(file, max_steps=8)
    assert second != first
    expected, found = whole.last, last_checkpoint(second)
    for key in expected.keys() - LEFT_BEHIND - {"tracking_uri"}:
        assert equal(expected[key], found[key]), key
    store = open_store()
    assert found["tracking_uri"] == store.uri
    steps = [step for step, _ in history(store, second, "train/loss")]
    assert steps == list(range(stopped_at + 1, 9))
    assert history(store, second, "train/loss") == history(whole.store, whole.run_id, "train/loss")[stopped_at:]
    tags = store.run(second).tags
    assert (tags["continued_from_run"], tags["continued_from"], tags["who"]) == (first, str(file), "me")
    said = capfd.readouterr().err
    assert "AdamW state of" in said and f"step {stopped_at} of 8" in said and "starts at the weights" not in said
    assert f"({first[:8]})" in said and "note: the data differ" not in said


@pytest.mark.slow
def test_a_file_without_training_state_says_what_it_does_not_hold(home, small, tmp_path, capfd):
    from models.checkpoint import without_training_state

    run_id = train.main(replace(small, ema=0.9, max_steps=4))
    file = tmp_path / "weights.pth"
    save(without_training_state(last_checkpoint(run_id)), file)
    second = continued(file, max_steps=5)
    said = capfd.readouterr().err
    assert "AdamW starts afresh, the file holds no state of one" in said
    assert "moving average: it starts at the weights of the file" in said
    assert last_checkpoint(second)["step"] == 5


@pytest.mark.slow
def test_flags_go_before_what_the_file_says_and_a_finished_one_needs_more_epochs(home, small, run_script, tmp_path):
    run_id = train.main(small)
    file = workspace.RunFolder(run_id).last.rename(tmp_path / "last.pth")
    process = run_script("train.py", "--resume", file)
    assert process.returncode == 2 and "raise --epochs" in process.stderr, process.stderr
    process = run_script("train.py", "--resume", file, "--epochs", "3", "--lr", "5e-4", "--run-name", "longer")
    assert process.returncode == 0, process.stderr
    saved = last_checkpoint(process.stdout.strip())
    assert (saved["run_name"], saved["epoch"], saved["step"], saved["config"]["lr"]) == ("longer", 2, 12, 5e-4)
    assert saved["scheduler_state_dict"]["base_lrs"] == [5e-4]
    # The new run goes on as any other does.
    process = run_script("train.py", "--resume", "longer", "--epochs", "4")
    assert process.returncode == 0 and last_checkpoint(process.stdout.strip())["epoch"] == 3, process.stderr


@pytest.mark.slow
def test_a_file_comes_before_a_run_of_its_name_and_other_classes_are_refused(home, small, run_script, monkeypatch):
    run_id = train.main(replace(small, run_name="small", max_steps=2))
    monkeypatch.chdir(home)
    (home / "small").write_text("not a checkpoint")
    process = run_script("train.py", "--resume", "small")
    assert process.returncode == 3 and "not-a-checkpoint" in process.stderr
    content = last_checkpoint(run_id) | {"classes": ["a", "b", "c", "d"]}
    save(content, home / "other.pth")
    process = run_script("train.py", "--resume", home / "other.pth", "--max-steps", "3")
    assert process.returncode == 4 and "has 4 classes ['a', 'b', 'c', 'd']" in process.stderr
    save(content | {"config": {"lr": "fast"}}, home / "other.pth")
    process = run_script("train.py", "--resume", home / "other.pth")
    assert process.returncode == 4 and "--weights" in process.stderr and len(process.stderr.splitlines()) == 1


# -- others'


def test_torchvisions_reference_form_brings_its_options(reference, names):
    config = continuing.configuration(reference[0], TrainConfig(model=MOBILE_320, resume="x", classes=str(names)))
    expected = {
        **{"model": MOBILE_320, "norm": "batch", "trainable_layers": 6, "optimizer": "sgd", "lr": 0.04},
        **{"momentum": 0.8, "weight_decay": 5e-4, "batch_size": 4, "epochs": 26, "milestones": (3, 22)},
        "schedule": "multistep",
    }
    assert {name: getattr(config, name) for name in expected} == expected


def parts(**changes):
    from building import build_model, optimization

    config = TrainConfig(
        **{
            "model": MOBILE_320,
            "norm": "batch",
            "trainable_layers": 6,
            "lr": 0.04,
            "warmup_steps": 5,
            "weights": "none",
        }
        | {"optimizer": "sgd", "weight_decay": 5e-4, "schedule": "multistep", "milestones": (3, 22)}
        | changes
    )
    model = build_model(config, SHAPES, None, fresh=False)[0]
    return model, *optimization(config, model, steps_per_epoch=10, total_steps=260)


def test_and_its_state(reference, names):
    path, model, optimizer = reference
    content = continuing.read(path, TrainConfig(model=MOBILE_320, resume="x", classes=str(names)))
    ours, our_optimizer, schedule = parts()
    length = {"steps_per_epoch": 10, "last_step": 260}
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    position, notes = continuing.restore(content, path, ours, our_optimizer, schedule, scaler, None, **length)
    assert (position.epoch, position.step, position.batches_done) == (7, 80, 0)
    assert equal(dict(ours.state_dict()), dict(model.state_dict()))
    assert equal(our_optimizer.state_dict()["state"], optimizer.state_dict()["state"])
    assert our_optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] == pytest.approx(0.004)
    our_optimizer.step()
    schedule.step()
    assert (schedule.last_epoch, our_optimizer.param_groups[0]["lr"]) == (81, pytest.approx(0.004))
    told = "\n".join(notes)
    for word in ("epoch 7 is done, step 80 of 260", "SGD state of", "another pipeline's is not taken over"):
        assert word in told


@pytest.mark.parametrize(
    ("changes", "state", "told"),
    [
        ({"trainable_layers": 3}, {}, "parameters, and"),
        ({"optimizer": "adamw"}, {}, "of another kind (momentum_buffer)"),
        ({}, {"optimizer_state_dict": None}, "holds no state"),
        ({}, {"optimizer_state_dict": {"state": 3, "param_groups": "x"}}, "not as PyTorch writes it"),
    ],
)
def test_an_optimizers_state_that_does_not_fit_is_left_out_and_said(reference, names, changes, state, told):
    content = continuing.read(reference[0], TrainConfig(model=MOBILE_320, resume="x", classes=str(names))) | state
    model, optimizer, schedule = parts(**changes)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    length = {"steps_per_epoch": 10, "last_step": 260}
    _, notes = continuing.restore(content, reference[0], model, optimizer, schedule, scaler, None, **length)
    assert told in "\n".join(notes) and not optimizer.state_dict()["state"]


@pytest.mark.slow
def test_a_plain_file_is_trained_on(home, reference, names, run_script, coco_folder, tmp_path):
    content = load(reference[0])
    file = tmp_path / "plain.pth"
    state = {f"module.{key}": value for key, value in content["model_state_dict"].items()}
    torch.save({"epoch": 1, "model_state_dict": state}, file)
    asked = ("--data", coco_folder, "--image-min-size", "96", "--image-max-size", "128", "--device", "cpu")
    process = run_script("train.py", "--resume", file, *asked, "--workers", "0")
    assert process.returncode == 2 and "--model" in process.stderr and "--classes" in process.stderr, process.stderr
    given = ("--model", MOBILE_320, "--classes", names, "--epochs", "3", "--max-steps", "5", "--workers", "0")
    process = run_script("train.py", "--resume", file, *asked, *given)
    assert process.returncode == 0, process.stderr
    saved = last_checkpoint(process.stdout.strip())
    assert (saved["epoch"], saved["step"], saved["classes"]) == (1, 5, SHAPES)
    assert "SGD starts afresh, the file holds no state of one" in process.stderr
    assert "from the first" not in process.stderr
    kept = json.loads((workspace.RUNS / saved["run_id"] / "run.json").read_text())
    assert kept["config"]["norm"] == "batch"


def test_classes_without_a_file_are_refused(run_script, names):
    process = run_script("train.py", "--classes", names, *SMALL)
    assert process.returncode == 2 and "--classes names" in process.stderr


def test_options_of_nonsense_are_told_as_the_files(reference, names, tmp_path):
    content = load(reference[0])
    torch.save(content | {"args": argparse.Namespace(epochs=-3, lr_steps="no", lr_scheduler=[7])}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth was trained by options that are none of ours: --epochs"):
        continuing.configuration(tmp_path / "odd.pth", TrainConfig(model=MOBILE_320, resume="x", classes=str(names)))
