"""Says in the log how a wait goes on: each change once, and a sign of life every minute."""

from __future__ import annotations

import logging
import time

from persistent_runner.duration import format_duration

log = logging.getLogger(__name__)

_SAY_EVERY = 60.0  # seconds


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
