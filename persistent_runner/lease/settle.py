"""What drivers that died have left: saved jobs are deleted, ended ones closed, running ones named or gone on with."""

from __future__ import annotations

import ipaddress
import logging
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import PlatformError, PlatformRefused, ReleaseUnconfirmed
from persistent_runner.lease.guard import Budget
from persistent_runner.lease.ledger import NotRecorded
from persistent_runner.lease.meter import Cost, cost_of
from persistent_runner.lease.stopper import NotStopped, Stopper
from persistent_runner.recovery import Backoff, recover

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.ledger import Entry, Ledger, Record
    from persistent_runner.lease.platform import LeaseState, Platform
    from persistent_runner.lease.stopper import Deadlines

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 2.0
LOCAL_ACCOUNT = "local@localhost"
"""The address by which a local platform is known wherever it is served."""


class _Unknown(Exception):
    """The platform does not know a job."""


@dataclass(frozen=True)
class Wanted:
    """The cluster that a start could go on with: asked with the same `terms`, and with a switch where one is wanted.

    One that was kept must also have the time for a trial that `needs` it, and its switch must not let it cost more than
    this start may spend, by `budget` and for a trial that runs at the end up to `busy`.
    """

    terms: dict[str, Any]
    keeper: bool = True
    needs: timedelta = timedelta(0)
    busy: timedelta = timedelta(0)
    budget: Callable[[], Budget] = Budget

    def misfit(self, entry: Entry) -> str:
        """Return why a recorded cluster is not such a one, in words; empty where it is."""
        names = dict.fromkeys([*entry.terms, *self.terms])
        if terms := [name for name in names if entry.terms.get(name) != self.terms.get(name)]:
            return f"this start asks for another {' and '.join(terms).replace('_', ' ')}"
        if self.keeper and entry.switch is None:
            return "it has no dead-man's switch"
        if entry.state != "kept":
            return ""
        # What it had left when it was kept: no clock of another machine is read.
        left = entry.limit - timedelta(seconds=entry.kept_age)
        most, _ = self.budget().left(entry.price, Cost(), self.busy)
        if left <= self.needs:
            return "it has too little time left for a trial"
        return "" if most is None or left <= most else "it could cost more than this start may spend"


@dataclass(frozen=True)
class Settler:
    """Settles the records of one ledger on one platform; `poll` and `deadlines` are those of a release.

    Nothing automatic touches what is not ours: only records that this host wrote, for this account, whose driver is
    dead. `on_cost` gets what a job of this run folder cost, where its statuses tell.
    """

    platform: Platform
    ledger: Ledger
    poll: timedelta
    deadlines: Deadlines
    on_cost: Callable[[str, Cost, bool], None] = lambda _name, _cost, _final: None

    def settle(self, wanted: Wanted | None) -> Record | None:
        """Settle all, and return the record of a cluster to go on with: this run folder's, else one that was kept.

        None is `wanted` where nothing is to be run. This folder's own is ended where it does not fit, unless it was
        kept for others. Raises PlatformUnavailable or PlatformRefused where this folder's cluster cannot be asked for,
        and ReleaseUnconfirmed where its end is not confirmed.
        """
        ours: Record | None = None
        kept: Record | None = None
        for entry in self.ledger.unfinished():
            record = self._take(entry)
            if record is None:
                continue
            crash_point("settling")
            own = bool(entry.folder) and entry.folder == self.ledger.folder
            try:
                if self._may_go_on(record, None if (ours if own else kept) else wanted, own=own):
                    ours, kept = (record, kept) if own else (ours, record)
            except PlatformError as error:
                if own:
                    raise
                log.warning("Job %s of an earlier start cannot be asked for: %s", entry.job_id or entry.name, error)
            except NotRecorded as error:
                log.warning("%s", error)
            finally:
                if record not in {ours, kept}:
                    record.let_go()
        if ours and kept:
            kept.let_go()
        return ours or kept

    def _may_go_on(self, record: Record, wanted: Wanted | None, *, own: bool) -> bool:
        """Settle one record; return whether this start may use its cluster."""
        state = self._settled(record, own=own)
        if state is None:
            return False
        going = not (state.ended or state.ending or record.entry.state == "releasing")
        kept = record.entry.state == "kept"
        misfit = ""
        if going and (own or kept) and wanted is not None:
            misfit = wanted.misfit(record.entry)
            if not misfit:
                return True
        if own and not kept:
            self._end(record, wait=True, why=misfit)
        else:
            self._leave(record, state, misfit)
        return False

    def _take(self, entry: Entry) -> Record | None:
        """Return a record whose job may be acted on, None for all others."""
        if entry.base_url != self.ledger.base_url:
            if is_local_and_gone(entry) and (record := self.ledger.take(entry)):
                _close(record)  # a local platform ends its jobs when it ends
            return None
        if entry.account != self.ledger.account:
            return None
        record = self.ledger.take(entry)
        if record is None and self.ledger.is_driven(entry) is None:
            log.info("Job %s was leased on %s; only there it is settled", entry.job_id or entry.name, entry.host)
        if record is not None and record.entry.state == "closed":
            record.let_go()
            return None
        return record

    def _settled(self, record: Record, *, own: bool) -> LeaseState | None:
        """Delete a job that was never started, close the record of one that is over; return the state of any other.

        A platform that does not know a job may know it again: this folder's is asked for some time before that is
        believed, and of others' nothing is.
        """
        entry = record.entry
        if not entry.job_id:
            for job_id in self.platform.find(entry.name):
                self._delete(record, job_id)
            _close(record)
            return None
        state = self.state_or_unknown(entry.job_id) if own else self.platform.state(entry.job_id)
        if state is None:
            log.info("The platform knows job %s of an earlier start no more", entry.job_id)
            _close(record)
            return None
        # A release is begun of what may run: an empty history is then believed when it was read twice.
        draft = not state.submitted and entry.state not in {"submitted", "kept"}
        if draft and (entry.state != "releasing" or not self.platform.state(entry.job_id).submitted):
            self._delete(record, entry.job_id)
            _close(record)
            return None
        if state.stopped:
            self._account(entry, state)
            _close(record)
            return None
        return state

    def state_or_unknown(self, job_id: str) -> LeaseState | None:
        """Return what the platform says of a job; None where it has not known it for a minute."""

        def ask() -> LeaseState:
            try:
                return self.platform.state(job_id)
            except PlatformRefused as error:
                if error.status != 404:
                    raise
                raise _Unknown from error

        again = Backoff(first=self.poll.total_seconds(), most=5, total=self.deadlines.unknown.total_seconds())
        try:
            return recover(ask, {_Unknown: lambda _: log.info("The platform does not know job %s now", job_id)}, again)
        except _Unknown:
            return None

    def _delete(self, record: Record, job_id: str) -> None:
        if self.platform.state(job_id).submitted:
            log.warning("Job %s was submitted by somebody else; it is left alone", job_id)
            return
        self.platform.delete(job_id)
        crash_point("settle-deleted")
        log.info("Job %s of an earlier start was never submitted and is deleted: %s", job_id, record.entry.name)

    def _leave(self, record: Record, state: LeaseState, misfit: str) -> None:
        """Name a cluster that runs without a driver, and why it is not used; one that nothing ends is stopped."""
        entry = record.entry
        if state.ended or state.ending:
            log.info("Job %s of an earlier start (%s) is ending: %s", entry.job_id, entry.study, state)
        elif entry.state == "releasing" or entry.switch is None:
            why = "was being released" if entry.state == "releasing" else "has no dead-man's switch"
            log.warning("Job %s of an earlier start (%s) %s: asking for its stop", entry.job_id, entry.study, why)
            self._end(record, wait=False)
        else:
            log.warning(
                "Job %s of an earlier start (%s) still runs%s. %s; persistent-runner stop %s ends it now",
                entry.job_id,
                entry.study,
                misfit and f" and is not used: {misfit}",
                ends_by_itself(entry, executing=state.executing),
                entry.job_id,
            )

    def _end(self, record: Record, *, wait: bool, why: str = "") -> None:
        """Ask for the end of a job of ours, and wait for `Stopped`."""
        job_id = record.entry.job_id
        record.update(state="releasing")
        if not wait:
            self.platform.stop(job_id)
            return
        log.info("Job %s of an earlier start is not needed any more, ending it%s", job_id, why and f": {why}")
        try:
            state = Stopper(self.platform, job_id, poll=self.poll.total_seconds(), deadlines=self.deadlines).stop(
                force=False
            )
        except (NotStopped, KeyboardInterrupt) as error:
            why = error.why if isinstance(error, NotStopped) else "the wait for its end was interrupted"
            raise ReleaseUnconfirmed(
                f"Job {job_id} of an earlier start may still run and cost money: {why.rstrip('.')}. "
                f"{ends_by_itself(record.entry)}.",
                remedy=f"Run: persistent-runner stop {job_id}",
            ) from error
        self._account(record.entry, state)
        _close(record)

    def _account(self, entry: Entry, state: LeaseState) -> None:
        """Tell what a job cost since it was last accounted for: when it was kept, or from its start-up on."""
        if entry.folder != self.ledger.folder or state.executed is None:
            return
        kept = timedelta(seconds=entry.kept_age)
        executed = max(timedelta(0), state.executed - kept)
        self.on_cost(entry.name, cost_of(entry.price, executed, executed if kept else state.booted or executed), True)


def ends_by_itself(entry: Entry, *, driven: bool = False, executing: bool = True) -> str:
    """Return in words when a job ends by itself: by the clock where its driver cannot show any sign of life any more.

    `executing` is whether its command runs; before that, no switch of its own can end it.
    """
    cap = f"at the latest by its walltime of {entry.walltime_hours}h"
    if entry.switch is None:
        return f"It ends {cap}"
    ticks = entry.switch["tick_seconds"]
    idle = (entry.kept_seconds or entry.switch["idle"] * ticks) + 3 * ticks
    busy = max(idle, (entry.switch["busy"] + 3) * ticks)
    if not executing:
        return (
            f"Nothing ends it before it runs; {format_duration(idle)} after its start it ends by itself, if no driver "
            "shows a sign of life"
        )
    if driven:
        return (
            f"It ends by itself {format_duration(idle)} after its driver's last sign of life, "
            f"{format_duration(busy)} while a trial runs, {cap}"
        )
    since = datetime.now(UTC)
    if entry.state == "kept":
        since, busy = datetime.fromisoformat(entry.changed), idle  # nothing runs on it
    first, last = _clock(since, idle), _clock(since, busy)
    running = "" if first == last else f", by {last} if a trial still runs there"
    return f"It ends by itself by {first}{running}, {cap}"


def _clock(since: datetime, seconds: float) -> str:
    # a whole minute, rounded up: who comes back then finds it ended
    then = (since + timedelta(seconds=seconds + 60)).astimezone(UTC)
    return f"{then:%H:%M} UTC"


def is_local_and_gone(entry: Entry) -> bool:
    """Return whether a job was on a local platform that does not run any more."""
    parts = urlsplit(entry.base_url)
    # Of a tunnel to a platform elsewhere an end here says nothing.
    if entry.profile != "local" and entry.account != LOCAL_ACCOUNT:
        return False
    try:
        if not ipaddress.ip_address(parts.hostname or "").is_loopback:
            return False
        socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _close(record: Record) -> None:
    record.update(state="closed")
