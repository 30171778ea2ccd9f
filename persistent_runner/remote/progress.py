"""How far a big file is on its way, for the log and for the line of a running trial."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from persistent_runner.duration import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two lines of the log, and over which the rate is taken
_SHORT = 2.0  # seconds before there is anything to say


class Progress:
    """One file of `size_bytes`; within it `text` says how far it is, and is empty while that is not worth a word.

    In the log it stands behind `whose`. `clock` gives seconds. What takes less than EVERY leaves nothing in the log.
    """

    def __init__(
        self, name: str, size_bytes: int, whose: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._whose = f"{whose}: " if whose else ""
        self._size = size_bytes
        self._clock = clock
        self._done = 0
        self._begun = self._logged = clock()
        self._seen: deque[tuple[float, int]] = deque([(self._begun, 0)])
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.text = ""

    def add(self, size_bytes: int) -> None:
        """Say that so much more has arrived."""
        self._done += size_bytes
        now = self._clock()
        if now - self._seen[-1][0] < _SHORT:
            return
        self._seen.append((now, self._done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= EVERY:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (self._done - before) / (now - since)
        left = (self._size - self._done) / rate if rate else 0.0
        self.text = (
            f"{self._name}: {self._done / 1e6:.0f} of {self._size / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, "
            f"about {format_duration(round(left))} left"
        )
        if now - self._logged >= EVERY:
            self._logged = now
            log.info("%s%s", self._whose, self.text)
