"""How long a cluster has been held, what that costs, and when it ends by itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from persistent_runner.duration import format_duration

_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Cost:
    """What leases have taken and cost, in the platform's currency; None where no price is known.

    Whether the start-up of a cluster is billed is not known, so both are told: `seconds` and `cost` count from the
    command's start, `seconds_with_start_up` and `cost_with_start_up` from when the machines began to boot.
    """

    seconds: float = 0.0
    seconds_with_start_up: float = 0.0
    cost: float | None = 0.0
    cost_with_start_up: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.seconds_with_start_up + other.seconds_with_start_up,
            _sum(self.cost, other.cost),
            _sum(self.cost_with_start_up, other.cost_with_start_up),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def cost_of(price: float | None, executed: timedelta, booted: timedelta) -> Cost:
    """Return the cost of a cluster at `price` an hour whose command ran for `executed`, its machines for `booted`."""
    booted = max(booted, executed)
    return Cost(
        executed.total_seconds(),
        booted.total_seconds(),
        None if price is None else price * (executed / _HOUR),
        None if price is None else price * (booted / _HOUR),
    )


def whole_hours(walltime: timedelta) -> timedelta:
    """Return a walltime as platforms take it: whole hours, rounded up."""
    return timedelta(hours=math.ceil(walltime / _HOUR))


class Meter:
    """Runs from `boot` and `start` to `close` by the monotonic clock; `price` is of the whole cluster per hour.

    `limit` is how long the command may run at most before it ends by itself, `why` what ends it, for people. `used` is
    how much of it others have paid for. `is_sure` says whether the age is known: of a cluster that an earlier driver
    left it is not, until its switch or the platform has told it.
    """

    def __init__(
        self, price: float | None, limit: timedelta, why: str, *, used: timedelta = timedelta(0), is_sure: bool = True
    ) -> None:
        self.price = price
        self.limit = limit
        self.is_sure = is_sure
        self._why = why
        self._used = used
        self._booted: float | None = None
        self._started: float | None = None
        self._closed: float | None = None
        self._ends_at: datetime | None = None

    def boot(self) -> None:
        """Note that the machines were first seen booting."""
        self._booted = self._booted or time.monotonic()

    def start(self, age: timedelta | None = None) -> None:
        """Note that the command runs, and has run for `age` by who counts that."""
        self.is_sure |= age is not None
        begun = time.monotonic() - (age or timedelta(0)).total_seconds()
        self._started = begun if self._started is None else min(self._started, begun)
        self._booted = min(self._booted or self._started, self._started)
        self._ends_at = datetime.now(UTC) + self.limit - self.age

    def close(self, executed: timedelta | None = None, booted: timedelta | None = None) -> None:
        """Note that nothing costs any more, and how long the command ran and machines were there, where that is told.

        What was seen here counts where it is more.
        """
        self.is_sure |= executed is not None
        if executed:
            self.start(executed)
        if booted:
            begun = time.monotonic() - booted.total_seconds()
            self._booted = min(self._booted or begun, begun)
        self._closed = time.monotonic()

    @property
    def age(self) -> timedelta:
        """The time since the command's start, until close."""
        return self._since(self._started)

    @property
    def cost(self) -> Cost:
        """What was taken and cost by now."""
        zero = timedelta(0)
        return cost_of(self.price, max(zero, self.age - self._used), max(zero, self._since(self._booted) - self._used))

    @property
    def left(self) -> timedelta:
        """The time until the command ends by itself."""
        return self.limit - self.age

    @property
    def end(self) -> str:
        """When the job ends by itself at the latest, for people."""
        if self._ends_at is None:
            return f"{format_duration(self.limit)} after it has started, {self._why}"
        return f"about {self._ends_at.astimezone():%Y-%m-%d %H:%M %Z}, {self._why}"

    def _since(self, begun: float | None) -> timedelta:
        if begun is None:
            return timedelta(0)
        return timedelta(seconds=(time.monotonic() if self._closed is None else self._closed) - begun)
