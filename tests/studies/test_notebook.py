"""The plate's notebook runs from its first cell to its last."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    import pytest

STUDY = Path(__file__).parents[2] / "studies" / "plate"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acquire, put, run, get by hand, optimise twice, release: every cell works and the cluster ends Stopped."""
    shutil.copytree(STUDY, tmp_path / "plate")
    for name in [name for name in os.environ if name.startswith(("PERSISTENT_RUNNER_", "RESCALE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(tmp_path / "plate" / "plate.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path / "plate"}}
    ).execute()
    printed = [
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    ]
    assert "Stopped" in printed[-1]
    assert (tmp_path / "plate" / "runs" / "plate" / "trials.csv").read_text().count("COMPLETE") == 12
