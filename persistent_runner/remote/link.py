"""The driver's end of one agent: requests out, futures back, and the way back after a drop.

One SSH channel carries frames both ways (`agent.py` says which). Every request is safe to send twice, so after a drop
the link reconnects, starts a new agent and sends again whatever has no answer: running commands are joined.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import shlex
import struct
import threading
import time
import zlib
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import paramiko

from persistent_runner.errors import ConnectionLost, RunnerError
from persistent_runner.recovery import Backoff, recover
from persistent_runner.remote.ssh import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fabric import Connection

log = logging.getLogger(__name__)

PING_SECONDS = 10.0
DEAD_SECONDS = 30.0
HELLO_SECONDS = 30.0
RECONNECT = Backoff(first=0.5, most=15.0, total=600.0)
INLINE_BYTES = 1 << 18
"""How much of a command's results may travel in its exit frame."""
_NOISE = 1 << 20  # bytes that a login shell may print before the agent speaks
_LENGTHS = struct.Struct(">II")


@dataclass(frozen=True)
class Hello:
    """What an agent says of its node when it starts; `root` is where this run's attempts lie on the node."""

    root: str
    host: str
    cores: int
    boot: str
    epoch: int
    python: str


@dataclass(frozen=True)
class OutputFile:
    """One output in a command's manifest, taken after its process tree was gone.

    `sha256` is empty where `problem` says why the file cannot be pulled (`a symbolic link`). `data` is the content when
    it was small enough to travel with the exit.
    """

    path: str
    size_bytes: int
    sha256: str = ""
    problem: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class Exit:
    """How a command ended.

    `state`: `done`, `timeout`, `killed`, `lost` (its supervisor is gone without a record) or `mismatch` (another
    command was claimed under this id). `code` is 128 + n for signal n. `log_tail` are the last of `log_bytes`.
    """

    state: str
    code: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    manifest: tuple[OutputFile, ...] = ()
    log_tail: bytes = b""
    log_bytes: int = 0


@dataclass
class _Request:
    header: dict[str, Any]
    body: bytes
    future: Future[tuple[dict[str, Any], bytes]] = field(default_factory=Future)
    on_log: Callable[[bytes], None] | None = None


class RequestRefused(RunnerError):
    """The agent could not do what was asked: the file system refused, or the request made no sense there."""


class Link:
    """One agent on one node, for as long as the node lives.

    `connect` gives an open Fabric connection, a new one after a drop (ConnectionLost when that fails now). `check` asks
    the platform whether the lease still holds and raises when it does not; it is asked between two tries to reconnect.
    Any thread may send requests. Futures fail with the error that ended the link for good.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        run: str,
        lease: str,
        node: str,
        check: Callable[[], object] = lambda: None,
        reconnect: Backoff = RECONNECT,
    ) -> None:
        self._connect = connect
        self._check = check
        self._config = {"run": run, "lease": lease, "node": node}
        self._reconnect = reconnect
        self._lock = threading.Lock()  # of the pending requests, the next id and the end
        self._sending = threading.Lock()  # frames leave one at a time
        self._pending: dict[int, _Request] = {}
        self._next_id = 1
        self._channel: paramiko.Channel | None = None
        self._connection: Connection | None = None
        self._closed = threading.Event()
        self._end: Exception | None = None
        self._hello: Future[Hello] = Future()
        self.frames_out = 0
        self.frames_in = 0
        self._reader = threading.Thread(target=self._serve, name=f"link {node}", daemon=True)

    def open(self, seconds: float = 700.0) -> Hello:
        """Start the agent and return its hello; raises what ended the link, or ConnectionLost after `seconds`."""
        self._reader.start()
        try:
            return self._hello.result(seconds)
        except FutureTimeoutError:
            self.close()
            raise ConnectionLost(f"the agent did not start within {seconds:.0f} s") from None

    @property
    def connection(self) -> Connection | None:
        """The Fabric connection that carries the channel now."""
        return self._connection

    def close(self) -> None:
        """End the channel and with it the agent; commands that run go on. Requests without an answer fail."""
        self._closed.set()
        channel = self._channel
        if channel is not None:
            channel.close()
        if self._reader.is_alive() and self._reader is not threading.current_thread():
            self._reader.join(5)
        self._fail(ConnectionLost("the link was closed"))

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
        files: Sequence[tuple[str, bytes, int]],
        outputs: Sequence[str],
        setup: str | None = None,
        on_log: Callable[[bytes], None] | None = None,
    ) -> Future[Exit]:
        """Start a command, or join it when it was started before; the future gives its exit.

        `files` are (path below the working directory, content, mode) and travel in the same frame; `timeout` is in
        seconds and kept by the node; `on_log` gets the log's bytes in order, each once.
        """
        header = {
            "t": "run",
            "attempt": attempt,
            "seq": seq,
            "hash": command_hash,
            "script": script,
            "env": env,
            "cores": cores,
            "timeout": timeout,
            "files": [[path, mode, len(data)] for path, data, mode in files],
            "outputs": list(outputs),
            "setup": setup,
            "inline": INLINE_BYTES,
            "follow": 0 if on_log else None,
        }
        return _then(self._request(header, b"".join(data for _, data, _ in files), on_log), _exit)

    def kill(self, attempt: str, seq: int) -> Future[None]:
        """Ask for the end of a command's process tree; its exit says when it is gone."""
        return _then(self._request({"t": "kill", "attempt": attempt, "seq": seq}), lambda _h, _b: None)

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
    ) -> Future[None]:
        """Write a piece of a file; the last piece checks it and gives it its name.

        `before` names a command: once that is claimed nothing is written any more.
        """
        claim = {"attempt": before[0], "seq": before[1]} if before else None
        header = {
            "t": "put",
            "path": path,
            "offset": offset,
            "size": size,
            "sha256": sha256,
            "mode": mode,
            "before": claim,
        }
        return _then(self._request(header, data), lambda _h, _b: None)

    def get(self, path: str, *, offset: int, length: int) -> Future[bytes]:
        """Read a piece of a regular file."""
        return _then(self._request({"t": "get", "path": path, "offset": offset, "length": length}), lambda _h, b: b)

    def outputs(self, attempt: str, patterns: Sequence[str]) -> Future[tuple[OutputFile, ...]]:
        """List what the patterns name in an attempt's working directory, with checksums."""
        request = self._request({"t": "list", "attempt": attempt, "outputs": list(patterns)})
        return _then(request, lambda header, _b: tuple(_output(entry) for entry in header["manifest"]))

    def drop(self, attempt: str) -> Future[None]:
        """Acknowledge an attempt: all of it is here, its directory on the node goes."""
        return _then(self._request({"t": "drop", "attempt": attempt}), lambda _h, _b: None)

    def ping(self) -> Future[None]:
        """Ask for a sign of life."""
        return _then(self._request({"t": "ping"}), lambda _h, _b: None)

    # -- the channel

    def _request(
        self, header: dict[str, Any], body: bytes = b"", on_log: Callable[[bytes], None] | None = None
    ) -> Future[tuple[dict[str, Any], bytes]]:
        with self._lock:
            header["id"] = self._next_id
            self._next_id += 1
            request = _Request(header, body, on_log=on_log)
            if self._end is not None:
                request.future.set_exception(self._end)
                return request.future
            self._pending[header["id"]] = request
            channel = self._channel
        if channel is not None:
            self._send(channel, request)
        return request.future

    def _send(self, channel: paramiko.Channel, request: _Request) -> None:
        header, body = request.header, request.body
        if len(body) > 512:
            packed = zlib.compress(body, 1)
            if len(packed) < len(body):
                header, body = header | {"z": 1}, packed
        head = json.dumps(header).encode()
        try:
            with self._sending:
                channel.sendall(_LENGTHS.pack(len(head), len(body)) + head + body)
                self.frames_out += 1
        except (OSError, EOFError, paramiko.SSHException):
            channel.close()  # the reader notices, reconnects and sends again

    def _serve(self) -> None:
        """Keep the channel up and read it, until the link is closed or the lease is gone."""
        error: Exception = ConnectionLost("the link was closed")
        try:
            while not self._closed.is_set():
                channel, rest = recover(
                    self._open_channel, {ConnectionLost: self._between_tries}, self._reconnect, self._closed
                )
                with self._lock:
                    self._channel = channel
                    again = list(self._pending.values())
                for request in again:
                    self._send(channel, request)
                try:
                    self._read(channel, rest)
                except ConnectionLost as lost:
                    log.log(
                        logging.DEBUG if self._closed.is_set() else logging.WARNING, "%s; reconnecting", lost.message
                    )
                with self._lock:
                    self._channel = None
                channel.close()
                if not self._closed.is_set():
                    self._between_tries(error)
        except Exception as ended:  # noqa: BLE001 - whatever it is must reach those who wait
            error = ended
        self._fail(error)

    def _between_tries(self, _: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
        self._check()

    def _open_channel(self) -> tuple[paramiko.Channel, bytes]:
        """Connect, start an agent and read its hello."""
        connection = self._connection = self._connect()
        where = f"{connection.user}@{connection.host}:{connection.port}"
        with translated(where):
            if not connection.is_connected:
                raise ConnectionLost(f"{where}: the connection is closed")
            channel: paramiko.Channel = connection.transport.open_session(timeout=HELLO_SECONDS)
        nonce = secrets.token_hex(16)
        # paramiko waits for the reply to exec without an end when the transport dies inside it
        _with_deadline(lambda: channel.exec_command(_bootstrap(self._config | {"nonce": nonce})), where)
        received = self._await_nonce(channel, nonce.encode(), where)
        header, _, rest = self._first_frame(channel, received, where)
        hello = Hello(**{key: header[key] for key in ("root", "host", "cores", "boot", "epoch", "python")})
        log.debug("agent on %s: %s", where, hello)
        if not self._hello.done():
            self._hello.set_result(hello)
        return channel, rest

    def _await_nonce(self, channel: paramiko.Channel, nonce: bytes, where: str) -> bytes:
        """Skip what the login shell prints before the agent speaks."""
        mark, noise = b"\n" + nonce + b"\n", b""
        until = time.monotonic() + HELLO_SECONDS
        channel.settimeout(HELLO_SECONDS)
        while mark not in noise:
            data = b""
            if len(noise) < _NOISE and time.monotonic() < until:
                with translated(f"{where}: no answer from the agent"):
                    data = channel.recv(1 << 16)
            if not data:
                self._explain_start(channel, noise, where)
            noise += data
        return noise.split(mark, 1)[1]

    def _explain_start(self, channel: paramiko.Channel, noise: bytes, where: str) -> None:
        errors = b""
        while channel.recv_stderr_ready() and len(errors) < _NOISE:
            errors += channel.recv_stderr(1 << 16)
        channel.status_event.wait(1)
        code = channel.exit_status
        channel.close()
        said = _plain((errors or noise).decode("utf-8", "replace"))[-2000:].strip()
        if code == 127 or "python3" in said:
            raise RunnerError(
                f"{where}: no python3 on the node\n{said}",
                remedy="The node needs Python 3.6 or later on the PATH of a login shell.",
            )
        raise ConnectionLost(f"{where}: the agent did not start (exit {code}): {said}")

    def _first_frame(
        self, channel: paramiko.Channel, received: bytes, where: str
    ) -> tuple[dict[str, Any], bytes, bytes]:
        buffer = bytearray(received)
        while True:
            for header, body in _frames(buffer):
                return header, body, bytes(buffer)
            with translated(where):
                data = channel.recv(1 << 16)
            if not data:
                raise ConnectionLost(f"{where}: the agent ended at once")
            buffer += data

    def _read(self, channel: paramiko.Channel, rest: bytes) -> None:
        """Deliver frames until the channel ends; a peer that stays silent for DEAD_SECONDS counts as gone."""
        buffer = bytearray(rest)
        heard = asked = time.monotonic()
        channel.settimeout(PING_SECONDS / 2)
        while True:
            for header, body in _frames(buffer):
                self.frames_in += 1
                self._deliver(header, body)
            now = time.monotonic()
            if now - heard > DEAD_SECONDS:
                raise ConnectionLost(f"{self._config['node']}: silent for {DEAD_SECONDS:.0f} s")
            if now - max(heard, asked) >= PING_SECONDS:
                asked = now
                self.ping()
            try:
                with translated(self._config["node"]):
                    data = channel.recv(1 << 18)
            except ConnectionLost as error:
                if isinstance(error.__cause__, TimeoutError):
                    continue
                raise
            if not data:
                raise ConnectionLost(f"{self._config['node']}: the connection ended")
            heard = time.monotonic()
            buffer += data

    def _deliver(self, header: dict[str, Any], body: bytes) -> None:
        with self._lock:
            request = self._pending.get(header["id"])
        if request is None:
            return
        if header["t"] == "log":
            self._deliver_log(request, header["offset"], body)
            return
        with self._lock:
            self._pending.pop(header["id"], None)
        if header["t"] == "error":
            text = f"{self._config['node']}: {header['text']}"
            remedy = "The disk of the node is full." if header["kind"] == "disk" else ""
            request.future.set_exception(RequestRefused(text, remedy=remedy))
        else:
            request.future.set_result((header, body))

    def _deliver_log(self, request: _Request, offset: int, data: bytes) -> None:
        have = request.header["follow"]
        if request.on_log is None or offset > have:
            return
        fresh = data[have - offset :]
        request.header["follow"] = have + len(fresh)  # what a new agent need not send again
        if fresh:
            try:
                request.on_log(fresh)
            except Exception:
                log.exception("a log callback failed; it is not called again")
                request.on_log = None

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._end = self._end or error
            left = list(self._pending.values())
            self._pending.clear()
        for request in left:
            request.future.set_exception(self._end)
        if not self._hello.done():
            self._hello.set_exception(self._end)


def _with_deadline(call: Callable[[], object], where: str) -> None:
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
            done.set_result(None)
        except Exception as error:  # noqa: BLE001 - handed to the caller
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    with translated(where):
        done.result(HELLO_SECONDS)


def _bootstrap(config: dict[str, str]) -> str:
    """Return the command line that starts the agent through a login shell, the agent itself within it."""
    source = (resources.files("persistent_runner.remote") / "agent.py").read_bytes()
    packed = base64.b64encode(zlib.compress(source, 9)).decode()
    settings = base64.b64encode(json.dumps(config).encode()).decode()
    program = (
        "import sys,zlib,base64 as b,json;"
        "exec(compile(zlib.decompress(b.b64decode(sys.argv[1])),'agent','exec'));"
        "main(json.loads(b.b64decode(sys.argv[2]).decode()))"
    )
    inner = f"exec python3 -IS -c {shlex.quote(program)} {packed} {settings}"
    # /bin/sh first, because the login shell may be csh or fish; then a login shell for the cluster's environment
    outer = 'if command -v bash >/dev/null 2>&1; then exec bash -lc "$0"; else exec sh -lc "$0"; fi'
    return f"exec /bin/sh -c {shlex.quote(outer)} {shlex.quote(inner)}"


def _frames(buffer: bytearray) -> Any:
    """Yield (header, body) of each whole frame at the head of the buffer, and take it away."""
    while len(buffer) >= _LENGTHS.size:
        head, body = _LENGTHS.unpack_from(buffer)
        end = _LENGTHS.size + head + body
        if len(buffer) < end:
            return
        header = json.loads(bytes(buffer[_LENGTHS.size : _LENGTHS.size + head]))
        content = bytes(buffer[_LENGTHS.size + head : end])
        del buffer[:end]
        yield header, zlib.decompress(content) if header.get("z") else content


def _then(source: Future[tuple[dict[str, Any], bytes]], convert: Callable[[dict[str, Any], bytes], Any]) -> Future[Any]:
    """Return a future of what `convert` makes of a reply."""
    target: Future[Any] = Future()

    def done(finished: Future[tuple[dict[str, Any], bytes]]) -> None:
        try:
            target.set_result(convert(*finished.result()))
        except Exception as error:  # noqa: BLE001 - handed to the caller
            target.set_exception(error)

    source.add_done_callback(done)
    return target


def _output(entry: dict[str, Any], data: bytes | None = None) -> OutputFile:
    return OutputFile(entry["path"], entry["size"], entry.get("sha256", ""), entry.get("problem", ""), data)


def _exit(header: dict[str, Any], body: bytes) -> Exit:
    if header["state"] in ("lost", "mismatch"):
        return Exit(header["state"])
    at = header["log_tail"]
    files = []
    for entry in header["manifest"]:
        data = None
        if entry.get("inline"):
            data = body[at : at + entry["size"]]
            at += entry["size"]
        files.append(_output(entry, data))
    return Exit(
        state=header["state"],
        code=header["code"],
        seconds=header["seconds"],
        peak_bytes=header["peak_bytes"],
        manifest=tuple(files),
        log_tail=body[: header["log_tail"]],
        log_bytes=header["log_size"],
    )


def _plain(text: str) -> str:
    """Return text without control characters, which could drive the user's terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())
