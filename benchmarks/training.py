"""A training step of engine.train_steps against a plain loop over torchvision's model, on the CPU.

    python -m benchmarks.training [--model fasterrcnn_resnet50_fpn …] [--images 1] [--repeats 7]

Each way runs in a process of its own, in turn: the plain loop twice (how much of a ratio is noise), ours in float32
and in bfloat16, and ours with --reference. The losses of the first step, from the same weights and draws, are
compared; the floor is the step's FLOPs over the rate of a large matrix product, measured in between.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

import engine
from benchmarks import plain
from benchmarks.in_turn import measure, spread, table
from models import detector

CPU = torch.device("cpu")
SIDE = 4096  # of the matrices


def plain_loop(model: str, images: int) -> Callable[[], dict[str, float]]:
    network = plain.model(model).train()
    step = plain.training_step(network, plain.sgd(network), CPU)
    batch = plain.batch(model, images)
    seeds = iter(range(1, 1_000_000))

    def run() -> dict[str, float]:
        torch.manual_seed(engine.seed_of(0, next(seeds), 0, 0))  # as ours: the same proposals are sampled
        return step(*batch)

    return run


def ours(model: str, images: int, amp: torch.dtype | None = None, reference: bool = False) -> Callable:
    kwargs = {"trainable_layers": plain.TRAINABLE_LAYERS, "norm": "frozen", "norm_eps": plain.NORM_EPS}
    options = detector.resolve_architecture(model, num_classes=91, **kwargs)
    network = detector.build(options, reference=reference)
    network.load_state_dict(plain.model(model).state_dict())
    optimizer = engine.build_optimizer(network, "sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4, reference=reference)
    batches = itertools.repeat(plain.batch(model, images))
    steps = engine.train_steps(
        network,
        batches,
        optimizer,
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        torch.amp.GradScaler("cpu", enabled=False),
        steps_done=0,
        seed=0,
        device=CPU,
        amp=amp,
    )

    def run() -> dict[str, float]:
        losses = dict(next(steps).losses)
        losses.pop("loss")
        return losses

    return run


def product(dtype: torch.dtype) -> Callable[[], None]:
    one, other = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))

    def run() -> None:
        torch.mm(one, other)

    return run


def flops(model: str, images: int) -> int:
    """Of a plain step, forward and backward."""
    network = plain.model(model).train()
    pixels, targets = plain.batch(model, images)
    with FlopCounterMode(display=False) as counter:
        sum(network([image.float() / 255 for image in pixels], targets).values()).backward()
    return counter.get_total_flops()


def report(model: str, images: int, repeats: int) -> None:
    ways = {
        "plain": partial(plain_loop, model, images),
        "plain again": partial(plain_loop, model, images),
        "ours --reference": partial(ours, model, images, reference=True),
        "ours": partial(ours, model, images),
        "ours --amp bf16": partial(ours, model, images, amp=torch.bfloat16),
        "a product": partial(product, torch.float32),
        "a product in bf16": partial(product, torch.bfloat16),
    }
    taken, first = measure(ways, repeats=repeats)
    products = {dtype: taken.pop(f"a product{dtype}") for dtype in ("", " in bf16")}
    print(f"\n{model}, batches of {images}, {torch.get_num_threads()} threads; medians [range]; times as fast as plain")
    print(table(taken))
    for name in taken:
        off = max(abs(first[name][key] - value) for key, value in first["plain"].items())
        print(f"losses of the first step, {name} and plain: {off:.1e} apart at most")
    work = flops(model, images)
    for dtype, way in (("", "ours"), (" in bf16", "ours --amp bf16")):
        rate = 2 * SIDE**3 / statistics.median(one["seconds"] for one in products[dtype])
        floor = work / rate
        above = spread([one["seconds"] / floor for one in taken[way]], "times the floor")
        print(f"{way}: {work / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s would be {floor:.2f} s; it takes {above}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(plain.SIZES), default=list(plain.SIZES))
    parser.add_argument("--images", type=int, default=1, help="of a batch")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for name in arguments.model:
        report(name, arguments.images, arguments.repeats)
