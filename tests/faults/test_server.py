"""kill -9 of the tracking server's whole process group at random instants of a training: nothing is lost or doubled."""

import os
import random
import time

import pytest

from tests.faults import trial
from tests.faults.outcome import differences, outcome
from tests.test_tracking_server import Server
from tracking.store import open_store

pytestmark = pytest.mark.slow

TRIALS = 5 if os.environ.get("FAULTS") else 1


@pytest.fixture
def server(home):
    (home / "server").mkdir()
    (home / "mlflow.db").rename(home / "server" / "mlflow.db")
    server = Server(home / "server")
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("seed", range(TRIALS))
def test_what_a_dead_server_missed_is_delivered_once(seed, server, home, line, reference, tally):
    dice, whole = random.Random(seed), reference("adamw")
    comes_back = dice.random() < 0.5
    with tally("kill -9 of the tracking server's group"):
        child = trial.start(home, "train.py", *line("adamw"), MLFLOW_TRACKING_URI=server.uri)
        while not list(home.glob("runs/*/run.json")):
            assert child.code is None, child.errors
            time.sleep(0.02)
        time.sleep(dice.uniform(0, whole.seen["seconds"]))
        server.kill()
        if comes_back:
            time.sleep(dice.uniform(0, 2))
            server.start()
        assert child.wait(300).code == 0, child.errors
        if not comes_back:
            server.start()
        synced = trial.run(home, "status.py", "--sync", MLFLOW_TRACKING_URI=server.uri)
        assert synced.code == 0, synced.errors
        assert differences(whole.outcome, outcome(open_store(home, server.uri), child.out.strip())) == []
        assert list(home.glob("runs/*/outbox/*")) == []
