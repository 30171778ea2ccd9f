"""One virtual job: the life of a real one, with real commands, by a clock that is handed in."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from persistent_runner.local_platform import catalogue, processes
from persistent_runner.local_platform.files import new_id, place
from persistent_runner.rescale.api import USER_TERMINATED, ClusterStatus, JobRequest, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from persistent_runner.local_platform.clock import Clock
    from persistent_runner.local_platform.files import FileStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Durations:
    """Seconds that a job stays in each status, in the order of the statuses.

    `terminate` is the longest time that a command gets between SIGTERM and SIGKILL.
    """

    pending: float
    waiting_for_queue: float
    queued: float
    started: float
    cluster_starting: float
    validated: float
    cluster_started: float
    terminate: float
    stopping: float
    stop_requested: float
    cluster_stopping: float


FAST = Durations(0.05, 0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 1.0, 0.05, 0.05, 0.05)
"""For tests and first steps: under a second until Executing."""

RECORDED = Durations(15, 45, 5, 10, 15, 430, 11, 30, 2, 5, 40)
"""As recorded on the platform in 2016 and 2023: about 60 s Pending and waiting, 8-9 min until Executing, 45 s stop."""


class Node(Protocol):
    """An SSH server that plays a machine."""

    port: int
    host_key: str

    def close(self) -> None:
        """End it and its connections."""


@dataclass(frozen=True)
class Site:
    """What all jobs of a platform share.

    `path` is the PATH of the nodes; `open_node` starts the SSH server of one more machine of a job; `finished` is
    called when a job has ended for good.
    """

    root: Path
    clock: Clock
    durations: Durations
    files: FileStore
    path: str
    base_url: str
    api_key: str
    open_node: Callable[[VirtualJob], Node]
    finished: Callable[[], None]


@dataclass(frozen=True)
class StatusEntry:
    """A status, when it began and why."""

    status: str
    since: datetime
    reason: str | None = None


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster as `instances/` shows it."""

    id: str
    role: str
    private_hostname: str
    started: datetime
    node: Node


class VirtualJob:
    """A job from draft to Stopped. Thread-safe; `submit` starts the thread that is its life."""

    def __init__(self, job_id: str, request: JobRequest, site: Site) -> None:
        self.id = job_id
        self.request = request
        self.inserted = site.clock.now()
        self.cluster_id = new_id()
        self.user = f"uprod_{job_id}"
        self.folder = site.root / "jobs" / job_id
        self.home = self.folder / "home"
        self.work = self.home / "work"
        self.statuses: list[StatusEntry] = []
        self.cluster_statuses: list[StatusEntry] = []
        self.machines: list[Machine] = []
        self._site = site
        self._marker = f"{job_id}-{site.api_key[:8]}"
        self._lock = threading.Lock()
        self._wake = threading.Event()  # ends the wait of start-up or of the command
        self._hurry = threading.Event()  # force stop or the end of the platform: no sync, no waits
        self._command: processes.LoggedCommand | None = None
        self._stop_asked = self._forced = self._failed = self._ending = False
        self._thread = threading.Thread(target=self._live, name=f"job-{job_id}", daemon=True)

    # what can be asked of it

    @property
    def name(self) -> str:
        """Its name; not unique."""
        return self.request.name

    @property
    def submitted(self) -> bool:
        """Whether it was handed in."""
        return bool(self.statuses)

    @property
    def completed(self) -> bool:
        """Whether its command is over for good."""
        return self.submitted and self.statuses[-1].status == JobStatus.COMPLETED

    @property
    def stopped(self) -> bool:
        """Whether its machines are gone."""
        return bool(self.cluster_statuses) and self.cluster_statuses[-1].status == ClusterStatus.STOPPED

    @property
    def running(self) -> bool:
        """Whether its run is in progress: live files can be read."""
        return self.run_started is not None and not self.completed

    @property
    def run_started(self) -> datetime | None:
        """When its command was started, None before."""
        return next((entry.since for entry in self.statuses if entry.status == JobStatus.EXECUTING), None)

    @property
    def environment(self) -> dict[str, str]:
        """What every process of its machines gets; `RESCALE_*` comes with the login shell."""
        return processes.base_environment(self.home, self.user, self._site.path, self._marker)

    def submit(self) -> bool:
        """Start it; return False where it was started before."""
        with self._lock:
            if self.statuses:
                return False
            self._record("Pending")
        self._thread.start()
        return True

    def stop(self) -> None:
        """Ask for the graceful end; nothing to do where it ends already."""
        self._stop_asked = True
        self._wake.set()

    def force_stop(self) -> bool:
        """End it without saving anything; return False where `stop` was not asked for before."""
        if not self._stop_asked:
            return False
        self._forced = True
        self._hasten()
        return True

    def abandon(self) -> None:
        """End it now, since the platform ends; returns when its last process is gone."""
        self._hasten()
        if self._thread.is_alive():
            self._thread.join()

    def _hasten(self) -> None:
        self._hurry.set()
        self._wake.set()
        with self._lock:
            if self._command is not None:
                self._command.send(signal.SIGKILL)

    # its life

    def _record(self, status: str, reason: str | None = None) -> None:
        self.statuses.append(StatusEntry(status, self._site.clock.now(), reason))

    def _record_cluster(self, status: str) -> None:
        self.cluster_statuses.append(StatusEntry(status, self._site.clock.now()))

    def _live(self) -> None:
        reason = None
        try:
            reason = self._end_of_life()
        except Exception:  # noqa: BLE001 - a full disk, say: the job must end all the same
            _log.exception("job %s failed inside the platform", self.id)
            reason = "A run failed"
            self._record(JobStatus.STOPPING, reason)
        try:
            if self._ending and not self._hurry.is_set():
                self._save_outputs()
        except OSError:
            _log.exception("job %s: outputs could not be saved", self.id)
        self._go_down(reason)

    def _end_of_life(self) -> str | None:
        """Start up and execute; return the reason of the Stopping entry, None after success."""
        if not self._start_up():
            self._record(JobStatus.STOPPING, USER_TERMINATED)
            return USER_TERMINATED
        self._record(JobStatus.EXECUTING)
        done = threading.Event()
        threading.Thread(target=self._run_commands, args=(done,), name=f"commands-{self.id}", daemon=True).start()
        interrupted = self._site.clock.wait(self._walltime_seconds(), self._wake)
        with self._lock:
            self._ending = True
        reason = None
        if self._stop_asked or self._hurry.is_set():
            reason = USER_TERMINATED
        elif not interrupted:
            reason = "Walltime exceeded"  # the platform's own words were never seen
        elif self._failed:
            reason = "A run failed"
        if reason is not None:
            self._record(JobStatus.STOPPING, reason)
        self._end_command(done)
        return reason

    def _start_up(self) -> bool:
        """Pass through the statuses before Executing; return False where a stop ended that."""
        clock, seconds = self._site.clock, self._site.durations
        for status, cluster_status, duration in (
            (None, None, seconds.pending),
            ("Waiting for Queue", None, seconds.waiting_for_queue),
            ("Queued", ClusterStatus.NOT_STARTED, seconds.queued),
            ("Started", None, seconds.started),
            (None, "Starting", seconds.cluster_starting),
            ("Validated", None, seconds.validated),
        ):
            if status is not None:
                self._record(status)
            if cluster_status is not None:
                self._record_cluster(cluster_status)
            if clock.wait(duration, self._wake):
                return False
        self._prepare()
        self._record_cluster("Started")
        return not clock.wait(seconds.cluster_started, self._wake)

    def _prepare(self) -> None:
        """Make the home folder with inputs and login profile, and open the machines."""
        self.work.mkdir(mode=0o755, parents=True)
        for analysis in self.request.jobanalyses:
            for given in analysis.input_files:
                stored = self._site.files.get(given.id)
                if stored is None:
                    raise FileNotFoundError(f"input file {given.id} was deleted")
                place(stored, self.work, decompress=given.decompress)
        nodes, _ = self._geometry()
        for number in range(nodes):
            role = "CUSTOM" if nodes == 1 else "MPI_SLAVE" if number else "MPI_MASTER"
            node = self._site.open_node(self)
            name = f"node{number}-{self.id.lower()}"
            self.machines.append(Machine(new_id(), role, name, self._site.clock.now(), node))
            keys = self.folder / f"ssh{number}"
            keys.mkdir()
            (keys / "ssh_host_ed25519_key.pub").write_text(f"{node.host_key}\n", encoding="utf-8")
        own = {name: value for job in self.request.jobanalyses for name, value in (job.env_vars or {}).items()}
        processes.write_login_profile(self.home, {"PATH": self._site.path, **self._cluster_variables(), **own})

    def _run_commands(self, done: threading.Event) -> None:
        try:
            for analysis in self.request.jobanalyses:
                environment = {**self.environment, **self._cluster_variables(), **(analysis.env_vars or {})}
                with self._lock:
                    if self._ending or self._hurry.is_set():
                        return
                    self._command = processes.LoggedCommand(analysis.command, self.work, environment, self._site.clock)
                if self._command.wait() != 0:
                    self._failed = True
                    return
        except Exception:  # noqa: BLE001 - the end of the commands must be seen in any case
            _log.exception("job %s: a command could not be run", self.id)
            self._failed = True
        finally:
            done.set()
            self._wake.set()

    def _end_command(self, done: threading.Event) -> None:
        command = self._command
        if command is not None and not done.is_set():
            command.send(signal.SIGTERM)
            if not done.wait(self._site.durations.terminate):
                command.send(signal.SIGKILL)
        done.wait()

    def _save_outputs(self) -> None:
        """Copy the regular files of the work folder to the stored files. What vanishes meanwhile is left out."""
        for source in sorted(self.work.rglob("*")):
            if source.is_symlink() or not source.is_file() or source.name == ".rescalepid":
                continue
            relative = source.relative_to(self.work).as_posix()
            try:
                self._site.files.keep_output(source, relative, self.id, self._hurry.is_set)
            except OSError as error:
                _log.warning("job %s: output %s was not saved: %s", self.id, relative, error)

    def _go_down(self, reason: str | None) -> None:
        clock, seconds = self._site.clock, self._site.durations
        if reason is not None:
            clock.wait(seconds.stopping, self._hurry)
        if self._forced:
            self._record(JobStatus.FORCE_STOP)
        self._record(JobStatus.COMPLETED, None if reason else "Completed successfully")
        if not self.cluster_statuses:  # a stop before the cluster was asked for: clients wait for Stopped all the same
            self._record_cluster(ClusterStatus.NOT_STARTED)
        self._record_cluster("Stop Requested")
        clock.wait(seconds.stop_requested, self._hurry)
        self._record_cluster("Stopping")
        for machine in self.machines:
            machine.node.close()
        if not processes.end_all(self._marker):
            _log.error("job %s: some of its processes cannot be killed", self.id)
        shutil.rmtree(self.folder, ignore_errors=True)
        clock.wait(seconds.cluster_stopping, self._hurry)
        self.machines = []
        self._record_cluster(ClusterStatus.STOPPED)
        self._site.finished()

    # what its commands see

    def _walltime_seconds(self) -> float:
        hours = [job.hardware.walltime for job in self.request.jobanalyses if job.hardware.walltime]
        return 3600.0 * max(hours, default=catalogue.MAX_JOB_HOURS)

    def _geometry(self) -> tuple[int, int]:
        """Return the number of machines and the cores of each."""
        hardware = self.request.jobanalyses[0].hardware
        machine = catalogue.core_type(hardware.core_type)
        assert machine is not None
        per_node = min(hardware.cores_per_slot, machine["cores"][-1])
        return hardware.cores_per_slot // per_node, per_node

    def _cluster_variables(self) -> dict[str, str]:
        """Return `RESCALE_*` as a command on the cluster sees them (names: published lists and logs)."""
        hardware = self.request.jobanalyses[0].hardware
        nodes, per_node = self._geometry()
        variables: dict[str, Any] = {
            "RESCALE_JOB_ID": self.id,
            "RESCALE_CLUSTER_ID": self.cluster_id,
            "INSTANCE_ID": self.machines[0].id,
            "RESCALE_CORES_PER_SLOT": hardware.cores_per_slot,
            "RESCALE_CORES_PER_NODE": per_node,
            "RESCALE_NODES_PER_SLOT": nodes,
            "RESCALE_SLOTS_PER_NODE": 1,
            "RESCALE_THREADS_PER_SLOT": hardware.cores_per_slot,
            "RESCALE_THREADS_PER_NODE": per_node,
            "RESCALE_GPUS_PER_SLOT": 0,
            "RESCALE_GPUS_PER_NODE": 0,
            "RESCALE_CORE_TYPE": hardware.core_type,
            "RESCALE_PROVIDER": "local",
            "RESCALE_INTERCONNECT": "ethernet",
            "RESCALE_PREFERRED_REMSH": "ssh",
            "RESCALE_WORK_PATH": self.work,
            "RESCALE_IG_RESTART_COUNT": 0,
            "RESCALE_API_KEY": self._site.api_key,
            "RESCALE_API_BASE_URL": self._site.base_url,
            # where this machine's host key is to be read: /etc/ssh is that of the whole machine here
            "PERSISTENT_RUNNER_HOST_KEYS": self.folder / "ssh0",
        }
        return {name: str(value) for name, value in variables.items()}
