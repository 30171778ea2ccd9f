"""Values of study.toml that are more than a type: names, commands, inputs, and how a mistake in one is said."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

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
    if path.parts[:1] == (".attempt",):
        raise ValueError(f'"{value}" lies in the runner\'s own folder .attempt; write your results elsewhere')
    return value


StudyName = Annotated[str, AfterValidator(_name)]
Storage = Annotated[str, AfterValidator(_storage)]
Environment = Annotated[dict[str, str], AfterValidator(_env)]
Softwares = Annotated[tuple[Software, ...], Field(strict=False), AfterValidator(_software)]
Command = Annotated[str, BeforeValidator(_command)]
Inputs = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_inputs)]
FunctionName = Annotated[str, AfterValidator(_function)]
RelativePath = Annotated[str, AfterValidator(_relative_path)]
DelimiterPair = Annotated[Delimiters, BeforeValidator(_delimiters)]
Direction = Literal["minimize", "maximize"]
Text = Annotated[str, Field(min_length=1)]
