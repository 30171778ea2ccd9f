"""`runs/<study>/`: what belongs to a study, and the journal that is the truth about it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import filelock

from persistent_runner.disk import append_whole, refusal_of, write_whole
from persistent_runner.errors import ConfigError
from persistent_runner.recovery import Backoff, recover
from persistent_runner.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

log = logging.getLogger(__name__)

VERSION = 1

_WHILE_OPEN = Backoff(first=0.2, most=1.0, total=3.0)  # for another program to let go of a file


class _RunLog(logging.FileHandler):
    """A log that a full disk stops, and nothing else; what it did not take is written when there is room again."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say nothing where the disk is full: the study itself does."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class RunFolder:
    """One study's folder, held by one driver while it is entered.

    `run_id` names this run: a trial carries it, and so does its folder on the cluster. Raises ConfigError when another
    driver holds it, when a newer version wrote it, or when it cannot be written.
    """

    def __init__(self, path: Path, study: str) -> None:
        self.path = path
        self.study = study
        self.run_id = ""
        self.fingerprint: dict[str, Any] | None = None
        self.content: dict[str, dict[str, str]] | None = None
        self._lock = filelock.FileLock(path / "driver.lock", timeout=0)

    def __enter__(self) -> Self:
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            ignore = self.path.parent / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._lock.acquire()
            driver = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
            (self.path / "driver.json").write_text(json.dumps(driver) + "\n")
        except filelock.Timeout:
            raise ConfigError(
                f"another driver works in {self.path}: {self._first_driver()}",
                remedy="Wait for it, stop it, or give this one a folder of its own with --runs-dir.",
            ) from None
        except OSError as error:
            self._lock.release()
            raise ConfigError(
                f"{self.path} cannot be written: {error.strerror}", remedy="Choose --runs-dir DIR."
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self.path / "driver.json").unlink(missing_ok=True)
        self._lock.release()

    @property
    def database(self) -> Path:
        """The study's own SQLite file."""
        return self.path / "study.db"

    @property
    def on_node(self) -> str:
        """The name of this run's folder on the cluster."""
        return f"{self.path.name}.{self.run_id}"

    def set_fingerprint(self, fingerprint: dict[str, Any]) -> None:
        """Keep what the study searches, so that a later start can tell whether it changed."""
        self.fingerprint = fingerprint
        self._write_run()

    def set_content(self, content: dict[str, dict[str, str]]) -> None:
        """Keep what the study runs, so that a later start can tell whether it changed."""
        self.content = content
        self._write_run()

    def journal(self) -> Iterator[dict[str, Any]]:
        """Yield the journal's records, one at a time in memory; a torn last line, left by a crash, is cut away."""
        path = self.path / "journal.jsonl"
        if not path.exists():
            return
        size_bytes = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                size_bytes += len(line)
                try:
                    record = json.loads(line)
                except ValueError:
                    raise ConfigError(
                        f"{path}, line {number} is damaged", remedy="Move the folder away to begin a new run."
                    ) from None
                yield record
            else:
                return
        with path.open("r+b") as file:
            file.truncate(size_bytes)
            os.fsync(file.fileno())

    def commit(self, **record: Any) -> None:
        """Append a record to the journal and wait until the disk has it: the commit point of a result.

        RunnerError where it cannot be written, DiskFull among them.
        """
        path = self.path / "journal.jsonl"
        try:
            append_whole(path, redact(json.dumps(record | {"at": _now()})).encode() + b"\n")
        except OSError as error:
            raise refusal_of(error, path) from error

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to `events.jsonl`, for whoever watches; nothing depends on it."""
        with contextlib.suppress(OSError), (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(redact(json.dumps({"at": _now(), "event": kind} | facts, default=str)) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run folder whole, without secrets: a reader sees the old one or the new one."""
        path = self.path / name
        write_whole(path, redact(text).encode())
        return path

    def keep(self, name: str, text: str) -> None:
        """Write a file that is only looked at; where that cannot be, say so once and end nothing.

        A file that another program has open is waited for a moment (Windows lets nobody replace it). The next start
        writes it in any case.
        """
        try:
            recover(lambda: self.write(name, text), {PermissionError: lambda _: None}, _WHILE_OPEN)
        except OSError as error:
            log.warning(
                "%s could not be written: %s.%s All results are in the journal, and the same line again writes it.",
                self.path / name,
                error.strerror or error,
                " Is it open in another program?" if isinstance(error, PermissionError) else "",
            )

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """Keep the whole log of this start in `run.log`."""
        handler = _RunLog(self.path / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        ours, theirs = logging.getLogger("persistent_runner"), logging.getLogger("paramiko")
        before = ours.level, theirs.level, theirs.propagate
        ours.setLevel(logging.DEBUG)
        theirs.setLevel(logging.WARNING)
        theirs.propagate = False  # its tracebacks are for the file, not for the terminal
        for logger in (ours, theirs):
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in (ours, theirs):
                logger.removeHandler(handler)
            with contextlib.suppress(OSError):  # what a full disk did not take
                handler.close()
            ours.setLevel(before[0])
            theirs.setLevel(before[1])
            theirs.propagate = before[2]

    def look(self) -> bool:
        """Read what the folder holds, which need not be held for it; return whether it holds a run at all.

        ConfigError for one that cannot be used.
        """
        path = self.path / "run.json"
        if not path.exists():
            return False
        try:
            found = json.loads(path.read_text("utf-8"))
            version, self.run_id, study = int(found["version"]), str(found["run_id"]), str(found["study"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is damaged", remedy="Move the folder away to begin a new run.") from None
        if version > VERSION:
            raise ConfigError(
                f"{path} was written by a newer persistent_runner (format {version}, this one knows {VERSION})",
                remedy="Use that version, or another --runs-dir.",
            )
        if study != self.study:
            raise ConfigError(
                f"{self.path} belongs to the study {study!r}, not to {self.study!r}",
                remedy="Give one of them another name, or choose another folder with --runs-dir.",
            )
        self.fingerprint = found.get("fingerprint")
        self.content = found.get("content")
        return True

    @property
    def has_complete(self) -> bool:
        """Whether the journal has a complete trial; it is only looked at, and may be written meanwhile."""
        with contextlib.suppress(OSError):
            return b'"state": "COMPLETE"' in (self.path / "journal.jsonl").read_bytes()
        return False

    def _open(self) -> None:
        if not self.look():
            self.run_id = secrets.token_hex(4)
            (self.path / "journal.jsonl").touch()
            self._write_run()

    @staticmethod
    def run_at(path: Path) -> str | None:
        """Return the id of the run that a folder holds; None where it holds none."""
        try:
            return str(json.loads((path / "run.json").read_text("utf-8"))["run_id"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # damaged: somebody's, and not ours

    def _write_run(self) -> None:
        run = {"version": VERSION, "run_id": self.run_id, "study": self.study}
        run |= {"fingerprint": self.fingerprint, "content": self.content}
        try:
            self.write("run.json", json.dumps(run, indent=1) + "\n")
        except OSError as error:
            raise refusal_of(error, self.path / "run.json") from None

    def _first_driver(self) -> str:
        try:
            found = json.loads((self.path / "driver.json").read_text())
            return f"process {found['pid']} on {found['host']}, since {found['since']}"
        except (OSError, ValueError, KeyError):
            return "it did not say which"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
