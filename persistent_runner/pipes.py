"""The readers of our output: one that has seen enough, such as `head`, is no error."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO


def silence_unread() -> bool:
    """Let go to nowhere what is printed to a pipe that nobody reads any more; return whether there is one."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
    for stream in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return unread != []


def _is_unread(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):  # on Windows
        return False
    look = select.poll()
    look.register(stream.fileno(), 0)
    return any(seen & select.POLLERR for _, seen in look.poll(0))
