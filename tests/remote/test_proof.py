"""How machines prove themselves: by keys in the log, by the secret, or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import pytest

from persistent_runner.errors import ConnectionLost, HostNotProven, PlatformUnavailable
from persistent_runner.remote.node import Node
from persistent_runner.remote.proof import Proof, machine_of
from persistent_runner.remote.ssh import Login, load_key, public_line
from tests.openssh import SSHD, openssh
from tests.remote.middle import Middle
from tests.remote.test_ssh import change_host_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.openssh import OpenSsh
    from tests.remote.conftest import Server

SECRET = "0123456789abcdef" * 4
NOW = timedelta(0)


@pytest.fixture
def lease(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give the folder of a lease in the home that OpenSSH's sessions start in; its name is the lease's."""
    folder = Path.home() / ".persistent-runner" / f"test-{abs(hash(request.node.nodeid))}-{threading.get_native_id()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def way(server: OpenSsh, proof: Proof, **options: object) -> Login:
    return Login(load_key(server.key), key_name="key", proof=proof, **options)  # type: ignore[arg-type]


def host_key(server: OpenSsh) -> str:
    return " ".join(server.host_key.with_suffix(".pub").read_text().split()[:2])


def commands(server: OpenSsh) -> int:
    """Return how many logins there were."""
    return (server.folder / "sshd.log").read_text().count("Accepted publickey")


def test_keys_from_the_log(server: Server) -> None:
    """The keys of the log are pinned before the first byte, kept and told; the secret is not asked for."""
    told: list[tuple[str, list[str]]] = []
    lines = server.proof.log_keys() if server.proof.log_keys else []
    proof = Proof("x", SECRET, lambda: lines, on_pin=lambda *pinned: told.append(pinned))
    login = Login(server.key, key_name="x", proof=proof)
    login.connect(server.node).client.close()
    login.connect(server.node).client.close()
    plain = [" ".join(line.split()[:2]) for line in lines]
    assert told == [(machine_of(server.node), plain)]
    assert proof.pins == {machine_of(server.node): plain}


def test_keys_that_come_late_into_the_log(sshd: OpenSsh) -> None:
    """The log may lag, and may be out of reach for a while; rubbish in it is no key."""
    answers = iter([[], PlatformUnavailable("503"), ["ssh-ed25519 rubbish", "ssh-dss AAAA", ""], [host_key(sshd)]])

    def log() -> list[str]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    proof = Proof("x", log_keys=log)
    login = way(sshd, proof)
    for _ in range(3):
        with pytest.raises(ConnectionLost, match="shows no host keys yet"):
            login.connect(sshd.node())
    login.connect(sshd.node()).client.close()
    assert proof.pins[machine_of(sshd.node())] == [host_key(sshd)]


def test_a_pin_of_a_former_driver(sshd: OpenSsh) -> None:
    """What was pinned and kept holds in the next driver, without the log and without the secret."""
    proof = Proof("x", pins={machine_of(sshd.node()): [host_key(sshd)]})
    way(sshd, proof).connect(sshd.node()).client.close()


def test_the_secret(own_sshd: OpenSsh, lease: Path) -> None:
    """Without keys in the log the secret is read back, and the key of that very connection is pinned."""
    (lease / "proof").write_text(SECRET + "\n")
    proof = Proof(lease.name, SECRET, list, wait=NOW)
    before = commands(own_sshd)
    connection = way(own_sshd, proof).connect(own_sshd.node())
    assert connection.run("echo in", hide=True).stdout == "in\n"
    connection.close()
    assert proof.pins == {machine_of(own_sshd.node()): [host_key(own_sshd)]}
    assert commands(own_sshd) == before + 1  # proof and work on one connection


def test_a_connection_that_proved_itself_is_pinned(own_sshd: OpenSsh, lease: Path) -> None:
    """When Fabric opens it again after a drop, the key that the secret has proven is the only one."""
    (lease / "proof").write_text(SECRET + "\n")
    connection = way(own_sshd, Proof(lease.name, SECRET)).connect(own_sshd.node())
    change_host_key(own_sshd)
    connection.transport.join(20)
    with pytest.raises(HostNotProven, match="another host key than the proven one"):
        connection.run("echo to whom", hide=True)


def test_the_secret_wins_over_other_keys_in_the_log(
    sshd: OpenSsh, lease: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys of another sshd in the log are warned of once; the machine with the secret is ours."""
    (lease / "proof").write_text(SECRET + "\n")
    other = public_line(paramiko.ECDSAKey.generate())
    proof = Proof(lease.name, SECRET, lambda: [other])
    login = way(sshd, proof)
    for started in ("first", "second"):
        login.connect(dataclasses.replace(sshd.node(), started=started)).client.close()
    assert caplog.text.count("shows none of the host keys in the job's log") == 1
    assert list(proof.pins.values()) == [[host_key(sshd)]] * 2


def test_a_secret_that_comes_late(sshd: OpenSsh, lease: Path) -> None:
    """A job that has not begun has no file yet: not now; after the patience: not proven."""
    proof = Proof(lease.name, SECRET)
    login = way(sshd, proof)
    with pytest.raises(ConnectionLost, match="has not proven itself yet: it has no file"):
        login.connect(sshd.node())
    (lease / "proof").write_text(SECRET + "\n")
    login.connect(sshd.node()).client.close()
    (lease / "proof").unlink()
    with pytest.raises(HostNotProven, match="no file with the lease's secret"):
        way(sshd, Proof(lease.name, SECRET), patience=NOW).connect(sshd.node())


def test_an_empty_secret(sshd: OpenSsh, lease: Path) -> None:
    """A platform that does not hand the environment on leaves an empty file, and that is said."""
    (lease / "proof").write_text("\n")
    with pytest.raises(HostNotProven, match="the platform did not hand it on"):
        way(sshd, Proof(lease.name, SECRET), patience=NOW).connect(sshd.node())


def test_nothing_to_prove_it(own_sshd: OpenSsh) -> None:
    """Without keys and without a secret nothing is sent, and nobody is connected to."""
    before = commands(own_sshd)
    with pytest.raises(HostNotProven, match="no secret to ask for"):
        way(own_sshd, Proof("x", log_keys=list, wait=NOW)).connect(own_sshd.node())
    assert commands(own_sshd) == before


def test_accepted_without_proof(sshd: OpenSsh, lease: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`accept-unverified` takes effect only where neither way works, is loud, and pins."""
    proof = Proof(lease.name, SECRET, list, unverified=True, wait=NOW)
    login = way(sshd, proof, patience=NOW)
    login.connect(sshd.node()).client.close()
    assert "IS NOT PROVEN" in caplog.text
    assert proof.pins == {machine_of(sshd.node()): [host_key(sshd)]}
    caplog.clear()
    (lease / "proof").write_text(SECRET)
    login.connect(dataclasses.replace(sshd.node(), started="later")).client.close()
    assert "IS NOT PROVEN" not in caplog.text
    (lease / "proof").write_text("another" * 9)
    with pytest.raises(HostNotProven):
        login.connect(dataclasses.replace(sshd.node(), started="last"))


def test_the_log_is_waited_for_once(sshd: OpenSsh, lease: Path) -> None:
    """The time counts from the first look on, however often somebody tries; then the secret counts."""
    (lease / "proof").write_text(SECRET)
    proof = Proof(lease.name, SECRET, list, wait=timedelta(seconds=0.2))
    login, deadline = way(sshd, proof), time.monotonic() + 30
    with pytest.raises(ConnectionLost, match="shows no host keys yet"):
        login.connect(sshd.node())
    assert proof.pins == {}
    connection = None
    while connection is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionLost):
            connection = login.connect(sshd.node())
    assert connection is not None
    connection.client.close()
    assert proof.pins == {machine_of(sshd.node()): [host_key(sshd)]}


def test_a_machine_that_never_answers() -> None:
    """Silence has an end: not now, then not proven."""
    with Middle(lambda _: None) as middle:
        node = Node("i", "127.0.0.1", middle.port, "u")
        key = paramiko.ECDSAKey.generate()
        with pytest.raises(ConnectionLost, match="has not proven itself yet: it did not answer within 5 s"):
            Login(key, key_name="x", proof=Proof("x", SECRET)).connect(node)


def test_noise_around_the_secret() -> None:
    """What a login shell prints does not hide the proof (row S14)."""
    with Middle(lambda _: (b"Welcome\r\n" + SECRET.encode() + b"\r\nbye\n", 0)) as middle:
        node = Node("i", "127.0.0.1", middle.port, "u")
        proof = Proof("x", SECRET)
        Login(paramiko.ECDSAKey.generate(), key_name="x", proof=proof).connect(node).client.close()
    assert proof.pins == {"i ": [public_line(middle.host_key)]}


@pytest.mark.parametrize("shell", ["csh", "fish", "busybox sh"])
def test_login_shells(shell: str, lease: Path, tmp_path: Path) -> None:
    """The proof command is read alike by every login shell (row S15)."""
    if SSHD is None or shutil.which(shell.split(maxsplit=1)[0]) is None:
        pytest.skip(f"needs sshd and {shell}")
    (lease / "proof").write_text(SECRET + "\n")
    with openssh(tmp_path / "server", f'ForceCommand exec {shell} -c "$SSH_ORIGINAL_COMMAND"') as server:
        proof = Proof(lease.name, SECRET)
        way(server, proof).connect(server.node()).client.close()
    assert list(proof.pins.values()) == [[host_key(server)]]


def test_a_name_that_could_be_a_command() -> None:
    """A lease's name goes into the fixed command, so it holds nothing that a shell reads otherwise."""
    for name in ("a b", "a;b", "$(x)", "../x", ""):
        with pytest.raises(ValueError):
            Proof(name)
