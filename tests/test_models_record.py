"""What lies at a checkpoint's path: every state told apart, damage never called ready, no code of a file run."""

import builtins
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import status
from models import record
from models.checkpoint import save
from models.record import CheckpointError, inspect, put, read_record, record_path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "roi_heads.box_predictor.cls_score.weight"


def content(run_id: str = "run-a", step: int = 30, classes: int = 2, **more) -> dict:
    torch.manual_seed(step)
    return {
        "format": 1,
        "run_id": run_id,
        "epoch": 2,
        "step": step,
        "classes": [f"class {i}" for i in range(classes)],
        "metrics": {"val/AP": 0.5},
        "model_state_dict": {HEAD: torch.randn(3, 4), "backbone.weight": torch.arange(5.0)},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
    } | more


def entry_of(checkpoint: dict, sha256: str, **more) -> dict:
    return record.describe(checkpoint) | {"sha256": sha256, "role": "best"} | more


def placed(folder: Path, checkpoint: dict) -> Path:
    """A checkpoint with its record, as training publishes it."""
    source = folder / "source.pth"
    sha256 = save(checkpoint, source)
    path = folder / "published" / "checkpoint.pth"
    put(source, path, entry_of(checkpoint, sha256), move=True)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[bytes, bytes]:
    """The bytes of a small checkpoint and of its record."""
    path = placed(tmp_path_factory.mktemp("small"), content())
    return path.read_bytes(), record_path(path).read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One path for all examples of a property."""
    return tmp_path_factory.mktemp("place") / "checkpoint.pth"


def test_a_good_file_is_ready_with_and_without_its_record(tmp_path):
    path = placed(tmp_path, content())
    with_record = inspect(path)
    assert (with_record.state, with_record.exit_code, with_record.entry["role"]) == ("ready", 0, "best")
    assert inspect(path, verify=True) == with_record
    record_path(path).unlink()
    without = inspect(path)
    assert (without.state, without.detail) == ("ready", "")
    same = ("run_id", "step", "epoch", "classes", "metrics", "resumable", "sha256", "size_bytes")
    assert {key: without.entry[key] for key in same} == {key: with_record.entry[key] for key in same}
    assert without.entry["resumable"] is True


def test_states_without_a_checkpoint(tmp_path):
    def state(path: Path) -> tuple[str, int]:
        verdict = inspect(path)
        assert verdict.detail
        return verdict.state, verdict.exit_code

    path = tmp_path / "checkpoint.pth"
    assert state(path) == ("absent", 1)
    path.touch()
    assert state(path) == ("empty", 3)
    path.write_text("these are not the weights you are looking for\n")
    assert state(path) == ("not-a-checkpoint", 3)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a zip")
    assert state(path) == ("not-a-checkpoint", 3)
    torch.save(content(), path, _use_new_zipfile_serialization=False)
    assert state(path) == ("not-a-checkpoint", 3)
    torch.save({"epoch": 3, "metrics": {}}, path)
    assert state(path) == ("not-a-checkpoint", 3)
    torch.save([1, 2], path)
    assert state(path) == ("not-a-checkpoint", 3)
    assert state(tmp_path) == ("not-a-checkpoint", 3)
    assert state(path / "below") == ("not-a-checkpoint", 3)  # a file where a folder should be
    fifo = tmp_path / "fifo.pth"
    os.mkfifo(fifo)
    assert state(fifo) == ("not-a-checkpoint", 3)


def test_a_dangling_link_is_absent(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.symlink_to(tmp_path / "gone.pth")
    assert inspect(path).state == "absent"


@settings(max_examples=60)
@given(data=st.data(), with_record=st.booleans())
def test_a_file_cut_at_any_byte_is_never_ready(small, place, data, with_record):
    whole, described = small
    length = data.draw(st.integers(0, len(whole) - 1))
    place.write_bytes(whole[:length])
    record_path(place).write_bytes(described if with_record else b"")
    for verify in (False, True):
        verdict = inspect(place, verify)
        assert (verdict.state, verdict.exit_code) == ("truncated" if length else "empty", 3)


@settings(max_examples=150)
@given(data=st.data(), keep_time=st.booleans())
def test_one_flipped_bit_anywhere_is_never_ready_when_there_is_a_record(small, place, data, keep_time):
    whole, described = small
    position = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position // 8] ^= 1 << position % 8
    place.write_bytes(flipped)
    record_path(place).write_bytes(described)
    if keep_time:  # as a failing disk does
        time_ns = json.loads(described)["current"]["mtime_ns"]
        os.utime(place, ns=(time_ns, time_ns))
    verdict = inspect(place, verify=keep_time)
    assert verdict.state in record.DAMAGED
    assert verdict.exit_code == 3


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_flipped_bit_without_a_record_is_judged_and_found_where_a_checksum_covers_it(small, place, data):
    whole = small[0]
    position = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position // 8] ^= 1 << position % 8
    place.write_bytes(flipped)
    record_path(place).unlink(missing_ok=True)
    verdict = inspect(place)
    assert verdict.state in ("ready", "incompatible", *record.DAMAGED)
    with zipfile.ZipFile(small_copy(place, whole)) as archive:
        covered = [member_extent(whole, info) for info in archive.infolist()]
    if any(start <= position // 8 < end for start, end in covered):
        assert verdict.state == "corrupt"


def small_copy(place: Path, whole: bytes) -> Path:
    copy = place.with_name("whole.zip")
    if not copy.exists():
        copy.write_bytes(whole)
    return copy


def member_extent(whole: bytes, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's own bytes lie: behind its local header of 30 bytes, its name and its extra field."""
    at = info.header_offset
    start = at + 30 + int.from_bytes(whole[at + 26 : at + 28], "little")
    start += int.from_bytes(whole[at + 28 : at + 30], "little")
    return start, start + info.compress_size


def test_size_and_time_as_recorded_are_believed_unless_asked_to_verify(tmp_path):
    path = placed(tmp_path, content())
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert inspect(path).state == "ready"  # that is why it answers at once
    assert inspect(path, verify=True).state == "corrupt"
    path.touch()
    assert inspect(path).state == "corrupt"


def test_a_new_time_alone_changes_nothing(tmp_path):
    path = placed(tmp_path, content())
    os.utime(path, ns=(1, 1))
    assert (inspect(path).state, inspect(path).entry["role"]) == ("ready", "best")


def test_a_record_that_got_ahead_of_its_file_names_the_previous_one(tmp_path):
    """A kill between the two replacements leaves the new record beside the old file."""
    path = placed(tmp_path, content(step=10))
    old = path.read_bytes()
    newer = content(step=20)
    source = tmp_path / "newer.pth"
    put(source, path, entry_of(newer, save(newer, source)))
    assert (read_record(path)["current"]["step"], read_record(path)["previous"]["step"]) == (20, 10)
    assert inspect(path).entry["step"] == 20
    path.write_bytes(old)
    verdict = inspect(path)
    assert (verdict.state, verdict.detail, verdict.entry["step"], verdict.entry["role"]) == ("ready", "", 10, "best")
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert inspect(path).state != "ready"


def test_another_checkpoint_put_over_it_by_hand_is_ready_with_its_own_data(tmp_path):
    path = placed(tmp_path, content())
    foreign = content(run_id="run-b", step=7)
    sha256 = save(foreign, path)
    verdict = inspect(path)
    assert verdict.state == "ready"
    assert "by hand" in verdict.detail
    assert (verdict.entry["run_id"], verdict.entry["step"], verdict.entry["sha256"]) == ("run-b", 7, sha256)
    assert "role" not in verdict.entry


def test_other_content_under_the_recorded_run_and_step_is_corrupt(tmp_path):
    path = placed(tmp_path, content())
    save(content(epoch=3), path)
    assert inspect(path).state == "corrupt"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"current": 3}', '{"current": {}}', "\x80"])
def test_a_record_that_cannot_be_read_leaves_the_word_to_the_file(tmp_path, damage):
    path = placed(tmp_path, content())
    record_path(path).write_bytes(damage.encode("latin-1"))
    assert (inspect(path).state, inspect(path).entry["run_id"]) == ("ready", "run-a")


@pytest.mark.parametrize("with_record", [True, False])
def test_a_newer_format_is_incompatible(tmp_path, with_record):
    path = placed(tmp_path, content(format=record.FORMAT + 1))
    if not with_record:
        record_path(path).unlink()
    for verify in (False, True):
        verdict = inspect(path, verify)
        assert (verdict.state, verdict.exit_code) == ("incompatible", 4)
        assert "git pull" in verdict.detail


def test_a_class_head_that_contradicts_the_class_names_is_incompatible(tmp_path):
    path = tmp_path / "checkpoint.pth"
    save(content(classes=4), path)
    verdict = inspect(path)
    assert (verdict.state, verdict.exit_code) == ("incompatible", 4)
    assert "3 rows" in verdict.detail and "4 names" in verdict.detail


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_as_torch_saves_it_is_ready(tmp_path, wrapped):
    """nn.Module.state_dict() carries an attribute of its own, which plain dicts do not."""
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "epoch": 4} if wrapped else state, path)
    assert (inspect(path).state, inspect(path).detail) == ("ready", "")


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["alone", "beside weights", "as key of weights"])
@pytest.mark.parametrize("kind", ["os.system", "exec", "eval", "getattr"])
def test_a_pickle_that_calls_code_runs_nothing_and_is_not_ready(tmp_path, kind, where):
    mark = tmp_path / "it-ran"
    code = f"open({str(mark)!r}, 'w').close()"
    evil = {
        "os.system": Calls(os.system, f"touch '{mark}'"),
        "exec": Calls(builtins.exec, code),
        "eval": Calls(builtins.eval, code),
        "getattr": Calls(getattr, Calls(Path, str(mark)), "touch"),
    }[kind]
    placed_evil = {
        "alone": evil,
        "beside weights": content(note=evil),
        "as key of weights": {"model_state_dict": {"w": torch.zeros(1), "x": evil}},
    }[where]
    path = tmp_path / "checkpoint.pth"
    torch.save(placed_evil, path)
    verdict = inspect(path, verify=True)
    assert not mark.exists()
    assert (verdict.state, verdict.exit_code) == ("not-a-checkpoint", 3)
    assert "more than plain data" in verdict.detail
    if kind == "os.system":  # the file does what it is accused of
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_a_pickle_that_is_no_pickle_is_corrupt(tmp_path):
    path = tmp_path / "checkpoint.pth"
    for data in (b"", b"garbage", pickle.dumps({"a": 1})[:-3]):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        assert inspect(path).state == "corrupt"


def test_put_copies_with_a_record_and_an_inode_of_its_own(tmp_path):
    source, path = tmp_path / "last.pth", tmp_path / "new" / "folder" / "checkpoint.pth"
    checkpoint = content()
    sha256 = save(checkpoint, source)
    put(source, path, entry_of(checkpoint, sha256, pinned=True))
    assert source.stat().st_ino != path.stat().st_ino
    assert (source.stat().st_nlink, path.stat().st_nlink) == (1, 1)
    current = json.loads(record_path(path).read_text())["current"]
    stat = path.stat()
    assert (current["sha256"], current["pinned"], current["role"]) == (sha256, True, "best")
    assert (current["size_bytes"], current["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
    save(content(step=99), source)  # what saves over the source leaves the copy alone
    assert record.file_sha256(path) == sha256


def test_put_with_move_takes_the_source_away(tmp_path):
    checkpoint, source = content(), tmp_path / "download"
    sha256 = save(checkpoint, source)
    path = tmp_path / "checkpoint.pth"
    put(source, path, entry_of(checkpoint, sha256), move=True)
    assert not source.exists()
    assert inspect(path, verify=True).state == "ready"


@pytest.mark.parametrize("move", [False, True])
def test_a_copy_that_does_not_match_leaves_the_old_file_and_record(tmp_path, move):
    path = placed(tmp_path, content(step=10))
    before = path.read_bytes(), record_path(path).read_bytes(), path.stat().st_ino
    source, newer = tmp_path / "damaged.pth", content(step=20)
    sha256 = save(newer, source)
    data = bytearray(source.read_bytes())
    data[-30] ^= 4
    source.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        put(source, path, entry_of(newer, sha256), move=move)
    assert caught.value.exit_code == 3
    assert (path.read_bytes(), record_path(path).read_bytes(), path.stat().st_ino) == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["checkpoint.json", "checkpoint.pth"]


def test_put_over_a_damaged_file_does_not_record_it_as_previous(tmp_path):
    path = placed(tmp_path, content(step=10))
    path.write_bytes(b"damaged")
    newer, source = content(step=20), tmp_path / "newer.pth"
    put(source, path, entry_of(newer, save(newer, source)))
    assert read_record(path)["previous"] is None
    assert inspect(path, verify=True).entry["step"] == 20


def test_put_over_a_file_without_record_keeps_what_it_is(tmp_path):
    path, source = tmp_path / "checkpoint.pth", tmp_path / "newer.pth"
    sha256 = save(content(run_id="run-b", step=10), path)
    newer = content(step=20)
    put(source, path, entry_of(newer, save(newer, source)))
    assert read_record(path)["previous"]["sha256"] == sha256


def test_neither_record_nor_status_imports_the_heavy_libraries():
    code = (
        "import sys, models.record, workspace, status; "
        "print(sorted({'torch', 'torchvision', 'mlflow', 'numpy', 'albumentations', 'cv2'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (process.stdout.strip(), process.returncode) == ("[]", 0), process.stderr


@pytest.mark.parametrize(
    "odd",
    [
        {"dataset": "coco"},
        {"dataset": {}},
        {"metrics": 0.5},
        {"metrics": {"val/AP": "0.5"}},
        {"metrics": {"val/AP": torch.tensor(0.5)}},
        {"classes": {0: "a"}},
        {"classes": [0, 1]},
        {"run_id": 5},
        {"epoch": torch.tensor(3)},
        {"epoch": 3, "epochs": "many"},
        {"architecture": {"kwargs": {1: 2}}},
    ],
    ids=str,
)
def test_a_strangers_file_may_hold_anything_under_our_names(tmp_path, odd):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model_state_dict": {"w": torch.ones(2)}} | odd, path)
    stat = path.stat()
    told = {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} | json.loads(json.dumps(odd, default=str))
    for entry in (None, told):  # in the file's own data, and in its record
        if entry is not None:
            record_path(path).write_text(json.dumps({"current": entry}))
        report = status.main(status.StatusConfig(checkpoint=path))
        assert report["state"] == "incompatible"
        json.dumps(report)
        assert "not from here" in status.report_text(report)


def doubling() -> list:
    value: list = []
    for _ in range(45):
        value = [value, value]
    return value


def nested() -> list:
    value: list = []
    for _ in range(400):
        value = [value]
    return value


def endless() -> list:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize("make", [doubling, nested, endless])
def test_a_description_without_end_is_left_out(make):
    entry = record.describe({"architecture": {"kwargs": make()}, "epoch": 3})
    assert entry == {"epoch": 3, "resumable": False}
