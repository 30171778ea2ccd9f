"""The end of a job: asked for, watched, forced where it hangs, and confirmed."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import PlatformError, PlatformRefused, PlatformUnavailable
from persistent_runner.lease.progress import Progress
from persistent_runner.recovery import Backoff, recover

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.platform import LeaseState, Platform

log = logging.getLogger(__name__)

_SAY_WHEN_FORCED = 120.0  # seconds of a stop after which people ask themselves what it waits for


@dataclass(frozen=True)
class Deadlines:
    """How long a lease waits for what should come soon.

    `created`: for a job whose creation had no answer to appear in a list, and the repeats of a submit that did not
    arrive. `start_up`: from the first sign of machines to executing. `nodes`: from executing to the first address.
    `connect`: the repeats of a refused connection. `ending`: from the stop to its first effect; `ended`: from there to
    `Stopped`. `start_up`, `ending` and `ended` are some times what was observed on the platform.
    `unreachable`: how long a release goes on asking a platform that does not answer; `unknown`: for how long a job is
    asked for that the platform does not know, before it is believed to be gone.
    """

    created: timedelta = timedelta(minutes=2)
    start_up: timedelta = timedelta(minutes=45)
    nodes: timedelta = timedelta(minutes=5)
    connect: Backoff = field(default_factory=lambda: Backoff(first=1, most=15, total=600))
    ending: timedelta = timedelta(minutes=5)
    ended: timedelta = timedelta(minutes=60)
    unreachable: timedelta = timedelta(minutes=10)
    unknown: timedelta = timedelta(minutes=1)


class NotStopped(Exception):
    """`Stopped` was not read; `why` says what came instead."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Stopper:
    """Ends one job; `poll` is the pause between two looks, in seconds.

    `otherwise` asks for the end in another way, without the platform, and returns whether it was heard; `accepted` is
    called when the platform has taken the stop.

    Its waits do not listen to the event that ends all others: an interrupt is what starts a release, and must not
    shorten it.
    """

    def __init__(
        self,
        platform: Platform,
        job_id: str,
        *,
        poll: float,
        deadlines: Deadlines,
        otherwise: Callable[[], bool] = lambda: False,
        accepted: Callable[[], None] = lambda: None,
    ) -> None:
        self._otherwise = otherwise
        self._heard = ""
        self._refused = ""  # the platform's words
        self._when_forced = ""
        self._accepted = accepted
        self._platform = platform
        self._job_id = job_id
        self._poll = poll
        self._deadlines = deadlines
        self._answered = time.monotonic()
        self._progress = Progress()

    def stop(self, *, force: bool) -> LeaseState:
        """Return the state that says `Stopped`; raise NotStopped where the platform does not come to say it.

        A forced stop follows the graceful one when `force` asks for it, or when the graceful one hangs.
        """
        self._ask()
        crash_point("stop-asked")
        since = time.monotonic()
        ending = forced = False
        while True:
            state = self._look()
            if state and state.stopped:
                crash_point("stopped")
                return state
            if state and not ending and (state.ending or state.ended):
                ending, since = True, time.monotonic()
            limit = self._deadlines.ended if ending else self._deadlines.ending
            waited = time.monotonic() - since
            if waited > _SAY_WHEN_FORCED and not forced:
                left = format_duration(max(60.0, 60 * round((limit.total_seconds() - waited) / 60)))
                self._when_forced = f"; forced in {left}, or now by: persistent-runner stop {self._job_id} --force-stop"
            hangs = time.monotonic() - since > limit.total_seconds()
            if hangs and forced:
                raise NotStopped("it hangs in spite of a forced stop")
            if (hangs or force or self._refused) and not forced:
                if self._force(hangs=hangs):
                    forced, ending, since = True, False, time.monotonic()
                    self._when_forced = ""
                elif time.monotonic() - since > (limit + self._deadlines.unreachable).total_seconds():
                    raise NotStopped("it hangs, and a forced stop cannot be asked for")
            threading.Event().wait(self._poll)

    def _ask(self) -> None:
        """Ask for a graceful stop, again and again while the platform does not answer: asking twice is harmless."""
        log.info("Job %s: asking for its stop", self._job_id)
        try:
            recover(
                lambda: self._platform.stop(self._job_id),
                {PlatformUnavailable: lambda error: log.warning("Job %s: asking again: %s", self._job_id, error)},
                Backoff(total=self._deadlines.unreachable.total_seconds()),
            )
        except PlatformError as error:
            if isinstance(error, PlatformRefused) and error.status not in {401, 403}:
                log.warning("Job %s: the stop was refused: %s", self._job_id, error.message)
                self._refused = error.message
                return
            if not self._otherwise():
                raise NotStopped(error.message) from error
            self._heard = "; its own dead-man's switch was told to end it"
            log.warning("Job %s: %s%s", self._job_id, error.message.rstrip("."), self._heard)
        else:
            self._accepted()

    def _force(self, *, hangs: bool) -> bool:
        """Ask for a forced stop; return False where asking once more may help, NotStopped where no stop is taken."""
        log.warning("Job %s: %s", self._job_id, "the stop hangs, forcing it" if hangs else "forcing the stop")
        try:
            self._platform.stop(self._job_id, force=True)
        except PlatformError as error:
            log.warning("Job %s: the forced stop failed: %s", self._job_id, error)
            if self._refused:
                raise NotStopped(self._refused) from error
            return isinstance(error, PlatformRefused)
        return True

    def _look(self) -> LeaseState | None:
        """Return the job's state, None where the platform did not answer; NotStopped when that lasts too long."""
        try:
            state = self._platform.state(self._job_id)
        except PlatformError as error:
            # A job that is not found may be found by the next look.
            if isinstance(error, PlatformRefused) and error.status != 404:
                raise NotStopped(f"{error.message.rstrip('.')}{self._heard}") from error
            self._progress.say(f"Job {self._job_id}: {error.message}")
            if time.monotonic() - self._answered > self._deadlines.unreachable.total_seconds():
                raise NotStopped(f"the platform does not answer{self._heard}") from error
            return None
        self._answered = time.monotonic()
        self._progress.say(f"Job {self._job_id}: {state}{self._when_forced}")
        return state
