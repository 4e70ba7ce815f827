"""How long a run has taken and will still take, from the steps and validations of this process."""

import time
from collections.abc import Mapping


class Pace:
    """Tell it of every `step`, and of every `pause` after an epoch (its validation and saving).

    `seconds_before` is what earlier processes trained at the same run.
    """

    def __init__(self, *, total_steps: int, steps_per_epoch: int, seconds_before: float = 0.0):
        self.total_steps, self.steps_per_epoch, self.seconds_before = total_steps, steps_per_epoch, seconds_before
        self.began = time.monotonic()
        self.marked: float | None = None  # the end of the last step or pause; the first step only sets it
        self.at_step, self.paused_at = 0, 0
        self.steps, self.step_seconds = 0, 0.0
        self.pauses, self.pause_seconds = 0, 0.0

    def step(self, index: int) -> None:
        """The optimizer step `index` (counted over the whole run) is done."""
        now = time.monotonic()
        if self.marked is not None:
            self.steps, self.step_seconds = self.steps + 1, self.step_seconds + now - self.marked
        self.at_step, self.marked = index, now

    def pause(self) -> None:
        """The weights of this step are validated and saved."""
        if self.marked is None:
            return
        now = time.monotonic()
        self.pauses, self.pause_seconds = self.pauses + 1, self.pause_seconds + now - self.marked
        self.paused_at, self.marked = self.at_step, now

    @property
    def seconds(self) -> float:
        """Trained so far, in all processes together."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Until the last step and its validation are done; None before the second step.

        Before the first validation of this process, what validations take is not known and left out.
        """
        if not self.steps:
            return None
        steps_left = self.total_steps - self.at_step
        per_pause = self.pause_seconds / self.pauses if self.pauses else 0.0
        return self.step_seconds / self.steps * steps_left + per_pause * self._pauses_left()

    def _pauses_left(self) -> int:
        """Epoch ends ahead, the one that is being validated among them; the last may be cut short by --max-steps."""
        is_paused = self.paused_at == self.at_step
        epochs_over = self._epochs(self.at_step) if is_paused else (self.at_step - 1) // self.steps_per_epoch
        return self._epochs(self.total_steps) - epochs_over

    def _epochs(self, steps: int) -> int:
        return -(-steps // self.steps_per_epoch)


class Shares:
    """Of the time of some steps, what each of their parts takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, parts: Mapping[str, float]) -> None:
        """The seconds by part of one more step."""
        for part, seconds in parts.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def of(self, part: str) -> float:
        """In 0..1; 0 where nothing was added."""
        return self.seconds.get(part, 0.0) / (sum(self.seconds.values()) or 1.0)

    def __str__(self) -> str:
        largest_first = sorted(self.seconds, key=self.of, reverse=True)
        return ", ".join(f"{part} {self.of(part):.0%}" for part in largest_first)
