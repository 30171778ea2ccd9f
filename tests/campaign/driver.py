"""Starts of `run-study`, each a process of its own, out of one that has imported everything already.

An import takes most of a short start's processor time, and a campaign has thousands of starts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING

import alembic.command  # noqa: F401 - these, and Optuna below the next one, are what takes long
import pandas as pd  # noqa: F401

from persistent_runner import runner  # noqa: F401
from persistent_runner.cli import run_study

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


class Driver:
    """One start with these arguments and this environment; what it says is appended to a file."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], said: Path) -> None:
        self._process: ForkServerProcess = SERVER.Process(target=_drive, args=(arguments, environment, str(said)))
        self._process.start()

    def ended(self, seconds: float) -> bool:
        """Return whether it has ended, after so many seconds at the latest."""
        self._process.join(seconds)
        return self._process.exitcode is not None

    @property
    def code(self) -> int:
        """Its exit code, below 0 that of a signal."""
        return self._process.exitcode if self._process.exitcode is not None else 1000

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process.pid is not None and not self.ended(0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once and see it gone."""
        self._process.kill()
        self._process.join()


def _drive(arguments: Sequence[str], environment: dict[str, str], said: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with open(said, "ab", buffering=0) as file, open(os.devnull, "rb") as nothing:  # noqa: PTH123 - no paths while it starts
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - multiprocessing has put another one there
    sys.argv = ["run-study", *arguments]
    run_study()
