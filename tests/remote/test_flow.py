"""The window, what shrinks, and what is told of it, on lines that a test makes up."""

from __future__ import annotations

import heapq
import os

import pytest

from persistent_runner.remote import agent, packing
from persistent_runner.remote import flow as flow_module
from persistent_runner.remote.flow import Flow, Ticket
from persistent_runner.remote.progress import EVERY, Progress


def window_after(monkeypatch: pytest.MonkeyPatch, rtt: float, rate: float, size: int) -> tuple[float, float]:
    """Carry `size` bytes over a made-up line; return the window and the seconds that it took."""
    now = [0.0]
    monkeypatch.setattr(flow_module.time, "monotonic", lambda: now[0])
    found = Flow(rtt)
    on_way: list[tuple[float, int, Ticket]] = []
    free_at, left, number = 0.0, size, 0
    while left > 0 or on_way:
        piece = min(found.piece, left)
        ticket = found.start(piece) if left > 0 else None
        if ticket is not None:
            free_at = max(free_at, now[0]) + piece / rate
            number += 1
            heapq.heappush(on_way, (free_at + rtt, number, ticket))
            left -= piece
            continue
        now[0], _, oldest = heapq.heappop(on_way)
        found.end(oldest, oldest.size, oldest.size)
    return found.window, now[0]


@pytest.mark.parametrize("rtt", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("rate", [1e6, 25e6, 125e6])
def test_the_window_fits_the_line(monkeypatch: pytest.MonkeyPatch, rtt: float, rate: float) -> None:
    """It fills the line and hardly more, whatever line that is: within 2 of what it holds, and a few pieces."""
    size = int(60 * rate * max(rtt, 0.05)) + (40 << 20)
    window, seconds = window_after(monkeypatch, rtt, rate, size)
    holds = rate * rtt
    assert holds <= window <= 2 * holds + (1 << 20)
    assert seconds <= 1.25 * (size / rate + rtt)


def test_a_slow_line_gets_small_pieces() -> None:
    """One piece must not keep a small trial waiting for long."""
    slow = Flow(0.05)
    slow.window = 200_000
    fast = Flow(0.05)
    fast.window = 16 << 20
    assert slow.piece <= 1 << 16 < fast.piece


@pytest.mark.parametrize("way", [packing.ZLIB, packing.ZSTD])
@pytest.mark.parametrize("body", [b"", b"x" * 600, os.urandom(100_000), b"1.5, 2.5\n" * 50_000], ids=len)
def test_packing(way: int, body: bytes) -> None:
    """What was packed comes out again; what does not shrink is left as it is."""
    z, packed = packing.pack(body, way)
    assert packing.unpack(z, packed) == body
    assert bool(z) == (len(packed) < len(body))
    assert bool(z) == (len(set(body)) < 100 and len(body) > 512)


def test_progress(caplog: pytest.LogCaptureFixture) -> None:
    """Rate and time left of what takes a while; nothing of what is quick, and nothing when it is over."""
    caplog.set_level("INFO")
    now = [0.0]
    with Progress("mesh", 100_000_000, "trial 3", lambda: now[0]) as shown:
        assert shown.text == ""
        for _ in range(6):
            now[0] += EVERY / 4
            shown.add(5_000_000)
        assert shown.text == "mesh: 30 of 100 MB, 2.0 MB/s, about 35s left"
        assert [record.message for record in caplog.records] == [
            "trial 3: mesh: 20 of 100 MB, 2.0 MB/s, about 40s left"
        ]
    assert shown.text == ""


@pytest.mark.parametrize("body", [b"", b"x" * 600, os.urandom(100_000), b"1.5, 2.5\n" * 50_000], ids=len)
def test_zstd_of_both_ends(body: bytes) -> None:
    """What one end packs the other one unpacks, and damage is an error there."""
    ours, theirs = packing.zstd(), agent.find_zstd()
    if ours is None or theirs is None:
        pytest.skip("needs zstandard (or Python 3.14) and libzstd")
    compress, decompress = theirs
    assert decompress(ours.pack(body)) == body
    assert ours.unpack(compress(body)) == body
    z, packed = agent.pack(body, theirs)
    assert packing.unpack(z, packed) == body
    with pytest.raises(ValueError, match="cannot read"):
        decompress(b"damaged" * 10)
