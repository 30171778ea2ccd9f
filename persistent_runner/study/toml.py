"""The text of a study.toml with the command line's options on top, and where in it each mistake lies."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean, nearest
from persistent_runner.study.syntax import Keys, in_words, key_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

FILE_NAME = "study.toml"
# an API key of the platform is 40 hexadecimal digits
_SECRET = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{40}(?![0-9A-Za-z])")


@dataclass(frozen=True)
class Mistake:
    """A mistake in one line for people, and what is to be mended: a file, or an option of the command line."""

    text: str
    mend: str


def config_error(mistakes: Sequence[Mistake]) -> ConfigError:
    """Return one error that tells all mistakes, and what is to be mended."""
    places = " and ".join(dict.fromkeys(mistake.mend for mistake in mistakes))
    return ConfigError(
        "\n".join(dict.fromkeys(mistake.text for mistake in mistakes)), remedy=f"Mend {places}; nothing was leased."
    )


@dataclass(frozen=True)
class Document:
    """A study.toml as plain data, with the line of each key, and the option of the command line that gave a key."""

    file: Path
    data: dict[str, Any]
    lines: dict[Keys, int]
    options: dict[Keys, str]

    def place(self, keys: Sequence[str | int]) -> str:
        """Return where a key stands, for people: file, table, key, and line number where it is known."""
        name, path = _name_of(keys), tuple(keys)
        if option := self._option(path):
            return f"{option.partition(' ')[0]}: {name}"
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.file.name}: {name}{f' (line {line})' if line else ''}"

    def mistake(self, keys: Sequence[str | int], what: str, file: Path | None = None) -> Mistake:
        """Return what is wrong with a key; a mistake of another `file` is mended there, and may have no key."""
        text = f"{self.place(keys)}: {what}" if keys else what
        return Mistake(text, str(file or self._option(tuple(keys)) or self.file))

    def _option(self, path: Keys) -> str | None:
        return next((option for given, option in self.options.items() if path[: len(given)] == given), None)


def _name_of(keys: Sequence[str | int]) -> str:
    """Return the name of a table or a key as people write it: `[metrics.drag] column`, `[[start]] 2, height`."""
    table, *rest = keys
    if table == "start" and rest and isinstance(rest[0], int):
        return ", ".join([f"[[start]] {rest[0] + 1}", *map(str, rest[1:])])
    if table in ("metrics", "constraints") and rest:
        table = f"{table}.{rest.pop(0)}"
    place = f"[{table}]"
    for key in rest:
        place += f"[{key}]" if isinstance(key, int) else (" " if place.endswith("]") else ".") + key
    return place


def read(path: Path, sets: Iterable[str] = (), options: Mapping[str, str] | None = None) -> Document:
    """Return the study of a folder or a file; ConfigError where there is none, or it is not TOML.

    `sets` are the command line's `table.key=value`; `options` are the same by the names of other options.
    """
    file = _find(path).resolve()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if _SECRET.search(line):
            raise ConfigError(
                f"{file.name}: line {number} holds 40 hexadecimal digits, as an API key does",
                remedy="A study carries no secrets: remove it and renew that key; --profile NAME chooses an account.",
            )
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{file.name}, {in_words(text, str(error))}", remedy=f"Mend {file}; nothing was leased.", file=file
        ) from None
    given = {_set(data, each): f"--set {each.partition('=')[0].strip()}" for each in sets}
    given |= {_set(data, each): option for option, each in (options or {}).items()}
    return Document(file, data, key_lines(text), given)


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        file = path / FILE_NAME
        if not file.is_file():
            raise ConfigError(f"there is no {FILE_NAME} in {path}", remedy=_study_near(path))
        return file
    if path.parent.is_dir():
        children = sorted(path.parent.iterdir())
        if near := nearest(path.name, (child.name for child in children)):
            raise ConfigError(f'there is no study {path}; did you mean "{path.parent / near}"?')
        studies = [child.name for child in children if child.suffix == ".toml" or (child / FILE_NAME).is_file()]
        there = did_you_mean(path.name, studies, none="there is no other study either")
        raise ConfigError(f"there is no study {path}; in {path.parent} {there}")
    raise ConfigError(f"there is no study {path}; there is no folder {path.parent} either")


def _study_near(folder: Path) -> str:
    """Return what to do where a folder has no study.toml."""
    others = sorted(child for child in folder.iterdir() if child.suffix == ".toml")
    if others:
        return f"A study of another name is run by its file: run-study {others[0]}"
    above = folder.absolute().parent
    if (above / FILE_NAME).is_file():
        return f"The folder above has one: run-study {above}"
    return "Write one, or make it from a deck that runs already: persistent-runner init DECK"


def _set(data: dict[str, Any], given: str) -> Keys:
    key, equals, raw = given.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(
            f'--set "{key}": is not of the form table.key=value', remedy="Write it as --set cluster.cores=4."
        )
    if _SECRET.search(raw):
        raise ConfigError(f"--set {key}: holds 40 hexadecimal digits, as an API key does; a study carries no secrets")
    table = data
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f'--set {key}: "{part}" is a value, not a table; set {part} itself')
    table[keys[-1]] = _value(raw)
    return keys


def _value(raw: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    return parsed["value"] if len(parsed) == 1 else raw


def explain(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors means, and what to do, in plain words."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "tuple_type" and error["loc"] == ():
        return "must be tables, each with the header [[start]]"
    # A token may stand in `env`: it is not quoted.
    found = "" if "env" in error["loc"] else f", not {shown(error.get('input'))}"
    wanted = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text in quotes",
        "bool_type": "true or false",
        "tuple_type": 'a list, such as ["a", "b"]',
        "dict_type": "a table",
        "model_type": "a table",
        "model_attributes_type": "a table",
        "greater_than_equal": f"at least {limits.get('ge')}",
        "string_too_short": "something: it is empty",
    }
    if kind == "missing":
        return "is missing; write it"
    if kind == "value_error":
        return str(limits["error"])
    if kind == "literal_error":
        return f"must be {limits['expected']}{found}".replace("'", '"')
    return f"must be {wanted[kind]}{found}" if kind in wanted else f"{error['msg']}{found}"


def shown(value: object) -> str:
    """Return a value as it stands in TOML, cut to one short line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
