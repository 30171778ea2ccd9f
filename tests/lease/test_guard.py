"""`lease/guard.py`: the limits of a lease by walltime, money and time, as its switch gets them."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from persistent_runner.errors import BudgetSpent, ConfigError
from persistent_runner.lease.guard import Budget, Guard
from persistent_runner.lease.meter import Cost

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
GUARD = Guard(orphan_busy=40 * MINUTE)
NOTHING = Cost()


def spent(money: float, with_start_up: float | None = None) -> Cost:
    """Return a cost of so much money."""
    return Cost(0, 0, money, money if with_start_up is None else with_start_up)


def about(time_: timedelta) -> object:
    """Compare but for the moment that the test itself takes."""
    return pytest.approx(time_, abs=timedelta(seconds=30))


def test_an_orphan_lives_so_long_at_most() -> None:
    """What is told to people is the switch's own limit and some looks more; a busy cluster never ends before."""
    guard = Guard(orphan_idle=10 * MINUTE, orphan_busy=5 * MINUTE, tick=timedelta(seconds=15))
    assert guard.idle_end == guard.busy_end == timedelta(minutes=10, seconds=45)
    assert Guard(orphan_busy=HOUR).busy_end == HOUR + timedelta(seconds=45)
    switch = guard.switch(2 * HOUR)
    assert switch is not None
    assert (switch.idle, switch.busy, switch.budget) == (40, 40, 480)
    assert switch.busy * switch.tick_seconds <= guard.busy_end.total_seconds()


def test_without_a_keeper_there_is_no_switch() -> None:
    """`keeper = false` leaves all of it out, and the walltime is the only end."""
    guard = Guard(keeper=False)
    assert guard.switch(HOUR) is None
    assert Budget().limit(4.0, NOTHING, 2 * HOUR, guard) == (2 * HOUR, "by its walltime of 2h")


def test_the_switch_ends_the_job_before_its_walltime() -> None:
    """Its files are saved by then: 5 minutes, or a tenth of a short walltime, which is sent as whole hours."""
    assert Budget().limit(4.0, NOTHING, timedelta(hours=7.5), GUARD) == (
        8 * HOUR - 5 * MINUTE,
        "by its walltime of 8h",
    )
    assert Budget().limit(4.0, NOTHING, 20 * MINUTE, GUARD)[0] == 55 * MINUTE


def test_what_is_left_of_the_money_limits_a_new_lease() -> None:
    """Earlier leases and this start's count, start-up as well, whichever is billed (row U6)."""
    budget = Budget(max_cost=10.0, earlier=spent(2.0, 3.0))
    limit, why = budget.limit(2.0, spent(0.5, 1.0), 8 * HOUR, GUARD)
    assert limit == 3 * HOUR  # (10 - 3 - 1) / 2
    assert why == "by max_cost = 10"


def test_the_shorter_of_all_limits_counts() -> None:
    """Walltime, money and time."""
    budget = Budget(max_cost=100.0, max_time=2 * HOUR)
    limit, why = budget.limit(1.0, NOTHING, 8 * HOUR, GUARD)
    assert limit == about(2 * HOUR + 40 * MINUTE)  # a trial that runs then may go on for orphan_busy
    assert why == "by max_time = 2h"
    assert budget.limit(1.0, NOTHING, HOUR, GUARD) == (55 * MINUTE, "by its walltime of 1h")


def test_no_limit_leaves_it_open() -> None:
    """Without max_cost and max_time nothing but the walltime ends a lease, with a price or without."""
    assert Budget().left(4.0, NOTHING, HOUR) == (None, "")
    assert Budget().left(None, NOTHING, HOUR) == (None, "")


def test_a_cost_that_nobody_can_keep_to_is_refused() -> None:
    """A platform that names no price cannot be held to a cost, and that is said before anything is spent (row U6)."""
    with pytest.raises(ConfigError, match=r"max_cost = 5 cannot be kept: the platform names no price"):
        Budget(max_cost=5.0).limit(None, NOTHING, HOUR, GUARD)


def test_a_lease_without_a_price_counts_at_the_present_one() -> None:
    """What an earlier start spent when no price was known is not taken for nothing."""
    earlier = spent(1.0) + Cost(1800, 3600, None, None)
    assert Budget(max_cost=10.0, earlier=earlier).left(2.0, NOTHING, HOUR)[0] == 4 * HOUR


def test_time_that_has_passed_counts() -> None:
    """`max_time` is of this start, by the clock that nobody sets."""
    budget = Budget(max_time=2 * HOUR, began=time.monotonic() - 3600)
    assert budget.left(None, NOTHING, timedelta(0))[0] == about(HOUR)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_cost=5.0, earlier=spent(4.0, 5.0)),
        Budget(max_cost=5.0, earlier=spent(7.0)),
        Budget(max_time=HOUR, began=time.monotonic() - 3 * 3600),
    ],
    ids=["cost", "more than all", "time"],
)
def test_nothing_left_asks_for_nothing(budget: Budget) -> None:
    """The error says which limit and what was spent; exit code 5 (row U6)."""
    with pytest.raises(BudgetSpent, match="left for another cluster by max_") as caught:
        budget.limit(2.0, NOTHING, 8 * HOUR, GUARD)
    assert caught.value.exit_code == 5
    assert "Raise it in [study]" in caught.value.remedy


def test_less_than_a_trial_needs_asks_for_nothing() -> None:
    """A cluster that ends before one trial could be over is money for nothing."""
    budget = Budget(max_cost=2.0)
    assert budget.limit(1.0, NOTHING, 8 * HOUR, GUARD, HOUR)[0] == 2 * HOUR
    with pytest.raises(BudgetSpent, match="Too little is left"):
        budget.limit(1.0, NOTHING, 8 * HOUR, GUARD, 2 * HOUR)
