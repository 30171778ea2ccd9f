"""The frame codec."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.remote.frames import Life, NotAFrame, decode, encode, life_of

HEADERS = st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=4).map(
    lambda header: {key: value for key, value in header.items() if key != "z"}
)


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=2000)), max_size=4), st.integers(1, 50))
def test_frames_survive_any_cut(frames: list[tuple[dict[str, object], bytes]], size: int) -> None:
    """However the stream is cut into reads, the same frames come out, and nothing is left over."""
    stream = b"".join(encode(header, body) for header, body in frames)
    buffer, found = bytearray(), []
    for at in range(0, len(stream), size):
        buffer += stream[at : at + size]
        found += list(decode(buffer, "node"))
    assert [(dict(header, z=None), body) for header, body in found] == [
        (dict(header, z=None), body) for header, body in frames
    ]
    assert not buffer


@pytest.mark.parametrize(
    "found",
    [
        b"disk quota: 71 % used\n",
        b"\nlast login",
        encode({}, b"text " * 1000)[:-9] + b"Mail: 2\nx",
        encode({})[:-2] + b"no",
    ],
)
def test_what_is_no_frame(found: bytes) -> None:
    """What something else has printed in between is said at once; no length is read out of its letters."""
    with pytest.raises(NotAFrame, match="vm: what came is not of the agent, but '"):
        list(decode(bytearray(encode({"t": "done"}) + found), "vm"))


def test_bodies_are_packed_where_it_helps() -> None:
    """Text travels small, what cannot be packed travels as it is."""
    assert len(encode({}, b"text " * 1000)) < 200
    assert len(encode({}, bytes(range(256)) * 2)) < 600
    noise = random.Random(1).randbytes(1 << 16)
    for body in (noise, b"text " * 200 + noise):
        header, _ = next(decode(bytearray(encode({}, body)), "node"))
        assert "z" not in header
    assert len(encode({}, noise + b"text " * 10_000)) < len(noise) + 5_000


@pytest.mark.parametrize(
    ("tick", "found"), [("17", 17), ("0", 0), ("", None), ("-1", None), ("1.5", None), ("?", None)]
)
def test_a_tick_that_is_just_being_written(tick: str, found: int | None) -> None:
    """A tick that cannot be read is none; it is no reason to give up."""
    assert life_of({"t": "done", "tick": tick, "ended": "stop-asked"}, b"") == Life(found, "stop-asked")
