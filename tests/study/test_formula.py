"""Arithmetic of study.toml: what it gives, what it refuses, and what it says."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.study.formula import Formula, order


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * ribs", 8),
        ("chord * thickness", 0.5),
        ("max(ribs, 3) - min(1, 2)", 3),
        ("2 ** 10", 1024),
        ("-2 ** 2", -4),
        ("sqrt(16) + pi - pi", 4.0),
        ("7 // 2 + 7 % 2", 4),
        ("ribs > 3 and not ribs > 5", True),
        ("1 < ribs <= 4 <= 4", True),
        ("alloy == '6061-T6'", True),
        ("alloy != '6061-T6' or ribs == 4", True),
        ("1.5 if ribs > 10 else ribs", 4),
    ],
)
def test_arithmetic(text: str, value: object) -> None:
    """Whole numbers stay whole; comparisons chain as in mathematics; text is compared alone."""
    values = {"ribs": 4, "chord": 2.0, "thickness": 0.25, "alloy": "6061-T6"}
    found = Formula(text)(values)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a +", "is no formula"),
        ("a ^ 2", "written **"),
        ("open('/etc/passwd')", "no function open"),
        ("sqr(2)", 'did you mean "sqrt"'),
        ("a.real", "is made of names"),
        ("a[0]", "is made of names"),
        ("[x for x in a]", "is made of names"),
        ("lambda: 1", "is made of names"),
        ("(lambda: 1)()", "calls functions"),
        ("max(*a)", "is made of names"),
        ("round(a, ndigits=2)", "calls functions"),
        ("True", "neither a number nor text"),
        ("f'{a}'", "is made of names"),
        ("1" * 1001, "more than 1000 characters"),
        ("(" * 900 + ")" * 90, "is no formula"),
    ],
)
def test_what_is_no_arithmetic_is_refused(text: str, said: str) -> None:
    """Nothing that could reach into the machine is taken, and the message says what is."""
    with pytest.raises(ValueError, match=re.escape(said)):
        Formula(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / (a - a)", "divides by zero"),
        ("(0 - a) ** 0.5", "math domain error"),
        ("10 ** a ** 9", "more than 300 digits"),
        ("exp(1000 * a)", "math range error"),
        ("a * b", "b has no value"),
        ("a + 'x'", "only == and != take text"),
        ("1e308 * 10 * a", "not finite"),
        ("-" * 990 + "a", "too deeply|recursion"),
    ],
)
def test_a_value_that_is_none_says_with_what(text: str, said: str) -> None:
    """The formula stands in the message with the values that it was given."""
    with pytest.raises(ValueError, match=said):
        Formula(text)({"a": 3})


def test_the_values_stand_in_the_message() -> None:
    """A stranger sees which value it was."""
    with pytest.raises(ValueError, match=r"1 / width \(width = 0\) divides by zero"):
        Formula("1 / width")({"width": 0})


def test_names_are_what_has_to_be_given() -> None:
    """Functions and pi are none; a parameter may have the name of a function."""
    assert Formula("max(a, 2) * pi + e").names == {"a", "e"}
    assert Formula("2 * max")({"max": 4}) == 8


def test_formulas_come_in_an_order_that_works_and_a_circle_is_named() -> None:
    """What another one needs comes first."""
    assert order({"c": Formula("b + 1"), "b": Formula("a"), "a": Formula("x")}) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="b -> c -> b"):
        order({"a": Formula("b"), "b": Formula("c"), "c": Formula("b")})


@given(st.text(max_size=60))
def test_no_text_does_anything_but_calculate(text: str) -> None:
    """Whatever is written, it gives a value or a ValueError."""
    with contextlib.suppress(ValueError):
        Formula(text)({"a": 1, "b": 2.5, "c": "x"})
