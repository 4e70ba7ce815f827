"""What MLflow's UI makes of two runs and their comparison, rendered by a real browser without a window."""

import json
import os
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

import compare
from tests.conftest import NAMES, TwoRuns, open_store, work_in
from tests.server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to render the UI: apt-get install chromium"),
]
MODE = "workflowType=machine_learning"
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


class Page(HTMLParser):
    """The words of a rendered page, in `text` with | between its elements; its links and its pictures."""

    def __init__(self, html: str):
        super().__init__()
        self.words, self.links, self.pictures, self._skipped = [], [], [], 0
        self.feed(html)
        self.text = "|".join(self.words)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        known = dict(attributes)
        self._skipped += tag in ("script", "style")
        if tag == "a":
            self.links.append(known.get("href", ""))
        if tag == "img":
            self.pictures.append((known.get("alt"), known.get("src", "")))

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skipped and data.strip():
            self.words.append(re.sub(r"\s+", " ", data.strip()))


@pytest.fixture(scope="module")
def store(two_runs: TwoRuns):
    """The store of two runs, which were compared."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(two_runs.folder, patch)
        compare.main(compare.CompareConfig(runs=tuple(two_runs.run_ids), replicates=50))
        yield open_store()


@pytest.fixture(scope="module")
def rendered(two_runs: TwoRuns, store, tmp_path_factory):
    """Renders a page of the UI, given what follows `#` in its address."""
    server, profile = Server(two_runs.folder), tmp_path_factory.mktemp("chromium")

    def page(place: str) -> Page:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=4000,3000"]
        # Virtual time does not pass while the page waits for the server, however long that takes.
        options += [f"--user-data-dir={profile}", "--virtual-time-budget=15000", "--dump-dom"]
        command = [CHROMIUM, *options, f"{server.uri}/#{place}"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        ) as browser:
            try:
                return Page(browser.communicate(timeout=120)[0])
            except subprocess.TimeoutExpired:
                os.killpg(browser.pid, signal.SIGKILL)
                raise

    try:
        server.start()
        yield page
    finally:
        server.kill()


def place(store, run_id: str, page: str, **about: str) -> str:
    return store.ui_urls(run_id, **about)[page].partition("#")[2]


def test_the_page_of_a_run_has_its_note_numbers_and_checkpoints(two_runs: TwoRuns, store, rendered):
    run_id = two_runs.run_ids[0]
    run = store.run(run_id)
    page = rendered(place(store, run_id, "run"))
    assert f"|val/AP {run.metrics['best/AP']:.4f}|" in page.text and f"restore.py {run_id}" in page.text
    assert {NAMES[0], "Finished", run_id, "epoch-001"} <= set(page.words)
    for name in ("best/AP", "val/AP", "val/AP50"):
        assert run.metrics[name] in {float(value) for value in re.findall(rf"\|{name}\|({NUMBER})\|", page.text)}
    assert any(f"/runs/{run_id}/artifacts/figures/ap.png" in link for link in page.links)


def test_the_view_of_artifacts_opens_the_figure(two_runs: TwoRuns, store, rendered):
    page = rendered(place(store, two_runs.run_ids[0], "figures"))
    assert {"figures", "tables", "detections", "code", "data", "run.json"} <= set(page.words)
    assert any(alt == "figures/ap.png" and source.startswith("blob:") for alt, source in page.pictures)


def test_the_view_of_models_has_every_checkpoint_and_its_ap(two_runs: TwoRuns, store, rendered):
    page = rendered(place(store, two_runs.run_ids[0], "models"))
    scores = [one.metrics["val/AP"] for run_id in two_runs.run_ids for one in store.checkpoints(run_id)]
    assert len(scores) == page.words.count("Ready") == 4
    assert [page.words.count(name) for name in ("epoch-000", "epoch-001")] == [2, 2]
    assert [page.words.count(name) for name in NAMES] == [2, 2] and "val/AP" in page.words
    assert set(scores) <= {float(word) for word in page.words if re.fullmatch(NUMBER, word)}


def test_mlflows_own_comparison_has_both_runs(two_runs: TwoRuns, store, rendered):
    experiment = store.run(two_runs.run_ids[0]).experiment_id
    runs, experiments = (quote(json.dumps(ids)) for ids in (two_runs.run_ids, [experiment]))
    page = rendered(f"/compare-runs?runs={runs}&experiments={experiments}&{MODE}")
    assert "Comparing 2 Runs from 1 Experiment" in page.words
    assert {*NAMES, *two_runs.run_ids, "best/AP"} <= set(page.words)
    numbers = [f"{store.run(run_id).metrics['best/AP']:.3f}".rstrip("0") for run_id in two_runs.run_ids]
    assert "|".join(numbers) in page.text


def test_the_page_of_our_comparison_has_its_verdict_and_leads_to_the_runs(two_runs: TwoRuns, store, rendered):
    compared = next(run for run in store.newest_runs(9) if not run.is_training)
    page = rendered(place(store, compared.run_id, "run"))
    assert "second and first" in page.text or "second is" in page.text
    assert f"{compared.metrics['difference/AP']:+.3f}" in page.words and "difference/AP" in page.words
    for run_id in two_runs.run_ids:
        assert any(f"/runs/{run_id}?" in link for link in page.links)
    figures = place(store, compared.run_id, "figures", figure="differences.png")
    assert any(link.endswith(figures) for link in page.links)
    assert any(alt == "figures/differences.png" for alt, _ in rendered(figures).pictures)
