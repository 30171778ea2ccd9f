"""Trials that are chosen before one ends: they start first, and are nobody's loss where they do not."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import AttemptLost, CommandFailed, LeaseLost, NodeDiskFull
from persistent_runner.interrupts import Interrupts
from persistent_runner.study import standby
from persistent_runner.study.machines import Machines
from persistent_runner.study.progress import Limits, Progress
from persistent_runner.study.starts import Starts
from tests.study.test_loop import DEADLINE, Threads, a_loop, press, states, value_of
from tests.study.test_renewal import Clusters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import optuna

    from persistent_runner.study.run_folder import RunFolder


class Slots(Threads):
    """Notes what was committed before each start, and how many trials ran at a time."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder = folder
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0
        self.committed: list[list[int]] = []

    def submit(self, number: int, attempt: int, where: str, task: Callable[[Any], Any]) -> Future[Any]:
        self.committed.append([record["trial"] for record in self._folder.journal() if record["kind"] == "result"])

        def counted(work: Any) -> Any:
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
            try:
                return task(work)
            finally:
                with self._lock:
                    self._now -= 1

        return super().submit(number, attempt, where, counted)


def slowly(trial: optuna.Trial, _: object) -> float:
    """Take longer than the choice of the next trial: that is what it is chosen in."""
    time.sleep(0.2)
    return value_of(trial, None)


def test_the_next_one_starts_before_the_last_one_is_settled(stored, folder) -> None:
    """Neither the disk nor the sampler stands between two trials; all are settled in the end, and no one is over."""
    slots = Slots(folder)
    a_loop(stored, folder, slowly, threads=slots, capacity=1, ahead=1).run()
    assert slots.attempts == [(number, 1) for number in range(4)]
    assert slots.committed == [[], [], [0], [0, 1]]
    assert states(stored) == ["COMPLETE"] * 4
    assert [record["trial"] for record in folder.journal() if record["kind"] == "attempt"] == [0, 1, 2, 3]


def test_nothing_is_chosen_ahead_unasked(stored, folder) -> None:
    """Each trial is chosen with the results of all that have ended."""
    slots = Slots(folder)
    a_loop(stored, folder, value_of, threads=slots, capacity=1).run()
    assert slots.committed == [[], [0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("error", [AttemptLost("its supervisor ended"), CommandFailed("exit code 1")])
def test_a_trial_that_runs_again_keeps_its_slot(error: Exception, stored, folder) -> None:
    """What did not end well is settled first: two trials never share a slot."""
    slots, failed = Slots(folder), threading.Event()

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1 and not failed.is_set():
            failed.set()
            raise error
        return slowly(trial, work)

    a_loop(stored, folder, objective, threads=slots, capacity=2, limits=Limits(8), ahead=2).run()
    assert slots.most == 2
    assert len(states(stored)) == 8
    assert set(states(stored)) <= {"COMPLETE", "FAIL"}


def test_an_interrupt_gives_back_what_was_ready(stored, folder) -> None:
    """The next start has the same design under the same number, and in an attempt of its own."""
    interrupts, asked = Interrupts(), threading.Event()

    def objective(trial: optuna.Trial, _: object) -> float:
        assert asked.wait(DEADLINE)
        return value_of(trial, None)

    ready: dict[int, Any] = {}

    def on_turn(progress: Progress) -> None:
        if progress.ready and not ready:
            ready.update({number: entry.params for number, entry in progress.ready.items()})
            press(interrupts)
            asked.set()

    a_loop(stored, folder, objective, capacity=1, ahead=1, interrupts=interrupts, on_turn=on_turn).run()
    assert states(stored) == ["COMPLETE", "WAITING"]
    a_loop(stored, folder, value_of, capacity=1, limits=Limits(2)).run()
    assert states(stored) == ["COMPLETE", "COMPLETE"]
    assert stored.trials[1].params == ready[1]


class TwoMachines(Threads):
    """Two machines, each with room for one trial; `started` has (number, attempt, machine)."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[tuple[int, int, str]] = []
        self.busy: list[str] = []

    def place(self, before: str, planned: Sequence[str]) -> str:
        return before or min("ab", key=[*self.busy, *planned].count)

    def submit(self, number: int, attempt: int, where: str, task: Callable[[Any], Any]) -> Future[Any]:
        self.started.append((number, attempt, where))
        self.busy.append(where)

        def counted(work: Any) -> Any:
            try:
                return task(work)
            finally:
                self.busy.remove(where)

        return super().submit(number, attempt, where, counted)


def test_what_was_ready_goes_to_the_machine_that_is_free(stored, folder) -> None:
    """It was meant for the other one and never began there: it keeps its number, and the journal has where it runs."""
    machines, third = TwoMachines(), threading.Event()

    def objective(trial: optuna.Trial, _: object) -> float:
        if trial.number == 0:
            assert third.wait(DEADLINE)
        elif trial.number == 1:
            while 2 not in loop.progress.ready:
                time.sleep(0.01)
        else:
            third.set()
        return value_of(trial, None)

    loop = a_loop(
        stored, folder, objective, threads=machines, place=machines.place, capacity=2, limits=Limits(3), ahead=1
    )
    loop.run()
    assert machines.started == [(0, 1, "a"), (1, 1, "b"), (2, 1, "b")]
    recorded = [(it["trial"], it["attempt"], it["where"]) for it in folder.journal() if it["kind"] == "attempt"]
    assert recorded == [(0, 1, "a"), (1, 1, "b"), (2, 1, "a"), (2, 1, "b")]


def test_what_was_ready_goes_to_the_next_cluster(stored, folder) -> None:
    """Machines that are lost take the trials along that were chosen for them; those start on the next ones."""
    clusters = Clusters()

    def objective(trial: optuna.Trial, work: Clusters) -> float:
        if trial.number == 0 and not work.renewals:
            while 1 not in loop.progress.ready:
                time.sleep(0.01)
            raise LeaseLost("job abc ended")
        return value_of(trial, work)

    loop = clusters.loop(stored, folder, objective, capacity=1, limits=Limits(2), ahead=1)
    loop.run()
    assert sorted(clusters.attempts) == [(0, 1), (0, 2), (1, 1)]
    assert len(clusters.renewals) == 1
    assert states(stored) == ["COMPLETE", "COMPLETE"]


class Places:
    """Two machines, and what began on them: (trial, attempt, machine)."""

    def __init__(self) -> None:
        self.threads = Threads()
        self.began: list[tuple[int, int, str]] = []
        self.machines = ["x", "y"]

    def place(self, before: str, _planned: Sequence[str]) -> str:
        return before if before in self.machines else self.machines[0]

    def submit(self, number: int, attempt: int, where: str, task: Callable[[Any], Any]) -> Future[Any]:
        self.began.append((number, attempt, where))
        return self.threads.submit(number, attempt, where, task)


@pytest.mark.parametrize(("there", "attempt", "where"), [(True, 1, "y"), (False, 2, "x")])
def test_what_may_run_elsewhere_is_never_moved(there: bool, attempt: int, where: str, stored, folder) -> None:
    """What was started on a machine before is joined there; it begins anew on another one only if that is gone."""
    places, progress = Places(), Progress()
    machines = Machines(submit=places.submit, capacity=lambda: 1, stop_running=lambda: None, place=places.place)
    starts = Starts(value_of, machines, folder, progress, no_room=lambda *_: None, is_full=lambda _: True)
    starts.attempts.stays(0, 1, "y")
    trial = stored.ask()
    starts.make_ready(trial, {"x": 0.5})
    assert progress.ready[0].where == "y"
    if not there:
        places.machines.remove("y")
    starts.start_ready()
    assert places.began == [(0, attempt, where)]


def test_a_pause_does_not_end_a_study(stored, folder, monkeypatch) -> None:
    """A trial that waited for room and is lost then, with nothing beside it, goes on: there is nobody to wait for."""
    monkeypatch.setattr(standby, "FIRST_WAIT", 0.05)
    tries: list[int] = []

    def objective(trial: optuna.Trial, work: object) -> float:
        tries.append(trial.number)
        if len(tries) == 1:
            raise NodeDiskFull("no room on the node")
        if len(tries) == 2:
            raise AttemptLost("its supervisor ended")
        return value_of(trial, work)

    a_loop(stored, folder, objective, limits=Limits(2), capacity=1, most_idle=DEADLINE).run()
    assert tries == [0, 0, 0, 1]
    assert states(stored) == ["COMPLETE", "COMPLETE"]
