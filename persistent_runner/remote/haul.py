"""Pieces of a big file over several lanes together, each again over another way when its lane is lost."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistent_runner.background import in_background
from persistent_runner.remote.lanes import SERVER_TAKES, LaneLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from persistent_runner.remote.flow import Flow, Ticket
    from persistent_runner.remote.frames import Header
    from persistent_runner.remote.lanes import Lane, Lanes

log = logging.getLogger(__name__)

_LOOK = 0.2  # seconds between two looks whether it is over
_BY_LINK = 64  # pieces that go over the link's own channel before lanes are asked for again
_TOGETHER, _CAREFULLY = 16, 2  # of these, and on a connection that ends all the time: a drop sends all of them again


@dataclass(frozen=True)
class Piece:
    """One request: `size` bytes of the file; `body` is what it sends."""

    header: Header
    size: int
    body: bytes = b""


@dataclass(frozen=True)
class Ways:
    """How pieces travel: `flow` over `lanes`, else `by_link`; `wait` returns when a link that was cut is back.

    `failure_of` gives the error that an answer tells, if any.
    """

    lanes: Lanes
    flow: Flow
    by_link: Callable[[Piece], Future[bytes] | Future[None]]
    wait: Callable[[], object]
    failure_of: Callable[[Header], Exception | None]


def haul(ways: Ways, pieces: Iterator[Piece], deliver: Callable[[Piece, bytes], None], lanes: int, most: int) -> None:
    """Carry all pieces; `deliver` gets each answer, in any order and one at a time.

    `lanes` of them are used, and up to `most` where compression at the other end may be what takes the time. Raises
    what `pieces` or `deliver` raise, what a request is refused with, or what ended the link.
    """
    work = _Haul(ways, pieces, deliver)
    try:
        while not work.is_done:
            if work.by_lanes(lanes, most):
                if not work.is_done:  # a lane was lost, as a rule with the connection
                    ways.wait()
            else:
                work.by_link()
    except BaseException:
        work.stop()
        raise


class _Haul:
    def __init__(self, ways: Ways, pieces: Iterator[Piece], deliver: Callable[[Piece, bytes], None]) -> None:
        self._ways = ways
        self._pieces = pieces
        self._deliver = deliver
        self._source = threading.Lock()
        self._sink = threading.Lock()
        self._again: deque[Piece] = deque()  # whose lane was lost
        self._ended = False  # there are no further pieces
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._most = 0
        self._turn = threading.Condition(self._source)
        self._opening = self._carrying = 0  # workers without a lane yet, and with one
        self._started = 0
        self._moved = False

    @property
    def is_done(self) -> bool:
        """Whether every piece has been delivered; asked between two rounds."""
        return self._ended and not self._again

    def stop(self) -> None:
        """Let the workers end, each after what it is waiting for at most; nothing is delivered any more."""
        with self._sink:
            self._stopped.set()

    def by_lanes(self, lanes: int, most: int) -> bool:
        """Carry over lanes all that they take; whether anything was carried."""
        self._moved, self._most, self._started = False, most, 0
        for _ in range(lanes):
            self._start_worker()
        with self._turn:
            self._turn.wait_for(self._is_round_over)
        self._raise()
        return self._moved

    def _is_round_over(self) -> bool:
        """Whether nobody carries; nobody waits for lanes that open late, either, when there is nothing left."""
        return not self._carrying and (not self._opening or self.is_done or self._stopped.is_set())

    def by_link(self) -> None:
        """Carry some pieces over the link's own channel."""
        waiting: deque[tuple[Piece, Future[bytes] | Future[None]]] = deque()
        together = _TOGETHER if self._ways.lanes.are_refused else _CAREFULLY
        for _ in range(_BY_LINK):
            piece = self._next()
            if piece is None:
                break
            if len(waiting) == together:
                self._arrived(*waiting.popleft())
            waiting.append((piece, self._ways.by_link(piece)))
        for entry in waiting:
            self._arrived(*entry)
        self._raise()

    def _arrived(self, piece: Piece, future: Future[bytes] | Future[None]) -> None:
        self._deliver(piece, future.result() or b"")  # the link's own patience bounds it

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        with self._source:
            self._error = self._error or error
        self._stopped.set()

    def _start_worker(self) -> None:
        with self._turn:
            self._started += 1
            self._opening += 1
        in_background(self._work, "lane")

    def _next(self) -> Piece | None:
        with self._source:
            if self._again:
                return self._again.popleft()
            if self._ended or self._stopped.is_set():
                return None
            try:
                piece = next(self._pieces, None)
            except BaseException as error:  # noqa: BLE001 - raised where the haul was asked for
                self._error = self._error or error
                self._stopped.set()
                return None
            self._ended = piece is None
            return piece

    def _work(self) -> None:
        lane = None
        try:
            lane = self._ways.lanes.take()
        except BaseException as error:  # noqa: BLE001 - raised where the haul was asked for
            self._fail(error)
        with self._turn:
            self._opening -= 1
            self._carrying += lane is not None
            self._turn.notify_all()
        if lane is None:
            return
        load = _Load()
        try:
            self._pump(lane, load)
        except LaneLost as lost:
            log.debug("%s", lost)
        except BaseException as error:  # noqa: BLE001 - raised where the haul was asked for
            self._fail(error)
        is_clean = not load.sent
        left = load.unload(self._ways.flow)
        (self._ways.lanes.give if is_clean else self._ways.lanes.drop)(lane)
        with self._turn:
            self._again.extend(left)
            self._carrying -= 1
            self._turn.notify_all()

    def _pump(self, lane: Lane, load: _Load) -> None:
        """Keep a lane busy until nothing is left for it."""
        flow, frame = self._ways.flow, b""
        while not self._stopped.is_set():
            if load.next is None and (piece := self._next()) is not None:
                load.next = piece
                frame = lane.frame(piece.header, piece.body)
            if load.next is None and not load.sent:
                return
            if load.next is not None:
                expected = len(frame) if load.next.body else int(load.next.size * flow.shrunk) + len(frame)
                is_full = load.next.body and load.size + expected > SERVER_TAKES
                ticket = None if is_full and load.sent else flow.start(expected, 0.0 if load.sent else _LOOK)
                if ticket is not None:
                    load.sent.append((load.next, ticket))
                    load.next = None
                    lane.send(frame)
                    continue
            if load.sent:
                self._receive(lane, load)

    def _receive(self, lane: Lane, load: _Load) -> None:
        header, body, size = lane.receive()
        piece, ticket = load.sent.popleft()
        sends = bool(piece.body)
        self._ways.flow.end(ticket, ticket.size if sends else size, piece.size)
        if error := self._ways.failure_of(header):
            raise error
        if not sends and header.get("z") and self._started < self._most:
            self._start_worker()  # one process there compresses less than the line takes
        with self._sink:
            if not self._stopped.is_set():
                self._deliver(piece, body)
        self._moved = True


class _Load:
    """What one worker has in hand: pieces on their way, oldest first, and the one that is to leave next."""

    def __init__(self) -> None:
        self.sent: deque[tuple[Piece, Ticket]] = deque()
        self.next: Piece | None = None

    @property
    def size(self) -> int:
        """How many bytes are on their way."""
        return sum(ticket.size for _, ticket in self.sent)

    def unload(self, flow: Flow) -> list[Piece]:
        """Give back the room of what is on its way, and return all that has not arrived."""
        for _, ticket in self.sent:
            flow.lose(ticket)
        return [piece for piece, _ in self.sent] + ([self.next] if self.next else [])
