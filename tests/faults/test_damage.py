"""A checkpoint with its record, and without, cut short and with flipped bits: every damage is called by its name."""

import io
import os
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from models import record
from models.checkpoint import load, save
from models.record import CheckpointError, inspect, record_path
from tests.conftest import equal

CUTS, FLIPS = 50, 200


@pytest.fixture(params=["with its record", "without its record"])
def published(request, tmp_path) -> Path:
    """A small checkpoint, put where commands look for it as training does."""
    torch.manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(40) for i in range(10)}
    weights["roi_heads.box_predictor.cls_score.weight"] = torch.randn(3, 8)
    state = {"state": {i: {"momentum_buffer": torch.randn(40)} for i in range(10)}, "param_groups": [{"lr": 0.1}]}
    content = {
        **{"format": 1, "run_id": "abc", "epoch": 2, "step": 30, "batches_done": 0, "metrics": {"val/AP": 0.5}},
        **{"classes": ["cat", "dog"], "architecture": {"builder": "timm/resnet18", "arguments": {}}},
        **{"model_state_dict": weights, "optimizer_state_dict": state},
    }
    sha256 = save(content, tmp_path / "last.pth")
    path = tmp_path / "faster_rcnn" / "checkpoint.pth"
    record.put(tmp_path / "last.pth", path, record.describe(content) | {"sha256": sha256, "role": "best"})
    if request.param == "without its record":
        record_path(path).unlink()
    return path


def test_a_file_cut_short_is_truncated_or_empty(published, tally):
    whole, dice = published.read_bytes(), random.Random(1)
    for length in [0, 1, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(CUTS - 3))]:
        published.write_bytes(whole[:length])
        with tally(f"truncated at a random length, {how(published)}"):
            require_refused(published, "truncated" if length else "empty", f"{length} bytes")


def test_a_flipped_bit_is_corrupt_or_where_nobody_reads(published, tally):
    """With the record the hash finds every flip, whatever the file's size and time say.

    Without it the CRCs and the structure of the zip do, but for bytes that no reader uses (padding, times, flags): a
    file that is ready then reads as before, to the bit.
    """
    whole, content, dice = published.read_bytes(), load(published), random.Random(2)
    in_members = covered(whole)
    times = published.stat().st_mtime_ns
    for _ in range(FLIPS):
        bit = dice.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        published.write_bytes(damaged)
        os.utime(published, ns=(times, times))  # as a failing disk leaves them
        with tally(f"bit flipped, {how(published)}"):
            if inspect(published, verify=True).state == "ready":
                assert how(published) == "without record" and bit // 8 not in in_members, f"bit {bit}"
                assert equal(load(published), content), f"bit {bit}"
                continue
            require_refused(published, name_of(published, bit // 8, len(whole)), f"bit {bit}")


def name_of(path: Path, byte: int, size: int) -> str:
    """What a flip in this byte is called; without a record, two marks alone say that it is a zip and where it ends."""
    if how(path) == "without record" and byte < 4:
        return "not-a-checkpoint"
    return "truncated" if how(path) == "without record" and size - 22 <= byte < size - 18 else "corrupt"


def how(path: Path) -> str:
    return "with record" if record_path(path).exists() else "without record"


def require_refused(path: Path, state: str, damage: str) -> None:
    verdict = inspect(path, verify=True)
    assert (verdict.state, verdict.exit_code) == (state, 3), f"{damage}: {verdict}"
    with pytest.raises(CheckpointError) as refused:
        load(path)
    assert refused.value.exit_code == 3


def covered(whole: bytes) -> set[int]:
    """The bytes that a CRC of the zip covers: its members', behind local headers of 30 bytes, name and extra field."""
    found: set[int] = set()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for member in archive.infolist():
            start = member.header_offset + 30
            name, extra = struct.unpack("<HH", whole[start - 4 : start])
            found |= set(range(start + name + extra, start + name + extra + member.compress_size))
    return found
