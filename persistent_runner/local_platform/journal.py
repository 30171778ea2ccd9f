"""What the local platform did and when, line by line on disk: the truth that others' claims are held against."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""Version of the journal's lines; the first line of every start carries it."""


class Journal:
    """JSON lines, each on disk before what it tells has an effect outside; with no path it writes nothing.

    Every line has `event`, `monotonic` (seconds of this machine's monotonic clock, comparable between its processes)
    and `wall` (UTC). Lines about a job have `job` and `name`. The events: `started` (of the platform), `created`,
    `submitted`, `status` and `cluster_status` (with `status`, `reason`), `stop_asked`, `force_stop_asked`, `deleted`,
    `command_started` (with `restart`), `command_ended` (with `code`), `machines_up` (with `instances`, `ports`),
    `machines_gone`, `fault` (something happens to a job on order, with `what`).
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab")
        except OSError as error:
            raise ConfigError(f"The journal {path} cannot be written: {error.strerror or error}") from None
        self.write("started", version=FORMAT, pid=os.getpid())

    def write(self, event: str, **about: Any) -> None:
        """Append a line; returns when it is on disk. Nothing after `close`."""
        with self._lock:
            if self._stream is None:
                return
            times = {"monotonic": time.monotonic(), "wall": datetime.now(UTC).isoformat()}
            self._stream.write(json.dumps({"event": event, **times, **about}).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
