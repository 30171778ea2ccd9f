"""The disk of this machine: files that a power cut leaves whole, and what is said and done when it is full."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from typing import TYPE_CHECKING

from persistent_runner.errors import DiskFull, RunnerError

if TYPE_CHECKING:
    from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MARGIN = 1 << 20  # bytes beside what is to be written: a journal, a database and a log share the disk


def refusal_of(error: OSError, path: Path, *, whose: str = "", needs_bytes: int = 0) -> RunnerError:
    """Return what stands for a write that this machine refused: DiskFull where room is all that it needs.

    `path` need not be there; `whose` it is begins the message.
    """
    what = f"{whose}{path} cannot be written"
    if error.errno not in _FULL:
        return RunnerError(
            f"{what}: {error.strerror or error}",
            remedy="Make room or mend the folder, then run the same line: it goes on where it stopped.",
        )
    usage = shutil.disk_usage(_there(path))
    return DiskFull(
        f"{what}: the disk of this machine is full, {usage.free / 1e6:.1f} of {usage.total / 1e6:.1f} MB are free",
        remedy="Make room there: it goes on by itself. After an end, the same line goes on where it stopped.",
        folder=path,
        needs_bytes=needs_bytes,
    )


def has_room(full: DiskFull) -> bool:
    """Return whether there is room again for what found none."""
    if full.folder is None:
        return True
    try:
        return shutil.disk_usage(_there(full.folder)).free >= full.needs_bytes + _MARGIN
    except OSError:
        return False


def _there(path: Path) -> Path:
    """Return what is there of a path: who makes room may delete a whole folder."""
    return next(above for above in (path, *path.parents) if above.is_dir())


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file: a reader sees the old one or the new one, and after a power cut it is one of both."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_whole(path: Path, data: bytes) -> None:
    """Append to a file, all of it or nothing, and wait until the disk has it."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)  # half a record would be damage once another one stands behind it
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder: those of files that were made or renamed there."""
    if sys.platform != "win32":  # Windows cannot open a directory, and renames durably
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
