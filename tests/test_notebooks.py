"""The notebooks run from top to bottom: where nothing was trained, and where something was."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, Trained, copy_of_repository

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jupyter's own packages


def executed(folder, name: str) -> str:
    """All that the notebook printed in the copy of the repository at `folder`."""
    notebook = nbformat.read(folder / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_with_and_without_runs(path, trained: Trained, tmp_path):
    assert "python train.py" in executed(copy_of_repository(tmp_path / "repository"), path.name)
    assert f"restore.py {trained.run_id}" in executed(trained.folder, path.name)
