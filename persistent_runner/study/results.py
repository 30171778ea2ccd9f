"""The table of trials (the only pandas)."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    import pandas as pd

    from persistent_runner.study.run_folder import RunFolder

TABLE_SECONDS = 10.0  # between two tables of a study that runs
_SHARE = 0.02  # of the time, at most, that goes into them

USER_ATTRIBUTE = "persistent_runner"
"""Of a study: {"objectives": [names]}. Of a trial: what `trials_table` shows beside Optuna's own facts."""


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial, ordered by number.

    The columns are `number, state, value` (several objectives: `values_<name>`), `params_<name>, metrics_<name>,
    constraints_<name>, failure, attempts, seconds, cost, node, folder, started, ended`. `seconds` is the time of the
    last attempt, `cost` its share of the cluster's price, `started` and `ended` local times as datetimes. A trial that
    this package did not run has empty cells.
    """
    import pandas as pd  # 0.4 s that --help need not pay

    trials = study.get_trials(deepcopy=False)
    facts = [_facts(trial.user_attrs) for trial in trials]
    metrics = [_facts({USER_ATTRIBUTE: fact.get("metrics")}) for fact in facts]
    columns: dict[str, pd.Series[Any]] = {
        "number": pd.Series([trial.number for trial in trials], dtype="int64"),
        "state": pd.Series([trial.state.name for trial in trials], dtype="str"),
    }
    names = _objective_names(study)
    values = [trial.values or [] for trial in trials]  # noqa: PD011 - a trial, not a data frame
    for n, name in enumerate(names):
        cells = [row[n] if n < len(row) else None for row in values]
        columns["value" if len(names) == 1 else f"values_{name}"] = pd.Series(cells, dtype="float64")
    columns |= _spread("params_", [trial.params for trial in trials])
    columns |= _spread("metrics_", metrics)
    columns |= _spread("constraints_", [trial.constraints or {} for trial in trials])
    for name, dtype in _OWN_COLUMNS.items():
        columns[name] = pd.Series([fact.get(name) for fact in facts], dtype=dtype)
    columns["started"] = pd.Series([trial.datetime_start for trial in trials], dtype="datetime64[us]")
    columns["ended"] = pd.Series([trial.datetime_complete for trial in trials], dtype="datetime64[us]")
    return pd.DataFrame(columns)


def write_table(folder: RunFolder, study: optuna.Study) -> pd.DataFrame:
    """Write the table as `trials.csv` of a run folder, and return it."""
    table = trials_table(study)
    folder.keep("trials.csv", _csv(table))
    return table


class LiveTable:
    """`trials.csv` of a study that runs: written anew after trials have ended, at a cost that does not grow with them.

    A storage or a disk that does not take part now is asked again later, and at the end of the start.
    """

    def __init__(self, folder: RunFolder, study: optuna.Study) -> None:
        self._folder = folder
        self._study = study
        self._settled = 0
        self._next = 0.0
        self._has_pandas = False

    def turn(self, settled: int) -> None:
        """Write the table where it is not of so many settled trials, and its turn has come."""
        began = time.monotonic()
        self._next = self._next or began + TABLE_SECONDS
        if not self._has_pandas and began >= self._next - TABLE_SECONDS / 2:
            # The loop, and cores with it, would stand still for half a second where it came with the first table.
            self._has_pandas = True
            threading.Thread(target=importlib.import_module, args=("pandas",), name="pandas", daemon=True).start()
        if settled == self._settled or began < self._next:
            return
        with contextlib.suppress(OSError, StorageInternalError):
            self._folder.write("trials.csv", _csv(trials_table(self._study)))
            self._settled = settled
        now = time.monotonic()
        self._next = now + max(TABLE_SECONDS, (now - began) / _SHARE)


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


_OWN_COLUMNS = {
    "failure": "str",
    "attempts": "Int64",
    "seconds": "float64",
    "cost": "float64",
    "node": "str",
    "folder": "str",
}


def _facts(attributes: dict[str, Any]) -> dict[str, Any]:
    facts = attributes.get(USER_ATTRIBUTE)
    return facts if isinstance(facts, dict) else {}


def _objective_names(study: optuna.Study) -> list[str]:
    count = len(study.directions)
    names = _facts(study.user_attrs).get("objectives")
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return list(study.metric_names or map(str, range(count)))


def _spread(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, pd.Series[Any]]:
    """Return a column per key, whole numbers kept whole beside empty cells."""
    import pandas as pd

    columns: dict[str, pd.Series[Any]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        cells = [row.get(key) for row in rows]
        whole = all(cell is None or (isinstance(cell, int) and not isinstance(cell, bool)) for cell in cells)
        columns[prefix + key] = pd.Series(cells, dtype="Int64") if whole else pd.Series(cells)
    return columns
