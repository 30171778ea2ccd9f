"""Start an agent over an open connection: no file is copied, the program travels in the command line."""

from __future__ import annotations

import base64
import functools
import io
import json
import secrets
import shlex
import time
import tokenize
import zlib
from importlib import resources
from typing import TYPE_CHECKING

from persistent_runner.background import in_background
from persistent_runner.errors import ConnectionLost, RunnerError
from persistent_runner.printable import printable
from persistent_runner.remote.frames import Hello, decode, hello_of
from persistent_runner.remote.ssh import close, translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    import paramiko
    from fabric import Connection

_NOISE = 1 << 20  # bytes that a login shell may print before the agent speaks
_SAID = 2000  # characters of it that a message quotes


def open_session(
    connection: Connection, where: str, seconds: float, *, window: int | None = None, packet: int | None = None
) -> paramiko.Channel:
    """Return a new channel of a connection; ConnectionLost when it cannot be had within `seconds`.

    `window` are the bytes that the node may send ahead, `packet` those of one packet; None is paramiko's own choice.
    """
    with translated(where):
        if not connection.is_connected:
            raise ConnectionLost(f"{where}: the connection is closed")
        channel: paramiko.Channel = connection.transport.open_session(window, packet, timeout=seconds)
    return channel


def start_agent(
    channel: paramiko.Channel, config: Mapping[str, object], where: str, seconds: float
) -> tuple[Hello, bytes]:
    """Start an agent in a channel; return its hello and the bytes that came after it.

    ConnectionLost when the channel ends or nothing comes within `seconds`; RunnerError when the node's own answer says
    that it would not work the next time either: no python3, no room, no home.
    """
    nonce = secrets.token_hex(16)
    channel.settimeout(seconds)
    # paramiko waits for the reply to exec without an end when the transport dies inside it
    command = bootstrap({**config, "nonce": nonce})
    with translated(where):
        in_background(lambda: channel.exec_command(command), "start of an agent").result(seconds)
    buffer = bytearray(_after_nonce(channel, nonce.encode(), where, seconds))
    while True:
        for header, _ in decode(buffer, where):
            return hello_of(header), bytes(buffer)
        with translated(where):
            data = channel.recv(1 << 16)
        if not data:
            raise ConnectionLost(f"{where}: the agent ended at once{what_it_said(channel)}")
        buffer += data


def bootstrap(config: Mapping[str, object]) -> str:
    """Return the command line that starts the agent through a login shell, the agent itself within it."""
    packed = _packed_agent()
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


@functools.cache
def _packed_agent() -> str:
    source = (resources.files("persistent_runner.remote") / "agent.py").read_text("utf-8")
    return base64.b64encode(zlib.compress(without_comments(source).encode(), 9)).decode()


def without_comments(source: str) -> str:
    """Return a program without its comments and docstrings, a quarter of its size; each line keeps its number."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    kept: list[str] = []
    at = 0
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        docstring = token.type == tokenize.STRING and begins_statement
        if docstring or token.type == tokenize.COMMENT:
            kept.append(source[at : starts[token.start[0] - 1] + token.start[1]])
            kept.append('""' + "\n" * token.string.count("\n") if docstring else "")
            at = starts[token.end[0] - 1] + token.end[1]
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins_statement = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "".join([*kept, source[at:]])


def what_it_said(channel: paramiko.Channel) -> str:
    """Return the end of what a channel has on stderr now, as `: text`; nothing where it has none."""
    errors = b""
    while channel.recv_stderr_ready() and len(errors) < _NOISE:
        errors += channel.recv_stderr(1 << 16)
    return f": {_end(errors)}" if errors.strip() else ""


def _after_nonce(channel: paramiko.Channel, nonce: bytes, where: str, seconds: float) -> bytes:
    """Skip what the login shell prints before the agent speaks."""
    mark, noise = b"\n" + nonce + b"\n", b""
    until = time.monotonic() + seconds
    while mark not in noise:
        data = b""
        if len(noise) < _NOISE and time.monotonic() < until:
            with translated(f"{where}: no answer from the agent"):
                data = channel.recv(1 << 16)
        if not data:
            _explain(channel, noise, where)
        noise += data
    return noise.split(mark, 1)[1]


def _explain(channel: paramiko.Channel, noise: bytes, where: str) -> None:
    channel.status_event.wait(1)
    code = channel.exit_status
    said = what_it_said(channel) or f": {_end(noise)}"
    close(channel)
    if code == 127 or "SyntaxError" in said:
        raise RunnerError(
            f"{where}: there is no python3 on the node, or one older than 3.6{said}",
            remedy="The node needs Python 3.6 or later on the PATH of a login shell.",
        )
    if 0 < code < 128:  # it ended by itself; a session that is cut off has no code
        raise RunnerError(f"{where}: the agent cannot start on the node, exit code {code}{said}")
    raise ConnectionLost(f"{where}: the agent did not start{said}")


def _end(said: bytes) -> str:
    return printable(said)[-_SAID:].strip()
