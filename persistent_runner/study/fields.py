"""Values of study.toml that are more than a type: names, commands, inputs, and how a mistake in one is said."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from persistent_runner.errors import ConfigError
from persistent_runner.lease.platform import Software
from persistent_runner.render import Delimiters

_OWN_VARIABLES = {"TRIAL_NUMBER", "TRIAL_CORES", "TRIAL_HOSTS", "SETUP_DIR"}


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", value) or not re.search(r"[A-Za-z0-9]", value):
        raise ValueError(f'"{value}" is no name; use up to 80 letters, digits, . _ and -')
    return value


def _storage(value: str) -> str:
    if value != "sqlite" and "://" not in value:
        # not printed: it may hold a password
        raise ValueError('must be "sqlite" or an address of an Optuna storage, such as "sqlite:////data/wing.db"')
    return value


def _ahead(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError('must be a whole number from 0, or "auto"')
    return value


def _command(value: object) -> object:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError('must be text, or a list of texts, such as ["blockMesh", "simpleFoam"]')
    text = "\n".join(lines)
    if not text.strip() or "\0" in text:
        raise ValueError("is empty or holds a NUL; write the command that runs one trial")
    return text


def _env(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f'"{key}" is no name of a variable; use letters, digits and _')
        if key in _OWN_VARIABLES or key.startswith("PERSISTENT_RUNNER_"):
            raise ValueError(f"{key} is set by the runner itself; choose another name")
        if "\0" in text:
            raise ValueError(f"{key} holds a NUL")
    return value


def _software(value: tuple[Software, ...]) -> tuple[Software, ...]:
    if not value:
        raise ValueError("is empty; remove it, or name at least one software")
    return value


def _inputs(value: tuple[str, ...]) -> tuple[str, ...]:
    for entry in value:
        parts = PurePosixPath(posixpath.normpath(entry)).parts
        if not entry.strip() or entry.startswith("/") or parts[:2] == ("..", "..") or parts == ("..",):
            raise ValueError(
                f'"{entry}" is not below or beside the study\'s folder; write it as in "case/" or "../mesh/"'
            )
    return value


def _delimiters(value: object) -> object:
    texts = value if isinstance(value, list | tuple) else ()
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError('must be two texts, such as ["@{", "}@"]')
    try:
        return Delimiters(*texts)
    except ConfigError as error:
        raise ValueError(f"{error.message}; {error.remedy}") from None


def _function(value: str) -> str:
    file, _, function = value.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier() or ".." in Path(file).parts or Path(file).is_absolute():
        raise ValueError(
            f'"{value}" does not name a function of the study\'s folder; write it as in "beam.py:objective"'
        )
    return value


def _relative_path(value: str) -> str:
    path = PurePosixPath(value)
    if not value.strip() or not value.isprintable() or path.is_absolute() or ".." in path.parts:
        raise ValueError(f'"{value}" is not a file below the working directory; write it as in "results/drag.csv"')
    if str(path) != value:
        raise ValueError(f'"{value}" never matches; write it as in "{f"{path}/*" if value.endswith("/") else path}"')
    if path.parts[:1] == (".attempt",):
        raise ValueError(f'"{value}" lies in the runner\'s own folder .attempt; write your results elsewhere')
    return value


# What JSON Schema can say of each stands beside it, a title being the type's name in the reference page. It may let
# through what the validator refuses, and never the other way round.
_LINES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
StudyName = Annotated[
    str,
    AfterValidator(_name),
    WithJsonSchema({"type": "string", "maxLength": 80, "pattern": "^[._-]*[A-Za-z0-9][A-Za-z0-9._-]*$"}),
]
Storage = Annotated[str, AfterValidator(_storage), WithJsonSchema({"type": "string", "pattern": "^sqlite$|://"})]
Environment = Annotated[
    dict[str, str],
    AfterValidator(_env),
    WithJsonSchema(
        {
            "type": "object",
            "title": "table of texts",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        }
    ),
]
Softwares = Annotated[
    tuple[Software, ...], Field(strict=False, json_schema_extra={"minItems": 1}), AfterValidator(_software)
]
Command = Annotated[
    str,
    BeforeValidator(_command),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": "\\S"}, _LINES], "title": "text, or list of texts"}),
]


def _keep(value: object) -> object:
    if value not in ("all", "best", "failed") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError('must be "all", "best", "failed" or a whole number from 1')
    return value


Ahead = Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], BeforeValidator(_ahead)]
Keep = Annotated[Literal["all", "best", "failed"] | Annotated[int, Field(ge=1)], BeforeValidator(_keep)]
Inputs = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_inputs)]
FunctionName = Annotated[
    str,
    AfterValidator(_function),
    WithJsonSchema({"type": "string", "pattern": r"\.py:[^\s:]+$"}),
]
RelativePath = Annotated[
    str, AfterValidator(_relative_path), WithJsonSchema({"type": "string", "pattern": r"^[^/]", "title": "path"})
]
DelimiterPair = Annotated[
    Delimiters,
    BeforeValidator(_delimiters),
    WithJsonSchema(
        {
            "type": "array",
            "title": "list of two texts",
            "items": {"type": "string", "pattern": r"^[^\sA-Za-z0-9]+$"},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]
Direction = Literal["minimize", "maximize"]
Text = Annotated[str, Field(min_length=1)]
