"""Files too big for a frame: pieces in flight together, a checksum at the end, a temporary name until then."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING

from persistent_runner.errors import ResultMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.remote.frames import OutputFile
    from persistent_runner.remote.link import Link

PIECE = 1 << 18  # bytes of one request: it must pass a slow line before that counts as dead
IN_FLIGHT = 16  # requests on the way together: 4 MB, which fills 40 MB/s at 100 ms


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
            file.flush()
            os.fsync(file.fileno())
        _compare(found.hexdigest(), output, attempt)
        part.replace(target)
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
    checksum = hashlib.sha256(data).hexdigest()
    waiting: deque[Future[None]] = deque()
    for offset in range(0, max(len(data), 1), PIECE):
        if len(waiting) == IN_FLIGHT:
            waiting.popleft().result()
        waiting.append(
            link.put(
                path,
                data[offset : offset + PIECE],
                offset=offset,
                size=len(data),
                sha256=checksum,
                mode=mode,
                before=before,
            )
        )
    for left in waiting:
        left.result()
