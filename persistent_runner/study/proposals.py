"""Which trial comes next: what waits for another attempt, the designs to be tried first, then the sampler's own."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from persistent_runner.errors import RunnerError
from persistent_runner.study.design import NoValue
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.resume import Result, owner, tell

if TYPE_CHECKING:
    from persistent_runner.study.design import DesignSpace
    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)

MOST_REJECTED = 1000  # designs in a row that are not allowed, before the study gives up
_FURTHEST = 1e9  # how far off a design counts that cannot even be calculated


class StudyFailed(RunnerError):
    """The study cannot go on: too many failures in a row, no design that is allowed, or a failed first trial."""


def put_first(study: optuna.Study, spec: StudySpec, folder: RunFolder) -> None:
    """Let the baseline and the designs of [[start]] be the first ones, each once over all starts."""
    for design, baseline in [(spec.baseline, True), *((design, False) for design in spec.start)]:
        if design:
            study.enqueue_trial(
                spec.designs.design(design),
                user_attrs={USER_ATTRIBUTE: {"run": folder.run_id} | ({"baseline": True} if baseline else {})},
                skip_if_exists=True,
            )


def put_failed(study: optuna.Study, folder: RunFolder) -> None:
    """Let the designs of this run's failed trials be the next ones; each trial is put back once."""
    before = {record["trial"] for record in folder.journal() if record["kind"] == "retried"}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if owner(trial) == folder.run_id and trial.number not in before:
            # noted first: after a crash in between it is one more of the sampler's own, and nothing waits twice
            folder.commit(kind="retried", trial=trial.number)
            facts = {"run": folder.run_id} | Proposals.mark(trial)
            study.enqueue_trial(trial.params, user_attrs={USER_ATTRIBUTE: facts})


def retried(folder: RunFolder) -> int:
    """Return how many failed trials were put back: as many more than `n_trials` are run."""
    return sum(record["kind"] == "retried" for record in folder.journal())


IMPORTED = "imported"
"""Of what run a trial is that came from elsewhere: of none, so nothing settles it or reads it again."""


class Proposals:
    """The next trials of a study, asked for by the main thread.

    With `designs` all parameters are asked for at once, and a design that is not allowed is never run; without, the
    objective suggests its parameters itself. `rejected` counts those in a row that were not allowed.
    """

    def __init__(self, study: optuna.Study, folder: RunFolder, designs: DesignSpace | None) -> None:
        self._study = study
        self._run = folder.run_id
        self._designs = designs
        self._torn: optuna.Trial | None = None
        self.rejected = 0

    def next(self, *, is_any_waiting: bool) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """Return the next trial and its parameters so far; None where the design is not allowed, and another is to
        be asked for. StudyFailed after too many of these. `is_any_waiting`: whether the study has a trial for the ask.
        """  # noqa: D205 - one sentence
        trial = self._torn = self._torn or self._ask(is_any_waiting=is_any_waiting)
        found = self._suggested(trial)
        self._torn = None
        return found

    def _ask(self, *, is_any_waiting: bool) -> optuna.Trial:
        ours = {"run": self._run}
        if not is_any_waiting:
            # Put in first and taken out by the ask, so that a crash at any moment leaves a trial that is known as ours.
            # Not by `enqueue_trial`: what was enqueued gets no cell of a grid.
            waiting = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={USER_ATTRIBUTE: ours})
            self._study.add_trial(waiting)
        trial = self._study.ask()
        if owner(trial) != self._run:
            trial.set_user_attr(USER_ATTRIBUTE, ours)
        return trial

    def _suggested(self, trial: optuna.Trial) -> tuple[optuna.Trial, dict[str, Any]] | None:
        if self._designs is None:
            return trial, trial.params
        _ = trial.relative_params  # where nsga2 and nsga3 note the generation, also of a design that was enqueued
        try:
            self._designs.suggest(trial)
        except NoValue as error:  # of a condition that decides which parameters there are
            self._reject(trial, math.inf, str(error))
            return None
        params = trial.params
        missed, what = self._designs.violation(params)
        if not missed:
            self.rejected = 0
            return trial, params
        self._reject(trial, missed, what)
        return None

    @staticmethod
    def mark(trial: optuna.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
        """Return what of a trial's attributes its facts are to keep: whether it is the baseline."""
        return {"baseline": True} if (trial.user_attrs.get(USER_ATTRIBUTE) or {}).get("baseline") else {}

    def _reject(self, trial: optuna.Trial, missed: float, what: str) -> None:
        """Tell the sampler to keep away, and count it as no trial."""
        log.debug("trial %d is not allowed: %s", trial.number, what)
        facts = {"run": self._run, "rejected": True, "failure": f"not allowed: {what}"}
        tell(self._study, trial, Result(TrialState.PRUNED, None, facts, {"require": min(missed, _FURTHEST)}))
        self.rejected += 1
        if self.rejected >= MOST_REJECTED:
            raise StudyFailed(
                f"the sampler proposed {self.rejected} designs in a row that [study] require does not allow; the last "
                f"one: {what}",
                remedy="Tighten the ranges in [space], or write a design that is allowed as [[start]].",
            )


def is_rejected(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a design was not allowed and never ran."""
    return bool((trial.user_attrs.get(USER_ATTRIBUTE) or {}).get("rejected"))


def is_imported(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a result came from elsewhere."""
    return (trial.user_attrs.get(USER_ATTRIBUTE) or {}).get("run") == IMPORTED


def is_feasible(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial is complete and meets every constraint."""
    complete = trial.state == TrialState.COMPLETE and bool(trial.values)
    return complete and all(violation <= 0 for violation in trial.constraints.values())
