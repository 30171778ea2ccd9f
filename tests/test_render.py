"""What a user relies on when parameters are written into decks."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.errors import ConfigError
from persistent_runner.render import Delimiters, InputFile, check_templates, render, render_inputs, walk_inputs

HOSTILE = "a b {c} $d é 'q'"


def template(tmp_path: Path, data: bytes, name: str = "deck.inp.j2") -> InputFile:
    (tmp_path / name).write_bytes(data)
    return walk_inputs(tmp_path, [name])[0]


def rendered(tmp_path: Path, data: bytes, **parameters: object) -> bytes:
    return render_inputs([template(tmp_path, data)], parameters)[0][1]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_comes_back_with_all_its_digits(value: float) -> None:
    """A solver reads exactly the number that the sampler proposed."""
    assert float(render("@{ x }@", x=value)) == value


@given(st.integers())
def test_an_integer_comes_back_whole(value: int) -> None:
    """A whole number is written as one, without a decimal point."""
    assert render("@{ x }@", x=value) == str(value)


@given(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(
        lambda name: (
            name
            not in {
                "self",
                "true",
                "True",
                "false",
                "False",
                "none",
                "None",
                "not",
                "and",
                "or",
                "in",
                "is",
                "if",
                "else",
            }
        )
    )
)
def test_any_name_of_a_parameter_reaches_its_value(name: str) -> None:
    """No name but a handful of keywords means something special in a template."""
    assert render(f"@{{ {name} }}@", {name: 5}) == "5"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(lambda text: "@{" not in text))
def test_text_without_delimiters_is_kept(text: str) -> None:
    """Whatever a deck holds besides expressions is copied: line ends, braces, percent signs, missing last newline."""
    assert render(text + "@{ x }@" + text, x=1) == text + "1" + text


@given(st.text(st.characters(codec="utf-8")))
def test_a_value_is_written_as_it_is(value: str) -> None:
    """A text parameter is not evaluated again, quoted or changed, whatever signs it holds."""
    assert render("<@{ x }@>", x=value) == f"<{value}>"


@pytest.mark.parametrize("value", ["'; rm -rf ~ #", "two\nlines", "$(id)", "@{ y }@", "{{ 7*7 }}"])
def test_hostile_values_stay_text(value: str) -> None:
    """A value that would break a shell or a template is only text in a deck."""
    assert render("name = @{ alloy }@;", alloy=value) == f"name = {value};"


def test_line_ends_and_encoding_of_the_deck_are_kept(tmp_path: Path) -> None:
    """A deck from Windows in latin-1 keeps its bytes; only the expression changes."""
    assert rendered(tmp_path, b"\xe9t\xe9 @{ x }@\r\nend", x=0.1) == b"\xe9t\xe9 0.1\r\nend"
    assert rendered(tmp_path, "\ufeffété @{ x }@\r\n".encode(), x=2) == "\ufeffété 2\r\n".encode()
    assert rendered(tmp_path, b"a\rb\n\r\n@{ x }@\n\n", x=2) == b"a\rb\n\r\n2\n\n"


def test_a_sign_that_latin_1_lacks_is_named(tmp_path: Path) -> None:
    """A value that the deck's encoding cannot hold is a clear error, not a broken deck."""
    with pytest.raises(ConfigError, match=r"deck\.inp\.j2 is not UTF-8, and 'Ω' .* save the template as UTF-8"):
        rendered(tmp_path, b"\xe9 @{ x }@", x="Ω")


def test_braces_of_real_decks_are_text() -> None:
    """OpenFOAM's and LaTeX's signs are not taken for template code."""
    deck = "{#calc 1#} {{type patch;}} {% x %} ${x} #{ y } \\{@{ x }@}"
    assert render(deck, x=3) == deck.replace("@{ x }@", "3")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x", "0.1"),
        ("x|fixed(4)", "0.1000"),
        ("x | sci(6)", "1.000000e-01"),
        ("x | width(8)", "     0.1"),
        ("x | fixed(2) | width(6)", "  0.10"),
        ("2 * x - n / 4", "-0.55"),
        ("-(x + 1)", "-1.1"),
        ('"@{"', "@{"),
        ("n", "3"),
        ("n | fixed(1)", "3.0"),
    ],
)
def test_expressions_and_filters(expression: str, expected: str) -> None:
    """Names, arithmetic and the three number formats do what the documentation says."""
    assert render(f"@{{ {expression} }}@", x=0.1, n=3) == expected


def test_numbers_of_numpy_are_plain_numbers() -> None:
    """A value that came from numpy is written like Python's own."""
    np = pytest.importorskip("numpy")
    assert render("@{ x }@ @{ n }@", x=np.float64(0.1), n=np.int64(3)) == "0.1 3"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("hieght", 'there is no parameter "hieght"; did you mean "height"?'),
        ("height | fix(2)", 'there is no filter "fix"; did you mean "fixed"?'),
        ("height.__class__", "names, numbers, + - * / and the filters fixed, sci and width only"),
        ("height.real", "names, numbers"),
        ("height()", "names, numbers"),
        ("height['a']", "names, numbers"),
        ("[height]", "names, numbers"),
        ("9 ** 9 ** 9", "names, numbers"),
        ("range(3)", "names, numbers"),
        ("range", 'there is no parameter "range"'),
        ("self", 'there is no parameter "self"'),
        ("alloy * 1000000000", "* needs a number, not 'steel'"),
        ("alloy | fixed(2)", "fixed needs a number, not 'steel'"),
        ("height | fixed", "takes a whole number"),
        ("height | width(1000000000)", "takes a whole number"),
        ("height | width(2)", "'0.05' does not fit into 2 columns; shorten it first"),
        ("height +", "wrong syntax"),
        ("height height", "what does 'height' mean here"),
        ("height / 0", "zero"),
        ("", "no name between"),
    ],
)
def test_a_wrong_expression_names_its_line(expression: str, message: str) -> None:
    """A mistake in a template is told with its line, and nothing of Python is reachable."""
    with pytest.raises(ConfigError) as caught:
        render(f"first\n\n@{{ {expression} }}@", height=0.05, alloy="steel")
    assert str(caught.value).startswith("template, line 3: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_expression_that_is_not_closed() -> None:
    """A forgotten closing sign is found in its own line, not at the end of the file."""
    with pytest.raises(ConfigError, match=r"line 2: @\{ is not closed by }@ on the same line"):
        render("a\n@{ x \n }@", x=1)


def test_a_file_is_rendered_by_its_path(tmp_path: Path) -> None:
    """`render(Path)` reads the template, and its errors name the file."""
    path = tmp_path / "beam.inp.j2"
    path.write_text("h = @{ height }@")
    assert render(path, {"height": 1}) == "h = 1"
    with pytest.raises(ConfigError, match=r"beam\.inp\.j2, line 1"):
        render(path)


def test_other_delimiters(tmp_path: Path) -> None:
    """A deck in which `@{` means something else takes delimiters of the user's choice."""
    file = template(tmp_path, b"@{ x }@ <<x>>")
    assert render_inputs([file], {"x": 1}, Delimiters("<<", ">>"))[0][1] == b"@{ x }@ 1"
    for start in ("", "a", " "):
        with pytest.raises(ConfigError, match="cannot be used"):
            Delimiters(start, "}@")


def test_binary_templates_are_refused(tmp_path: Path) -> None:
    """A UTF-16 deck is told as such instead of being sent with its expressions unfilled."""
    with pytest.raises(ConfigError, match=r"deck\.inp\.j2 is not a text file"):
        rendered(tmp_path, "@{ x }@".encode("utf-16"), x=1)


def test_a_folders_contents_land_in_the_working_directory(tmp_path: Path) -> None:
    """Folders are walked sorted at any depth, `.j2` is dropped, modes are kept, bytes are not touched."""
    case = tmp_path / HOSTILE / "case"
    (case / "system" / "__pycache__").mkdir(parents=True)
    (case / "system" / "__pycache__" / "x.pyc").write_bytes(b"")
    (case / "system" / "dict.j2").write_text("@{ x }@")
    (case / "run sh").write_bytes(b"#!/bin/sh\r\n\0\xff")
    (case / "run sh").chmod(0o755)
    (case / ".hidden").write_text("")
    (tmp_path / "mesh.msh").write_text("m")
    files = walk_inputs(tmp_path / HOSTILE, ["case/", "../mesh.msh"])
    assert [file.path for file in files] == [".hidden", "run sh", "system/dict", "mesh.msh"]
    assert render_inputs(files, {"x": 1})[1] == ("run sh", b"#!/bin/sh\r\n\0\xff", 0o755)
    assert render_inputs(files, {"x": 1})[2][:2] == ("system/dict", b"1")


def test_a_missing_input_names_the_nearest(tmp_path: Path) -> None:
    """A typo in `inputs` is answered with the name that was meant."""
    (tmp_path / "case").mkdir()
    with pytest.raises(ConfigError, match=r'input "cse/" is not there; in .*: did you mean "case"\?') as caught:
        walk_inputs(tmp_path, ["cse/"])
    assert caught.value.exit_code == 2


def test_two_inputs_with_one_name(tmp_path: Path) -> None:
    """Neither of two files silently wins over the other; a file is no folder either."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "deck.inp").write_text(name)
    with pytest.raises(ConfigError, match=r'land on "deck\.inp": .*a.deck\.inp and .*b.deck\.inp'):
        walk_inputs(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deck.inp.j2").write_text("")
    with pytest.raises(ConfigError, match=r'two inputs land on "deck\.inp"'):
        walk_inputs(tmp_path, ["a"])
    (tmp_path / "c" / "deck.inp").mkdir(parents=True)
    (tmp_path / "c" / "deck.inp" / "x").write_text("")
    with pytest.raises(ConfigError, match=r'"deck\.inp" is both a file .* and a folder'):
        walk_inputs(tmp_path, ["b", "c"])


@pytest.mark.parametrize("name", [".attempt", "parameters.json", "parameters.json.j2"])
def test_the_runners_own_names_are_refused(tmp_path: Path, name: str) -> None:
    """An input cannot stand in for what the runner writes itself."""
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match="is the runner's own"):
        walk_inputs(tmp_path, [name])


@pytest.mark.skipif(os.name == "nt", reason="links and such names need POSIX")
def test_links_and_odd_files(tmp_path: Path) -> None:
    """Links are followed; one that leads nowhere, loops, a pipe, and a name with a newline are told at once."""
    case = tmp_path / "case"
    case.mkdir()
    (tmp_path / "real.txt").write_text("real")
    (case / "link").symlink_to(tmp_path / "real.txt")
    assert render_inputs(walk_inputs(tmp_path, ["case"]), {})[0][:2] == ("link", b"real")
    odd = case / "odd"
    odd.symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"odd \(a link to nowhere\) cannot be read"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    odd.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="a link to a folder that contains it"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        walk_inputs(tmp_path, ["case"])
    odd.unlink()
    (case / "a\nb").write_text("")
    with pytest.raises(ConfigError, match=re.escape("'a\\nb' holds a control character")):
        walk_inputs(tmp_path, ["case"])
    (case / "a\nb").unlink()
    if sys.platform == "linux":
        Path(os.fsdecode(os.fsencode(case) + b"/\xff")).write_text("")
        with pytest.raises(ConfigError, match="not UTF-8"):
            walk_inputs(tmp_path, ["case"])


def test_all_mistakes_in_templates_are_told_together(tmp_path: Path) -> None:
    """Every unknown name and every wrong line of every template stands in one message."""
    first = template(tmp_path, b"@{ heigth }@\n@{ x. }@", "a.j2")
    second = template(tmp_path, b"@{ x", "b.j2")
    with pytest.raises(ConfigError) as caught:
        check_templates([first, second], ["height", "x"])
    lines = str(caught.value).splitlines()
    assert lines[0] == 'a.j2, line 1: heigth: there is no parameter "heigth"; did you mean "height"?'
    assert lines[1].startswith("a.j2, line 2: x.: ")
    assert lines[2].startswith("b.j2, line 1: @{ is not closed")


def test_an_unused_parameter_is_an_error_where_there_are_templates(tmp_path: Path) -> None:
    """A parameter that reaches no deck is told, unless the study has no templates and reads parameters.json."""
    file = template(tmp_path, b"@{ x }@")
    check_templates([file], ["x"])
    with pytest.raises(
        ConfigError, match=r"no template uses the parameter y \(templates: deck\.inp\.j2\); write @{ y }@"
    ):
        check_templates([file], ["x", "y"])
    (tmp_path / "solver.py").write_text("")
    check_templates(walk_inputs(tmp_path, ["solver.py"]), ["x", "y"])
