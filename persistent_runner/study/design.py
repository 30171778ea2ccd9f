"""Designs of a study: which parameters a trial varies, in which order, what follows from them, what is allowed."""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from persistent_runner.spelling import did_you_mean
from persistent_runner.study.formula import Circle, Formula, order
from persistent_runner.study.space import (
    CategoricalParameter,
    DerivedParameter,
    FloatParameter,
    IntParameter,
    Varied,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    import optuna
    from optuna.distributions import BaseDistribution

    from persistent_runner.study.formula import Value

_DRAWS = 2000  # at random, to see whether `require` can be met at all


class NoValue(ValueError):
    """A formula of [space] has no value for a design: `keys` are where it stands, of the parameter `name`."""

    def __init__(self, name: str, key: str, what: object) -> None:
        super().__init__(f"{name}: {what}")
        self.keys = ["space", name, key]
        self.what = str(what)


class DesignSpace:
    """[space] with `require`: suggests the parameters of a trial, completes them, and says which are not allowed.

    `constants` and `varied` are the entries of [space] by name. To be used where there are no `mistakes`.
    """

    def __init__(self, items: Mapping[str, Any], require: Sequence[str] = ()) -> None:
        self.varied = {name: item for name, item in items.items() if isinstance(item, Varied)}
        self._derived = {name: Formula(item.expr) for name, item in items.items() if isinstance(item, DerivedParameter)}
        self._when = {name: Formula(item.when) for name, item in self.varied.items() if item.when is not None}
        self.constants: dict[str, int | float | str] = {
            name: item for name, item in items.items() if name not in self.varied and name not in self._derived
        }
        self.require = [Formula(text) for text in require]
        self._order = [*self.varied, *self._derived]
        if not list(self.mistakes()):
            needs = order({**{name: Formula("0") for name in self.varied}, **self._derived, **self._when})
            self._order = needs if self._when else [*self.varied, *(name for name in needs if name in self._derived)]

    def mistakes(self, metrics: Container[str] = ()) -> Iterator[tuple[list[str], str]]:
        """Yield (keys, what) for each formula that cannot work; `metrics` are what [constraints] is for."""
        known = [*self.constants, *self.varied, *self._derived]
        for key, formulas in (("expr", self._derived), ("when", self._when)):
            for name, formula in formulas.items():
                for unknown in sorted(formula.names - set(known)):
                    what = f'{formula.text}: there is no parameter "{unknown}"; {did_you_mean(unknown, known)}'
                    yield ["space", name, key], what
        for formula in self.require:
            for unknown in sorted(formula.names - set(known)):
                what = f'there is no parameter "{unknown}"; {did_you_mean(unknown, known)}'
                if unknown in metrics:
                    what = f"{unknown} is a metric, which is known after the run only; use [constraints]"
                yield ["study", "require"], f"{formula.text}: {what}"
            if formula.names <= self.constants.keys():
                yield ["study", "require"], f"{formula.text}: nothing in it is varied; remove it"
        try:
            order({**self._derived, **self._when})
        except Circle as error:
            name = error.names[0]
            yield ["space", name, "expr" if name in self._derived else "when"], f"a formula {error}; break it"

    @property
    def is_conditional(self) -> bool:
        """Whether some parameters are varied in some designs only."""
        return bool(self._when)

    @property
    def headings(self) -> dict[str, str]:
        """What people call the parameters: the label or the name, and the unit."""
        return {
            name: f"{item.label or name}{f' [{item.unit}]' if item.unit else ''}" for name, item in self.varied.items()
        }

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the sampler varies, as Optuna takes it."""
        return {name: item.distribution() for name, item in self.varied.items()}

    @property
    def sometimes(self) -> dict[str, str]:
        """The parameters that some designs have no value of, and when they have one."""
        found: dict[str, str] = {}
        for name in self._order:
            formula = self._derived.get(name)
            if formula is not None:
                if needed := sorted(formula.names & found.keys()):
                    found[name] = found[needed[0]]
            elif name in self._when and self.varied[name].otherwise is None:
                found[name] = self._when[name].text
        return found

    @property
    def always(self) -> list[str]:
        """The parameters that every design has a value of, and a template may use."""
        sometimes = self.sometimes
        return [name for name in (*self.constants, *self.varied, *self._derived) if name not in sometimes]

    @property
    def used(self) -> frozenset[str]:
        """The parameters that a formula of the space needs."""
        formulas = (*self._derived.values(), *self._when.values(), *self.require)
        return frozenset(name for formula in formulas for name in formula.names)

    def suggest(self, trial: optuna.Trial) -> None:
        """Ask the sampler for each parameter that the design has; NoValue where a formula cannot tell which."""
        values: dict[str, Value] = dict(self.constants)
        for name in self._order:
            if name in self._derived:
                if self.is_conditional:
                    self._add_derived(values, name)
            elif self._holds(name, values):
                values[name] = _suggested(trial, name, self.varied[name])
            else:
                self._add_otherwise(values, name)

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters of a design: the constants, its own, and what follows; NoValue where that fails."""
        values: dict[str, Any] = {**self.constants, **params}
        for name in self._order:
            if name in self._derived:
                self._add_derived(values, name)
            elif name not in params:
                self._add_otherwise(values, name)
        return values

    def violation(self, params: Mapping[str, Any]) -> tuple[float, str]:
        """Return by how much a design misses `require` (0: it is met), and which of it, in words."""
        if not self.require:
            return 0.0, ""
        try:
            values = self.complete(params)
        except NoValue as error:
            return math.inf, str(error)
        return max((_missed(formula, values) for formula in self.require), key=lambda pair: pair[0])

    def check_design(self, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
        """Yield (parameter, what) for what is wrong with a design that is to be tried first."""
        for name, value in given.items():
            item = self.varied.get(name)
            if item is None:
                why = "is not varied" if name in self.constants or name in self._derived else "is no parameter"
                yield name, f"{why}; {did_you_mean(name, self.varied)}"
            elif problem := _outside(item, value):
                yield name, problem
        whole = not (self.varied.keys() - self._when.keys()) - given.keys()
        if whole and not any(name not in self.varied for name in given):
            missed, what = self.violation(given)
            if missed:
                yield "", f"is not allowed: {what}"

    def design(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a design with its values in the types of their parameters, as Optuna stores them."""
        real = {name for name, item in self.varied.items() if isinstance(item, FloatParameter)}
        return {name: float(value) if name in real else value for name, value in given.items()}

    def random(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield the parameters of random designs, the same ones each time; those without a value are left out."""
        import optuna  # 0.3 s that --help need not pay

        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        finally:
            optuna.logging.set_verbosity(before)
        for trial in (study.ask() for _ in range(count)):
            with contextlib.suppress(NoValue):
                self.suggest(trial)
                yield trial.params

    def why_impossible(self) -> str:
        """Return how many of many random designs meet each of `require`; empty where one of them meets all."""
        if not self.require:
            return ""
        met = [0] * len(self.require)
        for params in self.random(_DRAWS):
            if not self.violation(params)[0]:
                return ""
            with contextlib.suppress(NoValue):
                values = self.complete(params)
                met = [
                    count + (not _missed(formula, values)[0]) for formula, count in zip(self.require, met, strict=True)
                ]
        counts = ", ".join(f"{formula.text} by {count}" for formula, count in zip(self.require, met, strict=True))
        if len(met) > 1 and all(met):
            counts += "; each is met by some, never all at once"
        return f"none of {_DRAWS} designs drawn at random meets it: {counts}; mend it, or the ranges in [space]"

    def _holds(self, name: str, values: Mapping[str, Any]) -> bool:
        formula = self._when.get(name)
        try:
            return formula is None or (formula.names <= values.keys() and bool(formula(values)))
        except ValueError as error:
            raise NoValue(name, "when", error) from None

    def _add_otherwise(self, values: dict[str, Any], name: str) -> None:
        other = self.varied[name].otherwise
        if other is not None:
            values[name] = other

    def _add_derived(self, values: dict[str, Any], name: str) -> None:
        formula = self._derived[name]
        if formula.names <= values.keys():  # else it follows from a parameter that this design does not have
            try:
                values[name] = formula(values)
            except ValueError as error:
                raise NoValue(name, "expr", error) from None


def _missed(formula: Formula, values: Mapping[str, Any]) -> tuple[float, str]:
    """Return by how much a design misses a condition (0: it is met), and in words.

    Of what a design does not have, nothing is asked.
    """
    if not formula.names <= values.keys():
        return 0.0, ""
    try:
        missed = formula.missed(values)
    except ValueError as error:
        return math.inf, str(error)
    return missed, f"{formula.with_values(values)} does not hold" if missed else ""


def _suggested(trial: optuna.Trial, name: str, item: Varied) -> Any:
    if isinstance(item, FloatParameter):
        return trial.suggest_float(name, item.low, item.high, step=item.step, log=item.log)
    if isinstance(item, IntParameter):
        return trial.suggest_int(name, item.low, item.high, step=item.step, log=item.log)
    return trial.suggest_categorical(name, item.choices)


def _outside(item: Varied, value: object) -> str:
    """Return what is wrong with the value of a parameter; empty where the sampler could have chosen it."""
    if isinstance(item, CategoricalParameter):
        found = any(value == choice and isinstance(value, type(choice)) for choice in item.choices)
        return "" if found else f"{value!r} is none of the choices {', '.join(map(repr, item.choices))}"
    whole = isinstance(item, IntParameter)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{value!r} is no {'whole ' if whole else ''}number"
    if not item.low <= value <= item.high:
        return f"{value!r} is outside {item.low:g} to {item.high:g}"
    if item.step is not None and (Decimal(str(value)) - Decimal(str(item.low))) % Decimal(str(item.step)):
        return f"{value!r} is not a whole number of steps ({item.step:g}) above {item.low:g}"
    return ""
