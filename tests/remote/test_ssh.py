"""Fabric tamed: which keys, which hosts, which faults."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from datetime import timedelta
from typing import TYPE_CHECKING

import paramiko
import pytest

from persistent_runner.errors import ConfigError, ConnectionLost, HostNotProven, PlatformRefused
from persistent_runner.remote.node import Node
from persistent_runner.remote.ssh import Login, _Pin, is_loopback, load_key, public_line
from tests.openssh import SSHD, WHY_NOT, OpenSsh, free_port, make_key, openssh

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.remote.conftest import Server, Site

NODE = Node("i-1", "127.0.0.1", 2222, "uprod", started="2026-01-01T00:00:00Z")
HOSTILE = "a {b} $c 'é\" d"


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[OpenSsh]:
    """Serve OpenSSH for one test, which may do with it what it likes."""
    if SSHD is None:
        pytest.skip(WHY_NOT)
    with openssh(tmp_path / "server") as server:
        yield server


def login(server: OpenSsh, **options: object) -> Login:
    """Return a way onto a server with its own key."""
    return Login(load_key(server.key), key_name=str(server.key), **options)  # type: ignore[arg-type]


KINDS = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa": ["-t", "ecdsa"],
    "rsa": ["-t", "rsa", "-b", "2048"],
    "ecdsa in PEM": ["-t", "ecdsa", "-m", "PEM"],
    "rsa in PEM": ["-t", "rsa", "-b", "2048", "-m", "PEM"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_load(kind: str, tmp_path: Path) -> None:
    """The kinds and formats that ssh-keygen makes are read, in a folder of any name."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    path = make_key(folder / "id", *KINDS[kind])
    assert public_line(load_key(path)) == " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        ("missing", "there is no file", "ssh-keygen -t ed25519 -f"),
        ("folder", "cannot be read: Is a directory", "PERSISTENT_RUNNER_SSH_KEY"),
        ("empty", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("rubbish", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("cut off", "is not a private key that can be used", "PERSISTENT_RUNNER_SSH_KEY"),
        ("public", "is the public half", "Name the private one"),
        ("pkcs8 rsa", "is in PKCS8 format", "ssh-keygen -p -f"),
        ("pkcs8 ecdsa", "is in PKCS8 format", "ssh-keygen -p -f"),
        ("passphrase", "has a passphrase", "ssh-keygen -t ed25519 -N ''"),
        ("passphrase in pem", "has a passphrase", "ssh-keygen -t ed25519 -N ''"),
        ("ppk", "is a PuTTY key", "puttygen"),
    ],
)
def test_keys_that_do_not_load(kind: str, message: str, remedy: str, tmp_path: Path) -> None:
    """Each key that cannot be used is named with its trouble and the line that mends it; nothing was spent."""
    path = tmp_path / "id"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "rubbish":
        path.write_bytes(os.urandom(500))
    elif kind == "cut off":
        path.write_bytes(make_key(tmp_path / "whole").read_bytes()[:150])
    elif kind == "public":
        make_key(path)
        path = path.with_suffix(".pub")
    elif kind.startswith("pkcs8"):
        make_key(path, "-t", kind.split()[1], "-m", "PKCS8")
    elif kind.startswith("passphrase"):
        form = ["-m", "PEM"] if "pem" in kind else []
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", *form, "-N", "open sesame", "-f", str(path)], check=True)
    elif kind == "ppk":
        path.write_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n")
    with pytest.raises(ConfigError) as caught:
        load_key(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


def test_the_connection_is_tamed(site: Site) -> None:
    """The fast ciphers are agreed on and small packets leave at once."""
    import socket

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


def test_a_changed_host_key(own_sshd: OpenSsh) -> None:
    """A machine that shows another key than before gets nothing from us, not even a try to log in."""
    way = login(own_sshd)
    way.connect(own_sshd.node()).client.close()
    own_sshd.stop()
    for half in (own_sshd.host_key, own_sshd.host_key.with_suffix(".pub")):
        half.unlink()
    make_key(own_sshd.host_key)
    own_sshd.start()
    for _ in range(2):
        with pytest.raises(HostNotProven, match="shows another host key than before, of type ssh-ed25519") as caught:
            way.connect(own_sshd.node())
        assert caught.value.exit_code == 6
        assert "Nothing was sent" in caught.value.remedy
    assert (own_sshd.folder / "sshd.log").read_text().count("Accepted publickey") == 1
    relaunched = dataclasses.replace(own_sshd.node(), started="later")
    way.connect(relaunched).client.close()  # another launch is another machine


def test_a_host_key_of_another_type(own_sshd: OpenSsh) -> None:
    """A key of another type than the pinned one is a changed key too."""
    way = login(own_sshd)
    way.connect(own_sshd.node()).client.close()
    own_sshd.stop()
    own_sshd.host_key.unlink()
    make_key(own_sshd.host_key, "-t", "ecdsa")
    own_sshd.start()
    with pytest.raises(HostNotProven, match="of type ecdsa"):
        way.connect(own_sshd.node())


@pytest.mark.parametrize("address", ["192.0.2.7", "node.example.com", "::2", "128.0.0.1", "127.0.0.1.example.com"])
def test_a_far_host_is_never_taken_on_trust(address: str) -> None:
    """Only this machine's own address proves itself; any other needs a key that was proven before."""
    key = paramiko.ECDSAKey.generate()
    policy = _Pin(dataclasses.replace(NODE, address=address), None)
    with pytest.raises(HostNotProven, match="nothing proves the host key"):
        policy.missing_host_key(paramiko.SSHClient(), address, key)
    assert policy.seen is None


def test_a_pinned_host_takes_no_other_key() -> None:
    """A pin holds on loopback too."""
    policy = _Pin(NODE, paramiko.ECDSAKey.generate())
    with pytest.raises(HostNotProven, match="another host key than before"):
        policy.missing_host_key(paramiko.SSHClient(), "127.0.0.1", paramiko.ECDSAKey.generate())


def test_loopback() -> None:
    """What counts as this machine."""
    found = [name for name in ("127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0") if is_loopback(name)]
    assert found == ["127.0.0.1", "127.9.9.9", "::1", "localhost"]


def test_a_refused_key(server: Server) -> None:
    """Keys may be installed after sshd is up, so a refusal counts only after a while; then it says what to paste."""
    stranger = paramiko.ECDSAKey.generate()
    with pytest.raises(ConnectionLost):
        Login(stranger, key_name="id_x").connect(server.node)
    with pytest.raises(PlatformRefused, match="refuses the SSH key id_x") as caught:
        Login(stranger, key_name="id_x", patience=timedelta(0)).connect(server.node)
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
        Login(paramiko.ECDSAKey.generate(), key_name="x").connect(node)


def test_something_else_listens() -> None:
    """A port that closes before it speaks SSH means the same, and no thread or socket is left."""
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            other: socket.socket = listener.accept()[0]
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            other.close()

        thread = threading.Thread(target=greet)
        thread.start()
        before = {found.name for found in threading.enumerate()}
        with pytest.raises(ConnectionLost):
            Login(paramiko.ECDSAKey.generate(), key_name="x").connect(
                dataclasses.replace(NODE, port=listener.getsockname()[1])
            )
        thread.join()
    assert {found.name for found in threading.enumerate()} <= before
