"""A study's result as plain JSON: what `summary.json` and `run-study --json` hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistent_runner.study.results import USER_ATTRIBUTE

if TYPE_CHECKING:
    import optuna

    from persistent_runner.study.spec import StudySpec

VERSION = 1


def summarize(spec: StudySpec, study: optuna.Study) -> dict[str, Any]:
    """Return how many trials are in which state, and the best one.

    With several objectives `best` holds every trial that no other beats in all of them. The `metrics` of a trial are
    those that are no objectives.
    """
    counts: dict[str, int] = {}
    for trial in study.get_trials(deepcopy=False):
        counts[trial.state.name] = counts.get(trial.state.name, 0) + 1
    best: list[optuna.trial.FrozenTrial] = []
    if counts.get("COMPLETE"):
        best = [study.best_trial] if len(study.directions) == 1 else study.best_trials
    return {
        "version": VERSION,
        "study": spec.study.name,
        "n_trials": spec.study.n_trials,
        "trials": counts,
        "objectives": dict(spec.objectives),
        "best": [
            {
                "number": trial.number,
                "values": dict(zip(spec.objective_names, trial.values, strict=True)),
                "params": trial.params,
                "metrics": {
                    name: value
                    for name, value in (trial.user_attrs.get(USER_ATTRIBUTE, {}).get("metrics") or {}).items()
                    if name not in spec.objectives
                },
            }
            for trial in best
        ],
    }
