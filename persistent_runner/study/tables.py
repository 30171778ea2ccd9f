"""The tables of a study.toml as frozen models, each by itself; `spec.py` puts them together."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from persistent_runner.duration import Duration
from persistent_runner.lease.platform import Software
from persistent_runner.render import DEFAULT_DELIMITERS
from persistent_runner.study.fields import (
    Ahead,
    Command,
    DelimiterPair,
    Environment,
    FunctionName,
    Inputs,
    Keep,
    RelativePath,
    Softwares,
    Storage,
    StudyName,
    Text,
)
from persistent_runner.study.formula import ConditionText
from persistent_runner.study.samplers import SamplerChoice
from persistent_runner.study.space import Identifier, Value


class Table(BaseModel):
    """What all tables have: no key that is not theirs, and no change.

    The text under each key is what people read of it, in an editor by the JSON Schema and in the reference page.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


Design = dict[Identifier, Value]
"""The parameters of a design that is to be tried first; what is left out is the sampler's to choose."""


class StudyTable(Table):
    """[study]: what is asked of the sampler, and when to stop."""

    name: StudyName = Field(examples=["wing"])
    """The name of the study and of its run folder: up to 80 letters, digits, `.`, `_` and `-`. Without it, the name of
    the folder that study.toml lies in."""
    n_trials: Annotated[int, Field(ge=1)] = Field(examples=[40])
    """Total of trials that have ended, over all starts, those that failed included."""
    sampler: SamplerChoice = Field(default={"name": "tpe"}, examples=[{"name": "nsga2", "population_size": 50}])
    """One of Optuna's samplers by its name, or a table with the name and the sampler's own options. A sampler of your
    own is `"module:callable"`: of a module of the study's folder, or of an installed one."""
    seed: Annotated[int, Field(ge=0)] | None = Field(default=None, examples=[7])
    """Makes the sampler's choices repeatable. Without it they differ from start to start."""
    reuse: bool = Field(default=False, examples=[True])
    """Whether a design that was run already is answered from its result: of this run folder, with the same deck, setup,
    command and readers. No command runs for it."""
    storage: Storage = Field(default="sqlite", examples=["sqlite:////data/wing.db"])
    """Where Optuna keeps the study: `"sqlite"` is a file in the run folder; else the address of any storage of
    Optuna's."""
    max_cost: Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)] | None = Field(
        default=None, examples=[400]
    )
    """The most that all leases of the run folder may cost, over all starts, in the platform's currency. Without it
    there is no cap."""
    max_time: Duration | None = Field(default=None, examples=["12h"])
    """The longest that one start may take. Without it there is no limit but the walltime of each lease."""
    require: Annotated[tuple[ConditionText, ...], Field(strict=False)] = Field(
        default=(), examples=[["thickness < chord / 4"]]
    )
    """Formulas over the parameters that a design must meet; one that does not is never run."""
    max_consecutive_failures: Annotated[int, Field(ge=1)] = Field(default=5, examples=[10])
    """After so many failed trials in a row the study ends. A trial that is complete or pruned starts the count anew."""


class ClusterTable(Table):
    """[cluster]: what is leased, and what ends it."""

    core_type: Text = Field(examples=["emerald"])
    """The platform's code of the machines."""
    cores: Annotated[int, Field(ge=1)] = Field(examples=[72])
    """Cores of the whole cluster, all its nodes together."""
    walltime: Duration = Field(examples=["8h"])
    """The cluster ends by then, and another one is leased if trials are left. Sent as whole hours, rounded up."""
    priority: Literal["on_demand", "economy"] = Field(default="on_demand", examples=["economy"])
    """`"economy"` is cheaper and may be preempted; a preempted cluster is replaced, and its trials run again."""
    project: Text | None = Field(default=None, examples=["wings-2026"])
    """Id or name of the platform's project that pays."""
    software: Softwares = Field(
        default=(Software(analysis="user_included", version="0"),),
        examples=[[{"analysis": "calculix", "version": "2.20"}]],
    )
    """The platform's software that the machines are to have; the job's command goes with the first one. As it comes,
    none: your own is brought along."""
    env: Environment = Field(default={}, examples=[{"ANSYSLMD_LICENSE_FILE": "1055@ansys.example.com"}])
    """Environment variables for the job and for every command of a trial."""
    max_queue: Duration | None = Field(default=None, examples=["4h"])
    """The longest wait in the platform's queue; then the cluster is released. Without it, 2 hours."""
    orphan_idle: Duration | None = Field(default=None, examples=["10m"])
    """A cluster without a sign of life from the driver ends after so long, while no trial runs. Without it, that of
    `PERSISTENT_RUNNER_ORPHAN_IDLE`: 10 minutes."""
    orphan_busy: Duration | None = Field(default=None, examples=["40m"])
    """The same while a trial runs. Without it, that of `PERSISTENT_RUNNER_ORPHAN_BUSY`; where that is not set, the
    trial's `timeout` and 5 minutes, or 40 minutes without a `timeout`, and never less than `orphan_idle`."""
    host_key: Literal["proven", "accept-unverified"] = Field(default="proven", examples=["accept-unverified"])
    """`"proven"` sends nothing to a machine that has not proved to be the leased one; `"accept-unverified"` does where
    no proof is to be had."""
    keeper: bool = Field(default=True, examples=[False])
    """Whether the job's `sleep inf` is under a dead-man's switch. With `false` nothing but the walltime ends a cluster
    that nobody drives; it needs `host_key = "accept-unverified"` as well."""

    @model_validator(mode="after")
    def _proven(self) -> ClusterTable:
        if not self.keeper and self.host_key == "proven":
            raise ValueError(
                "with keeper = false the job is a bare `sleep inf`, and nothing proves its machines; "
                'write host_key = "accept-unverified" as well, or leave keeper out'
            )
        return self


class SetupTable(Table):
    """[setup]: what is put there and run once on every new lease, before any trial."""

    inputs: Inputs = Field(default=(), examples=[["solver/"]])
    """Files and folders that are sent, relative to the study's folder. The commands of trials find them in
    `$SETUP_DIR`. There are no parameters yet, so none may be a template."""
    command: Command = Field(default="", examples=["make -C solver"])
    """What is run there: text, or a list of lines that run in one shell. Without it, nothing is run."""


class TemplateTable(Table):
    """[trial.template]: how the templates among the inputs are written."""

    delimiters: DelimiterPair = Field(default=DEFAULT_DELIMITERS, examples=[["<<", ">>"]])
    """What stands before and after a parameter's name in a template: two strings of signs."""


class TrialTable(Table):
    """[trial]: what one trial does. It needs either `command` or `objective`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["command"]}, {"required": ["objective"]}]})
    inputs: Inputs = Field(default=(), examples=[["case/"]])
    """Files and folders that are sent to the trial's working directory, relative to the study's folder: of a folder its
    contents. Files that end in `.j2` are templates: they are rendered, and the suffix is dropped. All else is sent byte
    for byte."""
    command: Command | None = Field(default=None, examples=[["blockMesh", "simpleFoam"]])
    """What is run in the working directory, by `bash` with `set -eo pipefail`: text, or a list of lines that run in one
    shell. It finds `TRIAL_NUMBER`, `TRIAL_CORES`, `TRIAL_HOSTS` (a machine file with a line for each core) and
    `SETUP_DIR`."""
    objective: FunctionName | None = Field(default=None, examples=["beam.py:objective"])
    """Instead of a command: a Python function `objective(trial, work)` of the study's folder, run on the driver. It
    pushes, runs and pulls itself, so `inputs`, `outputs` and `[metrics]` do not go with it."""
    cores: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[36])
    """Cores of one trial, which say how many run at a time. Without it, all cores of the cluster. More than a node has
    are whole nodes."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[2])
    """The most trials at a time, such as for licences or memory. Without it, as many as there are cores for."""
    stage_ahead: Ahead = Field(default="auto", examples=[1])
    """How many trials are chosen and sent to the cluster before one ends, so that the next one starts there at once.
    Each is chosen without the results of those that still run. `"auto"` does so where a core would idle for more than
    1 % of a trial's time, and not with `reuse`, which answers from what has ended; with 0 each is chosen when one has
    ended."""
    timeout: Duration | None = Field(default=None, examples=["2h"])
    """The longest that the command may take; then it is killed, and the trial fails. Without it there is no limit."""
    stall: Duration | None = Field(default=None, examples=["20m"])
    """How long the command may print nothing; then it is killed, and the trial fails. Without it there is no limit."""
    outputs: Annotated[tuple[RelativePath, ...], Field(strict=False)] = Field(
        default=(), examples=[["*.log", "field.vtk"]]
    )
    """Files that are kept of each trial, by name or glob pattern. `*` and `?` stay within a
    folder, `**/` goes through all folders below. Files that a metric reads come back unnamed. Big ones follow while
    the next trial runs."""
    keep_outputs: Keep = Field(default="all", examples=["best"])
    """The trials whose `outputs` are kept: `"all"`, those whose command ended well; `"best"`, the best one so far that
    meets the constraints, with several objectives the front; a number, so many of the best; `"failed"`, only those
    that failed, with what they left. What is no longer among the best is deleted. Logs are
    always kept, and so are files that a metric reads where the command ended well."""
    template: TemplateTable = TemplateTable()
    """How the templates among the inputs are written."""

    @model_validator(mode="after")
    def _one_of_two(self) -> TrialTable:
        if (self.command is None) == (self.objective is None):
            raise ValueError('needs either command or objective, such as command = "./solver case.inp"')
        for key in ("inputs", "outputs", "keep_outputs"):
            if self.objective and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} goes with a command; the objective {self.objective} pushes and pulls itself")
        return self


class Bounds(Table):
    """[constraints.METRIC]: the smallest and the largest value that a metric of a design may have: one or both."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})
    min: Annotated[float, Field(strict=False, allow_inf_nan=False)] | None = Field(default=None, examples=[0.4])
    """The smallest value that is allowed."""
    max: Annotated[float, Field(strict=False, allow_inf_nan=False)] | None = Field(default=None, examples=[2.0])
    """The largest value that is allowed."""

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
