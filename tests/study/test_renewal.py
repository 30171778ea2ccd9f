"""The loop when its cluster is lost or ends: the same trials go on with the next one, and nothing is told."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import AttemptLost, BudgetSpent, ConnectionLost, JobStopped, LeaseLost
from persistent_runner.interrupts import Interrupts
from persistent_runner.study import loop as loop_module
from persistent_runner.study.progress import Limits, Progress
from persistent_runner.study.proposals import StudyFailed
from persistent_runner.study.standby import ATTEMPTS
from tests.study.test_loop import DEADLINE, Threads, a_loop, failures, press, states, value_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

    from persistent_runner.study.loop import Loop
    from persistent_runner.study.run_folder import RunFolder


class Clusters(Threads):
    """One place after the other; `left` is what the present one has, `renewals` what was asked for and when."""

    def __init__(self, *lefts: float) -> None:
        super().__init__()
        self._lefts = iter(lefts)
        self.left = next(self._lefts, 3600.0)
        self.renewals: list[tuple[int, list[tuple[int, int]]]] = []
        self.needs: list[float] = []
        self.on_renew: Callable[[], None] = lambda: None

    def renew(self, finished: int, needs: float) -> None:
        self.renewals.append((finished, list(self.attempts)))
        self.needs.append(needs)
        self.on_renew()
        self.stopped.clear()
        self.left = next(self._lefts, 3600.0)

    @property
    def where(self) -> str:
        return f"cluster {len(self.renewals)}"

    def loop(self, study: optuna.Study, folder: RunFolder, objective: Callable[..., Any], **changes: Any) -> Loop:
        options = {"renew": self.renew, "place": lambda *_: self.where, "left": lambda: self.left}
        return a_loop(study, folder, objective, threads=self, **(options | changes))


def lost_once(error: Exception) -> Callable[[optuna.Trial, Clusters], float]:
    """Return an objective whose first two trials end with the first cluster, both at once."""
    both = threading.Barrier(2)

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if not work.renewals:
            both.wait(DEADLINE)
            raise error
        return value_of(trial, work)

    return objective


@pytest.mark.parametrize("error", [LeaseLost("job abc ended"), ConnectionLost("refused")], ids=["lease", "connection"])
def test_what_a_cluster_takes_along_goes_on_with_the_next_one(error, stored, folder, caplog) -> None:
    """One renewal for all that was lost, the same trials in new attempts, and the study is told nothing (row L11)."""
    clusters = Clusters()
    progress = clusters.loop(stored, folder, lost_once(error), limits=Limits(3)).run()

    assert clusters.renewals == [(0, [(0, 1), (1, 1)])]
    assert sorted(clusters.attempts[2:4]) == [(0, 2), (1, 2)]
    assert clusters.attempts[4:] == [(2, 1)]
    assert (states(stored), failures(stored)) == (["COMPLETE"] * 3, [""] * 3)
    assert progress.settled == 3
    assert str(error) in caplog.text


def test_a_renewal_waits_until_all_that_ran_has_ended(stored, folder) -> None:
    """A cluster is given up when its last trial has ended, and meanwhile no trial starts on it."""
    clusters, lost = Clusters(), threading.Event()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if trial.number == 0 and not work.renewals:
            lost.set()
            raise LeaseLost("job abc ended")
        if trial.number == 1:
            assert lost.wait(DEADLINE)
            assert seen.wait(DEADLINE)
        return value_of(trial, work)

    seen = threading.Event()

    def on_turn(progress: Any) -> None:
        if lost.is_set() and list(progress.running) == [1]:
            seen.set()

    clusters.loop(stored, folder, objective, limits=Limits(4), on_turn=on_turn).run()

    assert clusters.renewals == [(1, [(0, 1), (1, 1)])]
    assert clusters.attempts[2] == (0, 2)
    assert states(stored) == ["COMPLETE"] * 4


def test_a_spent_budget_ends_the_start_and_loses_no_trial(stored, folder, caplog) -> None:
    """Nothing is left for another cluster: the start ends as one whose time is over, its lost trials wait."""
    clusters = Clusters()

    def spent() -> None:
        raise BudgetSpent("max_cost = 4 is used up")

    clusters.on_renew = spent
    progress = clusters.loop(stored, folder, lost_once(LeaseLost("gone"))).run()

    assert progress.out_of_time
    assert len(clusters.renewals) == 1
    assert states(stored) == ["WAITING", "WAITING"]
    assert "max_cost = 4 is used up" in caplog.text


@pytest.mark.parametrize(
    "error",
    [JobStopped("somebody stopped job abc"), LeaseLost("3 leases ended without a finished trial.")],
    ids=["stopped by somebody else", "breaker"],
)
def test_an_error_of_the_renewal_ends_the_start(error, stored, folder) -> None:
    """A job that somebody stopped is not replaced, and clusters that die each time end (rows L15, L18): exit code 1."""
    clusters = Clusters()

    def refuse() -> None:
        raise error

    clusters.on_renew = refuse
    with pytest.raises(type(error)) as caught:
        clusters.loop(stored, folder, lost_once(LeaseLost("gone"))).run()

    assert caught.value is error
    assert error.exit_code == 1
    assert len(clusters.renewals) == 1
    assert states(stored) == ["WAITING", "WAITING"]


def test_a_job_that_somebody_stopped_ends_the_start_from_within_a_trial(stored, folder) -> None:
    """Heard from the machines themselves, it is no reason for another cluster either (row L15)."""
    clusters = Clusters()
    with pytest.raises(JobStopped):
        clusters.loop(stored, folder, lost_once(JobStopped("somebody stopped job abc"))).run()

    assert clusters.renewals == []
    assert states(stored) == ["WAITING", "WAITING"]


def test_no_trial_starts_that_cannot_end_before_its_cluster(stored, folder) -> None:
    """By the run times seen a next trial would be cut: the cluster is renewed, when nothing runs on it (row L12)."""
    clusters = Clusters(3600.0)
    counter = itertools.count(1)

    def objective(trial: optuna.Trial, work: Clusters) -> tuple[object, float] | float:
        if next(counter) == 2:
            work.left = 1e-9  # less than any trial has taken
        return value_of(trial, work)

    clusters.loop(stored, folder, objective, limits=Limits(4), capacity=1).run()

    assert [(finished, len(begun)) for finished, begun in clusters.renewals] == [(2, 2)]
    assert clusters.needs[0] > 0
    assert clusters.attempts == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert states(stored) == ["COMPLETE"] * 4


def test_nothing_is_leased_for_nothing(stored, folder) -> None:
    """A cluster that ends with the last trial is not replaced."""
    clusters = Clusters()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        work.left = 1e-9
        return value_of(trial, work)

    clusters.loop(stored, folder, objective, limits=Limits(1), capacity=1).run()
    assert clusters.renewals == []


def test_what_runs_when_the_cluster_ends_is_stopped_and_goes_on(stored, folder, caplog) -> None:
    """A trial that is longer than all before it: stopped while the cluster still answers, run anew on the next one."""
    clusters = Clusters()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if not work.renewals:
            work.left = 0.0
            work.wait_for_stop()
        return value_of(trial, work)

    clusters.loop(stored, folder, objective, limits=Limits(2), capacity=1).run()

    assert clusters.renewals == [(0, [(0, 1)])]
    assert clusters.attempts == [(0, 1), (0, 2), (1, 1)]
    assert states(stored) == ["COMPLETE"] * 2
    assert "starts again on the next one" in caplog.text


def test_a_trial_longer_than_a_whole_lease_is_an_error(stored, folder) -> None:
    """What had all of a cluster's time and needs more is not tried on one as short: the message says what to raise."""
    clusters = Clusters(3600.0, 1e-9)

    def objective(_trial: optuna.Trial, work: Clusters) -> None:
        work.left = 0.0
        work.wait_for_stop()

    with pytest.raises(StudyFailed, match="a new cluster ends after") as caught:
        clusters.loop(stored, folder, objective, capacity=1).run()

    assert "Raise walltime" in caught.value.remedy
    assert clusters.attempts == [(0, 1)]
    assert states(stored) == ["WAITING"]


def test_trials_that_take_longer_than_a_new_cluster_are_an_error(stored, folder) -> None:
    """The same by the run times of those that ended."""
    clusters = Clusters(3600.0, 1e-9)

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        work.left = 1e-9
        return value_of(trial, work)

    with pytest.raises(StudyFailed, match="a trial takes"):
        clusters.loop(stored, folder, objective, capacity=1).run()
    assert len(clusters.renewals) == 1


def test_a_trial_that_is_lost_with_each_cluster_fails_at_the_cap(stored, folder) -> None:
    """Whatever kills its machine each time is told as a failure in the end, and says of what class."""
    clusters = Clusters()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if trial.number == 0:
            raise LeaseLost("the node died")
        return value_of(trial, work)

    clusters.loop(stored, folder, objective, limits=Limits(2), capacity=1).run()

    assert clusters.attempts == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert [finished for finished, _ in clusters.renewals] == [0, 0, 0]  # it counts as no fruit of its cluster
    assert states(stored) == ["FAIL", "COMPLETE"]
    assert failures(stored)[0] == f"preempted: lost {ATTEMPTS} times: the node died"


@pytest.mark.parametrize("presses", [1, 2])
def test_an_interrupt_during_a_renewal_ends_it_at_once(presses, stored, folder) -> None:
    """Who presses Ctrl-C while a new cluster is waited for does not wait for it; the lost trials wait instead."""
    clusters = Clusters()

    with Interrupts() as interrupts:

        def interrupted() -> None:
            interrupts._handle(2, None)
            assert interrupts.asked.is_set()  # which ends the lease's waits
            raise KeyboardInterrupt

        clusters.on_renew = interrupted
        if presses == 2:
            press(interrupts)  # the first one came while the trials still ran
        clusters.loop(stored, folder, lost_once(LeaseLost("gone")), interrupts=interrupts).run()
        assert interrupts.count == 1

    assert len(clusters.renewals) == (1 if presses == 1 else 0)
    assert "COMPLETE" not in states(stored)
    assert "FAIL" not in states(stored)


def test_a_renewal_after_max_time_is_not_asked_for(stored, folder) -> None:
    """The start's own time is over when the cluster is lost: its trials wait for the next start, nothing is leased."""
    clusters, both, over = Clusters(), threading.Barrier(2), threading.Event()

    def objective(_trial: optuna.Trial, _work: Clusters) -> None:
        both.wait(DEADLINE)
        assert over.wait(DEADLINE)
        raise LeaseLost("gone")

    def on_turn(progress: Progress) -> None:
        if len(progress.running) == 2:
            progress.started = time.monotonic() - limits.max_seconds - 1
            over.set()

    limits = Limits(4, max_seconds=3600)
    assert clusters.loop(stored, folder, objective, limits=limits, on_turn=on_turn).run().out_of_time

    assert clusters.renewals == []
    assert states(stored) == ["WAITING", "WAITING"]


def left_running(stored: optuna.Study, folder: RunFolder, where: str) -> None:
    """Leave what a killed driver leaves: a trial that runs, and in the journal where."""

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> Any:
        raise KilledError

    clusters = Clusters()
    loop = clusters.loop(stored, folder, value_of, place=lambda *_: where)
    loop._starts._machines = dataclasses.replace(loop._machines, submit=killed)
    loop._give_all_back = lambda: None  # a killed driver gives nothing back
    with pytest.raises(KilledError):
        loop.run()
    assert states(stored) == ["RUNNING"]


def test_an_attempt_on_the_same_machines_is_joined_after_a_restart(stored, folder) -> None:
    """The same attempt number is asked for where an earlier start has left it, and once only."""
    left_running(stored, folder, "job-a head 1")
    before = stored.trials[0].params
    clusters = Clusters()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if len(work.attempts) == 1:
            raise AttemptLost("its command was gone")
        return value_of(trial, work)

    clusters.loop(stored, folder, objective, place=lambda *_: "job-a head 1", capacity=1, limits=Limits(2)).run()

    assert clusters.attempts == [(0, 1), (0, 2), (1, 1)]
    assert stored.trials[0].params == before


@pytest.mark.parametrize("where", ["job-a head 2", "job-b head 1", ""], ids=["re-launched", "another job", "unknown"])
def test_on_other_machines_the_trial_gets_a_new_attempt(where, stored, folder) -> None:
    """What ran elsewhere cannot be joined: the next attempt has the next number."""
    left_running(stored, folder, "job-a head 1" if where else "")
    clusters = Clusters()
    clusters.loop(stored, folder, value_of, place=lambda *_: where, capacity=1, limits=Limits(1)).run()
    assert clusters.attempts == [(0, 2)]


def test_an_objective_that_computes_past_the_end_of_its_cluster(stored, folder, monkeypatch) -> None:
    """It hears of no stop: the study ends, so that the cluster is released and nothing is overspent (row U6)."""
    monkeypatch.setattr(loop_module, "STOP_SECONDS", 0.2)
    clusters, over = Clusters(), threading.Event()

    def objective(_trial: optuna.Trial, _work: Clusters) -> float:
        clusters.left = 0.0
        assert over.wait(DEADLINE)
        return 1.0

    with pytest.raises(StudyFailed, match=r"trial 0 goes on 0\.2 s after its cluster"):
        clusters.loop(stored, folder, objective, capacity=1).run()
    over.set()
    assert clusters.renewals == []
    assert states(stored) == ["WAITING"]
