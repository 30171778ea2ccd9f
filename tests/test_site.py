"""What is said before money is spent."""

from __future__ import annotations

from datetime import timedelta

import pytest

from persistent_runner.lease.platform import LeaseRequest, Quote
from persistent_runner.site import Site, line_before_money


def a_site(url: str) -> Site:
    return Site("default", url, platform=None, key=None, key_name="", poll=timedelta(seconds=1))  # type: ignore[arg-type]


def a_request() -> LeaseRequest:
    return LeaseRequest(name="n", command="", core_type="emerald", cores=72, walltime=timedelta(hours=7.5))


def test_the_line_says_what_and_how_much_at_most() -> None:
    """Cores, nodes, priority, platform, price, and the worst case if this machine disappears, by the whole hour."""
    site = a_site("https://platform.rescale.com")
    line = line_before_money(a_request(), Quote(price_per_hour=4.5, nodes=2, cores_per_node=36), site)

    assert line == (
        "72 cores of emerald on 2 nodes, on_demand, on default (https://platform.rescale.com); "
        "4.50 an hour; at most 8h (walltimes are whole hours), so 36.00, also if this machine disappears."
    )
    assert site.costs_money


def test_without_a_price_it_says_so() -> None:
    """A platform that names no price is not free: the line does not pretend."""
    line = line_before_money(a_request(), Quote(None, 1, 72), a_site("https://x.example.com"))
    assert "the platform names no price" in line
    assert "nothing is paid" not in line


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:1"])
def test_loopback_costs_nothing(url) -> None:
    """The local platform, and one served apart on this machine."""
    assert not a_site(url).costs_money
    assert line_before_money(a_request(), Quote(1.0, 1, 72), a_site(url)).endswith("local: nothing is paid.")
