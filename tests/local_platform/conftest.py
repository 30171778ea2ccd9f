"""A local platform for each module's tests, in a folder with a hostile name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import paramiko
import pytest
from plain_client import HOSTILE, Client, register

from persistent_runner.local_platform.local import LocalRescale

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    with LocalRescale(tmp_path_factory.mktemp("platform") / HOSTILE) as found:
        yield found


@pytest.fixture(scope="module")
def client(platform: LocalRescale) -> Iterator[Client]:
    found = Client(platform.base_url, platform.api_key)
    yield found
    found.session.close()


@pytest.fixture(scope="session")
def key() -> paramiko.PKey:
    """Make a key pair that is registered nowhere yet."""
    return paramiko.ECDSAKey.generate()


@pytest.fixture(scope="module")
def node(client: Client, platform: LocalRescale, key: paramiko.PKey) -> Iterator[str]:
    """Give the id of a job that sleeps, and that `key` may log in to."""
    register(platform.authorized_keys, key)
    job_id = client.start("sleep inf", envVars={"LICENCE": "1055@licence host"})
    yield job_id
    client.stop(job_id)
