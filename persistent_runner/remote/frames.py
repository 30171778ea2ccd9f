"""What travels between a link and its agent: the frames, and what the agent's answers mean.

A frame is two big-endian 32-bit lengths, a JSON header, and a body that is compressed where the header has `z`
(`packing.py`).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConnectionLost, RunnerError
from persistent_runner.printable import printable
from persistent_runner.remote.agent import ZLIB
from persistent_runner.remote.packing import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistent_runner.inputs import SharedFile

Header = dict[str, Any]
Reply = tuple[Header, bytes]

LENGTHS = struct.Struct(">II")
_SHOWN = 80
_MOST_BYTES = 128 << 20  # of a header or a body; four characters that stand for a length are more


@dataclass(frozen=True)
class Hello:
    """What an agent says of its node when it starts; `root` is where this run's attempts lie on the node.

    `sees_head`: whether it has its home in common with the head node.
    """

    root: str
    host: str
    cores: int
    boot: str
    epoch: int
    python: str
    sees_head: bool
    zstd: bool = False


@dataclass(frozen=True)
class OutputFile:
    """One output in a command's manifest, taken after its process tree was gone.

    `sha256` is empty where `problem` says why the file cannot be pulled (`a symbolic link`). `data` is the content when
    it was small enough to travel with the exit.
    """

    path: str
    size_bytes: int
    sha256: str = ""
    problem: str = ""
    data: bytes | None = None


@dataclass(frozen=True)
class Exit:
    """How a command ended.

    `state`: `done`, `timeout`, `killed`, `lost` (its supervisor is gone without a record), `mismatch` (another command
    was claimed under this id, and is ended), `absent` (it was not claimed: a shared file is not on the node) or
    `withdrawn` (it was claimed for nobody before it began). `code` is 128 + n for signal n. `manifest` is None where a
    full disk had no room for it. `log_tail` are the last of `log_bytes`.
    """

    state: str
    code: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    manifest: tuple[OutputFile, ...] | None = ()
    log_tail: bytes = b""
    log_bytes: int = 0


@dataclass(frozen=True)
class Life:
    """What the dead-man's switch of a lease says: ticks it has counted, None where it has not; why it ended, or ""."""

    tick: int | None
    ended: str


class RequestRefused(RunnerError):
    """The agent could not do what was asked: the file system refused, or the request made no sense there."""


class NoRoom(RequestRefused):
    """The disk of the node is full."""


class NotAFrame(ConnectionLost):
    """Something else has come than an agent sends, as from what a login shell has left in the background."""

    def __init__(self, found: bytes, where: str) -> None:
        super().__init__(
            f"{where}: what came is not of the agent, but {printable(found[:_SHOWN])!r}",
            remedy="Does a login there leave something behind that prints later?",
        )


def encode(header: Header, body: bytes = b"", way: int = ZLIB) -> bytes:
    """Return one frame, its body compressed in this way where that is worth it."""
    z, body = pack(body, way)
    if z:
        header = header | {"z": z}
    # Not ASCII alone: the node reads names as the bytes that they are, whatever its locale.
    head = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return LENGTHS.pack(len(head), len(body)) + head + body


def decode(buffer: bytearray, where: str) -> Iterator[Reply]:
    """Yield each whole frame at the head of the buffer, and take it away; NotAFrame, which says `where`."""
    while len(buffer) >= LENGTHS.size:
        head, body = lengths_of(buffer, where)
        end = LENGTHS.size + head + body
        if len(buffer) < end:
            return
        header, content = bytes(buffer[LENGTHS.size : LENGTHS.size + head]), bytes(buffer[LENGTHS.size + head : end])
        del buffer[:end]
        yield reply_of(header, content, where)


def lengths_of(start: bytes | bytearray, where: str) -> tuple[int, int]:
    """Return the lengths of header and body by the start of a frame; NotAFrame."""
    head, body = LENGTHS.unpack_from(start)
    if max(head, body) > _MOST_BYTES:
        raise NotAFrame(bytes(start), where)
    return head, body


def reply_of(head: bytes, body: bytes, where: str) -> Reply:
    """Return what a frame holds; NotAFrame."""
    try:
        header = json.loads(head.decode("utf-8", "replace"))
        return header, unpack(header.get("z", 0), body)
    except Exception:  # noqa: BLE001 - each way of compression has errors of its own
        raise NotAFrame(head + body, where) from None


def packed(files: Iterable[tuple[str, bytes | SharedFile, int]]) -> tuple[list[list[Any]], bytes]:
    """Return the entries of a command's (path, content, mode), and the content that travels with them."""
    entries: list[list[Any]] = []
    parts: list[bytes] = []
    for path, content, mode in files:
        if isinstance(content, bytes):
            entries.append([path, mode, len(content)])
            parts.append(content)
        else:
            entries.append([path, mode, content.size_bytes, content.sha256])
    return entries, b"".join(parts)


def get_header(path: str, offset: int, length: int) -> Header:
    """Return the request for a piece of a file."""
    return {"t": "get", "path": path, "offset": offset, "length": length}


def put_header(
    path: str, *, offset: int, size: int, sha256: str, mode: int, before: tuple[str, int] | None, parts: bool = False
) -> Header:
    """Return the request to write a piece of a file; `Link.put` says what it means."""
    return {
        "t": "put",
        "path": path,
        "offset": offset,
        "size": size,
        "sha256": sha256,
        "mode": mode,
        "before": {"attempt": before[0], "seq": before[1]} if before else None,
        "parts": parts,
    }


def hello_of(header: Header) -> Hello:
    """Return what an agent's first frame says."""
    keys = ("root", "host", "cores", "boot", "epoch", "python", "sees_head", "zstd")
    return Hello(**{key: header[key] for key in keys})


def life_of(header: Header, _: bytes) -> Life:
    """Return what the answer to a ping tells; the switch may be just writing its tick, or may not be there."""
    return Life(int(header["tick"]) if header["tick"].isdecimal() else None, header["ended"])


def failure_of(header: Header, node: str) -> RequestRefused | None:
    """Return the error that an answer tells, if any."""
    if header["t"] != "error":
        return None
    text = f"{node}: {header['text']}"
    if header["kind"] == "disk":
        return NoRoom(text, remedy="The disk of the node is full.")
    return RequestRefused(text)


def log_pieces(header: Header, body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield what a frame has of the logs of several commands: (id of the request, offset in its log, bytes)."""
    at = 0
    for request_id, offset, size in header["logs"]:
        yield request_id, offset, body[at : at + size]
        at += size


def manifest_of(header: Header, _: bytes) -> tuple[OutputFile, ...]:
    """Return the files that a reply lists."""
    return tuple(_output(entry) for entry in header["manifest"])


def exit_of(header: Header, body: bytes) -> Exit:
    """Return the exit that a reply tells: the tail of the log comes first in the body, then the small outputs."""
    if header["state"] in ("lost", "mismatch", "absent", "withdrawn"):
        return Exit(header["state"])
    at = header["log_tail"]
    files = []
    for entry in header["manifest"] or ():
        data = None
        if entry.get("inline"):
            data = body[at : at + entry["size"]]
            at += entry["size"]
        files.append(_output(entry, data))
    return Exit(
        state=header["state"],
        code=header["code"],
        seconds=header["seconds"],
        peak_bytes=header["peak_bytes"],
        manifest=None if header["manifest"] is None else tuple(files),
        log_tail=body[: header["log_tail"]],
        log_bytes=header["log_size"],
    )


def _output(entry: Header, data: bytes | None = None) -> OutputFile:
    return OutputFile(entry["path"], entry["size"], entry.get("sha256", ""), entry.get("problem", ""), data)


def nothing(_header: Header, _body: bytes) -> None:
    """Make nothing of a reply that only says that it was done."""
