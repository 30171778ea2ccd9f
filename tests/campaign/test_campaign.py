"""A small campaign, and whether it would find a bug."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.campaign.planted import BUGS, Bug, broken_with
from tests.campaign.run import campaign, of_kills, of_seeds
from tests.campaign.stories import STORIES

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = range(1, 31)


def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path) -> None:
    """Whenever a driver dies, and whatever happens to its cluster, the same line finishes the study."""
    plays = {**of_kills(0), **of_seeds(SEEDS), **STORIES}
    found = campaign(tmp_path, plays, together=10)
    assert found.broken == []
    assert found.deaths >= 25  # some points are passed only in recovery, or only by what is not killed here


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """Each play sees the bug that it is there for."""
    assert broken_with(bug)
