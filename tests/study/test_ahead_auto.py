"""How many trials are ahead: what was said, or what the times of a start make worth it."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from persistent_runner.study import ahead as module
from persistent_runner.study.ahead import Ahead
from persistent_runner.study.machines import Machines

if TYPE_CHECKING:
    from typing import Literal


def ahead(
    setting: int | Literal["auto"] = "auto", *, capacity: int = 1, round_trip: float = 0.1, queues: bool = True
) -> Ahead:
    return Ahead(
        setting,
        Machines(
            submit=lambda *_: Future(),
            capacity=lambda: capacity,
            stop_running=lambda: None,
            queues=queues,
            round_trip=lambda: round_trip,
        ),
    )


@pytest.mark.parametrize(
    ("run", "capacity", "count"),
    [(1.0, 1, 1), (9.9, 1, 1), (10.1, 1, 0), (0.05, 1, 2), (1.0, 64, 7), (0.001, 1, 16), (0.001, 64, 64), (0.0, 2, 16)],
)
def test_auto(run: float, capacity: int, count: int) -> None:
    """As many as end within the gap, from 1 % of a run on; never without end."""
    found = ahead(capacity=capacity)
    found.ran(run)
    assert found.count == count


def test_auto_knows_nothing_before_a_trial_has_ended() -> None:
    assert ahead().count == 0


def test_auto_is_not_changed_by_trials_at_the_edge(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on down to half a per cent, and is said once."""
    caplog.set_level("INFO")
    found = ahead()
    for run in (9.0, 11.0, 19.0, 9.0):
        for _ in range(20):
            found.ran(run)
        assert found.count == 1
    assert caplog.text.count("stage_ahead") == 1
    assert "trials of 9s would wait 0.10s for the next one; from here on 1 is sent ahead" in caplog.text
    for _ in range(20):
        found.ran(21.0)
    assert found.count == 0


def test_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that thinks for a second is worth it though the way is short."""
    clock = iter([10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = ahead(round_trip=0.0)
    found.ran(30.0)
    assert found.count == 0
    found.waits()  # nothing has ended yet
    found.wakes(1)
    found.waits()
    found.wakes(2)  # a second each
    found.waits()
    assert found.gap == 1.0
    assert found.count == 1


@pytest.mark.parametrize("setting", [0, 3])
def test_what_was_said_holds(setting: int) -> None:
    found = ahead(setting)
    found.ran(0.001)
    assert found.count == setting


def test_where_nothing_waits_auto_is_off() -> None:
    """An objective of Python chooses its parameters itself."""
    found = ahead(queues=False)
    found.ran(0.001)
    assert found.count == 0
