"""The plate of study.toml as a Python objective, for `optimize` or for `objective = "objective.py:objective"`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    import optuna

    from persistent_runner import WorkDir


def objective(trial: optuna.Trial, work: WorkDir) -> float:
    """Return the peak stress along the hole, in units of the pull along y, of the shape that `trial` suggests."""
    work.push(
        "case/",
        aspect=trial.suggest_float("aspect", 1.0, 3.0),
        exponent=trial.suggest_float("exponent", 1.5, 2.75),
    )
    work.run("python3 mesh.py plate.inp && python3 plate.py plate", timeout="2m")
    return float(pd.read_csv(work.pull("stress.csv"))["hoop"].max())
