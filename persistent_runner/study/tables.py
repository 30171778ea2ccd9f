"""The tables of a study.toml as frozen models, each by itself; `spec.py` puts them together."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from persistent_runner.duration import Duration
from persistent_runner.lease.platform import Software
from persistent_runner.render import DEFAULT_DELIMITERS
from persistent_runner.study.fields import (
    Command,
    DelimiterPair,
    Environment,
    FunctionName,
    Inputs,
    RelativePath,
    Softwares,
    Storage,
    StudyName,
    Text,
)
from persistent_runner.study.formula import FormulaText
from persistent_runner.study.samplers import SamplerChoice
from persistent_runner.study.space import Constant, Identifier


class Table(BaseModel):
    """What all tables have: no key that is not theirs, and no change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


Design = dict[Identifier, Constant]
"""The parameters of a design that is to be tried first; what is left out is the sampler's to choose."""


class StudyTable(Table):
    """[study]: what is asked of the sampler, and when to stop."""

    name: StudyName
    n_trials: Annotated[int, Field(ge=1)]
    sampler: SamplerChoice = {"name": "tpe"}
    seed: Annotated[int, Field(ge=0)] | None = None
    storage: Storage = "sqlite"
    max_cost: Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)] | None = None
    max_time: Duration | None = None
    require: Annotated[tuple[FormulaText, ...], Field(strict=False)] = ()
    max_consecutive_failures: Annotated[int, Field(ge=1)] = 5


class ClusterTable(Table):
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


class SetupTable(Table):
    """[setup]: once on every new lease, before any trial; an empty command runs nothing."""

    inputs: Inputs = ()
    command: Command = ""


class TemplateTable(Table):
    """[trial] template."""

    delimiters: DelimiterPair = DEFAULT_DELIMITERS


class TrialTable(Table):
    """[trial]: what one trial does. Without `cores` it has all cores of the cluster."""

    inputs: Inputs = ()
    command: Command | None = None
    objective: FunctionName | None = None
    cores: Annotated[int, Field(ge=1)] | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    timeout: Duration | None = None
    outputs: Annotated[tuple[RelativePath, ...], Field(strict=False)] = ()
    template: TemplateTable = TemplateTable()

    @model_validator(mode="after")
    def _one_of_two(self) -> TrialTable:
        if (self.command is None) == (self.objective is None):
            raise ValueError('needs either command or objective, such as command = "./solver case.inp"')
        for key in ("inputs", "outputs"):
            if self.objective and getattr(self, key):
                raise ValueError(f"{key} goes with a command; the objective {self.objective} pushes and pulls itself")
        return self


class Bounds(Table):
    """[constraints.METRIC]: the smallest and the largest value that a design may have."""

    min: Annotated[float, Field(strict=False, allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(strict=False, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("needs min, max or both, such as { max = 2.0 }")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g}); swap them")
        return self

    def violation(self, value: float) -> float:
        """Return by how much a value is outside; below or at 0 it is inside, as Optuna's constraints have it."""
        below = -math.inf if self.min is None else self.min - value
        above = -math.inf if self.max is None else value - self.max
        return max(below, above)
