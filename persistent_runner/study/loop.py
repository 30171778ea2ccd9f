"""Ask, submit, tell: the main thread of a study, and nothing else asks or tells.

A result is committed to the journal before the study is told, so a crash in between loses nothing: the next start
tells it. What a fault of the machine interrupted is never told as a fault of the design: its trial goes back to WAITING
and is the next to be asked, with the same number and parameters.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from persistent_runner.duration import format_duration
from persistent_runner.errors import AttemptLost, ResultMissing, RunnerError, TrialFailed
from persistent_runner.study.objective import Outcome
from persistent_runner.study.results import USER_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from optuna.distributions import BaseDistribution

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

ATTEMPTS = 3  # tries of one trial before a machine's fault is told as FAIL
TURN_SECONDS = 0.5


@dataclass
class Running:
    """A trial under way."""

    trial: optuna.Trial
    attempt: int
    future: Future[Any]
    since: float = field(default_factory=time.monotonic)


@dataclass
class Progress:
    """How far a study is, for whoever shows it. `best` is (number, value) of one objective, else None."""

    total: int
    complete: int = 0
    failed: int = 0
    pruned: int = 0
    best: tuple[int, float] | None = None
    running: dict[int, Running] = field(default_factory=dict)
    settled_now: int = 0
    seconds_of_trials: float = 0.0
    started: float = field(default_factory=time.monotonic)

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
        """Expected time to the end, by this start's rate."""
        if not self.settled_now:
            return None
        return (self.total - self.settled) * (time.monotonic() - self.started) / self.settled_now


@dataclass(frozen=True)
class Limits:
    """When to stop asking: `total` settled trials over all starts, seconds of this start, failures in a row."""

    total: int
    max_seconds: float | None = None
    max_consecutive_failures: int | None = None


class StudyFailed(RunnerError):
    """The fuse blew: too many trials failed in a row."""


class Loop:
    """One start of a study.

    `submit(number, attempt, task)` runs `task(workdir)` somewhere and gives a future. With `distributions` the main
    thread asks for all parameters (study.toml); without, the objective suggests them itself. An exception of the
    objective's own ends the study unless it is in `catch`. `on_turn` is called at least twice a second.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Callable[[optuna.Trial, Any], object],
        *,
        submit: Callable[[int, int, Callable[[Any], Any]], Future[Any]],
        capacity: int,
        stop_running: Callable[[], None],
        folder: RunFolder,
        limits: Limits,
        interrupts: Interrupts,
        distributions: Mapping[str, BaseDistribution] | None = None,
        node: str = "",
        catch: tuple[type[Exception], ...] = (),
        on_turn: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._study = study
        self._objective = objective
        self._submit = submit
        self._capacity = capacity
        self._stop_running = stop_running
        self._folder = folder
        self._limits = limits
        self._interrupts = interrupts
        self._distributions = dict(distributions) if distributions is not None else None
        self._node = node
        self._catch = catch
        self._on_turn = on_turn
        self._running: dict[int, Running] = {}
        self._failures_in_a_row = 0
        self._fatal: BaseException | None = None
        self._stopped = False
        self._attempts: dict[int, int] = {}
        self.progress = Progress(limits.total)

    def run(self) -> Progress:
        """Run until the total is settled, a limit is met, or an interrupt; raise what ended the study early."""
        self._settle_earlier()
        self._count()
        try:
            while self._turn():
                self._on_turn(self.progress)
        except BaseException:
            # Leave, or a bug: the attempts that run are lost, their trials are not.
            for running in self._running.values():
                with contextlib.suppress(Exception):
                    self._give_back(running.trial)
            raise
        self._on_turn(self.progress)
        if self._fatal is not None:
            raise self._fatal
        return self.progress

    # -- one turn

    def _turn(self) -> bool:
        """Settle what ended, start what may start; return whether there is more to do."""
        if self._interrupts.count >= 2 or self._fatal is not None:
            self._stop_once()
        while self._may_ask():
            self._start(self._ask(), None)
        if not self._running:
            return False
        done, _ = concurrent.futures.wait(
            [running.future for running in self._running.values()],
            TURN_SECONDS,
            concurrent.futures.FIRST_COMPLETED,
        )
        for number, running in list(self._running.items()):
            if running.future in done:
                del self._running[number]
                self._settle(running)
        self.progress.running = dict(self._running)
        return True

    def _may_ask(self) -> bool:
        progress, limits = self.progress, self._limits
        if self._fatal is not None or self._interrupts.count or len(self._running) >= self._capacity:
            return False
        if limits.max_seconds is not None and time.monotonic() - progress.started >= limits.max_seconds:
            return False
        return progress.settled + len(self._running) < limits.total

    def _ask(self) -> optuna.Trial:
        trial = self._study.ask(self._distributions)
        trial.set_user_attr(USER_ATTRIBUTE, {"run": self._folder.run_id})
        return trial

    def _start(self, trial: optuna.Trial, after: int | None) -> None:
        """Start the next attempt of a trial."""
        number = trial.number
        attempt = (after if after is not None else self._attempts.get(number, 0)) + 1
        self._attempts[number] = attempt
        self._folder.commit(kind="attempt", trial=number, attempt=attempt)
        self._folder.event("start", trial=number, attempt=attempt, params=trial.params)
        task = self._task(trial)
        self._running[number] = Running(trial, attempt, self._submit(number, attempt, task))
        self.progress.running = dict(self._running)

    def _task(self, trial: optuna.Trial) -> Callable[[Any], tuple[object, float]]:
        objective = self._objective

        def task(workdir: Any) -> tuple[object, float]:
            begun = time.monotonic()
            return objective(trial, workdir), time.monotonic() - begun

        return task

    def _stop_once(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._stop_running()

    # -- the end of an attempt

    def _settle(self, running: Running) -> None:
        """Commit and tell what came of an attempt, or give its trial another one."""
        number = running.trial.number
        seconds = time.monotonic() - running.since
        try:
            returned, seconds = running.future.result()
            outcome = _outcome(returned, len(self._study.directions))
        except optuna.TrialPruned as pruned:
            self._commit(running, TrialState.PRUNED, seconds, failure=str(pruned))
        except TrialFailed as error:
            self._commit(running, TrialState.FAIL, seconds, failure=error.message)
            log.warning("%s", error)
            self._blow_fuse(error)
        except AttemptLost as error:
            self._again(running, error, seconds)
        except RunnerError as error:
            # The machine, the lease or the settings: the trial is as good as before and waits for the next start.
            self._give_back(running.trial)
            self._fatal = self._fatal or error
        except self._catch as error:
            self._commit(running, TrialState.FAIL, seconds, failure=f"{type(error).__name__}: {error}")
            log.warning("trial %d: the objective raised %s: %s", number, type(error).__name__, error)
        except BaseException as error:  # noqa: BLE001 - the objective's own; raised again at the end, as Optuna does
            self._commit(running, TrialState.FAIL, seconds, failure=f"{type(error).__name__}: {error}")
            self._fatal = self._fatal or error
        else:
            self._commit(running, TrialState.COMPLETE, seconds, outcome=outcome)
            self._failures_in_a_row = 0

    def _again(self, running: Running, error: AttemptLost, seconds: float) -> None:
        number = running.trial.number
        if self._interrupts.count or self._fatal is not None:
            self._give_back(running.trial)
        elif running.attempt >= ATTEMPTS:
            self._commit(running, TrialState.FAIL, seconds, failure=f"lost {running.attempt} times: {error.message}")
            log.warning("trial %d was lost %d times and counts as failed: %s", number, running.attempt, error.message)
        else:
            log.warning("%s; trying again", error.message)
            self._start(running.trial, running.attempt)

    def _blow_fuse(self, error: TrialFailed) -> None:
        self._failures_in_a_row += 1
        most = self._limits.max_consecutive_failures
        if most is not None and self._failures_in_a_row >= most and self._fatal is None:
            self._fatal = StudyFailed(
                f"{most} trials failed one after another; the last one:\n{error.message}",
                remedy=f"{error.remedy}\nMend the cause and run the same line: it goes on where it stopped.".strip(),
            )

    def _commit(
        self, running: Running, state: TrialState, seconds: float, *, outcome: Outcome | None = None, failure: str = ""
    ) -> None:
        number = running.trial.number
        facts = {
            "run": self._folder.run_id,
            "metrics": outcome.metrics if outcome else {},
            "failure": failure,
            "attempts": running.attempt,
            "seconds": round(seconds, 4),
            "cost": None,
            "node": self._node,
            "folder": f"trials/{number:05d}",
        }
        values = list(outcome.values) if outcome else None
        self._folder.commit(kind="result", trial=number, state=state.name, values=values, facts=facts)
        self._tell(running.trial, state, values, facts)
        self.progress.settled_now += 1
        self.progress.seconds_of_trials += seconds
        self._add(number, state, values)
        self._folder.event("end", trial=number, state=state.name, values=values, seconds=round(seconds, 4))
        told = ", ".join(f"{value:.6g}" for value in values) if values else state.name
        log.info(
            "trial %d: %s after %s  (%d of %d%s)",
            number,
            told,
            format_duration(seconds),
            self.progress.settled,
            self.progress.total,
            f", best {self.progress.best[1]:.6g} in trial {self.progress.best[0]}" if self.progress.best else "",
        )

    def _tell(
        self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None, facts: dict[str, Any]
    ) -> None:
        trial.set_user_attr(USER_ATTRIBUTE, facts)
        self._study.tell(trial, values, state=state, skip_if_finished=True)

    def _give_back(self, trial: optuna.Trial) -> None:
        """Let the next ask give this trial again; a study in memory has no next start, so there it has failed."""
        storage = self._study._storage  # noqa: SLF001 - no public way puts a trial back to WAITING
        if isinstance(storage, optuna.storages.InMemoryStorage):
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        else:
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)  # noqa: SLF001 - the same
        self._folder.event("waiting", trial=trial.number)

    # -- what earlier starts left

    def _settle_earlier(self) -> None:
        """Tell results that were committed and not told; let this run's other unfinished trials run again."""
        results: dict[int, dict[str, Any]] = {}
        for record in self._folder.journal():
            if record["kind"] == "attempt":
                self._attempts[record["trial"]] = record["attempt"]
            elif record["kind"] == "result":
                results[record["trial"]] = record
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.user_attrs.get(USER_ATTRIBUTE, {}).get("run") != self._folder.run_id:
                continue  # another driver's, or somebody else's
            trial = optuna.trial.Trial(self._study, frozen._trial_id)  # noqa: SLF001 - Optuna's own way to rebuild it
            committed = results.get(frozen.number)
            if committed is not None:
                self._tell(trial, TrialState[committed["state"]], committed["values"], committed["facts"])
            else:
                self._give_back(trial)

    def _count(self) -> None:
        for trial in self._study.get_trials(deepcopy=False):
            self._add(trial.number, trial.state, trial.values)

    def _add(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        progress = self.progress
        if state == TrialState.COMPLETE:
            progress.complete += 1
            if values is not None and len(values) == 1:
                better = min if self._study.directions[0] == optuna.study.StudyDirection.MINIMIZE else max
                candidates = [progress.best, (number, values[0])] if progress.best else [(number, values[0])]
                progress.best = better(candidates, key=lambda found: found[1])
        elif state == TrialState.FAIL:
            progress.failed += 1
        elif state == TrialState.PRUNED:
            progress.pruned += 1


def _outcome(returned: object, objectives: int) -> Outcome:
    """Return what an objective returned as values; ResultMissing for anything but finite numbers."""
    if isinstance(returned, Outcome):
        return returned
    values = list(returned) if isinstance(returned, Sequence) and not isinstance(returned, str) else [returned]
    if len(values) != objectives:
        raise ResultMissing(
            f"the objective returned {len(values)} values, the study has {objectives} objectives",
            remedy="Return one number for each direction of the study.",
        )
    return Outcome(tuple(_finite(value) for value in values), {})


def _finite(value: object) -> float:
    if value is None or isinstance(value, bool | str):
        raise ResultMissing(f"the objective returned {value!r}, which is not a number", remedy="Return a float.")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ResultMissing(
            f"the objective returned {value!r}, which is not a number", remedy="Return a float."
        ) from None
    if not math.isfinite(number):
        raise ResultMissing(
            f"the objective returned {number}, which no study can compare",
            remedy="Raise optuna.TrialPruned, or mend the run.",
        )
    return number
