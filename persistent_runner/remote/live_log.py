"""What a running command has printed so far, in a file here: for whoever looks at a trial while it runs.

`command-1.live` stands beside the log that `command-1.log` will be, and goes when that one is there. It may have gaps,
which it names, and is cut at the front; nothing but display depends on it, so a disk that refuses it stops nothing.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, BinaryIO

from persistent_runner.printable import printable

if TYPE_CHECKING:
    import queue
    from collections.abc import Callable
    from pathlib import Path

    from persistent_runner.remote.frames import Exit

KEPT_NAME = re.compile(r"command-\d+\.(log|live)", re.IGNORECASE)
MOST = 4 << 20  # bytes; of a file that would be bigger the last half stays
_LINE_MOST = 1000  # bytes of a last line that are kept for a table
_CUT = b"[the first %d bytes were cut]\n"
_CUT_LINE = re.compile(rb"\[the first (\d{1,18}) bytes were cut\]\n")


def whole_log(folder: Path, seq: int) -> Path:
    """Return where a command's whole log is kept; commands count from zero, and for people from one."""
    return folder / f"command-{seq + 1}.log"


def keep_end(path: Path, ended: Exit) -> None:
    """Write what came of a log with its command's exit: a reader sees all of it or nothing."""
    cut = b"" if ended.log_bytes == len(ended.log_tail) else b"[the beginning was left on the node]\n"
    new = path.with_name(path.name + ".new")
    try:
        new.write_bytes(cut + ended.log_tail)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    new.replace(path)


def end_of_last_log(folder: Path, most: int) -> str:
    """Return the last bytes, at most so many, of the last command's whole log; empty where none is kept."""
    logs = sorted(folder.glob("command-*.log"), key=lambda path: (len(path.name), path.name))
    if not logs:
        return ""
    try:
        with logs[-1].open("rb") as file:  # which may have many megabytes
            file.seek(max(0, logs[-1].stat().st_size - most))
            return printable(file.read())
    except OSError:
        return ""


def live_log(folder: Path, seq: int) -> Path:
    """Return where the log of a running command grows."""
    return folder / f"command-{seq + 1}.live"


def forget(folder: Path) -> None:
    """Take away the logs of an earlier attempt."""
    for path in folder.glob("command-*"):
        if KEPT_NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def cut_before(file: BinaryIO) -> tuple[int, int]:
    """Return how many bytes were cut from a live log and where its text begins; leaves the file anywhere."""
    file.seek(0)
    first = _CUT_LINE.match(file.read(64))
    return (int(first[1]), first.end()) if first else (0, 0)


def follow(
    live: LiveLog, pieces: queue.SimpleQueue[tuple[int, bytes] | None], on_line: Callable[[str], None] | None
) -> None:
    """Take (offset, bytes) of a log until None comes; each line goes to `on_line` as well, whose errors are raised."""
    rest = b""
    while (piece := pieces.get()) is not None:
        live.add(*piece)
        if on_line is not None:
            *lines, rest = (rest + piece[1]).split(b"\n")
            for line in lines:
                on_line(printable(line))
    if on_line is not None and rest:
        on_line(printable(rest))


class LiveLog:
    """The live log of one command; written by one thread, its last line read by any."""

    def __init__(self, folder: Path, seq: int, most: int = MOST) -> None:
        self._folder = folder
        self._seq = seq
        self._path = live_log(folder, seq)
        self._most = most
        self._seen = 0  # bytes of the log on the node that have come, or were skipped
        self._size = 0
        self._cut = 0
        self._end = b""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def last_line(self) -> str:
        """The last line that is not empty, fit for a terminal; what a progress bar has overwritten does not count."""
        for line in reversed(re.split(rb"[\r\n]+", self._end)):
            if text := printable(line).replace("\t", " ").strip():
                return text
        return ""

    def add(self, offset: int, data: bytes) -> None:
        """Take what the log on the node has from an offset on."""
        left_out, self._seen = offset - self._seen, offset + len(data)
        if left_out > 0:
            data = b"[%d bytes are left out here]\n" % left_out + data
        if not data:
            return
        self._end = (self._end + data)[-_LINE_MOST:]
        with contextlib.suppress(OSError):
            if self._size and self._size + len(data) > self._most:
                self._cut_front()
            with self._path.open("ab") as file:
                file.write(data)
            self._size += len(data)

    def end(self, ended: Exit) -> None:
        """Take what had not come when the command ended, for whoever reads on here."""
        if self._size:
            self._add_end(ended)

    def remove(self) -> None:
        """Go: the whole log is here."""
        if self._size:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def keep(self, ended: Exit) -> None:
        """Be the log of a command that was ended from here: nobody waits until its whole log has come."""
        self._add_end(ended)
        with contextlib.suppress(OSError):
            self._path.replace(whole_log(self._folder, self._seq))

    def _add_end(self, ended: Exit) -> None:
        offset = ended.log_bytes - len(ended.log_tail)
        self.add(max(offset, self._seen), ended.log_tail[max(0, self._seen - offset) :])

    def _cut_front(self) -> None:
        """Keep the last half, behind a line that says how much is gone; a reader sees the old file or the new one."""
        with self._path.open("rb") as file:
            cut, begin = cut_before(file)
            size = file.seek(0, 2)
            at = max(begin, size - self._most // 2)
            file.seek(at)
            rest = file.read()
        cut += at - begin
        new = self._path.with_name(self._path.name + ".new")
        new.write_bytes(_CUT % cut + rest)
        new.replace(self._path)
        self._size = len(rest)
