"""study.toml as frozen models. `StudySpec.load` names every mistake before money is spent."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from persistent_runner.duration import Duration
from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.lease.platform import Software
from persistent_runner.render import DEFAULT_DELIMITERS, check_templates
from persistent_runner.scripts import script_mistakes
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.fields import (
    Command,
    DelimiterPair,
    Direction,
    Environment,
    Inputs,
    PythonObjective,
    SamplerName,
    Softwares,
    Storage,
    StudyName,
    Text,
)
from persistent_runner.study.results import Extract, relative_path
from persistent_runner.study.space import KINDS, Identifier, Parameter, Varied
from persistent_runner.study.toml import Document, explain, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

# spec.md 1 names them, and later issues build them
_TO_COME = {
    "": {"start", "baseline", "constraints", "failures"},
    "study": {"reuse", "require"},
    "space": {"expr", "when"},
    "trial": {"stall", "keep_outputs", "stage_ahead"},
    "metrics": {"function", "expr"},
}
_NEVER = {"profile", "api_key", "apikey", "api_token", "token", "base_url", "password", "ssh_key"}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class StudyTable(_Table):
    """[study]: what is asked of the sampler, and when to stop."""

    name: StudyName
    n_trials: Annotated[int, Field(ge=1)]
    sampler: SamplerName = "tpe"
    seed: Annotated[int, Field(ge=0)] | None = None
    storage: Storage = "sqlite"
    max_cost: Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)] | None = None
    max_time: Duration | None = None
    max_consecutive_failures: Annotated[int, Field(ge=1)] = 5


class ClusterTable(_Table):
    """[cluster]: what is leased, and what ends it. `cores` are of the whole cluster."""

    core_type: Text
    cores: Annotated[int, Field(ge=1)]
    walltime: Duration
    priority: Literal["on_demand", "economy"] = "on_demand"
    project: Text | None = None
    software: Softwares = (Software(analysis="user_included", version="0"),)
    env: Environment = {}
    max_queue: Duration | None = None
    orphan_idle: Duration | None = None
    orphan_busy: Duration | None = None
    host_key: Literal["proven", "accept-unverified"] = "proven"
    keeper: bool = True

    @model_validator(mode="after")
    def _proven(self) -> ClusterTable:
        if not self.keeper and self.host_key == "proven":
            raise ValueError(
                "with keeper = false the job is a bare `sleep inf`, and nothing proves its machines; "
                'write host_key = "accept-unverified" as well, or leave keeper out'
            )
        return self


class SetupTable(_Table):
    """[setup]: once on every new lease, before any trial; an empty command runs nothing."""

    inputs: Inputs = ()
    command: Command = ""


class TemplateTable(_Table):
    """[trial] template."""

    delimiters: DelimiterPair = DEFAULT_DELIMITERS


class TrialTable(_Table):
    """[trial]: what one trial does. Without `cores` it has all cores of the cluster."""

    inputs: Inputs = ()
    command: Command | None = None
    objective: PythonObjective | None = None
    cores: Annotated[int, Field(ge=1)] | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    timeout: Duration | None = None
    outputs: Annotated[tuple[Annotated[str, AfterValidator(relative_path)], ...], Field(strict=False)] = ()
    template: TemplateTable = TemplateTable()

    @model_validator(mode="after")
    def _one_of_two(self) -> TrialTable:
        if (self.command is None) == (self.objective is None):
            raise ValueError('needs either command or objective, such as command = "./solver case.inp"')
        for key in ("inputs", "outputs"):
            if self.objective and getattr(self, key):
                raise ValueError(f"{key} goes with a command; the objective {self.objective} pushes and pulls itself")
        return self


class StudySpec(_Table):
    """A whole study.toml. `file` is the file, `folder` the study's folder that inputs are relative to."""

    file: Path
    study: StudyTable
    cluster: ClusterTable
    setup: SetupTable = SetupTable()
    space: dict[Identifier, Parameter] = {}
    trial: TrialTable
    metrics: dict[Identifier, Extract] = {}
    objectives: dict[Identifier, Direction]

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
                parts[key] = adapter.validate_python(tables.get(key, {}))
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

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the sampler varies, as Optuna takes it."""
        return {name: item.distribution() for name, item in self.space.items() if isinstance(item, Varied)}

    @property
    def constants(self) -> dict[str, int | float | str]:
        """The parameters that stay the same."""
        return {name: item for name, item in self.space.items() if not isinstance(item, Varied)}

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
        return list(dict.fromkeys(extract.file for extract in self.metrics.values()))

    @property
    def output_patterns(self) -> list[str]:
        """The glob patterns of all files that come back: the outputs and what the metrics read."""
        return list(dict.fromkeys([*self.trial.outputs, *map(glob.escape, self.metric_files)]))

    def make_sampler(self, seed: int | None) -> BaseSampler:
        """Return Optuna's sampler, with this seed."""
        from optuna.samplers import RandomSampler, TPESampler  # 0.3 s that --help need not pay

        return RandomSampler(seed=seed) if self.study.sampler == "random" else TPESampler(seed=seed)

    def fingerprint(self) -> dict[str, Any]:
        """Return what must not change when a study goes on, as plain JSON: the space and the objectives."""
        return self.model_dump(mode="json", include={"space", "objectives"})


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "study": TypeAdapter(StudyTable),
    "cluster": TypeAdapter(ClusterTable),
    "setup": TypeAdapter(SetupTable),
    "space": TypeAdapter(dict[Identifier, Parameter]),
    "trial": TypeAdapter(TrialTable),
    "metrics": TypeAdapter(dict[Identifier, Extract]),
    "objectives": TypeAdapter(dict[Identifier, Direction]),
}


def _default_name(folder: Path) -> str:
    """Return the folder's name, without what a study's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip(".-_")[:80] or "study"


def _across(folder: Path, parts: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[tuple[list[str], str]]:
    """Yield (keys, what) for each mistake that lies between tables; those that are wrong by themselves are left out."""
    if "trial" in parts:
        yield from _numbers(parts["trial"], parts, tables)
        yield from _trial_files(folder, parts["trial"], parts.get("space"))
        cores, most = parts["trial"].cores, parts["cluster"].cores if "cluster" in parts else None
        if cores and most and cores > most:
            yield ["trial", "cores"], f"{cores} is more than the {most} of the whole cluster; lower it"
    if parts.get("objectives") == {}:
        yield ["objectives"], 'is empty; write what is to be optimised, such as drag = "minimize"'
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
        for name in parts.get("objectives", {}):
            if name not in metrics:
                yield ["objectives", name], f"there is no [metrics.{name}]; {did_you_mean(name, metrics)}"
    if "space" in parts and not any(isinstance(item, Varied) for item in parts["space"].values()):
        yield ["space"], 'there is nothing to vary; write x = { type = "float", low = 0.0, high = 1.0 }'


def _trial_files(
    folder: Path, trial: TrialTable, space: Mapping[str, object] | None
) -> Iterator[tuple[list[str], str]]:
    """Yield what is wrong with the inputs, and with their templates where the space is known."""
    try:
        files = walk_inputs(folder, trial.inputs)
        for what in script_mistakes(files, trial.command or ""):
            yield ["trial", "command"], what
        if space is not None:
            check_templates(files, space, trial.template.delimiters)
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
        if "expr" in given:
            return document.mistake([*keys, "expr"], _unknown([*keys, "expr"]))
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
        "space": KINDS.get(str(tag), BaseModel),
    }
    valid = (field.alias or name for name, field in models[table].model_fields.items())
    return f"there is no such key; {did_you_mean(key, valid)}"
