"""What a run shows in the MLflow UI: the same images at every validation, figures, tables, its note, its charts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import figures
import report
import train
from data.open import open_data
from evaluate import EvaluateConfig
from tests.conftest import given_scores, history, open_store
from tracking.deliver import NOTE
from tracking.view import TAG


def artifacts(run_id: str, folder: str) -> list[str]:
    return sorted(Path(file.path).name for file in open_store().client.list_artifacts(run_id, folder))


def downloaded(run_id: str, path: str, to: Path) -> Path:
    return Path(open_store().client.download_artifacts(run_id, path, str(to)))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_samples_are_spread_over_the_images_with_objects(coco_folder, pictures):
    records = open_data(coco_folder).records("train")
    names = [record.name for record in report.sample_records(records)]
    assert names == [record.name for record in report.sample_records(records)]
    assert len(set(names)) == 4
    assert all(len(record.boxes) for record in report.sample_records(records))
    assert len(report.sample_records([record for record in records if len(record.boxes)][:2])) == 2


def test_a_run_shows_the_same_images_at_the_start_and_at_every_validation(home, small, pictures, tmp_path):
    run_id = train.main(small)
    shown = [name.split("+") for name in artifacts(run_id, "images") if name.endswith(".png")]
    assert sorted((parts[0], int(parts[2])) for parts in shown) == [
        (f"predictions~{number}", step) for number in (1, 2, 3, 4) for step in (0, 4, 8)
    ]
    assert artifacts(run_id, "figures") == ["ap.png", "best_predictions.png", "loss.png"]
    assert pixels(downloaded(run_id, "figures/ap.png", tmp_path)).shape[:2] == (550, 990)
    assert artifacts(run_id, "data") == ["report.json", "report.md", "splits.json", "survey.png"]
    height, width, _ = pixels(downloaded(run_id, "figures/best_predictions.png", tmp_path)).shape
    assert width > 4 * 400 and height > 2 * 300  # small images are enlarged, two panels a column, four columns


def test_the_best_so_far_is_a_metric_and_has_a_table(home, small, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        given_scores(patched, [0.3, 0.5, 0.4])
        run_id = train.main(replace(small, epochs=3))
    assert history(open_store(), run_id, "best/AP") == [(4, 0.3), (8, 0.5), (12, 0.5)]
    assert history(open_store(), run_id, "val/AP") == [(4, 0.3), (8, 0.5), (12, 0.4)]

    # Its table of classes is that of the best checkpoint.
    table = json.loads(downloaded(run_id, "tables/per_class.json", tmp_path).read_text())
    assert table["columns"] == ["class", "AP", "AP50", "boxes in train", "boxes in val"]
    scored = evaluate.main(EvaluateConfig(run=run_id))
    assert {row[0]: row[1] for row in table["data"]} == {
        name: pytest.approx(one["AP"], abs=1e-4) for name, one in scored["per_class"].items()
    }
    train_boxes = sum(len(record.boxes) for record in open_data(small.data).records("train"))
    assert sum(row[3] for row in table["data"]) == train_boxes
    shown_as_table = json.loads(open_store().run(run_id).tags["mlflow.loggedArtifacts"])
    assert shown_as_table == [{"path": "tables/per_class.json", "type": "table"}]
    evaluation = scored["evaluation_run_id"]
    assert artifacts(evaluation, "tables") == ["confusion.json", "errors.json", "per_class.json"]
    shown_as_table = json.loads(open_store().run(evaluation).tags["mlflow.loggedArtifacts"])
    shown = [f"tables/{name}.json" for name in ("per_class", "confusion", "errors")]
    assert [one["path"] for one in shown_as_table] == shown
    assert "| circle&emsp; |" in open_store().run(evaluation).tags[NOTE]


def test_the_note_has_the_result_and_the_commands_and_leaves_a_users_words_alone(home, small):
    run_id = train.main(replace(small, max_steps=4))
    run = open_store().run(run_id)
    best = max(value for _, value in history(open_store(), run_id, "val/AP"))
    for part in (
        f"**val/AP {best:.4f}**",
        f"restore.py {run_id}",
        "--split test",
        f"--resume {run_id}",
        "| star&emsp; |",
    ):
        assert part in run.tags[NOTE]
    assert "finished, at step 4 of 4" in run.tags[NOTE]
    assert "MLFLOW_TRACKING_URI" not in run.tags[NOTE]
    open_store().client.set_tag(run_id, NOTE, "my own words")
    train.main(replace(small, resume=run_id, max_steps=8))
    assert open_store().run(run_id).tags[NOTE] == "my own words"


def test_a_run_resumed_on_another_machine_draws_its_whole_history(home, small, monkeypatch):
    given_scores(monkeypatch, [0.5, 0.4])
    run_id = train.main(replace(small, max_steps=4))
    shutil.rmtree(home / "runs" / run_id)
    drawn = {}
    monkeypatch.setattr("figures.loss_curves", lambda points, path: drawn.update(points) or path.write_bytes(b"x"))
    train.main(replace(small, resume=run_id, max_steps=8))
    assert [step for step, _ in drawn["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in drawn["val/AP"]] == [4, 8]
    assert "**val/AP 0.5000**" in open_store().run(run_id).tags[NOTE]


def test_a_run_without_a_name_is_called_by_what_it_is(home, small):
    name = open_store().run(train.main(replace(small, max_steps=1, seed=3))).name
    assert name.startswith("test_resnet-shapes-seed3-")


def test_the_charts_of_an_experiment_are_arranged_once_for_all(home, small, pictures):
    run_id = train.main(replace(small, max_steps=1))
    store = open_store()
    view = json.loads(store.client.get_experiment(store.run(run_id).experiment_id).tags[TAG])
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == sections
    charted = {chart.get("metricKey") for chart in view["compareRunCharts"]} - {None}
    assert charted <= set(store.run(run_id).metrics)
    shown = [chart["imageKeys"][0] for chart in view["compareRunCharts"] if chart["type"] == "IMAGE"]
    assert {name.split("+")[0].replace("~", "/") for name in artifacts(run_id, "images")} == set(shown)


def test_a_sample_has_the_truth_above_and_the_detections_below(coco_folder):
    record = report.sample_records(open_data(coco_folder).records("val"))[0]
    image = np.full((record.height, record.width, 3), 128, dtype=np.uint8)
    empty = report.sample_picture(image, record, [], list("abcd"))
    found = [{"bbox": [0.0, 0.0, 40.0, 60.0], "category_id": 1, "score": 0.9}]
    one = report.sample_picture(image, record, found, list("abcd"))
    middle = one.shape[0] // 2
    assert (one[:middle] == empty[:middle]).all()
    assert (one[middle:] != empty[middle:]).any()
    assert (empty[figures.TITLE_PIXELS : middle - figures.GAP_PIXELS] != 128).any()  # the ground truth's boxes


def test_large_images_are_drawn_smaller_with_their_boxes():
    record = replace(open_data("generated").records("val")[1], boxes=np.array([[0.0, 0.0, 1000.0, 500.0]]))
    record = replace(record, labels=np.array([1]))
    picture = report.sample_picture(np.zeros((1000, 2000, 3), np.uint8), record, [], list("abcd"))
    assert picture.shape == (2 * (320 + figures.TITLE_PIXELS + figures.GAP_PIXELS), 640, 3)
    column = picture[figures.TITLE_PIXELS + 100, :640].any(axis=-1)
    assert 315 <= column.nonzero()[0].max() <= 325  # the box's right edge, at half the width


def test_curves_follow_the_history_and_leave_out_what_has_no_point(pictures, tmp_path):
    points = {"train/loss": [(1, 2.0), (2, 1.0)], "train/loss_box_reg": [(1, 1.0), (2, 0.5)], "val/AP": [(2, 0.5)]}
    figures.loss_curves(points, tmp_path / "a.png")
    figures.loss_curves(points | {"train/loss": [(1, 2.0), (2, 1.9)]}, tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()
    names = {"val/AP/x": "x"}
    figures.ap_curves(points, tmp_path / "c.png", best_step=2, overall=("val/AP", "val/AP75"), by_class=names)
    assert pixels(tmp_path / "c.png").shape[:2] == (550, 990)


def test_smoothing_keeps_the_mean_and_the_length():
    values = np.random.default_rng(0).normal(5, 1, 600)
    smooth = figures._smooth(values)
    assert len(smooth) == 600 and smooth.std() < values.std() / 3
    assert smooth.mean() == pytest.approx(5, abs=0.1)
    assert figures._smooth([1.0, 2.0]).tolist() == [1.0, 2.0]
