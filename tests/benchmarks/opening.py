"""How many round trips a login takes, and an agent after it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import far, median, milliseconds, moved
from tests.benchmarks.plain_ways import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.benchmarks.far import Far

TITLE = "Opening: round trips, by how much longer it takes on a line of 200 ms than without one"
RTT = 0.2
ROUND_TRIPS = 5  # TCP, banner and key exchange, key exchange, service, login
BAR = ROUND_TRIPS + 0.5


def measure(_: Path, repeats: int) -> list[Row]:
    """Return the round trips of `connect`, those of plain Fabric's, and those of a link that is opened on it."""
    with far(0.0) as near, moved(near, RTT) as away:
        ours, fabric, link = (_round_trips(way, near, away, repeats) for way in (_connect, _fabric, _link))
    return [
        Row("connect", ours, "RTT", BAR, peer=("plain Fabric", fabric), limit=ROUND_TRIPS),
        Row("connect and open a link", link, "RTT", None, limit=ROUND_TRIPS + 2),
    ]


def _round_trips(way: Callable[[Far], None], near: Far, away: Far, repeats: int) -> float:
    way(near)
    there, here = (median(milliseconds(functools.partial(way, place), repeats)) for place in (away, near))
    return (there - here) / (1000 * RTT)


def _connect(place: Far) -> None:
    place.connect().close()


def _fabric(place: Far) -> None:
    with plain(place) as connection:
        connection.open()


def _link(place: Far) -> None:
    with place.link():
        pass
