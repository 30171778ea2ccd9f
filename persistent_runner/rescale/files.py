"""The Files API: which output files a job has left, and each of them brought here whole, or not at all.

Nothing here was tried against the real platform. What is known, and how sure it is:

- After a stop the work folder's files are saved and `jobs/{id}/files/` lists them, of all runs, in pages (documented);
  some seconds may pass before they are listed (a client waits 5 s), and deleted ones linger.
- `relativePath` is the path below the root of the outputs, folders and all, `decryptedSize` is in bytes (documented,
  with samples). Whether that root is `work` or, for some software, `work/shared` is a guess: see `below`.
- `search` matches a part of the name (documented for `files/`), so it is not relied on: see `JobFiles.listed`.
- `fileChecksums` hold the SHA-512 of the plain content (a client relies on it).
- `files/{id}/contents/` honours `Range` (a client relies on it); 206, Content-Range and redirects are guesses.
- `downloadUrl` is not read: it is the same address, without its version in the samples, and could go out of date.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.portable import unportable
from persistent_runner.recovery import recover
from persistent_runner.rescale.api import Endpoints, File

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable
    from io import BufferedRandom
    from pathlib import Path

    from persistent_runner.recovery import Backoff
    from persistent_runner.rescale.transport import Content, Transport

log = logging.getLogger(__name__)

_RANGE = 1 << 25  # bytes of one request: each has its own repeats, so that a long download may meet many faults
_SLOWEST = 100_000  # bytes per second: a line below that counts as stuck
_AHEAD = 60.0  # seconds that a request may take before and beside its content
_PATIENCE = 300.0  # seconds that a download may take in which nothing comes, however small it is
_PAGE_SIZE = 1000  # the most that a client says it got; where fewer come, `next` leads on all the same
_CHANGED = "It was written to, or cut off, when the cluster stopped, or changed on its way: run its trial again."
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Unfit(PlatformRefused):
    """A file that is not what it must be, or that no folder here could keep: it would be the same another time."""


class JobFiles:
    """The output files of jobs that have ended.

    Raises PlatformUnavailable and PlatformRefused, and OSError where this machine cannot keep a file. A set `stop` ends
    repeats and downloads; `backoff` is how long each range is tried anew without an end of it.
    """

    def __init__(self, http: Transport, *, stop: threading.Event | None, backoff: Backoff) -> None:
        self._http = http
        self._stop = stop
        self._backoff = backoff

    def listed(self, job_id: str, *, name: str = "") -> list[File]:
        """Return a job's output files as the platform lists them, or those of them whose path holds `name`.

        A file that is not among them may come: whoever needs it asks again for some seconds after the job's end. A
        search that finds nothing is not believed, as what it looks through is a guess: then the whole list is read.
        """
        found = self._named(job_id, name, {"search": name}) if name else []
        return found or self._named(job_id, name, {})

    def _named(self, job_id: str, name: str, params: dict[str, str | int]) -> list[File]:
        params = {"page_size": _PAGE_SIZE, **params}
        rows: list[File] = self._http.call(Endpoints.job_files, params=params, job_id=job_id)
        return [row for row in rows if not row.is_deleted and name in (row.relative_path or row.name)]

    def download(self, file: File, folder: Path, path: str, *, size_bytes: int | None = None, sha256: str = "") -> Path:
        """Bring a file here as `path` below `folder`, whole or not at all, and return where it is.

        `size_bytes` and `sha256` are what it must be; where they are not given, what the platform lists of it. Where
        that names no checksum, the size alone is compared. What came before a fault or an interrupt is kept beside it
        and is not asked for again. The whole may take five minutes and ten seconds for each MB; a minute without a byte
        breaks a request off, and the next one goes on.

        Unfit for a path that leads out of the folder or that not every system can keep and for a file that is not what
        it must be, PlatformRefused for one that is gone: then nothing is kept.
        """
        if problem := unportable(path):
            raise Unfit(f"output file {path!r} ({file.id}) is not kept: it is {problem}.")
        size = file.decrypted_size if size_bytes is None else size_bytes
        what = f"output file {path} ({file.id})"
        if size is None:
            raise Unfit(f"{what}: its size is not known, so a whole copy could not be told from a part.")
        target = folder.joinpath(*path.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        # By its id, which names one content for ever; hashed, as ids differ in case alone and are foreign text.
        part = target.with_name(f".{hashlib.sha256(file.id.encode()).hexdigest()[:16]}.part")
        part.touch()
        try:
            with part.open("r+b") as out:
                self._fill(out, file.id, size)
                _compare(out, file, sha256)
                os.fsync(out.fileno())
            part.replace(target)
        except PlatformUnavailable as error:
            raise PlatformUnavailable(
                f"{what}: {part.stat().st_size} of {size} bytes are here. {error.message}",
                remedy="The same line again goes on from there.",
                retry_after=error.retry_after,
            ) from None
        except PlatformRefused as error:
            part.unlink()
            raise type(error)(f"{what}: {error.message}", remedy=error.remedy, status=error.status) from None
        return target

    def _fill(self, out: BufferedRandom, file_id: str, size: int) -> None:
        """Make `out` as long as it must be, from the end of what it holds already."""
        until = time.monotonic() + _PATIENCE + size / _SLOWEST
        if out.seek(0, os.SEEK_END) > size:
            out.truncate(out.seek(0))
        while out.tell() < size:
            recover(
                partial(self._range, out, file_id, size, until),
                {PlatformUnavailable: lambda error: log.info("%s Going on.", error)},
                replace(self._backoff, total=min(self._backoff.total, max(until - time.monotonic(), 0.0))),
                self._stop,
            )
        out.flush()

    def _range(self, out: BufferedRandom, file_id: str, size: int, until: float) -> None:
        """Append the next range to `out`, in one request; all of the file anew where the platform ignores ranges."""
        if out.tell() == size:  # the connection failed behind the last byte
            return
        end = min(out.tell() + _RANGE, size)
        # Content that was compressed for the way has other ranges.
        headers = {"Range": f"bytes={out.tell()}-{end - 1}", "Accept-Encoding": "identity"}
        with self._http.stream(Endpoints.file_contents, headers=headers, file_id=file_id) as content:
            if not _continues(content, out.tell(), size):
                out.truncate(out.seek(0))
                end = size
            seconds = _AHEAD + (end - out.tell()) / _SLOWEST
            for block in content.blocks(min(seconds, until - time.monotonic())):
                if out.tell() + len(block) > size:
                    raise Unfit(f"it is longer than the {size} bytes that it must have.", remedy=_CHANGED)
                out.write(block)
        if out.tell() < end:
            raise PlatformUnavailable(f"{file_id} was cut off at byte {out.tell()}.")


def below(files: Iterable[File], folder: str) -> dict[str, File]:
    """Return the files below a folder of the work folder, by their paths from there.

    Where the folder itself lies does not matter (at the top, in `shared/`, behind a slash), since the root of the
    outputs is a guess; where no `relativePath` leads through it, `path` (`user/.../run1/...`) is looked at. Of a path
    that is listed twice the newest file counts. PlatformRefused where the folder is found in two places.
    """
    wanted = _parts(folder)
    files = list(files)
    for listed in ("relative_path", "path"):
        places: dict[tuple[str, ...], dict[str, File]] = {}
        for file in files:
            parts = _parts(getattr(file, listed) or "")
            at = next((n for n in range(len(parts)) if parts[n : n + len(wanted)] == wanted), None)
            if at is not None and (rest := "/".join(parts[at + len(wanted) :])):
                place = places.setdefault(parts[:at], {})
                place[rest] = max(place.get(rest, file), file, key=_uploaded)
        # One that lies deeper is a copy, made by whoever wrote there.
        nearest = [place for place in places if len(place) == min(map(len, places))]
        if len(nearest) > 1:
            raise PlatformRefused(
                f"the outputs hold {folder} in two places: {' and '.join('/'.join(place) for place in nearest)}",
                remedy="Fetch what you need of them in the platform's portal.",
            )
        if nearest:
            return places[nearest[0]]
    return {}


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in {"", "."})


def _uploaded(file: File) -> datetime:
    return file.date_uploaded or _LONG_AGO


def _continues(content: Content, offset: int, size: int) -> bool:
    """Return whether content begins at `offset`, False where it is all of the file; PlatformRefused where neither."""
    packed = content.headers.get("Content-Encoding", "identity") != "identity"
    said = content.headers.get("Content-Range" if content.status == 206 else "Content-Length", "")
    if content.status != 206:
        fits = packed or said in {"", str(size)}
    else:
        span = _CONTENT_RANGE.fullmatch(said)
        fits = not packed and span is not None and int(span[1]) == offset and span[2] in {"*", str(size)}
    if not fits:
        raise PlatformRefused(
            f"bytes from {offset} on of {size} were asked for, and the answer says: {said or 'nothing'}"
            f" ({content.headers.get('Content-Type', 'of no type')})",
            remedy=_CHANGED,
        )
    return content.status == 206


def _compare(out: BufferedRandom, file: File, sha256: str) -> None:
    """Compare what is here with the checksum that is given, else with the platform's own where it names one."""
    listed = [known.file_hash for known in file.file_checksums if known.hash_function.lower() == "sha512"]
    kind, wanted = ("sha256", sha256) if sha256 else ("sha512", listed[0] if listed else "")
    if not wanted:
        return
    out.seek(0)
    if (found := hashlib.file_digest(out, kind).hexdigest()) != wanted.lower():
        raise PlatformRefused(f"its {kind} is {found}, not {wanted}", remedy=_CHANGED)
