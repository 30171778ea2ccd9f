"""The text of a study.toml with the command line's `--set` on top, and where in it each mistake lies."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FILE_NAME = "study.toml"
# an API key of the platform is 40 hexadecimal digits
_SECRET = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{40}(?![0-9A-Za-z])")
_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


@dataclass(frozen=True)
class Document:
    """A study.toml as plain data, with the line of each key and the keys that `--set` gave."""

    file: Path
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int]
    from_command_line: frozenset[tuple[str, ...]]

    def mistake(self, keys: Sequence[str | int], what: str) -> str:
        """Return one line for people: file, table, key, line number where it is known, what, what to do."""
        path = tuple(key for key in keys if isinstance(key, str))
        depth = 2 if path[0] in ("metrics", "constraints") else 1
        place = f"[{'.'.join(path[:depth])}]"
        for key in keys[depth:]:
            place += f"[{key}]" if isinstance(key, int) else (" " if place.endswith("]") else ".") + key
        if any(path[: len(given)] == given for given in self.from_command_line):
            return f"--set: {place}: {what}"
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        return f"{self.file.name}: {place}{f' (line {line})' if line else ''}: {what}"


def read(path: Path, sets: Sequence[str] = ()) -> Document:
    """Return the study of a folder or a file; ConfigError where there is none, or it is not TOML."""
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
        raise ConfigError(f"{file.name} is not TOML: {error}", remedy=f"Mend that line of {file}.") from None
    return Document(file, data, _lines(text), frozenset(_set(data, given) for given in sets))


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        file = path / FILE_NAME
        if not file.is_file():
            others = sorted(child.name for child in path.iterdir() if child.suffix == ".toml")
            raise ConfigError(f"there is no {FILE_NAME} in {path}; {did_you_mean(FILE_NAME, others)}")
        return file
    if path.parent.is_dir():
        names = sorted(child.name for child in path.parent.iterdir())
        raise ConfigError(f"there is no study {path}; in {path.parent}: {did_you_mean(path.name, names)}")
    raise ConfigError(f"there is no study {path}; there is no folder {path.parent} either")


def _set(data: dict[str, Any], given: str) -> tuple[str, ...]:
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


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the first line of each table and key. A key inside a text of several lines may be counted too."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


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
