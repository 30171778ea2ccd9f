"""A real SSH, SFTP and SCP server for each virtual node; the only asyncio of the package.

One event loop in one thread serves all nodes. Commands run as OpenSSH runs them: by the login shell, in the home
folder, killed by nobody when the connection goes (their pipes break, a terminal hangs up).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import asyncssh

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

_PIECE = 1 << 18
_TAKE_TERMINAL = "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execv(sys.argv[1],sys.argv[2:])"


@dataclass(frozen=True)
class NodeSettings:
    """What a node is: who may log in and what they find.

    `public_keys` gives OpenSSH lines and is called at each login. `reachable` maps (host, port) as seen from the node
    to the loopback port where that is: forwarding goes there and nowhere else.
    """

    user: str
    home: Path
    shell: str
    environment: Mapping[str, str]
    public_keys: Callable[[], list[str]]
    reachable: Callable[[str, int], int | None]


class SshHost:
    """The thread that serves nodes. `start`, then `open_node` for each, `stop` at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="local-sshd", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and what it still serves; nodes are closed by their owners before."""
        self._call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_node(self, settings: NodeSettings) -> SshNode:
        """Start a server on a free port of 127.0.0.1 with a host key of its own."""
        node = SshNode(self, settings)
        self._call(node.listen())
        return node

    def close_node(self, node: SshNode) -> None:
        """End a server and its connections; the processes that they started go on."""
        self._call(node.shut())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SshNode:
    """One server: `port` on 127.0.0.1, `host_key` its public key as an OpenSSH line."""

    def __init__(self, host: SshHost, settings: NodeSettings) -> None:
        self._host = host
        self._settings = settings
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self.host_key: str = self._key.export_public_key().decode().strip()
        self.port = 0

    def close(self) -> None:
        """End the server and its connections."""
        self._host.close_node(self)

    async def listen(self) -> None:
        """Start to listen; called in the loop."""
        settings = self._settings
        self._acceptor = await asyncssh.create_server(
            lambda: _Login(settings, self._connections),
            "127.0.0.1",
            0,
            server_host_keys=[self._key],
            process_factory=lambda process: _serve(process, settings),
            sftp_factory=lambda channel: _Files(channel, settings.home),
            allow_scp=True,
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            gss_host=None,
            compression_algs=None,
            config=(),
        )
        self.port = self._acceptor.get_port()

    async def shut(self) -> None:
        """Stop to listen and abort the connections; called in the loop."""
        if self._acceptor is not None:
            self._acceptor.close()
            for connection in list(self._connections):
                connection.abort()
            await self._acceptor.wait_closed()


class _Login(asyncssh.SSHServer):
    """Who may log in: the node's user, by public key alone."""

    def __init__(self, settings: NodeSettings, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._settings = settings
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._settings.user and any(
            _same_key(line, key.public_data) for line in self._settings.public_keys()
        )

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> Any:
        port = self._settings.reachable(dest_host, dest_port)
        return self._connection.forward_connection("127.0.0.1", port) if port else False


def _same_key(line: str, public_data: bytes) -> bool:
    try:
        return bool(asyncssh.import_public_key(line).public_data == public_data)
    except asyncssh.KeyImportError:  # an empty line, a comment, a kind of key that is not known here
        return False


class _Files(asyncssh.SFTPServer):
    """SFTP and SCP: relative paths and `~` start in the home folder, absolute ones are what they say."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], home: Path) -> None:
        super().__init__(channel)
        self._home = os.fsencode(home)

    def exit(self) -> None:
        """Report success at the end, as OpenSSH's sftp-server does: `scp` counts a missing status as a failure."""
        if self.channel.get_subsystem() == "sftp":
            with contextlib.suppress(OSError):
                self.channel.exit(0)

    def map_path(self, path: bytes) -> bytes:
        if path == b"~" or path.startswith(b"~/"):
            path = path[2:]
        return os.path.join(self._home, path)  # noqa: PTH118 - the paths of SFTP are bytes


async def _serve(process: asyncssh.SSHServerProcess[bytes], settings: NodeSettings) -> None:
    """Run what a channel asks for, and end the channel when its output has ended."""
    name = settings.shell.rpartition("/")[2]
    argv = [name, "-c", process.command] if process.command is not None else [f"-{name}"]
    environment = dict(settings.environment)
    terminal = process.term_type
    if process.subsystem is not None:
        process.exit(1)
        return
    if terminal is None:
        work = asyncio.ensure_future(_with_pipes(process, settings, argv, environment))
    else:
        work = asyncio.ensure_future(_with_terminal(process, settings, argv, {**environment, "TERM": terminal}))
    gone = asyncio.ensure_future(process.channel.wait_closed())
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, gone):  # a channel that is gone leaves the child with broken pipes, alive
        task.cancel()
    result, _ = await asyncio.gather(work, gone, return_exceptions=True)
    if isinstance(result, Exception):
        _log.error("a command could not be run: %r", result)
        _finish(process, 255)


async def _with_pipes(
    channel: asyncssh.SSHServerProcess[bytes], settings: NodeSettings, argv: list[str], environment: dict[str, str]
) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220 - a fork takes a millisecond
        argv,
        executable=settings.shell,
        cwd=settings.home,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    ended = _end_of(child)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeder = asyncio.ensure_future(_feed(channel, child, child.stdin))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(child.stdout, channel.stdout))
            group.create_task(_copy(child.stderr, channel.stderr))
        _finish(channel, await ended)
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


async def _with_terminal(
    channel: asyncssh.SSHServerProcess[bytes], settings: NodeSettings, argv: list[str], environment: dict[str, str]
) -> None:
    master, slave = os.openpty()
    try:
        _set_size(master, channel.term_size)
        # The child itself takes the terminal: code between fork and exec is not safe in a process with threads.
        child = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-IS", "-c", _TAKE_TERMINAL, settings.shell, *argv],
            cwd=settings.home,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    ended = _end_of(child)
    keyboard = os.fdopen(os.dup(master), "wb", buffering=0)
    feeder = asyncio.ensure_future(_feed(channel, child, keyboard, terminal=master))
    try:
        await _copy(os.fdopen(master, "rb", buffering=0), channel.stdout)
        feeder.cancel()  # the other hold on the terminal: with it the session hangs up
        await asyncio.gather(feeder, return_exceptions=True)
        _finish(channel, await ended)
    finally:
        feeder.cancel()


def _end_of(child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Return a future of the exit code. A thread waits: it reaps the child even when the loop is gone."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def settle(code: int) -> None:
        if not future.done():
            future.set_result(code)

    def wait() -> None:
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, code)

    threading.Thread(target=wait, name="ssh-command", daemon=True).start()
    return future


def _finish(channel: asyncssh.SSHServerProcess[bytes], code: int) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        if code < 0:
            name = signal.Signals(-code).name.removeprefix("SIG")
            channel.exit_with_signal(name)
        else:
            channel.exit(code)


async def _copy(source: IO[bytes], sink: asyncssh.SSHWriter[bytes]) -> None:
    """Copy what a child prints until it ends or nobody listens; then the child's pipe breaks."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_PIECE)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
    try:
        while data := await reader.read(_PIECE):
            sink.write(data)
            await sink.drain()
    except (OSError, asyncssh.Error):  # a terminal without a reader, or a channel that is gone
        pass
    finally:
        transport.close()


async def _feed(
    channel: asyncssh.SSHServerProcess[bytes],
    child: subprocess.Popen[bytes],
    sink: IO[bytes],
    *,
    terminal: int | None = None,
) -> None:
    """Copy what the client sends to the child's stdin, and pass its signals and window sizes on."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sink)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        while True:
            try:
                data = await channel.stdin.read(_PIECE)
            except asyncssh.SignalReceived as received:
                _pass_signal(child, received.signal)
            except asyncssh.TerminalSizeChanged as size:
                if terminal is not None:
                    _set_size(terminal, size.term_size)
            except asyncssh.BreakReceived:
                continue
            else:
                if not data:
                    return
                writer.write(data)
                await writer.drain()
    except (OSError, asyncssh.Error):  # the child closed its stdin, or the channel is gone
        pass
    finally:
        transport.close()


def _pass_signal(child: subprocess.Popen[bytes], name: str) -> None:
    number = getattr(signal, f"SIG{name}", None)
    if isinstance(number, signal.Signals) and child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    columns, rows, width, height = size
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, width, height))
