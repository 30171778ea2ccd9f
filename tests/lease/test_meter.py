"""`lease/meter.py`: time and money of a lease, by the monotonic clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from persistent_runner.lease.meter import Cost, Meter, cost_of, whole_hours

HOUR = timedelta(hours=1)
ZERO = timedelta(0)


def test_costs_add_up() -> None:
    """A sum with an unknown price has none."""
    one, other = Cost(60, 90, 1.0, 1.5), Cost(30, 30, 0.5, 0.5)
    assert one + other == Cost(90, 120, 1.5, 2.0)
    assert sum([one, other], Cost()) == one + other
    assert one + Cost(1, 1, None, None) == Cost(61, 91, None, None)


def test_the_cost_of_what_ran() -> None:
    """Per hour of the whole cluster, once from the command's start and once from the boot, which is never later."""
    assert cost_of(6.0, HOUR / 2, HOUR) == Cost(1800, 3600, 3.0, 6.0)
    assert cost_of(6.0, HOUR, HOUR / 2) == Cost(3600, 3600, 6.0, 6.0)
    assert cost_of(None, HOUR, HOUR) == Cost(3600, 3600, None, None)


@pytest.mark.parametrize(("asked", "sent"), [(0.1, 1), (1, 1), (1.01, 2), (7.5, 8), (8, 8)])
def test_walltimes_are_whole_hours(asked: float, sent: int) -> None:
    """Rounded up, as it is sent."""
    assert whole_hours(timedelta(hours=asked)) == timedelta(hours=sent)


def test_before_the_boot_nothing_costs() -> None:
    """A job in the queue is free; its latest end counts from its start."""
    meter = Meter(6.0, 8 * HOUR, "by its walltime of 8h")
    assert (meter.age, meter.cost, meter.left) == (ZERO, Cost(), 8 * HOUR)
    assert meter.end == "8h after it has started, by its walltime of 8h"
    meter.close()
    assert meter.cost == Cost()


def test_the_start_up_is_counted_apart() -> None:
    """From the first sign of a boot, and from the command's start."""
    meter = Meter(3600.0, HOUR, "by its walltime")
    meter.boot()
    assert meter.age == ZERO
    assert meter.cost.seconds == 0
    meter.start()
    meter.close()
    assert meter.cost.seconds_with_start_up > meter.cost.seconds > 0
    assert meter.cost.cost == pytest.approx(meter.cost.seconds)
    assert meter.cost.cost_with_start_up == pytest.approx(meter.cost.seconds_with_start_up)


def test_it_stands_still_when_it_is_closed() -> None:
    """After `Stopped` nothing costs any more."""
    meter = Meter(1.0, HOUR, "")
    meter.start()
    meter.close()
    assert meter.age == meter.age
    assert meter.cost == meter.cost


def test_the_switchs_count_corrects_the_age_upwards_alone() -> None:
    """A cluster that somebody else started is older than our look at it; a count that lags makes none younger."""
    meter = Meter(6.0, 8 * HOUR, "by its walltime of 8h")
    meter.start()
    meter.start(2 * HOUR)
    assert meter.age >= 2 * HOUR
    meter.start(HOUR)
    assert meter.age >= 2 * HOUR
    assert meter.left <= 6 * HOUR
    assert meter.cost.seconds_with_start_up >= 7200


def test_what_others_have_paid_is_left_out() -> None:
    """Who adopts a cluster pays from there on, and its time left is that of the whole."""
    meter = Meter(6.0, 8 * HOUR, "by its budget", used=2 * HOUR)
    meter.start(HOUR)
    assert meter.cost == Cost()
    meter.start(3 * HOUR)
    meter.close()
    assert meter.cost.seconds == pytest.approx(3600, abs=30)
    assert meter.cost.cost == pytest.approx(6.0, abs=0.1)
    assert meter.left == pytest.approx(5 * HOUR, abs=timedelta(seconds=30))


def test_the_end_is_told_as_a_time_of_day() -> None:
    """With its zone, and with what ends it."""
    meter = Meter(6.0, 8 * HOUR, "by max_cost = 40")
    meter.start(7 * HOUR)
    assert meter.end.endswith(", by max_cost = 40")
    told = datetime.strptime(meter.end[len("about ") :][:16], "%Y-%m-%d %H:%M").astimezone()
    assert abs(told - (datetime.now(UTC) + HOUR)) <= timedelta(minutes=2)
