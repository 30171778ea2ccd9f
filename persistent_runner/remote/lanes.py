"""Lanes: further channels to a node for big files, each with an agent that answers `get` and `put` alone.

The server takes at most 2 MB ahead on a channel, so what is sent fills a long line over several only; and what is read
needs a channel whose window is ours to choose. A lane is opened when the first big file needs one, kept for the next
one, and ends by itself on the node when it was idle for a while. Nothing rests on it: one that is refused or lost costs
speed alone, since all that it carries can go over another one or the link's own channel.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from persistent_runner.errors import ConnectionLost, RunnerError
from persistent_runner.remote import agent, packing
from persistent_runner.remote.flow import MOST, Flow
from persistent_runner.remote.frames import LENGTHS, NotAFrame, encode, lengths_of, reply_of
from persistent_runner.remote.launch import open_session, start_agent, what_it_said
from persistent_runner.remote.ssh import FAULTS, close, hang_up, translated

if TYPE_CHECKING:
    import paramiko
    from fabric import Connection

    from persistent_runner.remote.frames import Header
    from persistent_runner.remote.patience import Patience

log = logging.getLogger(__name__)

ON_ONE_CONNECTION = 4
"""sshd has 10 sessions on a connection, and 7 are ours: two agents, one command of the user's, and so many lanes."""
SERVER_TAKES = 2 << 20
"""Bytes that OpenSSH takes ahead on a channel: more would wait here, and answers with it."""
AT_MOST = 2 * ON_ONE_CONNECTION  # with a second connection
LONG_RTT = 0.08  # seconds from which on sending needs more than four times 2 MB on the way
_REFUSED_SECONDS = 60.0  # before a refused lane is asked for again
_PACKET = 1 << 17  # bytes


class LaneLost(ConnectionLost):
    """A lane ended; what it carried goes another way."""


class Lane:
    """One lane. Requests are answered in order; one thread at a time."""

    def __init__(self, channel: paramiko.Channel, rest: bytes, where: str, slot: int, *, zstd: bool) -> None:
        self._channel = channel
        self._rest = bytearray(rest)
        self._where = where
        self.slot = slot
        self.pack = agent.ZSTD if zstd else agent.ZLIB

    @property
    def is_open(self) -> bool:
        """Whether the node has not ended it."""
        return not (self._channel.closed or self._channel.eof_received or self._channel.recv_ready())

    def frame(self, header: Header, body: bytes) -> bytes:
        """Return a request as it goes over this lane; what it sends gets its checksum."""
        if body:
            header = header | {"sha256": hashlib.sha256(body).hexdigest()}
        return encode(header | {"id": 0, "pack": self.pack}, body, self.pack)

    def send(self, frame: bytes) -> None:
        """Send a request; LaneLost."""
        try:
            # a view, since of bytes each packet would copy the rest
            self._channel.sendall(memoryview(frame))  # type: ignore[arg-type]
        except FAULTS as error:
            raise LaneLost(f"{self._where}: {error}") from None

    def receive(self) -> tuple[Header, bytes, int]:
        """Return the next answer, and how many bytes it was on the line; LaneLost when it does not come."""
        try:
            head, body = lengths_of(self._read(LENGTHS.size), self._where)
            return *reply_of(self._read(head), self._read(body), self._where), LENGTHS.size + head + body
        except NotAFrame as error:
            raise LaneLost(error.message) from None

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            try:
                with translated(self._where):
                    data = self._channel.recv(MOST)  # all that is there: paramiko moves what is left behind
            except ConnectionLost as error:
                raise LaneLost(error.message) from None
            if not data:
                raise LaneLost(f"{self._where}: a lane ended{what_it_said(self._channel)}")
            self._rest += data
        with memoryview(self._rest) as view:
            found = bytes(view[:size])
        del self._rest[:size]
        return found

    def close(self) -> None:
        """End it."""
        close(self._channel)


class Lanes:
    """The lanes of one link: nothing before `carry`, and nothing again after `cut`. Any thread.

    `there` and `back` are what goes to the node and comes from it, over all lanes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._second: Connection | None = None
        self._dialling = threading.Lock()
        self._config: dict[str, object] = {}
        self._patience: Patience
        self._refused: dict[int, float] = {}  # until when, by slot
        self._taken: set[int] = set()
        self._idle: list[Lane] = []
        self._rtt = 0.0
        self.there, self.back = Flow(0.0), Flow(0.0)

    def carry(self, connection: Connection, config: dict[str, object], patience: Patience, rtt_seconds: float) -> None:
        """Say that lanes can be had now on a connection, for an agent of this configuration."""
        with self._lock:
            self._connection, self._config, self._patience = connection, config, patience
            self._rtt = rtt_seconds
            self._refused.clear()
            self.there.rtt_seconds = self.back.rtt_seconds = rtt_seconds

    def cut(self) -> None:
        """Say that the connection is gone: what its lanes carry is lost."""
        with self._lock:
            second, self._connection, self._second = self._second, None, None
            idle, self._idle = self._idle, []
            self._taken -= {lane.slot for lane in idle}
        for lane in idle:
            lane.close()
        hang_up(second)

    @property
    def are_refused(self) -> bool:
        """Whether the machine gives none, though the connection holds."""
        with self._lock:
            return bool(self._refused) and not self._taken

    @property
    def to_send(self) -> int:
        """How many lanes fill the line with what is sent."""
        return AT_MOST if self._rtt >= LONG_RTT else ON_ONE_CONNECTION

    def take(self) -> Lane | None:
        """Return a lane, a new one where none is free; None where it cannot be had now."""
        with self._lock:
            while self._idle:
                lane = self._idle.pop()
                if lane.is_open:
                    return lane
                self._taken.discard(lane.slot)
                lane.close()
            now = time.monotonic()
            free = (n for n in range(AT_MOST) if n not in self._taken and self._refused.get(n, 0.0) <= now)
            slot, connection = next(free, None), self._connection
            if slot is None or connection is None:
                return None
            self._taken.add(slot)
        try:
            return self._open(connection, slot)
        except RunnerError as error:
            log.debug("no lane: %s", error)
            with self._lock:
                self._taken.discard(slot)
                if connection.is_connected:
                    self._refused[slot] = time.monotonic() + _REFUSED_SECONDS
            return None

    def give(self, lane: Lane) -> None:
        """Give back a lane that has answered all that it was asked."""
        with self._lock:
            if self._connection is not None:
                self._idle.append(lane)
                return
        self.drop(lane)

    def drop(self, lane: Lane) -> None:
        """End a lane that is lost, or that still has something to say."""
        lane.close()
        with self._lock:
            self._taken.discard(lane.slot)

    def _open(self, connection: Connection, slot: int) -> Lane:
        if slot >= ON_ONE_CONNECTION:
            connection = self._second_connection(connection)
        where = f"{connection.user}@{connection.host}:{connection.port}"
        seconds = self._patience.hello
        asked = time.monotonic()
        channel = open_session(connection, where, seconds, window=MOST, packet=_PACKET)
        self._hear(time.monotonic() - asked)
        try:
            hello, rest = start_agent(channel, self._config, where, seconds)
        except BaseException:
            close(channel)
            raise
        channel.settimeout(self._patience.dead)
        return Lane(channel, rest, where, slot, zstd=hello.zstd and packing.zstd() is not None)

    def _hear(self, rtt_seconds: float) -> None:
        """Take the shortest round trip: a new session is one, and sometimes the server is busy."""
        with self._lock:
            self._rtt = self.there.rtt_seconds = self.back.rtt_seconds = min(self._rtt, rtt_seconds)

    def _second_connection(self, first: Connection) -> Connection:
        with self._dialling:
            with self._lock:
                second = self._second if self._connection is first else None
            if second is not None and second.is_connected:
                return second
            second = first.twin()
            with self._lock:
                if self._connection is first:
                    self._second = second
                    return second
        hang_up(second)
        raise ConnectionLost(f"{first.host}: the connection was closed")
