"""The notebooks run from top to bottom: without a store, in an empty one, and where something was trained."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT, TwoRuns, copy_of_repository

DATA, COMPARE, FAILURES = NOTEBOOKS = ("01_look_at_data", "02_compare_runs", "03_inspect_failures")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter's own packages


def executed(folder: Path, *names: str) -> list[tuple[str, int]]:
    """What each notebook said in the copy of the repository at `folder`, and how many pictures it showed.

    A kernel costs seconds: all have the same one, emptied of the variables of the one before.
    """
    notebook, lengths = new_notebook(), []
    for name in names:
        cells = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4).cells
        notebook.cells += [new_code_cell("%reset -f"), *cells]
        lengths.append(1 + len(cells))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "notebooks")}}).execute()
    cells, said = iter(notebook.cells), []
    for length in lengths:
        outputs = [output for _ in range(length) for output in next(cells).get("outputs", ())]
        shown = [output.get("data", {}) for output in outputs]
        texts = [
            output.get("text", "") + one.get("text/markdown", "") for output, one in zip(outputs, shown, strict=True)
        ]
        said.append(("".join(texts), sum(any(kind.startswith("image/") for kind in one) for one in shown)))
    return said


def test_notebooks_are_stored_without_outputs():
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in paths] == sorted(NOTEBOOKS)
    for path in paths:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert cells and all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells), path


@pytest.mark.slow
def test_where_nothing_was_trained_they_say_what_to_do(tmp_path, empty_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = copy_of_repository(tmp_path / "repository")
    (data, pictures), *without_store = executed(folder, *NOTEBOOKS)
    assert "400" in data and "python train.py --data generated" in data and pictures == 2
    shutil.copy(empty_database, folder / "mlflow.db")
    for text, pictures in (*without_store, *executed(folder, COMPARE, FAILURES)):
        assert "python train.py" in text and pictures == 0


@pytest.mark.slow
def test_runs_are_compared_and_their_failures_shown(two_runs: TwoRuns, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (comparison, differences), (failures, pictures) = executed(two_runs.folder, COMPARE, FAILURES)
    for run_id in two_runs.run_ids:
        assert f"{run_id[:8]}  " in comparison.partition("###")[0]
    assert "### second against first" in comparison and "95% interval" in comparison
    assert differences >= 1
    assert f"run second ({two_runs.run_ids[1][:8]}), epoch-00" in failures and "5 images" in failures
    assert "  missed " in failures and f"evaluate.py --run {two_runs.run_ids[1]}" in failures
    assert pictures == 3  # confusion, costs, worst images
