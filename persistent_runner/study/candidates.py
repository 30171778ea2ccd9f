"""Which numbers of a deck are likely to be parameters: for whoever chooses among them on a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistent_runner.study.context import contexts, syntax_of, within
from persistent_runner.study.space import identifier
from persistent_runner.study.tabular import NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistent_runner.study.context import Context, Syntax
    from persistent_runner.study.deck import Deck, Number

LARGEST_DECK_BYTES = 2**20
# name = 1.5, name: 1.5, and at the begin of a line name 1.5, also after OpenFOAM's dimensions
_ASSIGNED = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)\s*[=:]|^\s*(?:\w+\s+)?(?P<first>[A-Za-z_]\w*))\s*(?:\[[^\]]*\]\s*)?$", re.ASCII
)
# the numbers of points that a block, an edge or a face of OpenFOAM's is made of
_POINTS = re.compile(r"\b(?:hex|arc|spline|polyLine)\b[^(]*(?:\([^)]*)?$|\bfaces\b[^;]*$")
_SETTING = re.compile(r"version|precision|interval|write", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{2,}")
_MANY = 4
_MOST_OF_A_LINE = 20
_LONGEST_LINE = 1000
_NEVER = -100

# keywords of Abaqus and CalculiX, and how likely what stands below them is to be varied
_KEYWORDS = [
    (r".*section|.*thickness", 9),
    (r"elastic|density|plastic|expansion|conductivity|specific heat|damping|hyperelastic|hyperfoam|creep|spring", 8),
    (r"cload|dload|cflux|dflux|film|radiate|temperature|pre-tension section", 8),
    (r"boundary|initial conditions|gap|friction", 5),
    (r"node", 1),
    (r"heading|element|[ne]l?set|surface|equation|mpc|tie|contact pair|rigid body|.*(?:print|file|output)", _NEVER),
    (r"step|static|dynamic|frequency|buckle|.*transfer|visco|modal dynamic|controls|time points|restart", -3),
]
# in front of the number proper: nodes, sets and degrees of freedom
_ADDRESSES = {"cload": 2, "dload": 2, "cflux": 2, "dflux": 2, "film": 2, "boundary": 3, "temperature": 1, "node": 1}


@dataclass(frozen=True)
class Candidate:
    """A number that may become a parameter, a name for it, what it belongs to, and how likely it is."""

    number: Number
    name: str
    likely: int
    context: Context

    @property
    def line(self) -> str:
        """The line that it stands in."""
        return self.number.deck.lines[self.number.line - 1].strip()

    def holds(self, word: str) -> bool:
        """Whether it is this number, or a word in its line, in what that belongs to, or in the name of the file."""
        if NUMBER.fullmatch(word):
            return word == self.number.text
        where = (self.line, self.context.words, self.number.deck.path, self.name)
        return any(word.casefold() in text.casefold() for text in where)


def candidates(decks: Iterable[Deck]) -> list[Candidate]:
    """Return the numbers of the decks, the likeliest first; without those that a solver reads as names.

    Files above 1 MiB, which are meshes, and scripts of the shell are left out.
    """
    small = [deck for deck in decks if len(deck.text) <= LARGEST_DECK_BYTES and syntax_of(deck) != "shell"]
    found = [each for deck in small for each in _of(deck)]
    return sorted(found, key=lambda each: -each.likely)  # sorted keeps the order of the deck


def _of(deck: Deck) -> Iterator[Candidate]:
    syntax = syntax_of(deck)
    shapes = ["", *(re.sub(r"[\d.eE+-]+", "0", line).strip() for line in deck.lines), ""]
    for n, (line, context) in enumerate(zip(deck.lines, contexts(deck), strict=True), 1):
        numbers = deck.numbers(n) if len(line) <= _LONGEST_LINE and not context.is_remark else []
        if len(numbers) > _MOST_OF_A_LINE:  # a row of a field
            continue
        # rows of a table or of a mesh look like the rows beside them
        is_row = len(numbers) > 1 and shapes[n] in {shapes[n - 1], shapes[n + 1]}
        for number in numbers:
            around = within(context, line[: number.start]) if syntax == "foam" else context
            likely = _likely(syntax, number, numbers, line, around, is_row=is_row)
            if likely > _NEVER // 2 and not around.is_remark:
                yield Candidate(number, _name(_words(syntax, number, numbers, line, around)), likely, around)


def _likely(syntax: Syntax, number: Number, numbers: list[Number], line: str, context: Context, *, is_row: bool) -> int:
    if syntax == "abaqus":
        is_direction = len(numbers) > 1 and all(_plain(each) for each in numbers)
        return _likely_in_abaqus(number, line, context) - (6 if is_direction else _plain(number))
    if syntax == "foam":
        return _likely_in_foam(number, line, context) - _plain(number)
    assigned = _ASSIGNED.search(line[: number.start])
    name = (assigned["name"] or assigned["first"]) if assigned else context.names[-1]
    reals = sum(not each.is_whole for each in numbers)
    likely = 3 * bool(assigned) + 2 * (len(numbers) == 1) - (number.value in {0, 1}) - 6 * bool(_SETTING.search(name))
    likely += 0 if number.is_whole else 1 + 2 * (reals == 1)  # among the numbers of nodes and sets
    is_prose = len(_WORD.findall(line)) > _MANY
    return likely - 4 * is_row - 2 * (len(numbers) > _MANY) - 3 * context.is_head - 4 * is_prose


def _plain(number: Number) -> int:
    """Return how much less likely a number is that says no or as it is."""
    return 6 * (number.value == 0) + 2 * (abs(number.value) == 1)


def _likely_in_abaqus(number: Number, line: str, context: Context) -> int:
    (keyword,) = context.names
    if context.is_head:
        return -2
    likely = next((likely for pattern, likely in _KEYWORDS if re.fullmatch(pattern, keyword)), 3)
    item = line[: number.start].count(",")
    return _NEVER if item < _ADDRESSES.get(keyword, 0) else likely


def _likely_in_foam(number: Number, line: str, context: Context) -> int:
    names, before = context.names, line[: number.start]
    is_dimension = before.count("[") > before.count("]")
    if is_dimension or names[:1] == ("FoamFile",) or "faces" in names or _POINTS.search(before):
        return _NEVER
    folder, _, file = number.deck.path.rpartition("/")
    if folder in {"0", "0.orig"}:
        is_wall = any("wall" in name.lower() for name in names)
        return 9 - 3 * ("boundaryField" not in names) - 2 * is_wall
    if file == "blockMeshDict":
        is_variable = not names and re.fullmatch(r"\s*(?!scale\b|convertToMeters\b)\w+\s+", before)
        return 7 if "vertices" in names or is_variable else 2
    if folder == "system":
        return -6 * bool(_SETTING.search(before))
    if file == "g":  # gravity
        return 2
    return (
        8 - 6 * bool(_SETTING.search(before)) - 6 * bool(re.search(r"\b(?:(?:start|end)Time|deltaT|scale)\b", before))
    )


def _words(syntax: Syntax, number: Number, numbers: list[Number], line: str, context: Context) -> str:
    """Return words that say which number it is."""
    before = line[: number.start]
    if syntax == "foam":
        return _words_in_foam(number, before, context)
    if syntax == "abaqus" and not context.is_head:
        (keyword,) = context.names
        of = re.search(r"\belset\s*=\s*([^,\s]+)", context.words, re.IGNORECASE)
        base = of[1] if of and keyword.endswith("section") else keyword
        free = numbers[_ADDRESSES.get(keyword, 0) :]
        return f"{base} {free.index(number) + 1}" if number in free and len(free) > 1 else base
    assigned = _ASSIGNED.search(before)
    return (assigned["name"] or assigned["first"]) if assigned else context.names[-1]


def _words_in_foam(number: Number, before: str, context: Context) -> str:
    folder, _, file = number.deck.path.rpartition("/")
    vector = re.search(r"\(([^()]*)$", before)
    component = f" {'xyz'[min(len(vector[1].split()), 2)]}" if vector and len(vector[1].split()) < 3 else ""
    key = re.match(r"\s*(\w+)", before)
    if folder in {"0", "0.orig"}:
        patch = context.names[-1] if "boundaryField" in context.names else "internal"
        return f"{file} {patch}{component}"
    if context.names and (key is None or vector):
        return f"{context.names[-1]}{component}"
    return f"{key[1] if key else file}{component}"


def _name(text: str) -> str:
    """Return words of the deck as the name of a parameter."""
    name = re.sub(r"\W+", "_", text.strip(), flags=re.ASCII).strip("_").lower()
    try:
        return identifier(name)
    except ValueError:
        return "x"
