"""Files that would run code, lie, or hang a reader: refused by every command with a reason, and nothing happens."""

import itertools
import json
import os
import pickle
import shutil
import signal
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

import train
import workspace
from data.records import DataError
from data.transforms import read_augmentation
from models import record
from models.checkpoint import load, save
from resuming import resumable_checkpoint
from tests.conftest import SMALL, last_checkpoint, open_store
from tests.test_models_checkpoint import Calls
from tracking.connection import local_folder
from tracking.environment import changed_files
from tracking.store import Store, StoredCheckpoint, StoreError

FORMS = ["zip", "zip: a key", "zip: inside a tensor's name", "legacy", "pickle 2", "pickle 4", "TorchScript"]


def write_trap(path: Path, form: str, mark: Path, content: dict | None = None) -> Path:
    """A file whose unpickling touches `mark`, unless it is refused."""
    code = Calls(os.system, f"touch '{mark}'")
    trap = (content or {"model_state_dict": {"w": torch.zeros(1)}}) | {"epoch": code}
    if form == "zip: a key":
        torch.save({"model_state_dict": {code: torch.zeros(1)}}, path)
    elif form == "zip: inside a tensor's name":
        torch.save({"model_state_dict": {("w", code): torch.zeros(1)}}, path)
    elif form.startswith("pickle"):
        path.write_bytes(pickle.dumps(trap, protocol=int(form[-1])))
    elif form == "TorchScript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=form == "zip")
    return path


def commands(file: Path, data: Path) -> list[tuple[object, ...]]:
    """Every command that reads a checkpoint file."""
    return [
        ("restore.py", "--file", file),
        ("evaluate.py", "--checkpoint", file, "--data", data, "--no-log"),
        ("infer.py", data / "test", "--checkpoint", file),
        ("status.py", "--checkpoint", file),
        ("train.py", "--data", data, *SMALL, "--weights", file),
        ("train.py", "--data", data, *SMALL, "--resume", file),
        ("train.py", "--data", data, *SMALL, "--backbone-weights", file),
    ]


@pytest.fixture
def says(home, run_script):
    """Runs a script that must fail with the code and one message, without a traceback, and returns what it said."""

    def run(code: int, *arguments: object) -> str:
        process = run_script(*arguments)
        said = process.stderr + process.stdout
        assert process.returncode == code, said
        assert "internal error" not in said and "Traceback" not in said
        errors = [line for line in process.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == (0 if arguments[0] == "status.py" else 1), said
        return said

    return run


FAST = {"zip", "legacy", "flipped", "folder", "pipe"}  # the other forms and states are of the slow tests


def some_slow(cases):
    return [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("form", some_slow(FORMS))
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_code_in_a_file_is_refused_by_every_command_and_does_not_run(says, tmp_path, coco_folder, form):
    mark = tmp_path / "it-ran"
    trap = write_trap(tmp_path / "trap.pth", form, mark)
    for command in commands(trap, coco_folder):
        said = says(3, *command)
        assert "trap.pth" in said and ("plain data" in said or "does not begin" in said or "old format" in said), said
        assert not mark.exists(), command
    assert not workspace.PUBLISHED.exists() and not list(workspace.RUNS.glob("*/run.json"))


def test_the_trap_works(tmp_path):
    """The test above would pass with a trap that never springs."""
    mark = tmp_path / "it-ran"
    for form in [one for one in FORMS if one != "TorchScript"]:
        trap = write_trap(tmp_path / "trap.pth", form, mark)
        if form.startswith("pickle"):
            pickle.loads(trap.read_bytes())
        else:
            torch.load(trap, weights_only=False)
        mark.unlink()


@pytest.mark.parametrize("form", ["zip", pytest.param("legacy", marks=pytest.mark.slow)])
def test_code_in_a_runs_stored_checkpoint_does_not_run_either(home, small, says, tmp_path, coco_folder, form):
    run_id = train.main(replace(small, max_steps=1, publish="never"))
    store, mark = open_store(), tmp_path / "it-ran"
    content = last_checkpoint(run_id)
    shutil.rmtree(workspace.RUNS)  # another machine's
    (stored,) = store.checkpoints(run_id)
    file = local_folder(stored.artifact_location) / "artifacts" / "checkpoint.pth"
    file.unlink()
    write_trap(file, form, mark, content)
    store.client.set_logged_model_tags(stored.model_id, {"sha256": record.file_sha256(file)})  # as its writer would
    for command in (
        ("restore.py", run_id, "--which", "last"),
        ("evaluate.py", "--run", run_id, "--which", "last", "--no-log"),
        ("infer.py", coco_folder / "test", "--run", run_id, "--which", "last"),
        ("train.py", "--data", coco_folder, *SMALL, "--weights", run_id),
        ("train.py", "--resume", run_id, "--max-steps", "2"),
    ):
        said = says(3, *command)
        assert "plain data" in said or "old format" in said, said
        assert not mark.exists(), command
    assert not workspace.PUBLISHED.exists()


def test_mlflow_does_not_unpickle_whatever_the_environment_says(monkeypatch):
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    from tracking.connection import import_mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    import_mlflow()
    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.eval", "Lambda", "tests.conftest.Trained"])
def test_an_augmentation_file_names_albumentations_own_steps_only(tmp_path, name):
    mark = tmp_path / "it-ran"
    file = tmp_path / "steps.yaml"
    file.write_text(f"transform: {{__class_fullname__: {name}, command: touch '{mark}', p: 1.0}}")
    with pytest.raises(DataError):
        read_augmentation(str(file))
    file.write_text(f"transform: !!python/object/apply:os.system ['touch {mark}']")
    with pytest.raises(DataError):
        read_augmentation(str(file))
    assert not mark.exists()


# -- names that would lead elsewhere


def test_a_run_id_of_a_file_never_becomes_a_path(home, small, run_script, tmp_path):
    content = last_checkpoint(train.main(replace(small, max_steps=1)))
    for name in ("../outside", "..", "/etc", "a/b", ""):
        file = tmp_path / "odd.pth"
        save(content | {"run_id": name}, file)
        assert "run_id" not in record.inspect(file).entry, name
        process = run_script("restore.py", "--file", file)
        assert process.returncode == 0 and "without a run" in process.stderr, (name, process.stderr)
        if name:
            with pytest.raises(workspace.WorkspaceError):
                workspace.RunFolder(name)


def test_a_commit_that_a_file_names_is_no_option_of_git(tmp_path):
    assert changed_files(workspace.ROOT, f"--output={tmp_path}/written") == []
    assert not list(tmp_path.iterdir())


def test_an_experiments_name_never_leads_out_of_the_store(home):
    store = open_store()
    for name in ("..", ".", "../../x", "/etc"):
        store.experiment(name)
        place = local_folder(store.client.get_experiment_by_name(name).artifact_location)
        assert place.resolve().parent == home / "mlartifacts" and place.name.strip(".")


def test_a_link_or_a_pipe_in_the_store_is_no_checkpoint(home, small, says, tmp_path):
    run_id = train.main(replace(small, max_steps=1, publish="never"))
    (stored,) = open_store().checkpoints(run_id)
    file = local_folder(stored.artifact_location) / "artifacts" / "checkpoint.pth"
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    for put in (
        lambda: file.symlink_to(secret),
        lambda: file.symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(file),
    ):
        file.unlink()
        put()
        says(3, "restore.py", run_id, "--which", "last")
        assert not workspace.PUBLISHED.exists()


@pytest.fixture
def hostile():
    """A tracking server that lists a file of any name under a checkpoint's; its `name` is what it lists."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = parse_qs(urlsplit(self.path).query).get("path", [""])[0]
            name = self.server.name if place.endswith("checkpoint.pth") else "checkpoint.pth"
            model = {
                "model_id": "m-1",
                "experiment_id": "1",
                "name": "n",
                "artifact_uri": ARTIFACTS,
                "status": "LOGGED_MODEL_READY",
            }
            times = dict.fromkeys(("creation_timestamp_ms", "last_updated_timestamp_ms"), 1)
            listed = {"files": [{"path": name, "is_dir": False, "file_size": 4}]}
            answer = listed if place else {"model": {"info": model | times, "data": {}}}
            is_file = not place and "mlflow-artifacts" in self.path
            body = b"evil" if is_file else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


ARTIFACTS = "mlflow-artifacts:/1/models/m-1/artifacts"


def test_a_servers_listing_cannot_write_outside_the_target(hostile, tmp_path):
    from tracking.connection import import_mlflow

    uri = f"http://127.0.0.1:{hostile.server_port}"
    store = Store(uri, tmp_path, import_mlflow().MlflowClient(tracking_uri=uri))
    stored = StoredCheckpoint(
        **{"name": "epoch-000", "model_id": "m-1", "run_id": "r", "step": 1, "epoch": 0, "sha256": "0" * 64},
        **{"size_bytes": 4, "artifact_location": ARTIFACTS, "created": 0},
    )
    target = tmp_path / "a" / "b" / "c" / "checkpoint.pth"
    for name in ("../../evil", "/tmp/evil", "..%2f..%2fevil", "a/../../../evil", "checkpoint.pth"):
        hostile.name = name
        told = "is damaged in the store" if name == "checkpoint.pth" else "Invalid path"
        with pytest.raises(StoreError, match=told):
            store.download(stored, target)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- states of a file, as every command tells them


def prepared(path: Path, state: str, good: Path) -> None:
    match state:
        case "empty":
            path.touch()
        case "text":
            path.write_text("weights to follow\n")
        case "zip":
            shutil.make_archive(str(path.with_suffix("")), "zip", good.parent)
            path.with_suffix(".zip").rename(path)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "truncated":
            path.write_bytes(good.read_bytes()[:-1000])
        case "flipped":
            data = bytearray(good.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "dangling":
            path.symlink_to(path.with_name("nowhere.pth"))
        case "newer":
            save(load(good) | {"format": record.FORMAT + 1}, path)


@pytest.fixture(scope="module")
def good(tmp_path_factory, coco_folder):
    """A small whole checkpoint."""
    from models import detector

    architecture = detector.resolve_architecture("timm/test_resnet", num_classes=5, fpn_channels=16, norm="batch")
    torch.manual_seed(0)
    content = {"format": record.FORMAT, "epoch": 0, "architecture": architecture, "config": {}}
    content["classes"] = ["circle", "square", "star", "triangle"]
    content["model_state_dict"] = detector.build(architecture).state_dict()
    path = tmp_path_factory.mktemp("good") / "good.pth"
    save(content, path)
    return path


STATES = {
    **{"empty": (3, "empty"), "text": (3, "not-a-checkpoint"), "zip": (3, "not-a-checkpoint")},
    **{"folder": (3, "it is a folder"), "pipe": (3, "it is a pipe"), "truncated": (3, "truncated")},
    **{"flipped": (3, "corrupt"), "dangling": (2, "link to"), "newer": (4, "format")},
}


@pytest.mark.parametrize("state", some_slow(STATES))
def test_each_state_is_told_by_every_command_at_once(says, good, tmp_path, coco_folder, state):
    path, (code, word) = tmp_path / "checkpoint.pth", STATES[state]
    prepared(path, state, good)
    signal.alarm(120)  # a reader that waits for a pipe would wait for ever
    for command in commands(path, coco_folder)[:-1]:
        if state == "folder" and command[0] == "train.py":
            expected = 2  # no file: it may be the name of a run
        else:
            expected = 1 if (command[0], state) == ("status.py", "dangling") else code
        said = says(expected, *command)
        assert expected != code or word in said, (command, said)
        assert str(path) in said or path.name in said, said
    signal.alarm(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read_is_told_as_that(good, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    inside = shutil.copy(good, locked / "good.pth")
    beside = shutil.copy(good, tmp_path / "good.pth")
    beside.chmod(0)
    for path in [inside, beside, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o111) if path.is_dir() else None
    locked.chmod(0)
    os.seteuid(65534)
    try:
        verdicts = [record.inspect(path) for path in (inside, beside)]
        assert workspace.local_run(str(beside)) is None
    finally:
        os.seteuid(0)
    assert [verdict.state for verdict in verdicts] == ["not-a-checkpoint"] * 2
    assert all("Permission denied" in verdict.detail for verdict in verdicts)


def test_a_file_that_is_replaced_again_and_again_is_always_ready(tmp_path):
    """Readers see the old file or the new one, whole, whichever of its records they read."""
    path, done = tmp_path / "checkpoint.pth", threading.Event()
    contents = [{"run_id": "a", "step": 1, "model_state_dict": {"w": torch.full((64,), n)}} for n in range(9)]
    staged = [tmp_path / f"{number}.pth" for number in range(9)]
    hashes = [save(content, file) for content, file in zip(contents, staged, strict=True)]

    def replace_it() -> None:
        for number in itertools.cycle(range(9)):
            record.put(staged[number], path, record.describe(contents[number]) | {"sha256": hashes[number]})
            if done.is_set():
                return

    record.put(staged[0], path, record.describe(contents[0]) | {"sha256": hashes[0]})
    writer = threading.Thread(target=replace_it)
    writer.start()
    try:
        for _ in range(300):
            verdict = record.inspect(path, verify=True)
            assert verdict.state == "ready", verdict
            assert load(path)["step"] == 1
    finally:
        done.set()
        writer.join()


def test_training_goes_on_from_mlflow_where_the_run_folders_file_is_damaged(home, small):
    run_id = train.main(replace(small, max_steps=2))
    last = workspace.RunFolder(run_id).last
    last.unlink()
    last.write_bytes(b"damaged")
    assert resumable_checkpoint(open_store(), run_id)[0]["step"] == 2
