"""`ClusterLease`: a cluster for as long as it is needed, on one job after another; at most one at a time."""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import (
    HostNotProven,
    JobStopped,
    LeaseLost,
    PlatformError,
    ReleaseUnconfirmed,
    RunnerError,
)
from persistent_runner.interrupts import ExitGuard, held_back
from persistent_runner.lease.guard import Breaker, Budget, Guard
from persistent_runner.lease.hold import Hold
from persistent_runner.lease.keeper import Switch, job_command
from persistent_runner.lease.meter import Cost, Meter
from persistent_runner.lease.naming import lease_name
from persistent_runner.lease.platform import LeaseState
from persistent_runner.recovery import Backoff, recover

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.access import Access
    from persistent_runner.lease.cluster import Cluster, Setup
    from persistent_runner.lease.ledger import Entry, Ledger, Record
    from persistent_runner.lease.platform import LeaseRequest, Quote
    from persistent_runner.remote.node import Node

log = logging.getLogger(__name__)


class ClusterLease:
    """A hold on one cluster; a context manager that acquires on enter and releases on every way out.

    `request` needs no name, command and proof: each job gets its own. `quote` gives the price; `setup` is only carried;
    `earlier` gives the record of a cluster that an earlier driver left and this one may go on with, which must live
    for `needs` at least; `keep` leaves the cluster to another study instead of releasing it, where nothing failed.
    `confirm` hears how long the first new cluster may run at most and what ends it then, before it is asked for, and
    raises to refuse.
    `on_cost` gets the name of each job, its cost so far and whether that is final, before it is submitted and when it
    has ended; `on_released` is called once when nothing costs money any more.
    """

    def __init__(
        self,
        access: Access,
        request: LeaseRequest,
        *,
        study: str,
        ledger: Ledger,
        quote: Quote,
        guard: Guard | None = None,
        budget: Budget | None = None,
        setup: Setup | None = None,
        needs: timedelta = timedelta(0),
        keep: timedelta | None = None,
        earlier: Callable[[], Record | None] = lambda: None,
        confirm: Callable[[tuple[timedelta, str]], None] = lambda _: None,
        on_cost: Callable[[str, Cost, bool], None] = lambda _name, _cost, _final: None,
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        self.request = request
        self.setup = setup
        self.quote = quote
        self.guard = guard or Guard()
        self.is_attached = False
        self._access = access
        self._study = study
        self._ledger = ledger
        self._budget = budget or Budget()
        self._needs = needs
        self._keep = keep
        self._earlier = earlier
        self._confirm = confirm
        self._on_cost = on_cost
        self._on_released = on_released
        self._lock = threading.RLock()
        self._hold: Hold | None = None
        self._before = Cost()  # of this object's former jobs
        self._ended = False
        self._breaker = Breaker()
        self._exit_guard = ExitGuard(self.release)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._keep is not None and kind is None:
            self.keep(self._keep)
        else:
            self.release()

    def __repr__(self) -> str:
        return f"<ClusterLease {self._study}: job {self.job_id or 'none'}, {self.state}>"

    # -- what it holds

    @property
    def hold(self) -> Hold:
        """Our hold on the present job; RunnerError where there is none."""
        if self._hold is None:
            raise RunnerError("The lease is not held.", remedy="Use it in a with statement, or call acquire() first.")
        return self._hold

    @property
    def name(self) -> str:
        """The name of the present job; empty before there is one."""
        return self._hold.request.name if self._hold else ""

    @property
    def job_id(self) -> str:
        """The id of the present job; empty before there is one."""
        return self._hold.job_id if self._hold else ""

    @property
    def state(self) -> LeaseState:
        """What the platform said of the job last."""
        return (self._hold and self._hold.watch.state) or LeaseState("not asked for")

    @property
    def cluster(self) -> Cluster:
        """The machines; RunnerError unless the lease is held."""
        if (found := self.hold.watch.cluster) is None:
            raise RunnerError("The lease is not held.", remedy="Use it in a with statement, or call acquire() first.")
        return found

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines, the head node first."""
        return self.cluster.nodes

    @property
    def head_node(self) -> Node:
        """The machine that the lease stands and falls with, and that trials on several machines start on."""
        return self.cluster.nodes[0]

    @property
    def connection(self) -> Any:
        """The one connection to the head node."""
        if (found := self.hold.connection) is None:
            raise RunnerError("The lease has no connection.", remedy="Use it in a with statement, or call acquire().")
        return found

    @property
    def price(self) -> float | None:
        """The price of the whole cluster per hour, in the platform's currency; None where it is not known."""
        return self.quote.price_per_hour

    @property
    def cores_per_node(self) -> int:
        """The cores of one machine."""
        return self.quote.cores_per_node

    @property
    def age(self) -> timedelta:
        """The time since the present cluster's command was started, until its end was read."""
        return self._hold.meter.age if self._hold else timedelta(0)

    @property
    def cost(self) -> Cost:
        """What this object's leases have taken and cost by now."""
        return self._before + self._hold.meter.cost if self._hold else self._before

    @property
    def left(self) -> timedelta:
        """The time until what runs must be over, by walltime, budget and the dead-man's switch."""
        most, _ = self._budget.left(self.price, self.cost, self.guard.orphan_busy)
        return self.hold.left if most is None else min(self.hold.left, most)

    # -- the verbs

    def acquire(self) -> Cluster:
        """Return the cluster, leased and connected; at once where it is held already.

        Raises PlatformRefused, PlatformUnavailable, NoCapacity, LeaseLost, JobStopped, BudgetSpent, HostNotProven,
        or KeyboardInterrupt, each after the release of what there was; ReleaseUnconfirmed where that was
        not confirmed.
        """
        with self._lock:
            if self._hold is not None and self._hold.phase == "submitted":
                return self.cluster
            if self._ended or self._hold is not None:
                raise RunnerError("This lease has ended.", remedy="Make a new one.")
            self._exit_guard.install()
            try:
                record = self._earlier()
                if record is None or not self._attach(record):
                    self._confirm(self._limit())
                    self._lease_until_held()
            except BaseException:
                self.release()
                raise
            return self.cluster

    def _limit(self, needs: timedelta = timedelta(0)) -> tuple[timedelta, str]:
        """Return how long a new cluster may run, and what ends it; raises BudgetSpent and ConfigError."""
        return self._budget.limit(self.price, self.cost, self.request.walltime, self.guard, needs)

    def _lease_until_held(self, needs: timedelta = timedelta(0)) -> None:
        """Hold a new cluster; one that is lost before it can be used is replaced, but not for ever."""

        def replace(lost: Exception) -> None:
            log.warning("%s", lost)
            self._close()
            self._breaker.count_lost()

        soon = Backoff(first=self._access.poll.total_seconds(), total=math.inf)  # the count ends it
        recover(lambda: self._lease(needs), {LeaseLost: replace}, soon, self._access.stop)

    def _lease(self, needs: timedelta = timedelta(0)) -> None:
        """Ask for a new job and wait until it can be used."""
        limit, why = self._limit(needs)
        switch = self.guard.switch(limit)
        name, secret = lease_name(self._study), secrets.token_hex(32) if switch else ""
        command = job_command(name, switch)
        request = self.request.model_copy(update={"name": name, "command": command, "proof": secret})
        record = self._ledger.open(
            name,
            secret=secret,
            study=self._study,
            terms=request.terms,
            switch=asdict(switch) if switch else None,
            price=self.price,
            walltime_hours=-(-request.walltime // timedelta(hours=1)),
            unverified=self.guard.unverified,
        )
        meter = Meter(self.price, limit, why)
        self._on_cost(name, Cost(limit.total_seconds(), limit.total_seconds()), False)
        if self._hold is not None:
            self._before = self._before + self._hold.meter.cost
        self._hold = Hold(self._access, request, record, meter=meter, guard=self.guard, switch=switch)
        self._hold.lease()
        self._hold.join()

    def _attach(self, record: Record) -> bool:
        """Go on with a cluster that an earlier driver left; let go of it where it cannot be used for long enough."""
        entry = record.entry
        switch = Switch(**entry.switch) if entry.switch else None
        request = self.request.model_copy(update={"name": entry.name, "proof": record.secret})
        why, used = f"by its walltime of {entry.walltime_hours}h or its budget", timedelta(seconds=entry.kept_age)
        meter = Meter(entry.price, entry.limit, why, used=used, is_sure=False)
        # What was accepted without proof proves nothing to who wants one.
        is_proven = self.guard.unverified or not entry.unverified
        record.update(
            state="submitted",
            folder=self._ledger.folder,
            study=self._study,
            kept_seconds=None,
            pid=os.getpid(),
            pins=entry.pins if is_proven else {},
            unverified=self.guard.unverified,
        )
        self._on_cost(entry.name, Cost(entry.limit.total_seconds(), entry.limit.total_seconds()), False)
        hold = self._hold = Hold(self._access, request, record, meter=meter, guard=self.guard, switch=switch)
        log.info("Going on with job %s, which an earlier start left: %s", hold.job_id, hold.url)
        crash_point("attaching")
        try:
            hold.join()
            enough = hold.learn_age() and self.left > self._needs
        except (HostNotProven, JobStopped):
            raise
        except RunnerError as error:
            log.warning("Job %s cannot be gone on with: %s", hold.job_id, error)
            enough = False
        if not enough:
            self._leave(entry)
        self.is_attached = enough
        return enough

    def _leave(self, before: Entry) -> None:
        """Let go of a cluster that is of no use to us: one that was kept goes back, any other is ended."""
        hold = self.hold
        if before.state == "kept" and hold.give_back(before):
            log.info("Job %s stays kept for another study", hold.job_id)
            self._on_cost(before.name, hold.meter.cost, True)
        else:
            log.info("Job %s is released: it cannot be used for long enough", hold.job_id)
            self._close()

    def renew(self, finished: int = 0, needs: timedelta = timedelta(0)) -> Cluster:
        """Replace a cluster that was lost or is near its end; `finished` trials of this start are settled by now.

        A new one must be there for `needs` at least. The platform's re-launch of the same job is gone on with; else the
        old job must be Stopped before a new one is asked for. Raises what `acquire` raises; LeaseLost after three
        leases without a finished trial.
        """
        with self._lock:
            hold = self.hold
            self._breaker.count_lost(finished)
            self.is_attached = False
            if self._is_launched_anew(hold):
                hold.rejoin()
            else:
                self._close()
                crash_point("renewing")
                self._lease_until_held(needs)
            return self.cluster

    def _is_launched_anew(self, hold: Hold) -> bool:
        """Return whether the platform still executes the job, on machines that nobody has used yet."""
        try:
            return hold.watch.check().executing and hold.watch.is_launched_anew
        except (LeaseLost, PlatformError):
            return False

    @property
    def interrupted(self) -> threading.Event:
        """Set, it ends every wait of this lease but that for the end of a job."""
        return self._access.stop

    def connect(self, worker: Node | None = None) -> Any:
        """Return the connection to the head node, anew where it was closed, or a new one to another; ConnectionLost."""
        head = self.hold.connect()
        return head if worker is None else self.hold.reach(worker, head)

    def check(self) -> LeaseState:
        """Return what the platform says of the job now; raises as `Watch.check` does."""
        return self.hold.watch.check()

    def check_machines(self, *, workers: bool = False) -> None:
        """Raise where the lease's machines are gone or others now; see `Watch.check_machines`."""
        self.hold.check_machines(workers=workers)

    def turned(self) -> None:
        """Show that the main loop turns: the cluster lives on."""
        self.hold.turned()

    def keep(self, duration: timedelta) -> None:
        """Leave the cluster to another study for `duration`; where that fails it is released, as ever."""
        with self._lock:
            hold = self.hold
            if hold.phase != "submitted":
                return
            try:
                hold.keep(duration)
            except RunnerError as error:
                log.warning("The cluster cannot be kept, releasing it: %s", error)
                self.release()
                return
            self._on_cost(hold.request.name, hold.meter.cost, True)
            self._finish()
            told = f"Job {hold.job_id} is kept for {format_duration(duration)} and costs money until then"
            log.warning("%s; persistent-runner stop %s ends it", told, hold.job_id)

    def release(self, *, force: bool = False) -> None:
        """End the job and return when the platform says `Stopped`; nothing to do the second time.

        `force` does not wait for the platform to save the files of the work directory. Raises ReleaseUnconfirmed with
        what may still run and until when.
        """
        with self._lock:
            if self._ended or self._hold is None:
                self._exit_guard.remove()
                return
            try:
                with held_back():
                    self._close(force=force)
            except ReleaseUnconfirmed:
                self._exit_guard.remove()  # it was tried, and a process that ends must not try for another hour
                raise
            self._finish()

    def _close(self, *, force: bool = False) -> None:
        hold = self.hold
        if hold.phase in {"closed", "kept"}:  # and accounted for
            return
        hold.release(force=force)
        if hold.meter.is_sure:  # else it goes on to count with the most that it can have taken
            self._on_cost(hold.request.name, hold.meter.cost, True)

    def _finish(self) -> None:
        self._ended = True
        self._exit_guard.remove()
        self._on_released()

    def leave(self) -> ReleaseUnconfirmed | None:
        """Ask for the end without waiting for it; return the error that says what may still run and until when.

        None is returned where nothing can: there is no job, it was kept, or its end was read.
        """
        self._exit_guard.remove()
        hold = self._hold
        if hold is None or hold.phase in {"closed", "kept"}:
            return None
        return hold.leave("you left before its end was confirmed; its stop was asked for")
