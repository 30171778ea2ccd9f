"""How long a link waits before it gives a connection up."""

from __future__ import annotations

from dataclasses import dataclass, field

from persistent_runner.recovery import Backoff


@dataclass(frozen=True)
class Patience:
    """How long a link waits, in seconds.

    `ping`: with nothing to send, before it asks for a sign of life. `dead`: for any byte, before the connection counts
    as gone. `hello`: for an agent to start. `grace`: between TERM and KILL of a command's process tree. `reconnect`:
    between the tries to come back, and how long they go on.
    """

    ping: float = 10.0
    dead: float = 30.0
    hello: float = 30.0
    grace: float = 10.0
    reconnect: Backoff = field(default_factory=lambda: Backoff(first=0.5, most=15.0, total=600.0))
