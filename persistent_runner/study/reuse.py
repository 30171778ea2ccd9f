"""`reuse = true`: a design that has been run already is answered from its result, and no command runs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persistent_runner.study.objective import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistent_runner.study.objective import BoundTrial, CommandObjective, Work
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)


class Reusing:
    """An objective beside its results so far: those of this run folder since deck, command or readers have changed.

    Two designs are the same where all their parameters are equal.
    """

    def __init__(self, objective: CommandObjective, folder: RunFolder) -> None:
        self._objective = objective
        self._known: dict[str, tuple[int, Outcome]] = {}
        for record in folder.journal():
            if record["kind"] == "changed":
                self._known.clear()
            elif record["kind"] == "result" and record["state"] == "COMPLETE":
                outcome = Outcome(
                    tuple(record["values"]), record["facts"].get("metrics") or {}, record.get("constraints") or {}
                )
                self._known[_key(record["params"])] = (record["trial"], outcome)

    def __call__(self, trial: BoundTrial, work: Work) -> Outcome:
        """Return the known outcome of a trial's design, or run it."""
        key = _key(trial.params)
        if key in self._known:
            number, known = self._known[key]
            log.info("trial %d has the design of trial %d, and its result", trial.number, number)
            return known
        outcome = self._objective(trial, work)
        self._known[key] = (trial.number, replace(outcome, later=()))
        return outcome


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
