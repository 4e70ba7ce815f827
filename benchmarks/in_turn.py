"""Ways of doing the same, each in a process of its own, asked in turn: A B C, C B A, …"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks import plain

Way = Callable[[], Callable[[], Any]]  # prepares, and returns what is measured
Taken = dict[str, list[dict[str, Any]]]
SIDE = {"cpu": 4096, "cuda": 16384}  # of the matrices whose product tells the machine's rate


def measure(ways: Mapping[str, Way], *, repeats: int, warm_up: int = 2) -> tuple[Taken, dict[str, Any]]:
    """By way {seconds, MiB, result} of each repeat, without those of the warm-up, and the result of the very first.

    MiB is the most memory until then: a GPU's own, or the process' resident memory since all was prepared.
    """
    processes = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    workers = []
    for name, way in ways.items():
        ends[name], theirs = processes.Pipe()
        workers.append(processes.Process(target=_answer, args=(way, theirs), daemon=True))
        workers[-1].start()
        theirs.close()  # else nobody would see that a worker has died: recv raises EOFError
        ends[name].recv()  # one prepares after the other
    taken: Taken = {name: [] for name in ways}
    first: dict[str, Any] = {}
    for repeat in range(warm_up + repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:
            ends[name].send("go")
            answer = ends[name].recv()
            first.setdefault(name, answer["result"])
            if repeat >= warm_up:
                taken[name].append(answer)
    for end in ends.values():
        end.send("end")
    for worker in workers:
        worker.join()
    return taken, first


def _answer(way: Way, end: Connection) -> None:
    run = way()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory begins anew
    end.send("ready")
    while end.recv() == "go":
        started = time.perf_counter()
        result = run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        end.send({"seconds": seconds, "MiB": _most_memory(), "result": result})


def _most_memory() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def against_plain(
    plainly: Callable[..., Way],
    ours: Callable[..., Way],
    flops: Callable[[str, int], int],
    compared: Callable,
    *,
    on_gpu: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Callable[[str, int, str, int], None]:
    """A function of (model, images, device, repeats) that measures both and prints what they took and how they differ.

    plainly(model, images, device) and ours(…, amp=, reference=) are ways; flops(model, images) what is to be computed;
    compared(found, expected) says how two first results differ. on_gpu names further ways of ours there.
    """

    def report(model: str, images: int, device: str, repeats: int) -> None:
        setting = model, images, device
        ways = {
            "plain": partial(plainly, *setting),
            "plain again": partial(plainly, *setting),
            "ours --reference": partial(ours, *setting, reference=True),
            "ours": partial(ours, *setting),
            "ours --amp bf16": partial(ours, *setting, amp=torch.bfloat16),
        }
        if device == "cuda":
            ways |= {name: partial(ours, *setting, **options) for name, options in on_gpu.items()}
        products = {"ours": torch.float32, "ours --amp bf16": torch.bfloat16}
        rates = {f"product for {way}": partial(_product, device, dtype) for way, dtype in products.items()}
        taken, first = measure(ways | rates, repeats=repeats)
        print(f"\n{model}, batches of {images} on {_machine(device)}; medians [range], times as fast as plain, memory")
        print("\n".join(_line(name, taken[name], taken["plain"]) for name in ways))
        for name in ("ours --reference", "ours"):
            print(f"{name} and plain: {compared(first[name], first['plain'])}")
        work = flops(model, images)
        for way in products:
            rate = 2 * SIDE[device] ** 3 / statistics.median(one["seconds"] for one in taken[f"product for {way}"])
            above = spread([one["seconds"] * rate / work for one in taken[way]], ".3f", " times")
            floor = f"{work / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, {work / rate:.3f} s"
            print(f"{way} takes {above} its floor of {floor}")

    return report


def _product(device: str, dtype: torch.dtype) -> Callable[[], None]:
    one, other = (torch.randn(SIDE[device], SIDE[device], dtype=dtype, device=device) for _ in range(2))

    def run() -> None:
        torch.mm(one, other)

    return run


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _line(name: str, each: list[dict[str, Any]], first: list[dict[str, Any]]) -> str:
    seconds = [one["seconds"] for one in each]
    ratios = [one["seconds"] / other for one, other in zip(first, seconds, strict=True)]
    return f"{name:26} {spread(seconds, '.3f', ' s'):26} {spread(ratios, '.3f', ' ×'):26} {each[-1]['MiB']:6.0f} MiB"


def spread(values: list[float], digits: str, unit: str = "") -> str:
    """The median and, in brackets, the range."""
    return f"{statistics.median(values):{digits}}{unit} [{min(values):{digits}}, {max(values):{digits}}]"


def main(description: str, report: Callable[[str, int, str, int], None]) -> None:
    """Read the command line and report on each model and size of batch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(plain.SIZES), default=list(plain.SIZES), help="[both]")
    parser.add_argument("--images", type=int, nargs="+", default=[1], help="of a batch [1]")
    parser.add_argument("--device", choices=list(SIDE), default="cpu", help="[cpu]")
    parser.add_argument("--repeats", type=int, default=7, help="[7]")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu")
    for name in arguments.model:
        for images in arguments.images:
            report(name, images, arguments.device, arguments.repeats)
