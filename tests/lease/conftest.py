"""Leases on the local platform, whose head node is its own SSH server or OpenSSH's."""

from __future__ import annotations

import dataclasses
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease, lease_name
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.local_platform.local import FAST, LocalRescale
from persistent_runner.recovery import Backoff
from persistent_runner.remote.ssh import Login, load_key
from persistent_runner.rescale.client import RescalePlatform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.remote.node import Node
    from tests.openssh import OpenSsh

QUICK = Backoff(first=0.01, most=0.05, total=30)
POLL = timedelta(seconds=0.02)


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
    with LocalRescale(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[LocalRescale]:
    """Run a local platform on which a job stays in the queue."""
    with LocalRescale(tmp_path / "slow platform", durations=dataclasses.replace(FAST, queued=3600)) as platform:
        yield platform


class Leases:
    """Makes leases on one platform and releases what a test has left."""

    def __init__(self, rescale: LocalRescale, key: Key, folder: Path, sshd: OpenSsh | None = None) -> None:
        self.rescale = rescale
        self.platform = RescalePlatform(rescale.base_url, rescale.api_key, backoff=QUICK)
        self.ledger = Ledger(folder / "ledger", base_url=rescale.base_url, profile="local", folder="runs/x")
        self.released = 0
        self._key = key
        self._sshd = sshd
        self._login = Login(load_key(sshd.key if sshd else key.path), key_name=str(key.path))
        self._made: list[ClusterLease] = []

    def connect(self, node: Node) -> Any:
        return self._login.connect(self._sshd.node() if self._sshd else node)

    def request(self, **changes: Any) -> LeaseRequest:
        return LeaseRequest(
            **{
                "name": lease_name("study"),
                "command": "echo on the node; sleep 3600",
                "core_type": "emerald",
                "cores": 2,
                "walltime": timedelta(hours=2),
                "public_key": self._key.public,
                **changes,
            }
        )

    def make(self, *, platform: Any = None, request: LeaseRequest | None = None, **options: Any) -> ClusterLease:
        def released() -> None:
            self.released += 1

        defaults = {
            "connect": self.connect,
            "poll": POLL,
            "ledger": self.ledger,
            "on_released": released,
            "deadlines": Deadlines(connect=QUICK),
            "job_url": self.rescale.base_url + "/jobs/{job_id}/",
            "stop": threading.Event(),
        }
        lease = ClusterLease(platform or self.platform, request or self.request(), **{**defaults, **options})
        self._made.append(lease)
        return lease

    def cluster_of(self, lease: ClusterLease) -> str:
        """Return what the platform itself says: `gone` for a deleted job, else whether it has stopped."""
        if not self.platform.find(lease.request.name):
            return "gone"
        return "stopped" if self.platform.state(lease.job_id).stopped else "running"

    def close(self) -> None:
        for lease in self._made:
            if lease.job_id and self.cluster_of(lease) == "running":
                self.platform.stop(lease.job_id)
        self.platform.close()


@pytest.fixture(params=["local platform", "openssh"])
def leases(request: pytest.FixtureRequest, rescale: LocalRescale, key: Key, tmp_path: Path) -> Iterator[Leases]:
    """Make leases on the local platform, with either SSH server as the head node."""
    made = Leases(rescale, key, tmp_path, request.getfixturevalue("sshd") if request.param == "openssh" else None)
    yield made
    made.close()


@pytest.fixture
def queued(slow: LocalRescale, key: Key, tmp_path: Path) -> Iterator[Leases]:
    """Make leases whose jobs stay in the queue."""
    made = Leases(slow, key, tmp_path)
    yield made
    made.close()
