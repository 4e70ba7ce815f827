"""Many at once: trainings in one checkout and store, and first users of a store that does not exist yet."""

from pathlib import Path

import pytest

import publishing
import workspace
from tests.conftest import SMALL, open_store
from tests.faults import trial

pytestmark = pytest.mark.slow

TRAININGS, FIRST_USERS = 12, 4


def test_trainings_at_once_in_one_checkout(home, coco_folder, tally):
    """All finish, each with its own numbers as if alone, and what is published is the best of one of them."""
    with tally.several() as faults:
        faults["training beside 11 others"] += TRAININGS
        lines = [(*("--data", coco_folder), *SMALL, "--epochs", "2", "--seed", seed) for seed in range(TRAININGS)]
        children = [trial.start(home, "train.py", *line) for line in lines]
        for child in children:
            assert child.wait(400).code == 0, child.errors
        runs = [child.out.strip() for child in children]
        assert len(set(runs)) == TRAININGS
        store = open_store()
        for seed, run_id in enumerate(runs):
            run = store.run(run_id)
            assert (run.status, run.params["seed"]) == ("FINISHED", str(seed))
            assert [point.step for point in store.client.get_metric_history(run_id, "train/loss")] == list(range(1, 9))
            stored = store.checkpoints(run_id)
            assert [one.name for one in stored] == ["epoch-000", "epoch-001"]
            assert all(store.holds(one) for one in stored)
        losses = {store.run(run_id).metrics["train/loss"] for run_id in runs}
        assert len(losses) == TRAININGS  # of another seed each
        published = publishing.current_entry()
        (best,) = [one for one in store.checkpoints(published["run_id"]) if one.sha256 == published["sha256"]]
        assert published["run_id"] in runs and best.step == published["best"]["step"]
        assert list(workspace.PUBLISHED.parent.glob("*.kept-*")) == []


def test_first_users_of_a_new_store_at_once(home: Path, coco_folder, tally):
    (home / "mlflow.db").unlink()
    with tally.several() as faults:
        faults["first user of a new store beside 3 others"] += FIRST_USERS
        line = ("--data", coco_folder, *SMALL, "--max-steps", "1")
        children = [trial.start(home, "train.py", *line, "--seed", seed) for seed in range(FIRST_USERS)]
        for child in children:
            assert child.wait(300).code == 0, child.errors
        store = open_store()
        experiments = {store.run(child.out.strip()).experiment for child in children}
        assert len({child.out for child in children}) == FIRST_USERS and experiments == {"faster-rcnn"}
