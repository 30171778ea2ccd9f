"""A long line on loopback: what goes through its port takes as long as over a network of that delay and bandwidth.

    with line("127.0.0.1", 22, 0.05, 200e6) as port:
        ...  # 127.0.0.1:port leads to port 22

The bandwidth is that of the whole line, each way for itself, and its connections share it. Opening a connection takes
the round trip of TCP's own handshake. The buffer before the narrow place holds 1.5 s, and then the sender has to wait:
nothing is lost. There is no slow start, and no jitter but this machine's own. The line is a process of its own, so that
it takes no turn of the measured interpreter's lock; it ends with the one that made it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

BUFFER_SECONDS = 1.5  # of a shorter one a sender that is pushed back makes less than the line carries
BUFFER_BYTES = 64 << 20  # of one connection each way, where no bandwidth says how much that is
CHUNK = 1 << 18
GRAIN_SECONDS = 0.001  # what comes out of the narrow place comes in pieces of so much time


@contextlib.contextmanager
def line(host: str, port: int, rtt_seconds: float, bits_per_second: float | None = None) -> Iterator[int]:
    """Give a port on 127.0.0.1 that leads to `host`:`port` over a line of that round trip; None is no limit."""
    command = [sys.executable, "-P", __file__, host, str(port), repr(rtt_seconds), repr(bits_per_second or 0.0)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said, "the line did not start; it says why on stderr"
            yield int(said)
        finally:
            process.stdin.close()  # the word to end


class _Narrow:
    """The narrow place of one way: all connections go through it, one byte after the other."""

    def __init__(self, bits_per_second: float) -> None:
        self.rate = bits_per_second / 8
        self.free_at = 0.0

    def passed_at(self, sent_at: float, size: int) -> float:
        """Return when the last of so many bytes is through."""
        if not self.rate:
            return sent_at
        self.free_at = max(self.free_at, sent_at) + size / self.rate
        return self.free_at

    def full_until(self) -> float:
        """Return until when the buffer before it takes nothing more."""
        return self.free_at - BUFFER_SECONDS if self.rate else 0.0


class _Way:
    """One direction of one connection: what is on its way, with the time at which it is there. None is the end."""

    def __init__(self, source: socket.socket, sink: socket.socket | None, narrow: _Narrow, delay: float) -> None:
        self.source = source
        self.sink = sink
        self.narrow = narrow
        self.delay = delay
        self.opens_at = 0.0  # what was sent before was sent then
        self.queue: deque[tuple[float, memoryview | None]] = deque()
        self.queued = 0
        self.ended = False  # the source has sent its end
        self.blocked = False  # the sink takes nothing now
        self.done = False  # the sink has the end

    def takes(self, now: float) -> bool:
        return not self.ended and self.queued < BUFFER_BYTES and self.narrow.full_until() <= now

    def wakes_at(self, now: float) -> float | None:
        """Return when there is something to do that no descriptor tells."""
        times = [self.queue[0][0]] if self.queue and not self.blocked else []
        if not self.ended and self.narrow.full_until() > now:
            times.append(self.narrow.full_until())
        return min(times, default=None)

    def take(self) -> None:
        data = self.source.recv(CHUNK)
        sent_at = max(time.monotonic(), self.opens_at)
        if not data:
            self.ended = True
            self.queue.append((self.narrow.passed_at(sent_at, 0) + self.delay, None))
            return
        self.queued += len(data)
        grain = max(1460, int(self.narrow.rate * GRAIN_SECONDS)) if self.narrow.rate else CHUNK
        view = memoryview(data)
        for at in range(0, len(data), grain):
            piece = view[at : at + grain]
            self.queue.append((self.narrow.passed_at(sent_at, len(piece)) + self.delay, piece))

    def give(self, now: float) -> None:
        assert self.sink is not None
        self.blocked = False
        while self.queue and self.queue[0][0] <= now:
            due, piece = self.queue.popleft()
            if piece is None:
                self.done = True
                self.sink.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.sink.send(piece)
            except BlockingIOError:
                sent = 0
            self.queued -= sent
            if sent < len(piece):
                self.queue.appendleft((due, piece[sent:]))
                self.blocked = True
                return


class _Connection:
    """Both ways of one connection; the far end is dialled when the handshake would be over there."""

    def __init__(self, near: socket.socket, target: tuple[str, int], delay: float, out: _Narrow, back: _Narrow) -> None:
        self.near, self.target, self.delay = near, target, delay
        self.there, self.narrow_back = _Way(near, None, out, delay), back
        self.back: _Way | None = None
        self.there.opens_at = time.monotonic() + 2 * delay
        self.dials_at = self.there.opens_at + delay

    @property
    def ways(self) -> list[_Way]:
        return [self.there] if self.back is None else [self.there, self.back]

    @property
    def is_over(self) -> bool:
        return all(way.done for way in self.ways) and self.back is not None

    def wakes_at(self, now: float) -> float | None:
        if self.back is None:
            return self.dials_at
        return min((at for way in self.ways if (at := way.wakes_at(now)) is not None), default=None)

    def turn(self, readable: list[object], writable: list[object], now: float) -> None:
        """Do what is due; OSError when either end is gone."""
        if self.back is None and self.dials_at <= now:
            far = _tuned(socket.create_connection(self.target, timeout=5))
            self.there.sink, self.back = far, _Way(far, self.near, self.narrow_back, self.delay)
        for way in self.ways:
            if way.source in readable:
                way.take()
            if way.sink is not None and (not way.blocked or way.sink in writable):
                way.give(time.monotonic())

    def close(self) -> None:
        for way in self.ways:
            way.source.close()


def _tuned(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _serve(host: str, port: int, rtt_seconds: float, bits_per_second: float) -> None:
    """Forward until stdin ends."""
    with contextlib.suppress(OSError):
        os.nice(-10)  # a network waits for no processor
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    narrow = _Narrow(bits_per_second), _Narrow(bits_per_second)
    connections: list[_Connection] = []
    while True:
        now = time.monotonic()
        ways = [way for connection in connections for way in connection.ways]
        # sockets and not their numbers: one that is closed leaves its number to the next
        reads: list[Any] = [sys.stdin, listener, *(way.source for way in ways if way.takes(now))]
        writes: list[Any] = [way.sink for way in ways if way.blocked]
        wakes = [at for connection in connections if (at := connection.wakes_at(now)) is not None]
        # select and not epoll: its time-out has microseconds
        readable, writable, _ = select.select(reads, writes, [], max(0.0, min(wakes) - now) if wakes else None)
        now = time.monotonic()
        if sys.stdin in readable:
            return
        for connection in list(connections):
            try:
                connection.turn(readable, writable, now)
            except OSError:  # reset, refused: the other end learns of it
                connection.close()
                connections.remove(connection)
            else:
                if connection.is_over:
                    connection.close()
                    connections.remove(connection)
        if listener in readable:
            with contextlib.suppress(OSError):
                near = _tuned(listener.accept()[0])
                connections.append(_Connection(near, (host, port), rtt_seconds / 2, *narrow))


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
