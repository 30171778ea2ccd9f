"""Every study that ships: it is read without a mistake, documented, and two of its trials run by `run-study`."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

import pytest

from persistent_runner.study.spec import StudySpec
from tests.driving import Place
from tests.studies.trial_here import STUDIES, mpi_compiles

if TYPE_CHECKING:
    from pathlib import Path

FILES = sorted(STUDIES.glob("*/*.toml"))
PROGRAMS = {"plate_calculix": "ccx", "truss": "ccx", "plate_stack": "simpleFoam"}


def name_of(file: Path) -> str:
    return file.relative_to(STUDIES).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_two_trials(file: Path, tmp_path: Path) -> None:
    """The one command of the README, for two trials."""
    program = PROGRAMS.get(file.parent.name)
    if program and shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    if file.parent.name == "water" and importlib.util.find_spec("epanet") is None:
        pytest.skip("no EPANET here (pip install owa-epanet)")
    if file.parent.name == "heat_mpi" and not mpi_compiles():
        pytest.skip("no MPI to compile with here (Debian: apt install openmpi-bin libopenmpi-dev)")
    spec = StudySpec.load(file)
    place = Place(tmp_path)
    place.run(file, "--n-trials", "2")
    assert [row["state"] for row in place.rows(spec.study.name)] == ["COMPLETE"] * 2


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda path: path.name)
def test_the_readme_names_the_command(folder: Path) -> None:
    """A study's README says how it is run and what must come out."""
    text = (folder / "README.md").read_text("utf-8")
    assert f"run-study studies/{folder.name}\n" in text
    assert "What must come out" in text
