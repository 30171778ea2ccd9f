"""A disk of a test's own that is soon full."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Hold a file system of this size at a folder, which is made; skips where that may not be done."""
    path.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> Path:
    """Take all room of a disk; who removes the file that is returned gives it back."""
    ballast = path / BALLAST
    with ballast.open("wb", buffering=0) as file:
        for piece in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * piece)
    assert shutil.disk_usage(path).free == 0
    return ballast
