"""The files that the local platform stores: uploads and outputs, each with its SHA-512, on disk only."""

from __future__ import annotations

import hashlib
import secrets
import string
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from persistent_runner.local_platform.catalogue import OWNER
from persistent_runner.rescale.api import date_with_z

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

INPUT, OUTPUT = 1, 5
"""`typeId` of an upload and of a job's output."""

CHUNK = 1 << 20
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


def new_id() -> str:
    """Return an id as the platform makes them: six letters, both cases."""
    return "".join(secrets.choice(string.ascii_letters) for _ in range(6))


@dataclass(frozen=True)
class StoredFile:
    """A file and what is known of it; `content` is where its bytes lie, `size` in bytes, `sha512` in hex."""

    id: str
    name: str
    content: Path
    size: int
    sha512: str
    uploaded: datetime
    type_id: int = INPUT
    relative_path: str | None = None
    job_id: str | None = None

    def wire(self, base_url: str) -> dict[str, Any]:
        """Return the file object of the API; `base_url` is that of the request, so that links are reachable."""
        place = f"output/job_{self.job_id}/run1/{self.relative_path}" if self.job_id else f"{self.id}-{self.name}"
        return {
            "id": self.id,
            "name": self.name,
            "owner": OWNER,
            "typeId": self.type_id,
            "dateUploaded": date_with_z(self.uploaded),
            "relativePath": self.relative_path if self.job_id else self.name,
            "path": f"user/user_local/{place}",
            "pathParts": {"container": "local", "path": f"user/user_local/{place}"},
            "decryptedSize": self.size,
            "encodedEncryptionKey": "A" * 43 + "=",
            "downloadUrl": f"{base_url}/api/v2/files/{self.id}/contents/",
            "isUploaded": True,
            "isDeleted": False,
            "viewInBrowser": True,
            "sharedWith": [],
            "userTags": [],
            "fileChecksums": [{"hashFunction": "sha512", "fileHash": self.sha512}],
        }


class Incoming:
    """A writable binary stream that goes to disk and is hashed on its way; what an upload writes into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha512()
        self.size = 0
        self._stream: IO[bytes] = path.open("w+b")

    def write(self, data: bytes) -> int:
        """Append `data`; return its length."""
        self.digest.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass
class FileStore:
    """All stored files, newest last. Thread-safe; content lies below `root`."""

    root: Path
    now: Callable[[], datetime]
    _files: dict[str, StoredFile] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def incoming(self) -> Incoming:
        """Return a stream for the bytes of a file to come."""
        return Incoming(self.root / f"{new_id()}{secrets.token_hex(8)}")

    def keep(self, stream: Incoming, name: str, **about: Any) -> StoredFile:
        """Make what was written to `stream` a stored file called `name` and return it."""
        stream.close()
        with self._lock:
            file_id = next(found for found in iter(new_id, "") if found not in self._files)
            stored = StoredFile(file_id, name, stream.path, stream.size, stream.digest.hexdigest(), self.now(), **about)
            self._files[file_id] = stored
        return stored

    def keep_output(self, source: Path, relative_path: str, job_id: str, stop: Callable[[], bool]) -> StoredFile | None:
        """Copy `source`, in pieces, to the stored files as an output; None where `stop()` came true on the way.

        A file that vanishes or cannot be read meanwhile raises OSError.
        """
        target = self.incoming()
        try:
            with source.open("rb") as stream:
                while data := stream.read(CHUNK):
                    if stop():
                        break
                    target.write(data)
            if not stop():
                name = source.name
                return self.keep(target, name, type_id=OUTPUT, relative_path=relative_path, job_id=job_id)
        except OSError:
            self.discard(target)
            raise
        self.discard(target)
        return None

    @staticmethod
    def discard(stream: Incoming) -> None:
        """Forget a stream that did not become a file."""
        stream.close()
        stream.path.unlink(missing_ok=True)

    def get(self, file_id: str) -> StoredFile | None:
        """Return the file with this id, None if there is none."""
        with self._lock:
            return self._files.get(file_id)

    def rename(self, file_id: str, *, name: str | None, type_id: int | None) -> StoredFile | None:
        """Change what is not None; return the file, None if there is none."""
        with self._lock:
            found = self._files.get(file_id)
            if found is None:
                return None
            found = replace(found, name=name or found.name, type_id=type_id or found.type_id)
            self._files[file_id] = found
            return found

    def delete(self, file_id: str) -> bool:
        """Remove a file; return whether it was there."""
        with self._lock:
            found = self._files.pop(file_id, None)
        if found is None:
            return False
        found.content.unlink(missing_ok=True)
        return True

    def search(self, words: str = "", *, job_id: str | None = None, oldest_first: bool = False) -> list[StoredFile]:
        """Return the files whose name contains `words` (of one job if given), newest first unless said otherwise."""
        with self._lock:
            rows = list(self._files.values())
        rows = [row for row in rows if words.lower() in row.name.lower() and (job_id is None or row.job_id == job_id)]
        return rows if oldest_first else rows[::-1]


def place(stored: StoredFile, folder: Path, *, decompress: bool) -> None:
    """Put an input file into `folder` with mode 755; archives are unpacked into it instead if `decompress`.

    Of an archive only folders and regular files that stay below `folder` are taken: links are lost, as on the platform.
    An archive that cannot be read arrives as it is.
    """
    if decompress and stored.name.lower().endswith(_ARCHIVES):
        try:
            for name, stream in _members(stored):
                _write(_below(folder, name), stream)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError):
            pass
        else:
            return
    with stored.content.open("rb") as stream:
        _write(folder / PurePosixPath(stored.name).name, stream)


def _members(stored: StoredFile) -> Iterator[tuple[str, IO[bytes]]]:
    if stored.name.lower().endswith(".zip"):
        with zipfile.ZipFile(stored.content) as archive:
            for entry in archive.infolist():
                is_link = entry.external_attr >> 28 == 0o12
                if not entry.is_dir() and not is_link:
                    with archive.open(entry) as stream:
                        yield entry.filename, stream
        return
    with tarfile.open(stored.content) as tape:
        for member in tape:
            stream_or_none = tape.extractfile(member) if member.isreg() else None
            if stream_or_none is not None:
                with stream_or_none as stream:
                    yield member.name, stream


def _below(folder: Path, name: str) -> Path | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        return None
    return folder.joinpath(*parts)


def _write(target: Path | None, stream: IO[bytes]) -> None:
    if target is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        while data := stream.read(CHUNK):
            out.write(data)
    target.chmod(0o755)
