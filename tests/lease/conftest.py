"""Leases on the local platform, whose head node is its own SSH server or OpenSSH's."""

from __future__ import annotations

import dataclasses
import json
import secrets
import socket
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from persistent_runner.lease.access import Access
from persistent_runner.lease.guard import Budget, Guard
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease
from persistent_runner.lease.naming import NAME_PREFIX
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.lease.settle import Settler, Wanted
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.local_platform.local import FAST, LocalRescale
from persistent_runner.recovery import Backoff
from persistent_runner.remote.ssh import Activity, Login, load_key
from persistent_runner.rescale.client import RescalePlatform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from persistent_runner.lease.ledger import Record
    from persistent_runner.lease.meter import Cost
    from persistent_runner.remote.node import Node
    from persistent_runner.remote.proof import Proof
    from tests.openssh import OpenSsh

QUICK = Backoff(first=0.01, most=0.05, total=30)
POLL = timedelta(seconds=0.02)
SHORT = timedelta(seconds=0.3)
LATER = timedelta(seconds=3)  # the way down of a job takes a while on a busy machine
DEADLINE = 60
ACCOUNT = "me@example.com"

TICKING = Guard(
    tick=timedelta(seconds=0.1),
    beat=timedelta(seconds=0.1),
    orphan_idle=timedelta(seconds=30),
    orphan_busy=timedelta(seconds=60),
)
"""A switch that answers at once and ends nothing within a test."""


def answers(port: int) -> bool:
    """Return whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(reached: Callable[[], object], what: str) -> None:
    """Wait until a condition holds for which there is no event."""
    deadline = time.monotonic() + DEADLINE
    while not reached():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        threading.Event().wait(0.02)


@dataclasses.dataclass
class Key:
    """An SSH key: the file of the private half, the OpenSSH line of the public one."""

    path: Path
    public: str


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """Make an Ed25519 key."""
    private = Ed25519PrivateKey.generate()
    path = tmp_path_factory.mktemp("ssh key") / "id"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return Key(path, private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " me@here")


@pytest.fixture(scope="session")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run the local platform."""
    root = tmp_path_factory.mktemp("platform")
    with LocalRescale(root, journal=root / "journal.jsonl") as platform:
        yield platform


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[LocalRescale]:
    """Run a local platform on which a job stays in the queue."""
    durations = dataclasses.replace(FAST, queued=3600)
    with LocalRescale(tmp_path / "slow platform", durations=durations, journal=tmp_path / "slow.jsonl") as platform:
        yield platform


class Leases:
    """Makes leases of one study on one platform and releases what a test has left."""

    def __init__(self, rescale: LocalRescale, key: Key, folder: Path, sshd: OpenSsh | None = None) -> None:
        self.rescale = rescale
        self.study = f"study-{secrets.token_hex(4)}"
        self.platform = RescalePlatform(rescale.base_url, rescale.api_key, backoff=QUICK)
        self.folder = folder / "ledger"
        self.ledger = self.ledger_of("runs/x")
        self.released = 0
        self.costs: list[tuple[str, Cost, bool]] = []
        self.activity = Activity()
        self._key = key
        self._sshd = sshd
        self._ssh_key = load_key(sshd.key if sshd else key.path)
        self._made: list[ClusterLease] = []
        self._clients: list[RescalePlatform] = [self.platform]

    def client(self, kind: type[RescalePlatform] = RescalePlatform) -> Any:
        """Return a client of the same platform that behaves as `kind` does and repeats nothing by itself."""
        client = kind(self.rescale.base_url, self.rescale.api_key, backoff=Backoff(first=0.01, total=0))
        self._clients.append(client)
        return client

    def ledger_of(self, folder: str, **changes: str) -> Ledger:
        """Return the user's ledger as the driver of another run folder sees it."""
        us = {"base_url": self.rescale.base_url, "profile": "local", "account": ACCOUNT, "folder": folder}
        return Ledger(self.folder, **{**us, **changes})

    def connector(self, proof: Proof) -> Callable[[Node], Any]:
        """Return the way onto the machines: by the lease's own proof, or OpenSSH in the head node's place."""
        shown = self._sshd.proof() if self._sshd else proof
        login = Login(self._ssh_key, key_name="the key", proof=shown, activity=self.activity)
        return lambda node: login.connect(self._sshd.node() if self._sshd else node)

    def access(self, **changes: Any) -> Access:
        """Return what a hold needs, with short times."""
        defaults = Access(
            self.platform,
            self.connector,
            POLL,
            self.activity.idle_seconds,
            job_url=self.rescale.base_url + "/jobs/{job_id}/",
            deadlines=Deadlines(connect=QUICK),
        )
        return dataclasses.replace(defaults, **changes)

    def request(self, **changes: Any) -> LeaseRequest:
        """Return what every test asks for, but for `changes`."""
        asked = {"core_type": "emerald", "cores": 2, "walltime": timedelta(hours=2), "public_key": self._key.public}
        return LeaseRequest(**{**asked, **changes})

    def make(
        self,
        *,
        request: LeaseRequest | None = None,
        guard: Guard | None = None,
        budget: Budget | None = None,
        ledger: Ledger | None = None,
        lease: dict[str, Any] | None = None,
        **access: Any,
    ) -> ClusterLease:
        """Return a lease; `lease` are more arguments of its own, `access` changes what stands in its Access."""

        def released() -> None:
            self.released += 1

        request = request or self.request()
        options: dict[str, Any] = {
            "study": self.study,
            "quote": self.platform.quote(request),
            "on_released": released,
            "on_cost": lambda *cost: self.costs.append(cost),
            **(lease or {}),
        }
        made = ClusterLease(
            self.access(**access), request, ledger=ledger or self.ledger, guard=guard, budget=budget, **options
        )
        self._made.append(made)
        return made

    def settler(self, ledger: Ledger | None = None, platform: Any = None) -> Settler:
        """Return what settles the records of dead drivers."""
        return Settler(
            platform or self.platform,
            ledger or self.ledger,
            POLL,
            Deadlines(connect=QUICK, unknown=LATER),
            lambda *cost: self.costs.append(cost),
        )

    def settle(self, ledger: Ledger | None = None, request: LeaseRequest | None = None) -> Record | None:
        """Settle what dead drivers left, for a lease that would ask for `request`."""
        return self.settler(ledger).settle(Wanted((request or self.request()).terms))

    def next_driver(
        self, ledger: Ledger | None = None, request: LeaseRequest | None = None, **more: Any
    ) -> ClusterLease:
        """Return the lease of a driver that starts now and settles what is there first."""
        request = request or self.request()
        more.setdefault("guard", TICKING)
        own = {**more.pop("lease", {}), "earlier": lambda: self.settle(ledger, request)}
        return self.make(request=request, ledger=ledger, lease=own, **more)

    def die(self, lease: ClusterLease) -> None:
        """Leave a lease as a driver that was killed does: no word to anybody, its lock free."""
        lease.hold.close_connection()
        lease.hold._record.let_go()
        lease._exit_guard.remove()

    # -- what the platform says

    def fault(self, what: str, **options: Any) -> str:
        """Order a fault of this study's jobs."""
        return self.rescale.faults.add(what, job=f"{NAME_PREFIX}{self.study}-*", **options)

    def cluster_of(self, lease: ClusterLease) -> str:
        """Return what the platform itself says: `gone` for a deleted job, else whether it has stopped."""
        found = self.platform.find(lease.name) if lease.name else []
        if not found:
            return "gone"
        return "stopped" if self.platform.state(found[0]).stopped else "running"

    def has_stopped(self, lease: ClusterLease) -> bool:
        """Wait until the platform says that a job which never had a cluster has stopped: it says more after its end."""
        until(lambda: self.cluster_of(lease) == "stopped", "Stopped")
        return True

    def jobs(self) -> list[str]:
        """Return the ids of the study's jobs, the oldest first."""
        return [row.job_id for row in self.platform.jobs(f"{NAME_PREFIX}{self.study}-")][::-1]

    def journal(self, *events: str) -> list[dict[str, Any]]:
        """Return the platform's own record of this study's jobs, of these events or all."""
        path = self.rescale._journal_path
        assert path is not None
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        ours = [line for line in lines if str(line.get("name", "")).startswith(f"{NAME_PREFIX}{self.study}-")]
        return [line for line in ours if not events or line["event"] in events]

    def most_at_a_time(self) -> int:
        """Return how many of the study's jobs were submitted and not Stopped at the same time, at most."""
        most, open_ = 0, set[str]()
        for line in self.journal("submitted", "cluster_status"):
            if line["event"] == "submitted":
                open_.add(line["job"])
            elif line["status"] == "Stopped":
                open_.discard(line["job"])
            most = max(most, len(open_))
        return most

    def close(self) -> None:
        """End what is left."""
        self.rescale.faults.clear()
        for lease in self._made:
            lease._exit_guard.remove()
            if lease._hold is not None:
                lease.hold.close_connection()
        for job_id in self.jobs():
            state = self.platform.state(job_id)
            if state.submitted and not state.ended:
                self.platform.stop(job_id)
        for client in self._clients:
            client.close()


@pytest.fixture(params=["local platform", "openssh"])
def leases(request: pytest.FixtureRequest, rescale: LocalRescale, key: Key, tmp_path: Path) -> Iterator[Leases]:
    """Make leases on the local platform, with either SSH server as the head node."""
    made = Leases(rescale, key, tmp_path, request.getfixturevalue("sshd") if request.param == "openssh" else None)
    yield made
    made.close()


@pytest.fixture
def local(rescale: LocalRescale, key: Key, tmp_path: Path) -> Iterator[Leases]:
    """Make leases on the local platform, whose machines are its own."""
    made = Leases(rescale, key, tmp_path)
    yield made
    made.close()


@pytest.fixture
def queued(slow: LocalRescale, key: Key, tmp_path: Path) -> Iterator[Leases]:
    """Make leases whose jobs stay in the queue."""
    made = Leases(slow, key, tmp_path)
    yield made
    made.close()
