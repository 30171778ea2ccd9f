"""A machine at the other end of a line: OpenSSH's sshd with its default limits, and our ways onto it."""

from __future__ import annotations

import dataclasses
import secrets
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.remote.link import Link
from persistent_runner.remote.ssh import Login, load_key
from tests.benchmarks.line import line
from tests.openssh import openssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fabric import Connection

    from tests.openssh import OpenSsh

HOST = "127.0.0.1"
MEMORY = Path("/dev/shm")
ANSWER = 120.0  # seconds that a trial may take


class Far:
    """A server that is `rtt` seconds away."""

    def __init__(self, server: OpenSsh, port: int, rtt: float) -> None:
        self.server = server
        self.rtt = rtt
        self.node = dataclasses.replace(server.node(), port=port)
        self.login = Login(load_key(server.key), key_name="benchmark", proof=server.proof())

    def connect(self) -> Connection:
        """Log in."""
        return self.login.connect(self.node)

    @contextmanager
    def link(self) -> Iterator[Link]:
        """Give a link on a connection of its own."""
        run = f"benchmark.{secrets.token_hex(4)}"
        link = Link(self.connect, run=run, lease=run, node="node")
        link.open()
        try:
            yield link
        finally:
            link.close()


@contextmanager
def in_memory() -> Iterator[Path]:
    """Give a folder in memory where that can be had, for what is no disk's business.

    ext4 without a journal looks, for each new file, through all that were deleted in the last minutes: after a run of
    the tests a file can cost 20 times what it costs on the same disk else.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.exists() else None) as folder:
        yield Path(folder)


@contextmanager
def far(rtt: float, bits_per_second: float | None = None) -> Iterator[Far]:
    """Serve OpenSSH at the end of a line; without a round trip there is none.

    Its home is in memory, since its disk is not what is measured.
    """
    with (
        in_memory() as folder,
        openssh(folder / "openssh") as server,
        moved(Far(server, server.port, 0.0), rtt, bits_per_second) as place,
    ):
        yield place


@contextmanager
def moved(place: Far, rtt: float, bits_per_second: float | None = None) -> Iterator[Far]:
    """Give the same server at another distance."""
    if not (rtt or bits_per_second):
        yield Far(place.server, place.server.port, rtt)
        return
    with line(HOST, place.server.port, rtt, bits_per_second) as port:
        yield Far(place.server, port, rtt)


def milliseconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return how long each call took, the shortest first. The first call loads what others find: make it before."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return sorted(taken)


def said(taken: list[float]) -> str:
    """Return how much the repeats differed."""
    return f"median of {len(taken)}, {taken[0]:.4g} to {taken[-1]:.4g}"


median = statistics.median
