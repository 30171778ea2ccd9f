"""How far a study is, and when to stop asking."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from persistent_runner.study.proposals import is_feasible, is_imported, is_rejected
from persistent_runner.study.resume import owner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

log = logging.getLogger(__name__)


def settled(study: optuna.Study) -> int:
    """Return how many trials have run to a final state."""
    return sum(settled_by_state(study).values())


def settled_by_state(study: optuna.Study) -> dict[str, int]:
    """Return how many trials have run to each final state; what was not allowed, or imported, never ran."""
    trials = study.get_trials(deepcopy=False)
    ran = [trial for trial in trials if not is_rejected(trial) and not is_imported(trial)]
    return Counter(trial.state.name for trial in ran if trial.state.is_finished())


@dataclass(frozen=True)
class Limits:
    """When to stop asking.

    `total` settled trials over all starts and drivers, or `more` trials of this start; one of the two. `max_seconds`
    of this start, `max_consecutive_failures` in a row.
    """

    total: int | None = None
    more: int | None = None
    max_seconds: float | None = None
    max_consecutive_failures: int | None = None


@dataclass
class Running:
    """A trial under way, `where` it runs, `params` as far as they are known, `last_line` of what it has printed.

    `is_sent`: it was sent to wait on the machines for the end of another one. `joins`: it was started there before, by
    what was recorded, and may run or have ended.
    """

    trial: optuna.Trial
    attempt: int
    future: Future[Any]
    params: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    since: float = field(default_factory=time.monotonic)
    last_line: str = ""
    is_sent: bool = False
    joins: bool = False


@dataclass
class Progress:
    """How far a study is, for whoever shows it.

    `best` is (number, value) of one objective and among the feasible trials, else None; `ready` are trials that start
    as soon as a slot is free, `others` those that run now and are not of this `run`, `out_of_time` whether
    `max_seconds` ended the start before the total. What was imported never ran, and may still be the best.
    `is_any_waiting`: of all trials, whoever put it there, as of the last count.
    """

    run: str = ""
    total: int = 0
    complete: int = 0
    failed: int = 0
    pruned: int = 0
    others: int = 0
    best: tuple[int, float] | None = None
    running: dict[int, Running] = field(default_factory=dict)
    ready: dict[int, Running] = field(default_factory=dict)
    settled_now: int = 0
    out_of_time: bool = False
    seconds_of_trials: float = 0.0
    started: float = field(default_factory=time.monotonic)
    is_any_waiting: bool = False
    _known: int = 0
    _open: set[int] = field(default_factory=set)

    @property
    def settled(self) -> int:
        """Trials in any final state."""
        return self.complete + self.failed + self.pruned

    @property
    def seconds_per_trial(self) -> float | None:
        """Mean run time of this start's trials."""
        return self.seconds_of_trials / self.settled_now if self.settled_now else None

    @property
    def seconds_left(self) -> float | None:
        """Expected time to the end, by this start's rate; what runs counts by how far it is, by the mean run time."""
        mean = self.seconds_per_trial
        if mean is None:
            return None
        now = time.monotonic()
        under_way = sum(min(1.0, (now - running.since) / mean) for running in self.running.values() if mean > 0)
        done = self.settled_now + under_way
        return max(0.0, self.total - self.settled - under_way) * (now - self.started) / done

    @property
    def seconds_left_of_running(self) -> float | None:
        """Expected time until the trials that run now have ended, by the mean of this start's."""
        mean = self.seconds_per_trial
        if mean is None or not self.running:
            return None
        return max(0.0, mean - (time.monotonic() - max(running.since for running in self.running.values())))

    def note_lines(self, lines: Mapping[int, str]) -> None:
        """Note what the trials that run have printed last, by number."""
        for number, line in lines.items():
            if number in self.running:
                self.running[number].last_line = line

    def saw(self, seconds: float) -> None:
        """Count a trial of this start that has ended after so long."""
        self.settled_now += 1
        self.seconds_of_trials += seconds

    def has_lasted(self, seconds: float | None) -> bool:
        """Whether this start has lasted for so long; with None it never has."""
        return seconds is not None and time.monotonic() - self.started >= seconds

    def say_end(self, limits: Limits, *, interrupted: bool) -> None:
        """Note and say what is left at the end of a start, and why."""
        if self.has_lasted(limits.max_seconds) and self.settled < self.total:
            self.out_of_time = True
            if not interrupted:
                log.warning("max_time is over with %d of %d trials; the same line goes on", self.settled, self.total)
        if self.others:
            log.info("%d trials of other drivers still run", self.others)

    def count(self, study: optuna.Study) -> None:
        """Count the trials that have ended since the last time, of whichever driver, and those that have not.

        What has ended stays as it is, so each trial is counted once: beside the reading, which the storage keeps short,
        it takes as long as there are new trials and such as run.
        """
        trials = study.get_trials(deepcopy=False)
        self._know(len(trials))
        self.others, self.is_any_waiting = 0, False
        for number in sorted(self._open):
            trial = trials[number]  # Optuna numbers them from 0 without gaps, and lists them so
            if trial.state.is_finished():
                self._count_ended(study, trial)
            elif trial.state == TrialState.WAITING:
                self.is_any_waiting = True
            else:
                self.others += owner(trial) != self.run

    def count_told(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Count a trial that has been told, without a look at the others."""
        self._know(trial.number + 1)
        if trial.number in self._open:
            self._count_ended(study, trial)

    def _know(self, trials: int) -> None:
        self._open.update(range(self._known, trials))
        self._known = max(self._known, trials)

    def _count_ended(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._open.remove(trial.number)
        if not is_rejected(trial) and not is_imported(trial):
            self.complete += trial.state == TrialState.COMPLETE
            self.failed += trial.state == TrialState.FAIL
            self.pruned += trial.state == TrialState.PRUNED
        if len(study.directions) == 1 and is_feasible(trial):
            sign = 1 if study.directions[0] == optuna.study.StudyDirection.MINIMIZE else -1
            found = (trial.number, trial.values[0])
            self.best = min(filter(None, (self.best, found)), key=lambda pair: (sign * pair[1], pair[0]))
