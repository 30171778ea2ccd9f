"""study.toml as frozen models. `StudySpec.load` names every mistake before money is spent."""

from __future__ import annotations

import functools
import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, PrivateAttr, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema

from persistent_runner.lease.platform import Software
from persistent_runner.spelling import did_you_mean, nearest
from persistent_runner.study.across import mistakes_across, warnings_across
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.extract import Extract
from persistent_runner.study.failures import FailureRule, FailuresTable
from persistent_runner.study.fields import Direction
from persistent_runner.study.functions import Function, load_functions
from persistent_runner.study.samplers import KEEP_SEED, make_sampler
from persistent_runner.study.space import KINDS, DerivedParameter, Identifier, Parameter
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
from persistent_runner.study.toml import Document, Mistake, config_error, explain, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from optuna.samplers import BaseSampler

    from persistent_runner.errors import ConfigError

_NEVER = {"profile", "api_key", "apikey", "api_token", "token", "base_url", "password", "ssh_key"}


class StudySpec(BaseModel):
    """A whole study.toml. `file` is the file, `folder` the study's folder that inputs are relative to."""

    model_config = Table.model_config
    _document: Document = PrivateAttr()
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
    def load(cls, path: Path, sets: Sequence[str] = (), options: Mapping[str, str] | None = None) -> StudySpec:
        """Return the study of a folder or a file.

        `sets` are the command line's `table.key=value`, `options` the same by the name of another option that means it.
        Raises one ConfigError that names every mistake, also those in templates and missing inputs.
        """
        document = read(path, sets, options)
        tables = {key: value for key, value in document.data.items() if key in _ADAPTERS}
        if isinstance(study := tables.get("study", {}), dict):
            tables["study"] = {"name": _default_name(document.file.parent), **study}
        mistakes = [document.mistake([key], _unknown([key])) for key in document.data if key not in tables]
        parts: dict[str, Any] = {}
        for key, adapter in _ADAPTERS.items():
            try:
                parts[key] = adapter.validate_python(tables.get(key, [] if key == "start" else {}))
            except ValidationError as error:
                mistakes += _mistakes(document, key, error.errors(include_url=False))
        mistakes += [document.mistake(*flaw) for flaw in mistakes_across(document.file.parent, parts, tables)]
        if mistakes:
            raise config_error(mistakes)
        spec = cls(file=document.file, **parts)
        spec._document = document
        return spec

    def place(self, *keys: str | int) -> str:
        """Return where a key stands, for people: `study.toml: [cluster] cores (line 7)`."""
        return self._document.place(keys)

    def error(self, keys: Sequence[str | int], what: str, file: Path | None = None) -> ConfigError:
        """Return the error for a mistake that shows when the study is about to run; `file` where it is not its own."""
        return config_error([self._document.mistake(keys, what, file)])

    def warnings(self) -> Iterator[str]:
        """Yield what may be a mistake: parameters that are written where nothing fills them in."""
        return warnings_across(self.folder, self.trial, self.space)

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
    def ahead(self) -> int | Literal["auto"]:
        """How many trials are chosen before one ends; a design that runs cannot answer the same one yet."""
        ahead = self.trial.stage_ahead
        return 0 if ahead == "auto" and self.study.reuse else ahead

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
        wanted = {extract.function: self.place("metrics", name, "function") for name, extract in self.metrics.items()}
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
            raise self.error(["study", "sampler"], str(error)) from None

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


def _mistakes(document: Document, table: str, errors: Iterable[Mapping[str, Any]]) -> list[Mistake]:
    """Return what is wrong with a table by itself; a key is not missing where a misspelt one means it."""
    errors = list(errors)
    missing = [str(error["loc"][-1]) for error in errors if error["type"] == "missing"]
    meant = {nearest(str(error["loc"][-1]), missing) for error in errors if error["type"] == "extra_forbidden"}
    return [
        _mistake(document, table, error)
        for error in errors
        if error["type"] != "missing" or error["loc"][-1] not in meant
    ]


def _mistake(document: Document, table: str, error: Mapping[str, Any]) -> Mistake:
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
