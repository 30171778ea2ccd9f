"""The beat of a lease: the sign of life that keeps its dead-man's switch from ending the cluster."""

from __future__ import annotations

import functools
import logging
import math
import secrets
import threading
import time
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration
from persistent_runner.errors import ConnectionLost, PlatformError, RunnerError
from persistent_runner.recovery import Backoff
from persistent_runner.remote.frames import RequestRefused
from persistent_runner.remote.link import Link
from persistent_runner.remote.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from datetime import timedelta

    from fabric import Connection

    from persistent_runner.lease.keeper import Switch
    from persistent_runner.remote.frames import Life

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 5.0
"""How long an order to the switch may take until the node has confirmed it."""

_ENDLESS = Patience(reconnect=Backoff(first=0.5, most=15.0, total=math.inf))
"""While the platform says that the machines are there, somebody may come back to them: the way is tried for ever."""

_SHORTEST_DOUBT = 5.0  # seconds; with very short ticks a busy machine may be late by many of them


class Heart:
    """Sends a beat to a lease's head node every `beat`, as long as somebody drives it.

    Somebody does when the main loop has turned within `hang` (`turned()`), or when `idle_seconds()` is below it: the
    seconds since the last command or transfer outside of a study ended, 0 while one is in flight. Otherwise no beat is
    sent, and the switch ends the cluster. Without a `switch` there are no beats, and the connection alone is kept open.

    The beats travel over a link of their own, opened in the background and renewed after a drop; `connect` and `check`
    are as in `Link`. A platform that does not answer `check`, or refuses the account, says nothing of the cluster and
    does not stop the beats.

    A verdict rests on what the node answered: time that passes unanswered, or in which this machine sleeps, is none.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        lease: str,
        node: str,
        switch: Switch | None,
        beat: timedelta,
        hang: timedelta,
        check: Callable[[], object] = lambda: None,
        idle_seconds: Callable[[], float] = lambda: math.inf,
        patience: Patience | None = None,
    ) -> None:
        self._switch = switch
        self._beat = beat.total_seconds()
        self._hang = hang
        self._ask_platform = check
        self._idle_seconds = idle_seconds
        self._link = Link(connect, run="", lease=lease, node=node, check=self._check, patience=patience or _ENDLESS)
        self._token = secrets.token_hex(4)
        self._order = threading.Lock()  # what is sent to the switch leaves in the order of its numbers
        self._number = 0
        self._kept = False
        self._turn = threading.Event()
        self._still = 0.0  # seconds since the main loop's last turn in which this machine was awake
        self._was_driven = True
        self._is_refused = False
        self._ended = ""
        self._tick: int | None = None
        self._tick_since: float | None = None  # when the first answer with this tick had come
        self._is_switch_dead = False
        self._lost: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heart {node}", daemon=True)

    def start(self) -> None:
        """Begin to beat; counts as a turn of the main loop."""
        self.turned()
        self._thread.start()

    def turned(self) -> None:
        """Say that the main loop goes on."""
        self._turn.set()

    @property
    def tick(self) -> int | None:
        """How many ticks the switch had counted by the last answer; None where it has not begun."""
        return self._tick

    @property
    def ended(self) -> str:
        """Why the switch has ended the job (`no-heartbeat`, `time-budget`, `stop-asked`, ...); "" while it has not."""
        return self._ended

    @property
    def lost(self) -> Exception | None:
        """What ended the way to the node for good; None while there is one, or a new one is tried."""
        return self._lost

    @property
    def is_switch_dead(self) -> bool:
        """Whether the node answers and its switch counts no more: nothing but cap and walltime would end the job."""
        return self._is_switch_dead

    def keep(self, ticks: int) -> None:
        """Send the last beat: the switch waits `ticks` for another one, by whoever adopts the cluster.

        From now on this heart sends no beat. Raises ConnectionLost when the node has not confirmed it within a few
        seconds: then the switch's own idle limit may hold.
        """
        with self._order:
            self._kept = True
            confirmed = self._link.ping(self._next_beat(), keep=ticks)
        try:
            confirmed.result(CONFIRM_SECONDS)
        except (RunnerError, TimeoutError) as error:
            why = error.message if isinstance(error, RunnerError) else "no answer came"
            raise ConnectionLost(f"the cluster was not told to wait for the next study: {why}") from error

    def ask_end(self) -> bool:
        """Tell the switch to end the job, which needs no API; return whether the node has confirmed it."""
        if self._switch is None:
            return False
        try:
            self._link.ping(stop=True).result(CONFIRM_SECONDS)
        except (RunnerError, TimeoutError) as error:
            log.debug("the switch was not told to end the job: %s", error)
            return False
        return True

    def close(self) -> None:
        """Send nothing any more, and end the link."""
        self._closed.set()
        self._link.close()
        if self._thread.is_alive():
            self._thread.join(CONFIRM_SECONDS)

    def _run(self) -> None:
        try:
            self._link.open(seconds=threading.TIMEOUT_MAX)
        except Exception as error:  # noqa: BLE001 - whatever it is, the lease must learn that nothing beats
            self._give_up(error)
            return
        answer: Future[Life] | None = None
        before = time.monotonic()
        while not self._closed.is_set() and self._lost is None:
            # One at a time: a link that is being renewed would otherwise collect beats and send them all afterwards.
            if answer is None or answer.done():
                answer = self._send()
            self._closed.wait(self._beat)
            now = time.monotonic()
            if self._turn.is_set():
                self._turn.clear()
                self._still = 0.0
            else:
                self._still += min(now - before, 2 * self._beat)  # more is sleep
            before = now

    def _send(self) -> Future[Life]:
        """Ask for the switch's state, with a beat where somebody drives the lease."""
        with self._order:
            gives_beat = self._switch is not None and not self._kept and self._is_driven()
            sent = time.monotonic()
            answer = self._link.ping(self._next_beat() if gives_beat else None)
        answer.add_done_callback(functools.partial(self._hear, sent))
        return answer

    def _next_beat(self) -> str:
        self._number += 1
        return f"{self._token}.{self._number}"

    def _is_driven(self) -> bool:
        hang = self._hang.total_seconds()
        is_driven = self._still < hang or self._idle_seconds() < hang
        if self._was_driven and not is_driven:
            log.warning(
                "Nothing has moved here for %s: the cluster gets no sign of life any more and will end by itself.",
                format_duration(self._hang),
            )
        elif is_driven and not self._was_driven:
            log.warning("It goes on here: the cluster gets signs of life again.")
        self._was_driven = is_driven
        return is_driven

    def _hear(self, sent: float, answer: Future[Life]) -> None:
        """Take in what the node said; in the link's thread."""
        try:
            life = answer.result()
        except RequestRefused as refused:
            if not self._is_refused:
                log.warning("The cluster cannot take a sign of life and will end by itself: %s", refused.message)
            self._is_refused = True
            return
        except Exception as error:  # noqa: BLE001 - the link ends with whatever it met
            self._give_up(error)
            return
        self._is_refused = False
        self._ended = self._ended or life.ended
        # Read in the moment in which it is written anew, a tick is none: the last one counts on.
        if self._tick_since is None or (life.tick is not None and life.tick != self._tick):
            self._tick, self._tick_since = life.tick, time.monotonic()
        # From the arrival of one answer to the sending of another ping: no more than that did the tick stand still.
        doubt = max(3 * self._switch.tick_seconds + 2 * self._beat, _SHORTEST_DOUBT) if self._switch else math.inf
        self._is_switch_dead = not self._ended and sent - self._tick_since > doubt

    def _give_up(self, error: Exception) -> None:
        if not self._closed.is_set() and self._lost is None:
            self._lost = error
            log.warning("Nothing beats for the cluster any more: %s", error)

    def _check(self) -> None:
        try:
            self._ask_platform()
        except PlatformError as error:
            log.debug("whether the lease holds is not known: %s", error)
