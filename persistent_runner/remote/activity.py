"""Whether the user's own commands and transfers keep a lease driven."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Activity:
    """Whether a command or a transfer of the user's own is in flight on the connections that share this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight = 0
        self._ended = -math.inf

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        """Within: something is in flight."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._ended = time.monotonic()

    def idle_seconds(self) -> float:
        """Return 0 while something is in flight, then the seconds since the last ended; inf before the first."""
        with self._lock:
            return 0.0 if self._in_flight else time.monotonic() - self._ended
