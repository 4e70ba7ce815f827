"""What MLflow's UI makes of two runs and their comparison, rendered by a real browser without a window."""

import json
import re
import shutil
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

import compare
from tests.conftest import NAMES, TwoRuns, open_store, work_in
from tests.server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to render the UI: apt-get install chromium"),
]
MODE = "workflowType=machine_learning"
PATIENCE = 120_000  # ms until a page must have what is asked for: it loads in parts, late where the machine is busy


@pytest.fixture(scope="module")
def store(two_runs: TwoRuns):
    """The store of two runs, which were compared."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(two_runs.folder, patch)
        compare.main(compare.CompareConfig(runs=tuple(two_runs.run_ids), replicates=50))
        yield open_store()


@pytest.fixture(scope="module")
def opened(two_runs: TwoRuns, store):
    """Opens a page of the UI, given what follows `#` in its address."""
    server = Server(two_runs.folder)
    try:
        server.start()
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, timeout=PATIENCE) as browser,
        ):
            # So large that tables, which render what is in sight, have every row and column.
            window = browser.new_page(viewport={"width": 4000, "height": 3000})
            window.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)

            def page(place: str) -> Page:
                window.goto("about:blank")  # else only what follows # changes, and the page before may answer
                window.goto(f"{server.uri}/#{place}")
                return window

            yield page
    finally:
        server.kill()


def place(store, run_id: str, page: str, **about: str) -> str:
    return store.ui_urls(run_id, **about)[page].partition("#")[2]


def cells(page: Page, row: str) -> Locator:
    """Those of the first row that has this cell."""
    first = page.get_by_role("cell", name=row, exact=True)
    return page.get_by_role("row").filter(has=first).first.get_by_role("cell")


def shown(page: Page, number: float) -> str:
    """The number as JavaScript writes it."""
    return page.evaluate("String", number)


def test_the_page_of_a_run_has_its_note_numbers_and_checkpoints(two_runs: TwoRuns, store, opened):
    run_id = two_runs.run_ids[0]
    run = store.run(run_id)
    page = opened(place(store, run_id, "run"))
    expect(page.get_by_role("heading", name=NAMES[0], exact=True)).to_be_visible()
    expect(page.get_by_text(f"val/AP {run.metrics['best/AP']:.4f}", exact=True)).to_be_visible()
    expect(page.get_by_text(f"python restore.py {run_id}")).to_be_visible()
    for words in ("Finished", run_id, "epoch-001"):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()
    for name in ("best/AP", "val/AP", "val/AP50"):
        expect(cells(page, name).nth(1)).to_have_text(shown(page, run.metrics[name]))
    with page.expect_popup() as figures:  # a link that can be clicked at once opens a new tab
        page.get_by_role("link", name="Figures", exact=True).click()
    expect(figures.value.get_by_role("img", name="figures/ap.png")).to_be_visible()
    figures.value.close()


def test_the_view_of_artifacts_opens_the_figure(two_runs: TwoRuns, store, opened):
    page = opened(place(store, two_runs.run_ids[0], "figures"))
    for name in ("figures", "tables", "detections", "code", "data", "run.json"):
        expect(page.get_by_role("listitem").get_by_text(name, exact=True)).to_be_visible()
    expect(page.get_by_role("img", name="figures/ap.png")).to_be_visible()


def test_the_view_of_models_has_every_checkpoint_and_its_ap(two_runs: TwoRuns, store, opened):
    page = opened(place(store, two_runs.run_ids[0], "models"))
    for name in ("epoch-000", "epoch-001", *NAMES):
        expect(page.get_by_role("gridcell").get_by_role("link", name=name, exact=True)).to_have_count(2)
    expect(page.get_by_role("gridcell").get_by_text("Ready", exact=True)).to_have_count(4)
    expect(page.get_by_role("columnheader", name="val/AP", exact=True)).to_be_visible()
    scores = [one.metrics["val/AP"] for run_id in two_runs.run_ids for one in store.checkpoints(run_id)]
    assert len(scores) == 4
    for score in scores:
        expect(page.get_by_role("gridcell", name=shown(page, score), exact=True).first).to_be_visible()


def test_the_view_of_charts_has_the_trainings_alone(two_runs: TwoRuns, store, opened):
    page = opened(place(store, two_runs.run_ids[0], "experiment"))
    expect(page.get_by_text("2 matching runs", exact=True)).to_be_visible()
    for name in NAMES:
        expect(page.get_by_role("gridcell").get_by_role("link", name=name, exact=True)).to_be_visible()
    for title in ("best/AP", "val/AP50", "predictions/1", "train/loss"):
        expect(page.get_by_role("main").get_by_text(title, exact=True).first).to_be_visible()


def test_mlflows_own_comparison_has_both_runs(two_runs: TwoRuns, store, opened):
    experiment = store.run(two_runs.run_ids[0]).experiment_id
    runs, experiments = (quote(json.dumps(ids)) for ids in (two_runs.run_ids, [experiment]))
    page = opened(f"/compare-runs?runs={runs}&experiments={experiments}&{MODE}")
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment", exact=True).first).to_be_visible()
    for words in (*NAMES, *two_runs.run_ids):
        expect(page.get_by_text(words, exact=True).first).to_be_visible()
    numbers = [f"{store.run(run_id).metrics['best/AP']:.3f}".rstrip("0") for run_id in two_runs.run_ids]
    # A grid whose names and values lie in two parts: best/AP is its first row.
    expect(page.get_by_role("rowgroup").filter(has_text=re.compile("^best/AP")).first).to_be_visible()
    expect(page.get_by_role("rowgroup").filter(has_text=re.compile("^" + "".join(numbers))).first).to_be_visible()


def test_the_page_of_our_comparison_has_its_verdict_and_leads_to_the_runs(two_runs: TwoRuns, store, opened):
    compared = next(run for run in store.newest_runs(9) if not run.is_training)
    page = opened(place(store, compared.run_id, "run"))
    expect(page.get_by_role("paragraph").filter(has_text=re.compile("second and first|second is"))).to_be_visible()
    expect(cells(page, "AP").nth(3)).to_have_text(f"{compared.metrics['difference/AP']:+.3f}")
    expect(cells(page, "difference/AP").first).to_be_visible()
    for run_id in two_runs.run_ids:
        expect(page.locator(f"a[href*='/runs/{run_id}?']").first).to_be_visible()
    with page.expect_popup() as figures:
        page.get_by_role("link", name="Figures", exact=True).click()
    expect(figures.value.get_by_role("img", name="figures/differences.png")).to_be_visible()
    figures.value.close()
