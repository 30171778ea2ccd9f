"""Ask, submit, tell: the main thread of a study, and nothing else asks or tells.

A result is committed to the journal before the study is told, so a crash in between loses nothing: the next start
tells it. What a fault of the machine interrupted is never told as a fault of the design: its trial goes back to WAITING
and is the next to be asked, with the same number and parameters.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from persistent_runner.duration import format_duration
from persistent_runner.errors import AttemptLost, RunnerError, TrialFailed
from persistent_runner.study.progress import Progress, Running
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.resume import give_back, owner, settle_earlier, tell
from persistent_runner.study.returned import outcome_of
from persistent_runner.study.storage import root_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from optuna.distributions import BaseDistribution

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.study.objective import Outcome
    from persistent_runner.study.progress import Limits
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

ATTEMPTS = 3  # tries of one trial in one start before a machine's fault is told as FAIL
TURN_SECONDS = 0.5
STOP_SECONDS = 20  # how long trials that were told to stop may take
AWAY_SECONDS = 600  # how long an idle cluster waits for a storage that does not answer


class StudyFailed(RunnerError):
    """The fuse blew: too many trials failed in a row."""


class StorageAway(RunnerError):
    """The study's storage does not answer; committed results are in the journal and are told by the next start."""


class Loop:
    """One start of a study.

    `submit(number, attempt, task)` runs `task(workdir)` somewhere and gives a future. With `distributions` the main
    thread asks for all parameters (study.toml); without, the objective suggests them itself. An exception of the
    objective's own ends the study unless it is in `catch`. `price` is that of one trial per hour.
    `acknowledge(number, attempt)` is called when a result is on the disk. `on_turn` is called at least twice a second.
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
        price: float | None = None,
        catch: tuple[type[Exception], ...] = (),
        acknowledge: Callable[[int, int], None] = lambda _number, _attempt: None,
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
        self._price = price
        self._catch = catch
        self._acknowledge = acknowledge
        self._on_turn = on_turn
        self._running: dict[int, Running] = {}
        self._outbox: dict[int, tuple[optuna.Trial, TrialState, list[float] | None, dict[str, Any]]] = {}
        self._attempts: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._asked = 0
        self._failures_in_a_row = 0
        self._fatal: BaseException | None = None
        self._heeded = 0
        self._stopped_at: float | None = None
        self._away_since: float | None = None
        self.progress = Progress(running=self._running)

    def run(self) -> Progress:
        """Run until the total is settled, a limit is met, or an interrupt; raise what ended the study early."""
        self._attempts = settle_earlier(self._study, self._folder)
        progress, limits = self.progress, self._limits
        self._count()
        progress.total = limits.total or progress.settled + progress.others + (limits.more or 0)
        try:
            while self._turn():
                self._on_turn(progress)
        except BaseException:
            # Leave, or a bug: the attempts that run are lost, their trials are not.
            self._give_all_back()
            raise
        self._on_turn(progress)
        if self._fatal is not None:
            raise self._fatal
        progress.out_of_time = self._is_out_of_time() and progress.settled < progress.total
        if progress.out_of_time and not self._interrupts.count:
            log.warning(
                "max_time is over with %d of %d trials; the same line goes on", progress.settled, progress.total
            )
        if progress.others:
            log.info("%d trials of other drivers still run", progress.others)
        return progress

    # -- one turn

    def _turn(self) -> bool:
        """Settle what ended, start what may start; return whether there is more to do."""
        self._heed()
        self._deliver()
        while self._may_ask() and self._stored(self._ask):
            pass
        if not self._running:
            return self._wait_for_storage()
        done, _ = concurrent.futures.wait(
            [running.future for running in self._running.values()],
            TURN_SECONDS,
            concurrent.futures.FIRST_COMPLETED,
        )
        for number, running in list(self._running.items()):
            if running.future in done:
                # A result that cannot be committed must leave its trial among those that are given back.
                self._settle(running)
                if self._running.get(number) is running:
                    del self._running[number]
            elif self._distributions is None:
                with contextlib.suppress(StorageInternalError):
                    running.params = running.trial.params
        if self._stopped_at is not None and time.monotonic() - self._stopped_at > STOP_SECONDS and self._running:
            log.warning(
                "%d objectives did not end within %ds of being stopped; going on", len(self._running), STOP_SECONDS
            )
            self._give_all_back()
        self._deliver()
        return True

    def _heed(self) -> None:
        """Do what the interrupts so far ask for, and say so once."""
        count = self._interrupts.count
        if (count >= 2 or self._fatal is not None) and self._stopped_at is None:
            self._stopped_at = time.monotonic()
            if self._running:
                if count >= 2:
                    log.warning("Interrupted: stopping the trials that run. Interrupt again to leave at once.")
                else:
                    log.warning("The study ends: stopping the trials that run.")
            self._stop_running()
        elif count == 1 and self._heeded == 0 and self._running:
            left = self.progress.seconds_left_of_running
            log.warning(
                "Interrupted: no new trials; the %d running may finish%s, then the release. "
                "Interrupt again to stop them, a third time to leave.",
                len(self._running),
                "" if left is None else f" (expected in about {format_duration(round(left))})",
            )
        self._heeded = count

    def _may_ask(self) -> bool:
        progress, more = self.progress, self._limits.more
        if self._fatal is not None or self._interrupts.count or self._outbox or len(self._running) >= self._capacity:
            return False
        if self._is_out_of_time():
            return False
        if more is not None:
            return self._asked < more
        return self._stored(self._count) and progress.settled + progress.others + len(self._running) < progress.total

    def _is_out_of_time(self) -> bool:
        most = self._limits.max_seconds
        return most is not None and time.monotonic() - self.progress.started >= most

    def _count(self) -> None:
        self.progress.count(self._study)

    def _ask(self) -> None:
        """Ask for a trial and start it."""
        ours = {"run": self._folder.run_id}
        if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            # Put in first and taken out by the ask, so that a crash at any moment leaves a trial that is known as ours.
            self._study.enqueue_trial({}, user_attrs={USER_ATTRIBUTE: ours})
        trial = self._study.ask(self._distributions)
        if owner(trial) != self._folder.run_id:
            trial.set_user_attr(USER_ATTRIBUTE, ours)
        params = trial.params
        self._asked += 1
        self._start(trial, params)

    def _start(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        """Start the next attempt of a trial."""
        number = trial.number
        attempt = self._attempts.get(number, 0) + 1
        self._attempts[number] = attempt
        self._folder.commit(kind="attempt", trial=number, attempt=attempt)
        self._folder.event("start", trial=number, attempt=attempt, params=params)
        self._running[number] = Running(trial, attempt, self._submit(number, attempt, self._task(trial)), params)

    def _task(self, trial: optuna.Trial) -> Callable[[Any], tuple[object, float]]:
        objective = self._objective

        def task(workdir: Any) -> tuple[object, float]:
            begun = time.monotonic()
            return objective(trial, workdir), time.monotonic() - begun

        return task

    # -- the end of an attempt

    def _settle(self, running: Running) -> None:
        """Commit what came of an attempt, or give its trial another one."""
        number = running.trial.number
        seconds = time.monotonic() - running.since
        try:
            returned, seconds = running.future.result()
            outcome = outcome_of(returned, len(self._study.directions), number)
        except optuna.TrialPruned as pruned:
            self._commit(running, TrialState.PRUNED, seconds, failure=str(pruned))
        except TrialFailed as error:
            # A reader of files does not know whose they are.
            message = error.message if f"trial {number}" in error.message else f"trial {number}: {error.message}"
            log.warning("%s", "\n".join(filter(None, (message, error.remedy))))
            self._commit(running, TrialState.FAIL, seconds, failure=message)
            self._blow_fuse(message, error.remedy)
        except AttemptLost as error:
            self._again(running, error, seconds)
        except RunnerError as error:
            # The machine, the lease or the settings: the trial is as good as before and waits for the next start.
            self._give_back(running)
            self._fatal = self._fatal or error
        except self._catch as error:
            failure = f"{type(error).__name__}: {error}"
            log.warning("trial %d: the objective raised %s", number, failure)
            self._commit(running, TrialState.FAIL, seconds, failure=failure)
            self._blow_fuse(f"trial {number}: the objective raised {failure}")
        except BaseException as error:  # noqa: BLE001 - the objective's own; raised again at the end, as Optuna does
            self._commit(running, TrialState.FAIL, seconds, failure=f"{type(error).__name__}: {error}")
            if isinstance(error, SystemExit):
                error = StudyFailed(f"trial {number}: the objective called sys.exit({error.code!r})")
            self._fatal = self._fatal or error
        else:
            self._commit(running, TrialState.COMPLETE, seconds, outcome=outcome)

    def _again(self, running: Running, error: AttemptLost, seconds: float) -> None:
        number = running.trial.number
        lost = self._lost[number] = self._lost.get(number, 0) + 1
        if self._interrupts.count or self._fatal is not None:
            self._give_back(running)
        elif lost >= ATTEMPTS:
            log.warning("trial %d was lost %d times and counts as failed: %s", number, lost, error.message)
            self._commit(running, TrialState.FAIL, seconds, failure=f"AttemptLost {lost} times: {error.message}")
            self._blow_fuse(error.message, error.remedy)
        else:
            log.warning("%s; trying again", error.message)
            self._start(running.trial, running.params)

    def _blow_fuse(self, message: str, remedy: str = "") -> None:
        most = self._limits.max_consecutive_failures
        if most is not None and self._failures_in_a_row >= most and self._fatal is None:
            self._fatal = StudyFailed(
                f"{most} trials failed one after another; the last one:\n{message}",
                remedy=f"{remedy}\nMend the cause and run the same line: it goes on where it stopped.".strip(),
            )

    def _commit(
        self, running: Running, state: TrialState, seconds: float, *, outcome: Outcome | None = None, failure: str = ""
    ) -> None:
        """Write a result to the disk: from here on it is never lost and its trial never runs again."""
        number = running.trial.number
        facts = {
            "run": self._folder.run_id,
            "metrics": outcome.metrics if outcome else {},
            "failure": failure,
            "attempts": running.attempt,
            "seconds": round(seconds, 4),
            "cost": None if self._price is None else round(self._price * seconds / 3600, 6),
            "node": self._node,
            "folder": f"trials/{number:05d}",
        }
        values = list(outcome.values) if outcome else None
        if self._distributions is None:
            with contextlib.suppress(StorageInternalError):
                running.params = running.trial.params
        self._folder.commit(
            kind="result", trial=number, state=state.name, values=values, params=running.params, facts=facts
        )
        self._outbox[number] = (running.trial, state, values, facts)
        if state != TrialState.FAIL:  # what a failed one left on the node may say why
            for attempt in range(1, running.attempt + 1):
                self._acknowledge(number, attempt)
        self._failures_in_a_row = self._failures_in_a_row + 1 if state == TrialState.FAIL else 0
        self.progress.settled_now += 1
        self.progress.seconds_of_trials += seconds
        self._folder.event("end", trial=number, state=state.name, values=values, seconds=round(seconds, 4))

    # -- the storage

    def _deliver(self) -> None:
        """Tell what was committed; what a storage does not take stays for the next turn."""
        for number, (trial, state, values, facts) in list(self._outbox.items()):

            def deliver(told: tuple[Any, ...] = (trial, state, values, facts)) -> None:
                tell(self._study, *told)
                self._count()

            if not self._stored(deliver):
                return
            del self._outbox[number]
            shown = ", ".join(f"{value:.6g}" for value in values) if values else state.name
            best = self.progress.best
            log.info(
                "trial %d: %s after %s  (%d of %d%s)",
                number,
                shown,
                format_duration(facts["seconds"]),
                self.progress.settled,
                self.progress.total,
                f", best {best[1]:.6g} in trial {best[0]}" if best else "",
            )

    def _stored(self, call: Callable[[], None]) -> bool:
        """Return whether the storage took a call; the next turn tries again where it does not answer."""
        try:
            call()
        except StorageInternalError as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                log.warning(
                    "the study's storage does not answer (%s); results are kept in the journal", root_cause(error)
                )
            return False
        self._away_since = None
        return True

    def _wait_for_storage(self) -> bool:
        """Return False when all is told; with nothing running wait for a storage that is away, for a while."""
        if self._away_since is None or self._fatal is not None:
            return False
        if self._interrupts.count and not self._outbox:
            return False
        if self._interrupts.count or time.monotonic() - self._away_since > AWAY_SECONDS:
            raise StorageAway(
                f"the study's storage does not answer; {len(self._outbox)} results wait in {self._folder.path}",
                remedy="When it is back run the same line: it tells them and goes on where it stopped.",
            )
        self._interrupts.asked.wait(TURN_SECONDS)
        return True

    def _give_back(self, running: Running) -> None:
        self._stored(lambda: give_back(self._study, running.trial, self._folder))

    def _give_all_back(self) -> None:
        for running in self._running.values():
            with contextlib.suppress(Exception):
                self._give_back(running)
        self._running.clear()
