"""Requests on their way to an agent."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from persistent_runner.remote.frames import Header, Reply

TOGETHER = 1 << 15  # bytes of several requests that leave in one piece


@dataclass
class Request:
    """A frame to the agent, and the future of its answer; `on_log` gets (offset, bytes) of a command's log."""

    header: Header
    body: bytes
    future: Future[Reply] = field(default_factory=Future)
    on_log: Callable[[int, bytes], None] | None = None


def next_together(unsent: deque[Request]) -> list[Request]:
    """Take the requests that leave together: small ones in one packet, since each costs both ends a turn."""
    taken = [unsent.popleft()]
    room = TOGETHER - len(taken[0].body)
    while unsent and (room := room - len(unsent[0].body)) >= 0:
        taken.append(unsent.popleft())
    return taken
