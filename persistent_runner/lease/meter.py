"""How long a cluster has been held, what that costs, and when its walltime ends it."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta

from persistent_runner.duration import format_duration

_HOUR = timedelta(hours=1)


class Meter:
    """Runs from `start` to `close` by the monotonic clock; `price` is of the whole cluster per hour, None if unknown.

    `walltime` is rounded up to whole hours, which is what platforms take.
    """

    def __init__(self, price: float | None, walltime: timedelta) -> None:
        self.price = price
        self.walltime = timedelta(hours=math.ceil(walltime / _HOUR))
        self._ends_at: datetime | None = None
        self._started: float | None = None
        self._closed: float | None = None

    def start(self) -> None:
        """Note that the cluster was seen executing."""
        self._started = time.monotonic()
        self._ends_at = datetime.now(UTC) + self.walltime

    def close(self) -> None:
        """Note that nothing costs any more."""
        self._closed = time.monotonic()

    @property
    def age(self) -> timedelta:
        """The time between start and close, or until now."""
        if self._started is None:
            return timedelta(0)
        end = time.monotonic() if self._closed is None else self._closed
        return timedelta(seconds=end - self._started)

    @property
    def cost(self) -> float | None:
        """Price times age, in the platform's currency."""
        return None if self.price is None else self.price * (self.age / _HOUR)

    @property
    def end(self) -> str:
        """When the walltime ends the job, for people."""
        limit = f"by its walltime of {format_duration(self.walltime)}"
        return f"about {self._ends_at.astimezone():%Y-%m-%d %H:%M %Z}, {limit}" if self._ends_at else limit
