"""[metrics]: how a number is read out of what a trial leaves, or calculated from other numbers."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ResultMissing
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.formula import Formula
from persistent_runner.study.functions import last_line
from persistent_runner.study.tabular import NUMBER, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.study.extract import Extract
    from persistent_runner.study.formula import Value
    from persistent_runner.study.functions import Function

LARGEST_FILE_BYTES = 2**30
_HEAD_BYTES = 2**16
_MOST_DIGITS = 300  # of a whole number that a float can hold
_NOT_PLAIN = re.compile(r"[^0-9eE.+\-\s]", re.ASCII)
# what a log may hold is not among them: bell, backspace, tab, line and page ends, Ctrl-Z, escape
_NO_TEXT = re.compile(rb"[\x00-\x06\x0e-\x19\x1c-\x1f]")


@dataclass(frozen=True)
class Reading:
    """A number that was read, always finite, and where it stood: "line 120 of 120, the last of 12 matches"."""

    value: float
    note: str


class Readings:
    """The numbers of one trial, out of the files below its local folder.

    Each file is read once, however many metrics read it, and nothing is kept longer than this object. `functions` are
    those that the metrics name, as `load_functions` gives them; `parameters` are what formulas may use.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Mapping[str, Extract],
        *,
        functions: Mapping[str, Function] | None = None,
        parameters: Mapping[str, Value] | None = None,
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self._functions = functions or {}
        self._parameters = parameters or {}
        self._texts: dict[tuple[str, str | None], _Text] = {}
        self._done: dict[str, Reading] = {}

    def numbers(self) -> dict[str, float]:
        """Return the number of every metric; ResultMissing as `reading`."""
        return {name: self.reading(name).value for name in self._metrics}

    def reading(self, name: str) -> Reading:
        """Return the number of one metric, and where it stood.

        Raises ResultMissing with the metric's name, file, rule, and the nearest columns, lines or keys.
        """
        if name not in self._done:
            extract = self._metrics[name]
            try:
                self._done[name] = self._read(extract)
            except (OverflowError, ValueError) as error:
                where = f"metric {name}: {extract.file}" if extract.file else f"metric {name}"
                look = "Look at what it is made of" if extract.expr else "Look at the file and at the command's log"
                remedy = f"{look}, or mend the rule ({extract.rule}) in [metrics.{name}]."
                raise ResultMissing(f"{where}: {error}", remedy=remedy) from None
        return self._done[name]

    def _read(self, extract: Extract) -> Reading:
        if extract.expr is not None:
            return self._calculated(Formula(extract.expr))
        if extract.function is not None:
            return self._called(extract.function, extract.file)
        text = self._text(extract.file or "", extract.below)
        if extract.column is not None:
            found = _cells(text.table, extract.column, extract.reduce)
        elif extract.regex is not None:
            found = _matches(text.whole, extract.regex)
        else:
            found = _json(text.json, extract.json_path or "")
        return _chosen(found, extract)

    def _text(self, file: str, below: str | None = None) -> _Text:
        if (file, below) not in self._texts:
            text = _content(self._folder, file) if below is None else _lines_below(self._text(file).whole, below)
            self._texts[file, below] = _Text(text)
        return self._texts[file, below]

    def _calculated(self, formula: Formula) -> Reading:
        values: dict[str, Value] = {name: self._parameters[name] for name in formula.names & self._parameters.keys()}
        values |= {name: self.reading(name).value for name in formula.names & self._metrics.keys()}
        value = formula(values)
        if isinstance(value, bool | str):
            more = "; for a number write 1 if ... else 0" if isinstance(value, bool) else ""
            raise ValueError(f"{formula.with_values(values)} is {_shown(value)}, which is not a number{more}")  # noqa: TRY004 - one family of errors
        return Reading(float(value), formula.with_values(values))

    def _called(self, name: str, file: str | None) -> Reading:
        path = _path(self._folder, file) if file is not None else self._folder
        try:
            value = self._functions[name](path)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's function raises
            raise ValueError(f"{name} failed: {last_line(error)}") from None
        given = f"{name}({file or 'the trial folder'})"
        return Reading(_returned(value, given), given)


@dataclass(frozen=True)
class _Text:
    """What numbers stand in, cut up once for each kind of rule."""

    whole: str

    @cached_property
    def table(self) -> Table:
        return Table(self.whole)

    @cached_property
    def json(self) -> Any:
        return _parsed(self.whole)


def _content(folder: Path, name: str) -> str:
    path = _path(folder, name)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            shown = f"{size / 2**30:.1f} GiB"
            raise ValueError(f"the file has {shown}, and at most 1 GiB is read; write the number elsewhere")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ValueError("the file is empty")
    odd = _NO_TEXT.search(data[:_HEAD_BYTES])
    at = odd.start() if odd else data.find(b"\0")
    if at >= 0:
        raise ValueError(
            f"the file is not text (its byte {at} is 0x{data[at]:02x}); let the command write the number as text, "
            f'or read the file with function = "post.py:NAME"'
        )
    return data.decode("utf-8-sig", errors="replace")


def _lines_below(text: str, pattern: str) -> str:
    """Return the lines below the last match, to the next blank one; the others are blank, so that these keep theirs."""
    found = deque(re.finditer(pattern, text, re.MULTILINE), maxlen=1)
    if not found:
        raise ValueError(f"nothing matches {pattern}; the nearest lines are:\n{_nearest_lines(text, pattern)}")
    lines = text.split("\n")
    head = text.count("\n", 0, found[0].end()) + 1
    first = next((n for n in range(head, len(lines)) if lines[n].strip()), len(lines))
    end = next((n for n in range(first, len(lines)) if not lines[n].strip()), len(lines))
    if first == end:
        raise ValueError(f"nothing stands below line {head}: {lines[head - 1].strip()[:160]}")
    return "\n".join(line if first <= n < end else "" for n, line in enumerate(lines))


def _path(folder: Path, name: str) -> Path:
    """Return the path of a file of the trial; ValueError where it is not there or lies elsewhere."""
    path = folder / name
    if not path.is_file():
        near = did_you_mean(name, sorted(_names(folder)))
        raise ValueError(f"the file is not there; in the trial's folder: {near}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("the file is a link that leaves the trial's folder")
    return path


def _names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class _Found:
    """What a rule found, in order: text, or values of JSON; `place` says where the n-th of them, from 0, stands."""

    values: Sequence[object]
    place: Callable[[int], str]
    words: str
    """What they are: rows, matches, items"""
    alone: str
    """What is to be said of one that has no others beside it"""
    of: str = ""
    """What a place is part of"""


def _cells(table: Table, column: str | int, reduce: str) -> _Found:
    of = f" of {table.n_lines}"
    if reduce in {"first", "last"}:
        line, cell = table.row(column, last=reduce == "last")
        return _Found([cell], lambda _: f"line {line}", "rows", f"the {reduce} row", of)
    cells = table.column(column)
    return _Found(cells, lambda n: f"line {table.line_of(n)}", "rows", "the only row", of)


def _matches(text: str, regex: str) -> _Found:
    found = [(match.start(), match[1]) for match in re.finditer(regex, text, re.MULTILINE)]
    if not found:
        raise ValueError(f"nothing matches {regex}; {_nearest_lines(text, regex)}")
    lines = text.count("\n") + (not text.endswith("\n"))
    return _Found(
        [value for _, value in found],
        lambda n: f"line {text.count(chr(10), 0, found[n][0]) + 1}",
        "matches",
        "the only match",
        f" of {lines}",
    )


def _nearest_lines(text: str, regex: str) -> str:
    """Return up to three lines that hold most of the words of the regex, or that it matches but for capital letters."""
    words = {word.casefold() for word in re.findall(r"[^\W\d_]{2,}", re.sub(r"\\.", " ", regex))}
    lines = [line.strip()[:160] for line in text.splitlines()[-20_000:] if line.strip()]
    in_any_case = re.compile(regex, re.MULTILINE | re.IGNORECASE)
    scores = [(bool(in_any_case.search(line)), sum(word in line.casefold() for word in words)) for line in lines]
    best = max(scores)
    if best == (False, 0):
        return "its last lines are:\n" + "\n".join(f"    {line}" for line in lines[-3:])
    near = [line for line, score in zip(lines, scores, strict=True) if score == best][-3:]
    what = "the nearest lines are" + (", but for capital letters (write (?i) before the regex)" if best[0] else "")
    return f"{what}:\n" + "\n".join(f"    {line}" for line in near)


def _parsed(text: str) -> Any:
    try:
        # int() refuses 5000 digits with words of its own
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else float(digits))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        rest = text[error.pos :].rstrip()
        unfinished = re.fullmatch(r"[\w.+-]*", rest) and error.pos and not error.msg.startswith("Extra data")
        if unfinished or error.msg.startswith("Unterminated"):
            raise ValueError(
                f"the JSON ends in the middle, at line {error.lineno}; the program that wrote it may have been cut off"
            ) from None
        line = text.splitlines()[error.lineno - 1].strip() if error.pos < len(text) else ""
        raise ValueError(f"line {error.lineno} is not JSON ({error.msg}): {line[:160]}") from None


def _json(value: Any, path: str) -> _Found:
    done = ""
    for part in path.split("."):
        place = f'"{done}"' if done else "the top"
        if isinstance(value, dict):
            if part not in value:
                raise ValueError(f'at {place} there is no key "{part}"; {did_you_mean(part, map(str, value))}')
            value = value[part]
        elif isinstance(value, list):
            if not value:
                raise ValueError(f"at {place} stands an empty list")
            if not re.fullmatch(r"-?\d{1,9}", part, re.ASCII) or not -len(value) <= int(part) < len(value):
                raise ValueError(f'at {place} stands a list of {len(value)}; "{part}" is no position in it (from 0)')
            value = value[int(part)]
        else:
            raise ValueError(f'at {place} stands {_shown(value)}, so there is no "{part}" below it')  # noqa: TRY004 - one family of errors
        done = f"{done}.{part}" if done else part
    if isinstance(value, list):
        if not value:
            raise ValueError(f'at "{done}" stands an empty list')
        return _Found(value, lambda n: f"{done}.{n}", "items", "the only item")
    return _Found([value], lambda _: done, "", "")


def _chosen(found: _Found, extract: Extract) -> Reading:
    """Return the one that counts, by `match` or `reduce`, as a number."""
    count = len(found.values)
    at = {"first": 0, "last": count - 1}.get(extract.reduce)
    note = f"the {extract.reduce} of {count} {found.words}"
    if extract.match is not None:
        at = extract.match - 1 if extract.match > 0 else count + extract.match
        note = f"match {at + 1} of {count}"
        if not 0 <= at < count:
            times = "once" if count == 1 else f"{count} times"
            from_end = "" if extract.match > 0 else " from the end"
            raise ValueError(f"{extract.regex} matches {times}, there is no {_ordinal(abs(extract.match))}{from_end}")
    strict = extract.json_path is not None
    if at is None:
        values = [] if strict else _plain_numbers(found.values)
        values = values or [_number_at(found, n, strict=strict) for n in range(count)]
        if extract.reduce == "mean":
            return Reading(math.fsum(values) / count, f"the mean of {count} {found.words}")
        value = min(values) if extract.reduce == "min" else max(values)
        at, note = (
            values.index(value),
            f"the {'smallest' if extract.reduce == 'min' else 'largest'} of {count} {found.words}",
        )
    else:
        value = _number_at(found, at, strict=strict)
    if count == 1:
        note = found.alone
    return Reading(value, f"{found.place(at)}{found.of}{', ' if note else ''}{note}")


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _plain_numbers(values: Sequence[object]) -> list[float]:
    """Return many texts as numbers in a tenth of the time, where float() takes them as `_number` does; else nothing."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values) or _NOT_PLAIN.search("\n".join(texts)):
        return []
    try:
        numbers = list(map(float, texts))
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _number_at(found: _Found, n: int, *, strict: bool) -> float:
    try:
        return _number(found.values[n], strict=strict)
    except ValueError as error:
        raise ValueError(f"{found.place(n)} {error}") from None


def _number(value: object, *, strict: bool) -> float:
    """Return a finite float: text that is a number (Fortran's D is an E), or in JSON a number, and nothing else."""
    if isinstance(value, str) and not strict:
        text = value.strip()
        if NUMBER.fullmatch(text):
            return _finite(float(text.replace("d", "e").replace("D", "e")), text)
        if text.lower().lstrip("+-") in {"nan", "inf", "infinity"}:
            raise ValueError(f"holds {text}, which is not a finite number")
        if text.count(",") == 1 and NUMBER.fullmatch(text.replace(",", ".")):
            raise ValueError(f"holds {text}, with a decimal comma; let the command write it with a point")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(float(value))
    if not strict and (value is None or (isinstance(value, str) and not value.strip())):
        raise ValueError("holds no value")
    raise ValueError(f"holds {_shown(value)}, which is not a number")


def _finite(number: float, written: str | None = None) -> float:
    if not math.isfinite(number):
        raise ValueError(f"holds {_shown(written) if written else number}, which is not a finite number")
    return number


def _returned(value: object, call: str) -> float:
    """Return what a function gave as a finite float: a number of Python or numpy, and neither a boolean nor text."""
    if value is None:
        raise ValueError(f"{call} returned nothing; end it with return and the number")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(  # noqa: TRY004 - one family of errors
            f"{call} returned {_shown(value)} ({type(value).__name__}), which is not a number; return float(...)"
        )
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{call} returned {number}, which is not a finite number")
    return number


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
