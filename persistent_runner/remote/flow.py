"""How much of a big file may be on its way together: enough to fill the line, and hardly more.

What is on the way beyond bandwidth times round trip waits in a queue before the narrow place, and whatever else goes
over that line waits behind it: a small trial as well. So it is measured how fast bytes arrive and how long a piece
takes at least, and 1.5 times the product is on its way.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

FIRST = 3 << 20  # bytes, before anything is known
MOST = 64 << 20  # bytes
_LEAST = 1 << 17  # bytes
_PIECE_LEAST, _PIECE_MOST = 1 << 16, 1 << 20  # bytes of a file
_PIECE_ON_LINE = 1 << 19  # bytes at most of a piece on the line
_PIECES = 12  # that fill the window together
_AHEAD = 1.5  # times what the line holds
_GROWING = 3.0  # the same while the rate still grows with it
_GROWN = 1.25  # a rate that grew by less has met the line's
_FLAT = 2  # rounds without growth
_LONGER, _SERVICE = 1.25, 0.01  # times the round trip, and seconds: what a piece takes beside is not the line's
_FADING = 1 - 1 / 256  # what a rate that is not reached any more counts after another round


@dataclass(frozen=True)
class Ticket:
    """One piece on its way: how many bytes it was taken for, when it left, and how many had arrived by then."""

    size: int
    at: float
    arrived: int


class Flow:
    """All that goes one way over one line, whichever files it is of; any thread.

    `rtt_seconds` is the round trip, `window` how many bytes may be on their way, `shrunk` how many bytes on the line
    one of a file has been lately.
    """

    def __init__(self, rtt_seconds: float) -> None:
        self.rtt_seconds = rtt_seconds
        self._turn = threading.Condition()
        self._in_flight = 0
        self._arrived = 0
        self._round_ends = 0  # when a piece arrives that left when so many bytes had
        self._rate = 0.0  # bytes a second, the best of late
        self._before = 0.0  # what it had grown to
        self._flat = 0  # rounds without growth, though much was on its way
        self._shortest = float("inf")  # seconds of a piece
        self.window = FIRST
        self.shrunk = 1.0

    @property
    def piece(self) -> int:
        """How many bytes of a file one request should be for."""
        wanted = min(_PIECE_ON_LINE, self.window / _PIECES) / self.shrunk
        return int(min(_PIECE_MOST, max(_PIECE_LEAST, wanted))) & ~0xFFF

    def start(self, size: int, seconds: float = 0.0) -> Ticket | None:
        """Take room for so many bytes; None when there is none within `seconds`. Alone on the line anything may go."""
        with self._turn:
            if not self._turn.wait_for(lambda: not self._in_flight or self._in_flight + size <= self.window, seconds):
                return None
            self._in_flight += size
            return Ticket(size, time.monotonic(), self._arrived)

    def end(self, ticket: Ticket, arrived: int, of: int) -> None:
        """Say that a piece has arrived, `of` so many bytes, in `arrived` bytes on the line."""
        seconds = max(1e-4, time.monotonic() - ticket.at)
        with self._turn:
            self._in_flight -= ticket.size
            self._arrived += arrived
            self.shrunk += (min(1.0, arrived / of) - self.shrunk) / 4
            self._shortest = min(self._shortest, seconds)
            if ticket.arrived >= self._round_ends:
                self._end_round((self._arrived - ticket.arrived) / seconds)
            self._turn.notify_all()

    def lose(self, ticket: Ticket) -> None:
        """Say that a piece will not arrive."""
        with self._turn:
            self._in_flight -= ticket.size
            self._turn.notify_all()

    def _end_round(self, rate: float) -> None:
        """Choose the window anew: a piece that left in this round has arrived, at so many bytes a second since then."""
        self._rate = max(rate, self._rate * _FADING)
        if self._flat < _FLAT and self._rate > _GROWN * self._before:
            self._before, self._flat = self._rate, 0
        elif self._in_flight > self.window / _GROWING:
            self._flat += 1
        self._round_ends = self._arrived
        ahead = _GROWING if self._flat < _FLAT else _AHEAD
        wanted = ahead * self._rate * min(self._shortest, _LONGER * self.rtt_seconds + _SERVICE)
        self.window = int(min(MOST, max(_LEAST, wanted)))
