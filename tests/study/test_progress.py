"""What is counted as trials end is what a count of all of them would give."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.trial import TrialState

from persistent_runner.study.progress import Progress
from persistent_runner.study.proposals import IMPORTED
from persistent_runner.study.results import USER_ATTRIBUTE

STATES = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_counting_as_trials_end_is_counting_all(direction: str) -> None:
    """With trials of other drivers, some that never ran, and ends that are told before they are looked at."""
    study = optuna.create_study(direction=direction)
    chance = random.Random(1)
    known = Progress(run="ours")
    for _ in range(200):
        facts = {"run": chance.choice(["ours", "theirs", IMPORTED]), "rejected": chance.random() < 0.2}
        state = chance.choice(STATES)
        values = [chance.choice([0.0, 1.0, 2.0])] if state == TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, values=values, user_attrs={USER_ATTRIBUTE: facts}))
        running = study.get_trials(states=(TrialState.RUNNING,))
        if running and chance.random() < 0.4:
            told = study.tell(chance.choice(running).number, chance.choice([-1.0, 1.0, 3.0]))
            if chance.random() < 0.5:
                known.count_told(study, told)
                known.count_told(study, told)
        if chance.random() < 0.5:
            known.count(study)
            anew = Progress(run="ours", started=known.started)
            anew.count(study)
            assert anew == known
    assert known.best is not None
    assert min(known.complete, known.failed, known.pruned, known.others) > 0


def test_a_count_looks_at_what_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many trials have ended before."""
    study = optuna.create_study()
    for number in range(50):
        study.add_trial(optuna.trial.create_trial(state=TrialState.COMPLETE, value=float(number)))
    progress = Progress()
    progress.count(study)
    looked: list[int] = []
    ended = Progress._count_ended

    def seen(self: Progress, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        looked.append(trial.number)
        ended(self, study, trial)

    monkeypatch.setattr(Progress, "_count_ended", seen)
    study.tell(study.ask(), 0.0)
    study.enqueue_trial({})
    progress.count(study)
    progress.count(study)
    assert looked == [50]
    assert (progress.complete, progress.best, progress.is_any_waiting) == (51, (0, 0.0), True)
