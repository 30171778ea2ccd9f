"""Commands and shells over SSH, run as OpenSSH runs them.

By the login shell, in the home folder, killed by nobody when the connection goes (their pipes break, a terminal hangs
up).
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
from typing import IO, TYPE_CHECKING

import asyncssh

if TYPE_CHECKING:
    from persistent_runner.local_platform.sshd import NodeSettings

_log = logging.getLogger(__name__)

_PIECE = 1 << 18
_TAKE_TERMINAL = "import fcntl,os,sys,termios;fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execv(sys.argv[1],sys.argv[2:])"


async def serve(process: asyncssh.SSHServerProcess[bytes], settings: NodeSettings) -> None:
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
