"""A real OpenSSH server on loopback, for tests."""

from __future__ import annotations

import contextlib
import getpass
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from persistent_runner.remote.node import Node
from persistent_runner.remote.proof import Proof

if TYPE_CHECKING:
    from collections.abc import Iterator

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
WHY_NOT = "needs OpenSSH's sshd: apt-get install openssh-server"


def free_port() -> int:
    """Return a port that nobody listens on now, of those that no system gives to who asks for any."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(20000, 32000)))
            return int(probe.getsockname()[1])


def make_key(path: Path, *options: str) -> Path:
    """Make a key pair with OpenSSH's own tool."""
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(path), *(options or ("-t", "ed25519"))], check=True)
    return path


class OpenSsh:
    """A running sshd; `home` is the HOME of whoever logs in."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.key = make_key(folder / "id_ed25519")
        self.host_key = make_key(folder / "host_key")
        self.port = free_port()
        self.config = folder / "sshd_config"
        # Of an option that stands twice sshd takes the first. A home without spaces: sshd's configuration cannot hold
        # one, and a cluster's home has none.
        self.config.write_text(
            "\n".join(
                [
                    *options,
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.host_key}",
                    f"AuthorizedKeysFile {self.key}.pub",
                    "PidFile none",
                    "UsePAM no",
                    "StrictModes no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "Subsystem sftp internal-sftp",
                    f"SetEnv HOME={self.home} RESCALE_WORK_PATH={self.home}/work",
                ]
            )
            + "\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is one: another program may have taken its port meanwhile."""
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(self.config)], stderr=log)
        until = time.monotonic() + 20
        while not (self._process.poll() is None and self._greets()):
            if self._process.poll() is not None or time.monotonic() > until:
                raise TimeoutError((self.folder / "sshd.log").read_text())

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and every session of it."""
        assert self._process is not None
        self.drop_sessions()
        self._process.terminate()
        self._process.wait(10)

    def drop_sessions(self) -> None:
        """Kill the server's sessions, as a network that goes away does; the server goes on."""
        assert self._process is not None
        subprocess.run(["pkill", "-KILL", "-P", str(self._process.pid)], check=False)

    def node(self) -> Node:
        """Return it as a node of a lease."""
        return Node("sshd0", "127.0.0.1", self.port, getpass.getuser(), "CUSTOM")

    def proof(self) -> Proof:
        """Return a proof by the host key that it has now."""
        return Proof("known", log_keys=lambda: [self.host_key.with_suffix(".pub").read_text()])


@contextlib.contextmanager
def openssh(folder: Path, *options: str) -> Iterator[OpenSsh]:
    """Serve OpenSSH from `folder` while entered."""
    server = OpenSsh(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
