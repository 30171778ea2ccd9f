"""Leases and pools on a local platform, for tests of what runs on them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import paramiko

from persistent_runner.lease.access import Access
from persistent_runner.lease.guard import Guard
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.pool import Pool
from persistent_runner.remote.ssh import Activity, Login, public_line
from persistent_runner.rescale.client import RescalePlatform

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from persistent_runner.lease.cluster import Setup
    from persistent_runner.local_platform.local import LocalRescale
    from persistent_runner.remote.node import Node
    from persistent_runner.remote.proof import Proof

DEADLINE = 30.0  # seconds
POLL = timedelta(seconds=0.02)


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Pools:
    """Leases clusters and opens pools on them; ends all of them.

    `instead` gives connections to another machine in the place of the head node, which has no dead-man's switch then.
    """

    def __init__(self, rescale: LocalRescale, folder: Path, instead: Callable[[Node], Any] | None = None) -> None:
        self.rescale = rescale
        self.platform = RescalePlatform(rescale.base_url, rescale.api_key)
        self.folder = folder / "a {b} $c 'é\" d"
        self.folder.mkdir()
        self._key = paramiko.ECDSAKey.generate()
        self._instead = instead
        self._pools: list[Pool] = []
        self._leases: list[ClusterLease] = []

    def lease(
        self,
        setup: Setup | None = None,
        *,
        core_type: str = "emerald",
        cores: int = 2,
        env: Any = None,
        walltime: timedelta = timedelta(hours=1),
        **options: Any,
    ) -> ClusterLease:
        request = LeaseRequest(
            core_type=core_type,
            cores=cores,
            walltime=walltime,
            public_key=public_line(self._key),
            env={"LICENCE": "1055@host", **(env or {})},
        )
        activity = Activity()

        def connector(proof: Proof) -> Callable[..., Any]:
            return self._instead or Login(self._key, key_name="key", proof=proof, activity=activity).reach

        lease = ClusterLease(
            Access(self.platform, connector, POLL, activity.idle_seconds),
            request,
            study="pool",
            ledger=Ledger(self.folder / "ledger", base_url=self.rescale.base_url, folder=str(self.folder)),
            quote=self.platform.quote(request),
            guard=Guard(keeper=self._instead is None, tick=timedelta(seconds=0.2), beat=timedelta(seconds=0.5)),
            setup=setup,
            **options,
        )
        self._leases.append(lease)
        lease.acquire()
        return lease

    def pool(self, lease: ClusterLease | None = None, **options: Any) -> Pool:
        options = {"run": "study.1", "folder": self.folder, "inputs_root": self.folder, "trial_cores": 1, **options}
        pool = Pool(lease or self.lease(), **options)
        self._pools.append(pool)
        pool.open()
        return pool

    def close(self) -> None:
        for pool in self._pools:
            pool.close()
        for lease in self._leases:
            lease.release()
        self.platform.close()
