"""What is wrong between the templates of a study and its parameters, and where one is written that nothing fills in."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import TEMPLATE_SUFFIX, lexical, path_in, read_input
from persistent_runner.render import (
    BYTE_ORDER_MARKS,
    DEFAULT_DELIMITERS,
    Deck,
    Delimiters,
    Expression,
    names_in,
    pieces,
    read_deck,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from persistent_runner.inputs import InputFile

_OF_OTHERS = (DEFAULT_DELIMITERS, Delimiters("{{", "}}"))
"""Delimiters that people write where a study has its own: ours, and Jinja2's."""


def template_mistakes(
    files: Sequence[InputFile],
    names: Iterable[str],
    delimiters: Delimiters = DEFAULT_DELIMITERS,
    *,
    elsewhere: Iterable[str] = (),
    sometimes: Mapping[str, str] | None = None,
) -> list[ConfigError]:
    """Return everything that is wrong between the templates and the names of the parameters, each thing once.

    That is wrong syntax, an unknown name, an include that cannot be had, and a parameter that neither a template nor
    what it includes uses (where there are templates at all). What is used `elsewhere` counts as used; what only
    `sometimes` has a value (name: when) must not be used.
    """
    known, sometimes = list(names), dict(sometimes or {})
    templates = [file for file in files if file.template]
    used: set[str] = set()
    found: list[ConfigError] = []
    for file in templates:
        try:
            for piece in pieces(read_deck(file.source, file.root), delimiters, []):
                if isinstance(piece, Expression):
                    found += _look(piece, known, sometimes, used)
        except ConfigError as error:
            found.append(error)
    used |= set(elsewhere)
    unused = [name for name in known if name not in used]
    if templates and unused and not found:
        found.append(_unused(files, unused, delimiters))
    return list({error.message: error for error in found}.values())  # what several include is told once


def overlooked(
    files: Iterable[InputFile], names: Sequence[str], delimiters: Delimiters
) -> Iterator[tuple[str, Path | None]]:
    """Yield (what, file) for each file that holds a parameter of these names where nothing fills it in.

    That is a file, of the inputs or included, that holds one between the delimiters and is no template, and a template
    that holds one between the delimiters of others. The first place of each file is told.
    """
    if not names:
        return
    written = _between([delimiters], names)
    wrong = _between([other for other in _OF_OTHERS if other.start != delimiters.start], names)
    templates, others = _decks(files, delimiters)
    for deck in others:
        if found := written.search(deck.text):
            name = f"{deck.name.rpartition('/')[2]}{TEMPLATE_SUFFIX}"
            include = f', and write include("{name}")' if deck.above else ""
            yield f"{_place(deck, found)}, but is no template: rename it to {name}{include}", deck.path
    for deck in templates:
        if found := wrong.search(deck.text):
            example = f"{delimiters.start} {found['name']} {delimiters.end}"
            yield f"{_place(deck, found)}, which nothing fills in: write {example}", deck.path


def _look(expression: Expression, known: list[str], sometimes: Mapping[str, str], used: set[str]) -> list[ConfigError]:
    """Add the parameters of an expression to `used`; return what is wrong with it."""
    try:
        names = names_in(expression, [*known, *sometimes])
    except ConfigError as error:
        return [error]
    used |= names
    return [
        ConfigError(
            f"{expression.place}: {name} has a value only when {sometimes[name]}; write otherwise = ... in [space] as "
            "well",
            file=expression.file,
        )
        for name in sorted(names & sometimes.keys())
    ]


def _unused(files: Sequence[InputFile], unused: Sequence[str], delimiters: Delimiters) -> ConfigError:
    what = f"no template uses the parameter {', '.join(unused)}"
    if hints := list(overlooked(files, unused, delimiters)):
        return ConfigError(f"{what}; {'; '.join(hint for hint, _ in hints)}", file=hints[0][1])
    names = ", ".join(file.source.name for file in files if file.template)
    example = f"{delimiters.start} {unused[0]} {delimiters.end}"
    return ConfigError(f"{what} (templates: {names}); write {example} where it belongs, or remove it")


def _between(delimiters: Iterable[Delimiters], names: Iterable[str]) -> re.Pattern[str]:
    """Return what finds one of the names between such delimiters, on one line."""
    name = "|".join(map(re.escape, names))
    forms = "|".join(rf"{re.escape(each.start)}(?=.*?{re.escape(each.end)})" for each in delimiters)
    return re.compile(rf"(?P<written>(?:{forms})[^\S\n]*(?P<name>{name}))\b")


def _decks(files: Iterable[InputFile], delimiters: Delimiters) -> tuple[list[Deck], list[Deck]]:
    """Return the templates, and the other files, of the inputs and of what templates include, each once."""
    templates: dict[Path, Deck] = {}
    others: dict[Path, Deck] = {}
    for file in files:
        path = lexical(file.source)
        if file.template:
            included: list[Deck] = []
            templates[path] = deck = read_deck(path, file.root)
            deque(pieces(deck, delimiters, included), maxlen=0)
            for inner in included:
                kind = templates if inner.name.endswith(TEMPLATE_SUFFIX) else others
                kind[inner.path or path] = inner
        elif not (file.link or file.shared):
            others.setdefault(path, Deck(path_in(file.root, path), _text(path), path=path))
    return list(templates.values()), list(others.values())


def _place(deck: Deck, found: re.Match[str]) -> str:
    return f'{deck.name}, line {deck.text.count(chr(10), 0, found.start()) + 1} holds "{found["written"]}"'


def _text(path: Path) -> str:
    """Return a file as text, as far as it is one."""
    data = read_input(path)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding, "replace")
