"""The README's commands, word for word, in a copy of the repository and from an empty store."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy_of_repository
from tests.test_data_video import FRAMES, by_opencv

README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(name: str) -> str:
    found = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"README.md has no command {name}"
    return found[1]


def shell(text: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "OMP_NUM_THREADS"))}
    environment = kept | {"PATH": path}
    script = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        script, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )


@pytest.mark.slow
def test_the_main_job_and_what_follows_it(tmp_path):
    """The first command without its installation (the tests run in what it installed), then those that look."""
    folder = copy_of_repository(tmp_path / "repository")
    train = command("run").split("&&")[-1]
    trained = shell(train, folder)
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stdout.strip()
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    status = shell("python status.py --json", folder)
    report = json.loads(status.stdout)
    assert (report["state"], report["run_id"], report["run_status"]) == ("ready", run_id, "FINISHED")
    assert report["metrics"]["val/AP50"] >= 0.80
    looked = shell(command("look"), folder)
    assert looked.returncode == 0, looked.stderr
    assert len((folder / "outputs" / "detections.jsonl").read_text().splitlines()) == 100
    shutil.copytree(folder / "outputs" / "shapes" / "test", folder / "photos")
    shutil.copytree(folder / "outputs" / "shapes" / "val", folder / "more" / "deep")
    by_opencv(folder / "clip.mp4")
    detected = shell(command("detect"), folder)
    assert detected.returncode == 0, detected.stderr
    assert len((folder / "found.jsonl").read_text().splitlines()) == 100 + FRAMES + 100
    assert len((folder / "found.csv").read_text().splitlines()) > 100
    assert len(json.loads((folder / "found.json").read_text())["images"]) == 100
    assert len(list((folder / "drawn").glob("*.png"))) == 100 and (folder / "drawn" / "clip.mp4").exists()


def test_the_readme_names_every_script_and_no_other():
    named = set(re.findall(r"python (\w+\.py)", README))
    assert named == {path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
