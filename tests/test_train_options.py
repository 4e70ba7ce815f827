"""Options of training, each by what it changes: averaging, accumulation, early stop, scales, augmentation files."""

import json
from dataclasses import replace
from pathlib import Path

import albumentations as A
import pytest

import evaluate
import train
from commandline import ConfigError
from data.records import DataError
from evaluate import EvaluateConfig
from tests.conftest import equal, given_scores, history, last_checkpoint, open_store


def artifacts(run_id: str) -> set[str]:
    return {file.path for file in open_store().client.list_artifacts(run_id)}


def test_a_resumed_run_with_every_option_in_play_equals_an_uninterrupted_one(home, small):
    """Two batches a step: stopped in mid-epoch."""
    config = replace(
        small, ema=0.9, accumulate=2, patience=9, multi_scale=(64, 80), augmentation="standard", amp="bf16"
    )
    whole = last_checkpoint(train.main(config))
    assert (whole["step"], whole["steps_per_epoch"], whole["epoch"]) == (4, 2, 1)
    part = train.main(replace(config, max_steps=3))
    assert last_checkpoint(part)["batches_done"] == 2
    assert train.main(replace(config, resume=part, max_steps=4)) == part
    compared = ("model_state_dict", "raw_model_state_dict", "optimizer_state_dict", "metrics", "step", "epoch")
    assert [key for key in compared if not equal(whole[key], last_checkpoint(part)[key])] == []


def test_averaged_weights_are_what_is_scored_kept_and_restored(home, small, undisturbed):
    run_id = train.main(replace(small, ema=0.5))
    content = last_checkpoint(run_id)
    assert not equal(content["model_state_dict"], content["raw_model_state_dict"])
    assert content["evaluation"]["averaged"] is True
    plain = undisturbed().last
    assert equal(plain["model_state_dict"], content["raw_model_state_dict"])  # averaging leaves training alone
    assert "raw_model_state_dict" not in plain
    logged = history(open_store(), run_id, "val/AP")[-1][1]
    assert evaluate.main(EvaluateConfig(run=run_id, which="last", no_log=True))["metrics"]["AP"] == logged


def test_accumulation_counts_optimizer_steps(home, small):
    run_id = train.main(replace(small, accumulate=3))  # four batches an epoch: three, and the one that is left
    assert [step for step, _ in history(open_store(), run_id, "train/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in history(open_store(), run_id, "val/AP")] == [2, 4]
    assert last_checkpoint(run_id)["scheduler_state_dict"]["last_epoch"] == 4


def test_training_stops_when_validations_have_not_improved_and_goes_on_with_more_patience(home, small, monkeypatch):
    given_scores(monkeypatch, [0.6, 0.4, 0.6, 0.7, 0.2])
    config = replace(small, epochs=5, patience=2)
    run_id = train.main(config)
    assert last_checkpoint(run_id)["epoch"] == 2  # 0.4 and 0.6 are not better than 0.6
    assert open_store().run(run_id).status == "FINISHED"
    assert train.main(replace(config, resume=run_id)) == run_id  # finished: nothing is trained or scored
    train.main(replace(config, resume=run_id, patience=4))
    content = last_checkpoint(run_id)
    assert (content["epoch"], content["validations_since_best"], content["best"]["epoch"]) == (4, 1, 3)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The preset `flip`, in a file as Albumentations writes it."""
    boxes = A.BboxParams(format="coco", label_fields=["class_labels"])
    path = tmp_path / "pipeline.json"
    A.save(A.Compose([A.HorizontalFlip(p=0.5)], bbox_params=boxes), path)
    return path


def test_an_augmentation_file_is_applied_kept_by_the_run_and_not_needed_again(home, small, pipeline, undisturbed):
    config = replace(small, augmentation=str(pipeline))
    run_id = train.main(replace(config, max_steps=4))
    pipeline.rename(pipeline.with_name("gone.json"))
    train.main(replace(config, augmentation=None, resume=run_id, max_steps=8))
    assert equal(last_checkpoint(run_id)["model_state_dict"], undisturbed().last["model_state_dict"])  # of "flip"
    assert "augmentation.json" in artifacts(run_id)
    assert open_store().run(run_id).params["augmentation"].startswith("augmentation.json ")
    assert A.from_dict(open_store().read_json(run_id, "augmentation.json")).transforms[0].p == 0.5


def test_another_augmentation_file_is_refused_on_resuming(home, small, pipeline):
    run_id = train.main(replace(small, augmentation=str(pipeline), max_steps=1))
    A.save(A.Compose([A.VerticalFlip(p=1.0)]), pipeline)
    with pytest.raises(ConfigError, match="--augmentation"):
        train.main(replace(small, augmentation=str(pipeline), resume=run_id))


def test_an_augmentation_that_fails_names_the_image(home, small, pipeline):
    A.save(A.Compose([A.RandomCrop(height=500, width=500)]), pipeline)
    with pytest.raises(DataError, match=r"\.png: the --augmentation file, on 128×96 pixels: .*[Cc]rop"):
        train.main(replace(small, augmentation=str(pipeline)))
    run = open_store().newest_runs(1)[0]
    assert run.status == "FAILED"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "no Albumentations pipeline"),
        ("[1, 2]", "no Albumentations pipeline"),
        ("{}", "no Albumentations pipeline"),
        (json.dumps({"transform": {"__class_fullname__": "os.system", "p": 1}}), "no Albumentations pipeline"),
        (json.dumps({"transform": {"__class_fullname__": "Lambda", "__name__": "f"}}), "no Albumentations pipeline"),
    ],
)
def test_a_file_that_is_no_pipeline_is_one_message(home, small, pipeline, content, word):
    pipeline.write_text(content)
    with pytest.raises(DataError, match=word):
        train.main(replace(small, augmentation=str(pipeline)))
    assert open_store().newest_runs(1) == []


def test_reference_computes_the_same_by_torchvisions_own_modules(home, small, undisturbed):
    run_id = train.main(replace(small, reference=True))
    store, usual = open_store(), undisturbed()
    assert store.client.get_run(run_id).data.params["reference"] == "True"
    plain, fast = history(store, run_id, "train/loss")[:2], history(usual.store, usual.run_id, "train/loss")[:2]
    assert [value for _, value in plain] == pytest.approx([value for _, value in fast], rel=1e-3)
    assert not equal(last_checkpoint(run_id)["model_state_dict"], usual.last["model_state_dict"])  # rounded otherwise
    scored = [
        evaluate.main(EvaluateConfig(run=run_id, which="last", no_log=True, replicates=0, **options))["metrics"]["AP"]
        for options in ({"reference": True}, {}, {"amp": "bf16"})
    ]
    assert scored[0] == history(store, run_id, "val/AP")[-1][1]
    assert scored == pytest.approx([scored[0]] * 3, abs=0.02)
