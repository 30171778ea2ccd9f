"""What a user relies on in the table of trials."""

from __future__ import annotations

import optuna
import pandas as pd

from persistent_runner.study.results import USER_ATTRIBUTE, trials_table

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_table_of_an_empty_study() -> None:
    """A study without trials has the columns and no rows."""
    table = trials_table(optuna.create_study())
    assert list(table.columns) == [
        "number", "state", "value", "failure", "attempts", "seconds", "cost", "node", "folder", "started", "ended"
    ]  # fmt: skip
    assert table.empty


def test_the_table_of_a_study_with_everything() -> None:
    """One row per trial, our facts beside Optuna's, in the documented order of columns."""
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_user_attr(USER_ATTRIBUTE, {"objectives": ["drag", "lift"]})
    done = study.ask(
        {"h": optuna.distributions.FloatDistribution(0, 1), "n": optuna.distributions.IntDistribution(1, 3)}
    )
    done.set_user_attr(
        USER_ATTRIBUTE,
        {"metrics": {"drag": 1.0, "lift": 2.0, "mass": 3.0}, "attempts": 2, "seconds": 4.5, "cost": 0.25,
         "node": "head", "folder": "trials/00000", "failure": ""},
    )  # fmt: skip
    done.set_constraint("stress", -1.0)
    study.tell(done, [1.0, 2.0])
    failed = study.ask()
    failed.set_user_attr(USER_ATTRIBUTE, {"failure": "CommandFailed: exit 3", "attempts": 1})
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.ask()
    table = trials_table(study)
    assert list(table.columns) == [
        "number", "state", "values_drag", "values_lift", "params_h", "params_n", "metrics_drag", "metrics_lift",
        "metrics_mass", "constraints_stress", "failure", "attempts", "seconds", "cost", "node", "folder", "started",
        "ended",
    ]  # fmt: skip
    assert list(table["number"]) == [0, 1, 2]
    assert list(table["state"]) == ["COMPLETE", "FAIL", "RUNNING"]
    first = table.iloc[0]
    assert (first["values_drag"], first["values_lift"], first["metrics_mass"]) == (1.0, 2.0, 3.0)
    assert (first["constraints_stress"], first["cost"], first["attempts"]) == (-1.0, 0.25, 2)
    assert isinstance(first["started"], pd.Timestamp)
    assert table["values_drag"].isna().tolist() == [False, True, True]
    assert table["failure"][1] == "CommandFailed: exit 3"
    rows = table.to_csv(index=False).splitlines()
    assert rows[0].startswith("number,state,values_drag")
    # a whole number beside empty cells stays one
    assert rows[1].split(",")[5] in {"1", "2", "3"}
    assert rows[3].startswith("2,RUNNING,,,,,")


def test_the_table_of_somebody_elses_study() -> None:
    """Trials that Optuna ran itself have empty cells where only we know."""
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_categorical("alloy", ["a", True, 3]), n_trials=1, catch=(ValueError,))
    study.add_trial(optuna.trial.create_trial(value=2.0, user_attrs={USER_ATTRIBUTE: "theirs"}))
    table = trials_table(study)
    assert table["value"][1] == 2.0
    assert table[["failure", "attempts", "seconds", "cost", "node", "folder"]].isna().all(axis=None)


def test_several_objectives_without_names() -> None:
    """Optuna's own metric names serve, else the position."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    assert {"values_0", "values_1"} <= set(trials_table(study).columns)
