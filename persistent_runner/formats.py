"""Numbers as decks want them: the filters of a template's expressions."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BREAKS_FIELDS = re.compile(r"[\s,$]")
_ZEROS = 3  # behind the point that are written out: more of them take more room than an exponent


def text_of(value: object) -> str:
    """Return a value as a deck takes it: numbers with all their digits and a decimal point, text as it is."""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise TypeError(f"is a {type(value).__name__}; a template takes numbers and text")


def number_of(value: object, needed_by: str) -> Any:
    """Return a value that must be a number; TypeError where it is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{needed_by} needs a number, not {value!r}")
    return value


def _count(value: object, most: int, example: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        name = example.partition("(")[0]
        raise ValueError(f"{name} takes a whole number from 0 to {most}{_not(value, example)}")
    return value


def _not(value: object, example: str) -> str:
    return f", as in | {example}" if value is None else f", not {value!r}"  # None: it was left out


def _fixed(value: object, digits: object = None) -> str:
    return f"{number_of(value, 'fixed'):.{_count(digits, 60, 'fixed(4)')}f}"


def _sci(value: object, digits: object = None) -> str:
    return f"{number_of(value, 'sci'):.{_count(digits, 60, 'sci(6)')}e}"


def _width(value: object, columns: object = None) -> str:
    text = text_of(value)
    size = _count(columns, 500, "width(8)")
    if len(text) > size:
        raise ValueError(
            f"{text!r} does not fit into {size} columns; shorten it first, for example with | sci(3) | width({size})"
        )
    return text.rjust(size)


def _nastran(value: object, columns: object = None) -> str:
    """Return a field of Nastran's fixed format, 8 columns or 16, right-aligned.

    Source: NASA's NASTRAN User's Manual, 2.4 Bulk Data Deck, and in the same words MSC's Quick Reference Guide, Format
    of Bulk Data Entries: an item lies anywhere in its field, without blanks within it; every real number has a decimal
    point; 7.0 may be written .7E1, 0.7+1, .70+1 or 70.-1, so the point may stand anywhere and the E may be left out.
    """
    size = _one_of(columns, "nastran", (8, 16))
    return _field(value, size, "").rjust(size)


def _abaqus(value: object, characters: object = None) -> str:
    """Return an item of an Abaqus data line, of at most 8, 16 or 20 characters, without blanks: items end at a comma.

    Source: Abaqus Analysis Guide, Input syntax rules, Data lines: a floating point number takes at most 20 characters
    with sign, point and exponent, the exponent with an E before it.
    """
    return _field(value, _one_of(characters, "abaqus", (8, 16, 20)), "E")


def _one_of(value: object, name: str, sizes: tuple[int, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in sizes:
        wanted = f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
        raise ValueError(f"{name} takes {wanted}{_not(value, f'{name}({sizes[0]})')}")
    return value


def _field(value: object, size: int, mark: str) -> str:
    """Return a value in at most `size` characters, a real number with as many of its digits as fit."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{number} is no number that a deck can hold")
        return _real(number, size, mark)
    text = text_of(value)
    if len(text) > size:
        raise ValueError(f"{text!r} does not fit into {size} columns")
    if not text or _BREAKS_FIELDS.search(text):
        raise ValueError(f"{text!r} cannot stand in a field: it is empty, or holds a blank, a comma or $")
    return text


def _real(number: float, size: int, mark: str) -> str:
    if number == 0:
        return "0.0"
    sign = "-" if number < 0 else ""
    needed = re.sub(r"e.*|\.", "", repr(abs(number))).strip("0")  # as many digits as tell it from its neighbours
    for count in range(len(needed), 0, -1):
        rounded = f"{abs(number):.{count - 1}e}"
        mantissa, _, exponent = rounded.partition("e")
        for text in _spellings(mantissa.replace(".", "").rstrip("0"), int(exponent) + 1, mark):
            if len(sign + text) <= size and math.isfinite(float(rounded)):
                return sign + text
    raise ValueError(f"{number!r} does not fit into {size} columns")


def _spellings(digits: str, point: int, mark: str) -> Iterator[str]:
    """Yield ways to write 0.digits times ten to the `point`, the most readable first."""
    if 0 < point <= 20:
        whole, fraction = digits[:point].ljust(point, "0"), digits[point:]
        yield f"{whole}.{fraction or 0}"
        yield f"{whole}.{fraction}"
    elif -_ZEROS <= point <= 0:
        yield f"0.{'0' * -point}{digits}"
        yield f".{'0' * -point}{digits}"
    # 1.234-5 first; the others where moving the point makes the exponent shorter
    for before in (1, *(n for n in range(len(digits) + 1) if n != 1)):
        yield f"{digits[:before]}.{digits[before:]}{mark}{point - before:+d}"


FILTERS: dict[str, Callable[..., str]] = {
    "abaqus": _abaqus,
    "fixed": _fixed,
    "nastran": _nastran,
    "sci": _sci,
    "width": _width,
}
