"""Files too big for a frame: pieces in flight together, a checksum at the end, a temporary name until then.

Up to LANE_BYTES they go over the link's own channel, bigger ones over lanes (`lanes.py`, `haul.py`). A piece that has
arrived does not come again, whatever drops on the way.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING

from persistent_runner.background import in_background
from persistent_runner.crash import crash_point
from persistent_runner.disk import sync_folder
from persistent_runner.errors import ConfigError, ResultMissing
from persistent_runner.remote.agent import PART, STATIC
from persistent_runner.remote.frames import NoRoom, failure_of, get_header, put_header
from persistent_runner.remote.haul import Piece, Ways, haul
from persistent_runner.remote.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Any, BinaryIO

    from persistent_runner.inputs import SharedFile
    from persistent_runner.remote.flow import Flow
    from persistent_runner.remote.frames import OutputFile
    from persistent_runner.remote.link import Link

PIECE = 1 << 18  # bytes of one request: it must pass a slow line before that counts as dead
IN_FLIGHT = 16  # requests on the way together: 4 MB, which fills 40 MB/s at 100 ms
LANE_BYTES = 4 << 20  # from which on a file is worth lanes
_READ_ONLY = 0o400
_PATIENCE = 0.5  # seconds between two looks whether a file that another trial sends is still needed
_SYNCED = 32 << 20  # bytes of a file between two calls of the disk
_READERS = 3  # lanes that read together where the node compresses with zlib


def fetch(link: Link, attempt: str, output: OutputFile, target: Path, progress: Progress | None = None) -> None:
    """Bring one output here as `target`, whole or not at all; ResultMissing when it changed on the way."""
    part = part_of(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file, progress or Progress(output.path, output.size_bytes) as shown:
            sink = _Sink(file, shown)
            path = f"{attempt}/{output.path}"
            if output.data is not None:
                sink.take(output.data)
            elif output.size_bytes < LANE_BYTES:
                for piece in _pieces(link, path, output):
                    sink.take(piece)
            else:
                _fetch_long(link, path, output, sink)
            found = sink.finish()
        _compare(found, output.sha256, path)
        part.replace(target)
        sync_folder(target.parent)
        crash_point("renamed")
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(target: Path) -> Path:
    """Return what a file is called here until all of it is."""
    return target.with_name(target.name + PART)


class _Sink:
    """A file that grows in order, whatever order its pieces come in."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress
        self._size = 0
        self._early: dict[int, bytes] = {}  # by offset
        self._found = hashlib.sha256()
        self._syncing: Future[None] | None = None

    def put(self, offset: int, data: bytes) -> None:
        self._early[offset] = data
        while self._size in self._early:
            self.take(self._early.pop(self._size))

    def take(self, data: bytes) -> None:
        self._file.write(data)
        if (self._size + len(data)) // _SYNCED > self._size // _SYNCED:
            self._sync()
        self._found.update(data)
        self._size += len(data)
        self._progress.add(len(data))
        crash_point("piece-written")

    def _sync(self) -> None:
        """Have the disk begin: what it has by then the end need not wait for."""
        self._file.flush()
        if self._syncing is None or self._syncing.done():
            self._syncing = in_background(functools.partial(os.fsync, self._file.fileno()), "sync")

    def finish(self) -> str:
        """Wait until the disk has all of it; return its hash."""
        if self._syncing is not None:
            self._syncing.exception()  # of the same disk: the next call says it
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._found.hexdigest()


def _compare(found: str, expected: str, path: str) -> None:
    if found != expected:
        raise _changed(path)


def _changed(path: str) -> ResultMissing:
    attempt, _, name = path.partition("/")
    return ResultMissing(
        f"{name} of attempt {attempt} changed after its command had ended",
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


def _fetch_long(link: Link, path: str, output: OutputFile, sink: _Sink) -> None:
    flow = link.lanes.back

    def pieces() -> Iterator[Piece]:
        offset = 0
        while offset < output.size_bytes:
            size = min(flow.piece, output.size_bytes - offset)
            yield Piece(get_header(path, offset, size), size)
            offset += size

    def deliver(piece: Piece, data: bytes) -> None:
        if len(data) != piece.size:
            raise _changed(path)
        sink.put(piece.header["offset"], data)

    haul(
        _ways(link, flow, lambda piece: link.get(path, offset=piece.header["offset"], length=piece.size)),
        pieces(),
        deliver,
        lanes=1,
        most=_READERS,
    )


def _ways(link: Link, flow: Flow, by_link: Callable[[Piece], Future[bytes] | Future[None]]) -> Ways:
    return Ways(link.lanes, flow, by_link, lambda: link.ping().result(), lambda header: failure_of(header, link.node))


def send(
    link: Link,
    path: str,
    data: bytes,
    mode: int,
    progress: Progress | None = None,
    *,
    before: tuple[str, int] | None = None,
) -> None:
    """Bring bytes to the node as `path` below the run's folder, unless the command `before` was claimed already."""
    pieces = _cut(data, _piece_of(link, len(data)))
    checksum = hashlib.sha256(data).hexdigest()
    with progress or Progress(path.partition("/")[2], len(data)) as shown:
        _send(link, path, pieces, size=len(data), checksum=checksum, mode=mode, before=before, progress=shown)


def share(
    link: Link,
    files: Iterable[SharedFile],
    check: Callable[[], None],
    progress: Callable[[str, int], Progress] = Progress,
) -> None:
    """Bring to the node what it does not have of these files, each once, where each attempt's copy is made from.

    `check` is called now and then, and raises to give up; `progress` makes that of each, of its name
    and size. ConfigError for a file that changes meanwhile.
    """
    wanted = {file.sha256: file for file in files}
    while not link.sharing.acquire(timeout=_PATIENCE):  # trials that start together need the same files
        check()
    try:
        found = link.outputs(STATIC, sorted(wanted), checksums=False).result()
        there = {output.path: output.size_bytes for output in found}
        for name, file in wanted.items():
            size = file.size_bytes
            if there.get(name) != size:
                pieces = _unchanged(file, _piece_of(link, size), check)
                with progress(file.source.name, size) as shown:
                    path = f"{STATIC}/{name}"
                    _send(link, path, pieces, size=size, checksum=name, mode=_READ_ONLY, progress=shown)
    finally:
        link.sharing.release()


def _piece_of(link: Link, size: int) -> Callable[[], int]:
    """Return what gives the size of the next piece of a file."""
    return (lambda: PIECE) if size < LANE_BYTES else (lambda: link.lanes.there.piece)


def _cut(data: bytes, piece_size: Callable[[], int]) -> Iterator[bytes]:
    view, offset = memoryview(data), 0
    while offset == 0 or offset < len(data):
        piece = bytes(view[offset : offset + piece_size()])
        yield piece
        offset += max(1, len(piece))


def _unchanged(file: SharedFile, piece_size: Callable[[], int], check: Callable[[], None]) -> Iterator[bytes]:
    """Yield a file in pieces; the last one only where all of it is still what its hash was taken of."""
    found, left = hashlib.sha256(), file.size_bytes
    try:
        with file.source.open("rb") as source:
            while left:
                check()
                piece = source.read(min(piece_size(), left))
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
    pieces: Iterator[bytes],
    *,
    size: int,
    checksum: str,
    mode: int,
    before: tuple[str, int] | None = None,
    progress: Progress,
) -> None:
    whole: dict[str, Any] = {"size": size, "mode": mode, "before": before}
    if size < LANE_BYTES:
        waiting: deque[Future[None]] = deque()
        offset = 0
        for piece in pieces:
            if len(waiting) == IN_FLIGHT:
                waiting.popleft().result()
            waiting.append(link.put(path, piece, offset=offset, sha256=checksum, **whole))
            offset += len(piece)
        for left in waiting:
            left.result()
        return

    def put(offset: int, data: bytes) -> Future[None]:
        return link.put(path, data, offset=offset, sha256=hashlib.sha256(data).hexdigest(), parts=True, **whole)

    first = next(pieces)
    begun = put(0, first)

    def further() -> Iterator[Piece]:
        begun.result()  # it makes the file that all others write to; lanes are opened meanwhile
        offset = len(first)
        for data in pieces:
            yield Piece(put_header(path, offset=offset, sha256="", parts=True, **whole), len(data), data)
            offset += len(data)

    try:
        haul(
            _ways(link, link.lanes.there, lambda piece: put(piece.header["offset"], piece.body)),
            further(),
            lambda piece, _: progress.add(piece.size),
            lanes=link.lanes.to_send,
            most=link.lanes.to_send,
        )
    except NoRoom:
        link.drop(path + PART).result()  # half a file takes the room that others need
        raise
    link.put(path, b"", offset=size, sha256=checksum, parts=True, **whole).result()
