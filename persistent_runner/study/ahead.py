"""How many trials are chosen, and wait on the machines, before one ends."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

from persistent_runner.duration import format_duration

if TYPE_CHECKING:
    from persistent_runner.study.machines import Machines

log = logging.getLogger(__name__)

WORTH = 0.01  # share of a trial's run time that its core would idle
_STILL_WORTH = WORTH / 2  # so that trials at the edge do not change it all the time
_SEEN = 20  # trials, the last ones
_MOST = 16  # and as many as run at a time


class Ahead:
    """`[trial] stage_ahead`: a number of trials, or "auto", by the times of this start.

    Between the end of a trial and the start of the next one lie the way to the machines and back, and what this
    process does for each: settle one, choose another one. So many trials end meanwhile, and wait ahead of time.
    """

    def __init__(self, setting: int | Literal["auto"], machines: Machines) -> None:
        self._setting = setting
        self._machines = machines
        self._runs: deque[float] = deque(maxlen=_SEEN)
        self._work: deque[float] = deque(maxlen=_SEEN)
        self._woke = 0.0
        self._ended = 0
        self._is_on = False

    def ran(self, seconds: float) -> None:
        """Note how long a trial ran."""
        self._runs.append(seconds)
        self._weigh()

    def waits(self) -> None:
        """Note that this process has done what there was to do for trials that have ended."""
        if self._ended:
            self._work.append((time.monotonic() - self._woke) / self._ended)
            self._weigh()

    def wakes(self, ended: int) -> None:
        """Note that so many trials have ended."""
        self._woke, self._ended = time.monotonic(), ended

    @property
    def gap(self) -> float:
        """The seconds that a core idles from one trial to the next one if that is not there already."""
        return self._machines.round_trip() + (statistics.median(self._work) if self._work else 0.0)

    @property
    def count(self) -> int:
        """How many trials are to be ahead."""
        if self._setting != "auto":
            return self._setting
        if not self._is_on:
            return 0
        run, capacity = statistics.median(self._runs), self._machines.capacity()
        ends = math.ceil(capacity * self.gap / run) if run else math.inf
        return int(min(ends, max(capacity, _MOST)))

    def _weigh(self) -> None:
        """See whether it is worth it to be ahead, and say so where it was not before."""
        if self._setting != "auto" or not self._machines.queues or not self._runs:
            return
        run, was_on = statistics.median(self._runs), self._is_on
        self._is_on = self.gap > (_STILL_WORTH if was_on else WORTH) * run
        if self._is_on and not was_on:
            log.info(
                'stage_ahead = "auto": trials of %s would wait %.2fs for the next one; from here on %d %s sent ahead',
                format_duration(run),
                self.gap,
                self.count,
                "is" if self.count == 1 else "are",
            )
