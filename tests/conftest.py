"""Servers that several folders of tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.openssh import SSHD, WHY_NOT, OpenSsh, openssh

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSsh]:
    """Serve OpenSSH on loopback, once for each worker."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path_factory.mktemp("openssh")) as server:
        yield server
