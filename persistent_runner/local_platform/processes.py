"""The processes of a virtual cluster: what they see, how they are started, and that none of them survives."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistent_runner.local_platform.clock import Clock

MARKER = "LOCAL_PLATFORM_JOB"
"""Variable that every process of a job inherits; supervisors leave session and parent, but not their environment."""

MACHINE = "LOCAL_PLATFORM_MACHINE"
"""The same of one machine of a job."""

_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


def shell() -> str:
    """Return the login shell of a node: bash, or sh where there is none."""
    return shutil.which("bash") or "/bin/sh"


def python_folder(root: Path) -> Path:
    """Make and return a folder with `python` and `python3` that run the interpreter of this process.

    They are scripts, not links: a link would make Python look for its packages beside the link.
    """
    folder = root / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return folder


def search_path(programs: Path) -> str:
    """Return the PATH of a node: this interpreter's programs first, then what this process finds."""
    own = Path(sys.executable).parent
    first = [str(own)] if (own / "python").exists() and (own / "python3").exists() else [str(programs), str(own)]
    return os.pathsep.join([*first, os.environ.get("PATH", os.defpath)])


def base_environment(home: Path, user: str, path: str, marker: str) -> dict[str, str]:
    """Return what any process of a node gets. Little of this process's own environment: no key leaks into a job."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {
        **inherited,
        "PATH": path,
        "HOME": str(home),
        "USER": user,
        "LOGNAME": user,
        "SHELL": shell(),
        MARKER: marker,
    }


def write_login_profile(home: Path, variables: Mapping[str, str]) -> None:
    """Make login shells in `home` export `variables`; /etc/profile may have reset PATH before."""
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    for name in (".bash_profile", ".profile"):
        profile = home / name
        profile.write_text(text, encoding="utf-8")
        profile.chmod(0o600)


class LoggedCommand:
    """A job's command under a shell in `folder`, its output in `folder`/process_output.log as the platform writes it.

    Every line begins with `[YYYY-MM-DDTHH:MM:SSZ]: `; the first names the command, the last but one the exit code
    (recorded logs of 2022-23).
    """

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str], clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._log = (folder / "process_output.log").open("ab")
        self._line(f"Launching {command}, Working dir: {folder}.  Process output follows:".encode())
        self._process = subprocess.Popen(
            [shell(), "-c", command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        (folder / ".rescalepid").write_text(f"{self._process.pid}\n", encoding="utf-8")
        self._pump = threading.Thread(target=self._copy_output, name="command-output", daemon=True)
        self._pump.start()

    def _line(self, text: bytes) -> None:
        stamp = self._clock.now().strftime("[%Y-%m-%dT%H:%M:%SZ]: ").encode()
        with self._lock:
            if not self._log.closed:
                self._log.write(b"".join(stamp + line + b"\n" for line in text.split(b"\n")))
                self._log.flush()

    def _copy_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._line(line.removesuffix(b"\n"))

    def wait(self) -> int:
        """Wait for the end, finish the log, return the exit code (128 + n for signal n)."""
        code = self._process.wait()
        code = 128 - code if code < 0 else code
        # A child that the command left behind may hold the pipe open for ever: its later output is not the command's.
        self._pump.join(timeout=2.0)
        self._line(f"Exited with code {code}\n".encode())
        with self._lock:
            self._log.close()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command and its process group; nothing where it has ended."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def marked(marker: str, variable: str = MARKER) -> list[int]:
    """Return the ids of the living processes that carry `marker` in their environment.

    Linux: `/proc/*/environ`. Elsewhere: what `ps` shows, which is a best effort. A process that cleared its
    environment and left its parent is not found.
    """
    wanted = f"{variable}={marker}"
    own = os.getpid()
    if not Path("/proc/self/environ").exists():
        listing = subprocess.run(["ps", "axEww", "-o", "pid=,command="], capture_output=True, check=False)
        rows = (line.split(maxsplit=1) for line in listing.stdout.decode(errors="replace").splitlines())
        return [int(row[0]) for row in rows if len(row) == 2 and wanted in row[1] and int(row[0]) != own]
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != own:
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as stream:  # noqa: PTH123
                if wanted.encode() in stream.read().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end_all(marker: str, variable: str = MARKER, *, deadline: float = 10.0) -> bool:
    """Kill every process that carries `marker`, those included that are started meanwhile.

    `deadline` in seconds. Returns whether none is left.
    """
    until = time.monotonic() + deadline
    while found := marked(marker, variable):
        for number in (signal.SIGSTOP, signal.SIGKILL):  # at once, as by a loss of power: none sees the end of another
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
