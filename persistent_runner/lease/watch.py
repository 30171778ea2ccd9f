"""What the platform says of one job and its machines: waited for, checked, compared with what it said before."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from persistent_runner.crash import crash_point
from persistent_runner.duration import format_duration
from persistent_runner.errors import (
    JobStopped,
    LeaseLost,
    NoCapacity,
    PlatformError,
    PlatformRefused,
    PlatformUnavailable,
)
from persistent_runner.lease.cluster import Cluster
from persistent_runner.lease.progress import Progress

if TYPE_CHECKING:
    from persistent_runner.lease.access import Access
    from persistent_runner.lease.meter import Meter
    from persistent_runner.lease.platform import LeaseState
    from persistent_runner.remote.node import Node

log = logging.getLogger(__name__)

_LOG_LINES = 10


class Watch:
    """The states of the job `job_id`, once that is known, and its machines; `meter` is told when it boots and runs.

    `is_launched_anew` is set when the platform has launched the job on other machines, until these are used. Any thread
    may ask.
    """

    def __init__(self, access: Access, meter: Meter, job_id: str = "") -> None:
        self.job_id = job_id
        self.state: LeaseState | None = None
        self.cluster: Cluster | None = None
        self.is_launched_anew = False
        self._machines = threading.Lock()
        self._gone: dict[str, str] = {}  # workers that were there and are not shown any more: their names by id
        self._unknown_since: float | None = None
        self._access = access
        self._platform = access.platform
        self._meter = meter

    def wait_until_executing(self) -> None:
        """Return when the command runs; raises NoCapacity, JobStopped, PlatformRefused or KeyboardInterrupt."""
        progress = Progress()
        begun = time.monotonic()
        is_booting = False
        booted = math.inf
        while True:
            try:
                self.state = state = self._platform.state(self.job_id)
            except PlatformError as error:
                unknown = isinstance(error, PlatformRefused) and error.status == 404
                young = time.monotonic() - begun < self._access.deadlines.unknown.total_seconds()
                if not isinstance(error, PlatformUnavailable) and not (unknown and young):
                    raise
                log.warning("Job %s: %s", self.job_id, error)
            else:
                crash_point("queued")
                progress.say(f"Job {self.job_id}: {state}")
                is_booting = state.booting
                if is_booting:
                    self._meter.boot()
                    booted = min(booted, time.monotonic())
                if state.executing:
                    self._meter.start()
                    return
                if state.ended and state.by_somebody:
                    raise self._stopped_by_somebody()
                if state.ended:
                    raise NoCapacity(f"Job {self.job_id} ended before it could be used: {self._obituary()}")
            self._check_deadline(booted if is_booting else begun, is_booting=is_booting)
            self.pause()

    def _check_deadline(self, since: float, *, is_booting: bool) -> None:
        """Raise NoCapacity for a job that waits in the queue, or whose machines start up, for too long.

        The two have a deadline each: the queue is free, and the start-up may be billed.
        """
        limit = self._access.deadlines.start_up if is_booting else self._access.max_queue
        if time.monotonic() - since <= limit.total_seconds():
            return
        if is_booting:
            raise NoCapacity(
                f"The machines of job {self.job_id} did not come up within {format_duration(limit)}: {self.state}.",
                remedy="Run the same line again, or ask for another core type; the platform's support may know why.",
            )
        raise NoCapacity(
            f"Job {self.job_id} did not start within {format_duration(limit)}: {self.state}.",
            remedy="Try later, ask for another core type, or raise max_queue in [cluster].",
        )

    def wait_for_nodes(self) -> None:
        """Return when the head node has an address; raises NoCapacity, what `check` raises, or KeyboardInterrupt."""
        progress = Progress()
        limit = self._access.deadlines.nodes
        deadline = time.monotonic() + limit.total_seconds()
        while not self.look_for_nodes():
            if time.monotonic() > deadline:
                raise NoCapacity(
                    f"Job {self.job_id} is executing, and after {format_duration(limit)} no machine has an address."
                )
            progress.say(f"Job {self.job_id}: no machine has an address yet")
            self.pause()
            try:
                self.check()
            except PlatformUnavailable as error:
                log.warning("Job %s: %s", self.job_id, error)
        log.info("Job %s: head node %s", self.job_id, self.head_node)

    def look_for_nodes(self) -> bool:
        """Take what the platform says of the machines now; return whether it names any."""
        try:
            nodes = tuple(self._platform.nodes(self.job_id))
        except PlatformUnavailable as error:
            log.warning("Job %s: %s", self.job_id, error)
            return False
        if nodes:
            self._take(nodes)
        return bool(nodes)

    @property
    def head_node(self) -> Node:
        """The machine that commands start on; it must be known."""
        assert self.cluster is not None
        return self.cluster.nodes[0]

    def check(self, *, patient: bool = True) -> LeaseState:
        """Return what the platform says of the job now; who is not `patient` is answered within seconds.

        Raises LeaseLost with its reason where the job has ended or is ending, JobStopped where somebody asked for that;
        PlatformUnavailable where the platform does not answer, which says nothing about the cluster. One that does not
        know the job says nothing either, until it has not known it for a minute.
        """
        try:
            self.state = state = self._platform.state(self.job_id, patient=patient)
        except PlatformRefused as error:
            if error.status != 404:
                raise
            self._unknown_since = self._unknown_since or time.monotonic()
            if time.monotonic() - self._unknown_since < self._access.deadlines.unknown.total_seconds():
                raise PlatformUnavailable(f"the platform does not know job {self.job_id} now") from error
            raise LeaseLost(f"The platform knows job {self.job_id} no more: {error.message}") from error
        self._unknown_since = None
        if state.ended or state.ending:
            if state.by_somebody:
                raise self._stopped_by_somebody()
            raise LeaseLost(f"Job {self.job_id} ended: {self._obituary()}")
        return state

    def check_machines(self, *, workers: bool = False) -> None:
        """Raise what `check` raises, and LeaseLost where the platform has launched the job anew on other machines.

        With `workers` it is LeaseLost, too, where one of them is gone that was there before.
        Every caller hears of a launch anew, until its machines are used. A platform that cannot be asked, or not by us
        any more, says nothing, and is not waited for: whoever asks has beats to send.
        """
        try:
            self.check(patient=False)
            nodes = tuple(self._platform.nodes(self.job_id, patient=False))
        except PlatformError as error:
            log.warning("Job %s cannot be asked for, the cluster is used on: %s", self.job_id, error)
            return
        with self._machines:
            if nodes and self._take(nodes):
                self.is_launched_anew = True
        self.check_launch()
        if workers and self._gone:
            names = ", ".join(sorted(self._gone.values()))
            raise LeaseLost(f"Job {self.job_id} has lost a machine of its cluster ({names}): what ran there is lost.")

    def check_launch(self) -> None:
        """Raise LeaseLost where the job was launched anew by all that is known, and its machines are not used yet."""
        if self.is_launched_anew:
            raise LeaseLost(
                f"Job {self.job_id} was launched anew by the platform, on {self.head_node}: what ran is lost."
            )

    def pause(self) -> None:
        """Wait until the next look; KeyboardInterrupt when the wait was ended."""
        if self._access.stop.wait(self._access.poll.total_seconds()):
            raise KeyboardInterrupt

    def _take(self, nodes: tuple[Node, ...]) -> bool:
        """Take what the platform says of the machines; return whether the head node is another one than before."""
        before = self.cluster
        head = (nodes[0].instance_id, nodes[0].started)
        another = before is not None and (before.nodes[0].instance_id, before.nodes[0].started) != head
        if before is not None:
            former = {} if another else self._gone | {node.instance_id: node.hostname for node in before.nodes}
            there = {node.instance_id for node in nodes}
            self._gone = {name: hostname for name, hostname in former.items() if name not in there}
        self.cluster = Cluster(self.job_id, nodes, (before.generation if before else 0) + another)
        return another

    def _stopped_by_somebody(self) -> JobStopped:
        return JobStopped(
            f"Job {self.job_id} was stopped by somebody else: {self._obituary()}",
            remedy="What was finished is kept. When the reason is known, run the same line: it goes on.",
        )

    def _obituary(self) -> str:
        """Return the platform's reason for the end and the last lines that the command printed."""
        lines = self._platform.log(self.job_id).splitlines()[-_LOG_LINES:]
        tail = "\n".join(["", "The last lines of its log:", *(f"  {line}" for line in lines)]) if lines else ""
        return f"{self.state}.{tail}"
