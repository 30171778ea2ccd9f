"""A study's result as plain JSON: what `summary.json` and `run-study --json` hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistent_runner.study.proposals import is_feasible, is_rejected
from persistent_runner.study.results import USER_ATTRIBUTE

if TYPE_CHECKING:
    import optuna

    from persistent_runner.study.spec import StudySpec

VERSION = 1


def summarize(spec: StudySpec, study: optuna.Study) -> dict[str, Any]:
    """Return how many trials are in which state, and the best feasible one.

    With several objectives `best` holds every feasible trial that no other beats in all of them, and `hypervolume` how
    much these beat the `reference`, the worst value of each objective so far. `baseline` is the design that the others
    are compared with. The `metrics` of a trial are those that are no objectives. A design that was not allowed and
    never ran is counted as `REJECTED`.
    """
    counts: dict[str, int] = {}
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        state = "REJECTED" if is_rejected(trial) else trial.state.name
        counts[state] = counts.get(state, 0) + 1
    feasible = [trial for trial in trials if is_feasible(trial)]
    best: list[optuna.trial.FrozenTrial] = []
    if feasible:
        best = [study.best_trial] if len(study.directions) == 1 else study.best_trials
    baseline = next((trial for trial in reversed(trials) if _facts(trial).get("baseline") and trial.values), None)
    summary: dict[str, Any] = {
        "version": VERSION,
        "study": spec.study.name,
        "n_trials": spec.study.n_trials,
        "trials": counts,
        "objectives": dict(spec.objectives),
        "best": [_shown(spec, trial) for trial in best],
    }
    if spec.constraints:
        summary["feasible"] = len(feasible)
    if baseline is not None:
        summary["baseline"] = _shown(spec, baseline)
        if spec.constraints:
            summary["baseline"]["feasible"] = is_feasible(baseline)
    if len(study.directions) > 1 and feasible:
        summary |= _hypervolume(spec, feasible, best)
    return summary


def _shown(spec: StudySpec, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    metrics = _facts(trial).get("metrics") or {}
    return {
        "number": trial.number,
        "values": dict(zip(spec.objective_names, trial.values, strict=True)),
        "params": trial.params,
        "metrics": {name: value for name, value in metrics.items() if name not in spec.objectives},
    }


def _facts(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    facts: dict[str, Any] = trial.user_attrs.get(USER_ATTRIBUTE) or {}
    return facts


def _hypervolume(
    spec: StudySpec, feasible: list[optuna.trial.FrozenTrial], best: list[optuna.trial.FrozenTrial]
) -> dict[str, Any]:
    """Return the hypervolume of the front, and the point that it is measured from."""
    import numpy as np
    from optuna._hypervolume import compute_hypervolume  # not public; the way that Optuna's own plots go

    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in spec.directions])
    losses = np.array([trial.values for trial in feasible]) * signs
    reference = losses.max(axis=0)
    front = np.array([trial.values for trial in best]) * signs
    names = spec.objective_names
    return {
        "hypervolume": float(compute_hypervolume(front, reference)),
        "reference": dict(zip(names, (reference * signs).tolist(), strict=True)),
    }
