"""One no-op trial over OpenSSH on loopback, by the link and by the plain ways."""

from __future__ import annotations

import io
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fabric

from persistent_runner.remote.link import Link
from persistent_runner.remote.ssh import Login, load_key
from tests.openssh import openssh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.openssh import OpenSsh


@dataclass(frozen=True)
class Row:
    """One way of running a trial: the median of its wall time, and the frames of one trial where there are frames."""

    way: str
    seconds: float
    frames_out: float | None = None
    frames_in: float | None = None


def measure(folder: Path, repeats: int) -> list[Row]:
    """Return the rows of the table. A trial here is one small input, the command `true`, and one small result."""
    with openssh(folder / "openssh") as server:
        login = Login(load_key(server.key), key_name="benchmark", proof=server.proof())
        connection = login.connect(server.node())
        try:
            rows = [_by_link(connection, repeats), _by_fabric("ours: put, run, get", connection, repeats)]
        finally:
            connection.close()
        with _plain(server) as plain:
            rows.append(_by_fabric("plain Fabric: put, run, get", plain, repeats))
        return [*rows, _by_connecting(server, repeats)]


def table(rows: list[Row]) -> str:
    """Return the rows as text, each with its ratio to the first."""
    lines = [f"{'a no-op trial over OpenSSH on loopback':<42}{'median':>10}{'ratio':>8}{'frames out, in':>17}"]
    for row in rows:
        frames = f"{row.frames_out:g}, {row.frames_in:g}" if row.frames_out is not None else "-"
        ratio = row.seconds / rows[0].seconds
        lines.append(f"{row.way:<42}{row.seconds * 1000:>7.1f} ms{ratio:>8.1f}{frames:>17}")
    return "\n".join(lines)


def _by_link(connection: fabric.Connection, repeats: int) -> Row:
    link = Link(lambda: connection, run="benchmark", lease="benchmark", node="node")
    link.open()
    try:
        count = iter(range(repeats + 1))

        def trial() -> None:
            ended = link.start(
                f"{next(count):05d}.1",
                0,
                command_hash="",
                script="true",
                env={},
                cores=1,
                timeout=None,
                stall=None,
                files=[("input", b"x", 0o644)],
                outputs=["input"],
            ).result(60)
            assert (ended.code, ended.manifest[0].data) == (0, b"x")

        trial()  # the first one loads what the others find in memory
        before = link.frames_out, link.frames_in
        seconds = _median(trial, repeats)
        frames = (link.frames_out - before[0]) / repeats, (link.frames_in - before[1]) / repeats
    finally:
        link.close()
    return Row("link: one frame out, one back", seconds, *frames)


def _plain(server: OpenSsh) -> fabric.Connection:
    """Return a connection as Fabric gives it: no shorter way, no faster cipher, nothing of ours."""
    node = server.node()
    return fabric.Connection(
        node.address, user=node.user, port=node.port, connect_kwargs={"key_filename": str(server.key)}
    )


def _put_run_get(connection: fabric.Connection) -> None:
    connection.put(io.BytesIO(b"x"), "input")
    connection.run("true", hide=True, in_stream=False)
    connection.get("input", io.BytesIO())


def _by_fabric(way: str, connection: fabric.Connection, repeats: int) -> Row:
    _put_run_get(connection)
    return Row(way, _median(lambda: _put_run_get(connection), repeats))


def _by_connecting(server: OpenSsh, repeats: int) -> Row:
    def trial() -> None:
        with _plain(server) as connection:
            _put_run_get(connection)

    return Row("plain Fabric: a connection for each trial", _median(trial, repeats))


def _median(trial: Callable[[], None], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        trial()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
