"""summary.json and `run-study --json`."""

from __future__ import annotations

import json
from types import SimpleNamespace

import optuna

from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.storage import quiet_optuna
from persistent_runner.study.summary import VERSION, summarize

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}


def a_study(directions: list[str], rows: list[list[float] | None]) -> optuna.Study:
    quiet_optuna()
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=1))
    for values in rows:
        trial = study.ask(SPACE)
        trial.set_user_attr(USER_ATTRIBUTE, {"metrics": {"y": 1.0, "mass": 2.5}})
        study.tell(trial, values, state=None if values else optuna.trial.TrialState.FAIL)
    return study


def a_spec(objectives: dict[str, str], constraints: tuple[str, ...] = ()) -> SimpleNamespace:
    table = SimpleNamespace(name="wing", n_trials=4)
    return SimpleNamespace(
        study=table,
        objectives=objectives,
        objective_names=list(objectives),
        directions=list(objectives.values()),
        constraints=constraints,
    )


def test_the_best_trial_with_its_other_metrics() -> None:
    """One objective: counts by state, the best with values and parameters by name, and what was measured beside."""
    study = a_study(["minimize"], [[3.0], None, [2.0]])
    summary = summarize(a_spec({"y": "minimize"}), study)

    assert json.loads(json.dumps(summary)) == {
        "version": VERSION,
        "study": "wing",
        "n_trials": 4,
        "trials": {"COMPLETE": 2, "FAIL": 1},
        "objectives": {"y": "minimize"},
        "best": [{"number": 2, "values": {"y": 2.0}, "params": study.trials[2].params, "metrics": {"mass": 2.5}}],
    }


def test_several_objectives_have_several_best() -> None:
    """Every trial that no other beats in all objectives."""
    study = a_study(["minimize", "maximize"], [[1.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
    summary = summarize(a_spec({"y": "minimize", "lift": "maximize"}), study)
    assert [best["number"] for best in summary["best"]] == [0, 1]
    assert summary["best"][1]["values"] == {"y": 2.0, "lift": 2.0}
    # from the worst of each, (3, 1): a rectangle of 1 by 1, since (1, 1) lies on its edge
    assert (summary["hypervolume"], summary["reference"]) == (1.0, {"y": 3.0, "lift": 1.0})


def test_nothing_is_complete() -> None:
    """A study without a result has no best, and that is no error."""
    assert summarize(a_spec({"y": "minimize"}), a_study(["minimize"], [None]))["best"] == []
    assert summarize(a_spec({"y": "minimize"}), a_study(["minimize"], []))["trials"] == {}


def test_the_best_is_feasible_and_the_baseline_stands_beside_it() -> None:
    """A lower value that misses a constraint is not the best; a design that never ran counts as rejected."""
    study = a_study(["minimize"], [])
    for value, missed, facts in ((1.0, 0.5, {"baseline": True}), (2.0, 0.0, {}), (3.0, -1.0, {})):
        trial = study.ask(SPACE)
        trial.set_user_attr(USER_ATTRIBUTE, {"metrics": {}, **facts})
        trial.set_constraint("lift", missed)
        study.tell(trial, value)
    trial = study.ask(SPACE)
    trial.set_user_attr(USER_ATTRIBUTE, {"rejected": True})
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    summary = summarize(a_spec({"y": "minimize"}, ("lift",)), study)
    assert (summary["best"][0]["number"], summary["feasible"], summary["baseline"]["number"]) == (1, 2, 0)
    assert summary["trials"] == {"COMPLETE": 3, "REJECTED": 1}


def test_no_trial_is_feasible() -> None:
    """There is no best then, and that is no error."""
    study = a_study(["minimize"], [])
    trial = study.ask(SPACE)
    trial.set_constraint("lift", 1.0)
    study.tell(trial, 1.0)
    summary = summarize(a_spec({"y": "minimize"}, ("lift",)), study)
    assert (summary["best"], summary["feasible"]) == ([], 0)
