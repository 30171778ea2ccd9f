"""What the machines of one job need to work together: each may log in to the others by their names, without a word."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

import asyncssh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from persistent_runner.local_platform.cluster import Machine


def let_log_in(home: Path, programs: Path, user: str, machines: Sequence[Machine]) -> None:
    """Make a key in the common `home` that opens all machines, and an `ssh` in `programs` that knows their names.

    It is OpenSSH's with a configuration of its own: OpenSSH reads that of the account, whatever HOME says. Where this
    machine has no OpenSSH there is none.
    """
    folder = home / ".ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    key = asyncssh.generate_private_key("ssh-ed25519")
    private, config, known = folder / "id_ed25519", folder / "config", folder / "known_hosts"
    private.touch(mode=0o600)
    key.write_private_key(private)
    with (folder / "authorized_keys").open("ab") as authorized:
        authorized.write(key.export_public_key())
    known.write_text("".join(f"[127.0.0.1]:{machine.node.port} {machine.node.host_key}\n" for machine in machines))
    config.write_text(
        "".join(
            f"Host {machine.private_hostname}\n HostName 127.0.0.1\n Port {machine.node.port}\n" for machine in machines
        )
        + f"Host *\n User {user}\n IdentityFile {private}\n IdentitiesOnly yes\n UserKnownHostsFile {known}\n"
        " StrictHostKeyChecking yes\n"
    )
    programs.mkdir(exist_ok=True)
    for name in ("ssh", "scp"):
        if real := shutil.which(name):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {real} -F {shlex.quote(str(config))} "$@"\n', encoding="utf-8")
            program.chmod(0o755)


def mpi_on_one_machine() -> dict[str, str]:
    """Return what lets Open MPI take this one machine for several, as which it gets several names.

    Ranks that it believes to be on different machines must not look for shared memory, and its daemons none either.
    """
    return {"OMPI_MCA_btl": "self,tcp", "PMIX_MCA_gds": "hash"}
