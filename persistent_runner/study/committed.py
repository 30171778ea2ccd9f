"""The commit of a result: to the journal first, then on its way to the study; with all outputs here it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.redaction import redact
from persistent_runner.study.bringing import Bringing
from persistent_runner.study.owed import Owed
from persistent_runner.study.proposals import Proposals
from persistent_runner.study.resume import Result, commit

if TYPE_CHECKING:
    import optuna

    from persistent_runner.study.keeping import Keeping
    from persistent_runner.study.machines import Machines
    from persistent_runner.study.objective import Outcome
    from persistent_runner.study.outbox import Outbox
    from persistent_runner.study.progress import Running
    from persistent_runner.study.run_folder import RunFolder


def facts_of(
    folder: RunFolder,
    trial: optuna.Trial | optuna.trial.FrozenTrial,
    attempt: int,
    seconds: float,
    *,
    metrics: dict[str, float],
    failure: str = "",
    price: float | None = None,
    node: str = "",
) -> dict[str, Any]:
    """Return what the table of trials shows beside Optuna's own facts; `price` is a trial's per hour."""
    return {
        "run": folder.run_id,
        "metrics": metrics,
        "failure": redact(failure),
        "attempts": attempt,
        "seconds": round(seconds, 4),
        "cost": None if price is None else round(price * seconds / 3600, 6),
        "node": node,
        "folder": f"trials/{trial.number:05d}",
    } | Proposals.mark(trial)


class Results:
    """The results of one start; `keeping` says which outputs are kept that come after the commit, without it all."""

    def __init__(self, folder: RunFolder, outbox: Outbox, machines: Machines, keeping: Keeping | None = None) -> None:
        self._folder = folder
        self._outbox = outbox
        self._machines = machines
        self.outputs = Bringing(folder, machines, keeping)

    def commit(
        self,
        running: Running,
        state: TrialState,
        seconds: float,
        *,
        outcome: Outcome | None = None,
        failure: str = "",
        constraints: dict[str, float] | None = None,
    ) -> None:
        """Write a result to the disk: from here on it is never lost and its trial never runs again.

        RunnerError where it cannot be written.
        """
        number = running.trial.number
        facts = facts_of(
            self._folder,
            running.trial,
            running.attempt,
            seconds,
            metrics=outcome.metrics if outcome else {},
            failure=failure,
            price=self._machines.price,
            node=self._machines.node(running.where),
        )
        values = list(outcome.values) if outcome else None
        result = Result(state, values, facts, outcome.constraints if outcome else constraints or {})
        files = outcome.later if outcome else ()
        rated = number, state, values, result.constraints
        outputs = self.outputs.told(*rated, files)
        commit(self._folder, number, running.params, result, outputs)
        crash_point("result-recorded")
        self._outbox.put(running.trial, result)
        self.outputs.take(*rated)
        owed = Owed(number, running.attempt, running.where, files, tuple(outputs["patterns"]) if outputs else ())
        (self.outputs.begin if outputs else self.outputs.drop)(owed)
        if outputs is None and state != TrialState.FAIL:  # what a failed one left on the node may say why
            for attempt in range(1, running.attempt + 1):
                self._machines.acknowledge(number, attempt)
            crash_point("acknowledged")
        self._folder.event("end", trial=number, state=state.name, values=values, seconds=round(seconds, 4))
