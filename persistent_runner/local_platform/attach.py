"""Find the local platform of this user, or start it as a process of its own, and hold on to it.

While a driver is attached it keeps one loopback connection open; when the last one closes (a killed driver's closes by
itself) and no job is unfinished, the platform's process ends. Nothing here imports a server.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

from filelock import FileLock

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.durations import FAST, RECORDED, Durations

if TYPE_CHECKING:
    from types import TracebackType

FORMAT = 2
"""Version of the state file, and of how a driver attaches."""

_START_SECONDS = 60.0
_LINE = 200  # bytes

_SPEEDS = {"fast": FAST, "recorded": RECORDED}


@dataclass(frozen=True)
class StateFiles:
    """Where the local platform of this version of the package keeps its address, log and lock."""

    folder: Path

    def _named(self, suffix: str) -> Path:
        return self.folder / f"local-platform-{version('persistent_runner')}{suffix}"

    @property
    def state(self) -> Path:
        """Address and tokens, JSON, 0600."""
        return self._named(".json")

    @property
    def lock(self) -> Path:
        """Held while somebody looks or starts."""
        return self._named(".lock")

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self._named(".log")

    @property
    def authorized_keys(self) -> Path:
        """Keys that may log in to the nodes."""
        return self.folder / "authorized_keys"

    @property
    def ssh_key(self) -> Path:
        """The driver's private key."""
        return self.folder / "local_ed25519"

    def make_folder(self) -> None:
        """Make the folder, for this user alone."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)


@dataclass(frozen=True)
class Attachment:
    """A hold on a running local platform. `ssh_key` logs in to its nodes. Close it, or use it as a context manager."""

    base_url: str
    api_key: str
    ssh_key: Path
    authorized_keys: Path
    hold: socket.socket

    def close(self) -> None:
        """Let go; the platform ends when nobody else holds it and no job is unfinished."""
        self.hold.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_posix() -> None:
    """Raise ConfigError where there is no POSIX shell."""
    if os.name == "nt":
        raise ConfigError(
            "The local platform needs a POSIX shell: use WSL, or go on with --profile NAME --check.",
        )


def require_servers() -> None:
    """Raise ConfigError where the extra `local` is not installed."""
    missing = [name for name in ("asyncssh", "flask", "waitress") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The local platform is not installed: {', '.join(missing)} cannot be found.",
            remedy='Install it with: pip install "persistent_runner[local]"',
        )


def ensure_process(state_dir: Path, durations: Durations = FAST) -> Attachment:
    """Return a hold on this user's local platform; start it where it does not run.

    `durations` (FAST or RECORDED) count where it is started. Drivers that come at the same time share one. Raises
    ConfigError where the machine cannot serve it.
    """
    require_posix()
    require_servers()
    files = StateFiles(Path(state_dir).absolute())
    files.make_folder()
    with FileLock(files.lock):
        make_key_pair(files.ssh_key, files.authorized_keys)
        return _attach(files) or _start(files, durations)


def _attach(files: StateFiles) -> Attachment | None:
    """Return a hold on the platform that the state file names; None where it is gone or going."""
    try:
        state = json.loads(files.state.read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            return None
        hold = socket.create_connection(("127.0.0.1", int(state["control_port"])), timeout=10)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(hold.close)
        try:
            # Another user's program may listen on the port of a platform that is gone: neither side shows the token.
            nonce, token = secrets.token_hex(16), state["control_token"]
            with hold.makefile("rb") as lines:
                hold.sendall(f"{nonce}\n".encode())
                if not hmac.compare_digest(lines.readline(_LINE).strip(), proof_of(token, "platform", nonce)):
                    return None
                hold.sendall(proof_of(token, "driver", nonce) + b"\n")
                if lines.readline(_LINE) != b"ok\n":
                    return None
            hold.settimeout(None)
            held = Attachment(state["base_url"], state["api_key"], files.ssh_key, files.authorized_keys, hold)
        except (OSError, KeyError):
            return None
        undo.pop_all()
        return held


def proof_of(token: str, who: str, nonce: str) -> bytes:
    """Return what shows that `who` (`platform`, `driver`) knows the token, for one nonce: HMAC-SHA-256 in hex."""
    return hmac.new(token.encode(), f"{who} {nonce}".encode(), "sha256").hexdigest().encode()


def _start(files: StateFiles, durations: Durations) -> Attachment:
    speed = next(name for name, known in _SPEEDS.items() if known == durations)
    # No key of a real account goes into a process that outlives this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESCALE_")}
    with files.log.open("ab") as log:
        files.log.chmod(0o600)
        process = subprocess.Popen(
            [sys.executable, "-m", "persistent_runner.local_platform.process", str(files.folder), speed],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    assert process.stdout is not None
    patience = threading.Timer(_START_SECONDS, process.kill)
    patience.daemon = True
    patience.start()
    try:
        with process.stdout as output:
            ready = output.readline()  # ends with the process, so a start that fails is seen at once
    finally:
        patience.cancel()
    threading.Thread(target=process.wait, name="reap-local-platform", daemon=True).start()
    attachment = _attach(files) if ready == b"ready\n" else None
    if attachment is None:
        said = files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ConfigError(
            f"The local platform did not start: {said[0] if said else 'it said nothing'}",
            remedy=f"Its log is {files.log}",
        )
    return attachment


def make_key_pair(ssh_key: Path, authorized_keys: Path) -> None:
    """Make an Ed25519 key pair (0600) where there is none, and let its public key log in."""
    public = ssh_key.with_suffix(".pub")
    if not (ssh_key.exists() and public.exists()):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.generate()
        _write_private(
            ssh_key,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
        )
        _write_private(
            public,
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n",
        )
    line = public.read_bytes().strip()
    known = authorized_keys.read_bytes() if authorized_keys.exists() else b""
    if line not in known.splitlines():
        _write_private(authorized_keys, known + (b"" if known.endswith(b"\n") or not known else b"\n") + line + b"\n")


def write_state(files: StateFiles, state: dict[str, object]) -> None:
    """Write the state file, whole or not at all."""
    _write_private(files.state, json.dumps({"format": FORMAT, **state}).encode())


def _write_private(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:  # noqa: PTH123
        stream.write(content)
    partial.replace(path)
