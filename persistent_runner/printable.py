"""Foreign text, made fit for a terminal: what a solver, a node or a platform says may hold what drives it."""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    """Return a text without control characters but for new lines and tabs; bytes are read as UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(c for c in text if c in "\n\t" or c.isprintable())
