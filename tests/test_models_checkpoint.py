"""Checkpoints on disk: plain data only, whole or not at all, and every known form read into ours."""

import argparse
import builtins
import collections
import hashlib
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import load, plain, save, unwrapped
from models.record import FORMAT, CheckpointError, inspect


def content(**more) -> dict:
    torch.manual_seed(0)
    return {
        "format": FORMAT,
        "run_id": "run-a",
        "epoch": 2,
        "step": 30,
        "model_state_dict": {"weight": torch.randn(8, 8), "count": torch.tensor(3)},
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(3.0), "buffer": None}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}],
        },
    } | more


def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def assert_refused(path: Path, exit_code: int, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert caught.value.exit_code == exit_code, message
    assert len(message.splitlines()) == 1
    for word in (str(path), *words):
        assert word in message


def test_save_returns_the_files_own_sha256_and_load_gives_the_same_back(tmp_path):
    path = tmp_path / "last.pth"
    saved = content()
    sha256 = save(saved, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    back = load(path)
    assert torch.equal(back["model_state_dict"]["weight"], saved["model_state_dict"]["weight"])
    assert back["optimizer_state_dict"]["param_groups"] == [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0]}]
    assert {key: back[key] for key in ("format", "run_id", "epoch", "step")} == {
        **{"format": FORMAT, "run_id": "run-a"},
        **{"epoch": 2, "step": 30},
    }
    assert sorted(torch.load(path, weights_only=True)) == sorted(saved)


def test_equal_content_gives_equal_bytes(tmp_path):
    assert save(content(), tmp_path / "one.pth") == save(content(), tmp_path / "two.pth")


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, when):
    path = tmp_path / "last.pth"
    sha256 = save(content(), path)
    if when == "in the middle":

        def full_disk(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
    bad = content(epoch=3) if when == "in the middle" else content(note=np.arange(3))
    with pytest.raises((OSError, TypeError)):
        save(bad, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *[(np.float64(0.5), "float64"), (np.float32(0.5), "float32"), (np.int64(3), "int64"), (np.str_("a"), "str_")],
        *[(np.arange(3), "ndarray"), (argparse.Namespace(lr=1), "Namespace"), (Path("a"), "Path"), ({1, 2}, "set")],
        *[(signal.SIGINT, "Signals"), (len, "builtin_function"), (torch.float16, "dtype")],
    ],
)
def test_what_is_not_plain_is_refused_by_the_name_of_its_key(value, kind):
    with pytest.raises(TypeError, match=rf"^checkpoint\.best\.list\[1\] is a .*{kind}"):
        plain({"epoch": 1, "best": {"list": [0, value]}})


def test_keys_must_be_plain_too():
    with pytest.raises(TypeError, match=r"checkpoint\.best: the key .* is a int64"):
        plain({"best": {np.int64(3): 1}})


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(value=PLAIN)
def test_whatever_is_accepted_can_be_loaded_again(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "property.pth"
    save({"model_state_dict": {"w": torch.zeros(1)}, "value": value}, path)
    assert load(path)["value"] == value
    assert inspect(path).state == "ready"


def test_parameters_are_saved_as_plain_tensors():
    kept = plain({"w": torch.nn.Parameter(torch.ones(2))})["w"]
    assert type(kept) is torch.Tensor and not kept.requires_grad


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("form", ["bare", "plain three keys", "torchvision's reference"])
def test_known_forms_are_read_into_ours(tmp_path, form, prefix):
    model = module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    state = collections.OrderedDict((prefix + key, value) for key, value in model.state_dict().items())
    state._metadata = model.state_dict()._metadata
    args = argparse.Namespace(lr=0.02, data_path="/data", aspect_ratio_group_factor=3, lr_steps=[16, 22])
    given_form = {
        "bare": state,
        "plain three keys": {"epoch": 5, "model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()},
        "torchvision's reference": {
            **{"model": state, "optimizer": optimizer.state_dict(), "epoch": 5},
            **{"lr_scheduler": schedule.state_dict(), "args": args},
        },
    }[form]
    path = tmp_path / "model.pth"
    torch.save(given_form, path)
    assert (inspect(path).state, inspect(path).detail) == ("ready", "")
    read = load(path)
    module().load_state_dict(read["model_state_dict"])
    assert list(read["model_state_dict"]) == list(model.state_dict())
    if form != "bare":
        assert read["epoch"] == 5
        optimizer.load_state_dict(read["optimizer_state_dict"])
    if "reference" in form:
        schedule.load_state_dict(read["scheduler_state_dict"])
        assert not {"model", "optimizer", "lr_scheduler"} & set(read)
        assert read["args"] == vars(args)


def test_a_prefix_that_only_some_keys_have_is_part_of_their_names():
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(unwrapped(state)) == ["module.a", "b"]
    assert unwrapped({}) == {}


def test_pytorchs_old_format_is_still_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(module().state_dict(), path, _use_new_zipfile_serialization=False)
    assert list(load(path)["model_state_dict"]) == list(module().state_dict())


def test_no_file_is_exit_1_and_says_where_to_look(tmp_path):
    assert_refused(tmp_path / "checkpoint.pth", 2, "status.py")


def test_damaged_files_are_exit_3(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.touch()
    assert_refused(path, 3, "empty")
    save(content(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert_refused(path, 3, "truncated")
    path.write_text("no torch file")
    assert_refused(path, 3)
    path.unlink()
    path.mkdir()
    assert_refused(path, 3, "folder")


def test_a_flipped_bit_in_a_weight_is_refused_though_torch_would_load_it(tmp_path):
    path = tmp_path / "checkpoint.pth"
    saved = content()
    save(saved, path)
    flipped(path, path.read_bytes().index(saved["model_state_dict"]["weight"].numpy().tobytes()) + 40)
    torch.load(path, weights_only=True)  # compares no checksum
    assert_refused(path, 3, "corrupt", "checksum")


@settings(max_examples=120)
@given(data=st.data())
def test_damage_is_a_checkpoint_error_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    saved = content()
    save(saved, path)
    flipped(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    try:
        read = load(path)
    except CheckpointError as error:
        assert error.exit_code in (3, 4)
        assert len(str(error).splitlines()) == 1
    else:  # in padding or a date
        for key, value in saved["model_state_dict"].items():
            assert torch.equal(read["model_state_dict"][key], value)


def test_files_without_weights_are_exit_3(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for other in ([1, 2], {}, {"epoch": 3}, {"model_state_dict": 3}, {"model_state_dict": {3: torch.zeros(1)}}):
        torch.save(other, path)
        assert_refused(path, 3)


def test_a_newer_format_is_exit_4(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save(content(format=FORMAT + 1), path)
    assert_refused(path, 4, "git pull")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("kind", ["os.system", "exec"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, kind, old_format):
    mark, path = tmp_path / "it-ran", tmp_path / "checkpoint.pth"
    evil = {
        "os.system": Calls(os.system, f"touch '{mark}'"),
        "exec": Calls(builtins.exec, f"open({str(mark)!r}, 'w').close()"),
    }[kind]
    torch.save(content(note=evil), path, _use_new_zipfile_serialization=not old_format)
    assert_refused(path, 3)
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(module(), path)
    assert_refused(path, 3)


def test_a_full_disk_is_an_os_error_and_the_old_file_stays(tmp_path):
    """The kernel refuses what passes this process's limit of a file's size, as it does on a full disk or quota."""
    path = tmp_path / "last.pth"
    save({"w": torch.zeros(10)}, path)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            save({"w": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
