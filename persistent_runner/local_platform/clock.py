"""The clock that virtual jobs live by: real by default, handed in so that months can pass in a test."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading


class Clock(Protocol):
    """What a virtual job asks of time."""

    def now(self) -> datetime:
        """Return the moment, in UTC."""

    def wait(self, seconds: float, interrupt: threading.Event) -> bool:
        """Wait until `seconds` have passed or `interrupt` is set; return whether it is set."""


class RealClock:
    """The time of this machine."""

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        return datetime.now(UTC)

    def wait(self, seconds: float, interrupt: threading.Event) -> bool:
        """Wait until `seconds` have passed or `interrupt` is set; return whether it is set."""
        return interrupt.wait(seconds)
