"""One virtual job: the life of a real one, with real commands, by a clock that is handed in."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.local_platform import catalogue, fault_kinds
from persistent_runner.local_platform.cluster import Cluster
from persistent_runner.local_platform.commands import CommandRun
from persistent_runner.local_platform.durations import with_durations
from persistent_runner.rescale.api import USER_TERMINATED, ClusterStatus, JobRequest, JobStatus

if TYPE_CHECKING:
    from datetime import datetime

    from persistent_runner.local_platform.cluster import Site
    from persistent_runner.local_platform.fault_kinds import Action

_log = logging.getLogger(__name__)

_STOP = fault_kinds.Stop.model_validate({})

_FOREVER = 1e9
"""Seconds: longer than anybody waits."""


@dataclass(frozen=True)
class StatusEntry:
    """A status, when it began and why."""

    status: str
    since: datetime
    reason: str | None = None


@dataclass(frozen=True)
class _Ending:
    """How a job ends: why, whether it passes through Stopping, and whether its outputs are saved."""

    reason: str
    stopping: bool
    save: bool


_DONE = _Ending("Completed successfully", stopping=False, save=True)
_FAILED = _Ending("A run failed", stopping=True, save=True)
_STOPPED = _Ending(USER_TERMINATED, stopping=True, save=True)
_STOPPED_EARLY = _Ending(USER_TERMINATED, stopping=True, save=False)
# the platform's own words were never seen
_TOO_LONG = _Ending("Walltime exceeded", stopping=True, save=True)
# seen in a client's source, without a Stopping entry
_PREEMPTED = _Ending("Exceeded max number of restarts", stopping=False, save=False)


class VirtualJob:
    """A job from draft to Stopped. Thread-safe; `submit` starts the thread that is its life."""

    def __init__(self, job_id: str, request: JobRequest, site: Site) -> None:
        self.id = job_id
        self.request = request
        self.inserted = site.clock.now()
        self.user = f"uprod_{job_id}"
        self.statuses: list[StatusEntry] = []
        self.cluster_statuses: list[StatusEntry] = []
        self.cluster = Cluster(self, site)
        self._site = site
        self._durations = site.durations
        self._lock = threading.Lock()
        self._wake = threading.Event()  # something happened: look at what it was
        self._hurry = threading.Event()  # force stop or the end of the platform: no sync, no waits
        self._run: CommandRun | None = None
        self._stop_taken = self._stop_asked = self._forced = False
        self._actions: list[tuple[float, Action]] = []  # with their seconds after Executing
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
    def executing(self) -> bool:
        """Whether its command runs."""
        return self.submitted and self.statuses[-1].status == JobStatus.EXECUTING

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

    def submit(self) -> bool:
        """Start it; return False where it was started before."""
        with self._lock:
            if self.statuses:
                return False
            orders = self._site.faults.all_of(fault_kinds.Duration, self)
            self._durations = with_durations(self._durations, {order.status: order.seconds for order in orders})
            self.tell("submitted")
            self._record("Pending")
        self._thread.start()
        return True

    def stop(self) -> None:
        """Ask for the graceful end; nothing to do where it ends already."""
        ignored = self._site.faults.find(fault_kinds.StopIgnored, self) is not None
        self.tell("stop_asked", ignored=ignored)
        self._stop_taken = True
        if ignored:
            return
        hangs = self._site.faults.find(fault_kinds.StopHangs, self, lambda fault: fault.at == "executing")
        if hangs is None or not self.executing:
            self._stop_asked = True
        elif hangs.seconds is not None:
            with self._lock:
                self._actions.append((self._executed() + hangs.seconds, _STOP))
        self._wake.set()

    def force_stop(self) -> bool:
        """End it without saving anything; return False where `stop` was not asked for before."""
        self.tell("force_stop_asked", refused=not self._stop_taken)
        if not self._stop_taken:
            return False
        self._stop_asked = self._forced = True
        self._hasten()
        return True

    def disturb(self, action: Action) -> bool:
        """Let something happen to it now; return False where it does not execute."""
        if not self.executing:
            return False
        with self._lock:
            self._actions.append((0.0, action))
        self._wake.set()
        return True

    def abandon(self) -> None:
        """End it now, since the platform ends; returns when its last process is gone."""
        self._hasten()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self, event: str, **about: object) -> None:
        """Write what happened to it into the platform's journal."""
        self._site.journal.write(event, job=self.id, name=self.name, **about)

    def _hasten(self) -> None:
        self._hurry.set()
        self._wake.set()
        with self._lock:
            if self._run is not None:
                self._run.kill()

    # its life

    # into the journal first: whoever has read of it finds it there

    def _record(self, status: str, reason: str | None = None) -> None:
        self.tell("status", status=status, reason=reason)
        self.statuses.append(StatusEntry(status, self._site.clock.now(), reason))

    def _record_cluster(self, status: str) -> None:
        self.tell("cluster_status", status=status)
        self.cluster_statuses.append(StatusEntry(status, self._site.clock.now()))

    def _live(self) -> None:
        try:
            ending = self._start_up() or self._execute()
            if ending.stopping:
                self._record(JobStatus.STOPPING, ending.reason)
            if self._run is not None:
                self._run.end(self._durations.terminate)
        except Exception:  # noqa: BLE001 - a full disk, say: the job must end all the same
            _log.exception("job %s failed inside the platform", self.id)
            ending = _FAILED
            self._record(JobStatus.STOPPING, ending.reason)
        if ending is _STOPPED and (fault := self._site.faults.find(fault_kinds.StopHangs, self, _while_stopping)):
            self._site.clock.wait(_FOREVER if fault.seconds is None else fault.seconds, self._hurry)
        try:
            if ending.save and not self._hurry.is_set():
                self._save_outputs()
        except OSError:
            _log.exception("job %s: outputs could not be saved", self.id)
        self._go_down(ending)

    def _start_up(self) -> _Ending | None:
        """Pass through the statuses before Executing; return how it ends where it gets no further."""
        clock, seconds = self._site.clock, self._durations
        early = self._site.faults.find(fault_kinds.EndsEarly, self)
        for status, cluster_status, duration in (
            (None, None, "pending"),
            ("Waiting for Queue", None, "waiting_for_queue"),
            ("Queued", ClusterStatus.NOT_STARTED, "queued"),
            ("Started", None, "started"),
            (None, "Starting", "cluster_starting"),
            ("Validated", None, "validated"),
        ):
            if status is not None:
                self._record(status)
            if cluster_status is not None:
                self._record_cluster(cluster_status)
            clock.wait(getattr(seconds, duration), self._wake)
            if self._to_end():
                return _STOPPED_EARLY
            if early is not None and early.status == duration:
                return _Ending(early.reason, stopping=False, save=False)
        self.cluster.set_up(self.request)
        self._record_cluster("Started")
        clock.wait(seconds.cluster_started, self._wake)
        return _STOPPED_EARLY if self._to_end() else None

    def _to_end(self) -> bool:
        return self._stop_asked or self._hurry.is_set()

    def _execute(self) -> _Ending:
        """Run the commands until something ends the job; return what."""
        walltime = self._walltime_seconds()
        planned = self._site.faults.all_of(fault_kinds.Action, self)
        with self._lock:
            self._actions += [(action.after or 0.0, action) for action in planned]
        self._record(JobStatus.EXECUTING)
        self.cluster.executing()
        run = self._start_commands()
        while True:
            self._wake.clear()
            elapsed = self._executed()
            if self._to_end():
                return _STOPPED
            if run.done.is_set():
                return _FAILED if run.failed else _DONE
            if elapsed >= walltime:
                return _TOO_LONG
            action = self._due(elapsed)
            if action is None:
                with self._lock:
                    soonest = min((seconds for seconds, _ in self._actions), default=walltime)
                self._site.clock.wait(min(soonest, walltime) - elapsed, self._wake)
                continue
            self.tell("fault", what=action.what, order=action.model_dump(exclude_defaults=True))
            if isinstance(action, fault_kinds.Preempt) and action.relaunch is None:
                self._lose_machines(run)
                return _PREEMPTED
            run = self._undergo(action, run)

    def _executed(self) -> float:
        """Return for how many seconds it executes."""
        since = self.run_started
        return 0.0 if since is None else (self._site.clock.now() - since).total_seconds()

    def _due(self, elapsed: float) -> Action | None:
        with self._lock:
            for entry in self._actions:
                if entry[0] <= elapsed:
                    self._actions.remove(entry)
                    return entry[1]
        return None

    def _start_commands(self) -> CommandRun:
        variables = self.cluster.variables(self.request)
        commands = [
            (analysis.command, {**self.cluster.environment, **variables, **(analysis.env_vars or {})})
            for analysis in self.request.jobanalyses
        ]
        restart = self.cluster.restarts

        def told(event: str, code: int | None) -> None:
            self.tell(event, restart=restart, **({} if code is None else {"code": code}))

        with self._lock:
            self._run = run = CommandRun(commands, self.cluster.work, self._site.clock, told, self._wake.set)
            if self._hurry.is_set():
                run.kill()
        return run

    def _undergo(self, action: Action, run: CommandRun) -> CommandRun:
        """Let an action happen; return the run of the commands from then on."""
        head = self.cluster.machines[0].node
        if isinstance(action, fault_kinds.Preempt):
            self._lose_machines(run)
            if self._pause(action.relaunch or 0.0):
                self.cluster.restarts += 1
                self.cluster.set_up(self.request)
                self.cluster.executing()
                return self._start_commands()
        elif isinstance(action, fault_kinds.Reboot):
            run.kill()
            self.cluster.go_dark()
            run.done.wait()
            if self._pause(action.seconds):
                self.cluster.come_back()
                return self._start_commands()
        elif isinstance(action, fault_kinds.HostKey):
            head.change_key()
        elif isinstance(action, fault_kinds.Port):
            head.move()
        elif isinstance(action, fault_kinds.Ssh):
            self.cluster.disturb(action)
        elif isinstance(action, fault_kinds.Worker):
            self.cluster.lose_worker()
        elif isinstance(action, fault_kinds.Stop):
            self._stop_taken = self._stop_asked = True
        return run

    def _lose_machines(self, run: CommandRun) -> None:
        run.kill()
        self.cluster.vanish()
        run.done.wait()

    def _pause(self, seconds: float) -> bool:
        """Wait; return False where the job is to end before."""
        until = self._site.clock.now() + timedelta(seconds=seconds)
        while not self._to_end():
            left = (until - self._site.clock.now()).total_seconds()
            if left <= 0:
                return True
            self._site.clock.wait(left, self._wake)
            self._wake.clear()
        return False

    def _save_outputs(self) -> None:
        """Copy the regular files of the work folder to the stored files. What vanishes meanwhile is left out."""
        work = self.cluster.work
        for source in sorted(Path(folder, name) for folder, _, names in os.walk(work) for name in names):
            if source.is_symlink() or not source.is_file() or source.name == ".rescalepid":
                continue
            relative = source.relative_to(work).as_posix()
            try:
                self._site.files.keep_output(source, relative, self.id, self._hurry.is_set)
            except OSError as error:
                _log.warning("job %s: output %s was not saved: %s", self.id, relative, error)

    def _go_down(self, ending: _Ending) -> None:
        clock, seconds = self._site.clock, self._durations
        if ending.stopping:
            clock.wait(seconds.stopping, self._hurry)
        if self._forced:
            self._record(JobStatus.FORCE_STOP)
        self._record(JobStatus.COMPLETED, None if ending.stopping else ending.reason)
        if not self.cluster_statuses:  # a stop before the cluster was asked for: clients wait for Stopped all the same
            self._record_cluster(ClusterStatus.NOT_STARTED)
        self._record_cluster("Stop Requested")
        clock.wait(seconds.stop_requested, self._hurry)
        self._record_cluster("Stopping")
        self.cluster.power_off()
        clock.wait(seconds.cluster_stopping, self._hurry)
        self.cluster.machines = []
        self._record_cluster(ClusterStatus.STOPPED)
        self._site.finished()

    def _walltime_seconds(self) -> float:
        fault = self._site.faults.find(fault_kinds.Walltime, self)
        if fault is not None:
            return fault.seconds
        hours = [job.hardware.walltime for job in self.request.jobanalyses if job.hardware.walltime]
        return 3600.0 * max(hours, default=catalogue.MAX_JOB_HOURS)


def _while_stopping(fault: fault_kinds.StopHangs) -> bool:
    return fault.at == "stopping"
