"""Bytes made smaller for the way, where a sample shrinks: zlib everywhere, zstd where both ends have it."""

from __future__ import annotations

import functools
import importlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

from persistent_runner.remote.agent import ZLIB, ZSTD, shrinks

if TYPE_CHECKING:
    from collections.abc import Callable


class _Zstd(NamedTuple):
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


@functools.cache
def zstd() -> _Zstd | None:
    """Return zstd of Python's own library (3.14) or of the package `zstandard`; None where neither is."""
    try:
        own = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return _Zstd(lambda data: own.compress(data, 1), own.decompress)
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        return None
    # an object a call, since none may be used by two threads; a frame of the program does not tell its size
    return _Zstd(
        lambda data: package.ZstdCompressor(level=1).compress(data),
        lambda data: package.ZstdDecompressor().decompressobj().decompress(data),
    )


def pack(body: bytes, way: int = ZLIB) -> tuple[int, bytes]:
    """Return (`z`, bytes) of a body; `z` is 0 where it goes as it is."""
    if not way or not shrinks(body):
        return 0, body
    codec = zstd() if way == ZSTD else None
    smaller = codec.pack(body) if codec else zlib.compress(body, 1)
    return (ZSTD if codec else ZLIB, smaller) if len(smaller) < len(body) else (0, body)


def unpack(z: int, data: bytes) -> bytes:
    """Return what `pack` was given."""
    if not z:
        return data
    codec = zstd() if z == ZSTD else None
    return codec.unpack(data) if codec else zlib.decompress(data)
