"""The plate stack: OpenFOAM's heat density between the two limits that are known on paper, and its maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.studies.trial_here import Study, needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("blockMesh", "simpleFoam", package="openfoam")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("plate_stack", tmp_path)


def test_the_best_spacing_is_that_of_bejan_and_sciubba(study: Study) -> None:
    """A parabola through three spacings has its top at c between 2.7 and 3.1."""
    left, middle, right = (study.trial(c=c)["heat_density"] for c in (2.4, 2.9, 3.4))
    assert middle > max(left, right)
    top = 2.9 + 0.25 * (right - left) / (2 * middle - left - right)
    assert 2.7 < top < 3.1


def test_close_plates_carry_off_what_flows_between_them(study: Study) -> None:
    """At small spacings the air leaves as hot as the plates, and the flow is that of Poiseuille: D^2 P / (12 nu L)."""
    values = study.parameters({"c": 1.0})
    spacing = 2 * values["half"]
    flow = spacing**2 * values["pressure"] / (12 * values["viscosity"] * values["length"])
    assert study.trial(c=1.0)["heat_density"] == pytest.approx(flow, rel=0.05)
