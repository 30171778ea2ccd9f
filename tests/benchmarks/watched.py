"""A `run-study` that writes down each fsync, each start and each frame of its trials: `python -m tests.benchmarks.watched`.

The first argument is the file to write into, the others are run-study's. Each fsync takes BENCHMARK_FSYNC_SECONDS
longer than the disk does.
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
_seen: list[dict[str, Any]] = []


def _watched_fsync(fd: int) -> None:
    path, begun = str(Path(f"/proc/self/fd/{fd}").readlink()), time.monotonic()
    _fsync(fd)
    time.sleep(float(os.environ.get("BENCHMARK_FSYNC_SECONDS", "0")))
    _seen.append({"what": "fsync", "at": begun, "seconds": time.monotonic() - begun, "path": path})


def _watched_encode(header: Header, body: bytes = b"") -> bytes:
    if header["t"] != "ping":
        _seen.append({"what": "out", "at": time.monotonic(), "kind": header["t"], "attempt": _attempt(header)})
    return _encode(header, body)


def _watched_deliver(self: link.Link, header: Header, body: bytes) -> None:
    request = self._pending.get(header.get("id", 0))
    if request is not None and request.header["t"] != "ping":
        kind, attempt = request.header["t"], _attempt(request.header)
        _seen.append({"what": "in", "at": time.monotonic(), "kind": kind, "attempt": attempt})
    _deliver(self, header, body)


def _watched_submit(self: pool.Pool, number: int, attempt: int, *rest: Any) -> Any:
    _seen.append({"what": "start", "at": time.monotonic(), "attempt": f"{number:05d}.{attempt}"})
    return _submit(self, number, attempt, *rest)


def _attempt(header: Header) -> str:
    return str(header.get("attempt") or str(header.get("path", "")).split("/")[0])


def main() -> None:
    """Run a study as `run-study` does."""
    record = Path(sys.argv.pop(1))
    os.fsync = _watched_fsync
    frames.encode = _watched_encode
    link.Link._deliver = _watched_deliver
    pool.Pool.submit = _watched_submit
    try:
        cli.run_study()
    finally:
        record.write_text("".join(json.dumps(line) + "\n" for line in _seen))


if __name__ == "__main__":
    main()
