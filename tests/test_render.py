"""What a user relies on when parameters are written into decks."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import InputFile, walk_inputs
from persistent_runner.render import Delimiters, render, render_inputs
from persistent_runner.templates import template_mistakes

if TYPE_CHECKING:
    from pathlib import Path


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
        ("height.__class__", "+ - * /, include and the filters abaqus, fixed, nastran, sci and width only"),
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


@pytest.mark.parametrize("data", [b"@{ x }@\0", "@{ x }@\0".encode("utf-16"), "@{ x }@".encode("utf-32")])
def test_binary_templates_are_refused(tmp_path: Path, data: bytes) -> None:
    """What is no text is told as such instead of being sent with its expressions unfilled."""
    with pytest.raises(ConfigError, match=r"deck\.inp\.j2 is not a text file"):
        rendered(tmp_path, data, x=1)


HIGH = bytes(range(0x80, 0x100))


def test_every_byte_of_an_unknown_encoding_is_kept(tmp_path: Path) -> None:
    """A deck in whatever old code page keeps each of its bytes, beside expressions too."""
    for byte in HIGH:
        one = bytes([byte])
        assert rendered(tmp_path, one + b"@{ x }@" + one, x=1) == one + b"1" + one
    assert rendered(tmp_path, HIGH + b"@{ x }@" + HIGH + b"\r\n", x=1) == HIGH + b"1" + HIGH + b"\r\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_an_encoding_that_is_marked(tmp_path: Path, mark: bytes, encoding: str) -> None:
    """A deck goes out in the encoding that it came in, with its mark, and values of any script fit."""
    deck = mark + "ñ = @{ x }@\r\n漢 @{ name }@".encode(encoding)
    assert rendered(tmp_path, deck, x=1, name="Ωß") == mark + "ñ = 1\r\n漢 Ωß".encode(encoding)


def test_a_mark_that_lies(tmp_path: Path) -> None:
    """A file that begins as UTF-16 and is none is not filled by guess."""
    with pytest.raises(ConfigError, match=r"deck\.inp\.j2 begins as utf-16-le text and is none"):
        rendered(tmp_path, codecs.BOM_UTF16_LE + b"@{ x }@ \xd8\x00\xd8", x=1)


def case(tmp_path: Path, files: dict[str, str | bytes]) -> list[InputFile]:
    """Write a study's files and walk what lies in `case/`."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return walk_inputs(tmp_path, ["case/"])


def test_an_include(tmp_path: Path) -> None:
    """A shared fragment stands where it is named, rendered when it is a template, else as it is; it need be no input."""
    files = case(
        tmp_path,
        {
            "case/deep/deck.inp.j2": "*MATERIAL\r\n@{ include(\"../../parts/steel.inp\") }@\r\n@{include( 'm.j2' )}@!\n",
            "case/deep/m.j2": "E = @{ modulus }@\n@{ include('n.txt') }@\n",
            "case/deep/n.txt": "as @{ it }@ is\n\n",
            "parts/steel.inp": "*ELASTIC\r\n210e3, 0.3\r\n",
        },
    )
    assert [file.path for file in files] == ["deep/deck.inp", "deep/m", "deep/n.txt"]
    assert template_mistakes(files, ["modulus"]) == []
    expected = b"*MATERIAL\r\n*ELASTIC\r\n210e3, 0.3\r\nE = 2.5\nas @{ it }@ is\n!\n"
    assert render_inputs(files, {"modulus": 2.5})[0][1] == expected


def test_a_parameter_that_only_an_include_uses(tmp_path: Path) -> None:
    """It counts as used; without the include it does not."""
    files = case(tmp_path, {"case/a.j2": '@{ include("../m.j2") }@', "m.j2": "@{ modulus }@"})
    assert template_mistakes(files, ["modulus"]) == []
    (error,) = template_mistakes(files, ["modulus", "other"])
    assert "no template uses the parameter other" in error.message


def test_a_mistake_in_an_include_is_told_once_with_its_own_line(tmp_path: Path) -> None:
    """A fragment that two decks share names itself, not the decks."""
    include = '@{ include("../m.j2") }@'
    files = case(tmp_path, {"case/a.j2": include, "case/b.j2": include, "m.j2": "ok\n@{ modulus }@"})
    (error,) = template_mistakes(files, ["moduli"])
    assert error.file == tmp_path / "m.j2"
    assert error.message == 'm.j2, line 2: modulus: there is no parameter "modulus"; did you mean "moduli"?'
    with pytest.raises(ConfigError, match=r"m\.j2, line 2: modulus"):
        render_inputs(files, {})


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('include("b.j2")', "a file cannot include itself: a.j2 -> b.j2 -> a.j2"),
        ('include("./a.j2")', "a file cannot include itself: a.j2 -> a.j2"),
        ('include("stel.inp")', 'there is no file .*stel.inp; did you mean "steel.inp"?'),
        ('include("no/steel.inp")', "there is no folder .*no"),
        ('include("")', "there is no file"),
        ('include("../../secret")', "secret is not in .*study; copy the file there"),
        ('include("/etc/passwd")', "/etc/passwd is not in"),
        ("include(steel)", "takes the name of one file"),
        ('include("steel.inp") | width(8)', "takes the name of one file"),
    ],
)
def test_wrong_includes(tmp_path: Path, expression: str, message: str) -> None:
    """A fragment that cannot be had is told with the deck's line, and nothing outside of the study is read."""
    (tmp_path / "secret").write_text("s")
    files = case(
        tmp_path / "study",
        {"case/a.j2": f"\n@{{ {expression} }}@", "case/b.j2": '@{ include("a.j2") }@', "case/steel.inp": ""},
    )
    with pytest.raises(ConfigError) as caught:
        render_inputs(files[:1], {})
    for error in (caught.value, *template_mistakes(files[:1], [])):
        assert re.search(message.replace("?", r"\?"), error.message)
        assert error.message.startswith(("case/a.j2, line 2: include", "case/b.j2, line 1: include"))
        assert error.file in (files[0].source, files[1].source)


def test_an_include_of_another_encoding(tmp_path: Path) -> None:
    """The deck's encoding wins; a deck of ASCII alone takes that of what it includes, so that no byte of it changes."""
    include = '@{ include("m.inp") }@'
    files = {"case/a.j2": include, "case/b.j2": "ß" + include, "case/m.inp": b"caf\xe9"}
    assert [content for _, content, _ in render_inputs(case(tmp_path, files), {})] == [
        b"caf\xe9", "ßcafé".encode(), b"caf\xe9",
    ]  # fmt: skip
    files = {"case/a.j2": include, "case/b.j2": b"\xdf" + include.encode(), "case/m.inp": "\ufeffcafé"}
    contents = [content for _, content, _ in render_inputs(case(tmp_path, files), {})]
    assert contents[:2] == ["café".encode(), b"\xdfcaf\xe9"]


def test_includes_and_other_delimiters(tmp_path: Path) -> None:
    """A study's own delimiters hold in what its templates include as well."""
    files = case(tmp_path, {"case/a.j2": '<< include("../m.j2") >> @{ x }@', "m.j2": "@{ x }@ << x >>"})
    assert template_mistakes(files, ["x"], Delimiters("<<", ">>")) == []
    assert render_inputs(files, {"x": 1}, Delimiters("<<", ">>"))[0][1] == b"@{ x }@ 1 @{ x }@"


def test_a_parameter_may_be_named_include(tmp_path: Path) -> None:
    """Only a call includes; and a text that is no file has no folder to include from."""
    assert render("@{ include }@", include=3) == "3"
    with pytest.raises(ConfigError, match="lies in no folder to include from"):
        render('@{ include("x") }@')
    case(tmp_path, {"case/a.j2": '@{ include("m") }@', "case/m": "text\n"})
    assert render(tmp_path / "case" / "a.j2") == "text"
