"""`--import FILE.csv`: designs whose results are known from elsewhere, for the sampler to learn from."""

from __future__ import annotations

import csv
import logging
import math
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from persistent_runner.errors import ConfigError
from persistent_runner.spelling import did_you_mean
from persistent_runner.study.proposals import IMPORTED, is_imported
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.space import CategoricalParameter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)


def add_known(spec: StudySpec, study: optuna.Study, path: Path) -> int:
    """Add the rows of a table as complete trials, each once over all starts; return how many are new.

    A column for each parameter that is varied, and one for each objective and constraint, under their own names or
    those of `trials.csv` (`params_NAME`, `metrics_NAME`); other columns are left alone, and so are rows of `trials.csv`
    that are not COMPLETE. ConfigError with row and column for anything that the study could not have found itself:
    nothing is added then.
    """
    rows = list(_rows(spec, path))
    there = [
        (trial.params, trial.values)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if is_imported(trial)
    ]
    new = [(params, metrics) for params, metrics in rows if (params, _values(spec, metrics)) not in there]
    for params, metrics in new:
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE,
            values=_values(spec, metrics),
            params=params,
            distributions=spec.designs.distributions,
            user_attrs={USER_ATTRIBUTE: {"run": IMPORTED, "metrics": metrics, "failure": ""}},
        )
        for name, bounds in spec.constraints.items():
            trial.set_constraint(name, bounds.violation(metrics[name]))
        study.add_trial(trial)
    log.info("%s: %d designs, %d of them new", path, len(rows), len(new))
    return len(new)


def _values(spec: StudySpec, metrics: Mapping[str, float]) -> list[float]:
    return [metrics[name] for name in spec.objective_names]


def _rows(spec: StudySpec, path: Path) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Yield parameters and metrics of each row."""
    if spec.designs.is_conditional:
        raise _wrong(path, "a study with conditional parameters (when) cannot tell which of a row's count")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise _wrong(path, f"it cannot be read: {why}") from None
    table = csv.DictReader(text.splitlines())
    columns = list(table.fieldnames or [])
    params = {name: _column(path, columns, name, "params_") for name in spec.designs.varied}
    wanted = [*spec.objective_names, *(name for name in spec.constraints if name not in spec.objectives)]
    metrics = {name: _column(path, columns, name, "metrics_") for name in wanted}
    for number, row in enumerate(table, start=2):
        if row.get("state", "COMPLETE") != "COMPLETE":
            continue
        place = f"row {number}"
        design = {name: _value(path, place, column, row[column]) for name, column in params.items()}
        for name, item in spec.designs.varied.items():
            if isinstance(item, CategoricalParameter):  # by the text: "6061" may be a choice
                design[name] = next(
                    (choice for choice in item.choices if str(choice) == row[params[name]]), design[name]
                )
        for name, what in spec.designs.check_design(design):
            raise _wrong(path, f"{place}, column {params.get(name, name)}: {what}")
        found = {name: _value(path, place, column, row[column]) for name, column in metrics.items()}
        for name, value in found.items():
            if isinstance(value, str) or not math.isfinite(value):
                raise _wrong(path, f"{place}, column {metrics[name]}: {value!r} is no finite number")
        yield spec.designs.design(design), {name: float(value) for name, value in found.items()}


def _column(path: Path, columns: list[str], name: str, prefix: str) -> str:
    found = next((column for column in (name, prefix + name) if column in columns), None)
    if found is None:
        raise _wrong(path, f"there is no column {name}, nor {prefix}{name}; {did_you_mean(name, columns)}")
    return found


def _value(path: Path, place: str, column: str, text: str | None) -> Any:
    """Return a cell as a whole number, a real one, or as text."""
    if text is None or not text.strip():
        raise _wrong(path, f"{place}, column {column}: the cell is empty")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _wrong(path: Path, what: str) -> ConfigError:
    return ConfigError(f"--import {path}: {what}", remedy="Nothing was imported.")
