"""study.toml as frozen models. `StudySpec.load` names every mistake before money is spent."""

from __future__ import annotations

import functools
import glob
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.lease.platform import Software
from persistent_runner.render import check_templates
from persistent_runner.scripts import script_mistakes
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.extract import Extract, formula_mistakes
from persistent_runner.study.failures import FailureRule, FailuresTable
from persistent_runner.study.fields import Direction
from persistent_runner.study.formula import Formula
from persistent_runner.study.functions import Function, load_functions
from persistent_runner.study.samplers import KEEP_SEED, grid, make_sampler, refusal
from persistent_runner.study.space import KINDS, DerivedParameter, Identifier, Parameter, Varied
from persistent_runner.study.tables import (
    Bounds,
    ClusterTable,
    Design,
    SetupTable,
    StudyTable,
    Table,
    TemplateTable,
    TrialTable,
)
from persistent_runner.study.toml import Document, explain, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from optuna.samplers import BaseSampler

# spec.md 1 names them, and later issues build them
_TO_COME = {
    "study": {"reuse"},
    "trial": {"keep_outputs", "stage_ahead"},
}
_NEVER = {"profile", "api_key", "apikey", "api_token", "token", "base_url", "password", "ssh_key"}


class StudySpec(BaseModel):
    """A whole study.toml. `file` is the file, `folder` the study's folder that inputs are relative to."""

    model_config = Table.model_config
    file: SkipJsonSchema[Path]
    study: StudyTable
    cluster: ClusterTable
    setup: SetupTable = SetupTable()
    space: dict[Identifier, Parameter] = {}
    """[space]: what the sampler varies, in Optuna's own words, the constants beside it, and what follows from both."""
    trial: TrialTable
    metrics: dict[Identifier, Extract] = {}
    """[metrics]: how each number is read from what a trial leaves, in a table of its own: `[metrics.NAME]`."""
    objectives: dict[Identifier, Direction] = Field(
        examples=[{"drag": "minimize", "lift": "maximize"}], json_schema_extra={"minProperties": 1}
    )
    """[objectives]: what is optimised, each metric with its direction; their order is the order of the values."""
    constraints: dict[Identifier, Bounds] = {}
    """[constraints]: what a design must keep to, each metric with its bounds."""
    failures: FailuresTable = FailuresTable()
    start: tuple[Design, ...] = Field(default=(), examples=[[{"thickness": 0.1}]])
    """[[start]]: designs that are tried first, each under a header of its own. What is left out is the sampler's."""
    baseline: Design = Field(default={}, examples=[{"thickness": 0.12}])
    """[baseline]: the design that runs before everything else. What is left out is the sampler's."""

    @classmethod
    def load(cls, path: Path, sets: Sequence[str] = ()) -> StudySpec:
        """Return the study of a folder or a file, `sets` being the command line's `table.key=value`.

        Raises one ConfigError that names every mistake, also those in templates and missing inputs.
        """
        document = read(path, sets)
        tables = {key: value for key, value in document.data.items() if key in _ADAPTERS}
        if isinstance(study := tables.get("study", {}), dict):
            tables["study"] = {"name": _default_name(document.file.parent), **study}
        mistakes = [document.mistake([key], _unknown([key])) for key in document.data if key not in tables]
        parts: dict[str, Any] = {}
        for key, adapter in _ADAPTERS.items():
            try:
                parts[key] = adapter.validate_python(tables.get(key, [] if key == "start" else {}))
            except ValidationError as error:
                mistakes += [_line(document, key, each) for each in error.errors(include_url=False)]
        mistakes += [document.mistake(keys, what) for keys, what in _across(document.file.parent, parts, tables)]
        if mistakes:
            raise ConfigError("\n".join(mistakes), remedy=f"Mend {document.file}; nothing was leased.")
        return cls(file=document.file, **parts)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.file.parent

    @functools.cached_property
    def designs(self) -> DesignSpace:
        """The designs that the sampler may choose."""
        return DesignSpace(self.space, self.study.require)

    @property
    def objective_names(self) -> list[str]:
        """The objectives, in the order of the values."""
        return list(self.objectives)

    @property
    def directions(self) -> list[Direction]:
        """The direction of each objective."""
        return list(self.objectives.values())

    @property
    def command_text(self) -> str:
        """The command of a trial as one script; empty for a Python objective."""
        return self.trial.command or ""

    @property
    def metric_files(self) -> list[str]:
        """The files that the metrics read, each once."""
        return list(dict.fromkeys(extract.file for extract in self.metrics.values() if extract.file is not None))

    @functools.cached_property
    def functions(self) -> dict[str, Function]:
        """The functions that metrics name, by these names, loaded once; ConfigError as `load_functions`."""
        wanted = {extract.function: f"[metrics.{name}] function" for name, extract in self.metrics.items()}
        return load_functions(self.folder, {name: place for name, place in wanted.items() if name}, ["path"])

    @property
    def output_patterns(self) -> list[str]:
        """The glob patterns of all files that come back: the outputs and what the metrics read."""
        return list(dict.fromkeys([*self.trial.outputs, *map(glob.escape, self.metric_files)]))

    def make_sampler(self, seed: int | None) -> BaseSampler:
        """Return Optuna's sampler, with this seed; ConfigError where it cannot be made."""
        try:
            return make_sampler(self.study.sampler, seed, self.folder, self.designs.distributions)
        except ValueError as error:
            raise ConfigError(f"{self.file.name}: [study] sampler: {error}") from None

    @property
    def keeps_seed(self) -> bool:
        """Whether the sampler has one seed over all starts."""
        return self.study.sampler["name"] in KEEP_SEED

    def fingerprint(self) -> dict[str, Any]:
        """Return what must not change when a study goes on, as plain JSON: the space and the objectives."""
        found = self.model_dump(mode="json", include={"space", "objectives", "constraints"})
        if not self.constraints:
            del found["constraints"]
        for entry in found["space"].values():
            if isinstance(entry, dict):
                for key in ("unit", "label"):  # for people alone
                    del entry[key]
                for key in ("when", "otherwise"):
                    if entry.get(key) is None:
                        entry.pop(key, None)
        return found


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "study": TypeAdapter(StudyTable),
    "cluster": TypeAdapter(ClusterTable),
    "setup": TypeAdapter(SetupTable),
    "space": TypeAdapter(dict[Identifier, Parameter]),
    "trial": TypeAdapter(TrialTable),
    "metrics": TypeAdapter(dict[Identifier, Extract]),
    "objectives": TypeAdapter(dict[Identifier, Direction]),
    "constraints": TypeAdapter(dict[Identifier, Bounds]),
    "failures": TypeAdapter(FailuresTable),
    "start": TypeAdapter(Annotated[tuple[Design, ...], Field(strict=False)]),
    "baseline": TypeAdapter(Design),
}


def _default_name(folder: Path) -> str:
    """Return the folder's name, without what a study's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip(".-_")[:80] or "study"


def _across(folder: Path, parts: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Yield (keys, what) for each mistake that lies between tables; those that are wrong by themselves are left out."""
    if "trial" in parts:
        yield from _numbers(parts["trial"], parts, tables)
        require = parts["study"].require if "study" in parts else ()
        metrics = [Formula(extract.expr) for extract in parts.get("metrics", {}).values() if extract.expr]
        formulas = {name for formula in metrics for name in formula.names}
        yield from _trial_files(folder, parts["trial"], parts.get("space"), require, formulas)
        cores, most = parts["trial"].cores, parts["cluster"].cores if "cluster" in parts else None
        if cores and most and cores > most:
            yield ["trial", "cores"], f"{cores} is more than the {most} of the whole cluster; lower it"
    if parts.get("objectives") == {}:
        yield ["objectives"], 'is empty; write what is to be optimised, such as drag = "minimize"'
    if "space" in parts and "study" in parts:
        yield from _designs(folder, parts)
    if "setup" in parts:
        try:
            files = walk_inputs(folder, parts["setup"].inputs)
            for file in files:
                if file.template:
                    yield (
                        ["setup", "inputs"],
                        f"{file.source.name} is a template; the setup has no parameters: drop .j2",
                    )
            for what in script_mistakes(files, parts["setup"].command):
                yield ["setup", "command"], what
        except ConfigError as error:
            yield ["setup", "inputs"], str(error)


def _numbers(trial: TrialTable, parts: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Yield what is wrong between what is varied, what is read and what is optimised."""
    metrics = tables.get("metrics", {})
    if trial.objective:
        if metrics:
            yield ["metrics"], f"the objective {trial.objective} returns its values itself; remove the table"
        return
    if not metrics:
        yield ["metrics"], "is missing; say how a number is read, in a table such as [metrics.drag]"
    elif isinstance(metrics, dict):
        for table in ("objectives", "constraints"):
            for name in parts.get(table, {}):
                if name not in metrics:
                    yield [table, name], f"there is no [metrics.{name}]; {did_you_mean(name, metrics)}"
        if isinstance(space := tables.get("space", {}), dict):
            yield from formula_mistakes(parts.get("metrics", {}), list(space))
    if "space" in parts and not any(isinstance(item, Varied) for item in parts["space"].values()):
        yield ["space"], 'there is nothing to vary; write x = { type = "float", low = 0.0, high = 1.0 }'


def _designs(folder: Path, parts: Mapping[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Yield what is wrong between what is varied, what is allowed, what is tried first, and the sampler."""
    study, designs = parts["study"], DesignSpace(parts["space"], parts["study"].require)
    mistakes = list(designs.mistakes())
    yield from mistakes
    first = [("baseline", parts.get("baseline", {})), *(("start", design) for design in parts.get("start", ()))]
    sound = True
    for table, design in first:
        for name, what in designs.check_design(design):
            sound = False
            yield [table, name] if name else [table], what
    if mistakes or not designs.varied or not sound:
        return
    if not any(design for _, design in first) and designs.is_impossible():
        yield (
            ["study", "require"],
            "none of 2000 designs drawn at random meets it; mend it, or write a design that does as [[start]]",
        )
    constraints, objectives = bool(parts.get("constraints")), len(parts.get("objectives", {}))
    if why := refusal(study.sampler, objectives, conditional=designs.is_conditional, constraints=constraints):
        yield ["study", "sampler"], why
        return
    if study.sampler in ({"name": "tpe"}, {"name": "random"}):
        return  # as they come; Optuna need not be loaded
    try:
        make_sampler(study.sampler, study.seed, folder, designs.distributions)
        count = math.prod(map(len, grid(designs.distributions).values())) if study.sampler["name"] == "grid" else None
    except ValueError as error:
        yield ["study", "sampler"], str(error)
        return
    if count is not None and study.n_trials > count:
        yield ["study", "n_trials"], f"is {study.n_trials}, and the grid has {count} designs; lower it"


def _trial_files(
    folder: Path, trial: TrialTable, space: Mapping[str, object] | None, require: Sequence[str], formulas: Iterable[str]
) -> Iterator[tuple[list[str], str]]:
    """Yield what is wrong with the inputs, and with their templates where the space is known."""
    try:
        files = walk_inputs(folder, trial.inputs)
        for what in script_mistakes(files, trial.command or ""):
            yield ["trial", "command"], what
        if space is not None:
            designs = DesignSpace(space, require)
            check_templates(
                files,
                designs.always,
                trial.template.delimiters,
                elsewhere={*designs.used, *formulas},
                sometimes=designs.sometimes,
            )
    except ConfigError as error:
        yield from ((["trial", "inputs"], line) for line in str(error).splitlines())


def _line(document: Document, table: str, error: Mapping[str, Any]) -> str:
    # pydantic names the branch of [space]'s union, and "[key]" where the name itself is wrong
    loc = [part for part in error["loc"] if part != "[key]"]
    tag = loc.pop(1) if table == "space" and len(loc) > 1 else None
    keys = [table, *loc]
    if error["type"] == "extra_forbidden":
        return document.mistake(keys, _unknown(keys, tag))
    if error["type"].startswith("union_tag"):
        given = error["input"]
        kind = given.get("type")
        what = f'"{kind}" is no type; {did_you_mean(str(kind), KINDS)}' if kind else f"write one of {', '.join(KINDS)}"
        return document.mistake([*keys, "type"], what)
    return document.mistake(keys, explain(error))


def _unknown(keys: Sequence[str | int], tag: object = None) -> str:
    """Return what is to be said of a key that no model has."""
    table, key = (str(keys[0]), str(keys[-1])) if len(keys) > 1 else ("", str(keys[0]))
    if key.casefold() in _NEVER:
        return (
            "study.toml cannot name an account, so that a stranger's folder spends no money; "
            "remove it and use --profile NAME"
        )
    if key in _TO_COME.get(table, ()):
        return f"{key} is not built yet; remove it"
    if not table:
        return f"there is no such table; {did_you_mean(key, _ADAPTERS)}"
    models: dict[str, type[BaseModel]] = {
        "study": StudyTable,
        "cluster": Software if "software" in keys else ClusterTable,
        "setup": SetupTable,
        "trial": TemplateTable if "template" in keys else TrialTable,
        "metrics": Extract,
        "space": DerivedParameter if tag == "expr" else KINDS.get(str(tag), BaseModel),
        "constraints": Bounds,
        "failures": FailureRule if len(keys) > 2 else FailuresTable,
    }
    valid = (field.alias or name for name, field in models[table].model_fields.items())
    return f"there is no such key; {did_you_mean(key, valid)}"
