"""machine.py: what a process may use."""

import os

from evaluating.scoring import loader_workers
from machine import usable_cores


def test_cores_are_those_that_the_process_may_run_on():
    before = os.sched_getaffinity(0)
    assert usable_cores() == len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == loader_workers(None, "a folder") == 1
    finally:
        os.sched_setaffinity(0, before)
