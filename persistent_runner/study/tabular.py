"""Tables in text: columns between commas, semicolons, tabs or blanks, with a header or without one."""

from __future__ import annotations

import csv
import re
import string
from collections import deque
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from persistent_runner.spelling import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?", re.ASCII)
"""A decimal number as programs print it; Fortran's D is an E."""

# what stands where a number belongs: also none, or one that is not read
_LIKE_A_NUMBER = re.compile(
    rf"(?:{NUMBER.pattern}|[+-]?\d*,\d*|[+-]?nan|[+-]?inf(?:inity)?|)", re.ASCII | re.IGNORECASE
)
_TWO_DECIMAL_COMMAS = re.compile(r"\d,\d+\s+[+-]?\d+,\d", re.ASCII)


class Table:
    """A table, cut into lines at once, and into cells only where they are asked for.

    The header is the first line. One of numbers alone, or with numbers just where the second one has them, is a row:
    then the header is the `#` line above it, as solvers write it, if that has as many names as the row has cells; else
    there is none. ValueError where the text has no rows or ends within one.
    """

    def __init__(self, text: str) -> None:
        self._lines = lines = text.splitlines()
        first = next((n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")), None)
        if first is None:
            raise ValueError("the table has no rows")
        self._separator = _separator(lines[first], first + 1)
        self._quoted = self._separator is not None and '"' in text
        self._blank = string.whitespace + (self._separator or "")
        self._columns: dict[str | int, list[str]] = {}
        top = list(islice(self._rows(first), 2))
        if not top:  # separators alone
            raise ValueError("the table has no rows")
        self._top = top[0]
        """(line number, cells) of the first line that is no comment"""
        self._header = self._find_header(top, next((n for n in range(first - 1, -1, -1) if lines[n].strip()), None))
        """(line number, names), None without one"""
        self._body = self._top[0] if self._header == self._top else first
        """How many lines stand above the first row"""
        if not text.endswith(("\n", "\r")):
            self._check_end()

    @property
    def n_lines(self) -> int:
        """The number of lines, with those that are no rows."""
        return len(self._lines)

    @property
    def names(self) -> list[str]:
        """The names of the columns as the header has them; none where there is no header."""
        return [cell.strip().strip('"') for cell in self._header[1]] if self._header else []

    @property
    def width(self) -> int:
        """How many cells the header has, or without one the first row."""
        return len((self._header or self._top)[1])

    def row(self, column: str | int, *, last: bool) -> tuple[int, str]:
        """Return (line number, cell) of the first or the last row; of the table, only that one is split.

        `column` is a name, or a number from 1. ValueError where there is no such column or it is not clear which it is.
        """
        at = self._find(column)
        found = self._last_row(self._body) if last else next(self._rows(self._body), None)
        if found is None:
            raise ValueError("the table has a header and no rows")
        self._check_width(column, *found)
        line, cells = found
        return line, cells[at] if at < len(cells) else ""

    def column(self, column: str | int) -> list[str]:
        """Return the cells of a column, empty where a row ends before it; ValueError as `row`. Kept for the next one.

        One pass for each column: all cells at once take eight times the memory of the text, and ten times as long.
        """
        if column not in self._columns:
            at = self._find(column)
            even = self._even_lines
            cells = [line.split(self._separator, at + 1)[at] for line in even] or self._uneven_cells(column, at)
            if not cells:
                raise ValueError("the table has a header and no rows")
            self._columns[column] = cells
        return self._columns[column]

    def line_of(self, n: int) -> int:
        """Return the number of the line that the `n`-th row stands in, from 0."""
        return next(islice(self._rows(self._body), n, None))[0]

    @cached_property
    def _even_lines(self) -> list[str]:
        """The lines of the rows, if each row has a cell for each name; else none. They are split in half the time."""
        separator, last = self._separator, len((self._header or self._top)[1]) - 1
        if separator is None or self._quoted:
            return []
        lines = [line for line in islice(self._lines, self._body, None) if line.strip(self._blank)]
        return lines if all(line.count(separator) == last for line in lines) else []

    def _uneven_cells(self, column: str | int, at: int) -> list[str]:
        cells = []
        usual = -1
        for line, row in self._rows(self._body):
            if len(row) != usual:
                self._check_width(column, line, row)
                usual = len(row)
            cells.append(row[at] if at < usual else "")
        return cells

    def _rows(self, above: int) -> Iterator[tuple[int, list[str]]]:
        """Yield (line number, cells) of each row below the first `above` lines."""
        if self._quoted:
            reader = csv.reader(
                islice(self._lines, above, None), delimiter=self._separator or ",", skipinitialspace=True
            )
            try:
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        yield above + reader.line_num, cells
            except csv.Error as error:
                raise ValueError(f"line {above + reader.line_num} is no line of a table: {error}") from None
            return
        for n, line in enumerate(islice(self._lines, above, None), above + 1):
            if line.strip(self._blank):
                yield n, line.split(self._separator)

    def _last_row(self, above: int) -> tuple[int, list[str]] | None:
        if self._quoted:
            return next(iter(deque(self._rows(above), maxlen=1)), None)
        n = next((n for n in range(len(self._lines), above, -1) if self._lines[n - 1].strip(self._blank)), None)
        return None if n is None else (n, self._lines[n - 1].split(self._separator))

    def _find_header(self, top: list[tuple[int, list[str]]], above: int | None) -> tuple[int, list[str]] | None:
        numeric = [[_LIKE_A_NUMBER.fullmatch(cell.strip()) is not None for cell in cells] for _, cells in top]
        is_row = all(numeric[0]) or (any(numeric[0]) and numeric[0] == numeric[-1])
        if not is_row:
            return top[0]
        if above is None:
            return None
        head = self._lines[above].lstrip().lstrip("#")
        names = next(csv.reader([head], delimiter=self._separator)) if self._separator else head.split()
        return (above + 1, names) if len(names) == len(numeric[0]) else None

    def _find(self, column: str | int) -> int:
        """Return the position of a column from 0."""
        line, cells = self._header or self._top
        names = [cell.strip().strip('"') for cell in cells]
        if isinstance(column, int):
            if column > len(names):
                raise ValueError(f"there is no column {column}; line {line} has {len(names)}: {', '.join(names)}")
            return column - 1
        if self._header is None:
            at = names.index(column.strip()) + 1 if column.strip() in names else len(names)
            raise ValueError(
                f'the table has no header, so there is no column "{column}"; line {line} is {", ".join(names)}: '
                f"write the column's number, from 1, as in column = {at}"
            )
        count = names.count(column.strip())
        if not count:
            near = f'did you mean "{found}"?' if (found := nearest(column, names)) else ""
            if column.strip().isdecimal():
                near = f"for the number of a column leave out the quotes: column = {column.strip()}"
            there = f"{f'{near} The' if near else 'the'} columns are {', '.join(names)}"
            raise ValueError(f'the column "{column}" is not there; {there}')
        if count > 1:
            places = [n for n, name in enumerate(names, 1) if name == column.strip()]
            raise ValueError(
                f'the column "{column}" stands there more than once, as columns {", ".join(map(str, places[:-1]))} and '
                f"{places[-1]}; write its number, as in column = {places[0]} (columns: {', '.join(names)})"
            )
        return names.index(column.strip())

    def _check_width(self, column: str | int, line: int, cells: list[str]) -> None:
        """Raise ValueError where it is not clear which cell of a row stands below which name."""
        head, names = self._header or self._top
        if self._separator is None:
            unclear = isinstance(column, str) and len(cells) != len(names)
        else:
            unclear = self._header is not None and any(cell.strip() for cell in cells[len(names) :])
        if unclear:
            remedy = (
                f"a number with a decimal comma needs another separator than {self._separator!r}"
                if self._separator
                else "where names hold blanks, write the column's number, from 1, as in column = 2"
            )
            raise ValueError(
                f"line {head} names {len(names)} columns and line {line} has {len(cells)} cells, so it is not clear "
                f"which is which; {remedy}"
            )

    def _check_end(self) -> None:
        """Raise ValueError where the last row, which no end of a line follows, has fewer cells than a row has."""
        last, first = self._last_row(self._body), next(self._rows(self._body), None)
        if last is None or first is None:
            return
        whole = len(first[1])
        if first == last:  # names may hold blanks, and then there are more of them than cells
            whole = len(self._header[1]) if self._header and self._separator else 0
        if len(last[1]) < whole:
            raise ValueError(
                f"the file ends in the middle of line {last[0]}, after {len(last[1])} of {whole} cells; "
                f"the program that wrote it may have been cut off"
            )


def _separator(line: str, number: int) -> str | None:
    """Return what stands between the cells of a line; None for blanks."""
    if ";" in line:
        return ";"
    if _TWO_DECIMAL_COMMAS.search(line):
        raise ValueError(
            f'line {number} has commas and blanks between digits: "{line.strip()[:60]}"; is 1,5 one number or two?'
        )
    sign = max(",\t", key=line.count)
    return sign if sign in line else None
