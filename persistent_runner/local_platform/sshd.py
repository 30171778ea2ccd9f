"""A real SSH, SFTP and SCP server for each virtual node, faults on order; the only asyncio of the package.

One event loop in one thread serves all nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import asyncssh

from persistent_runner.local_platform.ssh_commands import serve as serve_command

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path


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
        self.call(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_node(self, settings: NodeSettings) -> SshNode:
        """Start a server on a free port of 127.0.0.1 with a host key of its own."""
        node = SshNode(self, settings)
        self.call(node.listen())
        return node

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the thread; returns when it is done."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SshNode:
    """One server: `port` on 127.0.0.1, `host_key` its public key as an OpenSSH line.

    Its faults: times in seconds of this machine's clock, None without end. What is asked again replaces what was.
    """

    def __init__(self, host: SshHost, settings: NodeSettings) -> None:
        self._host = host
        self.settings = settings
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._claim: socket.socket | None = None
        self._changing = asyncio.Lock()  # to start to listen takes several turns of the loop
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.connections: set[asyncssh.SSHServerConnection] = set()
        self.gates: set[Gate] = set()
        self.closed = False
        self.logins = True
        self.silent = False
        self.host_key = _line_of(self._key)
        self.port = 0

    def close(self) -> None:
        """End the server and its connections; the processes that they started go on."""
        self._host.call(self._shut())

    def drop(self) -> None:
        """End the connections that there are."""
        self._host.call(self._drop())

    def refuse(self, seconds: float | None) -> None:
        """Refuse new connections; those that there are go on."""
        self._host.call(self._refuse(seconds))

    def refuse_logins(self, seconds: float | None) -> None:
        """Take no key."""
        self._host.call(self._for("logins", seconds, self._refuse_logins, self._take_logins))

    def blackhole(self, seconds: float | None) -> None:
        """Keep connections open, take new ones, and move no byte; then all that waited goes its way."""
        self._host.call(self._for("silent", seconds, self._hush, self._let_through))

    def change_key(self) -> None:
        """Take another host key at the same port; connections are dropped."""
        self._host.call(self._change_key())

    def move(self) -> None:
        """Go to another port with the same host key; connections are dropped."""
        self._host.call(self._move())

    # in the loop

    async def listen(self) -> None:
        """Start to listen."""
        async with self._changing:
            await self._listen()

    async def _listen(self) -> None:
        if self._claim is None:
            # Bound and never listening: the port stays ours, and refuses, while nobody listens there.
            self._claim = _bound(0)
            self.port = self._claim.getsockname()[1]
        self._acceptor = await asyncssh.listen(
            sock=_bound(self.port),
            server_factory=lambda: _Login(self),
            server_host_keys=[self._key],
            process_factory=lambda process: serve_command(process, self.settings),
            sftp_factory=lambda channel: _Files(channel, self.settings.home),
            allow_scp=True,
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            gss_host=None,
            compression_algs=None,
            config=(),
        )

    async def _shut(self) -> None:
        self.closed = True
        for timer in self._timers.values():
            timer.cancel()
        async with self._changing:
            await self._deafen()
            await self._drop()
            if self._claim is not None:
                self._claim.close()
                self._claim = None

    async def _deafen(self) -> None:
        if self._acceptor is not None:
            # asyncio gives a connection to its server in the turn after it took it, and loses it where that is closed
            asyncio.get_running_loop().remove_reader(self._acceptor.sockets[0])
            await asyncio.sleep(0)
            self._acceptor.close()
            self._acceptor = None
            await asyncio.sleep(0)  # the loop lets go of the socket at its next turn

    async def _drop(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    async def _refuse(self, seconds: float | None) -> None:
        async with self._changing:
            await self._deafen()
        await self._for("refuse", seconds, lambda: None, lambda: asyncio.ensure_future(self._hear()))

    async def _hear(self) -> None:
        async with self._changing:
            if self._acceptor is None and not self.closed:
                await self._listen()

    async def _for(
        self, name: str, seconds: float | None, begin: Callable[[], object], end: Callable[[], object]
    ) -> None:
        """Begin something and end it after `seconds`."""
        if name in self._timers:
            self._timers.pop(name).cancel()
        begin()
        if seconds is not None:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, end)

    def _refuse_logins(self) -> None:
        self.logins = False

    def _take_logins(self) -> None:
        self.logins = True

    def _hush(self) -> None:
        self.silent = True
        for gate in self.gates:
            gate.shut()

    def _let_through(self) -> None:
        self.silent = False
        for gate in self.gates:
            gate.open()

    async def _change_key(self) -> None:
        async with self._changing:
            self._key = asyncssh.generate_private_key("ssh-ed25519")
            self.host_key = _line_of(self._key)
            await self._deafen()
            await self._drop()
            await self._listen()

    async def _move(self) -> None:
        async with self._changing:
            await self._deafen()
            await self._drop()
            before, self._claim = self._claim, None
            await self._listen()
            if before is not None:
                before.close()


def _bound(port: int) -> socket.socket:
    """Return a socket bound to a port of 127.0.0.1 that several of this user's sockets may hold."""
    found = socket.socket()
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", port))
    except BaseException:
        found.close()
        raise
    return found


def _line_of(key: asyncssh.SSHKey) -> str:
    return str(key.export_public_key().decode().strip())


class Gate:
    """The transport of a connection, which can be shut: then nothing is read from it, and what is written waits."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiting: list[bytes] | None = None

    def shut(self) -> None:
        """Let nothing through."""
        if self._waiting is None:
            self._waiting = []
            self._transport.pause_reading()

    def open(self) -> None:
        """Let through what waited, and all that comes."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not self._transport.is_closing():
            self._transport.write(b"".join(waiting))
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send, or keep."""
        if self._waiting is None:
            self._transport.write(data)
        else:
            self._waiting.append(bytes(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Login(asyncssh.SSHServer):
    """Who may log in: the node's user, by public key alone."""

    def __init__(self, node: SshNode) -> None:
        self._node = node
        self._gate: Gate
        self._connection: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._node.connections.add(conn)
        # asyncssh has no way to keep a connection silent; it sends its first byte after this call
        self._gate = Gate(conn._transport)  # type: ignore[arg-type] # noqa: SLF001
        conn._transport = self._gate  # type: ignore[assignment] # noqa: SLF001
        self._node.gates.add(self._gate)
        if self._node.closed:  # it was taken in the turn in which the machine ended
            conn.abort()
        elif self._node.silent:
            self._gate.shut()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._node.connections.discard(self._connection)
        self._node.gates.discard(self._gate)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        settings = self._node.settings
        return (
            self._node.logins
            and username == settings.user
            and any(_same_key(line, key.public_data) for line in settings.public_keys())
        )

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002
        orig_port: int,  # noqa: ARG002
    ) -> Any:
        port = self._node.settings.reachable(dest_host, dest_port)
        return self._forward(port) if port else False

    async def _forward(self, port: int) -> asyncssh.SSHTCPSession[bytes]:
        session = await self._connection.forward_connection("127.0.0.1", port)
        if self._connection not in self._node.connections:  # it went meanwhile, and asyncssh lets the session lie
            session.close()
        return cast("asyncssh.SSHTCPSession[bytes]", session)


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
