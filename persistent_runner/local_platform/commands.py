"""The commands of a virtual job, one after another, in a thread."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING

from persistent_runner.local_platform.processes import LoggedCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.local_platform.clock import Clock

_log = logging.getLogger(__name__)


class CommandRun:
    """Runs `commands` (text and environment) in `folder`, once; `done` is set when the last has ended or one failed.

    `failed` says whether one failed. `told` hears `command_started` and `command_ended` with its code; `ended` is
    called after `done` was set.
    """

    def __init__(
        self,
        commands: Sequence[tuple[str, Mapping[str, str]]],
        folder: Path,
        clock: Clock,
        told: Callable[[str, int | None], None],
        ended: Callable[[], None],
    ) -> None:
        self.done = threading.Event()
        self.failed = False
        self._commands = commands
        self._folder = folder
        self._clock = clock
        self._told = told
        self._ended = ended
        self._over = False
        self._lock = threading.Lock()
        self._command: LoggedCommand | None = None
        threading.Thread(target=self._run, name="job-commands", daemon=True).start()

    def _run(self) -> None:
        try:
            for text, environment in self._commands:
                with self._lock:
                    if self._over:
                        return
                    self._told("command_started", None)
                    self._command = LoggedCommand(text, self._folder, environment, self._clock)
                code = self._command.wait()
                self._told("command_ended", code)
                if code != 0:
                    self.failed = True
                    return
        except Exception:  # noqa: BLE001 - the end of the commands must be seen in any case
            _log.exception("a job's command could not be run in %s", self._folder)
            self.failed = True
        finally:
            self.done.set()
            self._ended()

    def end(self, grace: float) -> None:
        """Start no more commands and end the one that runs: SIGTERM, after `grace` seconds SIGKILL."""
        with self._lock:
            self._over = True
        if self._command is not None and not self.done.is_set():
            self._command.send(signal.SIGTERM)
            if not self.done.wait(grace):
                self._command.send(signal.SIGKILL)
        self.done.wait()

    def kill(self) -> None:
        """Start no more commands and kill the one that runs; does not wait."""
        with self._lock:
            self._over = True
            if self._command is not None:
                self._command.send(signal.SIGKILL)
