"""The driver's end of one agent: requests out, futures back, and the way back after a drop.

One SSH channel carries frames both ways (`agent.py` says which). Every request is safe to send twice, so after a drop
the link reconnects, starts a new agent and sends again whatever has no answer: running commands are joined.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn, TypeVar

from persistent_runner.background import then
from persistent_runner.errors import ConnectionLost
from persistent_runner.recovery import recover
from persistent_runner.remote import frames
from persistent_runner.remote.lanes import Lanes
from persistent_runner.remote.launch import open_session, start_agent, what_it_said
from persistent_runner.remote.outgoing import Request, next_together
from persistent_runner.remote.patience import Patience
from persistent_runner.remote.ssh import FAULTS, close, hang_up, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import paramiko
    from fabric import Connection

    from persistent_runner.inputs import SharedFile
    from persistent_runner.remote.frames import Exit, Header, Hello, Life, OutputFile
    from persistent_runner.remote.node import Span

log = logging.getLogger(__name__)

INLINE_BYTES = 1 << 18
"""How much of a command's results may travel in its exit frame."""


Result = TypeVar("Result")


class Link:
    """One agent on one node, for as long as the node lives.

    `connect` gives an open Fabric connection, a new one after a drop (ConnectionLost when that fails now). `check` asks
    the platform whether the lease still holds and raises when it does not; it is asked before each try to reconnect.
    `run` names this run's folder on the node; an agent with `run=""` answers pings alone, beside another link's agent.
    `node` and `head` are the ids of this node and of the head node, by default the same one.
    Any thread may send requests. Futures fail with the error that ended the link for good. `frames_out` and
    `frames_in` count what was sent and received, the agent's hello left out. `round_trip` is the shortest time in
    seconds that a sign of life has taken, 0 before the first.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        run: str,
        lease: str,
        node: str,
        head: str | None = None,
        check: Callable[[], object] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        self._connect = connect
        self._check = check
        self.node = node
        self._patience = patience or Patience()
        self._config: dict[str, object] = {"run": run, "lease": lease, "node": node, "head": head or node}
        self._config["grace"] = self._patience.grace
        self._state = threading.Condition()  # guards what follows, down to `_end`
        self._pending: dict[int, Request] = {}  # by id, oldest first: all that have no answer
        self._unsent: deque[Request] = deque()  # of those, the ones that the present channel has not carried yet
        self._ready = False  # the channel's agent has said hello: frames may leave
        self._next_id = 1
        self._hello: Hello | None = None
        self._end: Exception | None = None
        self._channel: paramiko.Channel | None = None
        self._connection: Connection | None = None
        self._closed = threading.Event()
        self.sharing = threading.Lock()  # held by whoever brings a shared file
        self.lanes = Lanes()
        self.frames_out = 0
        self.frames_in = 0
        self.round_trip = 0.0
        self._reader = threading.Thread(target=self._run, name=f"link {node}", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"link {node} out", daemon=True)

    def open(self, span: Span | None = None, *, seconds: float = 700.0) -> Hello:
        """Start the agent and return its hello; raises what ended the link, or ConnectionLost after `seconds`.

        With a `span` commands of more cores than a machine has get as many whole machines as that takes.
        """
        if span is not None:
            self._config |= {"cores": span.cores, "workers": span.workers}
        self._reader.start()
        self._writer.start()
        with self._state:
            self._state.wait_for(lambda: self._hello or self._end, seconds)
            hello, end = self._hello, self._end
        if end is not None:
            raise end
        if hello is None:
            self.close()
            raise ConnectionLost(f"the agent on {self.node} did not start within {seconds:.0f} s")
        self._look()
        return hello

    @property
    def connection(self) -> Connection | None:
        """The Fabric connection that carries the channel now."""
        return self._connection

    @property
    def is_up(self) -> bool:
        """Whether an agent answers now."""
        return self._ready

    def wait_for_end(self, seconds: float | None = None) -> Exception | None:
        """Wait until the link has ended for good; return what ended it, None where it has not within `seconds`."""
        with self._state:
            self._state.wait_for(lambda: self._end, seconds)
            return self._end

    def close(self) -> None:
        """End the channel and with it the agent; commands that run go on. Requests without an answer fail."""
        self._closed.set()
        self._finish(ConnectionLost("the link was closed"))
        channel = self._channel
        if channel is not None:
            close(channel)
        for thread in (self._reader, self._writer):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(5)

    # -- requests

    def start(
        self,
        attempt: str,
        seq: int,
        *,
        command_hash: str,
        script: str,
        env: dict[str, str],
        cores: int,
        timeout: float | None,
        stall: float | None,
        files: Sequence[tuple[str, bytes | SharedFile, int]],
        outputs: Sequence[str],
        setup: str | None = None,
        on_log: Callable[[int, bytes], None] | None = None,
        seldom: bool = False,
        among: int | None = None,
    ) -> Future[Exit]:
        """Start a command, or join it when it was started before; the future gives its exit.

        `files` are (path below the working directory, content, mode) and travel in the same frame, a shared file by its
        name alone; `timeout` is in seconds and kept by the node, as is `stall`, how long it may print nothing; `on_log`
        gets (offset, bytes) of the log in order and once (with `seldom` the newest once a second alone; what is printed
        last is in the exit's tail), before the future is done, in the thread that reads the link: it must neither wait
        nor raise. With `among` it waits on the node until fewer commands than that run there.
        """
        entries, body = frames.packed(files)
        header = {
            "t": "run",
            "attempt": attempt,
            "seq": seq,
            "hash": command_hash,
            "script": script,
            "env": env,
            "cores": cores,
            "timeout": timeout,
            "stall": stall,
            "files": entries,
            "outputs": list(outputs),
            "setup": setup,
            "inline": INLINE_BYTES,
            "follow": 0 if on_log else None,
            "seldom": seldom,
            "among": among,
        }
        return self._request(header, frames.exit_of, body, on_log)

    def kill(self, attempt: str, seq: int) -> Future[None]:
        """Ask for the end of a command's process tree; its exit says when it is gone."""
        return self._request({"t": "kill", "attempt": attempt, "seq": seq}, frames.nothing)

    def withdraw(self, attempt: str, seq: int) -> Future[None]:
        """Ask that a command that waits for a place never starts; one that has begun goes on. Its exit says which."""
        return self._request({"t": "withdraw", "attempt": attempt, "seq": seq}, frames.nothing)

    def put(
        self,
        path: str,
        data: bytes,
        *,
        offset: int,
        size: int,
        sha256: str,
        mode: int,
        before: tuple[str, int] | None = None,
        parts: bool = False,
    ) -> Future[None]:
        """Write a piece of a file; the last piece checks it and gives it its name. Pieces are sent in order.

        `before` names a command: once that is claimed nothing is written any more. With `parts` each piece has its own
        checksum, and the first one alone goes ahead of the others; an empty one at the end gives the name.
        """
        header = frames.put_header(path, offset=offset, size=size, sha256=sha256, mode=mode, before=before, parts=parts)
        return self._request(header, frames.nothing, data)

    def get(self, path: str, *, offset: int, length: int) -> Future[bytes]:
        """Read a piece of a regular file."""
        return self._request(frames.get_header(path, offset, length), lambda _, body: body)

    def outputs(
        self, attempt: str, patterns: Sequence[str], *, checksums: bool = True
    ) -> Future[tuple[OutputFile, ...]]:
        """List what the patterns name in an attempt's working directory."""
        header = {"t": "list", "attempt": attempt, "outputs": list(patterns), "checksums": checksums}
        return self._request(header, frames.manifest_of)

    def drop(self, attempt: str) -> Future[None]:
        """Acknowledge an attempt: all of it is here, its directory on the node goes."""
        return self._request({"t": "drop", "attempt": attempt}, frames.nothing)

    def busy(self, node: str, *, on: bool) -> Future[None]:
        """Let this node's dead-man's switch see whether something runs on another one that has a home of its own."""
        return self._request({"t": "busy", "node": node, "on": on}, frames.nothing)

    def ping(self, beat: str | None = None, *, keep: int | None = None, stop: bool = False) -> Future[Life]:
        """Ask for a sign of life, and give one to the lease's dead-man's switch.

        `beat` (`[A-Za-z0-9.-]{1,80}`) is one that differs from the last. `keep` with it: how many ticks the switch
        waits for another one. `stop` tells the switch to end the job.
        """
        return self._request({"t": "ping", "beat": beat, "keep": keep, "stop": stop}, frames.life_of)

    def _request(
        self,
        header: Header,
        convert: Callable[[Header, bytes], Result],
        body: bytes = b"",
        on_log: Callable[[int, bytes], None] | None = None,
    ) -> Future[Result]:
        request = Request(header, body, on_log=on_log)
        with self._state:
            header["id"] = self._next_id
            self._next_id += 1
            if self._end is not None:
                request.future.set_exception(self._end)
            else:
                self._pending[header["id"]] = request
                if self._ready:
                    self._unsent.append(request)
                    self._state.notify_all()
        return then(request.future, lambda reply: convert(*reply))

    # -- the two threads of the channel

    def _run(self) -> None:
        """Keep the channel up and read it, until the link is closed or the lease is gone."""
        remedies: dict[type[Exception], Callable[[Exception], None]] = {ConnectionLost: self._before_reconnect}
        try:
            while not self._closed.is_set():
                lost = recover(self._serve, remedies, self._patience.reconnect, self._closed)
                if not self._closed.is_set():
                    self._before_reconnect(lost)
        except Exception as error:  # noqa: BLE001 - whatever it is must reach those who wait
            self._finish(error)

    def _serve(self) -> ConnectionLost:
        """Start an agent and read what it sends; return the loss that ended it, raise it where nothing had come."""
        connection = self._connection = self._connect()
        where = f"{connection.user}@{connection.host}:{connection.port}"
        asked = time.monotonic()
        channel = open_session(connection, where, self._patience.hello)
        rtt = time.monotonic() - asked
        self._channel = channel
        try:
            if self._closed.is_set():  # close() saw no channel to end
                raise ConnectionLost("the link was closed")
            hello, rest = start_agent(channel, self._config, where, self._patience.hello)
            log.debug("agent on %s: %s", where, hello)
            self.lanes.carry(connection, self._config | {"lane": hello.epoch}, self._patience, rtt)
            with self._state:
                self._hello = hello
                self._ready = True
                self._unsent = deque(self._pending.values())
                self._state.notify_all()
            before = self.frames_in
            try:
                self._read(channel, rest)
            except ConnectionLost as lost:
                if self.frames_in == before:
                    raise
                return lost
        finally:
            with self._state:
                self._ready = False
                self._unsent.clear()
            self.lanes.cut()
            if not self._closed.is_set():
                hang_up(self._connection)
            close(channel)

    def _read(self, channel: paramiko.Channel, rest: bytes) -> NoReturn:
        """Deliver frames until the channel ends or stays silent for too long: ConnectionLost."""
        buffer = bytearray(rest)
        channel.settimeout(self._patience.dead)
        while True:
            for header, body in frames.decode(buffer, self.node):
                self.frames_in += 1
                self._deliver(header, body)
            try:
                with translated(self.node):
                    data = channel.recv(1 << 18)
            except ConnectionLost as error:
                if isinstance(error.__cause__, TimeoutError):
                    raise ConnectionLost(f"{self.node}: silent for {self._patience.dead:g} s") from None
                raise
            if not data:
                raise ConnectionLost(f"{self.node}: the connection ended{what_it_said(channel)}")
            buffer += data

    def _write(self) -> None:
        """Send what is unsent, in order; with nothing to send, ask for a sign of life now and then."""
        while True:
            with self._state:
                busy = self._state.wait_for(lambda: self._unsent or self._end, self._patience.ping)
                if self._end is not None:
                    return
                ready, channel = self._ready, self._channel
                unsent = next_together(self._unsent) if busy else []
            if not unsent or channel is None:
                if ready:
                    self._look()
                continue
            self.frames_out += len(unsent)
            try:
                channel.sendall(b"".join(frames.encode(request.header, request.body) for request in unsent))
            except FAULTS as error:
                log.debug("%s: sending failed: %s", self.node, error)
                close(channel)  # the reader notices, reconnects and has it sent again

    def _look(self) -> None:
        """Ask for a sign of life, and note how long it takes."""
        sent = time.monotonic()

        def came(_: Future[Life]) -> None:
            self.round_trip = min(self.round_trip or math.inf, time.monotonic() - sent)

        self.ping().add_done_callback(came)

    def _before_reconnect(self, lost: Exception) -> None:
        """Hang up, and see whether there is still something to reconnect to."""
        log.warning("%s; reconnecting", lost)
        hang_up(self._connection)
        self._check()

    def _deliver(self, header: Header, body: bytes) -> None:
        if header["t"] == "logs":
            for request_id, offset, data in frames.log_pieces(header, body):
                if (request := self._pending.get(request_id)) is not None and request.on_log is not None:
                    request.header["follow"] = offset + len(data)  # a new agent goes on from there
                    request.on_log(offset, data)
            return
        with self._state:
            request = self._pending.pop(header["id"], None)
        if request is None:
            return
        if (error := frames.failure_of(header, self.node)) is not None:
            request.future.set_exception(error)
        else:
            request.future.set_result((header, body))

    def _finish(self, error: Exception) -> None:
        """End the link for good: the first error counts, and reaches everybody who waits."""
        with self._state:
            self._end = self._end or error
            left = list(self._pending.values())
            self._pending.clear()
            self._unsent.clear()
            self._state.notify_all()
        for request in left:
            request.future.set_exception(self._end)
