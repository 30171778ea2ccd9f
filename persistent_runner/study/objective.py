"""A study.toml as an objective, and the Python objective that a study.toml may name instead."""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from persistent_runner.crash import crash_point
from persistent_runner.errors import ParametersInvalid, ResultMissing, TrialFailed, ValueMisfit
from persistent_runner.study.functions import load_functions
from persistent_runner.study.readers import Readings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from persistent_runner.remote.frames import OutputFile
    from persistent_runner.study.spec import StudySpec


log = logging.getLogger(__name__)

_MOST_NAMED = 8  # files, of those that the first trial left


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: the values in the order of the objectives, every metric by name, and each constraint.

    A constraint is met at 0 and below, as Optuna has it. `later` are the outputs that the values did not need.
    """

    values: tuple[float, ...]
    metrics: dict[str, float]
    constraints: dict[str, float] = field(default_factory=dict)
    later: tuple[OutputFile, ...] = field(default=(), compare=False, repr=False)


class Work(Protocol):
    """The part of a WorkDir that a study.toml needs."""

    @property
    def folder(self) -> Path:
        """The local folder that pulled files lie in, under the names they had in the working directory."""

    def push(self, *inputs: str, **parameters: Any) -> None:
        """Put inputs into the working directory, templates rendered with the parameters."""

    def run(
        self,
        command: str,
        *,
        timeout: timedelta | str | None = None,
        stall: timedelta | str | None = None,
        outputs: Sequence[str] = (),
    ) -> object:
        """Run a command to its end."""

    def pull(self, name: str) -> Path:
        """Fetch one file; ResultMissing where it is not there."""

    def find(self, name: str) -> OutputFile:
        """Return what `pull` would fetch; ResultMissing where it is not there."""

    def find_all(self, pattern: str) -> list[OutputFile]:
        """Return what there is that matches."""

    def left(self) -> dict[str, int]:
        """Name and size in bytes of each file that a command left in the working directory."""


class BoundTrial(Protocol):
    """A trial whose parameters are known already."""

    @property
    def number(self) -> int:
        """Which trial it is."""

    @property
    def params(self) -> dict[str, Any]:
        """The value of each parameter."""


class CommandObjective:
    """The objective that a study.toml describes: push the inputs, run the command, read the metrics.

    `tells_what_is_left` says once which files a trial leaves and which of them are taken. ConfigError where a function
    of a metric cannot be loaded.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._functions = spec.functions
        self.tells_what_is_left = True

    def parameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the templates and parameters.json get: constants, a trial's own, and what follows from them.

        Raises ParametersInvalid where a formula has no value for this design.
        """
        try:
            return self._spec.designs.complete(params)
        except ValueError as error:
            raise ParametersInvalid(
                f"[space] {error}", remedy="Mend the formula, or exclude such designs by require."
            ) from None

    def __call__(self, trial: BoundTrial, work: Work) -> Outcome:
        """Run one attempt; raises the TrialFailed that stopped it."""
        spec = self._spec
        try:
            work.push(*spec.trial.inputs, **self.parameters(trial.params))
        except ValueMisfit as error:
            raise ParametersInvalid(
                error.message, remedy="Widen the field in the template, or exclude such designs by require."
            ) from None
        crash_point("pushed")
        work.run(spec.command_text, timeout=spec.trial.timeout, stall=spec.trial.stall, outputs=spec.output_patterns)
        crash_point("ended")
        (outputs, missing), keeps_all = self._outputs(work), spec.trial.keep_outputs == "all"
        here: set[str] = set()
        if any(extract.function for extract in spec.metrics.values()):  # which may look at all that is there
            here = _pulled(work, outputs)
        elif keeps_all:  # what is small is here with the exit already
            here = _pulled(work, [output for output in outputs if output.data is not None])
        try:
            if missing is not None:
                raise missing
            for name in spec.metric_files:
                readers = ", ".join(metric for metric, extract in spec.metrics.items() if extract.file == name)
                with _wanted(f"[metrics] {readers} reads it"):
                    work.pull(name)
            outcome = self.read(trial.params, work.folder)
        except TrialFailed:
            if keeps_all:  # they show why
                _pulled(work, [output for output in outputs if output.path not in here])
            raise
        later = tuple(output for output in outputs if not keeps_all or output.path not in here)
        outcome = replace(outcome, later=later)
        crash_point("pulled")
        if self.tells_what_is_left:
            self.tells_what_is_left = False
            coming = set() if spec.trial.keep_outputs == "failed" else {output.path for output in later}
            log.info("%s", _left_text(work.left(), work.folder, coming))
            readings = self._readings(trial.params, work.folder)
            for name in spec.metrics:
                reading = readings.reading(name)
                log.info("%s = %.10g  (%s)", name, reading.value, reading.note)
        return outcome

    def _outputs(self, work: Work) -> tuple[list[OutputFile], ResultMissing | None]:
        """Return the outputs that no metric reads, as the command has left them, and what says that one is not there.

        What a pattern names of the parameters is not among them: they are always here.
        """
        found: dict[str, OutputFile] = {}
        missing = None
        for pattern in self._spec.trial.outputs:
            if glob.has_magic(pattern):
                found |= {output.path: output for output in work.find_all(pattern)}
            else:
                try:
                    with _wanted("[trial] outputs names it"):
                        output = work.find(pattern)
                except ResultMissing as error:
                    missing = missing or error
                else:
                    found[output.path] = output
        taken = {*self._spec.metric_files, "parameters.json"}
        return [output for path, output in found.items() if path not in taken], missing

    def _readings(self, params: Mapping[str, Any], folder: Path) -> Readings:
        return Readings(folder, self._spec.metrics, functions=self._functions, parameters=self.parameters(params))

    def read(self, params: Mapping[str, Any], folder: Path) -> Outcome:
        """Return what the files of a trial say, below its local folder; ResultMissing where a number is not there."""
        spec, metrics = self._spec, self._readings(params, folder).numbers()
        return Outcome(
            values=tuple(metrics[name] for name in spec.objective_names),
            metrics=metrics,
            constraints={name: bounds.violation(metrics[name]) for name, bounds in spec.constraints.items()},
        )


def _pulled(work: Work, outputs: list[OutputFile]) -> set[str]:
    """Fetch outputs, and return their paths."""
    for output in outputs:
        work.pull(output.path)
    return {output.path for output in outputs}


@contextlib.contextmanager
def _wanted(wanted: str) -> Iterator[None]:
    """Within: ResultMissing says who wants the file."""
    try:
        yield
    except ResultMissing as error:
        raise ResultMissing(f"{error.message}; {wanted}", remedy=error.remedy) from None


def _left_text(left: Mapping[str, int], folder: Path, coming: Collection[str]) -> str:
    """Return which files the first trial left, which are or will be here, and which not, the largest first."""
    taken = {name: size for name, size in left.items() if name in coming or (folder / name).is_file()}
    others = {name: size for name, size in left.items() if name not in taken}
    text = f"The first trial left {_sized(left)}; taken: {_named(taken)}"
    return f"{text}; not taken: {_named(others)} ([trial] outputs takes more)" if others else text


def _named(files: Mapping[str, int]) -> str:
    largest = sorted(files.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {_size(size)}" for name, size in largest[:_MOST_NAMED])
    more = dict(largest[_MOST_NAMED:])
    return (shown or "none") + (f" and {_sized(more)} more" if more else "")


def _sized(files: Mapping[str, int]) -> str:
    return f"{len(files)} file{'s' if len(files) != 1 else ''} ({_size(sum(files.values()))})"


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


PythonObjective = Callable[[Any, Any], Any]
"""objective(trial, work) -> one value, or one per objective."""


def load_python_objective(spec: StudySpec) -> PythonObjective:
    """Return the function that `[trial] objective = "file.py:function"` names; ConfigError as `load_functions`."""
    name = spec.trial.objective or ""
    return load_functions(spec.folder, {name: spec.place("trial", "objective")}, ["trial", "work"])[name]
