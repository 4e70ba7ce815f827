"""How long a run still takes: steps and validations are reckoned apart."""

import pytest

from pace import Pace, Shares


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def passes(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr("pace.time.monotonic", lambda: clock.now)
    return clock


def test_the_time_left_holds_the_steps_and_the_validations_ahead(clock):
    pace = Pace(total_steps=30, steps_per_epoch=10)
    clock.passes(50)  # the data are read, the first kernels found
    pace.step(1)
    assert pace.seconds_left is None
    for step in range(2, 11):
        clock.passes(2)
        pace.step(step)
    assert pace.seconds_left == 20 * 2
    clock.passes(30)
    pace.pause()
    assert pace.seconds_left == 20 * 2 + 2 * 30
    for step in range(11, 21):
        clock.passes(2)
        pace.step(step)
    assert pace.seconds_left == 10 * 2 + 2 * 30  # the validation that begins now is ahead
    clock.passes(30)
    pace.pause()
    assert pace.seconds_left == 10 * 2 + 30
    assert pace.seconds == 50 + 19 * 2 + 60


def test_a_resumed_run_and_one_that_max_steps_cuts_short(clock):
    pace = Pace(total_steps=25, steps_per_epoch=10, seconds_before=1000)
    pace.pause()  # the validation that the stopped process owed: nothing to compare it with yet
    for step in range(16, 21):
        pace.step(step)
        clock.passes(1)
    pace.pause()
    assert pace.seconds_left == 5 * 1 + 1 * 1
    for step in range(21, 26):
        clock.passes(1)
        pace.step(step)
    clock.passes(1)
    pace.pause()
    assert pace.seconds_left == 0
    assert pace.seconds == 1011


def test_shares_are_of_the_sum_of_all_steps_the_largest_first():
    shares = Shares()
    assert (shares.of("data"), str(shares)) == (0.0, "")
    shares.add({"data": 1.0, "forward": 2.0, "backward": 3.0})
    shares.add({"tracking": 1.0, "data": 0.0, "forward": 1.0, "backward": 2.0})
    assert (shares.of("data"), shares.of("backward"), shares.of("optimizer")) == (0.1, 0.5, 0.0)
    assert str(shares) == "backward 50%, forward 30%, data 10%, tracking 10%"
