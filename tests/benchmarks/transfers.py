"""Big files over a long line, against raw TCP, SFTP and scp over the same one, and small trials beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.cli import SWITCH_SECONDS
from persistent_runner.inputs import SharedFile
from persistent_runner.remote import packing, transfer
from persistent_runner.remote.agent import STATIC, find_zstd
from persistent_runner.remote.link import Link
from persistent_runner.remote.ssh import Login, load_key
from tests.benchmarks.bars import Row
from tests.benchmarks.line import line
from tests.benchmarks.tcp import HOST, served
from tests.openssh import openssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fabric import Connection

    from tests.openssh import OpenSsh

TITLE = "big files over a long line"
FAST, SLOW = 1e9, 200e6  # bits a second
GET_BARS = {0.05: 0.93, 0.1: 0.88}  # of raw TCP, by round trip
PUT_BARS = {0.05: 0.80, 0.1: 0.74}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is carried: bytes over the fast and the slow line and by SFTP and scp; turns, and small trials."""

    fast_bytes: int = 200_000_000
    slow_bytes: int = 200_000_000
    others_bytes: int = 200_000_000
    turns: int = 3
    trials: int = 15


QUICK = Size(200_000_000, 60_000_000, 8_000_000, 2, 7)


def measure(folder: Path, size: Size) -> list[Row]:
    """Return the rows: each figure is the median of the turns after the first one, which opens lanes and finds the window.

    Files lie in memory where there is a place for that, so that no disk is measured.
    """
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else folder) as place,
        openssh(Path(place) / "openssh") as server,
        _as_run_study(),
    ):
        files = Path(place)
        rows = [row for rtt in GET_BARS for row in _fast(server, files, rtt, size)]
        rows += _text(server, files, size, zstd=False)
        if packing.zstd() and find_zstd():
            rows += _text(server, files, size, zstd=True)
        return [*rows, *_beside(server, files, size)]


@contextlib.contextmanager
def _as_run_study() -> Iterator[None]:
    """Let threads wait for the interpreter no longer than they do in `run-study`."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


def _fast(server: OpenSsh, files: Path, rtt: float, size: Size) -> list[Row]:
    data = os.urandom(size.fast_bytes)
    name = f"{len(data) / 1e6:.0f} MB, 1 Gbit/s, RTT {rtt * 1000:.0f} ms"
    with _raw(data) as target, line(HOST, target, rtt, FAST) as raw, _linked(server, rtt, FAST) as ours:
        times: dict[str, list[float]] = {"get": [], "put": [], "raw get": [], "raw put": []}
        there, back = _ways(ours, files, data)
        for _ in range(size.turns + 1):  # each beside its peer: a busy machine slows both
            for way, call in (("get", back), ("put", there)):
                times[f"raw {way}"].append(_seconds(lambda way=way: _by_raw(raw, way, data)))
                times[way].append(_seconds(call))
        others = _others(server, ours.port, files, data[: size.others_bytes], ours.connection)
    rows = []
    for way, bar in (("get", GET_BARS[rtt]), ("put", PUT_BARS[rtt])):
        rate, peer = (len(data) / 1e6 / statistics.median(times[key][1:]) for key in (way, f"raw {way}"))
        first = len(data) / 1e6 / times[way][0]
        note = f"{rate / peer:.0%} of raw TCP; the first one {first:.1f}; {others[way]}"
        rows.append(Row(f"{way} {name}", rate, "MB/s", bar * peer, True, ("raw TCP", peer), FAST / 8e6, note))
    return rows


def _text(server: OpenSsh, files: Path, size: Size, *, zstd: bool) -> list[Row]:
    data = text(size.slow_bytes)
    kind, times = ("zstd", 2.5) if zstd else ("zlib", 2.0)
    with _only_zlib() if not zstd else contextlib.nullcontext(), _linked(server, 0.05, SLOW) as ours:
        there, back = _ways(ours, files, data)
        taken: dict[str, list[float]] = {"get": [], "put": []}
        for _ in range(size.turns + 1):
            taken["get"].append(_seconds(back))
            taken["put"].append(_seconds(there))
    rows = []
    for way, seconds in taken.items():
        rate = len(data) / 1e6 / statistics.median(seconds[1:])
        what = f"{way} text, 200 Mbit/s, RTT 50 ms, {kind}"
        packed = packing.pack(data[: 1 << 20], packing.ZSTD if zstd else packing.ZLIB)[1]
        most = SLOW / 8e6 * (1 << 20) / len(packed)
        note = f"{rate / (SLOW / 8e6):.2f} times the line"
        rows.append(Row(what, rate, "MB/s", times * SLOW / 8e6, True, ("the line", SLOW / 8e6), most, note))
    return rows


def _beside(server: OpenSsh, files: Path, size: Size) -> list[Row]:
    data = os.urandom(size.slow_bytes)
    rows = []
    with _linked(server, 0.05, SLOW) as ours:
        count = iter(range(1_000_000))

        def trial() -> None:
            ended = ours.link.start(
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
            assert ended.code == 0

        trial()
        there, back = _ways(ours, files, data)
        for way, call in (("get", back), ("put", there)):
            call()
            alone = statistics.median(_seconds(trial) for _ in range(size.trials))
            bulk = threading.Thread(target=call)
            bulk.start()
            time.sleep(0.3)
            beside = []
            while bulk.is_alive() and len(beside) < size.trials:
                beside.append(_seconds(trial))
            bulk.join()
            what = f"small trial beside a {way}, 200 Mbit/s, RTT 50 ms"
            ours_ms, alone_ms = statistics.median(beside) * 1000, alone * 1000
            note = f"{ours_ms / alone_ms:.2f} times alone; median of {len(beside)}"
            rows.append(Row(what, ours_ms, "ms", 2 * alone_ms, peer=("alone", alone_ms), limit=50, note=note))
    return rows


# -- ours


@dataclasses.dataclass(frozen=True)
class _Linked:
    link: Link
    root: Path
    connection: Connection
    port: int


@contextlib.contextmanager
def _linked(server: OpenSsh, rtt: float, bits: float) -> Iterator[_Linked]:
    login = Login(load_key(server.key), key_name="benchmark", proof=server.proof())
    with line(server.node().address, server.port, rtt, bits) as port:
        connection = login.connect(dataclasses.replace(server.node(), port=port))
        link = Link(lambda: connection, run="benchmark", lease="benchmark", node="node")
        try:
            root = Path(link.open().root)
            yield _Linked(link, root, connection, port)
        finally:
            link.close()
            connection.close()


def _ways(ours: _Linked, files: Path, data: bytes) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what puts the content as a big input, and what gets it as an output."""
    source, checksum = files / "source", hashlib.sha256(data).hexdigest()
    source.write_bytes(data)
    file = SharedFile(source, len(data), checksum)
    link, root = ours.link, ours.root
    (root / "out.1").mkdir(exist_ok=True)
    (root / "out.1" / "big").write_bytes(data)
    output = next(iter(link.outputs("out.1", ["*"]).result(60)))
    kept = root / STATIC / checksum

    def there() -> None:
        kept.unlink(missing_ok=True)
        transfer.share(link, [file], lambda: None)

    def back() -> None:
        transfer.fetch(link, "out.1", output, files / "back")

    return there, back


@contextlib.contextmanager
def _only_zlib() -> Iterator[None]:
    found = packing.zstd
    packing.zstd = lambda: None
    try:
        yield
    finally:
        packing.zstd = found


def text(size: int) -> bytes:
    """Return a table of numbers as a solver writes it; it shrinks to a third."""
    chosen = random.Random(1)
    lines = [
        b"%8d, %14.6e, %14.6e, %12.5f\n"
        % (n, chosen.gauss(0, 1), chosen.random() / 1000, chosen.choice([0.0, 1.0, 2.5]))
        for n in range(40_000)
    ]
    block = b"".join(lines)
    return (block * (size // len(block) + 1))[:size]


# -- peers


def _raw(data: bytes) -> contextlib.AbstractContextManager[int]:
    """Serve the content, and take it, over TCP alone."""

    def answer(sock: socket.socket) -> None:
        if sock.recv(1) == b"g":
            sock.sendall(data)
        else:
            left = len(data)
            while left:
                left -= len(sock.recv(1 << 18))
            sock.sendall(b"k")

    return served(answer)


def _by_raw(port: int, way: str, data: bytes) -> None:
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(way[:1].encode())
        if way == "put":
            sock.sendall(data)
        while sock.recv(1 << 18):
            pass


def _others(server: OpenSsh, port: int, files: Path, data: bytes, connection: Connection) -> dict[str, str]:
    """Return the rates of SFTP and scp in words, one turn each."""
    there, here = files / "peer there", files / "peer here"
    here.write_bytes(data)
    key = ["-q", "-i", str(server.key), "-P", str(port)]
    key += [f"-o{option}" for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")]
    where = f"{server.node().user}@{HOST}:{str(there).replace(' ', chr(92) + ' ')}"
    with connection.client.open_sftp() as sftp:
        put = _seconds(lambda: sftp.put(str(here), str(there)))
        get = _seconds(lambda: sftp.get(str(there), str(here)))
    rates = {"put": f"SFTP {len(data) / 1e6 / put:.1f}", "get": f"SFTP {len(data) / 1e6 / get:.1f}"}
    if shutil.which("scp"):
        for way, ends in (("put", [str(here), where]), ("get", [where, str(here)])):
            seconds = _seconds(lambda ends=ends: subprocess.run(["scp", *key, *ends], check=True))
            rates[way] += f", scp {len(data) / 1e6 / seconds:.1f}"
    return rates


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
