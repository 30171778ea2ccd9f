"""What a man in the middle sees of us."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import fabric
import paramiko
import pytest

from persistent_runner.errors import HostNotProven
from persistent_runner.remote.node import Node
from persistent_runner.remote.proof import Proof
from persistent_runner.remote.ssh import Login, public_line
from tests.openssh import make_key
from tests.remote.middle import Middle

if TYPE_CHECKING:
    from pathlib import Path

NODE = Node("i-1", "127.0.0.1", 22, "uprod_x", started="2026-01-01T00:00:00Z")
SECRET = "5e" * 32


def test_what_he_sees(tmp_path: Path) -> None:
    """Nothing with keys from the log, the fixed proof command with the secret; the tutorial's way hands him a command.

    He takes any user and any key, and answers every command.
    """
    path = make_key(tmp_path / "id")
    key = paramiko.PKey.from_path(path)
    proven = public_line(paramiko.ECDSAKey.generate())
    with Middle(lambda _: (b"00" * 32 + b"\n", 0)) as middle:
        node = dataclasses.replace(NODE, port=middle.port)
        with pytest.raises(HostNotProven) as caught:
            Login(key, key_name="id", proof=Proof("x", log_keys=lambda: [proven])).connect(node)
        assert len(middle.transports) == 1
        assert middle.seen == []
        assert caught.value.exit_code == 6

        proof = Proof("persistent_runner-x-1", SECRET, lambda: [proven])
        with pytest.raises(HostNotProven, match="another text than the lease's secret") as caught:
            Login(key, key_name="id", proof=proof).connect(node)
        assert middle.seen == [
            ("user", "uprod_x"),
            ("key", public_line(key)),
            ("session", "session"),
            ("command", "cat .persistent-runner/persistent_runner-x-1/proof"),
        ]
        assert proof.pins == {}
        assert SECRET not in str(caught.value) + repr(proof)
        assert "accept-unverified" in caught.value.remedy

        with fabric.Connection(
            "127.0.0.1", "uprod_x", middle.port, connect_kwargs={"key_filename": str(path)}
        ) as plain:
            plain.run("ANSYSLMD_LICENSE_FILE=1055@secret solve", hide=True, in_stream=False)
        assert middle.seen[-1] == ("command", "ANSYSLMD_LICENSE_FILE=1055@secret solve")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((b"x" * 100_000, 0), "more than 4096 bytes"),
        ((SECRET[:-1].encode(), 0), "another text"),
        ((SECRET.upper().encode(), 0), "another text"),
        ((b"cat: .persistent-runner/x/proof: No such file or directory", 0), "another text"),
    ],
)
def test_answers_that_prove_nothing(answer: tuple[bytes, int], said: str) -> None:
    """Nearly right, too much, or an excuse as if it were text: refused at once and not pinned."""
    proof = Proof("x", SECRET)
    with Middle(lambda _: answer) as middle, pytest.raises(HostNotProven, match=said):
        Login(paramiko.ECDSAKey.generate(), key_name="x", proof=proof).connect(
            dataclasses.replace(NODE, port=middle.port)
        )
    assert proof.pins == {}


def test_keys_of_another_machine_open_nothing() -> None:
    """With a pin he sees nothing on any try, not even a user name."""
    with Middle() as middle:
        node = dataclasses.replace(NODE, port=middle.port)
        own = public_line(middle.host_key)
        other = public_line(paramiko.ECDSAKey.generate())
        for pins in ([other], [other, "ssh-ed25519 " + other.split()[1]]):
            proof = Proof("x", SECRET, lambda: [own], unverified=True, pins={"i-1 2026-01-01T00:00:00Z": pins})
            with contextlib.suppress(HostNotProven):
                Login(paramiko.ECDSAKey.generate(), key_name="x", proof=proof).connect(node)
        assert len(middle.transports) == 2
        assert middle.seen == []
