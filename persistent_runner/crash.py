"""Named points at which a test lets the driver die; off unless the environment names one."""

from __future__ import annotations

import os
import signal


def crash_point(name: str) -> None:
    """End this process at once, as a power cut would, if PERSISTENT_RUNNER_CRASH names this point.

    `name:3` means the third time that the point is passed.
    """
    wanted, _, count = os.environ.get("PERSISTENT_RUNNER_CRASH", "").partition(":")
    if wanted != name:
        return
    if count and int(count) > 1:
        os.environ["PERSISTENT_RUNNER_CRASH"] = f"{name}:{int(count) - 1}"
        return
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows SIGTERM ends it as hard
