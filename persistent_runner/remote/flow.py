"""How much of a big file may be on its way together: enough to fill the line, and hardly more.

What is on the way beyond bandwidth times round trip waits in a queue before the narrow place, and whatever else goes
over that line waits behind it: a small trial as well. So the rate at which bytes arrive is measured, and 1.5 times what
the line holds at that rate is on its way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

FIRST = 4 << 20  # bytes, before anything is known
MOST = 64 << 20  # bytes
_LEAST = 1 << 17  # bytes
_PIECE_LEAST, _PIECE_MOST = 1 << 16, 1 << 19  # bytes
_AHEAD = 1.5  # times what the line holds
_GROWING = 3.0  # the same while the rate still grows with it
_GROWN = 1.25  # a rate that grew by less has met the line's
_FLAT = 2  # rounds without growth
_ROUNDS = 10  # whose best rate counts
_SERVICE = 0.005  # seconds that the ends themselves take for a piece


@dataclass(frozen=True)
class Ticket:
    """One piece on its way: how many bytes it was taken for, when it left, and how many had arrived by then."""

    size: int
    at: float
    arrived: int


class Flow:
    """All that goes one way over one line, whichever files it is of; any thread."""

    def __init__(self, rtt_seconds: float) -> None:
        self._rtt = rtt_seconds
        self._turn = threading.Condition()
        self._in_flight = 0
        self._arrived = 0
        self._round_ends = 0  # when so many bytes have arrived
        self._rate = 0.0  # bytes a second, the best of this round
        self._rates: deque[float] = deque(maxlen=_ROUNDS)
        self._held_back = False  # in this round something had to wait for room
        self._before = 0.0
        self._flat = 0
        self.window = FIRST
        self.shrunk = 1.0  # bytes on the line for each of a file, lately

    @property
    def piece(self) -> int:
        """How many bytes of a file one request should be for: some of them fill the window together."""
        return int(min(_PIECE_MOST, max(_PIECE_LEAST, self.window / self.shrunk / 4))) & ~0xFFF

    def start(self, size: int, seconds: float = 0.0) -> Ticket | None:
        """Take room for so many bytes; None when there is none within `seconds`. Alone on the line anything may go."""
        with self._turn:
            if not self._turn.wait_for(lambda: self._has_room(size), seconds):
                self._held_back = True
                return None
            self._in_flight += size
            return Ticket(size, time.monotonic(), self._arrived)

    def _has_room(self, size: int) -> bool:
        return not self._in_flight or self._in_flight + size <= self.window

    def end(self, ticket: Ticket, arrived: int) -> None:
        """Say that a piece has arrived, and with how many bytes."""
        with self._turn:
            self._in_flight -= ticket.size
            self._arrived += arrived
            self._rate = max(self._rate, (self._arrived - ticket.arrived) / max(1e-4, time.monotonic() - ticket.at))
            if ticket.arrived >= self._round_ends:
                self._end_round()
            self._turn.notify_all()

    def lose(self, ticket: Ticket) -> None:
        """Say that a piece will not arrive."""
        with self._turn:
            self._in_flight -= ticket.size
            self._turn.notify_all()

    def _end_round(self) -> None:
        """Choose the window anew: what left in the round before has arrived."""
        self._rates.append(self._rate)
        best = max(self._rates)
        if best > _GROWN * self._before:
            self._before, self._flat = best, 0
        elif self._held_back:
            self._flat += 1
        self._round_ends, self._rate, self._held_back = self._arrived, 0.0, False
        ahead = _GROWING if self._flat < _FLAT else _AHEAD
        wanted = ahead * best * (self._rtt + _SERVICE)
        self.window = int(min(MOST, max(_LEAST, wanted)))
