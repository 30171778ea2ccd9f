"""Which numbers of a deck are likely to be parameters: for whoever chooses among them on a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from persistent_runner.study.space import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistent_runner.study.deck import Deck, Number

LARGEST_DECK_BYTES = 2**20
_COMMENT = re.compile(r"\s*(?:\*\*|//|#|!|;|\$|%|/\*)")
_KEYWORD = re.compile(r"\s*\*([A-Za-z][A-Za-z ]*)|\s*\[(\w[\w ]*)\]")
# name = 1.5, name: 1.5, and at the begin of a line name 1.5, also after OpenFOAM's dimensions
_ASSIGNED = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)\s*[=:]|^\s*(?:\w+\s+)?(?P<first>[A-Za-z_]\w*))\s*(?:\[[^\]]*\]\s*)?$", re.ASCII
)
_SETTING = re.compile(r"version|precision|interval|write", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{2,}")
_MANY = 4
_MOST_OF_A_LINE = 20
_LONGEST_LINE = 1000


@dataclass(frozen=True)
class Candidate:
    """A number that may become a parameter, a name for it, and how likely it is: more is likelier."""

    number: Number
    name: str
    likely: int


def candidates(decks: Iterable[Deck]) -> list[Candidate]:
    """Return the numbers of the decks, the likeliest first; files above 1 MiB, which are meshes, are left out."""
    found = [each for deck in decks if len(deck.text) <= LARGEST_DECK_BYTES for each in _of(deck)]
    return sorted(found, key=lambda each: -each.likely)  # sorted keeps the order of the deck


def _of(deck: Deck) -> Iterator[Candidate]:
    shapes = ["", *(re.sub(r"[\d.eE+-]+", "0", line).strip() for line in deck.lines), ""]
    keyword = PurePosixPath(deck.path).stem
    for n, line in enumerate(deck.lines, 1):
        if _COMMENT.match(line):
            continue
        if head := _KEYWORD.match(line):
            keyword = head[1] or head[2]
        numbers = deck.numbers(n) if len(line) <= _LONGEST_LINE else []
        if len(numbers) > _MOST_OF_A_LINE:  # a row of a field
            continue
        # rows of a table or of a mesh look like the rows beside them
        row = len(numbers) > 1 and shapes[n] in {shapes[n - 1], shapes[n + 1]}
        reals = sum(not number.is_whole for number in numbers)
        dull = 4 * row + 2 * (len(numbers) > _MANY) + 3 * bool(head) + 4 * (len(_WORD.findall(line)) > _MANY)
        for number in numbers:
            assigned = _ASSIGNED.search(line[: number.start])
            name = (assigned["name"] or assigned["first"]) if assigned else keyword
            likely = 3 * bool(assigned) + 2 * (len(numbers) == 1) - dull
            likely += 0 if number.is_whole else 1 + 2 * (reals == 1)  # among the numbers of nodes and sets
            likely -= (number.value in {0, 1}) + 6 * bool(_SETTING.search(name))
            yield Candidate(number, _name(name), likely)


def _name(text: str) -> str:
    """Return a word of the deck as the name of a parameter."""
    name = re.sub(r"\W+", "_", text.strip(), flags=re.ASCII).strip("_").lower()
    try:
        return identifier(name)
    except ValueError:
        return "x"
