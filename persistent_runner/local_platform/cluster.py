"""The machines of a virtual job: their home folder, their SSH servers, what their processes see, and their end."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from persistent_runner.local_platform import catalogue, processes
from persistent_runner.local_platform.between import let_log_in, mpi_on_one_machine
from persistent_runner.local_platform.fault_kinds import LateSsh, OwnHomes, Ssh
from persistent_runner.local_platform.files import new_id, place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from persistent_runner.local_platform.clock import Clock
    from persistent_runner.local_platform.durations import Durations
    from persistent_runner.local_platform.faults import Faults
    from persistent_runner.local_platform.files import FileStore
    from persistent_runner.local_platform.job import VirtualJob
    from persistent_runner.local_platform.journal import Journal
    from persistent_runner.rescale.api import JobRequest

_log = logging.getLogger(__name__)


class Node(Protocol):
    """An SSH server that plays a machine. Times are in seconds of this machine's clock; None is without end."""

    port: int
    host_key: str

    def close(self) -> None:
        """End it and its connections."""

    def drop(self) -> None:
        """End its connections."""

    def refuse(self, seconds: float | None) -> None:
        """Refuse new connections."""

    def refuse_logins(self, seconds: float | None) -> None:
        """Refuse every key."""

    def blackhole(self, seconds: float) -> None:
        """Let no byte through, in no connection."""

    def change_key(self) -> None:
        """Take another host key."""

    def move(self) -> None:
        """Go to another port."""


@dataclass(frozen=True)
class Site:
    """What all jobs of a platform share.

    `path` is the PATH of the nodes; `open_node(job, home, environment)` starts the SSH server of one more machine of a
    job; `finished` is called when a job has ended for good.
    """

    root: Path
    clock: Clock
    durations: Durations
    files: FileStore
    path: str
    base_url: str
    api_key: str
    open_node: Callable[[VirtualJob, Path, Mapping[str, str]], Node]
    finished: Callable[[], None]
    faults: Faults
    journal: Journal


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster as `instances/` shows it; `private_ip` is a name that the SSH servers alone know."""

    id: str
    role: str
    private_hostname: str
    private_ip: str
    started: datetime
    node: Node


class Cluster:
    """The machines of one job. `restarts` counts how often the platform has put new ones in their place."""

    def __init__(self, job: VirtualJob, site: Site) -> None:
        self.id = new_id()
        self.folder = site.root / "jobs" / job.id
        self.home = self.folder / "home"
        self.work = self.home / "work"
        self.programs = self.folder / "bin"
        self.machines: list[Machine] = []
        self.restarts = 0
        self._job = job
        self._site = site
        self._marker = f"{job.id}-{site.api_key[:8]}"
        self._late: list[LateSsh] = []

    @property
    def environment(self) -> dict[str, str]:
        """What every process of its head node gets; `RESCALE_*` comes with the login shell."""
        return self._environment(self.home, self.machines[0].private_hostname)

    def _environment(self, home: Path, machine: str) -> dict[str, str]:
        several = mpi_on_one_machine() if _geometry(self._job.request)[0] > 1 else {}
        common = processes.base_environment(home, self._job.user, self._path, self._marker)
        return common | several | {processes.MACHINE: f"{self._marker}-{machine}"}

    @property
    def _path(self) -> str:
        return f"{self.programs}:{self._site.path}"

    @property
    def _shared(self) -> Path:
        """Where trials run: of several machines in the folder that all of them see."""
        return self._work_of(self.home)

    def _work_of(self, home: Path) -> Path:
        return home / "work" if _geometry(self._job.request)[0] == 1 else home / "work" / "shared"

    def set_up(self, request: JobRequest) -> None:
        """Make the home folder with inputs and login profile, and open the machines."""
        self.work.mkdir(mode=0o755, parents=True)
        for analysis in request.jobanalyses:
            for given in analysis.input_files:
                stored = self._site.files.get(given.id)
                if stored is None:
                    raise FileNotFoundError(f"input file {given.id} was deleted")
                place(stored, self.work, decompress=given.decompress)
        self._shared.mkdir(exist_ok=True)
        nodes, _ = _geometry(request)
        self._late = self._site.faults.all_of(LateSsh, self._job)
        own_homes = self._site.faults.find(OwnHomes, self._job) is not None
        homes = [self.folder / f"home{number}" if number and own_homes else self.home for number in range(nodes)]
        for number, home in enumerate(homes):
            role = "CUSTOM" if nodes == 1 else "MPI_SLAVE" if number else "MPI_MASTER"
            machine_id = new_id()
            name = f"node{number}-{self._job.id.lower()}" + (f"-{machine_id.lower()}" if self.restarts else "")
            home.mkdir(exist_ok=True)
            node = self._site.open_node(self._job, home, self._environment(home, name))
            for fault in self._late:
                (node.refuse_logins if fault.login else node.refuse)(None)
            self.machines.append(Machine(machine_id, role, name, f"10.0.0.{10 + number}", self._site.clock.now(), node))
            keys = self.folder / f"ssh{number}"
            keys.mkdir()
            (keys / "ssh_host_ed25519_key.pub").write_text(f"{node.host_key}\n", encoding="utf-8")
        if nodes > 1:
            let_log_in(self.home, self.programs, self._job.user, self.machines)
        own = {name: value for job in request.jobanalyses for name, value in (job.env_vars or {}).items()}
        for home in dict.fromkeys(homes):
            self._work_of(home).mkdir(parents=True, exist_ok=True)
            of_home = {"PATH": self._path, **self.variables(request), "RESCALE_WORK_PATH": str(self._work_of(home))}
            processes.write_login_profile(home, of_home | own)
        self._site.journal.write(
            "machines_up",
            job=self._job.id,
            name=self._job.name,
            instances=[machine.id for machine in self.machines],
            ports=[machine.node.port for machine in self.machines],
        )

    def executing(self) -> None:
        """Let the time run after which a late SSH server answers."""
        for fault in self._late:
            for machine in self.machines:
                (machine.node.refuse_logins if fault.login else machine.node.refuse)(fault.seconds)

    def _end_processes(self) -> None:
        """Kill every process of the machines."""
        if not processes.end_all(self._marker):
            _log.error("job %s: some of its processes cannot be killed", self._job.id)

    def power_off(self) -> None:
        """End the machines with their connections and processes, and remove what was on them; they are still shown."""
        self._end(self.machines)

    def vanish(self) -> None:
        """As `power_off`, and from the first moment there is no machine to be seen."""
        gone, self.machines = self.machines, []
        self._end(gone)

    def _end(self, machines: list[Machine]) -> None:
        for machine in machines:
            machine.node.close()
        self._end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)
        if machines:
            self._site.journal.write("machines_gone", job=self._job.id, name=self._job.name)

    def lose_worker(self) -> None:
        """End the last machine, where there is another one than the head node."""
        if len(self.machines) > 1:
            lost = self.machines.pop()
            lost.node.close()
            processes.end_all(f"{self._marker}-{lost.private_hostname}", processes.MACHINE)

    def go_dark(self) -> None:
        """End all connections and processes and take no connection; the machines stay what they are."""
        for machine in self.machines:
            machine.node.refuse(None)
            machine.node.drop()
        self._end_processes()

    def come_back(self) -> None:
        """Take connections again."""
        for machine in self.machines:
            machine.node.refuse(0)

    def disturb(self, fault: Ssh) -> None:
        """Let a fault of SSH happen to the machines that it means."""
        for machine in self.machines if fault.machine is None else self.machines[fault.machine :][:1]:
            if fault.do == "drop":
                machine.node.drop()
            elif fault.do == "refuse":
                machine.node.refuse(fault.seconds)
            elif fault.do == "login":
                machine.node.refuse_logins(fault.seconds)
            else:
                machine.node.blackhole(fault.seconds)

    def variables(self, request: JobRequest) -> dict[str, str]:
        """Return `RESCALE_*` as a command on the cluster sees them (names: published lists and logs)."""
        hardware = request.jobanalyses[0].hardware
        nodes, per_node = _geometry(request)
        variables: dict[str, Any] = {
            "RESCALE_JOB_ID": self._job.id,
            "RESCALE_CLUSTER_ID": self.id,
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
            "RESCALE_WORK_PATH": self._shared,
            "RESCALE_IG_RESTART_COUNT": self.restarts,
            "RESCALE_API_KEY": self._site.api_key,
            "RESCALE_API_BASE_URL": self._site.base_url,
            # where this machine's host key is to be read: /etc/ssh is that of the whole machine here
            "PERSISTENT_RUNNER_HOST_KEYS": self.folder / "ssh0",
        }
        return {name: str(value) for name, value in variables.items()}


def _geometry(request: JobRequest) -> tuple[int, int]:
    """Return the number of machines and the cores of each."""
    hardware = request.jobanalyses[0].hardware
    machine = catalogue.core_type(hardware.core_type)
    assert machine is not None
    per_node = min(hardware.cores_per_slot, machine["cores"][-1])
    return hardware.cores_per_slot // per_node, per_node
