"""A working directory that is gone with its cluster, answered out of the files that the platform has saved of it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from persistent_runner.errors import AttemptLost, PlatformError
from persistent_runner.remote import agent
from persistent_runner.remote.frames import Exit, OutputFile, exit_of
from persistent_runner.remote.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.rescale.api import File
    from persistent_runner.rescale.files import JobFiles

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SavedFiles:
    """The files that the platform has saved of one attempt, by their path in its working directory."""

    platform: JobFiles
    by_path: Mapping[str, File]

    def check(self, path: str) -> None:
        """Raise NotSaved where a file is not among them."""
        if path not in self.by_path:
            raise NotSaved(f"{path} is not among the saved files")


class NotSaved(AttemptLost):
    """The command had not ended, or nothing of it was saved."""


class SavedLink:
    """What a WorkDir asks of its link, for one attempt that nothing can be done about any more.

    A command that had ended is joined, with its log and outputs; one whose end was not saved, or that was another one,
    is AttemptLost. Files that are asked for are brought into `folder`. Raises the PlatformErrors of a download, in the
    future as the link does.
    """

    connection = None
    node = "saved files"

    def __init__(self, files: SavedFiles, folder: Path) -> None:
        self._download = files.platform.download
        self._files, self._saved = files, files.by_path
        self._folder = folder
        self._manifest: dict[str, OutputFile] = {}
        self._here: dict[str, Path] = {}
        self.lanes = Lanes()  # which nothing carries

    def start(
        self,
        attempt: str,
        seq: int,
        *,
        command_hash: str,
        on_log: Callable[[int, bytes], None] | None = None,
        seldom: bool = False,
        **_: Any,
    ) -> Future[Exit]:
        """Join a command that has ended; nothing is started."""
        return _answered(lambda: self._exit(attempt, seq, command_hash, None if seldom else on_log))

    def _exit(self, attempt: str, seq: int, command_hash: str, on_log: Callable[[int, bytes], None] | None) -> Exit:
        claim, ended = (self._record(f".attempt/{seq}/{name}.json") for name in ("command", "exit"))
        if claim is None or ended is None or "refusal" in ended:
            raise NotSaved(f"attempt {attempt}: the end of its command {seq + 1} is not among the saved files")
        if claim["hash"] != command_hash:
            return Exit("mismatch")
        log = f".attempt/{seq}/log"
        printed = self._local(log).read_bytes() if log in self._saved else b""
        if on_log is not None:
            on_log(0, printed)
        tail = printed[-agent.LOG_TAIL :]
        found = exit_of(ended | {"log_tail": len(tail), "log_size": len(printed)}, tail)
        self._manifest |= {output.path: output for output in found.manifest or ()}
        return found

    def outputs(
        self, attempt: str, patterns: Sequence[str], *, checksums: bool = True
    ) -> Future[tuple[OutputFile, ...]]:
        """List what the patterns name among the saved files."""
        del attempt
        named = [agent.pattern(text) for text in patterns]
        paths = [
            path
            for path in sorted(self._saved)
            if path in patterns or (not path.startswith(".attempt/") and any(one.match(path) for one in named))
        ]
        return _answered(lambda: tuple(self._output(path, checksums=checksums) for path in paths))

    def _output(self, path: str, *, checksums: bool) -> OutputFile:
        if path in self._manifest:
            return self._manifest[path]
        size = self._saved[path].decrypted_size
        if not checksums and size is not None:
            return OutputFile(path, size)
        data = self._local(path)
        with data.open("rb") as file:
            return OutputFile(path, data.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def get(self, path: str, *, offset: int, length: int) -> Future[bytes]:
        """Read a piece of a saved file; `path` begins with the attempt."""

        def piece() -> bytes:
            with self._local(path.partition("/")[2]).open("rb") as file:
                file.seek(offset)
                return file.read(length)

        return _answered(piece)

    def put(self, *_: Any, **__: Any) -> Future[None]:
        """Take an input of a command that has run: it stays as it was."""
        return _answered(lambda: None)

    def kill(self, attempt: str, seq: int) -> Future[None]:
        """Do nothing: it has ended."""
        del attempt, seq
        return _answered(lambda: None)

    def _record(self, path: str) -> dict[str, Any] | None:
        if path not in self._saved:
            return None
        record: dict[str, Any] = json.loads(self._local(path).read_text("utf-8"))
        return record

    def _local(self, path: str) -> Path:
        """Return a local copy, compared with its checksum as far as there is one."""
        if path not in self._here:
            self._files.check(path)
            known = self._manifest.get(path)
            size, checksum = (known.size_bytes, known.sha256) if known and known.sha256 else (None, "")
            file = self._saved[path]
            self._here[path] = self._download(file, self._folder, path, size_bytes=size, sha256=checksum)
        return self._here[path]


def _answered(work: Callable[[], Answer]) -> Future[Answer]:
    future: Future[Answer] = Future()
    try:
        future.set_result(work())
    except (AttemptLost, PlatformError, OSError, ValueError, KeyError) as error:
        future.set_exception(error)
    return future
