"""What is not TOML is told in plain words, with the line that is meant."""

from __future__ import annotations

import tomllib

import pytest

from persistent_runner.study.syntax import in_words, key_lines


def told(text: str) -> str:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    return in_words(text, str(caught.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('x = "abc\ny = 1', 'line 1: a quotation mark is not closed on this line\n    x = "abc'),
        ("[a]\nx = 'abc\ny = 1", "line 2: a quotation mark is not closed on this line\n    x = 'abc"),
        ("x = 'a' # it's\ny = 'b\nz = 'c'", "line 2: a quotation mark is not closed"),
        ('x = """\nabc', "line 1: a text of several lines is not closed"),
        ("[m.cost]\na = 1\n\n[m.cost]", "line 4: [m.cost] is there already, in line 1; remove one of them, or rename it\n    [m.cost]"),
        ("[a]\nx = { b = 1 }\n[a.x]", "line 3: [a.x] is there already, in line 2"),
        ("[a]\nx = 1\ny = 2\nx = 3", "line 4: x stands twice in [a], first in line 2; remove one of them\n    x = 3"),
        ("a = 1\n[a]", "line 2: a is a value already, in line 1, and cannot be a table as well"),
        ("x = { a = 1, a = 2 }", "line 1: a stands twice between the braces"),
        ("core_type = emerald", 'line 1: text stands in quotation marks: write "emerald"'),
        ("x = \u201cabc\u201d", 'line 1: text stands in straight quotation marks: write "abc"'),
        ("walltime = 8h", 'line 1: text stands in quotation marks: write "8h"\n    walltime = 8h'),
        ("x = True", "line 1: write true in small letters"),
        ("x = .5", "line 1: a number has a digit before its point: write 0.5"),
        ("x = { low = -.5, high = 1 }", "a number has a digit before its point: write -0.5"),
        ("x = 1,5", "line 1: a number has a decimal point: write 1.5"),
        ("x = 007", "line 1: a whole number has no zeros before it"),
        ("x = ", "line 1: a value is missing after x ="),
        ("x = None", "line 1: there is no such value; leave the key out"),
        ("x = 1 y = 2", "line 1: a line has one key and one value, and here follows `y = 2`"),
        ('regex = "a\\s"', """line 1: in "double quotes" a \\ is a special sign; write the text in 'single quotes'"""),
        ("n_trials 40", "line 1: a key and its value are written as in key = value"),
        ("[a\nx = 1", "line 1: the header of a table is not closed"),
        ("x = [1,\ny = 2", "line 2: a list above this line is not closed"),
        ("x = { a = 1,\n b = 2 }", "line 1: what stands between braces stands on one line"),
        ("= 1", "line 1: a line begins with the name of a key"),
        ("x = 1\r\ny = z", 'line 2: text stands in quotation marks: write "z"\n    y = z'),
    ],
)  # fmt: skip
def test_what_is_not_toml(text: str, said: str) -> None:
    """The line is shown, and what to write instead is said where that can be known."""
    assert said in told(text)


@pytest.mark.parametrize("text", ["[cluster]\nenv = { TOKEN = hunter2 }", "[cluster.env]\nTOKEN = hunter2"])
def test_a_token_is_not_quoted(text: str) -> None:
    """A line of the environment is told by its number alone."""
    assert told(text).startswith("line 2: text stands in quotation marks")
    assert "hunter2" not in told(text)


def test_the_lines_of_keys() -> None:
    """Each table among several has lines of its own."""
    lines = key_lines('[a]\n"b c".d = 1\n[[start]]\nx = 1\n[[start]]\n\nx = 2\n')
    assert lines[("a", "b c", "d")] == 2
    assert (lines[("start",)], lines[("start", 0)], lines[("start", 1)]) == (3, 3, 5)
    assert (lines[("start", 0, "x")], lines[("start", 1, "x")]) == (4, 7)
