"""Trials whose failure was none of the design: they run again, at once or later, and others wait meanwhile."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistent_runner.disk import has_room
from persistent_runner.duration import format_duration
from persistent_runner.study.proposals import StudyFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.errors import DiskFull
    from persistent_runner.study.failures import Verdict
    from persistent_runner.study.progress import Running

log = logging.getLogger(__name__)

ATTEMPTS = 3  # tries of one trial in one start before what is no fault of the design is told as FAIL
_ATTEMPTS_OF = {"out of memory": 2}
FIRST_WAIT = 60.0  # seconds
FIRST_LOOK = 5.0  # seconds, whether this machine's disk has room
LONGEST_WAIT = 900.0


@dataclass(frozen=True)
class _Waiting:
    """A trial that runs again, for what it waits and when it is due by the monotonic clock; not before `is_over`."""

    due: float
    running: Running
    kind: str
    is_over: Callable[[], bool] = lambda: True


class Standby:
    """What runs again in this start. `most_idle` is how long in seconds the cluster may idle until a trial ends."""

    def __init__(
        self, most_idle: float, *, start: Callable[[Running], None], give_back: Callable[[Running], None]
    ) -> None:
        self._most_idle = most_idle
        self._start = start
        self._give_back = give_back
        self._waiting: list[_Waiting] = []
        self._lost: Counter[int] = Counter()
        self._lost_so: Counter[tuple[int, str]] = Counter()  # and in which way
        self._losses_of_room: Counter[int] = Counter()
        self._wait = FIRST_WAIT
        self._fewer = 0
        self._is_paused = False
        self._idle_since: float | None = None
        self._idle_seconds = 0.0  # of earlier waits, since a trial has ended for good

    def __len__(self) -> int:
        return len(self._waiting)

    def may_try_again(self, number: int, kind: str = "") -> bool:
        """Count one more loss of a trial; return whether it has another try in this start."""
        self._lost[number] += 1
        self._lost_so[number, kind] += 1
        return self._lost[number] < ATTEMPTS and self._lost_so[number, kind] < _ATTEMPTS_OF.get(kind, ATTEMPTS)

    def losses(self, number: int) -> int:
        """Return how often a trial was lost in this start."""
        return self._lost[number]

    def takes(self, running: Running, verdict: Verdict, message: str, *, together: int, is_ending: bool) -> bool:
        """Let a trial run again whose failure says nothing of its design; return False where it is to be told.

        `together` trials ran or waited when it failed.
        """
        number, kind = running.trial.number, verdict.kind
        if verdict.action in {"fail", "infeasible"}:
            return False
        if is_ending:
            self._give_back(running)
        elif verdict.action == "retry":
            if not self.may_try_again(number, kind):
                return False
            log.warning("%s\ntrial %d: %s; trying again", message, number, kind)
            self._start(running)
        else:
            wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
            self._waiting.append(_Waiting(time.monotonic() + wait, running, kind))
            self._is_paused |= verdict.action == "pause"
            self._fewer += together - self._fewer > 1
            others = ", with fewer trials at a time" if self._fewer else ""
            others = ", and no other one starts before" if self._is_paused else others
            again = f"it runs again in {format_duration(wait)}{others}"
            log.warning("%s\ntrial %d: %s; %s", message, number, kind, again)
        return True

    def wait_for_room(self, running: Running, full: DiskFull, *, is_ending: bool) -> None:
        """Let a trial go on when this machine's disk has room again; no other one starts before."""
        if is_ending:
            self._give_back(running)
            return
        self._losses_of_room[running.trial.number] += 1
        wait = min(FIRST_LOOK * 2 ** (self._losses_of_room[running.trial.number] - 1), LONGEST_WAIT)
        kind = "disk full here"
        if all(waiting.kind != kind for waiting in self._waiting):
            log.warning("%s\nNo trial starts until there is room; what runs goes on, and nothing is lost.", full)
        self._waiting.append(_Waiting(time.monotonic() + wait, running, kind, lambda: has_room(full)))
        self._is_paused = True

    def turn(self, *, is_ending: bool, is_idle: bool) -> StudyFailed | None:
        """Start what has waited long enough; return what ends the study where that has idled for too long."""
        now = time.monotonic()
        for running in self.take_all() if is_ending else self._take_due(now):
            (self._give_back if is_ending else self._start)(running)
        if not (is_idle and self._waiting):
            self._idle_seconds += now - (self._idle_since or now)
            self._idle_since = None
            return None
        self._idle_since = self._idle_since or now
        if self._idle_seconds + now - self._idle_since <= self._most_idle:
            return None
        return StudyFailed(
            f"{self._waiting[0].kind}: nothing could run for {format_duration(self._most_idle)}, and the cluster is "
            "not kept waiting any longer",
            remedy="The trials that waited are the first ones of the next start: the same line goes on.",
        )

    def take_all(self) -> list[Running]:
        """Return all that waits, once."""
        waiting, self._waiting = self._waiting, []
        return [entry.running for entry in waiting]

    def _take_due(self, now: float) -> list[Running]:
        due = [entry for entry in self._waiting if entry.due <= now and entry.is_over()]
        self._waiting = [entry for entry in self._waiting if entry not in due]
        return [entry.running for entry in due]

    def room(self, capacity: int) -> int:
        """Return how many trials may run or wait at a time."""
        return 0 if self._is_paused else max(1, capacity - self._fewer)

    @property
    def is_calm(self) -> bool:
        """Whether nothing waits, and as many trials may run as fit."""
        return not (self._waiting or self._fewer or self._is_paused)

    def saw_an_end(self) -> None:
        """Note that a trial has ended for good: it ran, so what the others waited for is there again."""
        self._wait, self._fewer, self._is_paused = FIRST_WAIT, 0, False
        self._idle_seconds = 0.0
        self._losses_of_room.clear()
