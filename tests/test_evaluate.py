"""evaluate.py of all checkpoints of a run, and of what a run is expected to have."""

import json
import shutil
from dataclasses import replace

import pytest

import evaluate
import train
from commandline import ConfigError
from evaluate import EvaluateConfig
from evaluating import by_epoch, scoring
from tests.conftest import last_checkpoint
from tracking.records import NOTE
from workspace import WorkspaceError


def test_every_checkpoint_is_scored_and_logged_by_step(trained, run_here, tmp_path):
    ended = run_here(
        "evaluate.py", "--run", "small", "--which", "all", "--replicates", 20, "--json", "--output", tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "scored epoch-001, 2 of 2" in ended.stderr and "AP50" not in ended.stderr  # the table is on stdout, once
    report, store = json.loads(ended.stdout), trained.store
    known = store.checkpoints(trained.run_id)
    assert [row["checkpoint"] for row in report["checkpoints"]] == [one.name for one in known] and len(known) == 2
    for row, one in zip(report["checkpoints"], known, strict=True):
        assert row["metrics"]["AP"] == pytest.approx(one.metrics["val/AP"], abs=1e-6)
        low, high = row["intervals"]["AP"]
        assert low <= high
    assert report["best"] == max(known, key=lambda one: one.metrics["val/AP"]).name
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    assert (tmp_path / "figures" / "ap_by_epoch.png").is_file()
    history = store.histories(report["evaluation_run_id"], ("eval/shapes/val/AP",))
    expected = [(row["step"], pytest.approx(row["metrics"]["AP"])) for row in report["checkpoints"]]
    assert history["eval/shapes/val/AP"] == expected
    assert [step for step, _ in history["eval/shapes/val/AP_low"]] == [one.step for one in known]
    assert f"evaluation: http://127.0.0.1:5000/#/experiments/1/runs/{report['evaluation_run_id']}" in ended.stderr
    logged = store.run(report["evaluation_run_id"]).tags
    assert logged["source_run_id"] == trained.run_id
    assert f"/runs/{trained.run_id}?" in logged[NOTE] and "/artifacts/figures/ap_by_epoch.png?" in logged[NOTE]


def test_two_checkpoints_of_a_run_are_compared_as_the_evaluations_that_score_each_alone(trained, run_here):
    score = ("evaluate.py", "--run", "small", "--replicates", 0, "--json", "--which")
    ended = run_here(*score, "all")
    assert "to compare two of them: score each alone, which keeps its detections (--which NAME" in ended.stderr
    of_all, *alone = (
        json.loads(each.stdout)["evaluation_run_id"] for each in (ended, *(run_here(*score, name) for name in "01"))
    )
    ended = run_here("compare.py", of_all, alone[0])
    assert (
        ended.returncode == 2 and f"python evaluate.py --run {trained.run_id} --split val --which NAME" in ended.stderr
    )
    ended = run_here("compare.py", *alone, "--replicates", 20, "--images", 0, "--no-log")
    assert ended.returncode == 0 and "small" in ended.stdout and "epoch-000" in ended.stdout, ended.stderr


def test_before_the_first_epoch_ends_reports_have_none_and_the_step(home, small, run_script):
    run_id = train.main(replace(small, max_steps=1))
    assert last_checkpoint(run_id)["epoch"] == -1  # as models/faster_rcnn/README.md has the format
    report = json.loads(run_script("status.py", "--json").stdout)
    assert [part["epoch"] for part in (report, report["training"], report["best"])] == [None] * 3
    assert (report["step"], report["batches_done"]) == (1, 1)
    assert "step 1, in epoch 0 (1 of 2)" in run_script("status.py").stdout
    quick = ("--no-log", "--replicates", 0, "--json")
    one, every = (
        json.loads(run_script("evaluate.py", "--run", run_id, *which, *quick).stdout)
        for which in ((), ("--which", "all"))
    )
    for told in (one, *every["checkpoints"]):
        assert (told["epoch"], told["step"]) == (None, 1)


def test_scores_are_compared_with_those_that_the_run_has(trained, run_here):
    quick = ("--no-log", "--replicates", 0)
    ended = run_here("evaluate.py", "--expect-run", "small", *quick)
    assert ended.returncode == 0 and "as expected: the " in ended.stderr, ended.stderr
    ended = run_here("evaluate.py", "--run", "small", "--which", "0", "--expect-run", "small", *quick, "--json")
    report, (first, _) = json.loads(ended.stdout), trained.store.checkpoints(trained.run_id)
    assert report["as_expected"] and report["expected"]["AP"] == first.metrics["val/AP"]
    before = len(trained.runs())
    for logging in ((), ("--no-log",)):  # scores that are logged now are not what is expected
        ended = run_here("evaluate.py", "--expect-run", "small", "--split", "test", *logging, "--replicates", 0)
        assert ended.returncode == 2 and "has no scores of epoch-001 on shapes test to expect" in ended.stderr
        assert "Make them: python evaluate.py --run" in ended.stderr
    assert len(trained.runs()) == before


def test_another_runs_checkpoint_and_other_scores_are_not_as_expected(home, small, capfd, monkeypatch):
    runs = [train.main(replace(small, max_steps=1, seed=seed)) for seed in (0, 1)]
    config = EvaluateConfig(run=runs[1], expect_run=runs[0], no_log=True, replicates=0)
    assert evaluate.script(config) == 1
    assert f"not as expected: this checkpoint is not one of run {runs[0]}, whose step-000001" in capfd.readouterr().err
    real = scoring.score

    def better(*arguments, **keywords):
        scored = real(*arguments, **keywords)
        scored.metrics["AP"] += 0.002
        return scored

    monkeypatch.setattr("evaluating.scoring.score", better)
    config = EvaluateConfig(run=runs[0], expect_run=runs[0], no_log=True, replicates=0)
    assert evaluate.script(config) == 1
    said = capfd.readouterr().err
    assert "not as expected: AP 0.00" in said and "evident cause" not in said
    assert evaluate.script(replace(config, amp="bf16", reference=True, batch_size=1)) == 1
    cause = "the evident cause: the run's scores were computed in float32, without --reference, in batches of 2, "
    assert cause + "these in bf16, with --reference, in batches of 1\n" in capfd.readouterr().err
    assert evaluate.script(replace(config, tolerance=0.003)) == 0
    moved = shutil.copytree(small.data, home / "moved")
    assert evaluate.script(replace(config, tolerance=0.003, data=str(moved))) == 0
    others = str(moved / "annotations" / "instances_test.json")  # all of it is val, but not that of training
    with pytest.raises(WorkspaceError, match=r"no scores of step-000001 on instances_test val to .* --data /"):
        evaluate.script(replace(config, data=others))


def test_all_checkpoints_expect_nothing():
    with pytest.raises(ConfigError, match="leave out --which all"):
        EvaluateConfig(run="a", which="all", expect_run="a")


@pytest.mark.parametrize("tolerance", [0.001, 0.5])
def test_a_tolerance_of_nothing_is_refused(tolerance):
    with pytest.raises(ConfigError, match="--tolerance is of the comparison with --expect-run RUN"):
        EvaluateConfig(tolerance=tolerance)


def test_the_figure_of_all_checkpoints_counts_epochs_as_they_do():
    """Of four steps each; the third was stopped in its middle."""
    rows = [{"step": step, "metrics": {"AP": 0.5}, "intervals": {}} for step in (4, 8, 10)]
    assert by_epoch._curves(rows, 4) == {"AP": [(0, 0.5, None), (1, 0.5, None), (1.5, 0.5, None)], "AP50": []}
