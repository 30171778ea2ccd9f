"""What interrupts ask for, said once each: let running trials finish, then stop them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.study.progress import Progress

log = logging.getLogger(__name__)

STOP_SECONDS = 20  # how long trials that were told to stop may take


class Stopping:
    """Stops what runs when the second interrupt comes, or the study ends; `stop_running` does it."""

    def __init__(self, interrupts: Interrupts, stop_running: Callable[[], None]) -> None:
        self._interrupts = interrupts
        self._stop_running = stop_running
        self._heeded = 0
        self._stopped_at: float | None = None

    def takes_too_long(self, progress: Progress) -> bool:
        """Return whether trials go on that were told to stop long ago, and say so."""
        if not progress.running or self._stopped_at is None or time.monotonic() - self._stopped_at <= STOP_SECONDS:
            return False
        log.warning(
            "%d objectives did not end within %d s of being stopped; going on", len(progress.running), STOP_SECONDS
        )
        return True

    def heed(self, progress: Progress, *, ending: bool) -> None:
        """Do what the interrupts so far ask for, and say so once; `ending`: the study ends for a reason of its own."""
        count = self._interrupts.count
        if (count >= 2 or ending) and self._stopped_at is None:
            self._stopped_at = time.monotonic()
            if progress.running:
                if count >= 2:
                    log.warning("Interrupted: stopping the trials that run. Interrupt again to leave at once.")
                else:
                    log.warning("The study ends: stopping the trials that run.")
            self._stop_running()
        elif count == 1 and self._heeded == 0 and progress.running:
            left = progress.seconds_left_of_running
            log.warning(
                "Interrupted: no new trials; the %d running may finish%s, then the release. "
                "Interrupt again to stop them, a third time to leave.",
                len(progress.running),
                "" if left is None else f" (expected in about {format_duration(round(left))})",
            )
        self._heeded = count
