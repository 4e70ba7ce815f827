"""A training step of engine.train_steps against a plain loop over torchvision's model.

    python -m benchmarks.training [--model NAME …] [--images N …] [--device cpu|cuda] [--repeats 7]

Each way runs in a process of its own, in turn: the plain loop twice (how much of a ratio is noise), ours with
--reference, as it is, and in bfloat16. The losses of the first step, from the same weights and draws, are compared; the
floor is the step's FLOPs over the rate of a large matrix product, measured in between.
"""

import itertools
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import engine
from benchmarks import plain
from benchmarks.in_turn import against_plain, main
from models.compiled import compile_backbone

Losses = dict[str, float]


def plain_loop(model: str, images: int, device: str) -> Callable[[], Losses]:
    network = plain.model(model).to(device).train()
    step = plain.training_step(network, plain.sgd(network), torch.device(device))
    pixels, targets = plain.batch(model, images)
    floats = [image.float() / 255 for image in pixels]  # as its loader would give them
    seeds = itertools.count(1)

    def run() -> Losses:
        torch.manual_seed(engine.seed_of(0, next(seeds), 0, 0))  # as ours: the same proposals are sampled
        return step(floats, targets)

    return run


def ours(
    model: str,
    images: int,
    device: str,
    *,
    amp: torch.dtype | None = None,
    reference: bool = False,
    compiled: bool = False,
) -> Callable[[], Losses]:
    network = plain.ours(model, reference=reference)
    if compiled:
        compile_backbone(network)
    network.load_state_dict(plain.model(model).state_dict())
    network.to(device)
    optimizer = engine.build_optimizer(network, "sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4, reference=reference)
    steps = engine.train_steps(
        network,
        itertools.repeat(plain.batch(model, images)),
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        torch.amp.GradScaler(device, enabled=False),
        steps_done=0,
        seed=0,
        device=torch.device(device),
        amp=amp,
    )

    def run() -> Losses:
        losses = dict(next(steps).losses)
        losses.pop("loss")
        return losses

    return run


def flops(model: str, images: int) -> int:
    """Of a plain step, forward and backward."""
    network = plain.model(model).train()
    pixels, targets = plain.batch(model, images)
    with FlopCounterMode(display=False) as counter:
        sum(network([image.float() / 255 for image in pixels], targets).values()).backward()
    return counter.get_total_flops()


def compared(found: Losses, expected: Losses) -> str:
    return f"losses of the first step {max(abs(found[key] - expected[key]) for key in expected):.1e} apart at most"


COMPILED = {"ours --amp bf16 --compile": {"amp": torch.bfloat16, "compiled": True}}
report = against_plain(plain_loop, ours, flops, compared, on_gpu=COMPILED)

if __name__ == "__main__":
    main(__doc__, report)
