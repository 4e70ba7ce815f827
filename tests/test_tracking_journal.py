"""The journal keeps what it was given through crashes, and the writer queues files as they were."""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.environment import code_state, command_line, environment
from tracking.journal import Journal
from tracking.pulse import SystemSampler
from tracking.run import TrackedRun, metric_name

ROOT = Path(__file__).resolve().parents[1]
VALUES = st.floats(allow_nan=True, allow_infinity=True)
OPERATIONS = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("metrics"), "step": st.integers(0, 9), "metrics": st.dictionaries(st.text(), VALUES)}
    ),
    st.fixed_dictionaries({"op": st.just("tags"), "tags": st.dictionaries(st.text(), st.text())}),
)


def operations_of(folder: Path) -> list[dict]:
    return [operation for _, operation in Journal(folder).operations()]


def text_of(operations: list[dict]) -> str:
    return json.dumps(
        [{**operation, "time": 0} for operation in operations], sort_keys=True
    )  # NaN is not equal to itself


@settings(max_examples=60)
@given(st.lists(OPERATIONS, max_size=6))
def test_what_is_appended_is_read_back(operations):
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        for operation in operations:
            journal.append(operation)
        journal.close()
        read = operations_of(Path(folder))
    assert text_of(read) == text_of(operations)
    assert all(operation["time"] > 1_700_000_000_000 for operation in read)


@settings(max_examples=60)
@given(st.lists(OPERATIONS, min_size=1, max_size=4), OPERATIONS, st.data())
def test_a_torn_tail_costs_only_the_torn_operation(operations, later, data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder)
        for operation in operations:
            journal.append(operation)
        journal.close()
        whole = journal.path.read_bytes()
        kept = data.draw(st.integers(0, len(whole)))
        journal.path.write_bytes(whole[:kept] + data.draw(st.sampled_from([b"", b"\0\0\0", b'{"op'])))
        survivors = operations[: whole[:kept].count(b"\n")]
        assert text_of(operations_of(folder)) == text_of(survivors)
        reopened = Journal(folder)
        reopened.append(later)
        reopened.close()
        assert text_of(operations_of(folder)) == text_of([*survivors, later])


def test_infinities_survive_the_journal(tmp_path):
    TrackedRun(tmp_path, "r").metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1)
    metrics = operations_of(tmp_path)[0]["metrics"]
    assert math.isnan(metrics["a"]) and metrics["b"] == math.inf and metrics["c"] == -math.inf


def test_acknowledged_operations_are_pending_no_more(tmp_path):
    journal = Journal(tmp_path)
    for step in range(3):
        journal.append({"op": "metrics", "step": step, "metrics": {"train/loss": 1.0, "train/lr": 0.1}})
    first_end = next(journal.pending())[0]
    journal.acknowledge(first_end)
    assert [operation["step"] for _, operation in Journal(tmp_path).pending()] == [1, 2]
    assert journal.unsent() == {"operations": 2, "metrics": 4, "checkpoints": 0, "bytes": 0, "refused": 0}


def test_lines_lost_after_their_delivery_do_not_hide_what_follows(tmp_path):
    journal = Journal(tmp_path)
    for step in range(4):
        journal.append({"op": "metrics", "step": step, "metrics": {"a": 1.0}})
    journal.acknowledge(journal.path.stat().st_size)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:2]))  # a power cut: confirmed, but not yet on disk
    resumed = Journal(tmp_path)
    resumed.append({"op": "metrics", "step": 9, "metrics": {"a": 1.0}})
    assert [operation["step"] for _, operation in resumed.pending()] == [9]


def test_a_spoilt_line_in_the_middle_is_reported_not_raised(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"op": "tags", "tags": {"a": "1"}})
    with journal.path.open("ab") as stream:
        stream.write(b"\x00\xff nonsense\n")
    journal.append({"op": "tags", "tags": {"b": "2"}})
    assert [operation["op"] for operation in operations_of(tmp_path)] == ["tags", "unreadable", "tags"]


def test_an_unreadable_offset_means_deliver_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"op": "tags", "tags": {}})
    (tmp_path / "journal.sent").write_bytes(b"\xff\x00")
    assert len(list(journal.pending())) == 1


def test_two_writers_do_not_cut_each_other_short(tmp_path):
    journals = [Journal(tmp_path) for _ in range(20)]

    def write(journal: Journal) -> None:
        for step in range(30):
            journal.append({"op": "metrics", "step": step, "metrics": {"a": 1.0}})

    threads = [threading.Thread(target=write, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [operation["op"] for operation in operations_of(tmp_path)] == ["metrics"] * 600


def test_the_load_of_the_machine_goes_by_mlflows_names():
    load = SystemSampler().sample()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(load)
    assert all(metric_name(name) == name and math.isfinite(value) for name, value in load.items())


def test_a_full_disk_leaves_no_half_line(tmp_path):
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tracking.journal import Journal
journal = Journal({str(tmp_path)!r})
journal.append({{"op": "tags", "tags": {{"a": "1"}}}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = journal.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, size + 10))
try:
    journal.append({{"op": "tags", "tags": {{"b": "2"}}}})
except OSError:
    print("refused", journal.path.stat().st_size == size)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused True"


def test_a_resumed_run_knows_its_past(tmp_path):
    run = TrackedRun(tmp_path, "r")
    assert run.journal.last_step() == 0
    run.metrics({"train/loss": 1.0}, step=7)
    run.metrics({"system/cpu_utilization_percentage": 5.0}, step=9)
    (tmp_path / "c.pth").write_bytes(b"weights")
    run.checkpoint("epoch-000", tmp_path / "c.pth", sha256="0", step=7, metrics={})
    resumed = TrackedRun(tmp_path, "r")
    for journal in (run.journal, resumed.journal):
        assert journal.last_step() == 7
        assert journal.has_checkpoint("epoch-000") and not journal.has_checkpoint("epoch-001")


def test_a_queued_file_no_longer_changes(tmp_path):
    run = TrackedRun(tmp_path / "run", "r")
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"first")
    run.file(figure, "figures")
    figure.write_bytes(b"second")
    operation = operations_of(tmp_path / "run")[0]
    assert (tmp_path / "run" / operation["spool"]).read_bytes() == b"first"
    assert run.journal.unsent()["bytes"] == 5


def test_a_queued_checkpoint_costs_no_space_and_survives_its_replacement(tmp_path):
    run = TrackedRun(tmp_path / "run", "r")
    last = tmp_path / "last.pth"
    for content in (b"first", b"second"):
        partial = tmp_path / "partial"
        partial.write_bytes(content)
        partial.replace(last)
        run.checkpoint(f"of-{content.decode()}", last, sha256="0", step=1, metrics={})
    first, second = (tmp_path / "run" / operation["spool"] for operation in operations_of(tmp_path / "run"))
    assert first.read_bytes() == b"first" and second.samefile(last)
    assert first.name == "checkpoint.pth"


def test_only_the_newest_recovery_point_waits(tmp_path):
    run = TrackedRun(tmp_path / "run", "r")
    for content in (b"1", b"22", b"333"):
        last = tmp_path / "last.pth"
        last.unlink(missing_ok=True)
        last.write_bytes(content)
        run.file(last, "recovery", rolling=True)
    spools = [tmp_path / "run" / operation["spool"] for operation in operations_of(tmp_path / "run")]
    assert [spool.exists() for spool in spools] == [False, False, True]
    assert run.journal.unsent()["bytes"] == 3


def test_what_a_crash_left_in_the_outbox_is_removed(tmp_path):
    run = TrackedRun(tmp_path, "r")
    (tmp_path / "f.txt").write_text("text")
    run.file(tmp_path / "f.txt")
    orphan = tmp_path / "outbox" / "orphan"
    orphan.mkdir()
    (orphan / "big.pth").write_text("")
    TrackedRun(tmp_path, "r")
    assert not orphan.exists()
    assert (tmp_path / operations_of(tmp_path)[0]["spool"]).exists()


def test_only_one_process_delivers(tmp_path):
    lock = Journal(tmp_path).lock()
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r});"
        f"from tracking.journal import Journal; print(Journal({str(tmp_path)!r}).lock())"
    )
    blocked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    os.close(lock)
    free = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert blocked.stdout.strip() == "None" and free.stdout.strip().isdigit()


@pytest.mark.parametrize("name", ["val/AP", "val/AP/Läufer", "a b", "c:d", "x.y-z_1", "mlflow.note.content"])
def test_allowed_names_stay(name):
    assert metric_name(name) == name


def test_refused_names_are_mapped_apart_and_the_map_is_queued(tmp_path):
    run = TrackedRun(tmp_path, "r")
    run.metrics({"val/AP/a@b": 1.0, "val/AP/a#b": 2.0, "val/AP/a_b": 3.0}, step=0)
    run.metrics({"val/AP/a@b": 1.0}, step=1)
    metrics = [operation["metrics"] for operation in operations_of(tmp_path) if operation["op"] == "metrics"]
    assert sorted(metrics[0].values()) == [1.0, 2.0, 3.0] and set(metrics[1]) < set(metrics[0])
    files = [operation for operation in operations_of(tmp_path) if operation["op"] == "file"]
    assert len(files) == 1
    names = json.loads((tmp_path / files[0]["spool"]).read_text())
    assert set(names) == {"val/AP/a@b", "val/AP/a#b"}


def test_nothing_heavy_is_imported(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r});"
        "import tracking.store, tracking.sender, tracking.peek, tracking.environment, tracking.pulse;"
        "print([name for name in ('mlflow', 'torch', 'numpy', 'psutil', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_code_state_outside_a_checkout(tmp_path):
    state = code_state(tmp_path)
    assert (state["commit"], state["branch"], state["dirty"], state["diff"], state["untracked"]) == (*[None] * 4, {})


def test_code_state_of_a_changed_checkout(tmp_path):
    git(tmp_path, "init", "-b", "main")
    (tmp_path / "a.py").write_text("one\n")
    assert code_state(tmp_path)["commit"] is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    assert code_state(tmp_path)["dirty"] is False
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "größe.py").write_text("new = 1\n")
    (tmp_path / "huge.py").write_text("#" * 200_000)
    (tmp_path / "notes.txt").write_text("not code")
    state = code_state(tmp_path)
    assert len(state["commit"]) == 40 and state["branch"] == "main" and state["dirty"] is True
    assert "-one\n+two\n" in state["diff"]
    assert state["untracked"] == {"größe.py": "new = 1\n"}
    assert state["left_out"] == ["huge.py (200000 bytes)"]


def test_environment_names_the_packages():
    found = environment()
    assert "mlflow" in found["packages"] and found["cpus"] >= 1
    assert json.dumps(found) and command_line()


def test_untracked_modules_are_logged_and_an_editors_lock_is_no_obstacle(tmp_path):
    """Emacs leaves a link to nowhere beside every file that is being edited."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "loss.py").write_text("mine = 1\n")
    (tmp_path / ".#loss.py").symlink_to("user@host.1:2")
    assert code_state(tmp_path)["untracked"] == {"loss.py": "mine = 1\n"}
