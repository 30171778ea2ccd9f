"""Fabric tamed: which keys, which hosts, which faults."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import fabric
import invoke
import paramiko
import pytest

from persistent_runner.errors import ConnectionLost, HostNotProven, PlatformRefused
from persistent_runner.recovery import Backoff, recover
from persistent_runner.remote import tunnel
from persistent_runner.remote.node import Node
from persistent_runner.remote.proof import Proof
from persistent_runner.remote.ssh import Activity, Login, load_key, public_line, translated
from tests.openssh import SSHD, WHY_NOT, OpenSsh, free_port, make_key, openssh
from tests.remote.conftest import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.remote.conftest import Server, Site

NODE = Node("i-1", "127.0.0.1", 2222, "uprod", started="2026-01-01T00:00:00Z")
ANYBODY = Proof("nobody", unverified=True)


def login(server: OpenSsh, **options: object) -> Login:
    """Return a way onto a server with its own key; the host key that it has now proves it."""
    options = {"proof": server.proof(), **options}
    return Login(load_key(server.key), key_name=str(server.key), **options)  # type: ignore[arg-type]


def test_the_connection_is_tamed(site: Site) -> None:
    """The fast ciphers are agreed on and small packets leave at once."""
    transport = site.connect().transport
    assert transport.local_cipher == transport.remote_cipher == "aes128-gcm@openssh.com"
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_private_settings_are_not_read(sshd_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ~/.ssh/config nor ~/.fabric.yaml nor an SSH agent changes where and how we connect."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n  User nobody\n  Port 1\n  ForwardAgent yes\n  ProxyCommand false\n")
    (home / ".fabric.yaml").write_text("user: nobody\nforward_agent: true\nrun:\n  echo: true\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    connection = sshd_site.connect()
    assert (connection.user, connection.port) == (sshd_site.node.user, sshd_site.node.port)
    assert connection.forward_agent is False
    assert connection.run("echo ${SSH_AUTH_SOCK:-none}", hide=True).stdout == "none\n"
    assert "echo: true" not in str(connection.config)
    assert connection.config.run.echo is False


def change_host_key(server: OpenSsh, *options: str) -> None:
    """Let a server have another host key, as another machine at its address has."""
    server.stop()
    for half in (server.host_key, server.host_key.with_suffix(".pub")):
        half.unlink()
    make_key(server.host_key, *options)
    server.start()


def test_a_changed_host_key(own_sshd: OpenSsh) -> None:
    """A machine that shows another key than before gets nothing, not even a try to log in (row S4)."""
    proof = own_sshd.proof()
    way = login(own_sshd, proof=proof)
    way.connect(own_sshd.node()).client.close()
    change_host_key(own_sshd)
    for _ in range(2):
        with pytest.raises(HostNotProven, match="another host key than the proven one, of type ssh-ed25519") as caught:
            way.connect(own_sshd.node())
        assert caught.value.exit_code == 6
        assert "Nothing was sent" in caught.value.remedy
    assert (own_sshd.folder / "sshd.log").read_text().count("Accepted publickey") == 1
    proof.log_keys = own_sshd.proof().log_keys
    with pytest.raises(HostNotProven):
        way.connect(own_sshd.node())  # what the log says later changes nothing for the same machine
    relaunched = dataclasses.replace(own_sshd.node(), started="later")
    way.connect(relaunched).client.close()  # another launch is another machine


def test_a_host_key_of_another_type(own_sshd: OpenSsh) -> None:
    """A key of another type than the pinned one is a changed key too."""
    way = login(own_sshd)
    way.connect(own_sshd.node()).client.close()
    change_host_key(own_sshd, "-t", "ecdsa")
    with pytest.raises(HostNotProven, match="of another type"):
        way.connect(own_sshd.node())
    assert (own_sshd.folder / "sshd.log").read_text().count("Accepted publickey") == 1


@pytest.mark.parametrize("kind", [("-t", "rsa", "-b", "2048"), ("-t", "ecdsa", "-b", "384")])
def test_host_keys_of_other_types_can_be_pinned(own_sshd: OpenSsh, kind: tuple[str, ...]) -> None:
    """RSA keys have several names of signatures, and all of them belong to the pin."""
    change_host_key(own_sshd, *kind)
    login(own_sshd).connect(own_sshd.node()).client.close()


def test_only_the_types_of_the_pin_are_offered(own_sshd: OpenSsh) -> None:
    """A host with several keys shows the one that is pinned, not the one that it likes best."""
    other = make_key(own_sshd.folder / "ecdsa_key", "-t", "ecdsa")
    own_sshd.stop()
    with own_sshd.config.open("a") as config:
        config.write(f"HostKey {other}\n")
    own_sshd.start()
    proof = Proof("x", log_keys=lambda: [other.with_suffix(".pub").read_text()])
    connection = login(own_sshd, proof=proof).connect(own_sshd.node())
    assert connection.transport.get_remote_server_key().get_name() == "ecdsa-sha2-nistp256"
    connection.close()


def test_a_connection_that_fabric_opens_again_is_held_to_its_pin(own_sshd: OpenSsh) -> None:
    """After a drop Fabric connects anew by itself: to the pinned host, and to no other."""
    connection = login(own_sshd).connect(own_sshd.node())
    own_sshd.drop_sessions()
    connection.transport.join(20)
    assert connection.run("echo again", hide=True).stdout == "again\n"
    change_host_key(own_sshd)
    connection.transport.join(20)
    with pytest.raises(HostNotProven):
        connection.run("echo to whom", hide=True)
    assert not connection.is_connected


def test_a_refused_key(server: Server) -> None:
    """Keys may be installed after sshd is up, so a refusal counts only after a while; then it says what to paste."""
    stranger = paramiko.ECDSAKey.generate()
    with pytest.raises(ConnectionLost):
        Login(stranger, key_name="id_x", proof=server.proof).connect(server.node)
    with pytest.raises(PlatformRefused, match="refuses the SSH key id_x") as caught:
        Login(stranger, key_name="id_x", proof=server.proof, patience=timedelta(0)).connect(server.node)
    assert public_line(stranger) in caught.value.remedy
    assert caught.value.exit_code == 3


def test_a_key_that_is_installed_late(own_sshd: OpenSsh) -> None:
    """The same way in works as soon as the key is there."""
    installed = own_sshd.key.with_suffix(".pub")
    line = installed.read_text()
    installed.write_text("")
    way = login(own_sshd)
    with pytest.raises(ConnectionLost):
        way.connect(own_sshd.node())
    installed.write_text(line)
    connection = way.connect(own_sshd.node())
    assert connection.is_connected
    connection.close()


def test_nobody_listens() -> None:
    """A refused port means: not now."""
    node = dataclasses.replace(NODE, port=free_port())
    with pytest.raises(ConnectionLost, match=f"uprod@127.0.0.1:{node.port}"):
        Login(paramiko.ECDSAKey.generate(), key_name="x", proof=ANYBODY).connect(node)


def test_something_else_listens() -> None:
    """A port that closes before it speaks SSH means the same, and no thread or socket is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            other: socket.socket = listener.accept()[0]
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            other.close()

        thread = threading.Thread(target=greet)
        thread.start()
        before = {found.name for found in threading.enumerate()}
        with pytest.raises(ConnectionLost):
            Login(paramiko.ECDSAKey.generate(), key_name="x", proof=ANYBODY).connect(
                dataclasses.replace(NODE, port=listener.getsockname()[1])
            )
        thread.join()
    until(lambda: {found.name for found in threading.enumerate()} <= before, "the end of the connection's thread")


def test_a_time_out_names_what_is_likely(own_sshd: OpenSsh) -> None:
    """A network that swallows our packets is said to, with the rule of the profile and the proxy's variable."""
    with socket.socket() as full:  # a queue of none, filled: what comes is not answered
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with pytest.raises(ConnectionLost) as caught:
            tunnel.dial(dataclasses.replace(NODE, port=port), None, 0.3)
        for one in held:
            one.close()
    assert f"host 127.0.0.1, port {port}, does not answer" in caught.value.message
    assert "CIDR rule" in caught.value.remedy
    assert "PERSISTENT_RUNNER_SSH_PROXY" in caught.value.remedy


class Greedy(paramiko.ServerInterface):
    """A server that takes any key and then wants a password as well."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password,keyboard-interactive"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked.append("publickey")
        return int(paramiko.common.AUTH_PARTIALLY_SUCCESSFUL)

    def check_auth_password(self, username: str, password: str) -> int:
        self.asked.append("password")
        return int(paramiko.common.AUTH_FAILED)

    def check_auth_interactive(self, username: str, submethods: str) -> int:
        self.asked.append("keyboard-interactive")
        return int(paramiko.common.AUTH_FAILED)


def test_nobody_is_asked_for_a_password() -> None:
    """A server that wants more than the key gets no more, and no person is asked for it."""
    greedy, host_key = Greedy(), paramiko.ECDSAKey.generate()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            transport = paramiko.Transport(listener.accept()[0])
            transport.add_server_key(host_key)
            with contextlib.suppress(paramiko.SSHException, EOFError):
                transport.start_server(server=greedy)
            transport.join(20)

        thread = threading.Thread(target=serve)
        thread.start()
        node = dataclasses.replace(NODE, port=listener.getsockname()[1])
        way = Login(
            paramiko.ECDSAKey.generate(),
            key_name="x",
            proof=Proof("x", log_keys=lambda: [public_line(host_key)]),
            patience=timedelta(0),
        )
        with pytest.raises(PlatformRefused, match="wants publickey, password, keyboard-interactive beyond the key"):
            way.connect(node)
        thread.join(20)
    assert greedy.asked
    assert set(greedy.asked) == {"publickey"}


def test_few_sessions(tmp_path: Path) -> None:
    """Where a server allows two channels, the proof leaves none behind and a third is refused, not hung (row S9)."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path / "server", "MaxSessions 2") as server:
        connection = login(server).connect(server.node())
        held = [connection.create_session() for _ in range(2)]
        with pytest.raises(ConnectionLost), translated(server.node()):
            connection.create_session()
        for channel in held:
            channel.close()

        def runs() -> bool:  # a server counts a channel until its process is gone
            with contextlib.suppress(paramiko.ChannelException):
                return connection.run("echo fine", hide=True).stdout == "fine\n"
            return False

        until(runs, "room for a channel")


def test_many_connects_at_once(tmp_path: Path) -> None:
    """A server that drops connects above a limit is asked again, and every one gets in (row S5)."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path / "server", "MaxStartups 1:90:2") as server:
        way, made, failed = login(server), [], []

        def connect() -> None:
            try:
                calls = Backoff(first=0.05, most=0.3, total=60)
                made.append(recover(lambda: way.connect(server.node()), {ConnectionLost: failed.append}, calls))
            except BaseException as error:  # noqa: BLE001 - shown below
                failed.append(error)

        threads = [threading.Thread(target=connect) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        for connection in made:
            connection.client.close()
    assert len(made) == 12, failed


def test_nobody_in_between_can_weaken_the_ciphers(tmp_path: Path) -> None:
    """A server that has only what is weak is not connected to."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    for line in ("Ciphers aes256-cbc", "Ciphers aes256-ctr\nMACs hmac-sha1"):
        with (
            openssh(tmp_path / line[-4:], line) as server,
            pytest.raises(ConnectionLost, match="Incompatible ssh"),
        ):
            login(server).connect(server.node())


def test_activity(own_sshd: OpenSsh, tmp_path: Path) -> None:
    """Commands and transfers in flight are seen, on a connection that is Fabric's own kind."""
    activity = Activity()
    connection = login(own_sshd, activity=activity).connect(own_sshd.node())
    assert isinstance(connection, fabric.Connection)
    assert activity.idle_seconds() == math.inf
    pipe, copy = tmp_path / "pipe", tmp_path / "copy"
    connection.run(f"mkfifo {pipe}", hide=True)
    assert 0 < activity.idle_seconds() < math.inf
    reading = threading.Thread(target=lambda: connection.run(f"cat {pipe}", hide=True))
    reading.start()
    until(lambda: activity.idle_seconds() == 0, "a command in flight")
    connection.run("true", hide=True)
    assert activity.idle_seconds() == 0  # one of two has ended
    connection.run(f"echo > {pipe}", hide=True)
    reading.join(20)
    assert activity.idle_seconds() > 0
    (tmp_path / "file").write_bytes(b"x")
    for transfer in (
        lambda: connection.put(str(tmp_path / "file"), str(copy)),
        lambda: connection.get(str(copy), str(tmp_path / "back")),
        lambda: connection.run("false", hide=True, warn=True),
    ):
        before = activity._ended
        transfer()
        assert activity._ended > before
    with pytest.raises(invoke.UnexpectedExit):
        connection.run("false", hide=True)
    assert activity.idle_seconds() > 0  # a failed one has ended too
    connection.close()
