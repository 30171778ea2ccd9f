"""Which numbers of a deck are likely to be parameters: for whoever chooses among them on a terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistent_runner.study.context import contexts, syntax_of, within
from persistent_runner.study.space import identifier
from persistent_runner.study.tabular import NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
_OF_THE_RUN = re.compile(r"\b(?:(?:start|end)Time|deltaT|scale)\b")
_FIELDS = {"0", "0.orig"}
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
            before = line[: number.start]
            around = within(context, before) if syntax == "foam" else context
            place = _Place(number, numbers, before, around, is_row)
            likely, words = _JUDGED[syntax](place)
            if likely != _NEVER and not around.is_remark:
                yield Candidate(number, _name(words), likely, around)


@dataclass(frozen=True)
class _Place:
    """A number among those of its line, the line before it, and what that belongs to."""

    number: Number
    beside: list[Number]
    before: str
    context: Context
    is_row: bool

    @property
    def assigned(self) -> str:
        """The name that the number is assigned to, or else the heading that it stands below."""
        match = _ASSIGNED.search(self.before)
        return (match["name"] or match["first"]) if match else self.context.names[-1]

    @property
    def discount(self) -> int:
        """How much less likely 0 and 1 are, above all the parts of a direction."""
        is_direction = len(self.beside) > 1 and all(abs(each.value) in {0, 1} for each in self.beside)
        return 6 * (self.number.value == 0 or is_direction) + 2 * (abs(self.number.value) == 1)


def _judged(place: _Place) -> tuple[int, str]:
    """Return how likely a number of some deck is, and words for it."""
    number, beside = place.number, place.beside
    reals = sum(not each.is_whole for each in beside)
    is_prose = len(_WORD.findall(number.deck.lines[number.line - 1])) > _MANY
    likely = 3 * (_ASSIGNED.search(place.before) is not None) + 2 * (len(beside) == 1)
    likely += 0 if number.is_whole else 1 + 2 * (reals == 1)  # among the numbers of nodes and sets
    likely -= 4 * place.is_row + 2 * (len(beside) > _MANY) + 3 * place.context.is_head + 4 * is_prose
    likely -= (number.value in {0, 1}) + 6 * bool(_SETTING.search(place.assigned))
    return likely, place.assigned


def _judged_in_abaqus(place: _Place) -> tuple[int, str]:
    (keyword,) = place.context.names
    if place.context.is_head:
        return -2, place.assigned
    addresses = _ADDRESSES.get(keyword, 0)
    if place.before.count(",") < addresses:
        return _NEVER, ""
    likely = next((likely for pattern, likely in _KEYWORDS if re.fullmatch(pattern, keyword)), 3)
    of = re.search(r"\belset\s*=\s*([^,\s]+)", place.context.words, re.IGNORECASE)
    words = of[1] if of and keyword.endswith("section") else keyword
    items = place.beside[addresses:]
    if place.number in items and len(items) > 1:
        words += f" {items.index(place.number) + 1}"
    return likely if likely == _NEVER else likely - place.discount, words


def _judged_in_foam(place: _Place) -> tuple[int, str]:
    likely = _likely_in_foam(place)
    folder, _, file = place.number.deck.path.rpartition("/")
    names = place.context.names
    vector = re.search(r"\(([^()]*)$", place.before)
    at = len(vector[1].split()) if vector else 3
    key = re.match(r"\s*(\w+)", place.before)
    if folder in _FIELDS:
        words = f"{file} {names[-1] if 'boundaryField' in names else 'internal'}"
    elif names and (key is None or vector):
        words = names[-1]
    else:
        words = key[1] if key else file
    words += f" {'xyz'[at]}" if at < 3 else ""
    return likely if likely == _NEVER else likely - place.discount, words


def _likely_in_foam(place: _Place) -> int:
    names, before = place.context.names, place.before
    is_dimension = before.count("[") > before.count("]")
    if is_dimension or names[:1] == ("FoamFile",) or "faces" in names or _POINTS.search(before):
        return _NEVER
    folder, _, file = place.number.deck.path.rpartition("/")
    if folder in _FIELDS:
        is_wall = any("wall" in name.lower() for name in names)
        return 9 - 3 * ("boundaryField" not in names) - 2 * is_wall
    if file == "blockMeshDict":
        is_variable = not names and re.fullmatch(r"\s*(?!scale\b|convertToMeters\b)\w+\s+", before)
        return 7 if "vertices" in names or is_variable else 2
    if folder == "system" or file == "g":  # gravity
        return 0 - 6 * bool(_SETTING.search(before))
    return 8 - 6 * bool(_SETTING.search(before) or _OF_THE_RUN.search(before))


_JUDGED: dict[Syntax, Callable[[_Place], tuple[int, str]]] = {
    "abaqus": _judged_in_abaqus,
    "foam": _judged_in_foam,
    "": _judged,
}


def _name(text: str) -> str:
    """Return words of the deck as the name of a parameter."""
    name = re.sub(r"\W+", "_", text.strip(), flags=re.ASCII).strip("_").lower()
    try:
        return identifier(name)
    except ValueError:
        return "x"
