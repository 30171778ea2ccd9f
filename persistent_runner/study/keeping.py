"""`keep_outputs`: which trials' outputs are kept here, as results come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistent_runner.study.spec import StudySpec

Keep = Literal["all", "best", "failed"] | int


class Keeping:
    """The rule of a study, and which trials are the best so far where it asks for them.

    `directions` are those of the objectives, `patterns` name the outputs that are looked for where a trial failed. Only
    a trial that is complete and meets every constraint is among the best: so many as the rule says, by value and then
    by number; with several objectives those that no other one dominates.
    """

    def __init__(self, keep: Keep = "all", directions: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        self._keep = keep
        self._signs = [-1.0 if direction == "maximize" else 1.0 for direction in directions]
        self._best: dict[int, tuple[float, ...]] = {}
        self.patterns = tuple(patterns)

    @classmethod
    def of(cls, spec: StudySpec) -> Keeping:
        """Return the rule of a study, before its first result."""
        return cls(spec.trial.keep_outputs, spec.directions, spec.trial.outputs)

    @property
    def may_drop(self) -> bool:
        """Whether what is kept now may not be kept later."""
        return self._keep not in {"all", "failed"}

    def wants(
        self, number: int, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> bool:
        """Return whether the outputs of a trial with this result are to be kept, by all results so far."""
        if self._keep == "all":
            return state == TrialState.COMPLETE
        if self._keep == "failed":
            return state == TrialState.FAIL
        return number in self._with(number, state, values, constraints)

    def take(
        self, number: int, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> set[int]:
        """Take a result into account; return the trials that are among the best no longer."""
        if not self.may_drop:
            return set()
        before, self._best = self._best, self._with(number, state, values, constraints)
        return before.keys() - self._best.keys()

    def _with(
        self, number: int, state: TrialState, values: Sequence[float] | None, constraints: Mapping[str, float]
    ) -> dict[int, tuple[float, ...]]:
        """Return the best trials if this one has such a result."""
        found = {other: costs for other, costs in self._best.items() if other != number}
        if state == TrialState.COMPLETE and values and all(violation <= 0 for violation in constraints.values()):
            found[number] = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
        if len(self._signs) > 1:
            return {one: costs for one, costs in found.items() if not any(_beats(it, costs) for it in found.values())}
        most = 1 if self._keep == "best" else int(self._keep)
        return dict(sorted(found.items(), key=lambda entry: (entry[1], entry[0]))[:most])


def _beats(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    """Return whether one design is better than another one in something, and worse in nothing."""
    return costs != others and all(mine <= theirs for mine, theirs in zip(costs, others, strict=True))
