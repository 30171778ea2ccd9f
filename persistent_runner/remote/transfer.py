"""Files too big for a frame: pieces in flight together, a checksum at the end, a temporary name until then."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING

from persistent_runner.crash import crash_point
from persistent_runner.disk import sync_folder
from persistent_runner.errors import ConfigError, ResultMissing
from persistent_runner.remote.agent import STATIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.inputs import SharedFile
    from persistent_runner.remote.frames import OutputFile
    from persistent_runner.remote.link import Link

PIECE = 1 << 18  # bytes of one request: it must pass a slow line before that counts as dead
IN_FLIGHT = 16  # requests on the way together: 4 MB, which fills 40 MB/s at 100 ms
_READ_ONLY = 0o400
_PATIENCE = 0.5  # seconds between two looks whether a file that another trial sends is still needed


def fetch(link: Link, attempt: str, output: OutputFile, target: Path) -> None:
    """Bring one output here as `target`, whole or not at all; ResultMissing when it changed on the way."""
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    try:
        with part.open("wb") as file:
            whole = [output.data] if output.data is not None else None
            for piece in whole or _pieces(link, f"{attempt}/{output.path}", output):
                file.write(piece)
                found.update(piece)
                crash_point("piece-written")
            file.flush()
            os.fsync(file.fileno())
        _compare(found.hexdigest(), output, attempt)
        part.replace(target)
        sync_folder(target.parent)
        crash_point("renamed")
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _compare(found: str, output: OutputFile, attempt: str) -> None:
    if found != output.sha256:
        raise ResultMissing(
            f"{output.path} of attempt {attempt} changed after its command had ended",
            remedy="Something that the command left behind still writes to it; let the command wait for it.",
        )


def _pieces(link: Link, path: str, output: OutputFile) -> Iterator[bytes]:
    waiting: deque[Future[bytes]] = deque()
    offsets = iter(range(0, output.size_bytes, PIECE))
    while True:
        while len(waiting) < IN_FLIGHT and (offset := next(offsets, None)) is not None:
            waiting.append(link.get(path, offset=offset, length=min(PIECE, output.size_bytes - offset)))
        if not waiting:
            return
        yield waiting.popleft().result()  # the link's own patience bounds it


def send(link: Link, path: str, data: bytes, mode: int, *, before: tuple[str, int] | None = None) -> None:
    """Bring bytes to the node as `path` below the run's folder, unless the command `before` was claimed already."""
    pieces = (data[offset : offset + PIECE] for offset in range(0, max(len(data), 1), PIECE))
    checksum = hashlib.sha256(data).hexdigest()
    _send(link, path, pieces, size=len(data), checksum=checksum, mode=mode, before=before)


def share(link: Link, files: Iterable[SharedFile], check: Callable[[], None]) -> None:
    """Bring to the node what it does not have of these files, each once, where each attempt's copy is made from.

    `check` is called now and then, and raises to give up. ConfigError for a file that changes meanwhile.
    """
    wanted = {file.sha256: file for file in files}
    while not link.sharing.acquire(timeout=_PATIENCE):  # trials that start together need the same files
        check()
    try:
        found = link.outputs(STATIC, sorted(wanted), checksums=False).result()
        there = {output.path: output.size_bytes for output in found}
        for name, file in wanted.items():
            if there.get(name) != file.size_bytes:
                pieces = _unchanged(file, check)
                _send(link, f"{STATIC}/{name}", pieces, size=file.size_bytes, checksum=name, mode=_READ_ONLY)
    finally:
        link.sharing.release()


def _unchanged(file: SharedFile, check: Callable[[], None]) -> Iterator[bytes]:
    """Yield a file in pieces; the last one only where all of it is still what its hash was taken of."""
    found, left = hashlib.sha256(), file.size_bytes
    try:
        with file.source.open("rb") as source:
            while left:
                check()
                piece = source.read(min(PIECE, left))
                found.update(piece)
                left -= len(piece)
                if not piece or (not left and found.hexdigest() != file.sha256):
                    raise ConfigError(
                        f"input {file.source} changed while it was sent",
                        remedy="Leave the inputs as they are while a study runs; the same line goes on.",
                    )
                yield piece
    except OSError as error:
        raise ConfigError(f"input {file.source} cannot be read: {error.strerror}") from None


def _send(
    link: Link,
    path: str,
    pieces: Iterable[bytes],
    *,
    size: int,
    checksum: str,
    mode: int,
    before: tuple[str, int] | None = None,
) -> None:
    waiting: deque[Future[None]] = deque()
    offset = 0
    for piece in pieces:
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().result()
        waiting.append(link.put(path, piece, offset=offset, size=size, sha256=checksum, mode=mode, before=before))
        offset += len(piece)
    for left in waiting:
        left.result()
