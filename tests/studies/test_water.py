"""The two-loop network: the known optimum costs 419,000 exactly and keeps 30 m of head."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.studies.trial_here import Study

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("epanet") is None, reason="no EPANET here (pip install owa-epanet)"
)
OPTIMUM = (11, 7, 10, 4, 10, 7, 7, 1)  # in inches 18 10 16 4 16 10 10 1


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("water", tmp_path)


def pipes(*sizes: int) -> dict[str, int]:
    return {f"pipe{number}": size for number, size in enumerate(sizes, start=1)}


def test_the_known_optimum(study: Study) -> None:
    """Not a unit more or less, and every place of use has its 30 m."""
    found = study.trial(**pipes(*OPTIMUM))
    assert found["cost"] == 419_000
    assert found["head"] == pytest.approx(30.44, abs=0.01)
    assert study.feasible(found)


def test_no_pipe_of_the_optimum_can_be_smaller(study: Study) -> None:
    """One size less in any pipe leaves somebody below 30 m."""
    for pipe, size in enumerate(OPTIMUM):
        if size > 1:
            smaller = [*OPTIMUM[:pipe], size - 1, *OPTIMUM[pipe + 1 :]]
            assert not study.feasible(study.trial(**pipes(*smaller))), pipe


def test_a_network_without_pressure_is_no_failed_trial(study: Study) -> None:
    """The thinnest pipes give a head far below zero, which the sampler is to see."""
    found = study.trial(**pipes(*[1] * 8))
    assert (found["cost"], found["head"] < 0) == (16_000, True)
