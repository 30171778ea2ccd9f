"""`printable.py`: what others said cannot drive the user's terminal."""

from __future__ import annotations

import pytest

from persistent_runner.errors import ResultMissing
from persistent_runner.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext é €", "plain\n\ttext é €"),
        ("\x1b]0;title\x07\x1b[2J red", "]0;title[2J red"),
        (b"bytes \xff\x00\x1b[31m", "bytes \N{REPLACEMENT CHARACTER}[31m"),
        ("turned \u202e round", "turned  round"),
        ("", ""),
    ],
)
def test_control_characters_are_left_out(text: str | bytes, shown: str) -> None:
    """New lines and tabs stay, and what is no UTF-8 shows as such."""
    assert printable(text) == shown


def test_no_message_of_ours_holds_any() -> None:
    """A file's name, a solver's last lines or a server's words may stand in it."""
    error = ResultMissing("there is no file x; there are: \x1b[2J", remedy="Look \x07 there.")
    assert str(error) == "there is no file x; there are: [2J\nLook  there."
