"""Trials onto nodes: the way onto the cluster, the setup once per lease, a folder and a thread for each trial."""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import threading
import time
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from persistent_runner.background import in_background
from persistent_runner.duration import format_duration
from persistent_runner.errors import NoCapacity, RunnerError, SetupFailed, TrialFailed
from persistent_runner.inputs import checksum, walk_inputs
from persistent_runner.remote.by_hand import ssh_line
from persistent_runner.remote.habits import Habits
from persistent_runner.remote.link import Link
from persistent_runner.remote.workdir import WorkDir
from persistent_runner.spread import machines_of, span_of, trials_at_a_time, warn_of_unreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.remote.workdir import CommandResult
    from persistent_runner.render import Delimiters

log = logging.getLogger(__name__)

TURN_SECONDS = 0.5
CLOSE_SECONDS = 5.0  # for the threads of all trials to see that their link is gone

Result = TypeVar("Result")


class Pool:
    """The head node of a lease as a place where trials run, several at a time.

    `run` names this run's folder on the node, `folder` is where results are kept here, `inputs_root` is what pushed
    paths are relative to. `trial_cores` None means all cores of the node: one trial at a time. Open it before the first
    trial. With `queues`, for trials of one command each, more than `capacity` may be submitted: the others wait on the
    node, and each starts there the moment that one ends.
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
        self._running: dict[WorkDir, threading.Thread] = {}
        self._setup: str | None = None
        self._run = run
        self.capacity = 0
        self.node = ""
        self._root = ""
        self._link = self._new_link()

    def _new_link(self) -> Link:
        lease = self._lease
        return Link(
            lease.connect,
            run=self._run,
            lease=lease.name,
            node=lease.head_node.instance_id,
            check=lease.check_machines,
        )

    def renew(self, finished: int, needs_seconds: float) -> None:
        """Replace a cluster that was lost or is near its end; see `ClusterLease.renew`. It is to be opened then."""
        self.close()
        self._lease.renew(finished, timedelta(seconds=needs_seconds))
        self._setup = None
        self._link = self._new_link()

    @property
    def round_trip(self) -> float:
        """How many seconds the way to the cluster and back takes."""
        return self._link.round_trip

    @property
    def where(self) -> str:
        """The machine that trials start on, among all of all leases."""
        head = self._lease.head_node
        return f"{self._lease.name} {head.instance_id} {head.started}"

    def way_in(self, directory: str) -> str:
        """Return the line for a person who wants to look into a directory of this run, such as an attempt's."""
        return ssh_line(self._lease.connection, f"{self._root}/{directory}", self._folder / "known_hosts")

    @property
    def seconds_left(self) -> float:
        """How long the cluster is there for."""
        return self._lease.left.total_seconds()

    def open(self) -> None:
        """Start the agent and run the setup; raises what keeps either from working.

        NoCapacity where the cluster's time ends before the setup does. The main loop counts as turning meanwhile.
        """
        lease, cores = self._lease, self._lease.cores_per_node
        trial_cores = self._trial_cores = self._trial_cores or lease.request.cores
        self.capacity = trials_at_a_time(lease.quote.nodes, cores, trial_cores, self._max_concurrent)
        span = span_of(lease, trial_cores, cores)
        hello = self._link.open(span)
        self.node = hello.host
        self._root = hello.root
        if hello.cores < cores:
            log.warning(
                "%s has %d cores, and the platform counts %d: what runs there shares them",
                hello.host,
                hello.cores,
                cores,
            )
        if span is not None:
            machines = machines_of(trial_cores, cores)
            idle = machines * cores - trial_cores
            log.info("a trial takes %d whole machines%s", machines, f", {idle} cores of them are idle" if idle else "")
            workdir = self._workdir("machines", 0, self._folder / "machines", self._folder, "a look at the machines")
            self._wait_for(in_background(lambda: warn_of_unreachable(workdir, span.workers), "machines"))
        elif lease.quote.nodes > 1:
            log.warning("the cluster has %d nodes; trials this small run on the head node only", lease.quote.nodes)
        self._run_setup()

    def submit(self, number: int, attempt: int, task: Callable[[WorkDir], Result]) -> Future[Result]:
        """Run `task` in a thread with the working directory of a trial's attempt; the future gives what it returns."""
        folder = self._folder / "trials" / f"{number:05d}"
        among = self.capacity if self.queues else None
        workdir = self._workdir(f"{number:05d}.{attempt}", number, folder, self._inputs_root, among=among)
        future: Future[Result] = Future()

        def work() -> None:
            try:
                result = task(workdir)
                workdir.check()  # what an objective that hid a fault of the machine returns is no result
            except TrialFailed as error:
                future.set_exception(self._fault_of_a_machine() or error)
            except BaseException as error:  # noqa: BLE001 - the future carries it
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                with self._lock:
                    del self._running[workdir]

        with self._lock:
            self._running[workdir] = thread = threading.Thread(target=work, name=f"trial {number}", daemon=True)
            thread.start()
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
        """Say that all of an attempt is safe here: its directory on the node is deleted."""
        self._link.drop(f"{number:05d}.{attempt}")

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
        """End the agent. What still runs on the node goes on; its futures fail with ConnectionLost."""
        self._link.close()
        with self._lock:
            threads = list(self._running.values())
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads:  # objectives that compute for long are not waited for
            thread.join(max(0.0, until - time.monotonic()))

    def _workdir(
        self,
        attempt: str,
        number: int,
        folder: Path,
        inputs_root: Path,
        label: str = "",
        *,
        among: int | None = None,
    ) -> WorkDir:
        return WorkDir(
            self._link,
            attempt=attempt,
            number=number,
            folder=folder,
            inputs_root=inputs_root,
            cores=self._trial_cores or 1,
            env=self._lease.request.env,
            setup=self._setup,
            delimiters=self._delimiters,
            habits=self._habits,
            label=label,
            among=among,
        )

    def _run_setup(self) -> None:
        setup = self._lease.setup
        if setup is None:
            return
        files = walk_inputs(setup.folder, setup.inputs)
        content = [(file.path, file.mode, checksum(file)) for file in files]
        digest = hashlib.sha256(repr((content, setup.command)).encode()).hexdigest()[:12]
        workdir = self._workdir(f"setup-{digest}", 0, self._folder / "setup", setup.folder, "the setup")
        # what failed is not joined, as one that runs would be: who starts again has mended something
        failed = self._folder / "setup" / "failed"
        if failed.exists():
            self._link.drop(workdir.attempt).result()
            failed.unlink()
        log.info("setup: %s", setup.command.strip().splitlines()[0] if setup.command.strip() else "files")

        def run() -> CommandResult:
            workdir.push(*setup.inputs)
            return workdir.run(setup.command or ":")

        try:
            result = self._wait_for(in_background(run, "setup"))
        except TrialFailed as error:
            failed.touch()
            raise SetupFailed(error.message, remedy=error.remedy, directory=workdir.attempt) from None
        except BaseException:
            workdir.stop()
            raise
        log.info("setup: done after %s", format_duration(result.seconds))
        self._setup = workdir.attempt

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
