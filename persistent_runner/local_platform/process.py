"""The process that `ensure_process` starts: a platform that ends by itself when nobody needs it.

`python -m persistent_runner.local_platform.process STATE_DIR fast|recorded`
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from persistent_runner.local_platform.attach import StateFiles, proof_of, write_state
from persistent_runner.local_platform.durations import FAST, RECORDED
from persistent_runner.local_platform.local import LocalRescale

_GRACE = 20.0
"""Seconds that the first driver has to attach."""


class Holders:
    """Counts the drivers that are attached; each is an open connection that has shown to know the token."""

    def __init__(self, platform: LocalRescale) -> None:
        self.token = platform.control_token
        self.count = 0
        self._platform = platform
        self._closing = False
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed at the end
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hold, args=(connection,), name="driver", daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            connection.settimeout(10)
            nonce = lines.readline(200).decode("ascii", "replace").strip()
            connection.sendall(proof_of(self.token, "platform", nonce) + b"\n")
            if not hmac.compare_digest(lines.readline(200).strip(), proof_of(self.token, "driver", nonce)):
                return
            connection.settimeout(None)
            with self._lock:
                if self._closing:
                    return
                self.count += 1
            try:
                self._platform.changed()
                connection.sendall(b"ok\n")
                lines.read(1)  # returns when the driver has let go or died
            finally:
                with self._lock:
                    self.count -= 1
                self._platform.changed()

    def close_if_idle(self) -> bool:
        """Take no more drivers if none is attached and no job is unfinished; return whether that is so."""
        with self._lock:
            self._closing = self._closing or (self.count == 0 and self._platform.unfinished_jobs == 0)
            return self._closing


def main(state_dir: Path, speed: str) -> None:
    """Serve until no driver is attached and no job is unfinished, or until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    files = StateFiles(state_dir)
    with tempfile.TemporaryDirectory(prefix="persistent-runner-platform-") as root:
        platform = LocalRescale(
            Path(root),
            authorized_keys=files.authorized_keys,
            durations={"fast": FAST, "recorded": RECORDED}[speed],
        )

        def end(*_: object) -> None:
            ended.set()
            # not here: a signal handler must not wait for a lock that its own thread may hold
            threading.Thread(target=platform.changed, daemon=True).start()

        signal.signal(signal.SIGTERM, end)
        with platform:
            holders = Holders(platform)
            write_state(
                files,
                {
                    "base_url": platform.base_url,
                    "api_key": platform.api_key,
                    "control_port": holders.port,
                    "control_token": holders.token,
                    "control_url": platform.control_url,
                },
            )
            print("ready", flush=True)  # noqa: T201 - the line that the driver waits for
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            platform.wait_until(lambda: holders.count > 0 or ended.is_set(), timeout=_GRACE)
            platform.wait_until(lambda: ended.is_set() or holders.close_if_idle())
        _forget(files, holders.token)


def _forget(files: StateFiles, token: str) -> None:
    """Remove the state file unless another platform has written its own meanwhile."""
    with contextlib.suppress(Timeout, OSError, ValueError), FileLock(files.lock, timeout=5):
        if json.loads(files.state.read_text(encoding="utf-8")).get("control_token") == token:
            files.state.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
