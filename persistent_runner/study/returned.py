"""An objective at work, and what it returned as values that a study can compare."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import ResultMissing
from persistent_runner.study.objective import Outcome

if TYPE_CHECKING:
    import optuna


def task_of(
    objective: Callable[[optuna.Trial, Any], object], trial: optuna.Trial
) -> Callable[[Any], tuple[object, float]]:
    """Return what runs a trial in a working directory, and gives what its objective returned and its run time."""

    def task(workdir: Any) -> tuple[object, float]:
        begun = time.monotonic()
        returned = objective(trial, workdir)
        # What an earlier start had begun, and this one only joined, took longer than the wait for it.
        return returned, max(time.monotonic() - begun - workdir.waited, workdir.seconds)

    return task


def outcome_of(returned: object, objectives: int, trial: int) -> Outcome:
    """Return what the objective of a trial returned as values; ResultMissing for anything but finite numbers."""
    if isinstance(returned, Outcome):
        return returned
    values = list(returned) if isinstance(returned, Sequence) and not isinstance(returned, str | bytes) else [returned]
    if len(values) != objectives:
        raise ResultMissing(
            f"trial {trial}: the objective returned {_counted(len(values), 'value')}, "
            f"and the study has {_counted(objectives, 'objective')}",
            remedy="Return one number for each direction of the study.",
        )
    return Outcome(tuple(_finite(value, trial) for value in values), {})


def _finite(value: object, trial: int) -> float:
    number = None
    if not isinstance(value, bool | str | bytes):
        try:
            number = float(value)  # type: ignore[arg-type]  # the TypeError is the answer
        except (TypeError, ValueError, OverflowError):
            number = None
    if number is None:
        raise ResultMissing(
            f"trial {trial}: the objective returned {_shown(value)}, which is not a number",
            remedy="Return a float for each objective.",
        )
    if not math.isfinite(number):
        raise ResultMissing(
            f"trial {trial}: the objective returned {number}, which no study can compare",
            remedy="Mend the run, or raise optuna.TrialPruned for a design without a value.",
        )
    return number


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"an {type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
