"""The nearest valid name, for messages that people read."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NEAR = 0.7  # of SequenceMatcher's ratio: below, a guess is far-fetched, such as "cmaes" for "bayes"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that was probably meant, None where none is near."""
    folded = {known.casefold(): known for known in reversed(list(valid))}
    near = get_close_matches(name.casefold(), folded, n=1, cutoff=_NEAR)
    return folded[near[0]] if near else None


def did_you_mean(name: str, valid: Iterable[str], *, most: int = 12, none: str = "there are none") -> str:
    """Return `did you mean "x"?`, or else the valid names, at most `most` of them, or `none` where there are none."""
    names = list(dict.fromkeys(valid))
    if near := nearest(name, names):
        return f'did you mean "{near}"?'
    if not names:
        return none
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there is {', '.join(names[:most])}{more}"
