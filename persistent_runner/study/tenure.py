"""How long the cluster is there for, how long trials take, and what is lost with it."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration
from persistent_runner.study.proposals import StudyFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.study.progress import Running

_RUNS_SEEN = 200
_MORE = 1.1  # what was cut short after a time needs more than that


class Tenure:
    """The study's time on one cluster after the other; `left` is how many seconds the present one is there for."""

    def __init__(self, left: Callable[[], float]) -> None:
        self.left = left
        self.lost: list[Running] = []  # attempts that ended with the cluster: their trials start again on the next one
        self.has_ended = False
        self._ended_at = math.inf
        self._seconds: deque[float] = deque(maxlen=_RUNS_SEEN)
        self._cut_seconds = 0.0

    def renew(self, renew: Callable[[int, float], None], finished: int) -> None:
        """Go on with another cluster, after `finished` trials; StudyFailed where a trial is longer than that one."""
        renew(finished, self.expected_seconds)
        self.has_ended = False
        self._ended_at = math.inf
        if not self.has_time:
            raise StudyFailed(
                f"a trial takes {format_duration(self.expected_seconds)}, and a new cluster ends after "
                f"{format_duration(self.left())}",
                remedy="Raise walltime in [cluster], max_cost or max_time in [study].",
            )

    def end(self) -> None:
        """Note that the time of the cluster is over."""
        self.has_ended = True
        self._ended_at = time.monotonic()

    @property
    def seconds_over(self) -> float:
        """How long the time of the cluster has been over for; below 0 where it is not."""
        return time.monotonic() - self._ended_at

    def saw(self, seconds: float) -> None:
        """Note how long a trial has run."""
        self._seconds.append(seconds)

    @property
    def expected_seconds(self) -> float:
        """How long a trial takes: the 95th percentile of the run times seen in this start, 0 before the first.

        While trials wait that the end of their cluster has cut short, it is more than the longest of these has had.
        """
        seen = sorted(self._seconds)
        usual = seen[min(len(seen) - 1, int(0.95 * len(seen)))] if seen else 0.0
        return max(usual, _MORE * self._cut_seconds) if self.lost else usual

    @property
    def has_time(self) -> bool:
        """Whether a trial that starts now ends before its cluster does, by the run times seen so far."""
        return self.has_time_for(1)

    def has_time_for(self, trials: int) -> bool:
        """Whether so many trials, one after the other, end before their cluster does."""
        return not self.has_ended and self.left() > trials * self.expected_seconds

    def lose(self, running: Running, seconds: float) -> None:
        """Note that a cluster has ended, and with it an attempt that had run for so long."""
        if self.has_ended and self.left() <= 0:
            self._cut_seconds = max(self._cut_seconds, seconds)
        self.has_ended = True
        self.lost.append(running)

    def take_lost(self) -> list[Running]:
        """Return what was lost, once."""
        lost, self.lost = self.lost, []
        self._cut_seconds = 0.0
        return lost
