"""Fabric tamed: one explicit key, a pinned host, no waiting without an end, faults translated at one door.

What a bare `fabric.Connection` does and this one does not: accept any host key, read `~/.ssh/config`, forward an agent,
offer every key it finds, read our stdin, wait 40 ms for an acknowledgement, poll for exits, prefer the slow ciphers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import shlex
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import paramiko
from fabric import Config, Connection
from fabric.runners import Remote

from persistent_runner.errors import ConfigError, ConnectionLost, HostNotProven, PlatformRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.remote.node import Node

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20  # the time-out that Rescale's own SSH client uses
UNACKNOWLEDGED_SECONDS = 60  # after which the kernel gives up a connection that takes our bytes no more
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
"""GCM first: four times the rate of paramiko's default on both ends; CBC is not offered at all."""
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)


FAULTS = (paramiko.SSHException, EOFError, OSError)
"""What paramiko and sockets raise for a connection that is not, or no more, what it should be."""


class _Runner(Remote):  # type: ignore[misc]
    """Fabric's runner with its environment quoted, an end on stdin, and without the look every 10 ms."""

    def start(self, command: str, shell: str, env: dict[str, Any], timeout: float | None = None) -> None:
        super().start(command, shell, {name: shlex.quote(str(value)) for name, value in env.items()}, timeout)

    def send_start_message(self, command: str) -> None:
        super().send_start_message(command)
        if self.streams["in"] is False and not self.using_pty and not self.watchers:
            self.close_proc_stdin()  # a command that reads it would wait without an end

    def wait(self) -> None:
        while not (self.process_is_finished or self.has_dead_threads):
            self.channel.status_event.wait(0.5)


class _Pin(paramiko.MissingHostKeyPolicy):
    """Decides about a host key that is not the pinned one."""

    def __init__(self, node: Node, pinned: paramiko.PKey | None) -> None:
        self.node = node
        self.pinned = pinned
        self.seen: paramiko.PKey | None = None

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Refuse whatever is not proven; a loopback address proves itself, since nothing stands in between."""
        if self.pinned is not None:
            raise HostNotProven(
                f"{self.node} shows another host key than before, of type {key.get_name()}",
                remedy="Nothing was sent to it. Somebody stands in between, or the machine was replaced.",
            )
        if not is_loopback(self.node.address):
            raise HostNotProven(f"nothing proves the host key of {self.node} yet", remedy="Nothing was sent to it.")
        self.seen = key


def is_loopback(address: str) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _transport(sock: socket.socket, **options: Any) -> paramiko.Transport:
    """Open a transport with our ciphers and without Nagle's delay."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
    transport = paramiko.Transport(sock, **options)
    security = transport.get_security_options()
    security.ciphers = CIPHERS
    security.digests = MACS
    return transport


@contextlib.contextmanager
def translated(where: object) -> Iterator[None]:
    """Turn the faults of paramiko and sockets into ConnectionLost; nobody above sees theirs."""
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise HostNotProven(
            f"{where} shows another host key than before, of type {error.key.get_name()}",
            remedy="Nothing was sent to it. Somebody stands in between, or the machine was replaced.",
        ) from None
    except FAULTS as error:
        # A banner that never came, a refused channel, a reset: all mean "not now" and all are repeated from here.
        raise ConnectionLost(f"{where}: {str(error) or type(error).__name__}") from error


def close(channel: paramiko.Channel) -> None:
    """End a channel; on a dead connection paramiko raises even at that, and there is nothing left to end."""
    with contextlib.suppress(*FAULTS):
        channel.close()


def load_key(path: Path) -> paramiko.PKey:
    """Read a private SSH key; ConfigError says what is wrong with it and how to convert it."""
    again = f"Set PERSISTENT_RUNNER_SSH_KEY to a private key, or make one: ssh-keygen -t ed25519 -f {path}"
    try:
        head = path.read_bytes()[:100]
    except FileNotFoundError:
        raise ConfigError(f"SSH key: there is no file {path}", remedy=again) from None
    except OSError as error:
        raise ConfigError(f"SSH key: {path} cannot be read: {error.strerror}", remedy=again) from None
    if head.startswith((b"-----BEGIN PRIVATE KEY", b"-----BEGIN ENCRYPTED PRIVATE KEY")):
        raise ConfigError(
            f"SSH key: {path} is in PKCS8 format, which the SSH library does not read",
            remedy=f"Convert it (an Ed25519 key: make a new one instead): ssh-keygen -p -f {path}",
        )
    if head.startswith(b"PuTTY-User-Key-File"):
        raise ConfigError(
            f"SSH key: {path} is a PuTTY key",
            remedy=f"Convert it: puttygen {path} -O private-openssh -o {path}.openssh",
        )
    if re.match(rb"(ssh|ecdsa|sk)-[\w@.-]+ AAAA", head):
        raise ConfigError(f"SSH key: {path} is the public half", remedy=f"Name the private one: {path.with_suffix('')}")
    try:
        return paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):
        # TypeError is what the cryptography library raises for an encrypted key without a passphrase.
        raise ConfigError(
            f"SSH key: {path} has a passphrase, which cannot be asked for yet",
            remedy=f"Make a key without one for this tool: ssh-keygen -t ed25519 -N '' -f {path}.runner",
        ) from None
    except Exception as error:  # noqa: BLE001 - paramiko and cryptography raise a dozen kinds for a damaged file
        raise ConfigError(
            f"SSH key: {path} is not a private key that can be used ({type(error).__name__})", remedy=again
        ) from None


def public_line(key: paramiko.PKey) -> str:
    """Return a key's public half as one OpenSSH line without a comment."""
    return f"{key.get_name()} {key.get_base64()}"


def _know(connection: Connection, node: Node, key: paramiko.PKey) -> None:
    name = node.address if node.port == 22 else f"[{node.address}]:{node.port}"
    connection.client.get_host_keys().add(name, key.get_name(), key)


class Login:
    """Our way onto the nodes of one lease: the key, and the host key of each machine once it is proven.

    A refused login is `ConnectionLost` for the first `patience` (keys are installed after sshd is up), then
    PlatformRefused. Raises HostNotProven when a machine shows another host key than it did before.
    """

    def __init__(self, key: paramiko.PKey, *, key_name: str, patience: timedelta = timedelta(minutes=3)) -> None:
        self._key = key
        self._key_name = key_name
        self._patience = patience.total_seconds()
        self._refused_since: float | None = None
        self._pins: dict[tuple[str, str], paramiko.PKey] = {}

    def connect(self, node: Node) -> Connection:
        """Return an open Fabric connection to a node."""
        machine = (node.instance_id, node.started)
        config = Config(
            lazy=True,  # neither /etc/fabric.* nor ~/.fabric.* may change a connection
            overrides={
                "load_ssh_configs": False,
                "forward_agent": False,
                "run": {"in_stream": False},
                "runners": {"remote": _Runner},
            },
        )
        connection = Connection(
            node.address,
            user=node.user,
            port=node.port,
            config=config,
            connect_timeout=CONNECT_SECONDS,
            connect_kwargs={
                "pkey": self._key,
                "look_for_keys": False,
                "allow_agent": False,
                "banner_timeout": CONNECT_SECONDS,
                "auth_timeout": CONNECT_SECONDS,
                "channel_timeout": CONNECT_SECONDS,
                "transport_factory": _transport,
            },
        )
        policy = _Pin(node, self._pins.get(machine))
        connection.client = paramiko.SSHClient()  # Fabric's own accepts any host key
        connection.client.set_missing_host_key_policy(policy)
        if policy.pinned is not None:
            _know(connection, node, policy.pinned)
        try:
            self._open(connection, node)
        except BaseException:
            with contextlib.suppress(*FAULTS):
                connection.client.close()  # Fabric's own close does nothing before the login is through
            raise
        if policy.seen is not None:
            # Pinned for later connections, and for this one too: Fabric re-opens a dropped one by itself.
            self._pins[machine] = policy.pinned = policy.seen
            _know(connection, node, policy.seen)
        return connection

    def _open(self, connection: Connection, node: Node) -> None:
        try:
            with translated(node):
                connection.open()
        except ConnectionLost as error:
            if not isinstance(error.__cause__, paramiko.AuthenticationException):
                raise
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since < self._patience:
                raise
            raise PlatformRefused(
                f"{node} refuses the SSH key {self._key_name}",
                remedy="Paste its public half into the profile that the platform's jobs use: " + public_line(self._key),
            ) from None
        self._refused_since = None
        log.debug("connected to %s", node)
