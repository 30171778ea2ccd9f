"""The numbers of a solver's deck, and which of them become parameters: the text of a deck into that of a template."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.render import BYTE_ORDER_MARKS, DEFAULT_DELIMITERS, Delimiters
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.space import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

PARAM_FORM = "--param NAME=[FILE:]LINE:COLUMN:LOW:HIGH, such as --param thickness=12:8:0.5:2.0"

_PLAIN = r"(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?"
# neither part of a name nor of a version such as 1.2.3; what follows may be a unit
_NUMBER = re.compile(rf"(?<![\w.])(?<![\w.][+-])[+-]?(?>{_PLAIN})(?![\d.])", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
# Nastran Quick Reference Guide, "Format of Bulk Data Entries": 1.5-3 is 1.5E-3
_NASTRAN_NUMBER = re.compile(rf"[+-]?(?:{_PLAIN}|(?:\d+\.\d*|\.\d+)[+-]\d+)", re.ASCII)
_NASTRAN_NAMES = {".bdf", ".nas"}
_ABAQUS_KEYWORD = re.compile(r"^[ \t]*\*[A-Za-z]", re.MULTILINE)
_INCLUDED = re.compile(r"^[ \t]*\*INCLUDE\s*,\s*INPUT\s*=\s*([^\s,]+)", re.MULTILINE | re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_PARAM = re.compile(r"(?P<name>[^=]*)=(?P<place>(?:.+:)?\d{1,9}:\d{1,9}):(?P<low>[^:]+):(?P<high>[^:]+)", re.ASCII)
_PLACE = re.compile(r"(?:(?P<file>.+):)?(?P<line>\d{1,9}):(?P<column>\d{1,9})", re.ASCII)
_OTHER_DELIMITERS = [
    DEFAULT_DELIMITERS, Delimiters("<<", ">>"), Delimiters("%{", "}%"), Delimiters("@<", ">@"), Delimiters("~{", "}~")
]  # fmt: skip
_SHOWN_COLUMNS = 100


@dataclass(frozen=True)
class Deck:
    """A file of a case as text.

    `path` is its place in the case, with `/`; `mark`, that of the byte order, and `encoding` give its bytes back. One
    that is compressed has no text.
    """

    path: str
    text: str
    encoding: str = "utf-8"
    mark: bytes = b""
    is_compressed: bool = False
    is_included: bool = False
    """Whether a deck of Abaqus or CalculiX includes it, so that it is one without a keyword, too."""

    @classmethod
    def of(cls, path: str, data: bytes) -> Deck | None:
        """Return the deck of these bytes, read as templates are; None where they are no text."""
        if data.startswith(_GZIP):
            return cls(path, "", is_compressed=True)
        mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), b"")
        encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
        try:
            text = data[len(mark) :].decode(encoding)
        except UnicodeDecodeError:
            if mark:
                return None
            encoding = "latin-1"
            text = data.decode(encoding)
        return None if "\0" in text else cls(path, text, encoding, mark)

    @cached_property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        return [line.removesuffix("\r") for line in self.text.split("\n")]

    @cached_property
    def _bulk_from(self) -> int | None:
        """The number of the line above Nastran's bulk data; None where the file is another solver's."""
        for n, line in enumerate(self.lines, 1):
            if re.match(r"\s*BEGIN\s*,?\s*BULK\b", line, re.IGNORECASE):
                return n
        return 0 if PurePosixPath(self.path).suffix.lower() in _NASTRAN_NAMES else None

    @cached_property
    def is_abaqus(self) -> bool:
        """Whether it is a deck of Abaqus or CalculiX."""
        is_named_so = PurePosixPath(self.path).suffix.lower() == ".inp"
        return self.is_included or (is_named_so and _ABAQUS_KEYWORD.search(self.text) is not None)

    def _is_bulk(self, line: int) -> bool:
        return self._bulk_from is not None and line > self._bulk_from

    def real_filter(self, line: int) -> str:
        """Return the filter that a real number of a line needs, as its solver reads only so many characters of one.

        Abaqus Analysis Guide, Data lines: 20, and CalculiX takes 8.178144800427807e-09, which has 21, for 8.18.
        """
        if self._is_bulk(line):
            return f"nastran({16 if '*' in self.lines[line - 1][:8] else 8})"
        return "abaqus(20)" if self.is_abaqus else ""

    def numbers(self, line: int) -> list[Number]:
        """Return the numbers of a line, which is counted from 1."""
        text = self.lines[line - 1]
        if self._is_bulk(line) and _is_fixed(text):
            return list(_fields(self, line, text))
        return [Number(self, line, match.start(), match.end(), match[0]) for match in _NUMBER.finditer(text)]

    def number_at(self, line: int, column: int) -> Number:
        """Return the number that starts at or lies over a column, both from 1; ConfigError if none does."""
        if self.is_compressed:
            raise ConfigError(f"{self.path} is compressed; gunzip it first")
        if not 1 <= line <= len(self.lines):
            raise ConfigError(f"{self.path} has {len(self.lines)} lines; there is no line {line}")
        numbers = self.numbers(line)
        for number in numbers:
            if number.start <= column - 1 < number.end:
                return number
        at = ", ".join(str(number.column) for number in numbers[:12])
        near = f"its numbers start at column {at}" if at else "there is no number on it"
        raise ConfigError(
            f"no number stands at line {line}, column {column} of {self.path}; {near}:\n"
            + pointed_at(self.lines[line - 1], column)
        )

    def template(self, marks: Sequence[Mark], delimiters: Delimiters) -> bytes:
        """Return the bytes of the deck with an expression in place of each marked number; all others stay."""
        places = [(number, mark) for mark in marks for number in mark.numbers if number.deck.path == self.path]
        starts = [0]
        starts += [match.end() for match in re.finditer("\n", self.text)]
        text = self.text
        for number, mark in sorted(places, key=lambda place: (place[0].line, place[0].start), reverse=True):
            line = starts[number.line - 1]
            first, last = number.field or (number.start, number.end)
            last = min(last, len(self.lines[number.line - 1]))  # of a field, blanks at the end may be left out
            text = f"{text[: line + first]}{mark.expression(number, delimiters)}{text[line + last :]}"
        return self.mark + text.encode(self.encoding)


@dataclass(frozen=True)
class Number:
    """A number in a deck. `start` and `end` are columns from 0, `field` those of the fixed field that it fills."""

    deck: Deck
    line: int
    start: int
    end: int
    text: str
    field: tuple[int, int] | None = None

    @property
    def column(self) -> int:
        """Where it starts, from 1."""
        return self.start + 1

    @property
    def value(self) -> float:
        """What it says; Fortran's D is an E, and Nastran needs neither."""
        text = self.text.lower().replace("d", "e")
        return float(text if "e" in text else re.sub(r"(?<=[\d.])(?=[+-])", "e", text))

    @property
    def is_whole(self) -> bool:
        """Whether it is written as a whole number."""
        return _WHOLE.fullmatch(self.text) is not None

    @property
    def place(self) -> str:
        """The file, line and column, as `--param` takes them."""
        return f"{self.deck.path}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Mark:
    """A number of the deck that becomes a parameter, in all the places where it stands, with its range."""

    name: str
    numbers: tuple[Number, ...]
    low: float
    high: float
    is_int: bool

    @property
    def value(self) -> float:
        """What the deck says."""
        return self.numbers[0].value

    @property
    def words(self) -> str:
        """The range for people, and what kind of numbers lie in it."""
        return f"{'whole' if self.is_int else 'real'} numbers from {self.low:g} to {self.high:g}"

    @property
    def is_inside(self) -> bool:
        """Whether the deck's own value lies in the range."""
        return self.low <= self.value <= self.high

    def at(self, number: Number) -> Mark:
        """Return the same parameter at one of its places alone."""
        return replace(self, numbers=(number,))

    def toml(self, value: float) -> str:
        """Return a value as study.toml has it."""
        return str(int(value)) if self.is_int else repr(float(value))

    def expression(self, number: Number, delimiters: Delimiters) -> str:
        """Return what stands in the template: the name, and the filter by which the solver reads the whole number."""
        fits = number.deck.real_filter(number.line) if number.field or not self.is_int else ""
        return f"{delimiters.start} {self.name}{f' | {fits}' if fits else ''} {delimiters.end}"


def with_includes(decks: Mapping[str, Deck]) -> dict[str, Deck]:
    """Return the decks, those known for it that a deck of Abaqus or CalculiX includes, by their name alone."""
    names = {PurePosixPath(name).name for deck in decks.values() for name in _INCLUDED.findall(deck.text)}
    return {path: replace(deck, is_included=PurePosixPath(path).name in names) for path, deck in decks.items()}


def read_mark(decks: Mapping[str, Deck], given: str) -> Mark:
    """Return the mark that a `--param` says; ConfigError where it is none of its form, or no number stands there."""
    parts = _PARAM.fullmatch(given)
    if parts is None:
        raise ConfigError(f"--param {given}: is not of the form", remedy=f"Write {PARAM_FORM}.")
    try:
        return new_mark(parts["name"].strip(), read_place(decks, parts["place"]), parts["low"], parts["high"])
    except ConfigError as error:
        raise ConfigError(f"--param {given}: {error.message}", remedy=error.remedy) from None


def read_place(decks: Mapping[str, Deck], given: str) -> Number:
    """Return the number at `[FILE:]LINE:COLUMN`; ConfigError where there is none."""
    parts = _PLACE.fullmatch(given)
    if parts is None:
        raise ConfigError(f'"{given}" is not of the form [FILE:]LINE:COLUMN, such as 12:8')
    return _deck(decks, parts["file"]).number_at(int(parts["line"]), int(parts["column"]))


def new_mark(name: str, number: Number, low: str, high: str) -> Mark:
    """Return a number as a parameter with this name and range; ConfigError where one of them cannot be.

    It is whole where the deck's number, low and high are written as whole numbers.
    """
    ends = [end.strip() for end in (low, high)]
    lowest, highest = map(read_end, ends)
    if not lowest < highest:
        raise ConfigError(f"low ({ends[0]}) is not below high ({ends[1]}); swap them")
    whole = number.is_whole and all(_WHOLE.fullmatch(end) for end in ends)
    return Mark(read_name(name), (number,), lowest, highest, whole)


def read_name(name: str) -> str:
    """Return the name of a parameter; ConfigError where it cannot be one."""
    try:
        return identifier(name)
    except ValueError as error:
        raise ConfigError(f'"{name}" {error}') from None


def read_end(end: str) -> float:
    """Return an end of a range; ConfigError where it is no number."""
    if not re.fullmatch(rf"[+-]?{_PLAIN}", end, re.ASCII):
        raise ConfigError(f'"{end}" is no number; low and high are numbers, such as 0.5 and 2.0')
    return float(end.lower().replace("d", "e"))


def joined(marks: Iterable[Mark]) -> list[Mark]:
    """Return the marks with those of one name made one; ConfigError where they do not agree, or share a number."""
    found: dict[str, Mark] = {}
    taken: dict[tuple[str, int, int], str] = {}
    for mark in marks:
        (number,) = mark.numbers
        key = (number.deck.path, number.line, number.start)
        if key in taken:
            raise ConfigError(
                f"{taken[key]} and {mark.name} both mark the number at {number.place}; remove one of them"
            )
        taken[key] = mark.name
        other = found.get(mark.name)
        if other is not None:
            if (other.low, other.high, other.is_int) != (mark.low, mark.high, mark.is_int):
                raise ConfigError(f"{mark.name} is marked twice with two ranges; give both the same, or two names")
            if other.value != mark.value:
                raise ConfigError(
                    f"{mark.name} is {other.numbers[0].text} at {other.numbers[0].place} and {number.text} at "
                    f"{number.place}; give them two names"
                )
            mark = replace(mark, numbers=(*other.numbers, number))  # noqa: PLW2901
        found[mark.name] = mark
    return list(found.values())


def free_delimiters(decks: Iterable[Deck]) -> Delimiters:
    """Return delimiters that none of the decks holds, the usual ones if possible; ConfigError where none are left."""
    texts = [deck.text for deck in decks]
    for delimiters in _OTHER_DELIMITERS:
        if not any(sign in text for text in texts for sign in (delimiters.start, delimiters.end)):
            return delimiters
    tried = ", ".join(f"{delimiters.start} {delimiters.end}" for delimiters in _OTHER_DELIMITERS)
    raise ConfigError(f"the deck holds all signs that could mark a parameter: {tried}")


def pointed_at(line: str, column: int) -> str:
    """Return a line with a caret below one of its columns (from 1); of a long line the part around it."""
    at = min(column - 1, len(line))
    first = max(0, at - _SHOWN_COLUMNS // 2) if len(line) > _SHOWN_COLUMNS else 0
    shown = line[first : first + _SHOWN_COLUMNS].replace("\t", " ").rstrip()
    return f"    {shown}\n    {' ' * (at - first)}^"


def _deck(decks: Mapping[str, Deck], file: str | None) -> Deck:
    if file is None:
        if len(decks) == 1:
            return next(iter(decks.values()))
        raise ConfigError(
            f"there are {len(decks)} files, and none is named; {did_you_mean('', decks)}", remedy=f"Write {PARAM_FORM}."
        )
    wanted = PurePosixPath(file.replace("\\", "/"))
    found = [deck for path, deck in decks.items() if path == str(wanted)]
    # as the user sees them: by name alone, or by the path that they were given with
    found = found or [deck for path, deck in decks.items() if path == f"{wanted}.gz" and deck.is_compressed]
    found = found or [deck for path, deck in decks.items() if PurePosixPath(path).name == str(wanted)]
    found = found or [deck for path, deck in decks.items() if f"/{wanted}".endswith(f"/{path}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{file} may be {' or '.join(deck.path for deck in found)}; write which")
    raise ConfigError(f"the deck has no text file {file}; {did_you_mean(file, decks)}")


def _is_fixed(line: str) -> bool:
    """Whether a line of bulk data has its fields in fixed columns."""
    return "," not in line and "\t" not in line and re.match(r"[A-Za-z+* ]", line) is not None


def _fields(deck: Deck, line: int, text: str) -> Iterator[Number]:
    """Yield the numbers that fill a field by themselves: eight columns, or sixteen below a name with a star."""
    width = 16 if "*" in text[:8] else 8
    for first in range(8, min(len(text), 72), width):
        match = _NASTRAN_NUMBER.fullmatch(content := text[first : first + width].strip())
        if match:
            start = text.index(content, first)
            yield Number(deck, line, start, start + len(content), content, (first, first + width))
