"""The way onto a node for a person with OpenSSH's client."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def ssh_line(connection: Any, directory: str, known_hosts: Path) -> str:
    """Return the command line that leads into a directory of a connection's node; writes the host's proven keys."""
    identity = connection.identity
    node = identity.node
    host = f"[{node.address}]:{node.port}" if node.port != 22 else node.address
    known_hosts.write_text("".join(f"{host} {line}\n" for line in sorted(identity.accepted or {identity.seen})))
    remote = f"cd {shlex.quote(directory)} && exec ${{SHELL:-sh}} -l"
    # OpenSSH takes several files there, and reads %, quotes and backslashes in their names.
    file = str(known_hosts).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    words = ["ssh", "-t", "-i", identity.key_name, "-p", str(node.port), "-o", "IdentitiesOnly=yes"]
    words += ["-o", f'UserKnownHostsFile="{file}"', f"{node.user}@{node.address}", remote]
    return shlex.join(words)
