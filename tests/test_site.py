"""What is said before money is spent."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from persistent_runner.lease.guard import Budget, Guard
from persistent_runner.lease.meter import Cost
from persistent_runner.lease.platform import LeaseRequest, Quote
from persistent_runner.site import Site, line_before_money


def a_site(url: str) -> Site:
    return Site("default", url, platform=None, key=None, key_name="", poll=timedelta(seconds=1))  # type: ignore[arg-type]


def a_request() -> LeaseRequest:
    return LeaseRequest(name="n", command="", core_type="emerald", cores=72, walltime=timedelta(hours=7.5))


MOST = (timedelta(hours=7, minutes=55), "by its walltime of 8h")
GUARD = Guard(orphan_idle=timedelta(minutes=10), orphan_busy=timedelta(hours=2), tick=timedelta(seconds=15))


def a_line(guard: Guard = GUARD, url: str = "https://x.example.com", price: float | None = 4.5) -> str:
    return line_before_money(a_request(), Quote(price, 2, 36), a_site(url), guard, MOST)


def test_the_line_says_what_and_how_much_at_most() -> None:
    """Cores, nodes, priority, platform, price, the most it can cost, and the worst case if this machine disappears."""
    assert a_line() == (
        "72 cores of emerald on 2 nodes, on_demand, on default (https://x.example.com); "
        "4.50 an hour, start-up perhaps billed as well; at most 7h55m (35.62), by its walltime of 8h; "
        "if this machine disappears, it ends by itself within 10m45s (0.81), or 2h (9.06) while a trial runs, "
        "and as long after its start where it is still queued."
    )
    assert a_site("https://x.example.com").costs_money


def test_one_limit_for_idle_and_busy_is_said_once() -> None:
    """Where a running trial changes nothing there is one worst case."""
    line = a_line(replace(GUARD, orphan_busy=timedelta(minutes=10)))
    assert "it ends by itself within 10m45s (0.81), and as long after its start" in line


def test_without_a_price_it_says_so() -> None:
    """A platform that names no price is not free: the line does not pretend, and names times alone."""
    line = a_line(price=None)
    assert "the platform names no price" in line
    assert "at most 7h55m, by its walltime" in line
    assert "within 10m45s, or 2h while a trial runs" in line
    assert "nothing is paid" not in line


def test_a_cluster_without_its_switch_is_said_loudly() -> None:
    """`keeper = false`: nothing ends it but the limit that was named."""
    line = a_line(replace(GUARD, keeper=False))
    assert "WITHOUT A DEAD-MAN'S SWITCH (keeper = false): if this machine disappears it runs until then" in line
    assert "ends by itself" not in line


def test_what_the_budget_leaves_is_the_most() -> None:
    """The line names the limit that comes first, here max_cost with what earlier leases have taken."""
    budget = Budget(max_cost=9.0, earlier=Cost(3600, 3600, 4.5, 4.5))
    limit = budget.limit(4.5, Cost(), timedelta(hours=7.5), GUARD)
    line = line_before_money(a_request(), Quote(4.5, 2, 36), a_site("https://x.example.com"), GUARD, limit)
    assert "at most 1h (4.50), by max_cost = 9;" in line


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:1"])
def test_loopback_costs_nothing(url) -> None:
    """The local platform, and one served apart on this machine."""
    assert not a_site(url).costs_money
    assert a_line(url=url).endswith("local: nothing is paid.")
