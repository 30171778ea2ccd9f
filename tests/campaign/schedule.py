"""What happens to a study: crash points of its drivers, and random events by a seed."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "persistent_runner"
RECOVERY = ("settling", "attaching", "given-back", "settled-trial")
"""Points that only a start after a death passes."""
OFTEN = (
    "asked",
    "attempt-recorded",
    "launched",
    "pushed",
    "ended",
    "pulled",
    "result-recorded",
    "output-recorded",
    "acknowledged",
    "told",
)
"""Points that are passed for each trial; the others are passed once in a start, if at all."""
RENEWAL = ("renewing", "settle-deleted")
"""Points that need more than deaths: `tests/benchmarks/orphans.py` has them."""


KINDS = (
    *("kill", "kill", "suspend"),
    *("drop", "drop", "refuse", "blackhole"),
    *("status", "lost", "dropped", "html", "truncated", "hang", "unknown_status"),
    *("agent", "supervisor"),
    *("preempt", "reboot"),
)
"""What random events are drawn from: the driver, SSH, the API, processes on the node, the node."""


@dataclass(frozen=True)
class Event:
    """Something that happens so many seconds after a study began.

    `kill` and `suspend` the driver, kill an `agent` or a `supervisor` of its commands, or a fault of the platform.
    """

    after: float
    what: str
    options: dict[str, Any] = field(default_factory=dict)


def crash_points() -> list[str]:
    """Return the names of all points at which a driver can be killed, as the code has them."""
    names = [
        name
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in re.findall(r'crash_point\("([a-z-]+)"\)', path.read_text("utf-8"))
    ]
    return list(dict.fromkeys(names))


def kills(count: int, seed: int = 1) -> list[tuple[str, ...]]:
    """Return lists of crash points, of so many deaths in all, or a few more.

    Each point once, and some deaths within recovery; then at random the later passages of points, one to four deaths of
    a study one after the other.
    """
    points = [point for point in crash_points() if point not in RENEWAL]
    found: list[tuple[str, ...]] = [(point,) for point in points if point not in RECOVERY]
    found += [("launched:2", "settling"), ("launched:2", "attaching"), ("launched:2", "given-back")]
    found += [("result-recorded", "settled-trial"), ("launched:2", "given-back:2", "settled-trial")]
    chance = random.Random(seed)
    while sum(map(len, found)) < count:
        found.append(tuple(_passage(chance, points) for _ in range(chance.randint(1, 4))))
    return found


def _passage(chance: random.Random, points: list[str]) -> str:
    point = chance.choice(points)
    return f"{point}:{chance.randint(1, 3)}" if point in OFTEN else point


def events(seed: int) -> list[Event]:
    """Return what happens to the study of a seed: three to ten events in its first seconds."""
    chance = random.Random(seed)
    return [_event(chance, chance.uniform(0.0, 6.0)) for _ in range(chance.randint(3, 10))]


def _event(chance: random.Random, after: float) -> Event:
    what = chance.choice(KINDS)
    if what in {"drop", "refuse", "blackhole"}:
        seconds = {} if what == "drop" else {"seconds": chance.uniform(0.2, 2.0)}
        return Event(after, "ssh", {"do": what, **seconds})
    if what == "suspend":
        return Event(after, what, {"seconds": chance.uniform(0.5, 3.0)})
    if what == "status":
        return Event(after, what, {"status": chance.choice((429, 500, 502, 503)), "times": chance.randint(1, 4)})
    if what in {"lost", "dropped", "html", "truncated"}:
        return Event(after, what, {"times": chance.randint(1, 3)})
    if what == "hang":
        return Event(after, what, {"times": 1, "seconds": chance.uniform(0.5, 3.0)})
    if what == "unknown_status":
        return Event(after, what, {"of": chance.choice(("job", "cluster", "both")), "times": chance.randint(1, 4)})
    if what in {"agent", "supervisor"}:
        return Event(after, what, {"which": chance.random()})
    if what == "preempt":
        return Event(after, what, {"relaunch": chance.choice((None, 0.5, 1.0))})
    return Event(after, what, {"seconds": chance.uniform(0.2, 1.0)} if what == "reboot" else {})
