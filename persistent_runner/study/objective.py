"""A study.toml as an objective, and the Python objective that a study.toml may name instead."""

from __future__ import annotations

import glob
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from persistent_runner.errors import ConfigError, TrialFailed
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.results import read_metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from persistent_runner.study.spec import StudySpec


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: the values in the order of the objectives, every metric by name, and each constraint.

    A constraint is met at 0 and below, as Optuna has it.
    """

    values: tuple[float, ...]
    metrics: dict[str, float]
    constraints: dict[str, float] = field(default_factory=dict)


class Work(Protocol):
    """The part of a WorkDir that a study.toml needs."""

    @property
    def folder(self) -> Path:
        """The local folder that pulled files lie in, under the names they had in the working directory."""

    def push(self, *inputs: str, **parameters: Any) -> None:
        """Put inputs into the working directory, templates rendered with the parameters."""

    def run(self, command: str, *, timeout: timedelta | str | None = None, outputs: Sequence[str] = ()) -> object:
        """Run a command to its end."""

    def pull(self, name: str) -> Path:
        """Fetch one file; ResultMissing where it is not there."""

    def pull_all(self, pattern: str) -> list[Path]:
        """Fetch the files that match."""


class BoundTrial(Protocol):
    """A trial whose parameters are known already."""

    @property
    def params(self) -> dict[str, Any]:
        """The value of each parameter."""


class CommandObjective:
    """The objective that a study.toml describes: push the inputs, run the command, read the metrics."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec

    def parameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the templates and parameters.json get: constants, a trial's own, and what follows from them.

        Raises TrialFailed where a formula has no value for this design.
        """
        try:
            return self._spec.designs.complete(params)
        except ValueError as error:
            raise TrialFailed(
                f"[space]: {error}", remedy="Mend the formula, or exclude such designs by require."
            ) from None

    def __call__(self, trial: BoundTrial, work: Work) -> Outcome:
        """Run one attempt; raises the TrialFailed that stopped it."""
        spec = self._spec
        work.push(*spec.trial.inputs, **self.parameters(trial.params))
        work.run(spec.command_text, timeout=spec.trial.timeout, outputs=spec.output_patterns)
        # the outputs first: when a number is missing, they show why
        for pattern in spec.trial.outputs:
            if glob.has_magic(pattern):
                work.pull_all(pattern)
            else:
                work.pull(pattern)
        for name in spec.metric_files:
            work.pull(name)
        metrics = {name: read_metric(extract, work.folder, name=name) for name, extract in spec.metrics.items()}
        return Outcome(
            values=tuple(metrics[name] for name in spec.objective_names),
            metrics=metrics,
            constraints={name: bounds.violation(metrics[name]) for name, bounds in spec.constraints.items()},
        )


PythonObjective = Callable[[Any, Any], Any]
"""objective(trial, work) -> one value, or one per objective."""


def load_python_objective(spec: StudySpec) -> PythonObjective:
    """Return the function that `[trial] objective = "file.py:function"` names.

    The file is run once, from the study's folder, whose other modules it may import; no bytecode is left there.
    Raises ConfigError where the file or the function is missing, or running the file fails (with its traceback).
    """
    name, _, function = (spec.trial.objective or "").rpartition(":")
    path = spec.folder / name
    if not path.is_file():
        names = sorted(child.name for child in spec.folder.glob("*.py"))
        raise ConfigError(f"[trial] objective: there is no file {path}; {did_you_mean(name, names)}")
    module = _run(path)
    found: PythonObjective | None = getattr(module, function, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(
            f'[trial] objective: {name} has no function "{function}"; {did_you_mean(function, functions)}'
        )
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        raise ConfigError(
            f"[trial] objective: {function} in {name} cannot be called as {function}(trial, work); "
            f"write it as: def {function}(trial, work):"
        ) from None
    return found


def _run(path: Path) -> ModuleType:
    module = ModuleType(f"study_{path.stem}")
    module.__file__ = str(path)
    # dataclasses and pickle look their module up by name
    sys.modules[module.__name__] = module
    folder = str(path.parent)
    if folder not in sys.path:
        # last, so that a stranger's json.py does not stand in for ours
        sys.path.append(folder)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - the user's own objective
    except (Exception, SystemExit) as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, own)).rstrip()
        raise ConfigError(
            f"[trial] objective: running {path} failed:\n{text}", remedy=f"Mend {path.name}; nothing was leased."
        ) from error
    finally:
        sys.dont_write_bytecode = before
    return module
