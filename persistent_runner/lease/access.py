"""A platform and our way onto its machines, as a lease needs them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from persistent_runner.lease.stopper import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.platform import Platform
    from persistent_runner.remote.proof import Proof


@dataclass(frozen=True)
class Access:
    """What every hold on a job needs from outside.

    `connector` gives a function that opens a connection (`is_connected`, `close()`) to the head node once that has
    proven itself, or with the head node's connection to another one, and raises ConnectionLost while it cannot;
    `idle_seconds` is the time since a command or a transfer of the user's own ended; `poll` the pause between two looks
    at the platform; `job_url` a job's page, with `{job_id}` in it;
    a set `stop` ends every wait but that for the end of a job.
    """

    platform: Platform
    connector: Callable[[Proof], Callable[..., Any]]
    poll: timedelta
    idle_seconds: Callable[[], float]
    max_queue: timedelta = timedelta(hours=2)
    job_url: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    deadlines: Deadlines = field(default_factory=Deadlines)
