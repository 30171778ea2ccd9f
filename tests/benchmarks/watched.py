"""A `run-study` that writes down each fsync, each start and each frame of its trials: `python -m tests.benchmarks.watched`.

The first argument is the file to write into, line by line; the others are run-study's. Each fsync takes
BENCHMARK_FSYNC_SECONDS longer than the disk does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persistent_runner import cli, pool
from persistent_runner.remote import frames, link

if TYPE_CHECKING:
    from persistent_runner.remote.frames import Header

_fsync = os.fsync
_encode = frames.encode
_deliver = link.Link._deliver
_submit = pool.Pool.submit
_record = -1


def _note(what: str, at: float, **more: object) -> None:
    os.write(_record, json.dumps({"what": what, "at": at, **more}).encode() + b"\n")


def _watched_fsync(fd: int) -> None:
    path, begun = str(Path(f"/proc/self/fd/{fd}").readlink()), time.monotonic()
    _fsync(fd)
    time.sleep(float(os.environ.get("BENCHMARK_FSYNC_SECONDS", "0")))
    _note("fsync", begun, seconds=time.monotonic() - begun, path=path)


def _watched_encode(header: Header, body: bytes = b"") -> bytes:
    if header["t"] != "ping":
        _note("out", time.monotonic(), kind=header["t"], attempt=_attempt(header))
    return _encode(header, body)


def _watched_deliver(self: link.Link, header: Header, body: bytes) -> None:
    request = self._pending.get(header.get("id", 0))
    if request is not None and request.header["t"] != "ping":
        _note("in", time.monotonic(), kind=request.header["t"], attempt=_attempt(request.header))
    _deliver(self, header, body)


def _watched_submit(self: pool.Pool, number: int, attempt: int, *rest: Any) -> Any:
    _note("start", time.monotonic(), attempt=f"{number:05d}.{attempt}")
    return _submit(self, number, attempt, *rest)


def _attempt(header: Header) -> str:
    return str(header.get("attempt") or str(header.get("path", "")).split("/")[0])


def main() -> None:
    """Run a study as `run-study` does."""
    global _record  # noqa: PLW0603 - a program of its own
    os.fsync = _watched_fsync
    frames.encode = _watched_encode
    link.Link._deliver = _watched_deliver
    pool.Pool.submit = _watched_submit
    _record = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    cli.run_study()


if __name__ == "__main__":
    main()
