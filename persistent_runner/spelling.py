"""The nearest valid name, for messages that people read."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str], *, most: int = 12) -> str:
    """Return `did you mean "x"?`, or else the valid names (at most `most` of them), or `there are none`."""
    names = list(dict.fromkeys(valid))
    folded = {known.casefold(): known for known in reversed(names)}
    near = get_close_matches(name.casefold(), folded, n=1)
    if near:
        return f'did you mean "{folded[near[0]]}"?'
    if not names:
        return "there are none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there is {', '.join(names[:most])}{more}"
