"""The plate's deck in CalculiX: theory, and the numpy solver beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from persistent_runner.inputs import walk_inputs
from tests.studies.trial_here import STUDIES, Study, needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("ccx", package="calculix-ccx")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("plate_calculix", tmp_path)


def test_the_optimum_and_the_circle(study: Study) -> None:
    """Aspect 2, exponent 2 has 3.0 and the circle 5.0, as on paper."""
    assert study.trial(aspect=2.0, exponent=2.0)["peak_stress"] == pytest.approx(3.0, rel=0.02)
    assert study.trial(aspect=1.0, exponent=2.0)["peak_stress"] == pytest.approx(5.0, rel=0.03)


@pytest.mark.parametrize(("aspect", "exponent"), [(1.5, 2.5), (2.5, 1.7)])
def test_the_numpy_solver_says_the_same(study: Study, tmp_path: Path, aspect: float, exponent: float) -> None:
    """Two programs, one deck: the peaks are within 6 %."""
    (tmp_path / "numpy").mkdir()
    beside = Study("plate", tmp_path / "numpy").trial(aspect=aspect, exponent=exponent)["peak_stress"]
    assert study.trial(aspect=aspect, exponent=exponent)["peak_stress"] == pytest.approx(beside, rel=0.06)


def test_the_deck_is_the_plates(study: Study) -> None:
    """Deck and mesh are not copied: they are the plate's own files."""
    sources = {file.source.resolve() for file in walk_inputs(study.folder, study.toml["trial"]["inputs"])}
    assert {STUDIES / "plate/case/plate.inp.j2", STUDIES / "plate/case/mesh.py"} < sources
