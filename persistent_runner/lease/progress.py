"""Says in the log how a wait goes on, each change once and a sign of life every minute, and when the end is near."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration

if TYPE_CHECKING:
    from persistent_runner.lease.meter import Meter

log = logging.getLogger(__name__)

_SAY_EVERY = 60.0  # seconds
_SAY_LEFT = (timedelta(minutes=15), timedelta(minutes=5))


class Progress:
    """The log lines of one wait."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = ""
        self._when = 0.0

    def say(self, what: str) -> None:
        """Log `what` where it is new or a minute has passed, with the time that the wait has taken."""
        now = time.monotonic()
        if what != self._last or now - self._when >= _SAY_EVERY:
            waited = round(now - self._began)
            log.info("%s%s", what, f" (waiting for {format_duration(waited)})" if waited else "")
            self._last, self._when = what, now


class Countdown:
    """Says once each when 15 and when 5 minutes of a lease are left, unless it is hardly longer than that."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._said = 0

    def say(self, job_id: str) -> None:
        """Log when the job ends, where that comes near."""
        if self._said < len(_SAY_LEFT) and self._meter.left < _SAY_LEFT[self._said]:
            if self._meter.limit > 2 * _SAY_LEFT[self._said]:
                log.warning("Job %s ends %s", job_id, self._meter.end)
            self._said += 1
