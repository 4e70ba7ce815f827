"""Ways of doing the same, each in a process of its own, asked in turn: A B C, C B A, …"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

Way = Callable[[], Callable[[], Any]]  # prepares, and returns what is measured


Taken = dict[str, list[dict[str, Any]]]


def measure(ways: Mapping[str, Way], *, repeats: int, warm_up: int = 2) -> tuple[Taken, dict[str, Any]]:
    """By way {seconds, cpu, result} of each repeat, without those of the warm-up, and the result of the very first."""
    processes = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    workers = []
    for name, way in ways.items():
        ends[name], theirs = processes.Pipe()
        workers.append(processes.Process(target=_answer, args=(way, theirs), daemon=True))
        workers[-1].start()
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
    end.send("ready")
    while end.recv() == "go":
        started, cpu = time.perf_counter(), time.process_time()
        result = run()
        end.send({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "result": result})


def table(taken: Taken, *, key: str = "seconds") -> str:
    """A line a way: its median and how many times as fast as the first it is, each with its range."""
    first = next(iter(taken.values()))
    lines = []
    for name, each in taken.items():
        ratios = [one[key] / other[key] for one, other in zip(first, each, strict=True)]
        lines.append(f"{name:24} {spread([one[key] for one in each], 's'):30} {spread(ratios, '×')}")
    return "\n".join(lines)


def spread(values: list[float], unit: str) -> str:
    """The median and, in brackets, the range."""
    return f"{statistics.median(values):.3f} {unit} [{min(values):.3f}, {max(values):.3f}]"
