"""What a push puts into a working directory, and what a command is known by there."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from persistent_runner.inputs import LINK_MODE, SharedFile, shared_file, walk_inputs
from persistent_runner.render import Delimiters, render_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

IN_FRAME = 1 << 18
"""Bytes of all files that travel with a command."""

Pushed = dict[str, tuple[bytes | SharedFile, int]]
"""Path in the working directory: content and mode."""


def pushed(root: Path, inputs: Sequence[str], parameters: Mapping[str, Any], delimiters: Delimiters) -> Pushed:
    """Return what a push puts into a working directory; ConfigError for an input that is missing or does not render."""
    files = walk_inputs(root, inputs)
    found: Pushed = {file.path: (shared_file(file), file.mode) for file in files if file.shared}
    rest = [file for file in files if not file.shared]
    found |= {path: (data, mode) for path, data, mode in render_inputs(rest, parameters, delimiters)}
    return found | {"parameters.json": (as_json(parameters), 0o644)}


def in_frame(
    files: Iterable[tuple[str, bytes | SharedFile, int]],
) -> tuple[list[tuple[str, bytes | SharedFile, int]], list[tuple[str, bytes, int]]]:
    """Return what of a command's (path, content, mode) travels with it, and the biggest, which go ahead in pieces."""
    along: list[tuple[str, bytes | SharedFile, int]] = []
    whole: list[tuple[str, bytes, int]] = []
    for path, data, mode in files:
        if isinstance(data, bytes) and mode != LINK_MODE:
            whole.append((path, data, mode))
        else:
            along.append((path, data, mode))
    big, room = [], IN_FRAME
    for file in sorted(whole, key=lambda file: len(file[1])):
        if len(file[1]) <= room:
            room -= len(file[1])
            along.append(file)
        else:
            big.append(file)
    return along, big


def command_hash(command: str, outputs: Sequence[str], files: Iterable[tuple[str, bytes | SharedFile, int]]) -> str:
    """Return what a command is known by on the node: itself, the outputs it names and what was pushed for it."""
    digest = hashlib.sha256(json.dumps([command, sorted(outputs)]).encode())
    for path, data, mode in sorted(files, key=lambda file: file[0]):
        content = data.sha256 if isinstance(data, SharedFile) else hashlib.sha256(data).hexdigest()
        digest.update(json.dumps([path, mode, content]).encode())
    return digest.hexdigest()


def as_json(parameters: Mapping[str, Any]) -> bytes:
    """Return the content of parameters.json."""
    return json.dumps(parameters, indent=1).encode() + b"\n"
