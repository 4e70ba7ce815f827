"""The scripts as a user runs them: subprocesses, real files, a real store."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.checkpoint import load
from tests.conftest import ROOT, SMALL, Trained, copy_of_repository, script_runner
from tracking.store import open_store


@pytest.mark.slow
def test_train_prints_the_run_id_and_nothing_else_and_its_run_in_mlflow_is_whole(tmp_path, coco_folder, empty_database):
    folder = copy_of_repository(tmp_path / "repository")
    shutil.copy(empty_database, folder / "mlflow.db")
    line = ("train.py", "--data", coco_folder, *SMALL, "--epochs", "2", "--run-name", "small")
    process = script_runner(folder)(*line, cwd=coco_folder)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    assert re.fullmatch(r"[0-9a-f]{32}\n", process.stdout)
    trained = Trained(folder, process.stdout.strip())
    store = trained.store
    run = store.run(trained.run_id)
    assert (run.name, run.status, run.params["lr"], run.params["epochs"]) == ("small", "FINISHED", "0.001", "2")
    assert {dataset["context"] for dataset in run.datasets} == {"training", "validation"}
    history = store.client.get_metric_history(trained.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 9))
    assert [point.step for point in store.client.get_metric_history(trained.run_id, "val/AP")] == [4, 8]
    names = {file.path for file in store.client.list_artifacts(trained.run_id)}
    assert {"config.json", "code", "data", "detections"} <= names
    checkpoints = store.checkpoints(trained.run_id)
    assert [(one.name, one.step, one.epoch) for one in checkpoints] == [("epoch-000", 4, 0), ("epoch-001", 8, 1)]
    assert all("val/AP" in one.metrics for one in checkpoints)


def test_status_is_ready_and_names_the_run(trained, run_here):
    report = json.loads(trained.run("status.py", "--json").stdout)
    assert (report["state"], report["run_id"], report["run_status"]) == ("ready", trained.run_id, "FINISHED")
    assert json.loads(run_here("status.py", "--json", "--remote").stdout) == report
    assert report["training"]["state"] == "finished"
    assert report["classes"] == ["circle", "square", "star", "triangle"]
    assert report["unsent"]["operations"] == 0


@pytest.mark.parametrize(
    ("damage", "state", "code"),
    [
        (lambda path: path.unlink(), "absent", 1),
        (lambda path: path.write_bytes(b""), "empty", 3),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "truncated", 3),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"PK", b"pk")), "corrupt", 3),
        (lambda path: path.write_text("hello"), "not-a-checkpoint", 3),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "corrupt", 3),
    ],
    ids=["deleted", "emptied", "cut", "no-zip", "text", "flipped"],
)
def test_status_tells_the_truth_after_damage_and_restore_mends_it(trained, run_here, damage, state, code):
    damage(trained.checkpoint)
    process = run_here("status.py", "--json")
    report = json.loads(process.stdout)
    assert (report["state"], process.returncode) == (state, code)
    assert report["next"] == f"python restore.py {trained.run_id}"
    restored = run_here("restore.py", trained.run_id[:6])
    assert restored.stdout == f"{trained.checkpoint}\n", restored.stderr
    assert run_here("status.py").returncode == 0


def test_status_of_another_file_names_commands_for_that_file(trained, run_here, tmp_path):
    other = tmp_path / "other.pth"
    shutil.copy(trained.checkpoint, other)
    assert json.loads(run_here("status.py", "--checkpoint", other, "--json").stdout)["next"].endswith(str(other))
    other.write_bytes(b"")
    report = json.loads(run_here("status.py", "--checkpoint", other, "--json").stdout)
    assert report["next"] == f"python restore.py {trained.run_id} --output {other}"
    assert run_here(*report["next"].split()[1:]).returncode == 0
    assert run_here("status.py", "--checkpoint", other).returncode == 0


def test_a_folder_in_the_checkpoints_place_is_moved_aside(trained, run_here):
    trained.checkpoint.unlink()
    trained.checkpoint.mkdir()
    report = json.loads(run_here("status.py", "--json").stdout)
    assert (report["state"], run_here(*report["next"].split()[1:]).returncode) == ("not-a-checkpoint", 0)
    assert run_here("status.py").returncode == 0
    assert [aside.is_dir() for aside in trained.checkpoint.parent.glob("*.kept-*")].count(True) == 1


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.slow
def test_the_restored_checkpoint_scores_as_in_training(trained, run_here, tmp_path):
    """In another folder; the last one in another process and from another working directory too."""
    other = tmp_path / "elsewhere"
    for which, run in (("last", partial(trained.run, cwd=tmp_path)), ("0", run_here)):
        restored = run_here("restore.py", "small", "--which", which, "--output", other)
        checkpoint = Path(restored.stdout.strip())
        assert checkpoint.is_relative_to(other)
        scored = run("evaluate.py", "--checkpoint", checkpoint, "--json", "--no-log")
        report = json.loads(scored.stdout)
        logged = {one.epoch: one.metrics for one in trained.store.checkpoints(trained.run_id)}[report["epoch"]]
        assert report["metrics"] == pytest.approx({name: logged[f"val/{name}"] for name in report["metrics"]}, abs=1e-6)


def test_evaluate_equals_pycocotools_on_what_it_exports(trained, run_here, tmp_path):
    process = run_here("evaluate.py", "--run", trained.run_id, "--json", "--output", tmp_path / "out")
    report = json.loads(process.stdout)
    truth = COCO(str(tmp_path / "out" / "ground_truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "out" / "detections.json")), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    sizes = ("small", "medium", "large")
    names = ["AP", "AP50", "AP75", *(f"AP_{size}" for size in sizes), "AR_1", "AR_10", "AR_100"]
    names += [f"AR_{size}" for size in sizes]
    expected = {name: value for name, value in zip(names, evaluation.stats, strict=True) if value >= 0}
    assert report["metrics"] == pytest.approx(expected, abs=1e-12)
    assert {(image["width"], image["height"]) for image in truth.dataset["images"]} == {(128, 96)}
    evaluation_run = trained.store.run(report["evaluation_run_id"])
    assert evaluation_run.metrics["eval/shapes/val/AP"] == pytest.approx(report["metrics"]["AP"])
    low, high = report["intervals"]["metrics"]["AP"]
    assert low <= report["metrics"]["AP"] <= high
    assert evaluation_run.metrics["eval/shapes/val/AP_low"] == pytest.approx(low)
    assert report["latency"].keys() == {"forward_ms", "whole_ms"} and min(report["latency"].values()) > 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == report  # with the IDs that MLflow gave
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} >= {"precision_recall", "ap_by_class"}
    assert (evaluation_run.tags["source_run_id"], evaluation_run.name) == (trained.run_id, "small on shapes val")
    assert report["model_id"] in {one.model_id for one in trained.store.checkpoints(trained.run_id)}


def test_resuming_a_finished_run_leaves_it_finished(trained, run_here):
    before = trained.runs()
    process = run_here("train.py", "--resume", "small")
    assert (process.returncode, process.stdout) == (0, f"{trained.run_id}\n")
    assert "is finished" in process.stderr
    assert trained.runs() == before


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "compare.py", "infer.py", "restore.py", "status.py"])
def test_help_comes_without_the_heavy_libraries(name):
    code = f"import sys, runpy; sys.argv = [{name!r}, '--help']\ntry: runpy.run_path({name!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert not {'torch', 'mlflow', 'numpy'} & set(sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_or_killed_says_so_and_resumes(number, tmp_path, coco_folder, empty_database):
    folder = copy_of_repository(tmp_path / "repository")
    shutil.copy(empty_database, folder / "mlflow.db")
    flags = ("--epochs", "400", "--evaluate-every", "500", "--checkpoint-every", "1")
    command = [sys.executable, "train.py", "--data", coco_folder, *SMALL, *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("runs/*/last.pth")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), errors
    run = script_runner(folder)
    training = json.loads(run("status.py", "--json").stdout)["training"]
    assert training["state"] == "interrupted"
    run_id = training["run_id"]
    if number == signal.SIGTERM:
        assert f"--resume {run_id}" in errors
    else:
        assert "KILLED" in run("status.py", "--sync").stderr
    store = open_store(folder, f"sqlite:///{folder}/mlflow.db")
    assert store.run(run_id).status == "KILLED"
    saved = load(folder / "runs" / run_id / "last.pth")
    resumed = run("train.py", "--resume", run_id, "--max-steps", str(saved["step"] + 2))
    assert resumed.stdout == f"{run_id}\n", resumed.stderr
    assert store.run(run_id).status == "FINISHED"
    steps = [point.step for point in store.client.get_metric_history(run_id, "train/loss")]
    assert steps == list(range(1, saved["step"] + 3))
