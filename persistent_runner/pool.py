"""Trials onto nodes: the setup once on each, a folder and a thread for each trial."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import threading
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from persistent_runner.background import Crew, in_background
from persistent_runner.duration import format_duration
from persistent_runner.errors import AttemptLost, NoCapacity, RunnerError, SetupFailed, TrialFailed
from persistent_runner.inputs import checksum, walk_inputs
from persistent_runner.nodes import Nodes, TrialNode
from persistent_runner.remote.by_hand import ssh_line
from persistent_runner.remote.habits import Habits
from persistent_runner.remote.workdir import WorkDir
from persistent_runner.spread import machines_of, span_of, trials_at_a_time, warn_of_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from persistent_runner.lease.cluster import Setup
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.remote.link import Link
    from persistent_runner.remote.workdir import CommandResult
    from persistent_runner.render import Delimiters

log = logging.getLogger(__name__)

TURN_SECONDS = 0.5
CLOSE_SECONDS = 5.0  # for all trials to see that their link is gone

Result = TypeVar("Result")


class Pool:
    """The machines of a lease as places where trials run, several at a time.

    `run` names this run's folder on the nodes, `folder` is where results are kept here, `inputs_root` is what pushed
    paths are relative to. `trial_cores` None means all cores of the cluster: one trial at a time. A trial that one node
    is too small for starts on the head node. Open it before the first trial. With `queues`, for trials of one command
    each, more may be submitted than there is room for: they wait on the node.
    """

    def __init__(
        self,
        lease: ClusterLease,
        *,
        run: str,
        folder: Path,
        inputs_root: Path,
        trial_cores: int | None = None,
        max_concurrent: int | None = None,
        delimiters: Delimiters | None = None,
        queues: bool = False,
    ) -> None:
        self._lease = lease
        self._folder = folder
        self._inputs_root = inputs_root
        self._trial_cores = trial_cores
        self._max_concurrent = max_concurrent
        self._delimiters = delimiters
        self.queues = queues
        self._habits = Habits()
        self._lock = threading.Lock()
        self._running: set[WorkDir] = set()
        self._crew = Crew()
        self._places: dict[str, TrialNode] = {}  # by attempt: where it ran, until its directory goes
        self._names: dict[str, str] = {}
        self._setup: str | None = None
        self._run = run
        self._nodes = Nodes(lease, run=run)

    def renew(self, finished: int, needs_seconds: float) -> None:
        """Replace a cluster that was lost or is near its end; see `ClusterLease.renew`. It is to be opened then."""
        self.close()
        self._lease.renew(finished, timedelta(seconds=needs_seconds))
        self._setup = None
        self._nodes = Nodes(self._lease, run=self._run)

    def round_trip(self) -> float:
        """Return how many seconds the way to the head node and back takes."""
        return self._nodes.head.link.round_trip

    @property
    def capacity(self) -> int:
        """How many trials may run at a time now; it follows the machines that come and go."""
        now = self._nodes.capacity
        return now if self._max_concurrent is None else min(now, self._max_concurrent)

    def place(self, before: str = "", planned: Sequence[str] = ()) -> str:
        """Return the machine that the next attempt is to start on, as a name among all of all leases.

        `before` is where it was started already: what runs there is joined, as long as that is a machine of the lease.
        `planned` are the places of attempts that have not started yet.
        """
        node = self._nodes.place(before, planned)
        self._names[node.where] = node.name
        return node.where

    def node(self, where: str) -> str:
        """Return what people call a machine that a trial was placed on."""
        return self._names.get(where, "")

    def link(self, where: str) -> Link | None:
        """Return the way to a machine that a trial was placed on; None where it is none of this cluster's."""
        node = self._nodes.by(where)
        return None if node is None else node.link

    def way_in(self, directory: str) -> str:
        """Return the line for a person who wants to look into a directory on the head node, such as an attempt's."""
        root = self._nodes.head.root
        return ssh_line(self._lease.connection, f"{root}/{directory}", self._folder / "known_hosts")

    @property
    def seconds_left(self) -> float:
        """How long the cluster is there for."""
        return self._lease.left.total_seconds()

    def open(self) -> None:
        """Start the head node's agent and run the setup there; raises what keeps either from working.

        The other nodes follow in the background. NoCapacity where the cluster's time ends before the setup does. The
        main loop counts as turning meanwhile.
        """
        lease, cores = self._lease, self._lease.cores_per_node
        trial_cores = self._trial_cores = self._trial_cores or lease.request.cores
        together = trials_at_a_time(lease.quote.nodes, cores, trial_cores, None)
        span = span_of(lease, trial_cores, cores)
        self._nodes.open(together if span else cores // trial_cores, span)
        if span is not None:
            machines = machines_of(trial_cores, cores)
            idle = machines * cores - trial_cores
            log.info("a trial takes %d whole machines%s", machines, f", {idle} cores of them are idle" if idle else "")
            folder = self._folder / "machines"
            workdir = self._workdir(
                self._nodes.head, "machines", 0, folder, self._folder, label="a look at the machines"
            )
            self._wait_for(in_background(lambda: warn_of_unreachable(workdir, span.workers), "machines"))
        if lease.setup is not None:
            self._set_up_head(lease.setup)
        if span is None:
            self._nodes.open_others(self._prepare)

    def submit(
        self, number: int, attempt: int, where: str, task: Callable[[WorkDir], Result], behind: int | None = None
    ) -> Future[Result]:
        """Run `task` in a thread with the working directory of a trial's attempt; the future gives what it returns.

        `where` is what `place` returned for it. `behind` so many trials that run there its command waits for one to
        end.
        """
        folder = self._folder / "trials" / f"{number:05d}"
        future: Future[Result] = Future()
        node = self._nodes.by(where)
        if node is None:
            future.set_exception(AttemptLost(f"trial {number}: its machine is none of this cluster's"))
            return future
        ready, link = node.ready, node.link
        name = f"{number:05d}.{attempt}"
        among = min(behind or node.slots, node.slots) if self.queues else None
        workdir = self._workdir(node, name, number, folder, self._inputs_root, setup=self._setup, among=among)

        def run() -> Result:
            while not concurrent.futures.wait([ready], TURN_SECONDS).done:
                workdir.check()  # it may be stopped before its machine is there
            ready.result()
            with node.busy():
                try:
                    return task(workdir)
                finally:
                    workdir.check()  # whatever an objective makes of a fault of the machine is no result

        def work() -> None:
            try:
                try:
                    result = run()
                finally:
                    self._nodes.count(node, -1)  # before it is heard of: another one may have its place then
            except TrialFailed as error:
                future.set_exception(self._fault_of_a_machine() or error)
            except BaseException as error:  # noqa: BLE001 - the future carries it
                future.set_exception(node.fault(error, link, name))
            else:
                future.set_result(result)
            finally:
                with self._lock:
                    self._running.discard(workdir)

        self._nodes.count(node, 1)
        with self._lock:
            self._places[name] = node
            self._running.add(workdir)
        self._crew.start(work, f"trial {number}")
        return future

    def _fault_of_a_machine(self) -> Exception | None:
        """Return why a trial on several machines may have failed that says nothing of its design: one of them is gone.

        The head node cannot see that: a parallel solver ends with an error of its own, or waits for its time-out.
        """
        if machines_of(self._trial_cores or 1, self._lease.cores_per_node) > 1:
            try:
                self._lease.check_machines(workers=True)
            except RunnerError as error:
                return error
        return None

    def last_lines(self) -> dict[int, str]:
        """Return by trial the last line that the commands of each running one have printed."""
        with self._lock:
            running = list(self._running)
        return {workdir.number: workdir.last_line for workdir in running}

    @property
    def trial_price(self) -> float | None:
        """The price of a trial's share of the cluster per hour; None where the cluster's is not known."""
        price, cores = self._lease.price, self._trial_cores
        if price is None or cores is None:
            return None
        each = self._lease.cores_per_node
        whole = cores if cores <= each else machines_of(cores, each) * each
        return price * whole / self._lease.request.cores

    def acknowledge(self, number: int, attempt: int) -> None:
        """Say that all of an attempt is safe here: its directory on the node is deleted.

        Where that is, is not known of an earlier start's.
        """
        name = f"{number:05d}.{attempt}"
        with self._lock:
            node = self._places.pop(name, None)
        for each in self._nodes.all() if node is None else [node]:
            each.link.drop(name)

    def stop(self) -> None:
        """End what runs, each with its whole process tree; their futures fail with AttemptLost."""
        with self._lock:
            running = list(self._running)
        for workdir in running:
            workdir.stop()

    def withdraw(self, number: int) -> None:
        """Let a trial that waits on the node never begin: its future fails with AttemptLost; one that runs goes on."""
        with self._lock:
            waiting = [workdir for workdir in self._running if workdir.number == number]
        for workdir in waiting:
            workdir.withdraw()

    def close(self) -> None:
        """End the agents. What still runs on the nodes goes on; its futures fail."""
        self._nodes.close()
        self._crew.close(CLOSE_SECONDS)  # objectives that compute for long are not waited for
        self._crew = Crew()  # for another cluster

    def _workdir(
        self,
        node: TrialNode,
        attempt: str,
        number: int,
        folder: Path,
        inputs_root: Path,
        *,
        setup: str | None = None,
        label: str = "",
        among: int | None = None,
    ) -> WorkDir:
        return WorkDir(
            node.link,
            attempt=attempt,
            number=number,
            folder=folder,
            inputs_root=inputs_root,
            cores=self._trial_cores or 1,
            env=self._lease.request.env,
            setup=setup,
            delimiters=self._delimiters,
            habits=self._habits,
            label=label,
            among=among,
        )

    def _set_up_head(self, setup: Setup) -> None:
        """Run the setup on the head node, and say so; the others see it there, or run it as well."""
        files = walk_inputs(setup.folder, setup.inputs)
        content = [(file.path, file.mode, checksum(file)) for file in files]
        name = f"setup-{hashlib.sha256(repr((content, setup.command)).encode()).hexdigest()[:12]}"
        log.info("setup: %s", setup.command.strip().splitlines()[0] if setup.command.strip() else "files")
        head = self._nodes.head
        workdir = self._workdir(head, name, 0, self._folder / "setup", setup.folder, label="the setup")
        try:
            result = self._wait_for(in_background(lambda: _set_up(workdir, head, setup), "setup"))
        except BaseException:
            workdir.stop()
            raise
        log.info("setup: done after %s", format_duration(result.seconds))
        self._setup = name

    def _prepare(self, node: TrialNode) -> None:
        """Run the setup on another node: one with the head node's files joins what has run there, and that is all."""
        setup, name = self._lease.setup, self._setup
        if setup is None or name is None:
            return
        folder, label = self._folder / "setup" / node.name, f"the setup on {node.name}"
        with node.busy():
            _set_up(self._workdir(node, name, 0, folder, setup.folder, label=label), node, setup)

    def _wait_for(self, future: Future[Result]) -> Result:
        """Return what a future gives; until then the cluster is shown that it is driven, as long as it has time."""
        while not concurrent.futures.wait([future], TURN_SECONDS).done:
            self._lease.turned()
            if self._lease.left <= timedelta(0):
                raise NoCapacity(
                    "The cluster's time is over before its setup has ended.",
                    remedy="Raise walltime in [cluster], max_cost or max_time in [study], or shorten the setup.",
                )
        return future.result()


def _set_up(workdir: WorkDir, node: TrialNode, setup: Setup) -> CommandResult:
    """Run a setup, or join it; SetupFailed. What failed is not joined: who starts again has mended something."""
    failed = workdir.folder / "failed"
    if failed.exists():
        node.link.drop(workdir.attempt).result()
        failed.unlink()
    try:
        workdir.push(*setup.inputs)
        return workdir.run(setup.command or ":")
    except AttemptLost:  # it was stopped, or killed
        failed.touch()
        raise
    except TrialFailed as error:
        failed.touch()
        raise SetupFailed(error.message, remedy=error.remedy, directory=workdir.attempt) from None
