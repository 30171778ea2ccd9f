"""Ask, submit, tell: the main thread of a study, and nothing else asks or tells.

A result is committed to the journal before the study is told, so a crash in between loses nothing: the next start
tells it. What a fault of the machine interrupted is never told as a fault of the design: its trial goes back to WAITING
and is the next to be asked, with the same number and parameters.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.errors import (
    AttemptLost,
    BudgetSpent,
    ConnectionLost,
    DiskFull,
    LeaseLost,
    RunnerError,
    TrialFailed,
)
from persistent_runner.study.ahead import Ahead
from persistent_runner.study.committed import Results
from persistent_runner.study.failures import judge, kind_of, told
from persistent_runner.study.fuse import Fuse
from persistent_runner.study.outbox import Outbox
from persistent_runner.study.progress import Progress, Running
from persistent_runner.study.proposals import Proposals, StudyFailed
from persistent_runner.study.resume import give_back, settle_earlier
from persistent_runner.study.returned import outcome_of
from persistent_runner.study.slots import Slots
from persistent_runner.study.standby import Standby
from persistent_runner.study.starts import Starts
from persistent_runner.study.stopping import STOP_SECONDS, Stopping
from persistent_runner.study.tenure import Tenure

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.study.design import DesignSpace
    from persistent_runner.study.failures import FailuresTable
    from persistent_runner.study.keeping import Keeping
    from persistent_runner.study.machines import Machines
    from persistent_runner.study.pilot import Pilot
    from persistent_runner.study.progress import Limits
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

TURN_SECONDS = 0.5
REJECTED_A_TURN = 20  # designs that are not allowed, each of which costs an ask


class Loop:
    """One start of a study.

    With `designs` the main thread asks for all parameters (study.toml); without, the objective suggests them itself.
    An exception of the objective's own ends the study unless it is in `catch`. `on_turn` is called at least twice a
    second. With a `pilot` one trial runs alone until one is complete. `failures` are the rules for failures,
    `keeping` for outputs. So many trials are `ahead`: asked for while all slots are taken, and queued by the machines.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Callable[[optuna.Trial, Any], object],
        *,
        machines: Machines,
        folder: RunFolder,
        limits: Limits,
        interrupts: Interrupts,
        designs: DesignSpace | None = None,
        catch: tuple[type[Exception], ...] = (),
        on_turn: Callable[[Progress], None] = lambda _: None,
        pilot: Pilot | None = None,
        failures: FailuresTable | None = None,
        ahead: int | Literal["auto"] = 0,
        keeping: Keeping | None = None,
    ) -> None:
        self._study = study
        self._machines = machines
        self._folder = folder
        self._limits = limits
        self._interrupts = interrupts
        self._suggests_itself = designs is None
        self._proposals = Proposals(study, folder, designs)
        self._tenure = Tenure(machines.left)
        self._catch = catch
        self._on_turn = on_turn
        self._running: dict[int, Running] = {}
        self._failures = failures
        self._given_up = 0  # trials that were lost too often
        self._fuse = Fuse(limits.max_consecutive_failures)
        self._fatal: BaseException | None = None
        self._stopping = Stopping(interrupts, machines.stop_running)
        self.progress = Progress(running=self._running, run=folder.run_id)
        self._ahead = Ahead(ahead, machines)
        self._starts = Starts(
            objective,
            machines,
            folder,
            self.progress,
            no_room=self._wait_for_room,
            is_full=lambda number: self._slots.is_full(number),  # noqa: PLW0108 - they come later
        )
        self._standby = Standby(machines.most_idle, start=self._starts.start_again, give_back=self._give_back)
        self._outbox = Outbox(study, self.progress, machines.most_idle)
        self._results = Results(folder, self._outbox, machines, keeping)
        self._slots = Slots(
            study,
            self.progress,
            limits,
            machines,
            standby=self._standby,
            outbox=self._outbox,
            tenure=self._tenure,
            ahead=self._ahead,
            pilot=pilot,
            is_ending=lambda: self._is_ending,
            is_behind=lambda: self._results.outputs.is_behind,
        )

    def run(self) -> Progress:
        """Run until the total is settled, a limit is met, or an interrupt; raise what ended the study early."""
        self._starts.attempts = settle_earlier(self._study, self._folder)
        progress, limits = self.progress, self._limits
        progress.count(self._study)
        progress.total = limits.total or progress.settled + progress.others + (limits.more or 0)
        try:
            while self._turn():
                self._on_turn(progress)
        except BaseException:
            # Leave, or a bug: the attempts that run are lost, their trials are not.
            self._give_all_back()
            self._results.outputs.close()
            raise
        self._on_turn(progress)
        for running in progress.ready.values():  # the end came in the middle of a turn
            self._give_back(running)
        self._results.outputs.finish(self._interrupts, lambda: self._on_turn(progress))
        if self._fatal is not None:
            raise self._fatal
        progress.say_end(limits, interrupted=bool(self._interrupts.count))
        return progress

    # -- one turn

    def _turn(self) -> bool:
        """Settle what ended, start what may start; return whether there is more to do."""
        self._stopping.heed(self.progress, ending=self._fatal is not None)
        self._outbox.deliver()
        self._results.outputs.turn()
        if not self._slots.may_be_ahead:
            self._starts.withdraw()
        self._renew_where_needed()
        while self._is_ending and self.progress.ready:
            self._give_back(self.progress.ready.popitem()[1])
        if not self._running or not self._tenure.has_ended:  # nothing starts beside what is being stopped
            ended = self._standby.turn(is_ending=self._is_ending, is_idle=not self._running)
            self._fatal = self._fatal or ended
        self._start()
        if not (self._running or self._starts.sent):
            may_start = bool(self.progress.ready) and self._slots.is_free()
            return self._waits() or may_start or self._slots.may_ask or self._slots.needs_another_cluster
        self._ahead.waits()
        done = self._starts.wait(TURN_SECONDS)
        self._ahead.wakes(len(done))
        self._settle_ended(done)
        if self._stopping.takes_too_long(self.progress):
            self._give_all_back()
        self._outbox.deliver()
        return True

    def _start(self) -> None:
        """Start what is ready and may start, ask for more, and send ahead what begins later."""
        while self._starts.unsent and self._slots.is_free():
            self._starts.start_ready()
        most = self._proposals.rejected + REJECTED_A_TURN
        while self._slots.may_ask and self._proposals.rejected < most and self._outbox.stored(self._ask):
            pass
        if self._slots.may_be_ahead:
            self._starts.send_ready()

    def _settle_ended(self, done: set[Future[Any]]) -> None:
        # what ended with a result frees its slot for good, before that is on the disk
        well = sum(future.exception() is None for future in done)
        while well and self._starts.unsent and self._slots.is_free(well):
            self._starts.start_ready()
        for number, running in list(self._running.items()):
            if running.future in done:
                # A result that cannot be committed must leave its trial among those that are given back.
                try:
                    self._take(running)
                except DiskFull as full:
                    self._wait_for_room(running, full)
                if self._running.get(number) is running:
                    del self._running[number]
            else:
                self._note_parameters(running)

    def _renew_where_needed(self) -> None:
        """Stop what runs on a cluster that ends now; once nothing runs there, go on with another one."""
        tenure = self._tenure
        if self._running:
            if tenure.left() <= 0 and not tenure.has_ended:
                tenure.end()
                log.warning("The cluster ends now: stopping what runs on it; it starts again on the next one.")
                self._machines.stop_running()
            elif tenure.seconds_over > STOP_SECONDS and self._fatal is None:
                self._fatal = StudyFailed(f"trial {min(self._running)} goes on {STOP_SECONDS} s after its cluster")
            return
        self._take_saved()
        if self._slots.needs_another_cluster:
            self._renew()
            self._take_saved()  # what the end of the old one has brought to light
        for running in tenure.take_lost():
            if self._is_ending:
                self._give_back(running)
            else:
                self._starts.start_again(running)

    def _take_saved(self) -> None:
        """Commit what ended while nobody heard of it, on a cluster that is lost; the rest runs again."""
        lost = self._tenure.lost
        if self._is_ending or not lost:
            return
        try:
            saved = self._machines.saved({running.trial.number: running.trial for running in lost})
            for running in [running for running in lost if running.trial.number in saved]:
                found = saved[running.trial.number]
                self._commit(running, TrialState.COMPLETE, found.seconds, outcome=found.outcome)
                lost.remove(running)
        except DiskFull as full:  # the next start fetches it again; on another cluster it would run again
            self._fatal = full
        self._outbox.deliver()  # whether another cluster is needed depends on it

    @property
    def _is_ending(self) -> bool:
        over = self.progress.out_of_time or self.progress.has_lasted(self._limits.max_seconds)
        return over or self._fatal is not None or bool(self._interrupts.count)

    def _renew(self) -> None:
        """Go on with another cluster, or note why there is none."""
        try:
            self._tenure.renew(self._machines.renew, self.progress.settled_now - self._given_up)
        except BudgetSpent as error:
            log.warning("%s", error)
            self.progress.out_of_time = True
        except KeyboardInterrupt:
            if not self._interrupts.count:
                raise
        except RunnerError as error:
            self._fatal = error

    def _ask(self) -> None:
        """Ask for a trial and start it, or make it ready where no slot is free."""
        found = self._proposals.next(is_any_waiting=self.progress.is_any_waiting)
        if found is not None:
            crash_point("asked")
            self._slots.asked += 1
            (self._starts.start if self._slots.is_free() else self._starts.make_ready)(*found)

    def _wait_for_room(self, running: Running, full: DiskFull) -> None:
        """Begin the same attempt anew when this machine has room: what has ended on the cluster is joined there."""
        self._starts.attempts.stays(running.trial.number, running.attempt, running.where)
        self._standby.wait_for_room(running, full, is_ending=self._is_ending)

    # -- the end of an attempt

    def _take(self, running: Running) -> None:
        """Commit what came of an attempt, or give its trial another one; DiskFull where that finds no room here."""
        number = running.trial.number
        seconds = time.monotonic() - running.since
        try:
            returned, seconds = running.future.result()
            outcome = outcome_of(returned, len(self._study.directions), number)
        except optuna.TrialPruned as pruned:
            self._commit(running, TrialState.PRUNED, seconds, failure=str(pruned))
        except TrialFailed as error:
            self._settle_failed(running, error, seconds)
        except (AttemptLost, LeaseLost, ConnectionLost) as error:
            self._again(running, error, seconds)
        except DiskFull:
            raise
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

    def _settle_failed(self, running: Running, error: TrialFailed, seconds: float) -> None:
        """Tell a failure of the design; what is none runs again, and the first trial's ends the start."""
        number = running.trial.number
        folder = self._folder.path / f"trials/{number:05d}"
        verdict = judge(error, folder, self._failures)
        message, remedy = told(error, number, folder)
        if self._standby.takes(running, verdict, message, together=self._slots.at_work, is_ending=self._is_ending):
            return
        pilot = self._slots.pilot
        if verdict.action == "fail" and (ended := pilot and pilot.ends(number, running.attempt, error)):
            self._give_back(running)
            self._fatal = self._fatal or ended
            return
        self._fuse.say(number, message, remedy)
        infeasible = verdict.action == "infeasible"
        self._commit(
            running,
            TrialState.PRUNED if infeasible else TrialState.FAIL,
            seconds,
            failure=f"{verdict.kind}: {message}",
            constraints={"failure": 1.0} if infeasible else {},
        )
        if not infeasible:
            self._blow_fuse(message, remedy)

    def _again(self, running: Running, error: RunnerError, seconds: float) -> None:
        number = running.trial.number
        if isinstance(error, AttemptLost) and not error.has_begun:
            if self._is_ending:
                self._give_back(running)
            else:
                self._starts.make_ready(running.trial, running.params)
            return
        is_last = not self._standby.may_try_again(number)
        if self._interrupts.count or self._fatal is not None:
            self._give_back(running)
        elif is_last:
            lost = self._standby.losses(number)
            log.warning("trial %d was lost %d times and counts as failed: %s", number, lost, error.message)
            self._commit(
                running, TrialState.FAIL, seconds, failure=f"{kind_of(error)}: lost {lost} times: {error.message}"
            )
            self._given_up += 1
            self._tenure.has_ended |= not isinstance(error, AttemptLost)
            self._blow_fuse(error.message, error.remedy)
        elif self._tenure.has_ended or not isinstance(error, AttemptLost):
            if not self._tenure.has_ended:
                log.warning("%s", error)
            self._tenure.lose(running, seconds)
        else:
            log.warning("%s; trying again", error.message)
            self._starts.start_again(running)

    def _note_parameters(self, running: Running) -> None:
        if self._suggests_itself:
            with contextlib.suppress(StorageInternalError):
                running.params = running.trial.params

    def _blow_fuse(self, message: str, remedy: str = "") -> None:
        self._fatal = self._fatal or self._fuse.blown(message, remedy)

    def _commit(self, running: Running, state: TrialState, seconds: float, **result: Any) -> None:
        """Write a result to the disk: from here on it is never lost and its trial never runs again."""
        self._note_parameters(running)
        self._results.commit(running, state, seconds, **result)
        self._fuse.saw(state)
        self._standby.saw_an_end()
        self._tenure.saw(seconds)
        self._ahead.ran(seconds)
        self.progress.saw(seconds)

    def _waits(self) -> bool:
        """Return False where nothing is to be waited for: a storage that is away, the next try of a trial, outputs."""
        away = self._fatal is None and self._outbox.is_away(leaving=bool(self._interrupts.count))
        if not (away or self._standby or (self._results.outputs.is_behind and not self._is_ending)):
            return False
        self._interrupts.asked.wait(TURN_SECONDS)
        return True

    def _give_back(self, running: Running) -> None:
        self._outbox.stored(lambda: give_back(self._study, running.trial, self._folder))

    def _give_all_back(self) -> None:
        under_way = [*self._running.values(), *self.progress.ready.values()]
        for running in [*under_way, *self._tenure.take_lost(), *self._standby.take_all()]:
            if running.trial.number not in self._outbox:  # it has its result
                with contextlib.suppress(Exception):
                    self._give_back(running)
        self._running.clear()
        self.progress.ready.clear()
