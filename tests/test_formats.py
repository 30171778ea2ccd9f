"""Fields of Nastran and Abaqus decks: as wide as asked, and as close to the number as that width allows."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from persistent_runner.errors import ConfigError
from persistent_runner.render import render

FIELD = re.compile(r"(-?)(\d*)\.(\d*)(?:([E]?)([+-]\d+))?")
NUMBERS = st.floats(min_value=-1e300, max_value=1e300, allow_nan=False) | st.floats(-1e6, 1e6) | st.floats(-1, 1)


def field(value: object, form: str) -> str:
    return render(f"@{{ x | {form} }}@", x=value)


def read(text: str) -> Fraction:
    """Read a real number as a solver does: the point may stand anywhere, the E may be left out."""
    found = FIELD.fullmatch(text)
    assert found, text
    sign, whole, fraction, _, exponent = found.groups()
    assert whole or fraction, text
    return Fraction(int(f"{sign}{whole}{fraction}")) * Fraction(10) ** (int(exponent or 0) - len(fraction))


def best(value: float, room: int, mark: int) -> Fraction:
    """Return the least error of any field of `room` characters with a mark of `mark` characters before the exponent.

    With an exponent e and n digits, d of them behind the point, a field reaches the multiples of 10^(e-d) below 10^n.
    """
    exact = Fraction(abs(value))
    room -= value < 0
    errors = []
    size = math.floor(math.log10(abs(value))) if value else 0
    for exponent in (0, *range(size - 20, size + 20)):
        digits = room - 1 - (mark + len(f"{exponent:+d}") if exponent else 0)
        for behind in range(digits + 1):
            unit = Fraction(10) ** (exponent - behind)
            multiple = min(round(exact / unit), 10**digits - 1)
            errors.append(abs(exact - multiple * unit))
    return min(errors)


@pytest.mark.parametrize("columns", [8, 16])
@given(NUMBERS)
@example(9.9999999999e99)
@example(-9.99999e-10)
@example(5e-324)
def test_a_nastran_field(columns: int, value: float) -> None:
    """It has exactly its columns and a decimal point, and no other field of that width is closer to the number."""
    text = field(value, f"nastran({columns})")
    assert len(text) == columns
    assert text == text.strip().rjust(columns)
    assert abs(read(text.strip()) - Fraction(value)) <= max(best(value, columns, 0), Fraction(math.ulp(value)) / 2)


@pytest.mark.parametrize("characters", [8, 16, 20])
@given(NUMBERS)
@example(-9.99999e-10)
def test_an_abaqus_field(characters: int, value: float) -> None:
    """It is at most that long, reads as Python reads it too, and no other of that length is closer to the number."""
    text = field(value, f"abaqus({characters})")
    assert len(text) <= characters
    assert Fraction(float(text)) == Fraction(float(read(text)))
    least = max(best(value, characters, 1), Fraction(math.ulp(value)) / 2)
    assert abs(read(text) - Fraction(value)) <= least


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (0.1, "nastran(8)", "     0.1"),
        (0.0, "nastran(8)", "     0.0"),
        (-0.0, "nastran(8)", "     0.0"),
        (70.0, "nastran(8)", "    70.0"),
        (7, "nastran(8)", "       7"),
        (-12345678, "nastran(16)", "       -12345678"),
        (0.0987654321, "nastran(8)", ".0987654"),
        (1.23456789e-5, "nastran(8)", "1.2346-5"),
        (1.234e-5, "nastran(8)", " 1.234-5"),
        (-1.23456789e-10, "nastran(8)", "-.1235-9"),
        (1e8, "nastran(8)", "    1.+8"),
        (2.1e11, "nastran(8)", "  2.1+11"),
        (2.1e11, "nastran(16)", "  210000000000.0"),
        ("STEEL", "nastran(8)", "   STEEL"),
        (1.23456789e-5, "abaqus(16)", "1.23456789E-5"),
        (-1.2345678901234567e-5, "abaqus(20)", "-1.23456789012346E-5"),
        (210000.0, "abaqus(16)", "210000.0"),
        (3, "abaqus(16)", "3"),
    ],
)
def test_what_fields_look_like(value: object, form: str, expected: str) -> None:
    """The plainest form that keeps the digits: an exponent only where it saves some."""
    assert field(value, form) == expected


@pytest.mark.parametrize(
    ("value", "form", "message"),
    [
        (123456789, "nastran(8)", "'123456789' does not fit into 8 columns"),
        ("ALUMINIUM", "nastran(8)", "'ALUMINIUM' does not fit into 8 columns"),
        ("a b", "nastran(8)", "cannot stand in a field"),
        ("a,b", "abaqus(16)", "cannot stand in a field"),
        ("", "nastran(8)", "cannot stand in a field"),
        (math.nan, "nastran(8)", "nan is no number"),
        (-math.inf, "abaqus(16)", "-inf is no number"),
        (1.7976931348623157e308, "nastran(8)", "does not fit into 8 columns"),
        (1.0, "nastran(9)", "nastran takes 8 or 16, not 9"),
        (1.0, "nastran", "nastran takes 8 or 16, as in | nastran(8)"),
        (1.0, "abaqus(30)", "abaqus takes 8, 16 or 20, not 30"),
        ([1], "nastran(8)", "is a list"),
    ],
)
def test_what_no_field_holds(value: object, form: str, message: str) -> None:
    """A value that would run into the next field, or end the line, is told with the template's line."""
    with pytest.raises(ConfigError, match=r"template, line 2: x \| ") as caught:
        render(f"\n@{{ x | {form} }}@", x=value)
    assert message in str(caught.value)
