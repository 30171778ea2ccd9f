"""The record of every job that can cost money: one file a lease, on the disk before each call that it describes."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from persistent_runner.errors import ConfigError, RunnerError

FORMAT_VERSION = 1

LeasePhase = Literal["creating", "saved", "submitting", "submitted", "releasing", "closed"]


class NotRecorded(RunnerError):
    """The disk did not take a record."""


@dataclass(frozen=True)
class Entry:
    """What is recorded of a lease.

    `name` is the job's name; `folder` the run folder; `state` the call that was about to be made or was made last;
    `host` and `pid` are the driver's; `began` and `changed` are UTC in ISO form.
    """

    name: str
    base_url: str
    profile: str
    folder: str
    state: LeasePhase
    job_id: str
    host: str
    pid: int
    began: str
    changed: str


class Record:
    """The file of one lease; every change is on the disk when the method returns. Raises NotRecorded."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self._path = path
        self.entry = entry
        _write(path, entry)

    def update(self, *, state: LeasePhase, job_id: str | None = None) -> None:
        """Record the next state, and the job's id once there is one."""
        self.entry = replace(
            self.entry, state=state, job_id=self.entry.job_id if job_id is None else job_id, changed=_now()
        )
        _write(self._path, self.entry)


class Ledger:
    """The records in one directory, and whose leases this process records in it."""

    def __init__(self, directory: Path, *, base_url: str = "", profile: str = "", folder: str = "") -> None:
        self.directory = directory
        self._base_url = base_url
        self._profile = profile
        self._folder = folder

    def open(self, name: str) -> Record:
        """Write the first record of a lease that is about to be created."""
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"{name!r} cannot name a lease")
        entry = Entry(
            name=name,
            base_url=self._base_url,
            profile=self._profile,
            folder=self._folder,
            state="creating",
            job_id="",
            host=socket.gethostname(),
            pid=os.getpid(),
            began=_now(),
            changed=_now(),
        )
        return Record(self.directory / f"{name}.json", entry)

    def entries(self) -> list[Entry]:
        """Return what is recorded, the oldest first; ConfigError for a file that this version cannot read."""
        return sorted((_read(path) for path in self.directory.glob("*.json")), key=lambda entry: entry.began)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Entry:
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        version = content.pop("version")
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"{path} was written by a newer version (format {version}, this one reads {FORMAT_VERSION}).",
                remedy="Update persistent_runner.",
            )
        entry = Entry(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a record of a lease ({type(error).__name__}).",
            remedy="Look for its job on the platform by the file's name, then move the file away.",
        ) from error
    if entry.state not in get_args(LeasePhase):
        raise ConfigError(f"{path} holds an unknown state {entry.state!r}.", remedy="Update persistent_runner.")
    return entry


def _write(path: Path, entry: Entry) -> None:
    """Replace the file whole, readable for its owner alone; it is on the disk when this returns."""
    try:
        _replace(path, json.dumps({"version": FORMAT_VERSION, **asdict(entry)}, indent=1))
    except OSError as error:
        raise NotRecorded(
            f"The lease {entry.name} could not be recorded: {error}.",
            remedy=f"Make room, or correct the rights of {path.parent}.",
        ) from error


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
    if sys.platform != "win32":  # Windows cannot open a directory, and renames durably
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
