"""Fabric tamed: one explicit key, a pinned host, no waiting without an end, faults translated at one door.

What a bare `fabric.Connection` does and this one does not: accept any host key, read `~/.ssh/config`, forward an agent,
offer every key it finds, answer a server that asks for a password, read our stdin, wait 40 ms for an acknowledgement,
poll for exits, prefer the slow ciphers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import socket
import threading
import time
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import paramiko
from fabric import Config, Connection
from fabric.runners import Remote

from persistent_runner.errors import ConnectionLost, HostNotProven, PlatformRefused
from persistent_runner.remote import tunnel
from persistent_runner.remote.activity import Activity
from persistent_runner.remote.keys import load_key, public_line
from persistent_runner.remote.proof import Proof, check_secret, machine_of, not_proven

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from persistent_runner.remote.node import Node

__all__ = ["FAULTS", "Activity", "Login", "close", "load_key", "public_line", "translated"]

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

_FAMILY = {"rsa-sha2-512": "ssh-rsa", "rsa-sha2-256": "ssh-rsa"}  # a host key's type by the names of its signatures
_REFUSED = "Nothing was sent to it. Somebody stands in between, or the machine was replaced."

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


class _KeyOnly:
    """One public key and nothing else: a server that wants a password as well does not get a person asked for it.

    It has the one method of paramiko's AuthStrategy that is called.
    """

    def __init__(self, user: str, key: paramiko.PKey) -> None:
        self._user = user
        self._key = key

    def authenticate(self, transport: paramiko.Transport) -> Any:
        """Log in; AuthenticationException where the key is refused or not enough."""
        more = transport.auth_publickey(self._user, self._key)
        if more:
            raise paramiko.AuthenticationException(f"it wants {', '.join(more)} beyond the key")
        return more


class _Identity(paramiko.MissingHostKeyPolicy):
    """Decides about a host key: `accepted` are the lines that may be shown, None accepts any; `seen` was shown last.

    `key_name` is the file of our own key.
    """

    def __init__(self, node: Node, accepted: Iterable[str] | None, key_name: str) -> None:
        self.node = node
        self.key_name = key_name
        self.accepted = None if accepted is None else frozenset(accepted)
        self.seen = ""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Refuse a key that is not proven, before our name or anything else is sent."""
        self.seen = public_line(key)
        if self.accepted is not None and self.seen not in self.accepted:
            raise HostNotProven(
                f"{self.node} shows another host key than the proven one, of type {key.get_name()}", remedy=_REFUSED
            )

    def transport(self, sock: Any, **options: Any) -> paramiko.Transport:
        """Open a transport with our ciphers, without Nagle's delay, that offers the types of the accepted keys only."""
        if isinstance(sock, socket.socket):  # not a channel
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
        transport = paramiko.Transport(sock, **options)
        security = transport.get_security_options()
        security.ciphers = CIPHERS
        security.digests = MACS
        if self.accepted is not None:
            types = {line.split()[0] for line in self.accepted}
            security.key_types = [kind for kind in security.key_types if _FAMILY.get(kind, kind) in types]
        return transport


class _Connection(Connection):  # type: ignore[misc]
    """Fabric's connection; each opening, Fabric's own after a drop too, dials anew and holds the host to its pin."""

    def __init__(
        self, node: Node, *, dial: Callable[[], Any], identity: _Identity, key: paramiko.PKey, activity: Activity
    ) -> None:
        super().__init__(
            node.address or node.private_address,
            user=node.user,
            port=node.port,
            config=Config(
                lazy=True,  # neither /etc/fabric.* nor ~/.fabric.* may change a connection
                overrides={
                    "load_ssh_configs": False,
                    "forward_agent": False,
                    "run": {"in_stream": False},
                    "runners": {"remote": _Runner},
                },
            ),
            connect_timeout=CONNECT_SECONDS,
            connect_kwargs={
                "auth_strategy": _KeyOnly(node.user, key),
                "banner_timeout": CONNECT_SECONDS,
                "auth_timeout": CONNECT_SECONDS,
                "channel_timeout": CONNECT_SECONDS,
                "transport_factory": identity.transport,
            },
        )
        # _set, since Fabric takes an unknown attribute for a setting
        again = functools.partial(_Connection, node, dial=dial, identity=identity, key=key, activity=activity)
        self._set(identity=identity, activity=activity, _dial=dial, _again=again)
        self.client = paramiko.SSHClient()  # Fabric's own accepts any host key
        self.client.set_missing_host_key_policy(identity)

    def open(self) -> None:
        """Connect and log in; nothing to do where that is done."""
        if self.is_connected:
            return
        sock = self.connect_kwargs["sock"] = self._dial()
        try:
            super().open()
        except BaseException:
            with contextlib.suppress(*FAULTS):
                self.client.close()  # Fabric's own close does nothing before the login is through
                sock.close()
            raise

    def twin(self) -> _Connection:
        """Return another open connection to the same machine, held to the same pin; ConnectionLost."""
        found: _Connection = self._again()
        with translated(f"{self.user}@{self.host}:{self.port}"):
            found.open()
        return found

    def run(self, command: str, **options: Any) -> Any:
        with self.activity.flight():
            return super().run(command, **options)

    def sudo(self, command: str, **options: Any) -> Any:
        with self.activity.flight():
            return super().sudo(command, **options)

    def shell(self, **options: Any) -> Any:
        with self.activity.flight():
            return super().shell(**options)

    def get(self, *arguments: Any, **options: Any) -> Any:
        with self.activity.flight():
            return super().get(*arguments, **options)

    def put(self, *arguments: Any, **options: Any) -> Any:
        with self.activity.flight():
            return super().put(*arguments, **options)


@contextlib.contextmanager
def translated(where: object) -> Iterator[None]:
    """Turn the faults of paramiko and sockets into ConnectionLost; nobody above sees theirs."""
    try:
        yield
    except FAULTS as error:
        # A banner that never came, a refused channel, a reset: all mean "not now" and all are repeated from here.
        raise ConnectionLost(f"{where}: {str(error) or type(error).__name__}") from error


def close(channel: paramiko.Channel) -> None:
    """End a channel; on a dead connection paramiko raises even at that, and there is nothing left to end."""
    with contextlib.suppress(*FAULTS):
        channel.close()


def hang_up(connection: Connection | None) -> None:
    """End a connection, its transport first: on a half-open one a channel's own close would wait."""
    with contextlib.suppress(*FAULTS):
        if connection is not None and connection.transport is not None:
            connection.transport.close()
            connection.close()


class Login:
    """Our way onto the nodes of one lease: the key, and how each machine proves itself before it gets anything.

    A refused login is `ConnectionLost` for the first `patience` (keys are installed after sshd is up), then
    PlatformRefused; so is a machine that has no file with the secret yet (its job may not have begun), then
    HostNotProven. That is raised at once when a machine shows another host key than the proven one. `proxy` is the HTTP
    proxy that leads to the head node. `activity` counts what runs on the connections.
    """

    def __init__(
        self,
        key: paramiko.PKey,
        *,
        key_name: str,
        proof: Proof,
        patience: timedelta = timedelta(minutes=3),
        proxy: str | None = None,
        activity: Activity | None = None,
    ) -> None:
        self._key = key
        self._key_name = key_name
        self._proof = proof
        self._patience = patience.total_seconds()
        self._proxy = proxy
        self._activity = activity or Activity()
        self._refused_since: dict[str, float] = {}
        self._unproven_since: dict[str, float] = {}
        self._inside: set[str] = set()  # machines that are reached through the head node, whatever their address
        self._lock = threading.Lock()
        self._first: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # two threads prove a machine once

    def reach(self, node: Node, head: Connection | None = None) -> Connection:
        """Return an open connection to the head node, or over the proven `head` to another one, as `connect` does.

        Straight where it has an address of its own, and shows the same host key there as inside the cluster.
        """
        machine = machine_of(node)
        if head is None:
            return self.connect(node)
        if node.address and machine not in self._inside:
            try:
                self._learn(node, head)
                return self.connect(node)
            except (ConnectionLost, HostNotProven) as error:
                log.info("%s; trying the way through the head node", error)
        connection = self.connect(node, through=head)
        self._inside.add(machine)
        return connection

    def connect(self, node: Node, through: Connection | None = None) -> Connection:
        """Return an open Fabric connection to a node, whose host key is proven.

        `through` is the head node's connection: over it another node of the cluster is reached, and the key that it
        shows there is taken for its own, since nothing but the cluster stands in between.
        """
        tunnel.check_address(node)
        machine = machine_of(node)
        pinned = self._proof.pins.get(machine)
        if pinned is not None:
            return self._open(node, pinned, through)
        with self._alone_with(machine):
            pinned = self._proof.pins.get(machine)
            if pinned is not None:
                return self._open(node, pinned, through)
            if through is None:
                return self._prove(node, machine)
            connection = self._open(node, None, through)
            return self._pinned(connection, machine, [connection.identity.seen])

    # -- the first connection to a machine

    def _alone_with(self, machine: str) -> threading.Lock:
        with self._lock:
            return self._first[machine]

    def _learn(self, node: Node, head: Connection) -> None:
        """Pin the host key that a machine shows inside the cluster; no login is needed for that."""
        machine = machine_of(node)
        tunnel.check_address(node)
        with self._alone_with(machine), translated(node):
            if machine in self._proof.pins:
                return
            sock = tunnel.through_head(head, node, CONNECT_SECONDS)
            transport = _Identity(node, None, self._key_name).transport(sock)
            try:
                transport.banner_timeout = CONNECT_SECONDS
                transport.start_client(timeout=CONNECT_SECONDS)
                self._proof.pin(machine, [public_line(transport.get_remote_server_key())])
            finally:
                transport.close()

    def _prove(self, node: Node, machine: str) -> Connection:
        """Prove a machine by the keys in the log, else by the secret, else not at all where that was asked for."""
        proof, tried = self._proof, []
        keys = proof.keys_in_log(node)
        if keys:
            try:
                return self._pinned(self._open(node, keys, None), machine, keys)
            except HostNotProven:
                tried.append("it shows none of the host keys in the job's log")
        elif proof.log_keys is not None:
            tried.append("the job's log shows no host keys")
        if not proof.secret and not proof.unverified:
            raise not_proven(node, proof, [*tried, "there is no secret to ask for"])
        connection = self._open(node, None, None)
        try:
            if proof.secret:
                instead = check_secret(connection.transport, proof, node)
                if not instead:
                    if keys:
                        proof.warn_of_other_keys(node)
                    return self._pinned(connection, machine, [connection.identity.seen])
                tried.append(instead)
                self._wait_for_proof(node, machine, tried)
        except BaseException:
            with contextlib.suppress(*FAULTS):
                connection.client.close()
            raise
        log.warning(
            'THE HOST KEY OF %s IS NOT PROVEN and is accepted all the same, as host_key = "accept-unverified" asks: '
            "%s. Whoever stands in between sees and can change all that goes over this connection",
            node,
            "; ".join(tried) or "nothing proves it",
        )
        return self._pinned(connection, machine, [connection.identity.seen])

    def _wait_for_proof(self, node: Node, machine: str, tried: list[str]) -> None:
        """Raise for a machine that has no proof, as long as it may still get one, and after that unless accepted."""
        since = self._unproven_since.setdefault(machine, time.monotonic())
        if time.monotonic() - since < self._patience:
            raise ConnectionLost(f"{node} has not proven itself yet: {tried[-1]}")
        if not self._proof.unverified:
            raise not_proven(node, self._proof, tried)

    def _pinned(self, connection: Connection, machine: str, keys: list[str]) -> Connection:
        # For this connection too: Fabric re-opens a dropped one by itself.
        connection.identity.accepted = frozenset(keys)
        self._proof.pin(machine, keys)
        return connection

    # -- any connection

    def _open(self, node: Node, accepted: Iterable[str] | None, through: Connection | None) -> Connection:
        def dial() -> Any:
            if through is not None:
                return tunnel.through_head(through, node, CONNECT_SECONDS)
            return tunnel.dial(node, self._proxy, CONNECT_SECONDS)

        connection = _Connection(
            node, dial=dial, identity=_Identity(node, accepted, self._key_name), key=self._key, activity=self._activity
        )
        try:
            with translated(node):
                connection.open()
        except ConnectionLost as error:
            if isinstance(error.__cause__, paramiko.ssh_exception.IncompatiblePeer) and "host key" in str(error):
                raise HostNotProven(
                    f"{node} shows another host key than the proven one, of another type", remedy=_REFUSED
                ) from None
            if isinstance(error.__cause__, paramiko.AuthenticationException):
                self._refused(node, error)
            raise
        self._refused_since.pop(machine_of(node), None)
        log.debug("connected to %s", node)
        return connection

    def _refused(self, node: Node, error: ConnectionLost) -> None:
        now = time.monotonic()
        if now - self._refused_since.setdefault(machine_of(node), now) >= self._patience:
            raise PlatformRefused(
                f"{node} refuses the SSH key {self._key_name}: {error.__cause__}",
                remedy="Paste its public half into the profile that the platform's jobs use: " + public_line(self._key),
            ) from None
