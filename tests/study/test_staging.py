"""Trials that wait on a real node for their place: the loop sends them ahead, and takes back what it must."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import LeaseLost
from persistent_runner.interrupts import Interrupts
from persistent_runner.study.progress import Limits
from tests.pools import DEADLINE, Pools, until
from tests.study.test_loop import a_loop, new_study, press, states

if TYPE_CHECKING:
    import optuna

    from persistent_runner.pool import Pool
    from persistent_runner.remote.workdir import WorkDir
    from persistent_runner.study.loop import Loop
    from persistent_runner.study.progress import Progress
    from persistent_runner.study.run_folder import RunFolder


class Staged:
    """A pool with one place that queues, and what its commands have noted: the number of each that began."""

    def __init__(self, pools: Pools) -> None:
        self.gates = pools.folder / "gates"
        self.gates.mkdir()
        self.pool: Pool = pools.pool(
            pools.lease(env={"GATES": str(self.gates)}),
            max_concurrent=1,
            queues=True,
            run=f"study.{pools.folder.parent.name}",
        )

    def loop(self, study: optuna.Study, folder: RunFolder, objective: Any, **changes: Any) -> Loop:
        machines = {
            "submit": self.pool.submit,
            "stop_running": self.pool.stop,
            "place": self.pool.place,
            "node": self.pool.node,
            "acknowledge": self.pool.acknowledge,
            "capacity": self.pool.capacity,
            "queues": True,
            "withdraw": self.pool.withdraw,
            "round_trip": self.pool.round_trip,
            "renew": self.pool_renewed,
            "ahead": 1,
        }
        return a_loop(study, folder, objective, **(machines | changes))

    def pool_renewed(self, finished: int, needs: float) -> None:
        self.pool.renew(finished, needs)
        self.pool.open()

    @property
    def began(self) -> list[int]:
        """The trials whose commands began, in that order."""
        file = self.gates / "began"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def open_gate(self, number: int) -> None:
        """Let a trial's command end."""
        (self.gates / str(number)).touch()

    def objective(self, trial: optuna.Trial, work: WorkDir) -> float:
        """Run a command that ends when its gate is open."""
        work.run('echo $TRIAL_NUMBER >> "$GATES/began"; until [ -e "$GATES/$TRIAL_NUMBER" ]; do sleep 0.01; done')
        return float(trial.params["x"])


@pytest.fixture
def staged(pools: Pools) -> Staged:
    return Staged(pools)


def test_the_next_trial_begins_before_the_last_one_is_known(staged, folder) -> None:
    """Each objective returns only when the next trial's command has begun: nothing here stands between the two."""
    study, trials = new_study("sqlite", folder), 4

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        staged.open_gate(trial.number)
        value = staged.objective(trial, work)
        if trial.number + 1 < trials:
            until(lambda: trial.number + 1 in staged.began, f"trial {trial.number + 1} begins")
        return value

    staged.loop(study, folder, objective, limits=Limits(trials)).run()
    assert states(study) == ["COMPLETE"] * trials
    assert staged.began == list(range(trials))
    assert [record["attempt"] for record in folder.journal() if record["kind"] == "attempt"] == [1] * trials


def test_never_more_than_there_are_places(staged, folder) -> None:
    """However many wait, and however a command ends: one at a time."""
    study = new_study("sqlite", folder)

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        work.run(
            'mkdir "$GATES/place" || { touch "$GATES/shared"; exit 0; }; '
            'rmdir "$GATES/place"; [ $((TRIAL_NUMBER % 3)) != 1 ]; echo $TRIAL_NUMBER >> "$GATES/began"'
        )
        return float(trial.params["x"])

    staged.loop(study, folder, objective, limits=Limits(9), ahead=5).run()
    assert not (staged.gates / "shared").exists()
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"] * 3
    assert Counter(staged.began) == Counter([0, 2, 3, 5, 6, 8])


def test_an_interrupt_takes_back_what_waits(staged, folder) -> None:
    """What runs ends; what waits never begins, and is the next start's first trial under its number."""
    study, interrupts, seen = new_study("sqlite", folder), Interrupts(), threading.Event()

    def on_turn(progress: Progress) -> None:
        if not seen.is_set() and any(running.is_sent for running in progress.ready.values()) and staged.began:
            seen.set()
            press(interrupts)
            staged.open_gate(1)  # it must not begin all the same

    def later() -> None:
        assert seen.wait(DEADLINE)
        until(lambda: withdrawn(staged), "the withdrawal")
        staged.open_gate(0)

    threading.Thread(target=later, daemon=True).start()
    staged.loop(study, folder, staged.objective, limits=Limits(4), interrupts=interrupts, on_turn=on_turn).run()
    assert states(study) == ["COMPLETE", "WAITING"]
    assert staged.began == [0]
    params = study.trials[1].params
    staged.loop(study, folder, staged.objective, limits=Limits(2)).run()
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert staged.began == [0, 1]
    assert study.trials[1].params == params


def withdrawn(staged: Staged) -> bool:
    """Whether a command was claimed for nobody."""
    exits = Path(staged.pool._nodes.head.root).glob("*/.attempt/0/exit.json")
    return any("withdrawn" in path.read_text() for path in exits)


def test_what_waits_goes_to_the_next_cluster(staged, folder) -> None:
    """The trial that is lost runs once more, the one that was sent ahead of its end once."""
    study, lost = new_study("sqlite", folder), threading.Event()

    def objective(trial: optuna.Trial, work: WorkDir) -> float:
        if trial.number == 0 and not lost.is_set():
            until(lambda: any(running.is_sent for running in list(loop.progress.ready.values())), "one is sent ahead")
            lost.set()
            raise LeaseLost("job abc ended")
        assert lost.wait(DEADLINE)  # trial 0 had no command: the next one has its place at once
        staged.open_gate(trial.number)
        return staged.objective(trial, work)

    loop = staged.loop(study, folder, objective, limits=Limits(3))
    loop.run()
    assert states(study) == ["COMPLETE"] * 3
    assert sorted(staged.began) == [0, 1, 2]
