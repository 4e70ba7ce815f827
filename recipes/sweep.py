"""The sweep of recipes/sweep.sh from Python, in one process: prints each group's mean over its seeds.

python -m recipes.sweep --data PATH --epochs 12        takes the flags of train.py
"""

import itertools
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import commandline
import config as options
import train
import workspace
from config import TrainConfig
from live_run import Stopped
from progress import say

RATES = (0.0025, 0.005, 0.01)
AUGMENTATIONS = ("flip", "standard")
SEEDS = (0, 1, 2)


def main(base: TrainConfig, rates=RATES, augmentations=AUGMENTATIONS, seeds=SEEDS) -> dict[str, list[float | None]]:
    """Train what is not finished; the best score of each run by group, None for a run that failed."""
    scores = defaultdict(list)
    for lr, augmentation, seed in itertools.product(rates, augmentations, seeds):
        group = f"lr{lr}-{Path(augmentation).stem}"
        run = replace(base, lr=lr, augmentation=augmentation, seed=seed, group=group, run_name=f"{group}-seed{seed}")
        try:
            scores[group].append(best_of(train.main(replace(run, resume="auto")), base.best_metric))
        except Stopped:  # by a signal: the same line goes on from here
            raise
        except Exception as error:  # the others may do better
            say(f"failed: {run.run_name}: {type(error).__name__}: {error}")
            scores[group].append(None)
    return scores


def best_of(run_id: str, metric: str) -> float:
    """The run's best score: its folder knows it, or the store if it was trained on another machine."""
    from tracking.store import open_store

    if best := workspace.RunFolder(run_id).state().get("best"):
        return best["value"]
    checkpoints = open_store(workspace.ROOT).checkpoints(run_id, metric=metric, with_pruned=True)
    return max(one.score for one in checkpoints if one.score is not None)


def table(scores: dict[str, list[float | None]], metric: str) -> str:
    """A line a group, the best first: mean, sample standard deviation and number of its runs."""
    found = {group: [value for value in values if value is not None] for group, values in scores.items()}
    lines = []
    for group, values in sorted(found.items(), key=lambda entry: -statistics.mean(entry[1] or [0.0])):
        mean = f"{statistics.mean(values):.4f}" if values else "-"
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(f"{group:<24} {metric} {mean}{spread} ({len(values)} of {len(scores[group])} runs)")
    return "\n".join(lines)


def script(base: TrainConfig) -> int:
    for name in ("resume", "from_run", "dry_run"):
        if getattr(base, name):
            raise commandline.ConfigError(
                f"{options.flag(name)} is for one run: python train.py {options.flag(name)} …"
            )
    scores = main(base)
    print(table(scores, base.best_metric))
    say(f"all runs: python status.py --experiment {base.experiment}")
    say(f"the best: python restore.py best --experiment {base.experiment}")
    return 1 if None in itertools.chain(*scores.values()) else 0


if __name__ == "__main__":
    default = TrainConfig(experiment="sweep", publish="never")
    commandline.command(script, lambda: commandline.parse(TrainConfig, default=default))
