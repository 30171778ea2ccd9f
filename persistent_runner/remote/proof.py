"""How the machines of a lease prove themselves, before anything that matters is sent to one.

Two ways, and the first that works pins the host key. (1) The job prints its machine's host keys, and we read them from
the job's log over HTTPS: they are pinned before the first byte. (2) The lease's secret went to the job over HTTPS, and
its command wrote it into a file: the machine reads it back over the very connection whose key is then pinned. A man in
the middle can pretend that our login succeeded, but not know the secret, and our signature is bound to his host key
(RFC 4252, section 7), so that it opens nothing elsewhere. The secret flows from the node to us and never back.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
import re
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import paramiko

from persistent_runner.errors import ConnectionLost, HostNotProven, PlatformError
from persistent_runner.remote.keys import public_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from persistent_runner.remote.node import Node

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
_ANSWER_BYTES = 4096
HOST_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
"""The types of host keys that the SSH library can check; others in a log are left out."""


@dataclass
class Proof:
    """How the machines of one lease prove themselves, and the host keys that were proven.

    `name` is the lease's. `secret` is the text that its machines read back; empty: there is none. `log_keys` returns
    the host keys in the job's log, as OpenSSH lines without a comment, and may raise PlatformError; None: there is no
    log. They may come for up to `wait` after the first look. `unverified`: where neither way works, whoever answers is
    taken for the machine. `pins` are the proven keys of each machine (see `machine_of`);
    `on_pin` is called with each new entry.
    """

    name: str
    secret: str = field(default="", repr=False)
    log_keys: Callable[[], list[str]] | None = None
    unverified: bool = False
    pins: dict[str, list[str]] = field(default_factory=dict)
    on_pin: Callable[[str, list[str]], None] = lambda _machine, _lines: None
    wait: timedelta = timedelta(seconds=60)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name):
            raise ValueError(f"{self.name!r} cannot name a lease")
        self._waits: dict[str, float] = {}  # machine: when the wait for its keys ends
        self._warned = False

    @property
    def command(self) -> str:
        """The only command that a machine gets before it is proven."""
        return f"cat .persistent-runner/{self.name}/proof"

    def pin(self, machine: str, lines: Iterable[str]) -> None:
        """Keep the proven keys of a machine."""
        self.pins[machine] = list(lines)
        self.on_pin(machine, self.pins[machine])

    def keys_in_log(self, node: Node) -> list[str]:
        """Return the host keys that the job's log shows; empty where it shows none in time.

        Raises ConnectionLost while they may still come: whoever tries again sees meanwhile whether the job lives.
        """
        found = self._look()
        if found or self.log_keys is None:
            return found
        until = self._waits.setdefault(machine_of(node), time.monotonic() + self.wait.total_seconds())
        if time.monotonic() < until:
            raise ConnectionLost(f"{node}: the job's log shows no host keys yet.")
        return []

    def warn_of_other_keys(self, node: Node) -> None:
        """Say once that the machine proved itself by the secret, but shows none of the keys in the log."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s proved itself by the lease's secret, but shows none of the host keys in the job's log: "
                "another SSH server than the one of those keys answers there",
                node,
            )

    def _look(self) -> list[str]:
        if self.log_keys is None:
            return []
        try:
            lines = self.log_keys()
        except PlatformError as error:
            log.debug("the job's log cannot be read: %s", error.message)
            return []
        return [line for line in dict.fromkeys(map(_plain, lines)) if line]


def machine_of(node: Node) -> str:
    """Return the name under which a machine's keys are pinned; another launch of the same job is another machine."""
    return f"{node.instance_id} {node.started}"


def check_secret(transport: paramiko.Transport, proof: Proof, node: Node) -> str:
    """Let a machine read the lease's secret back over its open transport, on which nothing else was sent yet.

    Return "" when it did, otherwise in words what it did instead, where it may do better later: its job may not have
    begun. Raises HostNotProven for another text, also where `unverified` is set, and ConnectionLost when the connection
    ends.
    """
    try:
        text, code = _answer(transport, proof.command)
    except (paramiko.SSHException, EOFError, OSError) as error:
        if transport.is_active():
            return f"it did not run the command that proves it ({error or type(error).__name__})"
        raise ConnectionLost(f"{node}: {error or 'the connection ended before the machine was proven'}") from None
    # What a login shell prints stands around it; a line equal to 256 random bits is proof wherever it stands.
    matches = [hmac.compare_digest(line.strip(), proof.secret.encode()) for line in text.splitlines()]
    if any(matches):
        return ""
    if len(text) >= _ANSWER_BYTES:
        raise not_proven(node, proof, [f"it answered with more than {_ANSWER_BYTES} bytes"])
    if code is None:
        return f"it did not answer within {ANSWER_SECONDS:.0f} s"
    if code != 0:
        return f"it has no file with the lease's secret (exit code {code} of `{proof.command}`)"
    if not text.strip():
        return "its file with the lease's secret is empty: the platform did not hand it on"
    raise not_proven(node, proof, ["it answered with another text than the lease's secret"])


def not_proven(node: Node, proof: Proof, tried: list[str]) -> HostNotProven:
    """Return the error for a machine that nothing proves."""
    return HostNotProven(
        f"nothing proves that {node} is a machine of the lease {proof.name}: {'; '.join(tried)}",
        remedy="It got at most the user name, the public key and the command that asks for the proof. Look who stands "
        "in between (VPN, proxy, firewall). On a platform that shows neither log nor environment: "
        'host_key = "accept-unverified" in [cluster].',
    )


def _answer(transport: paramiko.Transport, command: str) -> tuple[bytes, int | None]:
    """Return what a command prints, at most 4 KiB, and its exit code; None when it has none within 5 s."""
    channel = transport.open_session(timeout=ANSWER_SECONDS)

    def end() -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):  # on a dead connection it raises
            channel.close()

    def cut() -> None:
        end()
        channel.event.set()  # paramiko waits for the reply to exec on it, without an end

    timer = threading.Timer(ANSWER_SECONDS, cut)
    timer.daemon = True
    timer.start()
    text = b""
    try:
        channel.exec_command(command)
        while len(text) < _ANSWER_BYTES and (data := channel.recv(_ANSWER_BYTES - len(text))):
            text += data
        if len(text) < _ANSWER_BYTES:
            channel.status_event.wait(ANSWER_SECONDS)
        return text, None if channel.exit_status < 0 else channel.exit_status
    finally:
        timer.cancel()
        end()


def _plain(line: str) -> str:
    """Return a host key's type and base64; empty for a line that holds none that can be checked."""
    kind, text = [*line.split(), "", ""][:2]
    try:
        key = paramiko.PKey.from_type_string(kind, base64.b64decode(text, validate=True))
    except Exception:  # noqa: BLE001 - whatever it is, it is no host key
        return ""
    return public_line(key) if key.get_name() == kind and kind in HOST_KEY_TYPES else ""
