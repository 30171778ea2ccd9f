"""[study] sampler: Optuna's samplers by name with their own options, or one of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import warnings
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from persistent_runner.spelling import did_you_mean, nearest
from persistent_runner.study.toml import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_CLASSES = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "nsga2": "NSGAIISampler",
    "nsga3": "NSGAIIISampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
}
_NEEDS = {
    "cmaes": ("'persistent_runner[cma]'", ("cmaes",)),
    "gp": ("'persistent_runner[gp]'", ("scipy", "torch")),
    "qmc": ("scipy", ("scipy",)),
}
"""What is installed for what a sampler imports."""
_ONE_OBJECTIVE = {"cmaes"}
KEEP_SEED = {"qmc", "grid"}
"""Samplers that go through one sequence of designs: another seed at each start would begin another sequence."""
_MOST_GRID = 100_000
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text in quotes"}
"""The annotations of what TOML can write, in words."""


def _sampler(value: object) -> object:
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise ValueError('must be a name such as "tpe", or a table such as { name = "tpe", n_startup_trials = 20 }')  # noqa: TRY004 - pydantic takes ValueError alone
    if name not in _CLASSES and ":" not in name:
        near = f'did you mean "{found}"? There' if (found := nearest(name, _CLASSES)) else "there"
        raise ValueError(f'"{name}" is no sampler; {near} are {", ".join(_CLASSES)}, and "module:callable" of your own')
    options = {key: given for key, given in value.items() if key != "name"} if isinstance(value, dict) else {}
    if "seed" in options:
        raise ValueError("seed is a key of [study]; write it there")
    for key, given in options.items():
        if not isinstance(given, bool | int | float | str):
            raise ValueError(f"{key} takes a number, text, true or false")  # noqa: TRY004 - the same
    return {"name": name, **options}


_NAMES = {"anyOf": [{"enum": list(_CLASSES)}, {"type": "string", "pattern": ":"}]}
SamplerChoice = Annotated[
    dict[str, Any],
    BeforeValidator(_sampler),
    # the options are left to Optuna, whose versions differ in them
    WithJsonSchema(
        {
            "title": ", ".join(f'"{name}"' for name in _CLASSES) + ', "module:callable" or a table with such a name',
            "anyOf": [
                _NAMES,
                {
                    "type": "object",
                    "properties": {"name": _NAMES, "seed": False},
                    "required": ["name"],
                    "additionalProperties": {"type": ["boolean", "number", "string"]},
                },
            ],
        }
    ),
]
"""{"name": ..., and the sampler's own options}."""


def make_sampler(
    choice: Mapping[str, Any], seed: int | None, folder: Path, distributions: Mapping[str, BaseDistribution]
) -> BaseSampler:
    """Return a new sampler with this seed; ValueError, in words, where that cannot be."""
    options = dict(choice)
    name = options.pop("name")
    if name not in _CLASSES:
        return _own(name, options, seed, folder)
    import optuna  # 0.3 s that --help need not pay

    make = getattr(optuna.samplers, _CLASSES[name])
    known = {key: parameter for key, parameter in inspect.signature(make).parameters.items() if _is_plain(parameter)}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{name} has no option {key}; {did_you_mean(key, known)}")
        if not _is_a(value, kind := _kind(known[key])):
            raise ValueError(f"{name}'s {key} must be {_WORDS[kind]}, not {shown(value)}")
    package, modules = _NEEDS.get(name, ("", ()))
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(missing)}; install it with: pip install {package}")
    try:
        if name == "grid":
            return _make_grid(distributions, seed)
        quiet = {"warn_asynchronous_seeding": False} if name == "qmc" and seed is not None else {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # an option that Optuna is about to drop
            sampler: BaseSampler = make(seed=seed, **options, **quiet)
    except (TypeError, ValueError, FutureWarning) as error:
        raise ValueError(f"{name} does not take {written(options)}: {error}") from None
    return sampler


def refusal(choice: Mapping[str, Any], objectives: int, *, conditional: bool, constraints: bool) -> str:
    """Return why a sampler cannot serve such a study; empty where it can."""
    name = choice["name"]
    if objectives > 1 and name in _ONE_OBJECTIVE:
        return f"{name} takes one objective, and there are {objectives}; write tpe, nsga2, nsga3 or gp"
    if constraints and name == "cmaes":
        return "cmaes does not see [constraints]; write tpe, gp or nsga2"
    if conditional and name == "grid":
        return "grid takes no parameters with when; write tpe or random"
    return ""


def grid(distributions: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """Return every value of each parameter; ValueError where one has no end of values, or all have too many designs."""
    import optuna

    values: dict[str, list[Any]] = {}
    endless = []
    for name, distribution in distributions.items():
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            values[name] = list(distribution.choices)
        elif isinstance(distribution, optuna.distributions.IntDistribution):
            values[name] = list(range(distribution.low, distribution.high + 1, distribution.step))
        elif isinstance(distribution, optuna.distributions.FloatDistribution) and distribution.step is not None:
            low, high, step = (Decimal(str(x)) for x in (distribution.low, distribution.high, distribution.step))
            values[name] = [float(low + n * step) for n in range(int((high - low) / step) + 1)]
        else:
            endless.append(name)
    if endless:
        raise ValueError(f"the grid sampler needs a step for {', '.join(endless)}; write one, such as step = 0.1")
    designs = math.prod(map(len, values.values()))
    if designs > _MOST_GRID:
        raise ValueError(f"the grid has {designs} designs, and {_MOST_GRID} is the most; write larger steps")
    return values


def _make_grid(distributions: Mapping[str, BaseDistribution], seed: int | None) -> BaseSampler:
    import optuna

    class WholeGrid(optuna.samplers.GridSampler):
        """Optuna's, which stops `optimize` after its last design and knows no other loop."""

        def after_trial(self, *_: object) -> None:
            pass

    return WholeGrid(grid(distributions), seed=seed)


def _is_plain(parameter: inspect.Parameter) -> bool:
    """Return whether an option can be written in study.toml; the others are objects, or ours to give."""
    return parameter.name != "seed" and _kind(parameter) in _WORDS


def _kind(parameter: inspect.Parameter) -> str:
    return str(parameter.annotation).removesuffix(" | None")


def _is_a(value: object, kind: str) -> bool:
    """Return whether a value of TOML is of an annotation's type: a whole number is a number, and true is none."""
    if isinstance(value, bool):
        return kind == "bool"
    return type(value).__name__ == kind or (kind == "float" and isinstance(value, int))


def _own(name: str, options: dict[str, Any], seed: int | None, folder: Path) -> BaseSampler:
    """Return the sampler that a user's own callable makes, with `seed` where it takes one."""
    make = _load(name, folder)
    try:
        if "seed" in inspect.signature(make).parameters:
            options = {"seed": seed, **options}
        sampler = make(**options)
    except Exception as error:
        raise ValueError(f"{name} failed: {type(error).__name__}: {error}") from error
    import optuna

    if not isinstance(sampler, optuna.samplers.BaseSampler):
        raise ValueError(f"{name} gave a {type(sampler).__name__}, and not a sampler of Optuna's")  # noqa: TRY004 - one family of errors
    return sampler


def _load(name: str, folder: Path) -> Callable[..., Any]:
    """Return what "module:callable" names, a module of the study's folder or an installed one."""
    module_name, _, function = name.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that a stranger's json.py does not stand in for ours
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{module_name} has no {function}; {did_you_mean(function, names)}")  # noqa: TRY004 - one family
    made: Callable[..., Any] = found
    return made


def written(options: Mapping[str, object]) -> str:
    """Return the options of a sampler as study.toml has them."""
    return ", ".join(f"{key} = {shown(value)}" for key, value in options.items())
