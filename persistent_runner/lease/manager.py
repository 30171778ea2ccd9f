"""`ClusterLease`: a hold on a cluster, from before the job is created until `Stopped` is read."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from persistent_runner.duration import format_duration
from persistent_runner.errors import (
    ConfigError,
    ConnectionLost,
    LeaseLost,
    NoCapacity,
    PlatformError,
    PlatformRefused,
    PlatformUnavailable,
    ReleaseUnconfirmed,
    RunnerError,
)
from persistent_runner.interrupts import ExitGuard
from persistent_runner.lease.cluster import Cluster
from persistent_runner.lease.ledger import NotRecorded
from persistent_runner.lease.meter import Meter
from persistent_runner.lease.platform import LeaseState
from persistent_runner.lease.progress import Progress
from persistent_runner.lease.stopper import Deadlines, NotStopped, Stopper
from persistent_runner.recovery import recover

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.lease.cluster import Setup
    from persistent_runner.lease.ledger import LeasePhase, Ledger, Record
    from persistent_runner.lease.platform import LeaseRequest, Platform, Quote, SavedJob
    from persistent_runner.remote.node import Node

log = logging.getLogger(__name__)

_LOG_LINES = 10


def lease_name(study: str) -> str:
    """Return a job name that nobody else has, and that tells whose it is; ConfigError where `study` cannot be in it."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", study):
        raise ConfigError(f"{study!r} cannot name a lease.", remedy="Use 1 to 80 letters, digits and . _ -")
    return f"persistent_runner-{study}-{secrets.token_hex(6)}"


class ClusterLease:
    """A hold on one cluster; a context manager that acquires on enter and releases on every way out.

    `connect` opens a connection (`is_connected`, `close()`) to a node and raises ConnectionLost while it cannot;
    `quote` gives the price; `setup` is only carried; `poll` is the pause between two looks at the platform; `job_url`
    is the job's page, with `{job_id}` in it; a set `stop` ends every wait of `acquire` with KeyboardInterrupt;
    `on_released` is called once when nothing costs money any more.
    """

    def __init__(
        self,
        platform: Platform,
        request: LeaseRequest,
        *,
        connect: Callable[[Node], Any],
        poll: timedelta,
        quote: Quote | None = None,
        ledger: Ledger | None = None,
        setup: Setup | None = None,
        max_queue: timedelta = timedelta(hours=2),
        job_url: str = "",
        stop: threading.Event | None = None,
        on_released: Callable[[], None] | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.request = request
        self.setup = setup
        self.job_id = ""
        self.state = LeaseState("not asked for")
        self._platform = platform
        self._connect = connect
        self._poll = poll.total_seconds()
        self._quote = quote
        self._meter = Meter(quote.price_per_hour if quote else None, request.walltime)
        self._ledger = ledger
        self._max_queue = max_queue
        self._job_url = job_url
        self._stop = stop or threading.Event()
        self._on_released = on_released
        self._deadlines = deadlines or Deadlines()
        self._lock = threading.RLock()
        self._connect_lock = threading.Lock()
        self._phase: LeasePhase | None = None
        self._record: Record | None = None
        self._cluster: Cluster | None = None
        self._connection: Any = None
        self._guard = ExitGuard(self.release)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def cluster(self) -> Cluster:
        """The machines; RunnerError unless the lease is held."""
        if self._cluster is None:
            raise RunnerError("The lease is not held.", remedy="Use it in a with statement, or call acquire() first.")
        return self._cluster

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines, the head node first."""
        return self.cluster.nodes

    @property
    def head_node(self) -> Node:
        """The machine that commands start on."""
        return self.cluster.nodes[0]

    @property
    def connection(self) -> Any:
        """The one connection to the head node."""
        if self._connection is None:
            raise RunnerError("The lease has no connection.", remedy="Use it in a with statement, or call acquire().")
        return self._connection

    @property
    def price(self) -> float | None:
        """The price of the whole cluster per hour, in the platform's currency; None where it is not known."""
        return self._meter.price

    @property
    def cores_per_node(self) -> int | None:
        """The cores of one machine; None where no quote said so."""
        return self._quote.cores_per_node if self._quote else None

    @property
    def age(self) -> timedelta:
        """The time since the cluster was first seen executing, until its end was read."""
        return self._meter.age

    @property
    def cost(self) -> float | None:
        """What the cluster has cost by now, by its price and age; None where the price is not known."""
        return self._meter.cost

    def connect(self) -> Any:
        """Return the connection to the head node, a new one where the last was closed; ConnectionLost if it fails."""
        with self._connect_lock:
            if self._phase != "submitted":
                raise LeaseLost(f"The lease {self.request.name} is not held any more.")
            if self._connection is None or not self._connection.is_connected:
                self._connection = self._connect(self.head_node)
            return self._connection

    def acquire(self) -> Cluster:
        """Return the cluster, leased and connected; at once where it is held already.

        Raises PlatformRefused, PlatformUnavailable, NoCapacity, LeaseLost, ConnectionLost, or KeyboardInterrupt, each
        after the release of what there was; ReleaseUnconfirmed where that was not confirmed.
        """
        with self._lock:
            if self._phase == "submitted" and self._cluster is not None:
                return self._cluster
            if self._phase is not None:
                raise RunnerError("This lease has ended.", remedy="Make a new one.")
            self._guard.install()
            try:
                self._create()
                self._submit()
                self._await_executing()
                self._await_nodes()
                self._open_connection()
            except BaseException:
                self.release()
                raise
            return self.cluster

    def _create(self) -> None:
        log.info("Creating job %s: %d cores of %s", self.request.name, self.request.cores, self.request.core_type)
        self._record = self._ledger.open(self.request.name) if self._ledger else None
        self._phase = "creating"
        saved = self._platform.create(self.request)
        self.job_id = saved.job_id
        self._enter("saved")
        self._refuse_differences(saved)

    def _refuse_differences(self, saved: SavedJob) -> None:
        if saved.differs:
            differences = "\n".join(f"  {difference}" for difference in saved.differs)
            raise PlatformRefused(
                f"The platform saved job {saved.job_id} otherwise than asked, so it was not started:\n{differences}",
                remedy="See what the account allows; a public key may have to be entered in its profile.",
            )
        if saved.not_echoed:
            log.warning(
                "Job %s: the platform did not show what it saved of %s", self.job_id, ", ".join(saved.not_echoed)
            )
        if saved.ssh_open_to:
            log.info("Job %s: the account lets %s connect to its machines", self.job_id, saved.ssh_open_to)

    def _submit(self) -> None:
        self._check_stop()
        self._enter("submitting")
        try:
            self._platform.submit(self.job_id)
        except PlatformError:
            # The answer was lost, or refused a job that a lost one had started: its own state decides.
            if not self._platform.state(self.job_id).submitted:
                raise
        self._enter("submitted")
        log.info("Job %s is submitted%s", self.job_id, f": {self._url}" if self._url else "")

    def _await_executing(self) -> None:
        progress = Progress()
        deadline = time.monotonic() + self._max_queue.total_seconds()
        while True:
            try:
                self.state = self._platform.state(self.job_id)
            except PlatformUnavailable as error:
                log.warning("Job %s: %s", self.job_id, error)
            progress.say(f"Job {self.job_id}: {self.state}")
            if self.state.executing:
                self._meter.start()
                return
            if self.state.ended and self.state.by_somebody:
                raise LeaseLost(f"Job {self.job_id} was stopped by somebody else: {self._obituary()}")
            if self.state.ended:
                raise NoCapacity(f"Job {self.job_id} ended before it could be used: {self._obituary()}")
            if time.monotonic() > deadline:
                raise NoCapacity(
                    f"Job {self.job_id} did not start within {format_duration(self._max_queue)}: {self.state}.",
                    remedy="Try later, ask for another core type, or raise max_queue in [cluster].",
                )
            self._wait()

    def _await_nodes(self) -> None:
        progress = Progress()
        deadline = time.monotonic() + self._deadlines.nodes.total_seconds()
        while not (nodes := self._nodes_now()):
            if time.monotonic() > deadline:
                limit = format_duration(self._deadlines.nodes)
                raise NoCapacity(f"Job {self.job_id} is executing, and after {limit} no machine has an address.")
            progress.say(f"Job {self.job_id}: no machine has an address yet")
            self._wait()
            self.check()
        self._cluster = Cluster(self.job_id, nodes, generation=0)
        log.info("Job %s: head node %s", self.job_id, nodes[0])

    def _nodes_now(self) -> tuple[Node, ...]:
        try:
            return tuple(self._platform.nodes(self.job_id))
        except PlatformUnavailable as error:
            log.warning("Job %s: %s", self.job_id, error)
            return ()

    def _open_connection(self) -> None:
        try:
            recover(self.connect, {ConnectionLost: self._before_reconnect}, self._deadlines.connect, self._stop)
        except ConnectionLost:
            self._check_stop()
            raise
        log.info("Connected to %s", self.head_node)

    def _before_reconnect(self, error: Exception) -> None:
        """See why a node refuses: the job has ended, or its machines are others now; else it is just not up yet."""
        log.info("%s Trying again.", error)
        self._check_stop()
        try:
            self.check()
        except PlatformUnavailable as unavailable:
            log.warning("Job %s: %s", self.job_id, unavailable)
            return
        nodes = self._nodes_now()
        if nodes:
            before, now = self.head_node, nodes[0]
            moved = (before.instance_id, before.started) != (now.instance_id, now.started)
            self._cluster = Cluster(self.job_id, nodes, self.cluster.generation + moved)

    def check(self) -> LeaseState:
        """Return what the platform says of the job now.

        Raises LeaseLost with its reason where the job has ended or is ending and it was not us; PlatformUnavailable
        where the platform does not answer, which says nothing about the cluster.
        """
        self.state = self._platform.state(self.job_id)
        if (self.state.ended or self.state.ending) and self._phase == "submitted":
            raise LeaseLost(f"Job {self.job_id} ended: {self._obituary()}")
        return self.state

    def _obituary(self) -> str:
        """Return the platform's reason for the end and the last lines that the command printed."""
        lines = self._platform.log(self.job_id).splitlines()[-_LOG_LINES:]
        tail = "\n".join(["", "The last lines of its log:", *(f"  {line}" for line in lines)]) if lines else ""
        return f"{self.state}.{tail}"

    def release(self, *, force: bool = False) -> None:
        """End the job and return when the platform says `Stopped`; nothing to do the second time.

        `force` does not wait for the platform to save the files of the work directory. Raises ReleaseUnconfirmed with
        what may still run and until when.
        """
        with self._lock:
            if self._phase is None or self._phase == "closed":
                return
            self._close_connection()
            try:
                if not self._discard():
                    self._enter("releasing")
                    stopper = Stopper(self._platform, self.job_id, self._poll, self._deadlines)
                    self.state = stopper.stop(force=force)
                    log.info("Job %s is released: %s", self.job_id, self.state)
            except NotStopped as error:
                raise self.unconfirmed(error.why) from error
            except KeyboardInterrupt as error:
                if self._phase in {"creating", "saved"}:  # it costs nothing
                    raise
                raise self.unconfirmed("the release was interrupted") from error
            self._meter.close()
            self._enter("closed")
            self._guard.remove()
            if self._on_released:
                self._on_released()

    def _discard(self) -> bool:
        """Delete a job that was never started; False where it was, or where nobody can say."""
        if self._phase not in {"creating", "saved", "submitting"}:
            return False
        try:
            if self._phase == "submitting" and self._platform.state(self.job_id).submitted:
                return False
            for job_id in [self.job_id] if self.job_id else self._platform.find(self.request.name):
                self._platform.delete(job_id)
        except PlatformError as error:
            if self._phase == "submitting":
                return False
            log.warning("Job %s costs nothing, but could not be deleted: %s", self.request.name, error)
            self._record = None  # what is on the disk stays true
            return True
        log.info("Job %s was never started and is deleted", self.request.name)
        return True

    def unconfirmed(self, why: str) -> ReleaseUnconfirmed:
        """Return the error that says what may still run, and until when."""
        self._guard.remove()  # it was tried, and a process that ends must not try for another hour
        where = f" at {self._url}" if self._url else ""
        return ReleaseUnconfirmed(
            f"Job {self.job_id} may still run and cost money: {why.rstrip('.')}. "
            f"It ends by itself at the latest {self._meter.end}.",
            remedy=f"Look at job {self.job_id}{where} and stop it there.",
        )

    def _close_connection(self) -> None:
        # Without the lock: a thread may be connecting, and a release waits for nobody.
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # whatever is wrong with it, the cluster must go
                connection.close()

    @property
    def _url(self) -> str:
        return self._job_url.replace("{job_id}", self.job_id)

    def _enter(self, phase: LeasePhase) -> None:
        """Record the phase on the disk, then be in it."""
        try:
            if self._record:
                self._record.update(state=phase, job_id=self.job_id)
        except NotRecorded as error:
            if phase in {"saved", "submitting"}:
                raise
            # Money flows: the cluster must be released all the same.
            log.warning("Job %s: %s", self.job_id, error)
        self._phase = phase

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt

    def _wait(self) -> None:
        if self._stop.wait(self._poll):
            raise KeyboardInterrupt
