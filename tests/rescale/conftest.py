"""The client against a server that follows a script, and against the local platform."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.recovery import Backoff
from persistent_runner.rescale.client import RescalePlatform

from .scripted import KEY, QUICK, Script, serve

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def script() -> Iterator[Script]:
    """Run a server that follows a script."""
    script = Script()

    server = serve(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(script: Script) -> Iterator[RescalePlatform]:
    """Return the client against the script."""
    platform = RescalePlatform(script.url, KEY, backoff=QUICK)
    yield platform
    platform.close()


@pytest.fixture
def impatient(script: Script) -> Iterator[RescalePlatform]:
    """Return a client against the script that repeats nothing."""
    platform = RescalePlatform(script.url, KEY, backoff=Backoff(total=0))
    yield platform
    platform.close()


@pytest.fixture(scope="module")
def rescale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRescale]:
    """Run the local platform."""
    with LocalRescale(tmp_path_factory.mktemp("a platform's root")) as platform:
        yield platform


@pytest.fixture
def local(rescale: LocalRescale) -> Iterator[RescalePlatform]:
    """Return the client against the local platform."""
    platform = RescalePlatform(rescale.base_url, rescale.api_key, backoff=QUICK)
    yield platform
    platform.close()
