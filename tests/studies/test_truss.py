"""The ten-bar truss: CalculiX finds the published weight, displacement and stress of the published optimum."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from persistent_runner.study.formula import Formula
from tests.studies.trial_here import STUDIES, Study, needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("ccx", package="calculix-ccx")
# Haftka and Guerdal, Elements of Structural Optimization, 1992: 5060.85 lb, at both limits
PUBLISHED = (30.52, 0.1, 23.20, 15.22, 0.1, 0.55, 7.46, 21.04, 21.53, 0.1)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("truss", tmp_path)


def areas(*values: float) -> dict[str, float]:
    return {f"a{number}": value for number, value in enumerate(values, start=1)}


def test_the_published_optimum(study: Study) -> None:
    """The areas of the book, rounded as there, weigh what the book says and use up both limits."""
    found = study.trial(**areas(*PUBLISHED))
    assert found["weight"] == pytest.approx(5060.85, abs=0.5)
    assert found["displacement"] == pytest.approx(2.0, abs=0.0005)
    assert found["stress"] == pytest.approx(25.0, abs=0.05)
    assert study.feasible(found)


def test_a_lighter_bar_breaks_a_limit(study: Study) -> None:
    """With one percent less of the heaviest bar it is lighter than published, and too soft."""
    lighter = [PUBLISHED[0] * 0.99, *PUBLISHED[1:]]
    found = study.trial(**areas(*lighter))
    assert found["weight"] < 5060.85
    assert not study.feasible(found)


def test_the_truss_is_linear(study: Study) -> None:
    """Twice the areas weigh twice as much and give half the displacement and stress: what scaled.toml rests on."""
    one, two = (study.trial(**areas(*(factor * area for area in PUBLISHED))) for factor in (1, 2))
    assert two["weight"] == pytest.approx(2 * one["weight"], rel=1e-5)
    assert two["displacement"] == pytest.approx(one["displacement"] / 2, rel=1e-5)
    assert two["stress"] == pytest.approx(one["stress"] / 2, rel=1e-5)


def test_the_start_is_feasible(study: Study) -> None:
    """The first design of the study keeps the limits, so that there is a feasible one from the beginning."""
    (start,) = study.toml["start"]
    assert study.feasible(study.trial(**start))


def test_scaled_is_the_same_study(study: Study) -> None:
    """scaled.toml has the deck, the space and the readers of study.toml, and an objective with the same optimum."""
    scaled = tomllib.loads((STUDIES / "truss/scaled.toml").read_text("utf-8"))
    assert (scaled["trial"], scaled["setup"]) == (study.toml["trial"], study.toml["setup"])
    assert scaled["space"] == {
        name: value | {"log": True} if isinstance(value, dict) else value for name, value in study.toml["space"].items()
    }
    formula = Formula(scaled["metrics"].pop("scaled_weight")["expr"])
    assert scaled["metrics"] == study.toml["metrics"]
    limits = {float(number) for number in re.findall(r"/ ([\d.]+)", formula.text)}
    assert limits == {limit["max"] for limit in study.toml["constraints"].values()}
    assert formula(study.trial(**areas(*PUBLISHED))) == pytest.approx(5060.85, abs=0.5)
    halved = study.trial(**areas(*(area / 2 for area in PUBLISHED)))
    assert formula(halved) == pytest.approx(5060.85, abs=0.5)  # too soft by half: as heavy as what makes up for it
