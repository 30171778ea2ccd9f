"""A small campaign: every named point once, some deaths within recovery, and a few seeds of random events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaign import schedule
from tests.campaign.run import campaign

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = range(1, 9)


def test_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path) -> None:
    """Whenever a driver dies, and whatever happens to its cluster, the same line finishes the study."""
    found = campaign(tmp_path, kills=len(schedule.crash_points()), seeds=SEEDS, together=4)
    assert found.broken == []
    assert found.deaths >= 25  # some points are passed only in recovery, or only by what is not killed here
    assert found.seeds == len(SEEDS)
