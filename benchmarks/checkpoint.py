"""How long a checkpoint of fasterrcnn_resnet50_fpn with SGD momentum (330 MB) holds up the training loop.

    python -m benchmarks.checkpoint [--repeats 7] [--folder DIR]

In turn: steps alone, with torch.save in the loop, with our own save in the loop (hashed, fsynced, replaced at one
instant), and with the writer that train.py uses. "held up" is the time that the call took, "the steps cost" how much
longer the steps took than alone, which counts what the writing thread takes from them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import engine
from models import checkpoint as checkpoints
from models import detector
from models.writer import Writer

STEPS, SIDE = 4, 128  # small images: what is measured is not the step


def training() -> tuple[Callable[[], None], Callable[[], dict], Writer]:
    """A function that does some optimizer steps, one that gives the state to save, and the writer of both."""
    torch.manual_seed(0)
    architecture = detector.resolve_architecture(
        "fasterrcnn_resnet50_fpn",
        num_classes=91,
        trainable_layers=5,
        image_min_size=SIDE,
        image_max_size=SIDE,
        proposals=100,
        roi_samples=32,
    )
    model = detector.build(architecture)
    optimizer = engine.build_optimizer(model, "sgd", lr=1e-4, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    target = {"boxes": torch.tensor([[20.0, 20.0, 90.0, 90.0]]), "labels": torch.tensor([1]), "image_id": 1}
    batch = ([torch.randint(0, 255, (3, SIDE, SIDE), dtype=torch.uint8)], [target])
    place = {"steps_done": 0, "seed": 0, "device": torch.device("cpu")}

    def steps() -> None:
        list(engine.train_steps(model, [batch] * STEPS, optimizer, schedule, scaler, **place))

    def state() -> dict:
        return {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}

    return steps, state, Writer(optimizer)


def measure(repeats: int, folder: Path) -> None:
    steps, state, writer = training()
    torch_file, our_file, written_file = (folder / name for name in ("torch.pth", "ours.pth", "writer.pth"))
    ways: dict[str, Callable[[], object]] = {
        "steps alone": lambda: None,
        "torch.save": lambda: torch.save(state(), torch_file),
        "save": lambda: checkpoints.save(state(), our_file),
        "writer": lambda: writer.write(state(), lambda copy: checkpoints.save(copy, written_file)),
    }
    held: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first is not counted: momentum and buffers come into being
        for name, save in ways.items():
            started = time.perf_counter()
            save()
            saved = time.perf_counter()
            steps()
            if repeat:
                held[name].append(saved - started)
                whole[name].append(time.perf_counter() - started)
            writer.wait()
    writer.close()
    print(f"{torch_file.stat().st_size / 1e6:.0f} MB, {repeats} times each, {STEPS} steps, medians (range)")
    for name in list(ways)[1:]:
        extra = [with_save - alone for with_save, alone in zip(whole[name], whole["steps alone"], strict=True)]
        print(f"{name:12} held up {in_ms(held[name]):28} the steps cost {in_ms(extra)}")
    ratios = [first / second for first, second in zip(held["torch.save"], held["writer"], strict=True)]
    print(f"torch.save / writer: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def in_ms(seconds: list[float]) -> str:
    low, middle, high = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write [a temporary folder]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        measure(arguments.repeats, Path(place))
