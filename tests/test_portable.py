"""`portable.py`: names that every system reads alike, and those that lead elsewhere."""

from __future__ import annotations

import pytest

from persistent_runner.portable import unportable


@pytest.mark.parametrize(
    "path", ["a", ".attempt/0/exit.json", "ünï #1 100%/a b.csv", "...", "a..b", "console.log", "x/auxiliary"]
)
def test_ordinary_names_are_kept(path: str) -> None:
    """Whatever is not in the way of some system stays as it is."""
    assert unportable(path) == ""


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "./a", "con", "a/NUL.txt", "lpt1"]
)
def test_paths_that_lead_elsewhere_are_named(path: str) -> None:
    """Absolute ones, those with `..`, and devices of Windows."""
    assert unportable(path) == "named as only some systems allow"


@pytest.mark.parametrize("path", ["a\\b", "..\\a", "C:a", "a\0", "a\nb", "a\rb"])
def test_names_that_another_system_reads_otherwise_are_named(path: str) -> None:
    """A backslash is a separator on Windows, a colon names a drive or a stream."""
    assert unportable(path) == "named with a character that another system reads otherwise"
