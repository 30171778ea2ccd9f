"""What an earlier run left among the files of a case, which a new trial must not get."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_TIME = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", re.ASCII)
_START_TIME = re.compile(r"^\s*startTime\s+(\S+)\s*;", re.MULTILINE)
_OPENFOAM = re.compile(r"postProcessing|processors?\d+.*|log(?:\..+)?")
_CALCULIX = (".12d", ".cvg", ".dat", ".frd", ".sta")
_DECK = re.compile(r"^[ \t]*\*[A-Za-z]", re.MULTILINE)
_SPOOLES = "spooles.out"


def leftovers(paths: Collection[str], text_of: Callable[[str], str]) -> set[str]:
    """Return which files of a case OpenFOAM or CalculiX have written; `text_of` gives the text of one of them.

    Of OpenFOAM these are times other than 0 and the start time, `postProcessing`, `processor*` and logs; of CalculiX
    what has the name of a deck, unless a deck names it, as it does the .frd of a global model.
    """
    return _of_openfoam(paths, text_of) | _of_calculix(paths, text_of)


def _of_openfoam(paths: Collection[str], text_of: Callable[[str], str]) -> set[str]:
    if "system/controlDict" not in paths:
        return set()
    said = _START_TIME.search(text_of("system/controlDict"))
    start = float(said[1]) if said and _TIME.fullmatch(said[1]) else 0.0
    found = set()
    for path in paths:
        top, _, below = path.partition("/")
        is_time = bool(below) and _TIME.fullmatch(top) and float(top) not in {0.0, start}
        if is_time or _OPENFOAM.fullmatch(top):
            found.add(path)
    return found


def _of_calculix(paths: Collection[str], text_of: Callable[[str], str]) -> set[str]:
    texts = {path: text_of(path) for path in paths if path.endswith(".inp")}
    decks = [path for path, text in texts.items() if _DECK.search(text)]  # other programs have their .inp and .dat
    written = {str(PurePosixPath(deck).with_suffix(suffix)) for deck in decks for suffix in _CALCULIX}
    written |= {str(PurePosixPath(deck).with_name(_SPOOLES)) for deck in decks}
    found = written & set(paths)
    return {path for path in found if not any(PurePosixPath(path).name in text for text in texts.values())}
