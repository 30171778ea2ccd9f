"""Servers that several folders of tests share."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from persistent_runner.local_platform.local import LocalRescale
from tests.openssh import SSHD, WHY_NOT, OpenSsh, openssh
from tests.pools import Pools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A shell lets what it starts in the background ignore SIGINT, and so would every driver that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    """Serve OpenSSH on loopback, once for each worker."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path_factory.mktemp("openssh")) as server:
        yield server


@pytest.fixture(scope="module")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run the local platform."""
    with LocalRescale(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture
def pools(rescale: LocalRescale, tmp_path: Path) -> Iterator[Pools]:
    """Make pools on the local platform."""
    made = Pools(rescale, tmp_path)
    yield made
    made.close()
