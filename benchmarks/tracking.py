"""How long a training step waits for tracking, with a store that is there, that dies in the middle, or that hangs.

    python -m benchmarks.tracking [--epochs 2] [--folder DIR]

Trains a small detector into each store in turn, with a new process's share of the sender, the heartbeat and the
checkpoint writer beside it. Timed is the training thread: what it spends in LiveRun.at and log_step in each step, in
everything that is logged after an epoch, and in ending the run. The server dies, or hangs, after a third of the steps.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import SMALL
from tests.server import Server

STEPS_AN_EPOCH = 200  # of the generated data, with two images at once


class Clock:
    """What the training thread spent where, in seconds."""

    def __init__(self, trouble_at: int, trouble: Callable[[], None]):
        self.steps: list[float] = []
        self.epochs: list[float] = []
        self.end = 0.0
        self.trouble_at, self.trouble = trouble_at, trouble

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Times the methods of LiveRun, and what report.py draws and logs, while it lasts."""
        from live_run import LiveRun
        from saving import Saver

        timed = ((LiveRun, "at"), (LiveRun, "log_step"), (LiveRun, "__exit__"), (Saver, "log_checkpoint"))
        methods = {name: getattr(owner, name) for owner, name in timed}

        def at(run, **position):
            if len(self.steps) == self.trouble_at:
                self.trouble()
            self.steps.append(seconds(methods["at"], run, **position))

        def log_step(run, *arguments):
            self.steps[-1] += seconds(methods["log_step"], run, *arguments)

        def log_checkpoint(saver, *arguments):
            self.epochs.append(seconds(methods["log_checkpoint"], saver, *arguments))

        def exit_(run, *arguments):
            self.end = seconds(methods["__exit__"], run, *arguments)

        LiveRun.at, LiveRun.log_step, LiveRun.__exit__, Saver.log_checkpoint = at, log_step, exit_, log_checkpoint
        try:
            yield
        finally:
            for owner, name in timed:
                setattr(owner, name, methods[name])


def seconds(call: Callable, *arguments, **keywords) -> float:
    started = time.perf_counter()
    call(*arguments, **keywords)
    return time.perf_counter() - started


def measure(title: str, folder: Path, uri: str | None, epochs: int, trouble: Callable[[], None] = lambda: None) -> None:
    """Train into the store and print what the training thread waited."""
    import commandline
    import train
    import workspace
    from config import TrainConfig

    workspace.ROOT, workspace.RUNS = folder, folder / "runs"
    workspace.PUBLISHED = folder / "models" / "faster_rcnn" / "checkpoint.pth"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    config = commandline.parse(TrainConfig, ["--data", "generated", *SMALL, "--epochs", str(epochs)])
    clock = Clock(epochs * STEPS_AN_EPOCH // 3, trouble)
    started = time.perf_counter()
    with clock.watching():
        train.main(config)
    took = time.perf_counter() - started
    steps = sorted(1000 * value for value in clock.steps)
    middle, most = statistics.median(steps), steps[len(steps) * 99 // 100]
    times = f"median {middle:.2f} ms, 99 % under {most:.2f} ms, longest {steps[-1]:.2f} ms"
    print(f"{title:16} {len(steps)} steps: {times}; the end {clock.end:.1f} s; all {took:.0f} s", flush=True)


def main(epochs: int, folder: Path) -> None:
    measure("local store", made(folder / "local"), None, epochs)
    for title, trouble in (("server", None), ("server killed", "kill"), ("server hanging", "hang")):
        server = Server(made(folder / f"{title} store"))
        server.start()
        try:
            measure(
                title, made(folder / title), server.uri, epochs, getattr(server, trouble) if trouble else lambda: None
            )
        finally:
            server.kill()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write [a temporary folder]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="tracking-") as place:
        main(arguments.epochs, Path(place))
