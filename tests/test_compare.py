"""compare.py on a real store: what differs, whether that is more than chance, and of what it may be said."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import compare
import evaluate
import figures
import metrics
import stored_detections
import train
from commandline import ConfigError
from compare import CompareConfig
from comparing import changed_images, formats, words
from comparing.runs import newest_two
from comparing.same_images import same_images
from data.fingerprint import NO_OBJECTS
from evaluate import EvaluateConfig
from metrics import coco_ground_truth, coco_results
from metrics.errors import WRONG
from tests.conftest import open_store, work_in
from tests.detections import found, image
from tracking.errors import DamagedArtifact, RunUnknown
from tracking.records import COMPARISON, NOTE
from workspace import WorkspaceError

BOXES = np.array([[x, 10, x + 40, 50] for x in (0, 100, 200, 300)])
LABELS = [1, 1, 2, 2]
CLASSES = ("cell & co", "plate_let")
HOW = ({"amp": "bf16"}, {"reference": True})  # evaluations are computed
PLAIN = {"images": 2, "replicates": 200, "no_log": True}


def truth_of(names, *, shifted=()):
    records = [image(number, BOXES + (name in shifted), LABELS) for number, name in enumerate(names, start=1)]
    renamed = [SimpleNamespace(**{**vars(each), "name": name}) for each, name in zip(records, names, strict=True)]
    return coco_ground_truth(renamed, CLASSES)


def results_of(count: int, share: float, seed: int):
    """Each box is found with a probability of `share`."""
    random = np.random.default_rng(seed)
    detections = []
    for number in range(1, count + 1):
        kept = random.random(4) < share
        scores = random.uniform(0.5, 1, kept.sum())
        detections.append(found(number, BOXES[kept], np.array(LABELS)[kept], scores))
    return coco_results(detections)


NAMES = [f"{number:02d}.png" for number in range(30)]


def keep_run(
    name,
    folder,
    *,
    share,
    seed,
    truth=None,
    results=None,
    source="",
    digest="2",
    experiment="cells",
    group=None,
    contents=None,
    status="FINISHED",
    progress=None,
    **about,
):
    """A finished training in the store, as far as comparisons look at one; its ID."""
    truth = truth or truth_of(NAMES)
    config = {"lr": 0.01, "seed": seed, "augmentation": "flip", "data": "somewhere", "run_name": name} | about
    facts = {
        "config": config,
        "dataset": {"split_fingerprints": {"train": "1", "val": "2", "test": "3"}},
        "code_version": "0" * 40,
        "code_digest": "e3b0",
        "evaluation": {"threads": 1},
        "packages": {"torch": "2.15.0"},
    }
    files = folder / name
    files.mkdir()
    (files / "run.json").write_text(json.dumps(facts))
    places = {files / "run.json": None}
    if contents:
        (files / "splits.json").write_text(json.dumps(contents))
        places[files / "splits.json"] = "data"
    for prefix in ("best_", "last_"):
        for path in stored_detections.write(
            files, "val", results or results_of(len(truth["images"]), share, seed), truth
        ):
            kept = path if path.name.startswith("ground") else path.rename(files / f"{prefix}{path.name}")
            places[kept] = "detections"
    run_id = open_store().log_evaluation(
        {"val/AP": share},
        experiment=experiment,
        kind="training",
        run_name=name,
        dataset=("cells-val", digest),
        dataset_source=source,
        params=config,
        tags=({"group": group} if group else {}) | ({"progress": json.dumps(progress)} if progress else {}),
        files=places,
    )
    if status != "FINISHED":
        open_store().client.update_run(run_id, status=status)
    return run_id


def keep_evaluation(run, checkpoint, folder, *, share, split="val"):
    """One of a training's checkpoint, as far as comparisons look at one; its ID."""
    files = folder / f"{run}-{checkpoint}-{split}"
    files.mkdir()
    kept = stored_detections.write(files, split, results_of(len(NAMES), share, len(checkpoint)), truth_of(NAMES))
    return open_store().log_evaluation(
        {},
        experiment="cells",
        run_name=f"{run} on {split}",
        source_run_id=open_store().find(run).run_id,
        dataset=(f"cells-{split}", {"val": "2", "test": "3"}[split]),
        tags={"split": split, "checkpoint": checkpoint},
        files=dict.fromkeys(kept, "detections"),
    )


def position(epoch, *, steps=24):
    """As the tag of a training has it: 8 steps an epoch."""
    return {"epoch": epoch, "step": 8 * (epoch + 1), "epochs": 3, "total_steps": steps, "steps_per_epoch": 8}


# Whole trainings, one that is at its first epoch, one that failed and one that was given 8 steps.
UNLIKE = {
    "whole-0": {"seed": 50, "share": 0.9, "progress": position(2)},
    "whole-1": {"seed": 51, "share": 0.9, "progress": position(2)},
    "stopped-early": {"seed": 52, "share": 0.9, "progress": position(1)},  # by --patience
    "going": {"seed": 53, "share": 0.2, "progress": position(0), "status": "RUNNING"},
    "failed": {"seed": 54, "share": 0.6, "status": "FAILED"},
    "eight-steps": {"seed": 55, "share": 0.3, "progress": position(0, steps=8), "max_steps": 8},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory, empty_database):
    """A store with runs of two methods, weak and strong, three seeds each, on images that are there."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copy(empty_database, root / "mlflow.db")
    images = root / "images"
    images.mkdir()
    for name in NAMES:
        Image.new("RGB", (640, 480), "grey").save(images / name)
    with pytest.MonkeyPatch.context() as patch:
        work_in(root, patch)
        for seed in range(3):
            for group, share, lr in (("weak", 0.6, 0.01), ("strong", 0.9, 0.02)):
                about = {"share": share, "seed": 10 * seed + (group == "strong"), "group": group, "lr": lr}
                keep_run(f"{group}-{seed}", root, source=str(images), **about)
        keep_run("like-weak", root, share=0.6, seed=77)
        for name, about in UNLIKE.items():
            keep_run(name, root, experiment="unlike", **about)
        keep_run("elsewhere", root, share=0.9, seed=5, truth=truth_of(NAMES[:20], shifted=NAMES[:2]))
    return root


@pytest.fixture
def here(repository, monkeypatch):
    work_in(repository, monkeypatch)
    return repository


def of(*runs, **options):
    return compare.main(CompareConfig(**PLAIN | {"runs": runs} | options))


def test_a_difference_that_is_there_is_said_with_its_interval_and_of_what_it_holds(here):
    report = of("weak-0", "strong-0")
    (about,) = report["comparisons"]
    score = about["scores"]["AP"]
    assert score["shown"] and 0 < score["low"] < score["difference"] < score["high"]
    assert about["verdict"] == (
        f"strong-0 is better than weak-0 by {score['difference']:.3f} AP, "
        f"95% interval {score['low']:.3f} to {score['high']:.3f}."
    )
    assert "two checkpoints" in about["scope"] and "methods it says nothing" in about["scope"]
    assert about["configuration"] == {"lr": (["0.01"], ["0.02"]), "seed": (["0"], ["1"])}
    assert any("val was also used to choose" in note and "--split test" in note for note in report["notes"])
    assert of("weak-0", "strong-0", split="valid") == report
    assert set(about["scores"]) == {"AP", "AP50", "AP75", "AP_medium", "AP/cell & co", "AP/plate_let"}


def test_what_was_not_recorded_of_the_scoring_is_unknown_and_within_a_group_others_are_named(here, tmp_path):
    for name, amp in (("in-float32", "off"), ("in-bf16", "bf16"), ("also-in-bf16", "bf16")):
        about = {"share": 0.6, "seed": len(name), "amp": amp, "reference": False}
        keep_run(name, tmp_path, experiment="precisions", **about)
    about = of("weak-0", "in-bf16")["comparisons"][0]
    (said,) = about["scoring"]
    assert said.startswith(
        "precision not on record of weak-0 (scored by an older version, or resumed in another). Score"
    )
    assert said.endswith(f": python evaluate.py --run {open_store().find('weak-0').run_id} --split val")
    report = of("in-float32", "in-bf16", against=("weak-0", "also-in-bf16"))
    assert report["comparisons"][0]["scoring"][0] == "in bf16 → in bf16 or in float32"
    assert any("scored in bf16, in float32" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("images", "seeds", "of", "said"),
    [
        (500.5, 4.2, (3, 3), "about 510 images (there are 30) or about 5 seeds a side would"),
        (0.4, 0.2, (2, 2), "more than 2 seeds a side would"),  # which Student's t makes wide, not their spread
        (29.2, None, (1, 1), "about 31 images (there are 30) would"),
        (2e6, 5000.0, (2, 2), "more than a million images (there are 30) or more than a thousand seeds a side would"),
    ],
)
def test_as_many_images_or_seeds_as_there_are_would_not_do(images, seeds, of, said):
    about = {"scores": {"AP": {"difference": 0.1}}, "images_needed": images, "seeds_needed": seeds, "seeds": of}
    assert words.enough(about, 30) == f"{said} be needed to show 0.100 {words.POWER}"


def test_of_trainings_that_are_not_whole_the_verdict_says_so_itself_and_advises_nothing(here):
    going, failed = (f"{name} ({open_store().find(name, 'unlike').run_id[:8]})" for name in ("going", "failed"))
    going += " is RUNNING at epoch 1 of 3"
    report = of("whole-0", "going", "failed", images=0)
    assert [about["incomplete"] for about in report["comparisons"]] == [[going], [f"{failed} is FAILED"]]
    about = report["comparisons"][0]
    scope = (
        f"Not all of these trainings are whole: {going}. That is of these checkpoints on images like these 30; of "
        "whole trainings and of the methods it says nothing."
    )
    assert about["scope"] == scope and (about["images_needed"], about["seeds_needed"]) == (None, None)
    for text in (formats.text(report), formats.markdown(report), formats.note(report, "")):
        assert text.count(going) == 1 and text.partition(about["verdict"])[2].lstrip("\n").startswith(scope)
    assert [row[1].partition(" ")[2] for row in formats.sides_table(report)[1]] == ["", "unfinished", "unfinished"]
    assert [side["runs"][0]["status"] for side in report["sides"]] == ["FINISHED", "RUNNING", "FAILED"]
    (equal,) = of("like-weak", "failed", images=0)["comparisons"]
    assert re.fullmatch(
        r"No difference shown between failed and like-weak: \S+ AP, 95% interval \S+ to \S+\.", equal["verdict"]
    )


def test_a_group_with_trainings_that_are_not_whole_is_no_method(here):
    whole = ("whole-0", "whole-1", "stopped-early")
    group = of("weak-0", "weak-1", against=whole, images=0)
    assert group["comparisons"][0]["incomplete"] == [] and "as trained here" in group["comparisons"][0]["scope"]
    for other, told in {
        "going": "is RUNNING at epoch 1 of 3",
        "eight-steps": "8 steps (1 epoch), not 3 epochs",
    }.items():
        report = of("whole-0", other, against=("whole-1", "stopped-early"), images=0)
        (about,) = report["comparisons"]
        assert told in about["scope"] and "methods it says nothing" in about["scope"]
        assert "needed to show" not in about["verdict"] and about["seeds_needed"] is None
    rows = formats.sides_table(of("whole-0", "going", against=whole[1:], images=0))[1]
    assert [row[1] for row in rows] == ["2 seeds", "2 seeds, 1 unfinished"]
    alone = of("whole-0", "eight-steps", images=0)["comparisons"][0]  # a choice, which the configuration tells
    assert alone["incomplete"] == [] and "max_steps" in alone["configuration"]


def test_no_difference_is_said_with_the_images_that_would_show_it(here):
    (about,) = of("weak-0", "like-weak")["comparisons"]
    score = about["scores"]["AP"]
    assert score["low"] < 0 < score["high"] and not score["shown"]
    assert re.match(r"No difference shown .* about [\d,]+ images \(there are 30\) would be needed", about["verdict"])


def test_runs_that_found_the_same_are_exactly_the_same(here, tmp_path):
    keep_run("as-weak", tmp_path, experiment="same", share=0.6, seed=0)
    (about,) = of("weak-0", "as-weak")["comparisons"]
    assert all((one["difference"], one["low"], one["high"]) == (0, 0, 0) for one in about["scores"].values())
    assert "they score the same" in about["verdict"] and about["changed_images"] == []


def test_groups_of_seeds_speak_of_the_method_and_a_single_seed_does_not(here):
    strong, weak = ([f"{group}-{seed}" for seed in range(3)] for group in ("strong", "weak"))
    report = of(*strong, against=tuple(weak))
    (about,) = report["comparisons"]
    assert (about["baseline"], about["candidate"], about["seeds"]) == ("weak", "strong", [3, 3])
    assert "methods as trained here (3 and 3 seeds)" in about["scope"]
    each = [np.mean([run["scores"]["AP"] for run in side["runs"]]) for side in report["sides"]]
    assert about["scores"]["AP"]["difference"] == pytest.approx(each[1] - each[0])
    deviation = np.std([run["scores"]["AP"] for run in report["sides"][0]["runs"]], ddof=1)
    assert report["sides"][0]["scores"]["AP"]["deviation"] == pytest.approx(deviation)
    assert not any("more than the seed" in note for note in report["notes"])
    mixed = of(*strong, against=("weak-0",))["comparisons"][0]
    assert "this one checkpoint of weak-0" in mixed["scope"]
    odd = of("weak-1", "like-weak", "strong-0", against=("weak-0",))
    assert any("differ in more than the seed: --lr 0.01, 0.02" in note for note in odd["notes"])


def test_trainings_of_one_seed_are_runs_and_those_of_one_configuration_too_narrow_an_interval(here, tmp_path):
    for name, about in {"once": {}, "again": {}, "other": {"lr": 0.02}}.items():
        keep_run(name, tmp_path, experiment="repeated", share=0.6, seed=4, **about)
    report = of("once", "again", against=("strong-0", "strong-1"))
    (about,) = report["comparisons"]
    assert (about["runs"], about["seeds"]) == ([2, 2], [2, 1])
    assert "as trained here (2 runs (1 seed) and 2 seeds)" in about["scope"]
    again = open_store().find("again").run_id
    assert "too narrow: trainings of the same seed and configuration as another" in about["scope"]
    assert about["scope"].endswith(f"no independent trainings (again ({again[:8]})).")
    assert not any("more than the seed" in note for note in report["notes"])
    assert [row[1] for row in formats.sides_table(report)[1]] == ["2 seeds", "2 runs (1 seed)"]
    mixed = of("once", "other", against=("strong-0",))["comparisons"][0]["scope"]  # not one method, which notes say
    assert "once and 1 more (2 runs (1 seed))" in mixed and "too narrow" not in mixed


def test_of_evaluations_only_that_of_the_best_is_chosen_and_the_way_to_test_scores_each_checkpoint(here, tmp_path):
    run_id = keep_run("chosen", tmp_path, experiment="chosen", share=0.6, seed=0)
    open_store().client.set_tag(run_id, "progress", json.dumps({"best": {"name": "epoch-001"}}))
    best, other = (keep_evaluation("chosen", f"epoch-00{n}", tmp_path, share=0.5 + 0.1 * n) for n in (1, 2))
    report = of(best, other)
    labels = [f"chosen epoch-00{n} ({each[:8]})" for n, each in ((1, best), (2, other))]
    assert [side["label"] for side in report["sides"]] == labels
    told = [note for note in report["notes"] if "used to choose" in note]
    assert told == [
        f"val was also used to choose the best checkpoint of chosen ({run_id[:8]}), which flatters its scores, and not "
        f"those of the others. On test nothing was chosen: python evaluate.py --run {run_id} --split test --which "
        f"epoch-001; python evaluate.py --run {run_id} --split test --which epoch-002; then python compare.py with the "
        "IDs of these evaluations"
    ]
    assert not any("used to choose" in note for note in of(other, "weak-0", which="last")["notes"])


def test_the_way_to_test_scores_what_is_not_scored_there_and_names_runs_by_id(here, tmp_path):
    best = {"best": {"name": "epoch-001"}}
    (tmp_path / "more").mkdir()
    first, second = (
        keep_run("twin", folder, experiment="twins", share=0.6, seed=seed, progress=best)
        for seed, folder in enumerate((tmp_path, tmp_path / "more"))
    )

    def way(*runs, **options):
        (said,) = (note for note in of(*runs, images=0, **options)["notes"] if "used to choose" in note)
        return said.partition("On test nothing was chosen: ")[2]

    def on(split, run, checkpoint="epoch-001"):
        return keep_evaluation(run, checkpoint, tmp_path, share=0.6, split=split)

    on("test", second, "epoch-002")  # not the checkpoint that is compared
    both, score = f"python compare.py {first} {second} --split test", f"python evaluate.py --run {second} --split test"
    assert way(first, second) == f"for run in {first} {second}; do {score.replace(second, '$run')}; done; {both}"
    on_test = [on("test", first)]
    assert way(first, second) == f"{score}; {both}"
    of_val = on("val", first), on("val", second)
    assert way(*of_val) == (
        f"{score} --which epoch-001; then python compare.py with the IDs of these evaluations and {on_test[0]}"
    )
    on_test.append(on("test", second))
    assert way(first, second) == both
    assert way(second, against=(first,)) == f"python compare.py {second} --against {first} --split test"
    assert way(*of_val, common_images=True) == f"python compare.py {' '.join(on_test)} --common-images"
    with pytest.raises(ConfigError) as error:
        of(of_val[0], on_test[1])
    assert f"different splits, where AP does not compare: {of_val[0]} on val, {on_test[1]} on test." in str(error.value)
    assert of(on_test[0], second)["split"] == "test"
    with pytest.raises(ConfigError) as error:
        of(*of_val, split="test")
    assert str(error.value).splitlines()[1] == (
        f"  {of_val[1]} is an evaluation on val, not on --split test. The same on test: {score} --which epoch-001"
    )


def test_an_experiment_of_one_run_has_nothing_to_compare(here, tmp_path):
    run_id = keep_run("lonely", tmp_path, experiment="single", share=0.6, seed=0)
    keep_run("unfinished", tmp_path, experiment="single", share=0.6, seed=1, status="RUNNING")
    with pytest.raises(WorkspaceError, match=rf"One run of experiment 'single' .*lonely .*--from-run {run_id} with"):
        of(experiment="single")


def test_where_groups_are_of_one_seed_each_it_is_the_seed_that_differs(here, tmp_path):
    for seed in (1, 2):
        for augmentation in ("flip", "none")[:seed]:
            about = {"seed": seed, "augmentation": augmentation, "experiment": "by-seed"}
            keep_run(f"{augmentation}-{seed}", tmp_path, share=0.4 + 0.2 * seed, **about)
    report = of(experiment="by-seed", group_by="seed", images=0)
    assert [side["label"] for side in report["sides"]] == ["seed 2", "seed 1"]
    assert report["comparisons"][0]["configuration"] == {
        "seed": (["2"], ["1"]),
        "augmentation": (["flip", "none"], ["flip"]),
    }
    told = [note for note in report["notes"] if note.startswith("the runs of")]
    assert told == ["the runs of seed 2 differ in other things than the seed: --augmentation flip, none"]


def test_an_experiments_groups_are_ranked(here, capfd):
    # elsewhere was scored on other images, and belongs to no group.
    report = of(experiment="cells")
    assert [side["label"] for side in report["sides"]] == ["strong", "weak"]
    assert "strong" in report["comparisons"][0]["baseline"] and report["comparisons"][0]["scores"]["AP"]["high"] < 0
    assert "note: left out, trained without --group: elsewhere, like-weak\n" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="--group-by lr"):
        of(experiment="cells", group_by="augmentation")


def test_runs_without_an_option_are_left_out_by_name_and_the_advice_is_of_options_that_all_have(here, tmp_path, capfd):
    options = ({"splits": "a.json", "workers": 1}, {"splits": "b.json", "ema": 0.99, "workers": 2}, {"lr": 0.1})
    for seed, about in enumerate(options):
        keep_run(f"option-{seed}", tmp_path, experiment="options", share=0.7, seed=seed, **about)
    for group_by, labels in {
        "splits": ["splits a.json", "splits b.json"],
        "splits,lr": ["splits a.json, lr 0.01"],
    }.items():
        report = of(experiment="options", group_by=group_by, images=0)
        assert {*labels} <= {side["label"] for side in report["sides"]} and len(report["sides"]) == 2
        assert capfd.readouterr().err == "note: left out, trained without --splits: option-2\n"
    with pytest.raises(ConfigError) as error:
        of(experiment="options", group_by="ema")
    first, *others = str(error.value).splitlines()
    assert first.startswith("--group-by ema finds only one group (ema 0.99) in experiment 'options'.")
    assert first.endswith("--group-by lr")  # not splits and ema, which one lacks, nor workers
    assert others[0] == "  left out, trained without --ema: option-2, option-0" and "by name" in others[1]
    with pytest.raises(
        ConfigError, match=r"finds no group in [^\n]*\n  left out, having no option or tag foo: option-2"
    ):
        of(experiment="options", group_by="foo")
    with pytest.raises(ConfigError, match=r"no option or tag batch_sizes \(is it batch-size\?\): option-2"):
        of(experiment="options", group_by="batch_sizes")


def test_different_data_are_refused_unless_told_to_take_what_is_common(here):
    with pytest.raises(WorkspaceError) as error:
        of("weak-0", "elsewhere")
    assert "10 images only in weak-0" in str(error.value) and "2 images in both with other boxes" in str(error.value)
    assert "18 images that are the same: --common-images" in str(error.value) and error.value.exit_code == 2
    report = of("weak-0", "elsewhere", common_images=True)
    assert (report["images"], report["images_left_out"]) == (18, 12)
    alone = [each for each in results_of(30, 0.6, 0) if 3 <= each["image_id"] <= 20]
    truth = truth_of(NAMES)
    kept = {"images": truth["images"][2:20], "categories": truth["categories"]}
    kept["annotations"] = [each for each in truth["annotations"] if 3 <= each["image_id"] <= 20]
    from metrics import coco_metrics

    expected = coco_metrics(kept, alone, scorer="pycocotools")["metrics"]["AP"]
    assert report["sides"][0]["runs"][0]["scores"]["AP"] == pytest.approx(expected)


def test_the_order_of_classes_and_images_does_not_matter_but_their_names_do(here, tmp_path):
    truth, results = truth_of(NAMES), results_of(30, 0.6, 0)
    swapped = {1: 2, 2: 1}
    other = {
        **truth,
        "images": [each | {"id": 100 - each["id"]} for each in truth["images"]],
        "annotations": [
            each | {"image_id": 100 - each["image_id"], "category_id": swapped[each["category_id"]]}
            for each in truth["annotations"]
        ],
        "categories": [each | {"id": swapped[each["id"]]} for each in truth["categories"]],
    }
    moved = [
        each | {"image_id": 100 - each["image_id"], "category_id": swapped[each["category_id"]]} for each in results
    ]
    keep_run("swapped", tmp_path, share=0.6, seed=0, truth=other, results=moved)
    assert of("weak-0", "swapped")["comparisons"][0]["scores"]["AP"]["difference"] == pytest.approx(0, abs=1e-12)
    renamed = truth | {"categories": [{"id": 1, "name": "cell & co"}, {"id": 2, "name": "other"}]}
    keep_run("renamed", tmp_path, share=0.6, seed=0, truth=renamed)
    with pytest.raises(WorkspaceError, match="other classes") as error:
        of("weak-0", "renamed")
    assert error.value.exit_code == 4


@pytest.mark.parametrize("kind", ["table", "markdown", "latex", "csv", "json"])
def test_every_format_is_what_it_says(here, run_script, kind):
    names = ("strong-0", "strong-1", "--against", "weak-0", "weak-1", "--no-log", "--replicates", 50, "--images", 1)
    process = run_script("compare.py", *names, "--format", kind)
    assert process.returncode == 0, process.stderr
    out = process.stdout
    if kind == "json":
        report = json.loads(out)
        assert report["comparisons"][0]["scores"]["AP"]["degrees_of_freedom"] >= 1
    elif kind == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [row["side"] for row in rows if row["score"] == "AP"] == ["weak", "strong"]
        strong = next(row for row in rows if (row["side"], row["score"]) == ("strong", "AP"))
        assert (
            float(strong["low"]) < float(strong["difference"]) < float(strong["high"]) and strong["baseline"] == "weak"
        )
    elif kind == "latex":
        body = [line for line in out.splitlines() if "&" in line]
        assert {line.count("&") for line in body} == {5} and out.count(r"\begin") == out.count(r"\end") == 1
    elif kind == "markdown":
        tables = re.findall(r"(?:^\|.*\|\n?)+", out, flags=re.MULTILINE)
        assert len(tables) == 3
        assert all(len({line.count("|") for line in table.strip().splitlines()}) == 1 for table in tables)
    else:
        assert "strong is better than weak by" in out or "No difference shown between strong and weak" in out


def test_long_names_have_letters_in_tables_and_a_legend(here, tmp_path):
    names = [f"fasterrcnn_resnet50-cells-official-split-augmentation-{end}" for end in ("flip", "none", "dihedral")]
    for seed, name in enumerate(names):
        keep_run(name, tmp_path, experiment="names", share=0.6 + 0.1 * seed, seed=seed)
    report = of(*names, images=1, output=tmp_path / "out")
    lines = formats.text(report).splitlines()
    legend = [f"{letter}: {name}" for letter, name in zip("ABC", names, strict=True)]
    at = lines.index("compared:")
    assert lines[at + 1 : at + 4] == [f"- {line}" for line in legend] and "C against A" in lines
    tables = [line for line in lines if line.startswith("  ")]
    assert (
        len(tables) > 10 and max(map(len, tables)) <= 80 and not any(name in line for line in tables for name in names)
    )
    assert report["comparisons"][1]["verdict"] in lines and names[2] in report["comparisons"][1]["verdict"]
    assert f"- {legend[2]}\n" in (tmp_path / "out" / "report.md").read_text()
    latex = formats.latex(report).splitlines()
    assert [line.partition(" &")[0] for line in latex if line.count("&") == 5][1:] == ["A", "B", "C"]
    assert [line for line in latex if "multicolumn{6}{l}" in line and r"fasterrcnn\_resnet50" in line] == latex[-4:-1]
    many = {"sides": [{"label": f"{'long' * 10}{number}"} for number in range(60)], "comparisons": []}
    assert len({side["label"] for side in formats.lettered(many)[0]["sides"]}) == 60


def test_rows_that_are_zero_on_both_sides_are_one_line(here, tmp_path):
    for name, seed in (("blind", 1), ("blinder", 2)):
        cells = [each for each in results_of(30, 0.6, seed) if each["category_id"] == 1]
        keep_run(name, tmp_path, experiment="zeros", share=0.6, seed=seed, results=cells)
    told = "0 on both sides, left out: 1 (AP/plate_let)"
    report = of("blind", "blinder", images=0)
    for text in (formats.text(report), formats.markdown(report), formats.note(report, "")):
        assert told in text.splitlines() and text.count("AP/plate_let") == 1 and "AP/cell & co" in text
    assert report["comparisons"][0]["scores"]["AP/plate_let"]["high"] == 0 and "AP/plate_let" in formats.csv(report)
    one_side = formats.text(of("blind", "weak-0", images=0))
    assert "left out" not in one_side and "AP/plate_let" in one_side
    nothing = report["comparisons"][0]["scores"]["AP/plate_let"]
    assert list(formats.telling({"scores": {"AP": nothing, "AP50": nothing}})) == ["AP"]


def test_images_that_a_run_was_trained_on_are_told_however_they_are_annotated(here):
    seen = {name: f"{number:016x} 1" for number, name in enumerate(NAMES)}  # the image's digest, its annotations'
    honest = keep_run("honest", here, share=0.9, seed=1, contents={"train": {"else.png": "f 1"}, "val": seen})
    of_before = {"train": {f"copy{number}.png": f"{number:016x}" for number in range(2)}, "val": seen}
    others = {"train": {f"copy{number}.png": f"{number:016x} 2" for number in range(3)}, "val": seen}
    converted = {"train": {f"{name.rpartition('.')[0]}.bmp": f"f{name} 1" for name in NAMES[:4]}, "val": seen}
    empty = {name: f"{value[:16]} {NO_OBJECTS if name == NAMES[0] else 1}" for name, value in seen.items()}
    doubtful = {
        "train": {f"{name[:2]}.bmp": f"f{value}" for name, value in list(empty.items())[:6]},
        "val": empty,
    }
    for count, contents in (("2", of_before), ("3", others), ("4", converted), ("at least 5", doubtful)):
        leaky = keep_run(f"leaky-{count[-1]}", here, share=0.9, seed=2, contents=contents)
        told = [line for line in of(honest, leaky)["notes"] if "was trained on" in line]
        assert told == [f"leaky-{count[-1]} ({leaky[:8]}) was trained on {count} of these 30 images, which flatters it"]


def test_it_is_logged_with_figures_and_is_no_training(here, run_script, tmp_path):
    process = run_script("compare.py", "weak-0", "strong-0", "--replicates", 50, "--json", "--output", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    store, run_id = open_store(), report["comparison_run_id"]
    run = store.run(run_id)
    assert (run.tags["kind"], run.experiment, run.status) == (COMPARISON, "cells", "FINISHED")
    assert run.metrics["difference/AP"] == report["comparisons"][0]["scores"]["AP"]["difference"]
    assert run.metrics["difference_low/AP"] < run.metrics["difference/AP"] < run.metrics["difference_high/AP"]
    assert {file.path for file in store.client.list_artifacts(run_id, "figures")} == {
        "figures/differences.png",
        "figures/changed_images.jpg",
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report | {"comparison_run_id": None}
    assert report["comparisons"][0]["verdict"] in (tmp_path / "out" / "report.md").read_text()
    assert {"report.md", "report.json"} <= {file.path for file in store.client.list_artifacts(run_id)}
    note = run.tags[NOTE]
    links, verdict = note.splitlines()[:2]
    assert links.startswith("[Figures](#/") and verdict == report["comparisons"][0]["verdict"]
    assert "- configuration: --lr 0.01 → 0.02\n" in note and "- code: the same commit, 0000000000\n" in note
    assert f"/runs/{run_id}/artifacts/figures/differences.png?" in note
    for name, side in zip(("weak-0", "strong-0"), report["sides"], strict=True):
        assert f"[{name}](#/experiments/{run.experiment_id}/runs/{side['runs'][0]['run_id']}?" in note
    with Image.open(tmp_path / "out" / "figures" / "changed_images.jpg") as picture:
        assert picture.size[0] > 3 * 480 and picture.size[1] > 6 * 360
    shown = json.loads(run_script("status.py", "--experiment", "cells", "--json").stdout)
    assert run_id not in {one["run_id"] for one in shown["runs"]}
    assert f"runs/{run_id}" in process.stderr
    with pytest.raises(WorkspaceError, match="comparison"):
        of("weak-0", run_id)


def test_the_images_that_changed_most_come_first(here):
    changed = of("weak-0", "strong-0", images=30)["comparisons"][0]["changed_images"]
    steps = [abs(one["candidate"] - one["baseline"]) for one in changed]
    assert steps == sorted(steps, reverse=True) and min(steps) > 0
    found_of = [results_of(30, 0.6, 0), results_of(30, 0.9, 1)]
    first = NAMES.index(changed[0]["file_name"]) + 1
    misses = [4 - sum(each["image_id"] == first for each in results) for results in found_of]
    assert [changed[0]["baseline"], changed[0]["candidate"]] == misses


def test_changed_images_show_what_is_right_wrong_and_not_found(here, tmp_path):
    right = found(1, BOXES[:1], np.array([1]), np.array([0.9]))
    wrong = found(1, np.array([[100, 200, 140, 240], BOXES[3]]), np.array([1, 1]), np.array([0.9, 0.9]))
    others = [found(number, BOXES, np.array(LABELS), np.full(4, 0.9)) for number in range(2, len(NAMES) + 1)]
    keep_run(
        "two-wrong",
        tmp_path,
        experiment="pictures",
        share=1,
        seed=0,
        source=str(here / "images"),
        results=coco_results([right, wrong, *others]),
    )
    store = open_store()
    runs = [stored_detections.of_run(store, store.find(name).run_id, "val", "best") for name in ("weak-0", "two-wrong")]
    same = same_images(runs, only_common=False)
    shown = [(run, metrics.evaluated(metrics.match(same.ground_truth, same.results_of(run)))) for run in runs]
    with Image.open(changed_images.draw(shown, same, NAMES[:1], tmp_path / "changed.png")) as image:
        picture = np.asarray(image)

    def color(panel, x, y):  # of the image's pixels, drawn at three quarters of their size
        return tuple(picture[2 * figures.TITLE_PIXELS + y * 3 // 4, panel * (480 + figures.GAP_PIXELS) + x * 3 // 4])

    blue, green, red, pink = (31, 119, 180), (44, 160, 44), (214, 39, 40), (227, 119, 194)  # of tab10
    bottoms = [(20, 50), (120, 240), (120, 50), (220, 50), (320, 50)]
    assert [color(2, *place) for place in bottoms] == [green, red, pink, pink, red]
    assert [color(0, *place) for place in bottoms] == [blue, (128, 128, 128), blue, blue, blue]
    for run, scores in shown:
        one = changed_images._judged("", run, scores, same, same.ground_truth)
        objects = zip(one.errors.unfound(), same.ground_truth["annotations"], strict=True)
        wrong_in = [each["image_id"] for kind, each in zip(one.errors.kinds, one.results, strict=True) if kind in WRONG]
        unfound_in = [each["image_id"] for unfound, each in objects if unfound]
        errors = np.bincount([*wrong_in, *unfound_in], minlength=len(NAMES) + 1)[1:]
        assert errors.tolist() == scores.errors.tolist()  # as the tables have them


def test_images_that_are_elsewhere_are_named_and_not_drawn(here, tmp_path, capfd):
    for name, seed in (("far", 8), ("farther", 9)):
        keep_run(name, tmp_path, share=0.8, seed=seed, source="/nowhere", digest="9")
    report = of("far", "farther", output=tmp_path / "out")
    assert report["comparisons"][0]["changed_images"]
    assert "not on this machine" in capfd.readouterr().err
    assert [file.name for file in (tmp_path / "out" / "figures").iterdir()] == ["differences.png"]


def test_runs_without_detections_get_the_command_that_makes_them(here, tmp_path):
    store = open_store()
    with pytest.raises(WorkspaceError, match=r"python evaluate.py --run \w{32} --split test"):
        of("weak-0", "weak-0", split="test")
    with pytest.raises(
        WorkspaceError, match=r"2 runs .*\n  for run in \w{32} \w{32}; do python evaluate.py --run \$run"
    ):
        of("weak-0", "weak-1", split="test")
    damaged = keep_run("damaged", tmp_path, share=0.8, seed=9)
    path = store.run_artifacts(damaged) / "detections" / "best_val.json.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedArtifact, match=r"best_val.*damaged"):
        of("weak-0", "damaged")


def test_pixels_are_those_of_the_image_and_of_no_other_file(here):
    store = open_store()
    run = stored_detections.of_run(store, store.find("weak-0").run_id, "val", "best")
    image = run.ground_truth()["images"][0]
    assert run.pixels(image).shape == (480, 640, 3)
    assert run.pixels(image | {"width": 641}) is None
    Image.new("RGB", (640, 480)).save(here / "outside.png")
    for name in ("../outside.png", str(here / "outside.png"), "gone.png"):
        assert run.pixels(image | {"file_name": name}) is None


def test_the_two_newest_that_detected_in_the_same_images_are_found(here, tmp_path):
    store = open_store()
    older = keep_run("older", tmp_path, share=0.8, seed=9, digest="7")
    keep_run("between", tmp_path, share=0.8, seed=9, digest="8")
    newer = keep_run("newer", tmp_path, share=0.8, seed=9, digest="7")
    assert newest_two(store, None, None) == newest_two(store, "cells", "val", "last") == (older, newer)
    going = keep_run("still-going", tmp_path, share=0.8, seed=9, digest="7", status="RUNNING")
    other = keep_run("also-going", tmp_path, share=0.8, seed=9, digest="10", experiment="going", status="RUNNING")
    assert newest_two(store, None, None) == (older, newer)
    newest = keep_run("newest", tmp_path, share=0.8, seed=9, digest="10", experiment="going")
    assert newest_two(store, "going", None) == (other, newest) and going not in newest_two(store, "cells", None)
    with pytest.raises(WorkspaceError, match=r"the same test\. Score two: python evaluate.py --run RUN --split test"):
        newest_two(store, "cells", "test")
    with pytest.raises(RunUnknown, match="nowhere"):
        newest_two(store, "nowhere", None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "two RUNs"),
        ({"runs": ("a",)}, "no comparison"),
        ({"against": ("a",)}, "before it"),
        ({"runs": ("a", "b"), "group_by": "lr"}, "--experiment"),
        ({"experiment": "e", "replicates": 19}, "--replicates"),
        ({"experiment": "e", "json": True, "format": "csv"}, "--json and --format csv contradict"),
        ({"experiment": "e", "split": "vall"}, "train, val, test, not vall"),
    ],
)
def test_what_makes_no_sense_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        CompareConfig(**options)


def test_a_run_twice_is_refused(here):
    with pytest.raises(ConfigError, match="twice"):
        of("weak-0", "weak-0", against=("strong-0",))
    run_id = open_store().find("weak-0").run_id
    for again in ("weak-0", run_id, run_id[:12]):  # however it is called
        with pytest.raises(ConfigError, match=rf"{run_id} \(weak-0\) is named twice and would be compared with itself"):
            of("weak-0", "strong-0", again)


def test_a_run_on_both_sides_is_refused_by_name(here, run_script):
    process = run_script("compare.py", "weak-0", "weak-1", "--against", "strong-0", "weak-1", "--no-log")
    run_id = open_store().find("weak-1").run_id
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(
        f"error: On both sides of --against: {run_id} (weak-1). Name each run on one side only"
    )


def test_the_precision_of_a_run_that_was_resumed_in_another_is_not_known(home, small):
    first = train.main(replace(small, max_steps=1))
    other = train.main(replace(small, max_steps=1, run_name="other"))
    assert of(first, other)["comparisons"][0]["scoring"] == ["the same, in float32 without --reference"]
    train.main(replace(small, max_steps=2, resume=first, amp="bf16", allow_change=("amp",)))
    (said,) = of(first, other)["comparisons"][0]["scoring"]
    assert f"--run {first} --split val" in said and other not in said


def test_trained_and_evaluated_runs_are_compared_as_they_are(home, small, capfd):
    first, second = (train.main(replace(small, max_steps=2, seed=seed)) for seed in (0, 1))
    report = of(first[:8], second)
    assert (report["dataset"], report["split"], report["images"]) == ("shapes", "val", 5)
    assert report["comparisons"][0]["configuration"] == {"seed": (["0"], ["1"])}
    assert report["comparisons"][0]["data"][0].startswith("the same in train")
    stored = open_store().run(first).metrics["best/AP"]
    assert report["sides"][0]["runs"][0]["scores"]["AP"] == pytest.approx(stored)
    evaluations = [evaluate.main(EvaluateConfig(run=run, split="test", replicates=0)) for run in (first, second)]
    on_test = of(first, second, split="test")
    scores = [side["runs"][0]["scores"]["AP"] for side in on_test["sides"]]
    assert scores == pytest.approx([each["metrics"]["AP"] for each in evaluations])
    assert not any("used to choose" in note for note in on_test["notes"])
    by_evaluation = of(evaluations[0]["evaluation_run_id"], second)
    assert by_evaluation["split"] == "test" and by_evaluation["comparisons"] == on_test["comparisons"]
    others = [EvaluateConfig(run=first, split="test", replicates=0, worst=0, **how) for how in HOW]
    told = of(*(each["evaluation_run_id"] for each in (evaluations[0], *map(evaluate.main, others))))
    scoring = ["in float32 → in bf16", "without --reference → with --reference"]
    assert [[line] for line in scoring] == [about["scoring"] for about in told["comparisons"]]
    runs = [run for side in told["sides"] for run in side["runs"]]
    assert [(run["amp"], run["reference"]) for run in runs] == [("off", False), ("bf16", False), ("off", True)]
    assert all(f"- scoring: {line}\n" in write(told) for line in scoring for write in (formats.text, formats.markdown))
    assert report["comparisons"][0]["scoring"] == ["the same, in float32 without --reference"]
    with pytest.raises(ConfigError, match="evaluation on test, not on --split val"):
        of(evaluations[0]["evaluation_run_id"], second, split="val")
