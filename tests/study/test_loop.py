"""The loop, with a plain pool of threads instead of a cluster, and Optuna's own storages."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from persistent_runner.errors import AttemptLost, CommandFailed, HostNotProven, ResultMissing, RunnerError
from persistent_runner.interrupts import Interrupts, Leave
from persistent_runner.study import outbox as outbox_module
from persistent_runner.study import stopping as stopping_module
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.loop import Loop
from persistent_runner.study.machines import Machines
from persistent_runner.study.outbox import StorageAway
from persistent_runner.study.progress import Limits
from persistent_runner.study.proposals import StudyFailed
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.resume import Result, tell
from persistent_runner.study.space import FloatParameter
from persistent_runner.study.standby import ATTEMPTS
from persistent_runner.study.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.study.run_folder import RunFolder

DEADLINE = 60
HOSTILE = """a "quoted" folder's {name} $HOME?x#y%41 ü"""
SPACE = {"x": FloatDistribution(0, 1)}
DESIGNS = DesignSpace({"x": FloatParameter(low=0, high=1)})


class Threads:
    """A place where trials run; `stop` is what `Pool.stop` is to a cluster: what runs is lost."""

    seconds = waited = 0.0  # as those of a WorkDir

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor()
        self.stopped = threading.Event()
        self.attempts: list[tuple[int, int]] = []

    def submit(self, number: int, attempt: int, where: str, task: Callable[[Any], Any]) -> Future[Any]:
        self.attempts.append((number, attempt))
        return self._pool.submit(task, self)

    def stop(self) -> None:
        self.stopped.set()

    def wait_for_stop(self) -> None:
        """Run like a command that ends only when it is stopped."""
        assert self.stopped.wait(DEADLINE)
        raise AttemptLost("trial was stopped")


@pytest.fixture(params=["memory", "sqlite"])
def study(request: pytest.FixtureRequest, folder: RunFolder) -> optuna.Study:
    """A study of one objective, in memory and in a file below a hostile folder."""
    return new_study("memory") if request.param == "memory" else new_study("sqlite", folder)


def new_study(kind: str, folder: RunFolder | None = None, directions: tuple[str, ...] = ("minimize",)) -> optuna.Study:
    storage = open_storage("sqlite", folder.database) if folder and kind == "sqlite" else None
    return optuna.create_study(
        study_name="wing",
        storage=storage,
        directions=list(directions),
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(seed=3),
    )


def a_loop(study: optuna.Study, folder: RunFolder, objective: Callable[..., Any], **changes: Any) -> Loop:
    threads = changes.pop("threads", None) or Threads()
    facts = {
        name: changes.pop(name) for name in [field.name for field in dataclasses.fields(Machines)] if name in changes
    }
    capacity = facts.pop("capacity", 2)
    machines = Machines(
        **{"submit": threads.submit, "stop_running": threads.stop, "capacity": lambda: capacity} | facts
    )
    options = {
        "machines": machines,
        "folder": folder,
        "limits": Limits(4),
        "interrupts": Interrupts(),
        "designs": DESIGNS,
    } | changes
    return Loop(study, objective, **options)


def value_of(trial: optuna.Trial, _: object) -> float:
    return trial.params["x"]


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def failures(study: optuna.Study) -> list[str]:
    return [trial.user_attrs[USER_ATTRIBUTE]["failure"] for trial in study.get_trials(deepcopy=False)]


def press(interrupts: Interrupts, times: int = 1) -> None:
    """Do what the handler of Ctrl-C does."""
    interrupts.count += times
    interrupts.asked.set()


def running_trial(study: optuna.Study, run: str) -> optuna.Trial:
    """Leave a trial RUNNING, as a killed driver does."""
    trial = study.ask(SPACE)
    trial.set_user_attr(USER_ATTRIBUTE, {"run": run})
    return trial


def test_runs_up_to_the_total_and_never_more_at_a_time_than_the_capacity(study, folder) -> None:
    """n_trials is a total of settled trials, and the cluster's cores bound what runs together."""
    together, most, lock = 0, 0, threading.Lock()
    full = threading.Barrier(2)

    def objective(trial: optuna.Trial, work: object) -> float:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        full.wait(DEADLINE)
        with lock:
            together -= 1
        return value_of(trial, work)

    progress = a_loop(study, folder, objective, limits=Limits(6)).run()

    assert (progress.complete, progress.total, most) == (6, 6, 2)
    assert states(study) == ["COMPLETE"] * 6
    assert progress.best == (study.best_trial.number, study.best_value)


def test_an_attempt_is_acknowledged_when_its_result_is_on_the_disk(study, folder) -> None:
    """The node may forget an attempt only after the journal has it; what failed stays on the node."""
    seen = []

    def acknowledge(number: int, attempt: int) -> None:
        seen.append((number, attempt, [r["trial"] for r in folder.journal() if r["kind"] == "result"]))

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1:
            raise ResultMissing("no report")
        return value_of(trial, work)

    a_loop(study, folder, objective, limits=Limits(3), capacity=1, acknowledge=acknowledge).run()
    assert seen == [(0, 1, [0]), (2, 1, [0, 1, 2])]
    assert failures(study) == ["", "unknown: trial 1: no report", ""]


def test_goes_on_where_it_stopped(stored, folder) -> None:
    """The same study again runs what is missing, and nothing when nothing is."""
    a_loop(stored, folder, value_of, limits=Limits(3)).run()
    threads = Threads()
    a_loop(stored, folder, value_of, limits=Limits(5), threads=threads).run()
    again = Threads()
    a_loop(stored, folder, value_of, limits=Limits(2), threads=again).run()

    assert threads.attempts == [(3, 1), (4, 1)]
    assert again.attempts == []


def test_more_trials_are_counted_from_now(study, folder) -> None:
    """optimize(n_trials=2) twice gives four, as in Optuna, whatever the study held before."""
    a_loop(study, folder, value_of, limits=Limits(more=2)).run()
    progress = a_loop(study, folder, value_of, limits=Limits(more=2)).run()

    assert states(study) == ["COMPLETE"] * 4
    assert progress.total == 4


def test_a_result_that_was_committed_is_told_and_never_run_again(stored, folder) -> None:
    """A crash between the journal and the study loses nothing and repeats nothing."""
    trial = running_trial(stored, folder.run_id)
    facts = {"run": folder.run_id, "metrics": {"y": 0.25}, "failure": ""}
    folder.commit(kind="attempt", trial=0, attempt=1)
    folder.commit(kind="result", trial=0, state="COMPLETE", values=[0.25], params=trial.params, facts=facts)
    threads = Threads()

    a_loop(stored, folder, value_of, limits=Limits(2), threads=threads).run()

    assert threads.attempts == [(1, 1)]
    assert stored.get_trials()[0].values == [0.25]
    assert stored.get_trials()[0].user_attrs[USER_ATTRIBUTE] == facts


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_a_result_is_told_once(stored, folder, caplog, state) -> None:
    """Told again nothing changes; what somebody else has told meanwhile stays, and the difference is said (row T10)."""
    trial = running_trial(stored, folder.run_id)
    values = [0.25] if state == TrialState.COMPLETE else None
    result = Result(state, values, {"run": folder.run_id}, {"c": 1.0})
    tell(stored, trial, result)
    once = stored.trials
    tell(stored, trial, result)
    assert (stored.trials, caplog.text) == (once, "")

    tell(stored, trial, Result(TrialState.COMPLETE, [0.5], {"run": folder.run_id}))
    assert stored.trials == once
    assert "trial 0: somebody else has told the study" in caplog.text
    assert "and here it gave [0.5]; the study keeps the former" in caplog.text


def test_a_trial_that_somebody_else_has_told_does_not_end_the_study(stored, folder, caplog) -> None:
    """Another program tells a trial that runs here: that counts, it is said, and all others go on (row T10)."""

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1:
            new_study("sqlite", folder).tell(1, 7.0)
        return value_of(trial, work)

    a_loop(stored, folder, objective, limits=Limits(3), capacity=1).run()
    assert states(stored) == ["COMPLETE"] * 3
    assert stored.trials[1].value == 7.0
    assert "trial 1: somebody else has told the study [7.0], and here it gave" in caplog.text


def test_a_committed_result_of_a_deleted_study_is_not_told_to_the_new_one(stored, folder) -> None:
    """Who deletes study.db and begins anew does not get the old study's numbers."""
    running_trial(stored, folder.run_id)
    folder.commit(kind="result", trial=0, state="COMPLETE", values=[9.0], params={"x": 0.123}, facts={})

    a_loop(stored, folder, value_of, limits=Limits(1)).run()

    assert stored.trials[0].value == stored.trials[0].params["x"]


def test_an_unfinished_trial_runs_again_with_its_number_and_parameters(stored, folder) -> None:
    """After a crash a design that was under way is tried again, in a new attempt, not replaced by another design."""
    trial = running_trial(stored, folder.run_id)
    folder.commit(kind="attempt", trial=0, attempt=1)
    threads = Threads()

    a_loop(stored, folder, value_of, limits=Limits(1), threads=threads).run()

    assert threads.attempts == [(0, 2)]
    assert [t.params for t in stored.trials] == [trial.params]


def test_a_driver_killed_while_it_asks_leaves_a_trial_that_is_known_as_its_own(stored, folder) -> None:
    """A crash between ask and submit leaves no trial that stays RUNNING for ever."""

    class KilledError(BaseException):
        pass

    class Sampler(optuna.samplers.RandomSampler):
        def sample_independent(self, *_: Any) -> Any:
            raise KilledError

    stored.sampler = Sampler()
    with pytest.raises(KilledError):
        a_loop(stored, folder, value_of).run()
    assert states(stored) == ["RUNNING"]
    stored.sampler = optuna.samplers.RandomSampler(seed=1)

    a_loop(stored, folder, value_of, limits=Limits(2)).run()

    assert states(stored) == ["COMPLETE"] * 2


def test_other_drivers_trials_are_left_alone_and_count(stored, folder, caplog) -> None:
    """Several drivers share a study: none touches another's trials, and together they do not exceed the total."""
    running_trial(stored, "another run")
    stored.ask(SPACE)  # somebody's own script
    caplog.set_level(logging.INFO)

    progress = a_loop(stored, folder, value_of, limits=Limits(3)).run()

    assert states(stored) == ["RUNNING", "RUNNING", "COMPLETE"]
    assert progress.others == 2
    assert "2 trials of other drivers still run" in caplog.text


def test_first_interrupt_lets_running_trials_finish(study, folder, caplog) -> None:
    """Ctrl-C once: nothing new starts, what runs ends as if nothing had happened, and one line says so."""
    interrupts = Interrupts()
    go = threading.Event()

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 3:  # both slots are taken: nothing is just being asked for
            press(interrupts)
        if trial.number >= 2:
            assert go.wait(DEADLINE)
        return value_of(trial, work)

    def on_turn(_: object) -> None:
        if "may finish" in caplog.text:
            go.set()

    a_loop(study, folder, objective, limits=Limits(20), interrupts=interrupts, on_turn=on_turn).run()

    assert set(states(study)) == {"COMPLETE"}
    assert len(study.trials) < 20
    (line,) = [record.message for record in caplog.records if "Interrupted" in record.message]
    assert "no new trials" in line
    assert "expected in about" in line
    assert "third time to leave" in line


def test_second_interrupt_stops_what_runs_and_gives_it_back(stored, folder) -> None:
    """Ctrl-C twice: the trials are lost, not failed; the next start runs the same designs."""
    interrupts, threads = Interrupts(), Threads()
    both = threading.Barrier(2, action=lambda: press(interrupts, 2))

    def objective(_trial: object, work: Threads) -> None:
        both.wait(DEADLINE)
        work.wait_for_stop()

    progress = a_loop(stored, folder, objective, interrupts=interrupts, threads=threads).run()
    before = [t.params for t in stored.trials]
    assert (states(stored), progress.settled) == (["WAITING", "WAITING"], 0)
    a_loop(stored, folder, value_of, limits=Limits(2)).run()

    assert [t.params for t in stored.trials] == before
    assert states(stored) == ["COMPLETE", "COMPLETE"]


def test_an_interrupted_study_in_memory_has_failed_trials(folder) -> None:
    """A study in memory has no next start: its interrupted trials say so in the table."""
    study, interrupts = new_study("memory"), Interrupts()

    def objective(_trial: object, work: Threads) -> None:
        press(interrupts, 2)
        work.wait_for_stop()

    a_loop(study, folder, objective, interrupts=interrupts, capacity=1).run()

    assert (states(study), failures(study)) == (["FAIL"], ["interrupted"])


def test_an_objective_that_never_returns_is_given_up_after_a_stop(stored, folder, monkeypatch, caplog) -> None:
    """SIGTERM ends a study whose Python objective is deaf, so that the cluster is released before a kill follows."""
    monkeypatch.setattr(stopping_module, "STOP_SECONDS", 0.1)
    interrupts, end = Interrupts(), threading.Event()

    def objective(_trial: object, _work: object) -> None:
        press(interrupts, 2)
        end.wait(DEADLINE)

    a_loop(stored, folder, objective, interrupts=interrupts, capacity=1).run()
    end.set()

    assert states(stored) == ["WAITING"]
    assert "did not end within" in caplog.text


def test_leaving_gives_back_what_runs(stored, folder) -> None:
    """The third Ctrl-C goes at once; no trial is lost by it."""
    end = threading.Event()

    def leave(_: object) -> None:
        raise Leave

    with pytest.raises(Leave):
        a_loop(stored, folder, lambda *_: end.wait(DEADLINE), on_turn=leave).run()
    end.set()

    assert states(stored) == ["WAITING", "WAITING"]


def test_a_fault_of_the_machine_is_never_told(stored, folder) -> None:
    """Unproven machines end the start; the sampler never learns of a failure that is no design's fault."""

    def objective(_trial: object, _work: object) -> None:
        raise HostNotProven("another host key")

    with pytest.raises(HostNotProven, match="another host key"):
        a_loop(stored, folder, objective, capacity=1).run()

    assert states(stored) == ["WAITING"]


def test_a_lost_attempt_is_tried_again_up_to_a_cap(study, folder, caplog) -> None:
    """A trial whose supervisor dies gets new attempts; one that kills its machine each time fails with that reason."""
    threads = Threads()

    def objective(trial: optuna.Trial, work: Threads) -> float:
        if trial.number == 0 or len(work.attempts) == 4:
            raise AttemptLost(f"trial {trial.number} was lost")
        return value_of(trial, work)

    a_loop(study, folder, objective, capacity=1, limits=Limits(2), threads=threads).run()

    assert threads.attempts == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    assert states(study) == ["FAIL", "COMPLETE"]
    assert failures(study)[0] == f"unknown: lost {ATTEMPTS} times: trial 0 was lost"
    assert study.trials[1].user_attrs[USER_ATTRIBUTE]["attempts"] == 2


def test_fuse_ends_a_study_that_only_fails(study, folder) -> None:
    """A broken deck does not burn the whole budget: after so many failures in a row the study ends with the last."""

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1:
            return value_of(trial, work)
        if trial.number == 3:
            raise optuna.TrialPruned("too thick")
        raise CommandFailed(f"trial {trial.number}: exit code 1", remedy="The whole log: x.log")

    with pytest.raises(StudyFailed, match="3 trials failed one after another") as caught:
        a_loop(
            study, folder, objective, capacity=1, limits=Limits(20, max_consecutive_failures=3), designs=DESIGNS
        ).run()

    # one success and one pruned trial begin the count anew
    assert states(study) == ["FAIL", "COMPLETE", "FAIL", "PRUNED", "FAIL", "FAIL", "FAIL"]
    assert "trial 6: exit code 1" in str(caught.value)
    assert "x.log" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (float("nan"), "returned nan, which no study can compare"),
        (float("inf"), "returned inf, which no study can compare"),
        ([-float("inf")], "returned -inf, which no study can compare"),
        (True, "returned True, which is not a number"),
        (None, "returned None, which is not a number"),
        ("1.5", "returned '1.5', which is not a number"),
        (b"1.5", "returned b'1.5', which is not a number"),
        pytest.param(10**400, "returned 100000000000000000000", id="big int"),
        pytest.param(10**6000, "returned an int too large to show, which is not a number", id="huge int"),
        ((1.0, 2.0), "returned 2 values, and the study has 1 objective"),
        ([], "returned 0 values, and the study has 1 objective"),
        ({"y": 1}, "returned {'y': 1}, which is not a number"),
    ],
)
def test_what_is_no_finite_number_fails_the_trial(folder, returned, said) -> None:
    """Optuna takes infinity as a best value and True as 1.0; here such a trial fails with a message that names it."""
    study = new_study("memory", directions=("maximize",))

    a_loop(study, folder, lambda *_: returned, limits=Limits(1)).run()

    assert states(study) == ["FAIL"]
    assert said in failures(study)[0]
    assert failures(study)[0].startswith("unknown: trial 0: ")


def test_several_objectives(folder) -> None:
    """Values come back in the order of the directions; one that is not finite fails the whole trial."""
    study = new_study("memory", directions=("minimize", "maximize"))

    def objective(trial: optuna.Trial, _: object) -> tuple[float, float]:
        return trial.number, float("nan") if trial.number == 1 else 2.0

    progress = a_loop(study, folder, objective, limits=Limits(2), capacity=1).run()

    assert states(study) == ["COMPLETE", "FAIL"]
    assert study.trials[0].values == [0.0, 2.0]
    assert progress.best is None


def test_an_exception_of_the_objective_ends_the_study_and_is_raised(stored, folder) -> None:
    """As in Optuna: a bug in the objective is shown at once, with its own traceback; other trials are not lost."""

    def objective(trial: optuna.Trial, work: Threads) -> None:
        if trial.number == 0:
            work.wait_for_stop()
        raise ZeroDivisionError("my bug")

    with pytest.raises(ZeroDivisionError, match="my bug"):
        a_loop(stored, folder, objective).run()

    assert states(stored) == ["WAITING", "FAIL"]
    assert stored.trials[1].user_attrs[USER_ATTRIBUTE]["failure"] == "ZeroDivisionError: my bug"


def test_caught_exceptions_fail_their_trial_only(study, folder) -> None:
    """`catch=` names exceptions that a study survives, as in Optuna."""

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1:
            raise ValueError("no mesh")
        return value_of(trial, work)

    a_loop(study, folder, objective, limits=Limits(3), catch=(ValueError,)).run()

    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert failures(study)[1] == "ValueError: no mesh"


def test_a_keyboard_interrupt_inside_an_objective_ends_the_study(study, folder) -> None:
    """An objective may raise KeyboardInterrupt itself; it is not swallowed."""

    def objective(_trial: object, _work: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_loop(study, folder, objective, capacity=1).run()
    assert states(study) == ["FAIL"]


def test_an_objective_of_its_own_suggests_and_prunes(study, folder) -> None:
    """A Python objective suggests its parameters in its own thread and may prune."""

    def objective(trial: optuna.Trial, _: object) -> float:
        x = trial.suggest_float("x", 1, 2)
        if trial.number == 1:
            raise optuna.TrialPruned("hopeless")
        return x

    a_loop(study, folder, objective, designs=None).run()

    assert states(study).count("PRUNED") == 1
    assert failures(study)[1] == "hopeless"
    results = {record["trial"]: record for record in folder.journal() if record["kind"] == "result"}
    assert results[0]["params"] == study.trials[0].params == {"x": study.trials[0].value}


def test_max_time_ends_the_asking(stored, folder) -> None:
    """max_time is of one start: running trials end, nothing new begins, and who asks learns that time was up."""
    progress = a_loop(stored, folder, value_of, limits=Limits(4, max_seconds=0)).run()

    assert progress.out_of_time
    assert states(stored) == []
    assert not a_loop(stored, folder, value_of, limits=Limits(4, max_seconds=3600)).run().out_of_time


def test_a_storage_that_is_away_delays_the_telling_and_loses_nothing(stored, folder, monkeypatch, caplog) -> None:
    """Another program locks the database while a result comes: it waits in the journal and is told afterwards."""
    monkeypatch.setattr("persistent_runner.study.storage.BUSY_SECONDS", 0.05)
    study = new_study("sqlite", folder)
    other = sqlite3.connect(folder.database, isolation_level=None, check_same_thread=False)

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 1:
            other.execute("BEGIN IMMEDIATE")
        return value_of(trial, work)

    def on_turn(_: object) -> None:
        if "does not answer" in caplog.text and other.in_transaction:
            assert [r["trial"] for r in folder.journal() if r["kind"] == "result"] == [0, 1]
            other.execute("ROLLBACK")

    a_loop(study, folder, objective, capacity=1, limits=Limits(3), on_turn=on_turn).run()
    other.close()

    assert states(study) == ["COMPLETE"] * 3
    assert [r["trial"] for r in folder.journal() if r["kind"] == "result"] == [0, 1, 2]


def test_a_trial_that_the_storage_took_by_half_is_gone_on_with(folder, monkeypatch, caplog) -> None:
    """The storage goes away between a trial's number and its parameters: that trial runs, and none is one too many."""
    monkeypatch.setattr("persistent_runner.study.storage.BUSY_SECONDS", 0.05)
    study, threads = new_study("sqlite", folder), Threads()
    other = sqlite3.connect(folder.database, isolation_level=None, check_same_thread=False)
    locked: list[int] = []

    class Sampler(optuna.samplers.RandomSampler):
        def sample_independent(self, study: Any, trial: Any, *rest: Any) -> Any:
            if trial.number == 2 and not locked:
                locked.append(trial.number)
                other.execute("BEGIN IMMEDIATE")
            return super().sample_independent(study, trial, *rest)

    def on_turn(_: object) -> None:
        if "does not answer" in caplog.text and other.in_transaction:
            other.execute("ROLLBACK")

    study.sampler = Sampler(seed=1)
    a_loop(study, folder, value_of, capacity=1, limits=Limits(3), threads=threads, on_turn=on_turn).run()
    other.close()

    assert locked == [2]
    assert states(study) == ["COMPLETE"] * 3
    assert threads.attempts == [(0, 1), (1, 1), (2, 1)]


def test_a_pruned_trial_that_reported_a_value(stored, folder, caplog) -> None:
    """Optuna keeps the last value that was reported; nobody else has told it."""

    def objective(trial: optuna.Trial, _: object) -> float:
        trial.report(0.5, 1)
        raise optuna.TrialPruned

    a_loop(stored, folder, objective, limits=Limits(1)).run()
    assert (states(stored), stored.trials[0].values) == (["PRUNED"], [0.5])
    assert "somebody else" not in caplog.text


def test_a_storage_that_stays_away_ends_the_start_and_the_next_one_tells(stored, folder, monkeypatch) -> None:
    """An idle cluster does not wait for a storage for ever; the result is told by the next start, not run again."""
    monkeypatch.setattr("persistent_runner.study.storage.BUSY_SECONDS", 0.05)
    monkeypatch.setattr(outbox_module, "AWAY_SECONDS", 0.1)
    study = new_study("sqlite", folder)
    other = sqlite3.connect(folder.database, isolation_level=None, check_same_thread=False)

    def objective(_trial: object, _work: object) -> float:
        other.execute("BEGIN IMMEDIATE")
        return 0.5

    with pytest.raises(StorageAway, match="1 results wait"):
        a_loop(study, folder, objective, capacity=1).run()
    other.execute("ROLLBACK")
    other.close()
    assert states(stored) == ["RUNNING"]
    threads = Threads()
    a_loop(stored, folder, value_of, limits=Limits(1), threads=threads).run()

    assert (threads.attempts, stored.trials[0].value) == ([], 0.5)


def test_a_journal_that_cannot_be_written_ends_the_start(stored, folder) -> None:
    """A full disk: nothing is told that is not committed, and the trial waits for the next start."""

    def objective(trial: optuna.Trial, work: object) -> float:
        journal = folder.path / "journal.jsonl"
        journal.rename(folder.path / "kept")
        journal.mkdir()
        return value_of(trial, work)

    with pytest.raises(RunnerError, match=r"journal\.jsonl cannot be written"):
        a_loop(stored, folder, objective, capacity=1).run()
    assert states(stored) == ["WAITING"]


def test_more_trials_than_the_total_are_no_error(stored, folder) -> None:
    """A study that somebody else filled beyond n_trials is simply done."""
    for _ in range(5):
        stored.tell(stored.ask(SPACE), 1.0)

    progress = a_loop(stored, folder, value_of, limits=Limits(4)).run()

    assert (progress.settled, progress.seconds_left) == (5, None)


def test_progress_is_shown_at_least_once_a_turn(study, folder) -> None:
    """Who watches sees each trial with its parameters while it runs."""
    seen: dict[int, dict[str, Any]] = {}
    shown = threading.Event()

    def objective(trial: optuna.Trial, work: object) -> float:
        assert shown.wait(DEADLINE)
        return value_of(trial, work)

    def on_turn(progress: Any) -> None:
        seen.update({number: running.params for number, running in progress.running.items()})
        shown.set()

    begun = time.monotonic()
    progress = a_loop(study, folder, objective, limits=Limits(2), on_turn=on_turn).run()

    assert seen == {trial.number: trial.params for trial in study.trials}
    assert progress.started >= begun
    assert progress.seconds_per_trial is not None


def test_states_are_those_of_optuna(study, folder) -> None:
    """The study stays an ordinary Optuna study: any tool that reads one can read it."""
    a_loop(study, folder, value_of, limits=Limits(1)).run()

    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs[USER_ATTRIBUTE] | {"seconds": 0} == {
        "run": folder.run_id,
        "metrics": {},
        "failure": "",
        "attempts": 1,
        "seconds": 0,
        "cost": None,
        "node": "",
        "folder": "trials/00000",
    }
