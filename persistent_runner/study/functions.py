"""Functions out of Python files in a study's folder: the objective, and what reads a metric."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Function = Callable[..., Any]
_NOTHING = "Nothing was leased."


def load_functions(folder: Path, wanted: Mapping[str, str], arguments: Sequence[str]) -> dict[str, Function]:
    """Return the functions that a study.toml names as "file.py:function", by these names.

    `wanted` says for each name where it stands, for messages; `arguments` are the names of what the function will be
    called with. Each file is run once, from the study's folder, whose other modules it may import; no bytecode is left
    there. Raises ConfigError where a file or a function is missing, cannot be called so, or running the file fails
    (with its traceback).
    """
    modules: dict[str, ModuleType] = {}
    found = {}
    for name, place in wanted.items():
        file, _, function = name.rpartition(":")
        if file not in modules:
            modules[file] = _run(folder, file, place)
        found[name] = _function(modules[file], folder / file, function, place, arguments)
    return found


def last_line(error: BaseException) -> str:
    """Return an exception of a function that we called, and the last line of the user's own files that it came from.

    For example `KeyError: 'cd' (post.py, line 3, in drag: return table["cd"])`.
    """
    said = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without ours, which called it
    if not frames:
        return said
    folder = Path(frames[0].filename).parent
    line = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)][-1]
    return f"{said} ({Path(line.filename).relative_to(folder)}, line {line.lineno}, in {line.name}: {line.line})"


def _function(module: ModuleType, file: Path, name: str, place: str, arguments: Sequence[str]) -> Function:
    found: Function | None = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        near = did_you_mean(name, functions, none="it has no function at all")
        raise ConfigError(f'{place}: {file} has no function "{name}"; {near}', remedy=_NOTHING, file=file)
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError:
        call = f"{name}({', '.join(arguments)})"
        raise ConfigError(
            f"{place}: {name} in {file} cannot be called as {call}; write it as: def {call}:",
            remedy=_NOTHING,
            file=file,
        ) from None
    except ValueError:  # a function of C without a signature
        pass
    return found


def _run(folder: Path, file: str, place: str) -> ModuleType:
    path = folder / file
    if not path.is_file():
        names = sorted(child.name for child in folder.glob("*.py"))
        near = did_you_mean(file, names, none="the study's folder has no Python file")
        raise ConfigError(f"{place}: there is no file {path}; {near}", remedy=_NOTHING)
    module = ModuleType(f"study_{path.stem}")
    module.__file__ = str(path)
    # dataclasses and pickle look their module up by name
    sys.modules[module.__name__] = module
    if str(path.parent) not in sys.path:
        # last, so that a stranger's json.py does not stand in for ours
        sys.path.append(str(path.parent))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - the user's own function
    except (Exception, SystemExit) as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, own)).rstrip()
        remedy = f"Mend {path}; nothing was leased."
        if isinstance(error, ModuleNotFoundError) and error.name:
            remedy = (
                f"Install {error.name} beside persistent_runner: pip install {error.name.partition('.')[0]}. {_NOTHING}"
            )
        raise ConfigError(f"{place}: running {path} failed:\n{text}", remedy=remedy, file=path) from error
    finally:
        sys.dont_write_bytecode = before
    return module
