"""Trials between two starts: whose they are, how they are told, and how they go back to wait for another attempt."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.study.results import USER_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)


class Attempts:
    """Which attempt of each trial is its last, over all starts, and where it was started if it has no result."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._places: dict[int, str] = {}

    def note(self, record: dict[str, Any]) -> None:
        """Take what an earlier start has written into the journal."""
        if record["kind"] == "attempt":
            self._last[record["trial"]] = record["attempt"]
            self._places[record["trial"]] = record.get("where", "")
        elif record["kind"] in {"result", "pilot"}:
            self._places.pop(record["trial"], None)

    def stays(self, number: int, attempt: int, where: str) -> None:
        """Note that an attempt is not over: it goes on where it was started."""
        self._last[number], self._places[number] = attempt, where

    def place(self, number: int) -> str:
        """Return where the attempt of a trial was started that is not over; empty where there is none."""
        return self._places.get(number, "")

    def begin(self, number: int, where: str) -> int:
        """Return the attempt that a trial begins on these machines: one that is not over, if it was started there.

        That one is joined; any other gets a number of its own.
        """
        if not where or self._places.pop(number, None) != where:
            self._last[number] = self._last.get(number, 0) + 1
        return self._last[number]


def settle_earlier(study: optuna.Study, folder: RunFolder) -> Attempts:
    """Tell results that were committed and not told; let this run's other unfinished trials run again.

    Trials of other runs are left alone. Returns the attempts so far.
    """
    attempts = Attempts()
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ours = [frozen for frozen in running if owner(frozen) == folder.run_id]
    numbers = {frozen.number for frozen in ours}
    results: dict[int, dict[str, Any]] = {}
    for record in folder.journal():
        attempts.note(record)
        if record["kind"] == "result" and record["trial"] in numbers:
            results[record["trial"]] = record
    for frozen in ours:
        trial = optuna.trial.Trial(study, frozen._trial_id)  # noqa: SLF001 - Optuna's own way to rebuild it
        committed = results.get(frozen.number)
        # With other parameters it is a trial of a study that has since been deleted.
        if committed is not None and committed["params"] == frozen.params:
            result = Result(
                TrialState[committed["state"]],
                committed["values"],
                committed["facts"],
                committed.get("constraints") or {},
            )
            tell(study, trial, result)
            crash_point("settled-trial")
            log.info("trial %d: the last start had its result, now the study has it too", frozen.number)
        else:
            give_back(study, trial, folder)
            crash_point("given-back")
    return attempts


def owner(trial: optuna.trial.FrozenTrial | optuna.Trial) -> str | None:
    """Return the id of the run that a trial belongs to."""
    facts = trial.user_attrs.get(USER_ATTRIBUTE)
    return facts.get("run") if isinstance(facts, dict) else None


@dataclass(frozen=True)
class Result:
    """What came of a trial, as it is committed and told."""

    state: TrialState
    values: Sequence[float] | None
    facts: dict[str, Any]
    constraints: dict[str, float] = field(default_factory=dict)


def commit(
    folder: RunFolder, number: int, params: dict[str, Any], result: Result, outputs: dict[str, Any] | None = None
) -> None:
    """Write a result into the journal: from here on it is never lost and its trial never runs again.

    `outputs` is what `owed.told` gives of those that are to come. RunnerError where it cannot be written.
    """
    folder.commit(
        kind="result",
        trial=number,
        state=result.state.name,
        values=None if result.values is None else list(result.values),
        params=params,
        facts=result.facts,
        constraints=result.constraints,
        **({"outputs": outputs} if outputs else {}),
    )


def tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> optuna.trial.FrozenTrial:
    """Tell a study what came of a trial, and return it as the study has it then.

    Once more does nothing, and says so where the study has something else.
    """
    with contextlib.suppress(UpdateFinishedTrialError):  # told before, and the answer was lost
        # A finished trial takes no attribute any more, so the facts go first.
        trial.set_user_attr(USER_ATTRIBUTE, result.facts)
        for name, violation in result.constraints.items():
            if name not in trial.storage.get_trial(trial._trial_id).constraints:  # noqa: SLF001 - the answer was lost
                trial.set_constraint(name, violation)
    told = study.tell(trial, result.values, state=result.state, skip_if_finished=True)
    # of a pruned trial the study has the last value that was reported
    differs = result.values is not None and told.values != list(result.values)
    if told.state != result.state or differs:
        log.warning(
            "trial %d: somebody else has told the study %s, and here it gave %s; the study keeps the former",
            trial.number,
            told.values or told.state.name,
            list(result.values) if result.values else result.state.name,
        )
    return told


def give_back(study: optuna.Study, trial: optuna.Trial, folder: RunFolder) -> None:
    """Let the next ask give this trial again; a study in memory has no next start, so there it has failed."""
    storage = study._storage  # noqa: SLF001 - no public way puts a trial back to WAITING
    if isinstance(storage, optuna.storages.InMemoryStorage):
        tell(study, trial, Result(TrialState.FAIL, None, {"run": folder.run_id, "failure": "interrupted"}))
    else:
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # noqa: SLF001 - the same
    folder.event("waiting", trial=trial.number)
