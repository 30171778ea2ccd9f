"""Parameters into input decks.

A deck is copied byte for byte except for `@{ expression }@`. Jinja2 parses and evaluates the expressions, in its
sandbox; the text around them never passes through it, so line ends, `{{`, `{%` and `{#` of real decks stay as they are.
`@{ include("material.inp") }@` inserts another file, without its last line end; one that ends in `.j2` is rendered too.
"""

from __future__ import annotations

import codecs
import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError, ValueMisfit
from persistent_runner.formats import FILTERS, number_of, text_of
from persistent_runner.inputs import TEMPLATE_SUFFIX, InputFile, lexical, path_in, read_input
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from jinja2 import Environment
    from jinja2.runtime import Context

_INCLUDE = re.compile(r"include\s*\(\s*(?:\"([^\"]*)\"|'([^']*)')\s*\)")
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""The encodings that the first bytes of a file name."""


@dataclass(frozen=True)
class Delimiters:
    """What stands before and after an expression in a deck; ConfigError where they cannot be told from text."""

    start: str = "@{"
    end: str = "}@"

    def __post_init__(self) -> None:
        for text in (self.start, self.end):
            if not text or any(character.isspace() or character.isalnum() for character in text):
                raise ConfigError(
                    f"template delimiter {text!r} cannot be used",
                    remedy='Choose two strings of signs, such as ["@{", "}@"] or ["<<", ">>"].',
                )


DEFAULT_DELIMITERS = Delimiters()


@dataclass(frozen=True)
class Deck:
    """A text with expressions: from a file (`path`; its includes lie in `root`) or from a caller (no `path`).

    `mark` is the byte order mark that stood before the text, `above` are the files that include it, outermost first.
    """

    name: str
    text: str
    encoding: str = "utf-8"
    mark: bytes = b""
    path: Path | None = None
    root: Path | None = None
    above: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Expression:
    """What stands between two delimiters, and where: `place` in words, of a `file` where it has one."""

    source: str
    place: str
    file: Path | None = None

    def wrong(self, what: object) -> ConfigError:
        """Return the error that says what is wrong with it."""
        return ConfigError(": ".join(filter(None, (self.place, self.source, str(what)))), file=self.file)


def render(template: str | Path, parameters: Mapping[str, object] | None = None, /, **values: object) -> str:
    """Return the text of a template (a Path: of that file) with the parameters filled in.

    Raises ConfigError with file and line for an unknown name, wrong syntax, a number that does not fit its field, or an
    include that is not there.
    """
    deck = read_deck(template, template.parent) if isinstance(template, Path) else Deck("template", template)
    return _fill(deck, {**(parameters or {}), **values}, DEFAULT_DELIMITERS, [])


def render_inputs(
    files: Iterable[InputFile], parameters: Mapping[str, object], delimiters: Delimiters = DEFAULT_DELIMITERS
) -> list[tuple[str, bytes, int]]:
    """Return (path, content, mode) of each input, the templates rendered; ConfigError as in `render`.

    The content of a link is where it leads.
    """
    return [(file.path, _content(file, parameters, delimiters), file.mode) for file in files]


def _content(file: InputFile, parameters: Mapping[str, object], delimiters: Delimiters) -> bytes:
    if file.link:
        return file.link.encode()
    if not file.template:
        return read_input(file.source)
    deck = read_deck(file.source, file.root)
    included: list[Deck] = []
    filled = _fill(deck, parameters, delimiters, included)
    encoding = deck.encoding
    if encoding == "ascii":  # the deck itself does not say
        said = (other.encoding for other in included if other.encoding in ("utf-8", "latin-1"))
        encoding = next(said, "utf-8")
    try:
        return deck.mark + filled.encode(encoding)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{deck.name} is not UTF-8, and {filled[error.start]!r} of a parameter or an include does not exist in "
            f"{encoding}; save the template as UTF-8",
            file=deck.path,
        ) from None


def read_deck(path: Path, root: Path, above: tuple[Path, ...] = ()) -> Deck:
    """Read a text in the encoding that its mark names, else in UTF-8, else byte for byte in latin-1.

    It is called by its path below `root`, the folder of a study; its includes must lie there.
    """
    data = read_input(path)
    name = path_in(root, path)
    mark = next((mark for mark in BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    deck = Deck(name, "", BYTE_ORDER_MARKS.get(mark, "ascii" if data.isascii() else "utf-8"), mark, path, root, above)
    try:
        deck = replace(deck, text=data[len(mark) :].decode(deck.encoding))
    except UnicodeDecodeError:
        if mark:
            raise ConfigError(
                f"{name} begins as {deck.encoding} text and is none; save it as UTF-8", file=path
            ) from None
        deck = replace(deck, text=data.decode("latin-1"), encoding="latin-1")
    if "\0" in deck.text:
        raise ConfigError(
            f"template {name} is not a text file (it holds NUL bytes); save it as UTF-8, or drop {TEMPLATE_SUFFIX}",
            file=path,
        )
    return deck


def pieces(deck: Deck, delimiters: Delimiters, included: list[Deck]) -> Iterator[str | Expression]:
    """Yield the texts and expressions of a deck and all that it includes, in order; what it included is noted."""
    for piece in _split(deck, delimiters):
        if not isinstance(piece, Expression) or not re.match(r"include\s*\(", piece.source):
            yield piece
            continue
        inner = _included(deck, piece)
        included.append(inner)
        if inner.name.endswith(TEMPLATE_SUFFIX):
            yield from pieces(inner, delimiters, included)
        else:
            yield inner.text


def _included(deck: Deck, expression: Expression) -> Deck:
    """Read what an expression includes, relative to the deck's own folder."""
    found = _INCLUDE.fullmatch(expression.source)
    if not found:
        raise expression.wrong('an include takes the name of one file, as in include("material.inp")')
    if deck.path is None or deck.root is None:
        raise expression.wrong("a text lies in no folder to include from; render the Path of a file")
    name = found[1] or found[2] or ""
    path = lexical(deck.path.parent / name)
    if not path.is_relative_to(lexical(deck.root)):
        raise expression.wrong(f"{path} is not in {deck.root}; copy the file there, and include that")
    if not path.is_file():
        if not path.parent.is_dir():
            raise expression.wrong(f"there is no folder {path.parent}")
        names = sorted(child.name for child in path.parent.iterdir())
        raise expression.wrong(f"there is no file {path}; {did_you_mean(path.name, names, none='its folder is empty')}")
    chain = (*deck.above, deck.path)
    if any(path.samefile(other) for other in chain):
        names = [other.name for other in (*chain, path)]
        raise expression.wrong(f"a file cannot include itself: {' -> '.join(names)}; take one of them out")
    inner = read_deck(path, deck.root, chain)
    return replace(inner, text=re.sub(r"\r?\n\Z", "", inner.text))  # the line of the include has one of its own


def _split(deck: Deck, delimiters: Delimiters) -> Iterator[str | Expression]:
    text, at, line = deck.text, 0, 1
    while (start := text.find(delimiters.start, at)) >= 0:
        yield text[at:start]
        line += text.count("\n", at, start)
        inside = start + len(delimiters.start)
        end = text.find(delimiters.end, inside)
        if end < 0 or "\n" in text[inside:end]:
            raise ConfigError(
                f"{deck.name}, line {line}: {delimiters.start} is not closed by {delimiters.end} on the same line; "
                f'close it, write {delimiters.start} "{delimiters.start}" {delimiters.end} for the signs themselves, '
                "or choose other trial.template.delimiters",
                file=deck.path,
            )
        yield Expression(text[inside:end].strip(), f"{deck.name}, line {line}", deck.path)
        at = end + len(delimiters.end)
    yield text[at:]


def _fill(deck: Deck, parameters: Mapping[str, object], delimiters: Delimiters, included: list[Deck]) -> str:
    done: list[str] = []
    for piece in pieces(deck, delimiters, included):
        if isinstance(piece, str):
            done.append(piece)
            continue
        names_in(piece, parameters)
        try:
            done.append(text_of(_compiled(piece.source)(dict(parameters))))
        except (ArithmeticError, TypeError, ValueError) as error:
            wrong = piece.wrong(error)
            raise ValueMisfit(wrong.message, file=wrong.file) from None
    return "".join(done)


def names_in(expression: Expression, known: Iterable[str]) -> set[str]:
    """Return the parameters of an expression; ConfigError where one is unknown or it is more than an expression."""
    try:
        names = _parsed(expression.source)
    except ValueError as error:
        raise expression.wrong(error) from None
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise expression.wrong(f'there is no parameter "{name}"; {did_you_mean(name, known)}')
    return set(names)


@functools.cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined  # 40 ms that --help need not pay
    from jinja2.sandbox import SandboxedEnvironment

    class NumbersOnly(SandboxedEnvironment):
        intercepted_binops = frozenset("+-*/")

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            # "a" * 10**9 would fill the memory, and "1" + "2" is not 3
            return super().call_binop(context, operator, number_of(left, operator), number_of(right, operator))

    environment = NumbersOnly(undefined=StrictUndefined, autoescape=False)
    environment.globals.clear()
    environment.filters.clear()
    environment.tests.clear()
    environment.filters.update(FILTERS)
    return environment


@functools.lru_cache(maxsize=4096)
def _compiled(source: str) -> Callable[..., object]:
    return _environment().compile_expression(source, undefined_to_none=False)


@functools.lru_cache(maxsize=4096)
def _parsed(source: str) -> frozenset[str]:
    """Return the names in an expression; ValueError for anything but names, constants, + - * / and our filters."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.parser import Parser

    if not source:
        raise ValueError("there is no name between the delimiters")
    try:
        parser = Parser(_environment(), source, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise ValueError(f"what does {str(parser.stream.current)!r} mean here?")
    except TemplateSyntaxError as error:
        what = str(error.message)
        raise ValueError(f"wrong syntax: {'something is missing at its end' if 'end of' in what else what}") from None
    allowed = (
        nodes.Name, nodes.Const, nodes.Filter, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.Neg, nodes.Pos
    )  # fmt: skip
    every = [tree, *tree.find_all(nodes.Node)]
    for node in every:
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            raise ValueError(f'there is no filter "{node.name}"; {did_you_mean(node.name, FILTERS)}')
    if not all(isinstance(node, allowed) for node in every):
        *some, last = FILTERS
        raise ValueError(
            f"a template takes names, numbers, + - * /, include and the filters {', '.join(some)} and {last} only"
        )
    return frozenset(node.name for node in every if isinstance(node, nodes.Name))
