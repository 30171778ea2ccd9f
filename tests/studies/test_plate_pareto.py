"""Two loads on one hole: the ends of the front are those of theory, and its middle is beyond every ellipse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.studies.trial_here import STUDIES, Study

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study("plate_pareto", tmp_path)


@pytest.mark.parametrize("aspect", [1.0, 1.5, 2.0])
def test_ellipses_are_as_on_paper(study: Study, aspect: float) -> None:
    """Inglis: 1 + 4 / aspect under the uneven load, 2 aspect under the even one."""
    found = study.trial(aspect=aspect, exponent=2.0)
    assert found["uneven"] == pytest.approx(1 + 4 / aspect, rel=0.02)
    assert found["even"] == pytest.approx(2 * aspect, rel=0.02)


def test_rounder_boxes_beat_every_ellipse_between_the_ends(study: Study) -> None:
    """(uneven - 1) even is 8 for every ellipse of the front; a hole of exponent 2.2 has 7.1, and both keep the bounds."""
    found = study.trial(aspect=1.4, exponent=2.2)
    assert (found["uneven"] - 1) * found["even"] == pytest.approx(7.06, abs=0.1)
    assert found["uneven"] > 3
    assert found["even"] > 2


def test_the_second_deck_differs_by_its_load_alone() -> None:
    """What is not the load, a comment or the title is the plate's own deck."""
    plate, even = (
        [line for line in (STUDIES / path).read_text("utf-8").splitlines()[2:] if not line.startswith("**")]
        for path in ("plate/case/plate.inp.j2", "plate_pareto/case/even.inp.j2")
    )
    assert [pair for pair in zip(plate, even, strict=True) if pair[0] != pair[1]] == [
        ("EDGE_X, P2, -2.", "EDGE_X, P2, -1.")
    ]
