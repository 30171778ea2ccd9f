"""What an objective is known to pull: small files that it pulled in one trial come with the exit in the next ones."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from persistent_runner.remote import agent

if TYPE_CHECKING:
    from persistent_runner.remote.frames import OutputFile

_MOST = 16  # names after each command: an objective that gives each trial's file another name is not followed


class Habits:
    """The names that trials of one run have pulled after their first command, after their second, and so on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[int, dict[str, None]] = {}  # by command, the one pulled last at the end

    def after(self, seq: int) -> list[str]:
        """Return what is likely to be pulled after a command."""
        with self._lock:
            return sorted(self._names.get(seq, ()))

    def pulled(self, seq: int, output: OutputFile) -> None:
        """Take note of a file that was pulled after a command; one that does not fit into an exit is none of ours."""
        if output.size_bytes > agent.FILE_INLINE or agent.is_pattern(output.path):
            return
        with self._lock:
            names = self._names.setdefault(seq, {})
            names.pop(output.path, None)
            names[output.path] = None
            if len(names) > _MOST:
                del names[next(iter(names))]
