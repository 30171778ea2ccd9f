"""The processes of a study on its nodes, which are processes of this machine, and how one of them is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def marked(mark: str) -> list[int]:
    """Return the processes that carry a mark in their environment."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def command_lines(mark: str) -> list[str]:
    """Return the command lines of the processes that carry a mark."""
    return [line for pid in marked(mark) if (line := command_line(pid))]


def command_line(pid: int) -> str:
    """Return the command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def agents(mark: str) -> list[int]:
    """Return the processes on the nodes that the driver talks to, the oldest first."""
    return [pid for pid in _of_agents(mark) if not _prints_into_a_log(pid)]


def supervisors(mark: str) -> list[int]:
    """Return the processes that each see a command to its end, the oldest first."""
    return [pid for pid in _of_agents(mark) if _prints_into_a_log(pid)]


def _of_agents(mark: str) -> list[int]:
    return sorted(pid for pid in marked(mark) if "'agent','exec'" in command_line(pid))


def _prints_into_a_log(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/fd/1").readlink().name == "log"
    except OSError:
        return False


def kill_one(pids: list[int], which: float) -> None:
    """Kill one of these processes, chosen by a number from 0 to 1; LookupError where there is none."""
    if not pids:
        raise LookupError
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[int(which * len(pids)) % len(pids)], signal.SIGKILL)
