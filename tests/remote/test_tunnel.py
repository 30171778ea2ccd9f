"""The ways that carry SSH: an HTTP proxy, and the head node's own connection to the workers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import paramiko
import pytest

from persistent_runner.errors import ConfigError, ConnectionLost, HostNotProven
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.remote.proof import Proof, machine_of
from persistent_runner.remote.ssh import Login, load_key, public_line
from persistent_runner.rescale.client import RescalePlatform
from tests.identity import platform_proof
from tests.openssh import free_port, openssh
from tests.remote.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.remote.node import Node
    from tests.openssh import OpenSsh


class ConnectProxy:
    """An HTTP proxy that knows CONNECT alone; `status` other than 200 refuses. A context manager."""

    def __init__(self, status: str = "200 Connection established", credentials: str = "") -> None:
        self.heads: list[str] = []
        self._status = status
        self._credentials = credentials
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._ends: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in [self._listener, *self._ends]:
            end.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            self._ends.append(near)
            self._spawn(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = near.recv(4096)
            if not data:
                return
            head += data
        text = head.decode()
        self.heads.append(text)
        wanted = base64.b64encode(self._credentials.encode()).decode()
        if self._status == "silent":
            return
        status = self._status
        if self._credentials and f"Proxy-Authorization: Basic {wanted}" not in text:
            status = "407 Proxy Authentication Required"
        if not status.startswith("200"):
            near.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            return  # and closes at the end
        host, _, port = text.split()[1].rpartition(":")
        far = socket.create_connection((host, int(port)))
        self._ends.append(far)
        banner = far.recv(4096)  # in one piece with the answer, as a quick server's arrives
        near.sendall(f"HTTP/1.1 {status}\r\nVia: test\r\n\r\n".encode() + banner)
        self._spawn(self._pump, far, near)
        self._pump(near, far)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def way(server: OpenSsh, proxy: str) -> Login:
    return Login(load_key(server.key), key_name="key", proof=server.proof(), proxy=proxy)


@pytest.mark.parametrize("user", ["", "me:pass%40w%3Ard@"])
def test_through_a_proxy(sshd: OpenSsh, user: str) -> None:
    """SSH goes through an HTTP proxy, with a user and password where it wants them, and again after a drop."""
    with ConnectProxy(credentials="me:pass@w:rd" if user else "") as proxy:
        connection = way(sshd, f"http://{user}127.0.0.1:{proxy.port}").connect(sshd.node())
        assert connection.run("echo through", hide=True).stdout == "through\n"
        connection.transport.close()
        connection.transport.join(20)
        assert connection.run("echo again", hide=True).stdout == "again\n"
        connection.close()
    assert len(proxy.heads) == 2
    assert all(head.startswith(f"CONNECT 127.0.0.1:{sshd.port} HTTP/1.1\r\nHost: ") for head in proxy.heads)


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        ("407 Proxy Authentication Required", ConfigError, "http://USER:PASSWORD@HOST:PORT"),
        ("403 Forbidden", ConfigError, "allow CONNECT to port"),
        ("502 Bad Gateway", ConnectionLost, ""),
        ("429 Too Many Requests", ConnectionLost, ""),
    ],
)
def test_a_proxy_that_refuses(sshd: OpenSsh, status: str, error: type, remedy: str) -> None:
    """The proxy's own words are shown, its user and password are not."""
    with ConnectProxy(status) as proxy, pytest.raises(error) as caught:
        way(sshd, f"http://me:hunter2@127.0.0.1:{proxy.port}").connect(sshd.node())
    assert f"the proxy 127.0.0.1:{proxy.port} answers 'HTTP/1.1 {status}'" in caught.value.message
    assert remedy in caught.value.remedy
    assert "hunter2" not in str(caught.value)


def test_a_proxy_that_is_not_there(sshd: OpenSsh) -> None:
    """A proxy out of reach is named with its variable."""
    with pytest.raises(ConnectionLost, match=r"the proxy 127.0.0.1:.* cannot be reached") as caught:
        way(sshd, f"http://me:hunter2@127.0.0.1:{free_port()}").connect(sshd.node())
    assert "PERSISTENT_RUNNER_SSH_PROXY" in caught.value.remedy
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["h\r\nX-Evil: 1", "root@h", "h h", ""])
def test_an_address_that_is_none(sshd: OpenSsh, address: str) -> None:
    """What a platform gives as an address becomes neither a header of the request nor a user (row L9)."""
    node = dataclasses.replace(sshd.node(), address=address)
    with ConnectProxy() as proxy, pytest.raises(ConnectionLost, match="is no address"):
        way(sshd, f"http://127.0.0.1:{proxy.port}").connect(node)
    assert proxy.heads == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Node], paramiko.PKey, Path]]:
    """Lease two nodes on the local platform: head and worker."""
    key = paramiko.ECDSAKey.generate()
    with LocalRescale(tmp_path_factory.mktemp("platform")) as rescale:
        platform = RescalePlatform(rescale.base_url, rescale.api_key)
        request = LeaseRequest(
            name="two",
            command="sleep inf",
            core_type="marble",
            cores=8,
            walltime=timedelta(hours=1),
            public_key=public_line(key),
        )
        job = platform.create(request).job_id
        platform.submit(job)
        until(lambda: platform.state(job).executing, "Executing")
        yield platform.nodes(job), key, rescale.root
        platform.close()


def test_a_worker_through_the_head(cluster: tuple[list[Node], paramiko.PKey, Path]) -> None:
    """A worker of the local platform is reached over the head's connection, and its key is pinned."""
    [head, worker], key, root = cluster
    told: list[str] = []
    proof = dataclasses.replace(platform_proof(root), on_pin=lambda machine, _: told.append(machine))
    login = Login(key, key_name="x", proof=proof)
    over = login.connect(head)
    connection = login.connect(worker, through=over)
    assert connection.run("echo here", hide=True).stdout == "here\n"
    assert told == [machine_of(head), machine_of(worker)]
    assert len(proof.pins[machine_of(worker)]) == 1
    assert set(proof.pins[machine_of(worker)]).isdisjoint([public_line(over.transport.get_remote_server_key())])
    connection.close()
    login.connect(worker, through=over).client.close()
    with pytest.raises(HostNotProven):  # another machine answers at its address
        login.connect(
            dataclasses.replace(worker, private_address="", address="127.0.0.1", port=head.port), through=over
        )
    over.close()
    with pytest.raises(ConnectionLost, match="head node"):
        login.connect(worker, through=over)


def test_a_worker_with_an_address_is_reached_straight(
    cluster: tuple[list[Node], paramiko.PKey, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Its key is the one that it shows inside the cluster; where it has no way in of its own, the head's is taken."""
    caplog.set_level("INFO")
    [head, worker], key, root = cluster
    proof = platform_proof(root)
    login = Login(key, key_name="x", proof=proof)
    over = login.reach(head)
    straight = login.reach(worker, over)
    assert isinstance(straight.transport.sock, socket.socket)
    assert proof.pins[machine_of(worker)] == [public_line(straight.transport.get_remote_server_key())]
    straight.close()

    inside = dataclasses.replace(worker, address="", instance_id="inside")
    for node in (inside, dataclasses.replace(worker, port=free_port(), private_address=worker.hostname)):
        connection = Login(key, key_name="x", proof=platform_proof(root)).reach(node, over)
        assert isinstance(connection.transport.sock, paramiko.Channel)
        assert connection.run("echo there", hide=True).stdout == "there\n"
        connection.close()
    assert caplog.text.count("trying the way through the head node") == 1

    # another machine answers at its address than inside the cluster: nothing is sent there
    fooled = dataclasses.replace(worker, address="127.0.0.1", port=head.port, private_address=worker.hostname)
    connection = Login(key, key_name="x", proof=platform_proof(root)).reach(fooled, over)
    assert isinstance(connection.transport.sock, paramiko.Channel)
    assert "shows another host key than the proven one" in caplog.text
    for each in (connection, over):
        each.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(listens(22), reason="this machine itself listens on port 22, where a worker is looked for first")
def test_a_worker_through_openssh(sshd: OpenSsh, tmp_path: Path) -> None:
    """The same over OpenSSH's head, to another sshd that takes the same key."""
    with openssh(tmp_path / "worker", f"AuthorizedKeysFile {sshd.key}.pub") as other:
        proof: Proof = sshd.proof()
        login = Login(load_key(sshd.key), key_name="key", proof=proof)
        head = login.connect(sshd.node())
        worker = dataclasses.replace(other.node(), instance_id="worker", private_address="127.0.0.1")
        connection = login.connect(worker, through=head)
        assert connection.run("echo there", hide=True).stdout == "there\n"
        pinned = " ".join(other.host_key.with_suffix(".pub").read_text().split()[:2])
        assert proof.pins[machine_of(worker)] == [pinned]
        for each in (connection, head):
            each.close()
