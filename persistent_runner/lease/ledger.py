"""The record of every job that can cost money: one file a lease, on the disk before each call that it describes.

Beside `NAME.json` lie `NAME.secret`, by which the lease's machines prove themselves, and `NAME.lock`, which a driver
holds for as long as it lives and drives that lease.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import tempfile
import threading
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from filelock import FileLock, Timeout

from persistent_runner.disk import sync_folder
from persistent_runner.errors import ConfigError, RunnerError
from persistent_runner.recovery import Backoff, recover
from persistent_runner.redaction import hide

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT_VERSION = 2

_BRIEF = Backoff(first=0.05, most=0.2, total=2.0)

LeasePhase = Literal["creating", "saved", "submitting", "submitted", "kept", "releasing", "closed"]


class NotRecorded(RunnerError):
    """The disk did not take a record."""


@dataclass(frozen=True)
class Entry:
    """What is recorded of a lease.

    `name` is the job's name; `folder` the run folder; `state` the call that was about to be made or was made last;
    `host` and `pid` are the driver's; `began` and `changed` are UTC in ISO form. `account` is the platform's name of
    the user. `terms` is what another study's request must equal to adopt the cluster. `switch` are the numbers of the
    dead-man's switch, None where there is none. `price` is of the whole cluster per hour; `walltime_hours` its end by
    the platform. `kept_seconds` is how long it was to wait for another study, `kept_age` how old it was then. `pins`
    are the host keys of each machine that was proven; `unverified` says that the user accepted one without proof.
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
    account: str = ""
    study: str = ""
    terms: dict[str, Any] = field(default_factory=dict)
    switch: dict[str, Any] | None = None
    price: float | None = None
    walltime_hours: int = 0
    kept_seconds: float | None = None
    kept_age: float = 0.0
    pins: dict[str, list[str]] = field(default_factory=dict)
    unverified: bool = False

    @property
    def limit(self) -> timedelta:
        """How long the command may run in all: by its dead-man's switch, else by the walltime."""
        if self.switch is None:
            return timedelta(hours=self.walltime_hours)
        return timedelta(seconds=self.switch["budget"] * self.switch["tick_seconds"])


class Record:
    """The file of one lease, with its driver's lock; every change is on the disk when the method returns.

    Raises NotRecorded.
    """

    def __init__(self, path: Path, entry: Entry, lock: FileLock) -> None:
        self._path = path
        self._lock = lock
        self._changing = threading.RLock()
        self.entry = entry

    @property
    def secret(self) -> str:
        """What the lease's machines prove themselves with; empty where the file is gone."""
        try:
            found = self._beside("secret").read_text("ascii").strip()
        except (OSError, UnicodeError):
            return ""
        hide(found)
        return found

    def update(self, **changes: Any) -> None:
        """Record what is new; a closed lease needs its secret and its lock no more."""
        with self._changing:
            self.entry = replace(self.entry, **changes, changed=_now())
            _write(self._path, json.dumps({"version": FORMAT_VERSION, **asdict(self.entry)}, indent=1))
            if self.entry.state == "closed":
                self._beside("secret").unlink(missing_ok=True)
                self.let_go()

    def pin(self, machine: str, keys: list[str]) -> None:
        """Record the host keys of a machine that was proven; not where somebody else may drive the lease by now."""
        with self._changing:
            if self._lock.is_locked:
                self.update(pins={**self.entry.pins, machine: keys})

    def keep_secret(self, secret: str) -> None:
        """Write the lease's secret beside the record, for its user alone."""
        hide(secret)
        _write(self._beside("secret"), f"{secret}\n")

    def let_go(self) -> None:
        """Give the lock up: this process drives the lease no more."""
        with self._changing:
            self._lock.release(force=True)
        if self.entry.state == "closed":
            with contextlib.suppress(OSError):  # Windows does not delete what another process looks at
                Path(self._lock.lock_file).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(f"{self.entry.name}.{suffix}")


class Ledger:
    """The records in one directory, and whose leases this process records in it."""

    def __init__(
        self, directory: Path, *, base_url: str = "", profile: str = "", folder: str = "", account: str = ""
    ) -> None:
        self.directory = directory
        self.base_url = base_url
        self.folder = folder
        self.account = account
        self._profile = profile

    def open(self, name: str, *, secret: str = "", **facts: Any) -> Record:
        """Write the first record of a lease that is about to be created; `facts` are those of an `Entry`."""
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"{name!r} cannot name a lease")
        entry = Entry(
            name=name,
            base_url=self.base_url,
            profile=self._profile,
            folder=self.folder,
            state="creating",
            job_id="",
            host=socket.gethostname(),
            pid=os.getpid(),
            began=_now(),
            changed=_now(),
            account=self.account,
            **facts,
        )
        with _recording(self.directory / f"{name}.json"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._lock(name)
            lock.acquire()
        record = Record(self.directory / f"{name}.json", entry, lock)
        try:
            if secret:
                record.keep_secret(secret)
            record.update()
        except NotRecorded:
            record.let_go()
            raise
        return record

    def take(self, entry: Entry) -> Record | None:
        """Return the record of a lease whose driver is dead, now ours; None where it lives or cannot be judged.

        Only the host that wrote a record can tell whether its driver lives.
        """
        if entry.host != socket.gethostname():
            return None
        lock = self._lock(entry.name)
        try:
            lock.acquire()
        except (Timeout, OSError):
            return None
        path = self.directory / f"{entry.name}.json"
        try:
            return Record(path, _read(path), lock)  # read again: another driver may have settled it meanwhile
        except BaseException:
            lock.release()
            raise

    def is_driven(self, entry: Entry) -> bool | None:
        """Return whether the driver of a lease lives; None where this host cannot tell."""
        if entry.host != socket.gethostname():
            return None
        lock = self._lock(entry.name)
        try:
            lock.acquire()
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def entries(self) -> list[Entry]:
        """Return what is recorded, the oldest first; ConfigError for a file that this version cannot read."""
        return sorted((_read(path) for path in self.directory.glob("*.json")), key=lambda entry: entry.began)

    def unfinished(self) -> list[Entry]:
        """Return the records of leases that are not closed, the oldest first."""
        return [entry for entry in self.entries() if entry.state != "closed"]

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.directory / f"{name}.lock", timeout=0, thread_local=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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


@contextlib.contextmanager
def _recording(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, Timeout) as error:
        raise NotRecorded(
            f"The lease {path.stem} could not be recorded: {error}.",
            remedy=f"Make room, or correct the rights of {path.parent}.",
        ) from error


def _write(path: Path, text: str) -> None:
    """Replace the file whole, readable for its owner alone; it is on the disk when this returns."""
    with _recording(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # Windows refuses while another process reads the file.
        recover(lambda: Path(temporary).replace(path), {PermissionError: lambda _: None}, _BRIEF)
        sync_folder(path.parent)
