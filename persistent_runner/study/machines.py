"""Where trials run, as the loop of a study sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from concurrent.futures import Future

    from persistent_runner.study.objective import Outcome


@dataclass(frozen=True)
class Saved:
    """What an attempt left that ended well on machines that are gone: its outcome, and how long its command ran."""

    attempt: int
    outcome: Outcome
    seconds: float


Saver = Callable[[Mapping[int, optuna.Trial]], Mapping[int, Saved]]
"""Gives, for trials by number, what their last attempts left on machines that are gone."""


def _nothing(*_: Any) -> None:
    """Do nothing, as machines without a lease when they are told something."""


@dataclass(frozen=True)
class Machines:
    """One cluster after the other.

    `submit(number, attempt, task)` runs `task(workdir)` somewhere and gives a future; at most `capacity` at a time.
    `stop_running()` ends what runs. `acknowledge(number, attempt)` is called when a result is on the disk. `node` and
    `where` name the machines that attempts run on, for people and among all of all leases; `left` is how many seconds
    these are there for. `renew(finished, needs)` replaces them, `finished` being the trials of this start that came to
    an end of their own and `needs` the seconds that one takes, and raises BudgetSpent where it may not.
    `price` is that of one trial per hour. While trials wait for another try, the cluster may idle for `most_idle`
    seconds. With `queues` more than `capacity` may be submitted: those wait on the machines and start there when one
    ends; `withdraw(number)` lets one fail that has not begun, with AttemptLost. `round_trip` is the way there and
    back in seconds.
    """

    submit: Callable[[int, int, Callable[[Any], Any]], Future[Any]]
    capacity: int
    stop_running: Callable[[], None]
    acknowledge: Callable[[int, int], None] = _nothing
    node: Callable[[], str] = str
    where: Callable[[], str] = str
    left: Callable[[], float] = lambda: math.inf
    renew: Callable[[int, float], None] = _nothing
    saved: Saver = lambda _: {}
    price: float | None = None
    most_idle: float = math.inf
    queues: bool = False
    withdraw: Callable[[int], None] = _nothing
    round_trip: Callable[[], float] = float
