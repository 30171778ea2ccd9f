"""Where trials run, as the loop of a study sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from concurrent.futures import Future

    from persistent_runner.remote.link import Link
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

    `place(before, planned)` chooses where the next attempt is to start, as a name among all of all leases: `before` is
    where it was started already, which it is joined at if that is still there, `planned` are the places of attempts
    that have not started; `node(where)` is what people call it. `submit(number, attempt, where, task)` runs
    `task(workdir)` there and gives a future; at most `capacity()` at a time. `stop_running()` ends what runs.
    `acknowledge(number, attempt)` is called when all of an attempt is on the disk. `link(where)` is the way to a
    machine, None where that is none of theirs. `left` is how many seconds the machines are there for.
    `renew(finished, needs)` replaces them, `finished` being the trials of this start that came to an end of their own
    and `needs` the seconds that one takes, and raises BudgetSpent where it may not.
    `price` is that of one trial per hour. While trials wait for another try, the cluster may idle for `most_idle`
    seconds. With `queues` more may be submitted, with one argument more: how many trials run there that it waits for
    one of to end. `withdraw(number)` lets such a one fail with AttemptLost if it has not begun. `round_trip` is the
    way there and back in seconds.
    """

    submit: Callable[..., Future[Any]]
    capacity: Callable[[], int]
    stop_running: Callable[[], None]
    place: Callable[[str, Sequence[str]], str] = lambda _before, _planned: ""
    acknowledge: Callable[[int, int], None] = _nothing
    node: Callable[[str], str] = str
    link: Callable[[str], Link | None] = lambda _: None
    left: Callable[[], float] = lambda: math.inf
    renew: Callable[[int, float], None] = _nothing
    saved: Saver = lambda _: {}
    price: float | None = None
    most_idle: float = math.inf
    queues: bool = False
    withdraw: Callable[[int], None] = _nothing
    round_trip: Callable[[], float] = float
