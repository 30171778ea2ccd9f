"""What is told of templates and parameters that do not go together, before anything is leased."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from persistent_runner.inputs import walk_inputs
from persistent_runner.render import DEFAULT_DELIMITERS, Delimiters
from persistent_runner.templates import overlooked, template_mistakes

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.inputs import InputFile


def case(tmp_path: Path, **files: bytes | str) -> list[InputFile]:
    """Write the files of a case, with `__` for the point in their names, and walk them."""
    (tmp_path / "case").mkdir()
    for name, content in files.items():
        path = tmp_path / "case" / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return walk_inputs(tmp_path, ["case/"])


def where(files: list[InputFile], *names: str, delimiters: Delimiters = DEFAULT_DELIMITERS) -> list[str]:
    found = list(overlooked(files, names, delimiters))
    assert [path and path.name for _, path in found] == [what.partition(",")[0][len("case/") :] for what, _ in found]
    return [what for what, _ in found]


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    """Every unknown name and every wrong line of every template, each with the file that is to be mended."""
    files = case(tmp_path, a__j2="@{ heigth }@\n@{ x. }@", b__j2="@{ x", c__j2="@{ x | fixed")
    first, second, third, fourth = errors = template_mistakes(files, ["height", "x"])
    assert first.message == 'case/a.j2, line 1: heigth: there is no parameter "heigth"; did you mean "height"?'
    assert second.message == "case/a.j2, line 2: x.: wrong syntax: expected name or number"
    assert third.message.startswith("case/b.j2, line 1: @{ is not closed")
    assert fourth.message.startswith("case/c.j2, line 1: @{ is not closed")
    assert [error.file and error.file.name for error in errors] == ["a.j2", "a.j2", "b.j2", "c.j2"]


def test_an_unused_parameter_is_a_mistake_where_there_are_templates(tmp_path: Path) -> None:
    """A parameter that reaches no deck is told, unless the study has no templates and reads parameters.json."""
    files = case(tmp_path, deck__inp__j2="@{ x }@", solver__py="")
    assert template_mistakes(files, ["x"]) == []
    (error,) = template_mistakes(files, ["x", "y"])
    assert error.message == (
        "no template uses the parameter y (templates: deck.inp.j2); write @{ y }@ where it belongs, or remove it"
    )
    assert template_mistakes(files[1:], ["x", "y"]) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("beam__inp", "a\nh @{ height }@", 'case/beam.inp, line 2 holds "@{ height", but is no template: rename it to beam.inp.j2'),
        ("beam__inp", "@{height|fixed(3)}@", 'case/beam.inp, line 1 holds "@{height", but is no template'),
        ("beam__inp", "h @{ height }@".encode("utf-16"), 'line 1 holds "@{ height", but is no template'),
        ("beam__inp", "@{ heights }@ @{ other }@ @{ height", None),
        ("beam__inp", "{{ height }} ${height}", None),
        ("beam__inp__j2", "@{ height }@ {{ height }}", 'case/beam.inp.j2, line 1 holds "{{ height", which nothing fills in: write @{ height }@'),
        ("beam__inp__j2", "@{ height }@ {{type patch;}}", None),
    ],
)  # fmt: skip
def test_a_parameter_that_nothing_fills_in(tmp_path: Path, name: str, text: str | bytes, said: str | None) -> None:
    """A deck that was not renamed, or is written as for another tool, would be sent as it stands, silently."""
    told = where(case(tmp_path, **{name: text}), "height", "type_")
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


def test_an_include_that_is_no_template(tmp_path: Path) -> None:
    """It is inserted as it is, so a parameter in it is told, and once; the include is to be changed as well."""
    files = case(tmp_path, a__sub="x @{ h }@", b__j2='@{ h }@ @{ include("a.sub") }@', c__j2='@{ include("a.sub") }@')
    assert where(files, "h") == [
        'case/a.sub, line 1 holds "@{ h", but is no template: rename it to a.sub.j2, and write include("a.sub.j2")'
    ]


def test_other_delimiters(tmp_path: Path) -> None:
    """A study's own delimiters are looked for in decks, and the usual ones in templates."""
    files = case(tmp_path, a__inp="<< h >> @{ h }@", b__inp__j2="<< h >>\n@{ h }@", c__cpp="cout << h << k;")
    assert where(files, "h", delimiters=Delimiters("<<", ">>")) == [
        'case/a.inp, line 1 holds "<< h", but is no template: rename it to a.inp.j2',
        'case/b.inp.j2, line 2 holds "@{ h", which nothing fills in: write << h >>',
    ]


def test_the_place_of_an_unused_parameter_is_told_with_it(tmp_path: Path) -> None:
    """Who wrote the parameter with other delimiters hears that, and not to write it once more."""
    files = case(tmp_path, beam__inp__j2="{{ height }}\n")
    (error,) = template_mistakes(files, ["height"])
    assert error.file == files[0].source
    assert error.message == (
        'no template uses the parameter height; case/beam.inp.j2, line 1 holds "{{ height", which nothing fills in: '
        "write @{ height }@"
    )
