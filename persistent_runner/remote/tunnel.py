"""The way that carries an SSH connection: straight, through an HTTP proxy, or through the proven head node."""

from __future__ import annotations

import base64
import re
import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import paramiko

from persistent_runner.errors import ConfigError, ConnectionLost
from persistent_runner.printable import printable

if TYPE_CHECKING:
    from fabric import Connection

    from persistent_runner.remote.node import Node

SSH_PORT = 22
_HEAD_BYTES = 1 << 14  # of a proxy's answer before the tunnel begins
_LATER = {408, 429}  # what a proxy may answer otherwise the next time, besides 5xx


def check_address(node: Node) -> None:
    """Raise ConnectionLost for an address that Fabric, a proxy or the head node could read as something else."""
    for address in (node.address or node.private_address, node.private_address or node.address):
        if not re.fullmatch(r"[\w.:%-]+", address, re.ASCII):
            raise ConnectionLost(f"{address!r} is no address of a machine")


def dial(node: Node, proxy: str | None, seconds: float) -> socket.socket:
    """Return an open socket to a node, through an HTTP proxy where one is named (`http://[USER:PASSWORD@]HOST:PORT`).

    Raises ConnectionLost for a time-out (`seconds`) or a refusal, ConfigError for a proxy that will never let us
    through. No message shows the proxy's user or password.
    """
    if proxy is not None:
        return _through_proxy(node, proxy, seconds)
    try:
        return socket.create_connection((node.address, node.port), timeout=seconds)
    except TimeoutError:
        raise ConnectionLost(
            f"{node}: host {node.address}, port {node.port}, does not answer within {seconds:.0f} s",
            remedy="Either the CIDR rule of the platform's profile (settings, job access) leaves out this machine's "
            "address, or only a proxy leads out of this network: PERSISTENT_RUNNER_SSH_PROXY=http://HOST:PORT",
        ) from None
    except OSError as error:
        raise ConnectionLost(
            f"{node}: host {node.address}, port {node.port}, cannot be reached: {error.strerror or error}"
        ) from None


def through_head(head: Connection, node: Node, seconds: float) -> paramiko.Channel:
    """Return a channel of the head node's connection that leads to another node of the cluster.

    A cluster's machines listen on port 22 of their private addresses; where that is refused, `node.port` is tried.
    """
    address = node.private_address or node.address
    if not head.is_connected:
        raise ConnectionLost(f"{node}: the connection to the head node is closed")
    try:
        return _forwarded(head, address, SSH_PORT, seconds)
    except paramiko.ChannelException:
        if node.port == SSH_PORT:
            raise
        return _forwarded(head, address, node.port, seconds)


def _forwarded(head: Connection, address: str, port: int, seconds: float) -> paramiko.Channel:
    channel: paramiko.Channel = head.transport.open_channel("direct-tcpip", (address, port), ("", 0), timeout=seconds)
    return channel


def _through_proxy(node: Node, proxy: str, seconds: float) -> socket.socket:
    parts = urlsplit(proxy)
    shown = f"the proxy {parts.hostname}:{parts.port or 80}"
    deadline = time.monotonic() + seconds
    try:
        sock = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=seconds)
    except OSError as error:
        raise ConnectionLost(
            f"{node}: {shown} cannot be reached: {error.strerror or error}",
            remedy="PERSISTENT_RUNNER_SSH_PROXY names it.",
        ) from None
    try:
        sock.sendall(_request(node, parts.username, parts.password))
        _check(_status_line(sock, deadline), node, shown)
    except TimeoutError:
        sock.close()
        raise ConnectionLost(f"{node}: {shown} did not answer within {seconds:.0f} s") from None
    except OSError as error:
        sock.close()
        raise ConnectionLost(f"{node}: {shown} ended the connection: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _request(node: Node, user: str | None, password: str | None) -> bytes:
    """Return the CONNECT of RFC 9110, section 9.3.6, with Basic credentials where the proxy's address has some."""
    host = f"[{node.address}]" if ":" in node.address else node.address
    lines = [f"CONNECT {host}:{node.port} HTTP/1.1", f"Host: {host}:{node.port}"]
    if user is not None:
        credentials = f"{unquote(user)}:{unquote(password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _status_line(sock: socket.socket, deadline: float) -> str:
    """Read a proxy's answer and nothing of what follows it: the SSH server speaks first."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        byte = sock.recv(1)
        if not byte or len(head) > _HEAD_BYTES:
            raise ConnectionError("no HTTP answer came")
        head += byte
    line = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    return printable(line)[:200]


def _check(line: str, node: Node, shown: str) -> None:
    status = re.match(r"HTTP/1\.\d (\d{3})\b", line)
    code = int(status[1]) if status else 0
    if 200 <= code < 300:
        return
    message = f"{node}: {shown} answers {line!r} to CONNECT {node.address}:{node.port}"
    if 400 <= code < 500 and code not in _LATER:
        raise ConfigError(
            message,
            remedy="It wants a user and password: PERSISTENT_RUNNER_SSH_PROXY=http://USER:PASSWORD@HOST:PORT"
            if code == 407
            else f"Ask whoever runs it to allow CONNECT to port {node.port}, or name another proxy in "
            "PERSISTENT_RUNNER_SSH_PROXY.",
        )
    raise ConnectionLost(message)
