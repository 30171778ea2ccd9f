"""Every platform that leases clusters, held to the contract of `Platform`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.rescale.client import RescalePlatform
from tests.platform_contract import PlatformContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class TestRescale(PlatformContract):
    """Rescale, as the local platform serves it."""

    @pytest.fixture
    def platform(self, tmp_path: Path) -> Iterator[RescalePlatform]:
        """Run the local platform and return its client."""
        with LocalRescale(tmp_path) as local:
            client = RescalePlatform(local.base_url, local.api_key)
            yield client
            client.close()

    @pytest.fixture
    def request_for(self) -> Callable[[str], LeaseRequest]:
        """Return how to ask for a small cluster."""

        def request(name: str) -> LeaseRequest:
            hour = timedelta(hours=1)
            return LeaseRequest(name=name, command="sleep 3600", core_type="emerald", cores=1, walltime=hour)

        return request
