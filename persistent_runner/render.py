"""Parameters into input decks.

A deck is copied byte for byte except for `@{ expression }@`. Jinja2 parses and evaluates the expressions, in its
sandbox; the text around them never passes through it, so line ends, `{{`, `{%` and `{#` of real decks stay as they are.
"""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jinja2 import Environment
    from jinja2.runtime import Context

TEMPLATE_SUFFIX = ".j2"
RESERVED = (".attempt", "parameters.json")
"""Names in a working directory that the runner itself writes."""


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
class InputFile:
    """One file of a working directory.

    `path` is relative to that directory, with `/`; `mode` its permission bits; `source` the local file; `template`
    says that it is rendered.
    """

    path: str
    mode: int
    source: Path
    template: bool


@dataclass(frozen=True)
class _Expression:
    source: str
    line: int


def render(template: str | Path, parameters: Mapping[str, object] | None = None, /, **values: object) -> str:
    """Return the text of a template (a Path: of that file) with the parameters filled in.

    Raises ConfigError with file and line for an unknown name, wrong syntax, or a number that does not fit its field.
    """
    if isinstance(template, Path):
        text, _ = _decode(template)
        where = template.name
    else:
        text, where = template, "template"
    return _fill(text, {**(parameters or {}), **values}, DEFAULT_DELIMITERS, where)


def render_inputs(
    files: Iterable[InputFile], parameters: Mapping[str, object], delimiters: Delimiters = DEFAULT_DELIMITERS
) -> list[tuple[str, bytes, int]]:
    """Return (path, content, mode) of each input, the templates rendered; ConfigError as in `render`."""
    return [(file.path, _content(file, parameters, delimiters), file.mode) for file in files]


def check_templates(
    files: Iterable[InputFile], names: Iterable[str], delimiters: Delimiters = DEFAULT_DELIMITERS
) -> None:
    """Raise one ConfigError with everything that is wrong between the templates and the names of the parameters.

    That is wrong syntax, an unknown name, and a parameter that no template uses (where there are templates at all).
    """
    known = list(names)
    templates = [file for file in files if file.template]
    used: set[str] = set()
    problems: list[str] = []
    for file in templates:
        try:
            for piece in _split(_decode(file.source)[0], delimiters, file.source.name):
                if isinstance(piece, _Expression):
                    try:
                        used |= _names(piece, known, file.source.name)
                    except ConfigError as error:
                        problems.append(str(error))
        except ConfigError as error:
            problems.append(str(error))
    unused = [name for name in known if name not in used]
    if templates and unused and not problems:
        example = f"{delimiters.start} {unused[0]} {delimiters.end}"
        problems.append(
            f"no template uses the parameter {', '.join(unused)} (templates: "
            f"{', '.join(file.source.name for file in templates)}); write {example} where it belongs, or remove it"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def walk_inputs(folder: Path, inputs: Sequence[str]) -> list[InputFile]:
    """Return the files that the entries of `inputs` (relative to `folder`) put into a working directory.

    A file lands under its own name, the contents of a folder land recursively and sorted; `.j2` is dropped from the
    name of a template; `__pycache__` is left out; links are followed. Raises ConfigError for what is missing, two
    inputs with one name, and names that cannot be sent.
    """
    found: dict[str, InputFile] = {}
    for entry in inputs:
        start = folder / entry
        if not entry or not os.path.lexists(start):
            raise ConfigError(f'input "{entry}" is not there; {_nearest_entry(start)}')
        for path, source in _walk(start, "", ()):
            file = _input_file(path, source)
            other = found.get(file.path)
            if other:
                raise ConfigError(f'two inputs land on "{file.path}": {other.source} and {source}; rename one of them')
            found[file.path] = file
    for path, file in found.items():
        for parent in PurePosixPath(path).parents:
            if str(parent) in found:
                raise ConfigError(
                    f'"{parent}" is both a file ({found[str(parent)].source}) and a folder of inputs '
                    f"({file.source}); rename one of them"
                )
    return list(found.values())


def _walk(source: Path, path: str, above: tuple[Path, ...]) -> Iterable[tuple[str, Path]]:
    try:
        mode = source.stat().st_mode
        children = sorted(source.iterdir(), key=lambda child: child.name) if stat.S_ISDIR(mode) else []
    except OSError as error:
        target = f" (a link to {source.readlink()})" if source.is_symlink() else ""
        raise ConfigError(f"input {source}{target} cannot be read: {error.strerror}; mend or remove it") from None
    if stat.S_ISREG(mode):
        yield path or source.name, source
    elif stat.S_ISDIR(mode):
        real = source.resolve()
        if real in above:
            raise ConfigError(f"input {source} is a link to a folder that contains it; remove the link")
        for child in children:
            if child.name != "__pycache__":
                yield from _walk(child, f"{path}/{child.name}" if path else child.name, (*above, real))
    else:
        raise ConfigError(f"input {source} is neither a file nor a folder; remove it")


def _input_file(path: str, source: Path) -> InputFile:
    printable = path.encode("utf-8", "replace").decode()
    if any(ord(character) < 32 or character == "\x7f" for character in path) or printable != path:
        raise ConfigError(f"the name of input {path!r} holds a control character or is not UTF-8; rename it")
    template = path.endswith(TEMPLATE_SUFFIX) and not path.endswith("/" + TEMPLATE_SUFFIX) and path != TEMPLATE_SUFFIX
    target = path.removesuffix(TEMPLATE_SUFFIX) if template else path
    if target.split("/")[0] in RESERVED:
        raise ConfigError(f'input {source}: the name "{target}" is the runner\'s own in a working directory; rename it')
    return InputFile(path=target, mode=_mode(source), source=source, template=template)


def _mode(source: Path) -> int:
    if os.name == "nt":
        with source.open("rb") as file:
            return 0o755 if file.read(2) == b"#!" else 0o644
    return source.stat().st_mode & 0o777


def _nearest_entry(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    return f"in {parent}: {did_you_mean(path.name, sorted(child.name for child in parent.iterdir()))}"


def _content(file: InputFile, parameters: Mapping[str, object], delimiters: Delimiters) -> bytes:
    if not file.template:
        return _read(file.source)
    text, encoding = _decode(file.source)
    filled = _fill(text, parameters, delimiters, file.source.name)
    try:
        return filled.encode(encoding)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{file.source.name} is not UTF-8, and {filled[error.start]!r} of a parameter does not exist in latin-1; "
            "save the template as UTF-8"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"input {path} cannot be read: {error.strerror}") from None


def _decode(path: Path) -> tuple[str, str]:
    data = _read(path)
    if b"\0" in data:
        raise ConfigError(
            f"template {path.name} is not a text file (it holds NUL bytes); save it as UTF-8, or drop {TEMPLATE_SUFFIX}"
        )
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


def _split(text: str, delimiters: Delimiters, where: str) -> Iterable[str | _Expression]:
    at, line = 0, 1
    while (start := text.find(delimiters.start, at)) >= 0:
        yield text[at:start]
        line += text.count("\n", at, start)
        inside = start + len(delimiters.start)
        end = text.find(delimiters.end, inside)
        if end < 0 or "\n" in text[inside:end]:
            raise ConfigError(
                f"{where}, line {line}: {delimiters.start} is not closed by {delimiters.end} on the same line; close "
                f'it, write {delimiters.start} "{delimiters.start}" {delimiters.end} for the signs themselves, or '
                "choose other trial.template.delimiters"
            )
        yield _Expression(text[inside:end].strip(), line)
        at = end + len(delimiters.end)
    yield text[at:]


def _fill(text: str, parameters: Mapping[str, object], delimiters: Delimiters, where: str) -> str:
    done: list[str] = []
    for piece in _split(text, delimiters, where):
        if isinstance(piece, str):
            done.append(piece)
            continue
        _names(piece, parameters, where)
        try:
            done.append(_text(_compiled(piece.source)(dict(parameters))))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}, line {piece.line}: {piece.source}: {error}") from None
    return "".join(done)


def _names(expression: _Expression, known: Iterable[str], where: str) -> set[str]:
    """Return the parameters of an expression; ConfigError where one is unknown or it is more than an expression."""
    place = f"{where}, line {expression.line}: {expression.source}"
    try:
        names = _parsed(expression.source)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    known = list(known)
    for name in sorted(names):
        if name not in known:
            raise ConfigError(f'{place}: there is no parameter "{name}"; {did_you_mean(name, known)}')
    return set(names)


@functools.cache
def _environment() -> Environment:
    from jinja2 import StrictUndefined  # 40 ms that --help need not pay
    from jinja2.sandbox import SandboxedEnvironment

    class NumbersOnly(SandboxedEnvironment):
        intercepted_binops = frozenset("+-*/")

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            # "a" * 10**9 would fill the memory, and "1" + "2" is not 3
            return super().call_binop(context, operator, _number(left, operator), _number(right, operator))

    environment = NumbersOnly(undefined=StrictUndefined, autoescape=False)
    environment.globals.clear()
    environment.filters.clear()
    environment.tests.clear()
    environment.filters.update(_FILTERS)
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
        raise ValueError(f"wrong syntax: {error.message}") from None
    allowed = (
        nodes.Name, nodes.Const, nodes.Filter, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.Neg, nodes.Pos
    )  # fmt: skip
    every = [tree, *tree.find_all(nodes.Node)]
    for node in every:
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise ValueError(f'there is no filter "{node.name}"; {did_you_mean(node.name, _FILTERS)}')
    if not all(isinstance(node, allowed) for node in every):
        raise ValueError("a template takes names, numbers, + - * / and the filters fixed, sci and width only")
    return frozenset(node.name for node in every if isinstance(node, nodes.Name))


def _text(value: object) -> str:
    """Return a value as a deck takes it: numbers with all their digits and a decimal point, text as it is."""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise TypeError(f"is a {type(value).__name__}; a template takes numbers and text")


def _number(value: object, needed_by: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{needed_by} needs a number, not {value!r}")
    return value


def _count(value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"a filter takes a whole number from 0 to {most}, as in | fixed(4), not {value!r}")
    return value


def _fixed(value: object, digits: object = None) -> str:
    return f"{_number(value, 'fixed'):.{_count(digits, 60)}f}"


def _sci(value: object, digits: object = None) -> str:
    return f"{_number(value, 'sci'):.{_count(digits, 60)}e}"


def _width(value: object, columns: object = None) -> str:
    text = _text(value)
    size = _count(columns, 500)
    if len(text) > size:
        raise ValueError(
            f"{text!r} does not fit into {size} columns; shorten it first, for example with | sci(3) | width({size})"
        )
    return text.rjust(size)


_FILTERS: dict[str, Callable[..., str]] = {"fixed": _fixed, "sci": _sci, "width": _width}
