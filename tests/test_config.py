"""Options: defaults, what a resumed run may change, the round trip through JSON, and one message for a mistake."""

import json
import signal
import string
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import commandline
import config as options
from amounts import parse_interval
from commandline import ConfigError, parse
from compare import CompareConfig
from config import TrainConfig, from_plain, to_plain
from defaults import for_resume, resolved, to_repeat, with_model_of
from evaluate import EvaluateConfig
from prune import PruneConfig

COCO = {"data": "/data/coco"}


def default(name: str, **given):
    return getattr(resolved(TrainConfig(**COCO | given), cores=8)[0], name)


def test_defaults_are_the_published_recipe():
    config, chosen = resolved(TrainConfig(**COCO), cores=8)
    assert (config.model, config.weights, config.norm) == ("fasterrcnn_resnet50_fpn_v2", "coco", "batch")
    assert (config.epochs, config.batch_size, config.optimizer, config.lr) == (24, 4, "sgd", 0.005)
    assert (config.schedule, config.milestones, config.warmup_steps) == ("multistep", (16, 22), 500)
    assert (config.weight_decay, config.momentum, config.trainable_layers, config.workers) == (1e-4, 0.9, 3, 4)
    assert chosen == {name: getattr(config, name) for name in chosen}
    assert {f.name for f in fields(config) if getattr(config, f.name) != getattr(TrainConfig(**COCO), f.name)} == set(
        chosen
    )


def test_the_rate_follows_the_batch_unless_it_is_given():
    assert default("lr", batch_size=16) == pytest.approx(0.02)
    assert default("lr", batch_size=16, lr=0.003) == 0.003
    assert (default("lr", optimizer="adamw"), default("weight_decay", optimizer="adamw")) == (1e-4, 0.05)


def test_pretrained_statistics_are_frozen_and_random_ones_trained():
    assert default("norm", model="fasterrcnn_resnet50_fpn") == "frozen"
    assert default("norm", model="fasterrcnn_resnet50_fpn", weights="none") == "batch"
    assert default("norm", model="timm/resnet18") == "frozen"
    assert default("norm", model="timm/resnet18", weights="none") == "batch"


def test_weights_and_trained_layers_follow_the_model():
    assert default("weights", model="timm/resnet18") == "backbone"
    assert default("weights", backbone_weights=Path("r50.pth")) == "backbone"
    assert default("trainable_layers", model="timm/resnet18") is None
    assert default("trainable_layers", weights="none") == 5
    assert default("trainable_layers", model="fasterrcnn_mobilenet_v3_large_fpn", weights="none") == 6
    assert default("trainable_layers", model="fasterrcnn_mobilenet_v3_large_fpn") == 3


def test_milestones_follow_the_epochs_and_belong_to_multistep():
    assert default("milestones", epochs=12) == (8, 11)
    assert default("milestones", epochs=12, milestones=(3,)) == (3,)
    assert default("milestones", schedule="cosine") is None


@pytest.mark.parametrize("model", ["fasterrcnn_mobilenet_v3_large_320_fpn", "recipes.new_loss/fasterrcnn_resnet50_fpn"])
def test_torchvisions_models_keep_their_own_anchors_and_pyramid_on_generated_data(model):
    config = resolved(TrainConfig(model=model), cores=2)[0]
    assert (config.anchor_sizes, config.fpn_channels, config.image_min_size) == (None, None, 128)


def test_generated_data_have_a_recipe_of_their_own_that_flags_override():
    config, chosen = resolved(TrainConfig(epochs=3, lr=0.01), cores=8)
    assert (config.model, config.weights, config.epochs, config.lr) == ("timm/resnet10t", "none", 3, 0.01)
    assert (config.schedule, config.milestones, config.workers) == ("cosine", None, 0)
    assert not {"epochs", "lr"} & set(chosen)


def test_a_resumed_run_keeps_its_configuration_and_names_each_flag_that_differs():
    stored = resolved(TrainConfig(**COCO, seed=3), cores=8)[0]
    asked = replace(stored, lr=0.5, batch_size=8, epochs=30)
    with pytest.raises(ConfigError) as caught:
        for_resume(stored, asked)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "--lr (0.005 → 0.5)" in message and "--batch-size (4 → 8)" in message
    assert "--epochs" not in message and "--seed" not in message


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig) if f.name != "allow_change"])
def test_each_option_may_or_may_not_change_on_resuming(name):
    stored = resolved(TrainConfig(**COCO), cores=8)[0]
    other = {
        **{"weights": "none", "norm": "frozen", "schedule": "cosine", "amp": "bf16", "publish": "never"},
        **{"optimizer": "adamw", "tag": ("a=b",), "checkpoint_every": "7", "best_metric": "val/AP50"},
        **{"keep": "best,last", "disk_budget": "20GB", "cache": "5%"},
        **{"milestones": (1, 2), "anchor_sizes": (8, 16), "backbone_weights": Path("a.pth")},
        **{"ema": 0.9, "multi_scale": (64,), "from_run": "other", "strict": True, "dry_run": True},
        **{"clip_norm": 3.0, "lr": 0.5, "momentum": 0.5, "weight_decay": 0.5, "score_threshold": 0.5},
        **dict.fromkeys(("data", "model", "augmentation", "device", "experiment", "run_name", "resume"), "other"),
    }.get(name, 77)
    if name == "schedule":
        stored = replace(stored, milestones=None)
    if name == "classes":
        stored = replace(stored, weights="a.pth")
    if name == "backbone_weights":
        stored = replace(stored, weights="backbone")
    if name == "strict":
        stored = replace(stored, from_run="other")
    asked = replace(stored, **{name: other})
    free = {"epochs", "max_steps", "patience", "device", "workers", "checkpoint_every", "publish", "resume", "tag"}
    free |= {"from_run", "strict", "dry_run", "keep", "disk_budget", "cache"}
    if name in free:
        assert for_resume(stored, asked) == asked
    else:
        with pytest.raises(ConfigError, match=options.flag(name) + r" \("):
            for_resume(stored, asked)


def test_an_option_changes_on_resuming_when_that_is_allowed_by_name():
    stored = resolved(TrainConfig(**COCO), cores=8)[0]
    asked = replace(stored, resume="run", lr=0.5, weight_decay=0.25, allow_change=("lr", "--weight-decay"))
    assert for_resume(stored, asked) == replace(asked, allow_change=())
    with pytest.raises(ConfigError, match=r"--weight-decay \(0.0001 → 0.25\)\. .*: --allow-change weight-decay$"):
        for_resume(stored, replace(asked, allow_change=("lr",)))
    with pytest.raises(ConfigError, match=r"--batch-size \(4 → 8\)\. Start a new run$"):
        for_resume(stored, replace(asked, batch_size=8))
    with pytest.raises(ConfigError, match="--allow-change batch-size: what can be allowed to change is lr, "):
        replace(asked, allow_change=("batch-size",))
    with pytest.raises(ConfigError, match="give --resume RUN too"):
        replace(asked, resume=None)


def test_what_is_left_open_on_resuming_comes_from_the_run():
    stored = resolved(TrainConfig(**COCO, epochs=7), cores=8)[0]
    assert for_resume(stored, TrainConfig(**COCO)) == stored


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", ("steps", 500)), ("1", ("steps", 1)), ("10m", ("seconds", 600)), ("0.5m", ("seconds", 30))],
)
def test_intervals(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0", "-5", "2.5", "ten", "", "m", "0m", "-1m", "nan", "nanm", "inf", "infm", "10s"])
def test_intervals_that_are_none(text):
    with pytest.raises(ConfigError, match="--checkpoint-every"):
        parse_interval(text)


POSITIVE = st.floats(1e-6, 1e3)
WORD = st.text(string.ascii_letters + string.digits + " äß/-", min_size=1, max_size=12)


@given(
    chosen=st.fixed_dictionaries(
        {},
        optional={
            **{"data": WORD, "model": WORD, "run_name": WORD, "resume": WORD, "best_metric": WORD},
            **{"epochs": st.integers(1, 999), "workers": st.integers(0, 9), "seed": st.integers(0, 2**62)},
            **{
                "lr": POSITIVE,
                "weight_decay": st.floats(0, 1),
                "clip_norm": POSITIVE,
                "score_threshold": st.floats(0, 1),
            },
            **{
                "anchor_sizes": st.lists(st.integers(1, 999)).map(tuple),
                "milestones": st.lists(st.integers(1)).map(tuple),
            },
            **{"tag": st.lists(WORD.map(lambda word: f"{word}=x")).map(tuple)},
            **{"backbone_weights": WORD.map(Path), "checkpoint_every": st.integers(1, 9999).map(str)},
        },
    )
)
def test_configurations_survive_json(chosen):
    config = TrainConfig(**chosen)
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


def test_options_of_another_version_are_left_out():
    assert from_plain({"epochs": 3, "no_such_option": 1}) == TrainConfig(epochs=3)


WRONG = [
    (("--epocs", "3"), "--epochs"),
    (("--epochs", "0"), "--epochs must be above 0, not 0"),
    (("--epochs", "two"), "--epochs"),
    (("--lr", "nan"), "--lr must be above 0, not nan"),
    (("--workers", "-1"), "--workers must not be negative, not -1"),
    (("--optimizer", "adam"), "--optimizer"),
    (("--tag", "note"), "--tag takes KEY=VALUE, not 'note'"),
    (("--checkpoint-every", "soon"), "--checkpoint-every takes steps"),
    (("--schedule", "cosine", "--milestones", "3"), "--milestones belong to --schedule multistep"),
    (("--image-min-size", "800", "--image-max-size", "600"), "--image-min-size 800 is above --image-max-size 600"),
    (("--weights", "coco", "--backbone-weights", "a.pth"), "--backbone-weights and --weights coco"),
    (("stray",), "'stray' belongs to no option. --help lists all"),
    (("--epoch", "3", "--lrr=2"), "no option --epoch (is it --epochs?) and no --lrr (is it --lr?)"),
    (("--zzz",), "There is no option --zzz. --help"),
    (("--lr", "x"), "--lr takes a number, not 'x'"),
    (("--momentum", "x"), "--momentum takes a number, not 'x'"),
    (("--multi-scale", "a", "64"), "--multi-scale takes whole numbers, not 'a 64'"),
    (("--epochs",), "--epochs needs a value: a whole number"),
    (("--milestones",), "--milestones needs a value: whole numbers"),
    (("--anchor_sizes", "--dry-run"), "--anchor-sizes needs a value: whole numbers"),
    (("--resume", "a", "--allow-change", "--lr", "1"), "--allow-change needs a value: NAME …"),
    (("--multi-scale", "-1"), "--multi-scale takes sides in pixels, not [-1]"),
    (("--optimizer", "sdg"), "--optimizer takes {sgd,adamw}, not 'sdg'"),
    (("--publish", "x"), "--publish takes {auto,always,never}, not 'x'"),
]


@pytest.mark.parametrize(("arguments", "word"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_flag_is_one_message_and_exit_2(capfd, arguments, word):
    def never(config: TrainConfig) -> None:
        raise AssertionError("the script must not start")

    with pytest.raises(SystemExit) as caught:
        commandline.command(never, lambda: parse(TrainConfig, arguments))
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("error: ") and word in err and err.count("\n") == 1
    assert "Traceback" not in err


def test_a_word_that_may_be_a_run_is_said_to_need_its_option():
    with pytest.raises(
        ConfigError, match=r"'flip s2' belongs to no option \(if it is a RUN: --run 'flip s2'\)\. --help"
    ):
        parse(EvaluateConfig, ["flip s2"])


def test_an_option_that_must_be_given_is_named():
    with pytest.raises(ConfigError, match="--keep must be given"):
        parse(PruneConfig, ["a"])


def test_the_runs_of_the_other_side_must_be_given():
    with pytest.raises(ConfigError, match=r"^--against needs a value: RUN …$"):
        parse(CompareConfig, ["a", "b", "--against", "--no-log"])
    assert parse(CompareConfig, ["a", "--against", "b", "c", "--no-log"]).against == ("b", "c")


def test_flags_are_read_over_a_default():
    stored = resolved(TrainConfig(**COCO, tag=("a=1",)), cores=8)[0]
    assert parse(TrainConfig, [], default=stored) == stored
    assert parse(TrainConfig, ["--epochs", "3"], default=stored) == replace(stored, epochs=3)
    assert parse(TrainConfig, ["--tag", "a=1", "--tag", "b=2"]).tag == ("a=1", "b=2")


def outcome(capfd, main) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        commandline.command(main, lambda: None)
    return caught.value.code, *capfd.readouterr()


class Told(Exception):
    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def failing(error: BaseException):
    def main(_: None) -> None:
        raise error

    return main


def test_every_end_of_a_script_has_its_exit_code_and_message(capfd):
    assert outcome(capfd, lambda _: None) == (0, "", "")
    assert outcome(capfd, lambda _: 4) == (4, "", "")
    assert outcome(capfd, lambda _: Path("a")) == (0, "", "")
    assert outcome(capfd, failing(Told("no such run", 2))) == (2, "", "error: no such run\n")
    assert outcome(capfd, failing(Told("stopped by SIGTERM", 128 + signal.SIGTERM))) == (
        143,
        "",
        "stopped by SIGTERM\n",
    )
    assert outcome(capfd, failing(KeyboardInterrupt())) == (130, "", "stopped\n")


def test_a_fault_of_ours_says_where_it_is_and_asks_for_a_report(capfd):
    code, out, err = outcome(capfd, failing(KeyError("epoch")))
    assert (code, out) == (70, "")
    assert "KeyError: 'epoch'" in err and f"{__file__}:" in err and "in main" in err and "Please report" in err
    assert "Traceback" not in err


def test_weights_bring_their_model_with_its_sizes_where_these_are_left_open():
    kwargs = {"num_classes": 5, "norm": "batch", "image_min_size": 96, "anchor_sizes": [16, 32], "fpn_channels": 16}
    kwargs |= {"proposals": [2000, 1000], "multi_scale": [], "score_threshold": 0.05}
    built = {"builder": "timm/resnet10t", "kwargs": kwargs}
    config = with_model_of(TrainConfig(**COCO, image_min_size=128), built)
    assert (config.model, config.image_min_size, config.anchor_sizes) == ("timm/resnet10t", 128, (16, 32))
    assert (config.fpn_channels, config.proposals, config.multi_scale, config.norm) == (16, None, None, None)
    by_level = {"builder": "fasterrcnn_mobilenet_v3_large_fpn", "kwargs": {"anchor_sizes": [[32, 64]] * 3}}
    assert with_model_of(TrainConfig(**COCO), by_level).anchor_sizes is None
    other = TrainConfig(**COCO, model="timm/resnet18")
    assert with_model_of(other, built) == other


def test_a_run_on_generated_data_is_repeated_on_other_data_as_it_was():
    stored, chosen = resolved(TrainConfig(), cores=2)
    again = resolved(replace(to_repeat(stored, sorted(chosen), cores=2), data="/data/coco"), cores=2)[0]
    kept = ("model", "weights", "lr", "optimizer", "schedule", "epochs", "image_min_size", "anchor_sizes")
    assert [getattr(again, name) for name in kept] == [getattr(stored, name) for name in kept]
