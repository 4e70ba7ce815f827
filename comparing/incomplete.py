"""Which of the compared trainings are not whole: a verdict on them is of how far they got, not of what they become."""

from collections.abc import Sequence

import series
from stored_detections import Detected
from tracking.records import last_word


def trainings(side: Sequence[Detected]) -> list[str]:
    """Of a side those that have not finished, and those that were given fewer epochs than another of it, in words.

    What --patience ended early is whole: the steps that were planned count.
    """
    planned = {run.run.run_id: length for run in side if (length := _planned_epochs(run))}
    longest = max(planned.values(), default=0.0)
    lines = []
    for run in side:
        named, length = f"{run.run.name} ({run.run.run_id[:8]})", planned.get(run.run.run_id, longest)
        if run.run.is_training and run.run.status != "FINISHED":
            lines.append(f"{named} is {run.run.status}{_how_far(run)}")
        elif length < longest:
            steps = _counted(last_word(run.run.tags)["total_steps"], "step")
            epochs = _counted(length, "epoch")
            lines.append(f"{named} was trained for {steps} ({epochs}), not {_counted(longest, 'epoch')}")
    return lines


def _planned_epochs(run: Detected) -> float | None:
    known = last_word(run.run.tags)
    steps, of_an_epoch = known.get("total_steps"), known.get("steps_per_epoch")
    return steps / of_an_epoch if steps and of_an_epoch else None


def _how_far(run: Detected) -> str:
    position = series.how_far(series.told(last_word(run.run.tags)))
    if position == "-":
        return ""
    return f" at {position}" if position.startswith("step") else f" at epoch {position}"


def _counted(number: float, what: str) -> str:
    return f"{round(number, 2):g} {what}{'' if number == 1 else 's'}"
