"""The files that a working directory gets: what `inputs` names, walked, with links, modes and checksums."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import stat
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TEMPLATE_SUFFIX = ".j2"
RESERVED = (".attempt", "parameters.json")
"""Names in a working directory that the runner itself writes."""
SHARED_BYTES = 1 << 20
"""From this size on a file goes to a node once, and each attempt gets a copy that is made there."""
LINK_MODE = stat.S_IFLNK | 0o777
_LEFT_OUT = "__pycache__"


@dataclass(frozen=True)
class InputFile:
    """One file of a working directory, or a link in it.

    `path` is relative to that directory, with `/`; `mode` its permission bits, LINK_MODE for a link; `source` the local
    file; `template` says that it is rendered. `root` is the folder that its includes must be in. `link` is where a link
    leads, relative to it, empty for a file. `shared` says that it goes to a node once for all attempts.
    """

    path: str
    mode: int
    source: Path
    template: bool
    root: Path
    link: str = ""
    shared: bool = False


@dataclass(frozen=True)
class SharedFile:
    """A big file that goes to a node once: where it lies here, its size, and the SHA-256 hash that names it there."""

    source: Path
    size_bytes: int
    sha256: str


def walk_inputs(folder: Path, inputs: Sequence[str]) -> list[InputFile]:
    """Return the files that the entries of `inputs` (relative to `folder`) put into a working directory.

    A file lands under its own name, the contents of a folder land recursively and sorted; `.j2` is dropped from the
    name of a template; `__pycache__` is left out. A link within a folder that leads to what is in the same folder stays
    that link; every other one is followed. Raises ConfigError for what is missing, two inputs with one name, and names
    that cannot be sent.
    """
    found: dict[str, InputFile] = {}
    entries: dict[str, str] = {}
    for entry in inputs:
        start = folder / entry
        if not entry or not os.path.lexists(start):
            raise ConfigError(f'input "{entry}" is not there; {_nearest_entry(start)}')
        top = start if start.is_dir() else start.parent
        root = folder if lexical(start).is_relative_to(lexical(folder)) else top
        for path, source, link in _walk(start, "", (), top.resolve()):
            file = _input_file(path, source, link, root)
            other = found.get(file.path)
            if other and lexical(other.source) == lexical(source):
                has = entries[file.path]
                raise ConfigError(
                    f'"{entry}" is there twice; remove one'
                    if entry == has
                    else f'"{entry}" is named twice: "{has}" has {path_in(start.parent, source)} already; remove one'
                )
            if other:
                raise ConfigError(
                    f'two inputs land on "{file.path}": {other.source} and {source}; rename one of them', file=source
                )
            found[file.path], entries[file.path] = file, entry
    for path, file in found.items():
        for parent in PurePosixPath(path).parents:
            if str(parent) in found:
                raise ConfigError(
                    f'"{parent}" is both a file ({found[str(parent)].source}) and a folder of inputs '
                    f"({file.source}); rename one of them",
                    file=file.source,
                )
    return list(found.values())


def lexical(path: Path) -> Path:
    """Return an absolute path without `..`; links in it stay links, as where an input leads is its author's affair."""
    return Path(os.path.normpath(path.absolute()))


def path_in(folder: Path, path: Path) -> str:
    """Return how a file of a folder is called in messages: by its path below it, any other by its name."""
    path, folder = lexical(path), lexical(folder)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def read_input(path: Path, most: int = -1) -> bytes:
    """Return the content of an input, or its first `most` bytes; ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ConfigError(f"input {path} cannot be read: {error.strerror}", file=path) from None


def checksum(file: InputFile) -> str:
    """Return the SHA-256 hash of what an input brings: its content before rendering, or where a link leads."""
    return hashlib.sha256(file.link.encode()).hexdigest() if file.link else shared_file(file).sha256


def shared_file(file: InputFile) -> SharedFile:
    """Return what a node needs to know of a file; the content is read once for each size and time of change."""
    try:
        found = file.source.stat()
        with _ONE_READER:  # trials that start together want the same files
            sha256 = _hash(str(file.source), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"input {file.source} cannot be read: {error.strerror}") from None
    return SharedFile(file.source, found.st_size, sha256)


_ONE_READER = threading.Lock()


@functools.lru_cache(maxsize=4096)
def _hash(path: str, _size: int, _changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(source: Path, path: str, above: tuple[Path, ...], top: Path) -> Iterable[tuple[str, Path, str]]:
    if path and source.is_symlink() and (link := _kept_link(source, path, top)):
        yield path, source, link
        return
    try:
        mode = source.stat().st_mode
        children = sorted(source.iterdir(), key=lambda child: child.name) if stat.S_ISDIR(mode) else []
    except OSError as error:
        target = f" (a link to {source.readlink()})" if source.is_symlink() else ""
        raise ConfigError(
            f"input {source}{target} cannot be read: {error.strerror}; mend or remove it", file=source
        ) from None
    if stat.S_ISREG(mode):
        yield path or source.name, source, ""
    elif stat.S_ISDIR(mode):
        real = source.resolve()
        if real in above:
            raise ConfigError(f"input {source} is a link to a folder that contains it; remove the link", file=source)
        for child in children:
            if child.name != _LEFT_OUT:
                yield from _walk(child, f"{path}/{child.name}" if path else child.name, (*above, real), top)
    else:
        raise ConfigError(f"input {source} is neither a file nor a folder; remove it", file=source)


def _kept_link(source: Path, path: str, top: Path) -> str:
    """Return where a link at `path` below `top` leads to on the node, relative to itself; empty where it is followed.

    It stays a link when its target lies below `top` and arrives there under its own name, which a template does not.
    """
    try:
        target = source.resolve(strict=True)
    except (OSError, RuntimeError):  # the walk says what is wrong with it
        return ""
    if not target.is_relative_to(top) or _LEFT_OUT in target.relative_to(top).parts:
        return ""
    if target.is_file() and TEMPLATE_SUFFIX in (source.suffix, target.suffix):
        return ""
    where = posixpath.dirname(path)
    told = source.readlink()
    there = posixpath.normpath(posixpath.join(where, told.as_posix()))
    climbs = told.is_absolute() or there.split("/")[0] == ".." or _LEFT_OUT in there.split("/")
    if not climbs and not there.endswith(TEMPLATE_SUFFIX) and (top / there).resolve() == target:
        return told.as_posix()
    return posixpath.relpath(target.relative_to(top).as_posix(), where or ".")


def _input_file(path: str, source: Path, link: str, root: Path) -> InputFile:
    for name in (path, link):
        printable = name.encode("utf-8", "replace").decode()
        if any(ord(character) < 32 or character == "\x7f" for character in name) or printable != name:
            raise ConfigError(
                f"the name of input {name!r} holds a control character or is not UTF-8; rename it", file=source
            )
    name = posixpath.basename(path)
    template = not link and name.endswith(TEMPLATE_SUFFIX) and name != TEMPLATE_SUFFIX
    target = path.removesuffix(TEMPLATE_SUFFIX) if template else path
    if target.split("/")[0] in RESERVED:
        raise ConfigError(
            f'input {source}: the name "{target}" is the runner\'s own in a working directory; rename it', file=source
        )
    if link:
        return InputFile(target, LINK_MODE, source, template=False, root=root, link=link)
    shared = not template and source.stat().st_size >= SHARED_BYTES
    return InputFile(target, _mode(source), source, template, root, shared=shared)


def _mode(source: Path) -> int:
    if os.name == "nt":
        return 0o755 if read_input(source, 2) == b"#!" else 0o644
    return source.stat().st_mode & 0o777


def _nearest_entry(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    names = sorted(child.name for child in parent.iterdir())
    return f"in {parent}: {did_you_mean(path.name, names, none='the folder is empty')}"
