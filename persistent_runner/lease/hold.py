"""`Hold`: our hold on one job, from before it is created until `Stopped` is read."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import (
    ConnectionLost,
    LeaseLost,
    NoCapacity,
    PlatformError,
    PlatformUnavailable,
    ReleaseUnconfirmed,
    RunnerError,
)
from persistent_runner.lease.create import create_once, refuse_differences, submit_once
from persistent_runner.lease.heart import Heart
from persistent_runner.lease.keeper import host_keys
from persistent_runner.lease.ledger import NotRecorded
from persistent_runner.lease.progress import Countdown
from persistent_runner.lease.stopper import NotStopped, Stopper
from persistent_runner.lease.watch import Watch
from persistent_runner.recovery import recover
from persistent_runner.remote.proof import Proof

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.access import Access
    from persistent_runner.lease.guard import Guard
    from persistent_runner.lease.keeper import Switch
    from persistent_runner.lease.ledger import Entry, LeasePhase, Record
    from persistent_runner.lease.meter import Meter
    from persistent_runner.lease.platform import LeaseRequest

log = logging.getLogger(__name__)

_TICK_SECONDS = 120.0
_HOST_KEY_LINES = 200
_FREE: frozenset[LeasePhase] = frozenset({"creating", "saved", "submitting"})


class Hold:
    """One job. `switch` is its dead-man's switch, None where it has none; `record` its entry in the ledger.

    `watch` has what the platform says of it, `phase` what we have done with it, `reach` is the connector's function.
    """

    def __init__(
        self,
        access: Access,
        request: LeaseRequest,
        record: Record,
        *,
        meter: Meter,
        guard: Guard,
        switch: Switch | None,
    ) -> None:
        self.request = request
        self.meter = meter
        self.switch = switch
        self.phase: LeasePhase = record.entry.state
        self.watch = Watch(access, meter, record.entry.job_id)
        self.connection: Any = None
        self.heart: Heart | None = None
        self._access = access
        self._platform = access.platform
        self._guard = guard
        self._record = record
        self._connect_lock = threading.Lock()
        self._countdown = Countdown(meter)
        self._said_gone = False
        proof = Proof(
            name=request.name,
            secret=request.proof,
            log_keys=self._keys_in_log if switch is not None else None,
            pins=dict(record.entry.pins),
            on_pin=lambda machine, keys: self._noted(lambda: record.pin(machine, keys)),
            unverified=guard.unverified,
        )
        self.reach = access.connector(proof)

    @property
    def job_id(self) -> str:
        """The job's id; empty before it is created."""
        return self.watch.job_id

    @property
    def url(self) -> str:
        """The job's page."""
        return self._access.job_url.replace("{job_id}", self.job_id)

    # -- to the cluster

    def lease(self) -> None:
        """Create the job and submit it."""
        log.info("Creating job %s: %d cores of %s", self.request.name, self.request.cores, self.request.core_type)
        crash_point("recorded")
        saved = create_once(self._access, self.request)
        crash_point("created")
        self.watch.job_id = saved.job_id
        self._enter("saved")
        crash_point("saved")
        refuse_differences(saved)
        self._submit()

    def _submit(self) -> None:
        self._check_stop()
        self._enter("submitting")
        crash_point("submitting")
        submit_once(self._access, self.job_id)
        crash_point("submitted")
        self._enter("submitted")
        crash_point("submit-recorded")
        log.info("Job %s is submitted%s", self.job_id, f": {self.url}" if self.url else "")

    def join(self) -> None:
        """Wait until the job executes, its head node has proven itself and is connected, and its switch is fed."""
        self.watch.wait_until_executing()
        crash_point("executing")
        self.watch.wait_for_nodes()
        crash_point("nodes")
        self._open_connection()
        crash_point("connected")
        self._start_heart()
        crash_point("beating")

    def rejoin(self) -> None:
        """Go on with the machines that the platform has launched the job on anew."""
        self.close_connection()
        self.watch.is_launched_anew = False
        self._open_connection()
        self._start_heart()

    def _open_connection(self) -> None:
        limit, stop = self._access.deadlines.connect, self._access.stop
        try:
            recover(self.connect, {ConnectionLost: self._before_reconnect}, limit, stop)
        except ConnectionLost as error:
            self._check_stop()
            raise NoCapacity(
                f"The head node of job {self.job_id} cannot be used after {format_duration(limit.total)}: "
                f"{error.message}",
                remedy=error.remedy,
            ) from error
        log.info("Connected to %s", self.watch.head_node)

    def _before_reconnect(self, error: Exception) -> None:
        """See why a node refuses: the job has ended, or its machines are others now; else it is just not up yet."""
        log.info("%s Trying again.", error)
        self._check_stop()
        try:
            self.watch.check()
        except PlatformUnavailable as unavailable:
            log.warning("Job %s: %s", self.job_id, unavailable)
        else:
            self.watch.look_for_nodes()

    def connect(self) -> Any:
        """Return the connection to the head node, a new one where the last was closed; ConnectionLost if it fails."""
        with self._connect_lock:
            if self.phase != "submitted" or self.watch.cluster is None:
                raise LeaseLost(f"The lease {self.request.name} is not held any more.")
            self.watch.check_launch()  # or a link would start on these machines what it believes to run on the former
            if self.connection is None or not self.connection.is_connected:
                self.connection = self.reach(self.watch.head_node)
            return self.connection

    def _start_heart(self) -> None:
        self.heart = Heart(
            self.connect,
            lease=self.request.name,
            node=self.watch.head_node.instance_id,
            switch=self.switch,
            beat=self._guard.beat,
            hang=self._guard.hang,
            check=self.check_machines,
            idle_seconds=self._access.idle_seconds,
        )
        self.heart.start()

    def learn_age(self) -> bool:
        """Learn how old a cluster is that somebody else has started; return whether that is known, and it lives.

        Its switch tells. Where it has none, the time since its record was begun is taken, which is no less.
        """
        if self.switch is None:
            began = datetime.fromisoformat(self._record.entry.began)
            self.meter.start(max(timedelta(0), datetime.now(UTC) - began))
            return True
        deadline = time.monotonic() + _TICK_SECONDS
        while self.heart is not None and self.heart.tick is None:
            if self.heart.lost is not None or time.monotonic() > deadline:
                return False
            self.watch.pause()
        return self.left > timedelta(0)

    # -- while it is held

    @property
    def left(self) -> timedelta:
        """The time until the job ends by itself, with room for what has to be done before that.

        None is left where its switch has ended it, or is gone itself: a cluster without one is not used on.
        """
        heart, switch = self.heart, self.switch
        if heart is not None and (heart.ended or heart.is_switch_dead):
            return timedelta(0)
        if heart is not None and switch is not None and heart.tick is not None:
            # The switch's own count is right whatever this machine's clock went through.
            self.meter.start(timedelta(seconds=heart.tick * switch.tick_seconds))
        return self.meter.left - 2 * self._guard.tick

    def turned(self) -> None:
        """Show that the driver's main loop turns, and say when the end of the lease comes near."""
        if self.heart is not None:
            self.heart.turned()
            if (self.heart.ended or self.heart.is_switch_dead) and not self._said_gone:
                self._said_gone = True
                log.warning("Job %s: its dead-man's switch %s", self.job_id, self.heart.ended or "is gone")
        self._countdown.say(self.job_id)

    def check_machines(self, *, workers: bool = False) -> None:
        """Raise where the job or its machines are gone: see `Watch.check_machines`."""
        if self.phase != "submitted":
            raise LeaseLost(f"The lease {self.request.name} is not held any more.")
        self.watch.check_machines(workers=workers)

    def _keys_in_log(self) -> list[str]:
        return host_keys(self._platform.log(self.job_id, lines=_HOST_KEY_LINES), self.request.name)

    # -- from the cluster

    def keep(self, duration: timedelta) -> None:
        """Let go of the cluster and leave it to another study for `duration`; its switch ends it after that.

        Raises RunnerError where the switch cannot be told.
        """
        heart, switch = self.heart, self.switch
        if heart is None or switch is None:
            raise RunnerError("A cluster without a dead-man's switch cannot be kept.", remedy="Leave keeper = true.")
        age = self.meter.age.total_seconds()
        # First the record: it may say that a cluster lives longer than it does, and never less.
        self._record.update(state="kept", kept_seconds=duration.total_seconds(), kept_age=age)
        try:
            heart.keep(round(duration.total_seconds() / switch.tick_seconds))
        except RunnerError:
            self._record.update(state="submitted", kept_seconds=None)
            raise
        self._let_go()

    def give_back(self, before: Entry) -> bool:
        """Let go of a cluster that was kept and is of no use to us, for what is left of that time; False where none is.

        `before` is its record as it was found.
        """
        if self.watch.state is None or not self.watch.state.executing:
            return False
        if self.heart is None:  # it has heard nothing of us, and waits as it did
            kept = {"state": "kept", "kept_seconds": before.kept_seconds}
            self._record.update(**kept, folder=before.folder, study=before.study)
            self._let_go()
            return True
        waited = max(0.0, self.meter.age.total_seconds() - before.kept_age)  # ticks lag a little
        left = (before.kept_seconds or 0.0) - waited
        if not self.meter.is_sure or left <= 0:
            return False
        try:
            self.keep(timedelta(seconds=left))
        except RunnerError as error:
            log.warning("Job %s: %s", self.job_id, error)
            return False
        return True

    def _let_go(self) -> None:
        self.phase = "kept"
        self.close_connection()
        self._record.let_go()

    def release(self, *, force: bool = False) -> None:
        """End the job and return when the platform says `Stopped`; nothing to do the second time.

        Raises ReleaseUnconfirmed.
        """
        if self.phase in {"closed", "kept"}:
            return
        try:
            if not self._discard():
                self._stop(force=force)
        except NotStopped as error:
            raise self.unconfirmed(error.why) from error
        except KeyboardInterrupt as error:
            if self.phase in {"creating", "saved"}:  # it costs nothing
                raise
            raise self.leave("the release was interrupted") from error
        finally:
            self.close_connection()
        state = self.watch.state
        self.meter.close(state.executed if state else None, state.booted if state else None)
        self._enter("closed")
        crash_point("closed")

    def leave(self, why: str) -> ReleaseUnconfirmed:
        """Ask once for the end, within seconds; return the error that says what may still run, and until when."""
        error = self.unconfirmed(why)
        self.close_connection()
        if self.job_id:
            log.warning("Job %s: asking for its stop, and leaving", self.job_id)
            with contextlib.suppress(PlatformError, KeyboardInterrupt):  # whoever presses again does not wait for that
                self._platform.stop(self.job_id, patient=False)
        return error

    def _stop(self, *, force: bool) -> None:
        self._enter("releasing")
        crash_point("releasing")
        stopper = Stopper(
            self._platform,
            self.job_id,
            poll=self._access.poll.total_seconds(),
            deadlines=self._access.deadlines,
            otherwise=lambda: self.heart is not None and self.heart.ask_end(),
            accepted=self.close_connection,
        )
        self.watch.state = stopper.stop(force=force)
        log.info("Job %s is released: %s", self.job_id, self.watch.state)

    def _discard(self) -> bool:
        """Delete a job that was never started; False where it was, or where nobody can say."""
        if self.phase not in _FREE:
            return False
        try:
            if self.phase == "submitting" and self._platform.state(self.job_id).submitted:
                return False
            for job_id in [self.job_id] if self.job_id else self._platform.find(self.request.name):
                self._platform.delete(job_id)
        except PlatformError as error:
            if self.phase == "submitting":
                return False
            log.warning("Job %s costs nothing, but could not be deleted yet: %s", self.request.name, error)
            self._record.let_go()  # what is on the disk stays true, and the next start tries again
            self.phase = "closed"
            return True
        log.info("Job %s was never started and is deleted", self.request.name)
        return True

    def unconfirmed(self, why: str) -> ReleaseUnconfirmed:
        """Return the error that says what may still run, and until when."""
        job = self.job_id or f"named {self.request.name}"
        where = f" at {self.url}" if self.url and self.job_id else ""
        alone = ""
        if self.switch is not None:
            idle, busy = format_duration(self._guard.idle_end), format_duration(self._guard.busy_end)
            alone = (
                f" Its dead-man's switch ends it {idle} after this driver's last sign of life"
                f" ({busy} while a trial runs)."
            )
        return ReleaseUnconfirmed(
            f"Job {job} may still run and cost money: {why.rstrip('.')}.{alone} "
            f"It ends by itself at the latest {self.meter.end}.",
            remedy=f"Look at job {job}{where} and stop it there, or run: persistent-runner stop "
            f"{self.job_id or self.request.name}",
        )

    def close_connection(self) -> None:
        """Close the connection and stop the beat; whatever is wrong with them, the cluster must go."""
        # Without the lock: a thread may be connecting, and a release waits for nobody.
        heart, self.heart = self.heart, None
        connection, self.connection = self.connection, None
        for each in (heart, connection):
            if each is not None:
                with contextlib.suppress(Exception):
                    each.close()

    def _enter(self, phase: LeasePhase) -> None:
        """Record the phase on the disk, then be in it."""
        if self.phase == "closed":
            return
        if phase in {"saved", "submitting"}:
            self._record.update(state=phase, job_id=self.job_id)
        else:  # money flows: the cluster must be released all the same
            self._noted(lambda: self._record.update(state=phase, job_id=self.job_id))
        self.phase = phase

    def _noted(self, record: Callable[[], None]) -> None:
        try:
            record()
        except NotRecorded as error:
            log.warning("Job %s: %s", self.job_id, error)

    def _check_stop(self) -> None:
        if self._access.stop.is_set():
            raise KeyboardInterrupt
