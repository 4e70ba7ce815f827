"""Training steps and predictions on models small enough to follow."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import engine
from engine import DeviceError, NonFiniteLoss, learning_rate_factor, predict, seed_of, train_steps

CPU = torch.device("cpu")


class Toy(nn.Module):
    """Losses from a weight, an image's mean and a dropout draw; detects one box as large as the image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.seen = []

    def forward(self, images, targets=None):
        self.seen += [(tuple(image.shape), image.dtype, float(image.max())) for image in images]
        if not self.training:
            return [self.detections(image) for image in images]
        means = torch.stack([image.mean() * torch.ones(4) for image in images])
        wanted = torch.stack([target["boxes"].sum() for target in targets])
        out = self.layer(self.dropout(means)).squeeze(1)
        return {"loss_box_reg": ((out - wanted) ** 2).mean(), "loss_classifier": out.abs().mean()}

    def detections(self, image):
        height, width = image.shape[-2:]
        box = [[0.0, 0.0, float(width), float(height)]]
        return {"boxes": torch.tensor(box), "labels": torch.tensor([2]), "scores": torch.tensor([0.5])}


def batch(step: int, size: int = 2, box: float = 1.0):
    generator = torch.Generator().manual_seed(step)
    images = [torch.randint(0, 256, (3, 8, 8 + i), generator=generator, dtype=torch.uint8) for i in range(size)]
    targets = [{"image_id": 100 * step + i, "boxes": torch.full((1, 4), box)} for i in range(size)]
    return images, targets


class Training:
    """Everything that a run continues from."""

    def __init__(self, model=None, lr: float = 0.1):
        self.model = model or Toy()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def steps(self, batches, *, steps_done: int = 0, seed: int = 5, **more):
        parts = self.model, batches, self.optimizer, self.schedule, self.scaler
        return train_steps(*parts, steps_done=steps_done, seed=seed, device=CPU, **more)

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def state(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return {name: part.state_dict() for name, part in parts.items()}


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def numbers(step: engine.Step) -> tuple:
    return step.index, step.losses, step.gradient_norm, step.learning_rate, step.images


def test_a_step_reports_its_own_losses_norm_and_rate():
    training = Training()
    steps = list(training.steps([batch(1), batch(2, size=3)]))
    assert [(step.index, step.images) for step in steps] == [(1, 2), (2, 3)]
    for step in steps:
        assert list(step.losses) == ["loss", "loss_box_reg", "loss_classifier"]
        assert step.losses["loss"] == pytest.approx(step.losses["loss_box_reg"] + step.losses["loss_classifier"])
        parts = step.watch.parts()
        assert list(parts) == ["tracking", "data", "forward", "backward", "optimizer"][step.index == 1 :]
        assert min(parts.values()) >= 0 and sum(parts.values()) <= step.seconds
    assert [step.learning_rate for step in steps] == [pytest.approx(0.1), pytest.approx(0.05)]  # that it was made with


def test_images_arrive_as_floats_in_0_to_1_and_targets_unchanged():
    training = Training()
    images = [torch.full((3, 4, 4), 255, dtype=torch.uint8)]
    list(training.steps([(images, [{"image_id": 1, "boxes": torch.ones(1, 4)}])]))
    assert training.model.seen == [((3, 4, 4), torch.float32, 1.0)]
    assert images[0].dtype == torch.uint8


def test_a_run_continued_from_its_state_equals_one_that_was_never_interrupted():
    batches = [batch(number) for number in range(1, 7)]
    whole = Training()
    steps = [numbers(step) for step in whole.steps(batches)]
    for done in (1, 4):
        first = Training()
        list(first.steps(batches[:done]))
        state = first.state()
        torch.manual_seed(999)  # another process has another generator
        second = Training()
        for name, part in state.items():
            getattr(second, name).load_state_dict(part)
        assert [numbers(step) for step in second.steps(batches[done:], steps_done=done)] == steps[done:]
        assert equal(second.weights(), whole.weights())


def test_each_step_and_each_seed_draws_for_itself():
    def losses(**given) -> float:
        return next(Training().steps([batch(1)], **given)).losses["loss"]

    assert losses(steps_done=3) == losses(steps_done=3)
    drawn = [losses(steps_done=done) for done in range(6)]  # the same weights and batch: only dropout differs
    assert len(set(drawn)) > 3
    assert [losses(seed=6, steps_done=done) for done in range(6)] != drawn


def test_seeds_of_near_numbers_are_unrelated():
    seeds = {seed_of(seed, step, 0, 0) for seed in range(20) for step in range(200)}
    assert len(seeds) == 20 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2) != seed_of(2, 1)
    assert seed_of(0, 1, 0, 0) == seed_of(0, 1, 0, 0)


def test_clipping_limits_the_step_and_the_norm_is_the_one_before():
    free, clipped = Training(), Training()
    norm = next(free.steps([batch(1)])).gradient_norm
    before = clipped.weights()
    assert next(clipped.steps([batch(1)], clip_norm=norm / 4)).gradient_norm == pytest.approx(norm)
    moved = [after - at_first for after, at_first in zip(clipped.weights(), before, strict=True)]
    assert math.sqrt(sum(float((part**2).sum()) for part in moved)) == pytest.approx(0.1 * norm / 4, rel=1e-4)
    assert not equal(free.weights(), clipped.weights())


class Spoiled(Toy):
    """Its loss, or only its gradient, is not finite for boxes of 7."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how

    def forward(self, images, targets=None):
        losses = super().forward(images, targets)
        if self.training and float(targets[0]["boxes"][0, 0]) == 7:
            nothing = self.layer.weight.sum() * 0
            losses["loss_classifier"] = torch.sqrt(nothing) if self.how == "gradient" else nothing + float(self.how)
        return losses


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "gradient"])
def test_a_non_finite_loss_is_raised_before_the_weights_are_touched(how):
    training = Training(Spoiled(how))
    steps = training.steps([batch(1), batch(2), batch(3, box=7.0), batch(4)])
    next(steps), next(steps)
    before, momentum = training.weights(), training.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    with pytest.raises(NonFiniteLoss, match="tep 3") as caught:
        next(steps)
    assert equal(training.weights(), before)
    assert torch.equal(training.optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)
    error = caught.value
    assert (error.exit_code, error.step, error.image_ids) == (7, 3, [300, 301])
    assert error.boxes == [[[7.0] * 4], [[7.0] * 4]]
    assert set(error.losses) == {"loss", "loss_box_reg", "loss_classifier"}
    if how != "gradient":
        assert "loss_classifier" in str(error) and "loss_box_reg" not in str(error)


def test_predictions_are_in_original_sizes_and_in_the_order_of_the_images():
    model = Toy().train()
    found = list(predict(model, [batch(1), batch(2, size=3)], device=CPU))
    assert [one.image_id for one in found] == [100, 101, 200, 201, 202]
    assert [one.boxes.tolist() for one in found[2:]] == [[[0, 0, 8, 8]], [[0, 0, 9, 8]], [[0, 0, 10, 8]]]
    assert all((one.labels.tolist(), one.scores.tolist()) == ([2], [0.5]) for one in found)
    assert {shape for shape, _, _ in model.seen} == {(3, 8, 8), (3, 8, 9), (3, 8, 10)}


@pytest.mark.parametrize("was_training", [True, False])
def test_predicting_restores_the_mode_also_when_it_is_left_early(was_training):
    model = Toy().train(was_training)
    running = model.norm.running_mean.clone()
    for _ in predict(model, [batch(1)], device=CPU):
        assert not model.training and not model.norm.training
    assert model.training == model.norm.training == was_training
    left = predict(model, [batch(1)], device=CPU)
    next(left)
    left.close()
    assert model.training == was_training
    with pytest.raises(AttributeError):
        list(predict(model, [([None], [{"image_id": 1}])], device=CPU))
    assert model.training == was_training
    assert torch.equal(model.norm.running_mean, running)


def test_predictions_hold_no_gradient_and_training_goes_on_after_them():
    training = Training()
    list(predict(training.model, [batch(1)], device=CPU))
    next(training.steps([batch(1)]))
    assert all(not parameter.is_inference() for parameter in training.model.parameters())


class Linear(nn.Module):
    """The mean colour of an image goes through a layer; how often its weights were cast is in `casts`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: list, targets: list | None = None) -> list[dict] | dict:
        rows = self.layer(torch.stack([image.mean((1, 2)) for image in images]))
        if self.training:
            return {"loss": rows.sum()}
        ones = torch.ones(1)
        return [{"boxes": row[None], "labels": ones.long(), "scores": ones} for row in rows]


class Casts(TorchDispatchMode):
    """Counts the casts of the layer's weights."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and args[0].shape == (4, 3)
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_all_batches_and_anew_when_they_have_changed():
    model = Linear()
    batches = [([torch.full((3, 8, 8), 255, dtype=torch.uint8)], [{"image_id": 0}])] * 3
    with Casts() as casts:
        before = list(predict(model, batches, device=CPU, amp=torch.bfloat16))
    assert casts.count == 1
    with torch.no_grad():
        model.layer.weight.add_(1)
    after = list(predict(model, batches, device=CPU, amp=torch.bfloat16))
    assert (after[0].boxes - before[0].boxes).round() == pytest.approx(3)
    left = predict(model, batches, device=CPU, amp=torch.bfloat16)
    next(left)
    steps = Training(model).steps(batches, amp=torch.bfloat16)
    first, second = (next(steps).losses["loss"] for _ in range(2))
    assert second < first - 0.1  # trained, by gradients that the weights without them do not have
    left.close()
    assert torch.autocast_increment_nesting() == 1 and torch.autocast_decrement_nesting() == 0


def factor(step: int, schedule: str = "multistep", **more) -> float:
    options = {"warmup_steps": 100, "total_steps": 1000, "milestone_steps": (600, 900)}
    return learning_rate_factor(step, schedule=schedule, **options | more)


def test_warm_up_is_linear_from_a_thousandth():
    assert factor(0) == pytest.approx(1e-3)
    assert factor(50) == pytest.approx((1e-3 + 1) / 2)
    assert factor(99) < factor(100) == 1.0
    rises = [factor(step + 1) - factor(step) for step in range(100)]
    assert rises == pytest.approx([0.999 / 100] * 100)
    assert factor(0, warmup_steps=0) == 1.0


def test_milestones_divide_by_ten_from_their_step_on():
    assert [factor(step) for step in (599, 600, 899, 900, 999)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert factor(10, milestone_steps=(5,)) == pytest.approx(0.1 * factor(10))


def test_the_cosine_falls_from_one_to_zero():
    assert factor(0, "cosine") == pytest.approx(1e-3)
    assert [factor(step, "cosine") for step in (100, 550, 1000)] == pytest.approx([1, 0.5, 0])
    values = [factor(step, "cosine") for step in range(100, 1001)]
    assert values == sorted(values, reverse=True)
    assert 0 <= factor(999, "cosine") < 1e-5
    assert factor(1200, "cosine") == pytest.approx(0)  # never up again
    for step in (0, 5, 100):  # a run no longer than its warm-up
        assert 0 < factor(min(step, 99), "cosine", total_steps=100) <= 1


def test_the_optimizer_leaves_frozen_parameters_out():
    model = Toy()
    model.layer.bias.requires_grad_(False)
    sgd = engine.build_optimizer(model, "sgd", lr=0.1, momentum=0.8, weight_decay=0.01)
    adamw = engine.build_optimizer(model, "adamw", lr=0.2, momentum=0.8, weight_decay=0.05)
    for optimizer in (sgd, adamw):
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
            id(p) for p in model.parameters() if p is not model.layer.bias
        ]
    group = sgd.param_groups[0]
    assert (type(sgd), group["lr"], group["momentum"], group["weight_decay"]) == (torch.optim.SGD, 0.1, 0.8, 0.01)
    group = adamw.param_groups[0]
    assert (type(adamw), group["lr"], group["weight_decay"]) == (torch.optim.AdamW, 0.2, 0.05)


def test_devices_and_precision_that_are_not_there_are_named():
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(DeviceError, match=rf"--device {name}: .*cpu") as caught:
            engine.choose_device(name)
        assert (caught.value.exit_code, len(str(caught.value).splitlines())) == (2, 1)
    assert engine.choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match="--amp fp16 needs a GPU"):
        engine.amp_dtype("fp16", CPU)
    assert (engine.amp_dtype("off", CPU), engine.amp_dtype("bf16", CPU)) == (None, torch.bfloat16)


def test_bfloat16_losses_are_summed_and_reported_as_numbers():
    plain, mixed = next(Training().steps([batch(1)])), next(Training().steps([batch(1)], amp=torch.bfloat16))
    assert mixed.losses["loss"] == pytest.approx(plain.losses["loss"], rel=0.05)
    assert mixed.losses["loss"] != plain.losses["loss"]


def gradients(training: Training, batches: list, accumulate: int) -> list[torch.Tensor]:
    step = next(training.steps(batches, accumulate=accumulate))
    assert (step.batches, step.images) == (accumulate, 2 * accumulate)
    return [parameter.grad.clone() for parameter in training.model.parameters() if parameter.grad is not None]


def test_accumulation_takes_the_mean_gradient_of_its_batches_in_one_step():
    seeds = [seed_of(5, 1, number, 0) for number in range(3)]
    each = []
    for number, seed in enumerate(seeds, start=1):
        alone = Toy()
        alone.train()
        torch.manual_seed(seed)
        images, targets = batch(number)
        sum(alone([image.float().div(255) for image in images], targets).values()).backward()
        each.append([parameter.grad for parameter in alone.parameters() if parameter.grad is not None])
    wanted = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
    training = Training()
    together = gradients(training, [batch(1), batch(2), batch(3)], accumulate=3)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(together, wanted, strict=True))
    assert training.schedule.last_epoch == 1


def test_the_last_step_takes_the_batches_that_are_left_and_losses_are_means():
    batches = [batch(number) for number in range(1, 6)]
    steps = list(Training().steps(batches, accumulate=2))
    assert [(step.index, step.batches, step.images) for step in steps] == [(1, 2, 4), (2, 2, 4), (3, 1, 2)]
    assert steps[0].losses["loss"] == pytest.approx(
        steps[0].losses["loss_box_reg"] + steps[0].losses["loss_classifier"]
    )
    rest = Training()
    list(rest.steps(batches[:4], accumulate=2))
    alone = next(rest.steps(batches[4:], steps_done=2, accumulate=2))
    assert alone.losses == steps[2].losses  # not divided by a batch that is not there


def test_a_loss_that_is_no_number_in_a_later_batch_of_a_step_touches_no_weight():
    training = Training(Spoiled("nan"))
    before = training.weights()
    with pytest.raises(NonFiniteLoss) as caught:
        list(training.steps([batch(1), batch(2, box=7.0)], accumulate=2))
    assert caught.value.image_ids == [200, 201]
    assert equal(training.weights(), before)


def test_averaged_weights_follow_the_formula_and_leave_training_alone():
    batches = [batch(number) for number in range(1, 16)]
    plain, training = Training(), Training()
    average = engine.averaged(training.model, 0.5)
    weight, wanted = training.model.layer.weight, None
    for done, _ in enumerate(training.steps(batches, average=average)):
        decay = min(0.5, (1 + done) / (10 + done))
        new = weight.detach().double()
        wanted = new.clone() if wanted is None else decay * wanted + (1 - decay) * new
    list(plain.steps(batches))
    assert equal(training.weights(), plain.weights())
    assert torch.allclose(average.module.layer.weight.double(), wanted, rtol=1e-5)
    assert not torch.equal(average.module.layer.weight, weight)


def test_counters_of_batch_norms_are_copied_not_averaged():
    training = Training()
    average = engine.averaged(training.model, 0.9)
    for number, _ in enumerate(training.steps([batch(one) for one in range(1, 5)], average=average), start=1):
        training.model.norm.num_batches_tracked.fill_(10 * number)
    average.update_parameters(training.model)
    assert int(average.module.norm.num_batches_tracked) == 40


def test_half_precision_scales_the_loss_and_takes_its_step():
    """fp16 as on a GPU, with a scaler: the gradient that is reported is the unscaled one."""
    plain, half = Training(), Training()
    half.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10)
    whole, step = (
        next(training.steps([batch(1)], amp=amp)) for training, amp in ((plain, None), (half, torch.float16))
    )
    assert step.gradient_norm == pytest.approx(whole.gradient_norm, rel=0.05)
    assert not equal(half.weights(), Training().weights())


def test_a_step_whose_scaled_gradient_overflows_is_skipped_and_the_scale_falls():
    training = Training()
    training.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**127)
    before = training.weights()
    step = next(training.steps([batch(1, box=100.0)], amp=torch.float16))
    assert not math.isfinite(step.gradient_norm)
    assert equal(training.weights(), before)
    assert training.scaler.get_scale() == 2.0**126


def test_loaded_optimizer_state_lies_as_its_parameters_do():
    """Files are contiguous, and the fused AdamW reads state and weight by one index."""

    def trained(reload: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        optimizer = engine.build_optimizer(layer, "adamw", lr=0.1, momentum=0.9, weight_decay=1e-4)
        for seed in range(4):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            layer(torch.randn(2, 4, 8, 8)).square().sum().backward()
            optimizer.step()
            if reload:
                state = optimizer.state_dict()
                for moments in state["state"].values():
                    moments |= {name: moments[name].contiguous() for name in ("exp_avg", "exp_avg_sq")}
                optimizer.load_state_dict(state)
                engine.lay_out_as_parameters(optimizer)
        return layer.weight.detach()

    assert torch.equal(trained(reload=False), trained(reload=True))


def test_a_precision_without_instructions_for_it_is_told(monkeypatch):
    lacks = torch.cpu.get_capabilities() | {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: lacks)
    assert engine.emulates(torch.bfloat16, CPU)
    assert not engine.emulates(None, CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: lacks | {"avx512_bf16": True})
    assert not engine.emulates(torch.bfloat16, CPU)


def test_a_watch_sums_the_parts_of_several_batches_and_names_no_others():
    steps = list(Training().steps([batch(1), batch(2), batch(3)], accumulate=2))
    assert [list(step.watch.parts()) for step in steps] == [
        ["data", "forward", "backward", "optimizer"],
        ["tracking", "data", "forward", "backward", "optimizer"],
    ]
