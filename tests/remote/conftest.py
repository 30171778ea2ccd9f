"""Nodes of two kinds behind a network that a test can cut: the local platform's, and a real OpenSSH's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from persistent_runner.lease.naming import lease_name
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.recovery import Backoff
from persistent_runner.remote.agent import MARKER
from persistent_runner.remote.link import Link
from persistent_runner.remote.patience import Patience
from persistent_runner.remote.ssh import Login, public_line
from persistent_runner.remote.workdir import WorkDir
from persistent_runner.rescale.client import RescalePlatform
from tests.identity import platform_proof
from tests.openssh import SSHD, WHY_NOT, OpenSsh, openssh
from tests.remote.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fabric import Connection

    from persistent_runner.remote.frames import Exit, Hello
    from persistent_runner.remote.node import Node
    from persistent_runner.remote.proof import Proof

DEADLINE = 30.0  # seconds that a condition may take on a busy machine
HOSTILE = "a {b} $c 'é\" d"
QUICK = Patience(grace=0.3, reconnect=Backoff(first=0.02, most=0.2, total=60))


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true and return it; where no event can be waited for."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.01)
    return found


def processes(word: str) -> set[int]:
    """Return the processes whose environment or command line holds a word."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("environ", "cmdline"):
                try:
                    if word.encode() in (entry / name).read_bytes():
                        found.add(int(entry.name))
                except OSError:
                    pass
    return found


@dataclasses.dataclass(frozen=True)
class Server:
    """A machine to log in to, the key that opens it, and what proves it."""

    node: Node
    key: paramiko.PKey
    proof: Proof


@pytest.fixture(scope="session")
def local_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Lease a cluster on the local platform; its folder has a hostile name."""
    key = paramiko.ECDSAKey.generate()
    with LocalRescale(tmp_path_factory.mktemp("platform") / HOSTILE) as rescale:
        proof = platform_proof(rescale.root)
        platform = RescalePlatform(rescale.base_url, rescale.api_key)
        request = LeaseRequest(
            name=lease_name("remote"),
            command="sleep inf",
            core_type="emerald",
            cores=2,
            walltime=timedelta(hours=1),
            public_key=public_line(key),
        )
        job_id = platform.create(request).job_id
        platform.submit(job_id)
        until(lambda: platform.state(job_id).executing, "the job executes")
        yield Server(platform.nodes(job_id)[0], key, proof)
        platform.close()


@pytest.fixture(params=["local platform", "openssh"])
def server(request: pytest.FixtureRequest) -> Server:
    """Give a machine of each kind."""
    if request.param == "local platform":
        return request.getfixturevalue("local_node")
    sshd = request.getfixturevalue("sshd")
    return Server(sshd.node(), paramiko.PKey.from_path(sshd.key), sshd.proof())


class Site:
    """One test's way onto a node: a network, a run of its own, links and working directories."""

    def __init__(self, server: Server, proxy: Proxy, folder: Path) -> None:
        self.run = "test." + secrets.token_hex(6)
        self.lease = "lease-" + self.run
        self.node = dataclasses.replace(server.node, port=proxy.port)
        self.proxy = proxy
        self.folder = folder / HOSTILE
        self.inputs = self.folder / "inputs"
        self.inputs.mkdir(parents=True)
        self.root = Path()
        self._login = Login(server.key, key_name="the test's key", proof=server.proof)
        self._links: list[Link] = []
        self._connections: list[Connection] = []

    def connect(self) -> Connection:
        """Open a connection through the network."""
        connection = self._login.connect(self.node)
        self._connections.append(connection)
        return connection

    def link(self, **options: Any) -> Link:
        """Start an agent."""
        options = {"run": self.run, "lease": self.lease, "node": "node0", "patience": QUICK, **options}
        link = Link(options.pop("connect", self.connect), **options)
        self._links.append(link)
        self.hello: Hello = link.open(seconds=60)
        until(lambda: link.round_trip, "a look at the way there and back, which is a frame each way")
        self.root = Path(self.hello.root)
        return link

    def work(self, link: Link | None = None, **options: Any) -> WorkDir:
        """Return the working directory of attempt 00000.1."""
        options = {"attempt": "00000.1", "number": 0, "cores": 1, "env": {}, **options}
        folder = self.folder / "trials" / f"{options['number']:05d}"
        return WorkDir(link or self.link(), folder=folder, inputs_root=self.inputs, **options)

    def switch(self) -> Path:
        """Return the folder on the node that holds the signs of life of the lease."""
        home = self.connect().run("echo $HOME", hide=True).stdout.strip()
        return Path(home, ".persistent-runner", self.lease)

    def commands(self) -> set[int]:
        """Return the processes of this run's commands."""
        return processes(f"{MARKER}={self.root}/")

    def close(self) -> None:
        """End what a test has left."""
        for link in self._links:
            link.close()
        for connection in self._connections:
            connection.client.close()
        for pid in processes(self.run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(link: Link, script: str, *, attempt: str = "00000.1", seq: int = 0, **options: Any) -> Exit:
    """Run a command to its end."""
    return start(link, script, attempt=attempt, seq=seq, **options).result(60)


def start(link: Link, script: str, *, attempt: str = "00000.1", seq: int = 0, **options: Any) -> Any:
    """Start a command; the future gives its exit."""
    options = {
        "command_hash": script,
        "env": {},
        "cores": 1,
        "timeout": None,
        "stall": None,
        "files": [],
        "outputs": [],
        **options,
    }
    return link.start(attempt, seq, script=script, **options)


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    """Give a way onto a node of each kind."""
    with Proxy(server.node.port) as proxy:
        found = Site(server, proxy, tmp_path)
        yield found
        found.close()


@pytest.fixture
def sshd_site(sshd: Any, tmp_path: Path) -> Iterator[Site]:
    """Give a way onto OpenSSH alone, for what does not depend on the server."""
    server = Server(sshd.node(), paramiko.PKey.from_path(sshd.key), sshd.proof())
    with Proxy(server.node.port) as proxy:
        found = Site(server, proxy, tmp_path)
        yield found
        found.close()


@pytest.fixture
def link(site: Site) -> Link:
    """Start an agent on a node of each kind."""
    return site.link()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[OpenSsh]:
    """Serve OpenSSH for one test, which may do with it what it likes."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path / "server") as server:
        yield server
