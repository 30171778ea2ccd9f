"""The only place that repeats a failed call."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Result = TypeVar("Result")


@dataclass(frozen=True)
class Backoff:
    """How long to wait before each repeat, in seconds, with full jitter.

    The n-th wait is drawn between half of and the whole of `min(first * factor**n, most)`. No wait begins that would
    end later than `total` seconds after the first call began.
    """

    first: float = 0.5
    factor: float = 2.0
    most: float = 30.0
    total: float = 600.0

    def wait(self, repeat: int) -> float:
        """Return the wait in seconds before repeat number `repeat` (from 0)."""
        # 64 doublings pass any `most`; the cap keeps the power from overflowing in a very long outage.
        whole = min(self.first * self.factor ** min(repeat, 64), self.most)
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret


def recover(
    call: Callable[[], Result],
    remedies: Mapping[type[Exception], Callable[[Exception], None]],
    backoff: Backoff,
    stop: threading.Event | None = None,
) -> Result:
    """Return `call()`, repeated after each error that a remedy is known for.

    `remedies` maps an exception class to what mends its cause before the next call; the first class that fits is
    taken. An error may carry `retry_after` (seconds): then our own wait comes behind that, as clients that were told
    the same must not come back together. Any other error, the last one when `backoff.total` is used up, and the
    current one when `stop` is set are raised as they are.
    """
    stop = stop or threading.Event()
    deadline = time.monotonic() + backoff.total
    repeat = 0
    while True:
        try:
            return call()
        except tuple(remedies) as error:
            wait = backoff.wait(repeat) + (getattr(error, "retry_after", None) or 0.0)
            if time.monotonic() + wait > deadline or stop.wait(wait):
                raise
            next(mend for kind, mend in remedies.items() if isinstance(error, kind))(error)
            repeat += 1
