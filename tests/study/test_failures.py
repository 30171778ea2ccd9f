"""Of what class a failed trial is, and what is done about it."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from persistent_runner.errors import (
    AttemptLost,
    CommandFailed,
    CommandStalled,
    CommandTimedOut,
    ConnectionLost,
    LeaseLost,
    ParametersInvalid,
    ResultMissing,
    TrialFailed,
)
from persistent_runner.interrupts import Interrupts
from persistent_runner.study import standby
from persistent_runner.study.failures import FailuresTable, judge, kind_of
from persistent_runner.study.progress import Limits, Progress
from persistent_runner.study.proposals import StudyFailed
from persistent_runner.study.run_folder import RunFolder
from tests.study.test_loop import DEADLINE, Threads, a_loop, failures, new_study, press, states, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import optuna

OUT_OF_MEMORY = CommandFailed("killed", exit_code_of_command=137)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run", "wing") as found:
        yield found


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "FIRST_WAIT", 0.1)


def failed(code: int = 1) -> CommandFailed:
    return CommandFailed("the command failed", exit_code_of_command=code)


@pytest.mark.parametrize(
    ("error", "log", "kind", "action"),
    [
        (failed(), "Segmentation fault", "unknown", "fail"),
        (failed(137), "", "out of memory", "retry"),
        (failed(136), "", "diverged", "fail"),
        (failed(), "terminate called after throwing an instance of 'std::bad_alloc'", "out of memory", "retry"),
        (failed(), "Traceback ...\nMemoryError\n", "out of memory", "retry"),
        (failed(), "tar: out: Cannot write: No space left on device", "disk full", "pause"),
        (failed(), "***ERROR: Licensing error: FLEXnet error -4", "licence", "wait"),
        (failed(), "ANSYS LICENSE MANAGER ERROR: Could not connect to any license server.", "licence", "wait"),
        (failed(), "Failed to check out a license for feature solver", "licence", "wait"),
        (failed(), "License number of users already reached; request denied", "licence", "wait"),
        (failed(), "under the GNU General Public License, see COPYING\nSegmentation fault", "unknown", "fail"),
        (failed(), "*ERROR in e_c3d: nonpositive jacobian determinant in element 12", "mesh", "fail"),
        (failed(), "Failed 3 mesh checks.", "mesh", "fail"),
        (failed(), "#0  Foam::sigFpe::sigHandler(int)\nFloating point exception (core dumped)", "diverged", "fail"),
        (failed(), "*ERROR: too many cutbacks", "diverged", "fail"),
        (ResultMissing("no report"), "solution diverged at step 12", "diverged", "fail"),
        (ResultMissing("no report"), "all is well", "unknown", "fail"),
        (CommandTimedOut("2h"), "No space left on device", "timed out", "fail"),
        (CommandStalled("20m"), "", "stalled", "fail"),
        (ParametersInvalid("sqrt(-1)"), "", "parameters invalid", "fail"),
    ],
)
def test_known_without_a_rule(error: TrialFailed, log: str, kind: str, action: str, tmp_path: Path) -> None:
    """By what ended the command, its exit code, or the usual words in the end of its last log."""
    (tmp_path / "command-1.log").write_text("no space left on device\n")  # of an earlier command
    (tmp_path / "command-2.log").write_text("before\n" * 10 + log + "\nafter\n")
    found = judge(error, tmp_path, None)
    assert (found.kind, found.action) == (kind, action)


def test_a_rule_comes_first(tmp_path: Path) -> None:
    """What the user says of a log or an exit code, and what is to be done about a class."""
    (tmp_path / "command-1.log").write_text("E4711: wing too thin\nno space left on device\n")
    rules = FailuresTable.model_validate(
        {"mesh": {"pattern": r"E\d+: wing", "do": "infeasible"}, "licence": {"exit_code": [65, 66]}}
    )
    assert judge(failed(), tmp_path, rules).kind == "mesh"
    assert judge(failed(), tmp_path, rules).action == "infeasible"
    (tmp_path / "command-1.log").write_text("")
    assert judge(failed(66), tmp_path, rules).kind == "licence"
    assert judge(failed(67), tmp_path, rules).kind == "unknown"


@pytest.mark.parametrize("rule", [{"licence": {"pattern": "("}}, {"licence": {"do": "skip"}}, {"licens": {}}])
def test_a_wrong_rule_is_refused(rule: dict[str, Any]) -> None:
    """A broken expression, a word that is no action, a class that there is not."""
    with pytest.raises(ValidationError):
        FailuresTable.model_validate(rule)


def test_faults_of_the_machine_have_a_class_too() -> None:
    """They are told only at the cap."""
    assert kind_of(LeaseLost("Job x ended: Walltime exceeded")) == "walltime"
    assert kind_of(LeaseLost("Job x ended: Exceeded max number of restarts")) == "preempted"
    assert kind_of(ConnectionLost("silent")) == "connection"


class Failing:
    """An objective whose first trial fails a few times."""

    def __init__(self, error: TrialFailed, times: int, number: int = 0) -> None:
        self.error, self.left, self.number = error, times, number

    def __call__(self, trial: optuna.Trial, work: object) -> float:
        if trial.number == self.number and self.left > 0:
            self.left -= 1
            raise self.error
        return value_of(trial, work)


def test_out_of_memory_runs_again_once(folder: RunFolder) -> None:
    """A node may have been full for a moment; twice is the design's own need."""
    study, threads = new_study("memory"), Threads()
    a_loop(study, folder, Failing(OUT_OF_MEMORY, 1), limits=Limits(1), threads=threads).run()
    a_loop(study, folder, Failing(OUT_OF_MEMORY, 2, number=1), limits=Limits(2), threads=threads).run()
    assert states(study) == ["COMPLETE", "FAIL"]
    assert threads.attempts == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert failures(study)[1] == "out of memory: trial 1: killed"


def test_out_of_memory_after_a_loss_runs_again(folder: RunFolder) -> None:
    """What the machine has taken from a trial is no try of its own."""
    study, threads = new_study("memory"), Threads()
    faults = [AttemptLost("the node died"), OUT_OF_MEMORY]

    def objective(trial: optuna.Trial, work: object) -> float:
        if faults:
            raise faults.pop(0)
        return value_of(trial, work)

    a_loop(study, folder, objective, limits=Limits(1), threads=threads).run()
    assert threads.attempts == [(0, 1), (0, 2), (0, 3)]
    assert states(study) == ["COMPLETE"]


def test_a_licence_is_waited_for(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as no failure, however often, and the waits grow."""
    study, threads = new_study("memory"), Threads()
    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})
    a_loop(
        study, folder, Failing(failed(65), 4), limits=Limits(3, max_consecutive_failures=1), threads=threads,
        failures=rules, capacity=1,
    ).run()  # fmt: skip
    assert states(study) == ["COMPLETE"] * 3
    assert [number for number, _ in threads.attempts].count(0) == 5
    assert re.findall(r"trial 0: licence; it runs again in (\S+)", caplog.text) == ["0.1s", "0.2s", "0.4s", "0.8s"]


def test_fewer_trials_run_while_one_waits_for_a_licence(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """Their number is what the licences are enough for; after a trial that ends well it is as before."""
    study, lock, together = new_study("memory"), threading.Lock(), [0, 0]
    refused: list[int] = []
    three = threading.Event()

    def objective(trial: optuna.Trial, work: object) -> float:
        with lock:
            together[0] += 1
            together[1] = max(together)
            too_many = together[0] > 2 and len(refused) < 4
            if too_many:
                refused.append(trial.number)
                three.set()
        assert three.wait(DEADLINE)
        with lock:
            together[0] -= 1
        if too_many:
            raise failed(65)
        return value_of(trial, work)

    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})
    a_loop(study, folder, objective, limits=Limits(12), capacity=4, failures=rules).run()
    assert states(study) == ["COMPLETE"] * 12
    assert ", with fewer trials at a time" in caplog.text


def test_a_full_disk_lets_no_other_trial_start(folder: RunFolder) -> None:
    """What fills it hits the next one as well: one trial tries, and the others follow when it has ended well."""
    study, threads = new_study("memory"), Threads()
    rules = FailuresTable.model_validate({"disk_full": {"exit_code": 28}})
    a_loop(study, folder, Failing(failed(28), 3), limits=Limits(4), threads=threads, failures=rules, capacity=1).run()
    assert threads.attempts == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (2, 1), (3, 1)]
    assert states(study) == ["COMPLETE"] * 4


def test_a_pause_ends_with_the_trial_that_tried(folder: RunFolder) -> None:
    """When that one fails for a reason of its own there is room again, and the study goes on."""
    study = new_study("memory")
    rules = FailuresTable.model_validate({"disk_full": {"exit_code": 28}})
    codes = [28, 1]

    def objective(trial: optuna.Trial, work: object) -> float:
        if trial.number == 0:
            raise failed(codes.pop(0))
        return value_of(trial, work)

    a_loop(study, folder, objective, limits=Limits(3), failures=rules, capacity=1).run()
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_class_may_be_infeasible(folder: RunFolder) -> None:
    """Then the sampler keeps away, and no number of these in a row ends the study."""
    study = new_study("memory")
    rules = FailuresTable.model_validate({"unknown": {"do": "infeasible"}})

    def objective(trial: optuna.Trial, work: object) -> float:
        raise failed()

    a_loop(study, folder, objective, limits=Limits(4, max_consecutive_failures=2), failures=rules).run()
    assert states(study) == ["PRUNED"] * 4
    assert [trial.constraints for trial in study.trials] == [{"failure": 1.0}] * 4
    assert failures(study)[0] == "unknown: trial 0: the command failed"


def test_a_cluster_does_not_wait_for_ever(folder: RunFolder) -> None:
    """With nothing running the study ends after a while; what waited is the first trial of the next start."""
    study = new_study("sqlite", folder)
    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})
    loop = a_loop(study, folder, Failing(failed(65), 1000), limits=Limits(1), failures=rules, most_idle=0.2)
    with pytest.raises(StudyFailed, match=r"licence: nothing could run for 0\.2s"):
        loop.run()
    assert states(study) == ["WAITING"]


def test_tries_in_vain_do_not_keep_a_cluster(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for between them adds up until a trial ends."""
    monkeypatch.setattr(standby, "LONGEST_WAIT", 0.1)
    study = new_study("sqlite", folder)
    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})
    loop = a_loop(study, folder, Failing(failed(65), 1000), limits=Limits(1), failures=rules, most_idle=0.5)
    with pytest.raises(StudyFailed, match=r"licence: nothing could run for 0\.5s"):
        loop.run()


def test_a_trial_that_waits_is_counted_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cores that are left run all other trials meanwhile."""
    monkeypatch.setattr(standby, "FIRST_WAIT", 600)
    study, interrupts = new_study("sqlite", folder), Interrupts()
    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})

    def turned(progress: Progress) -> None:
        assert progress.others == 0
        if progress.settled == 3:
            press(interrupts)

    objective = Failing(failed(65), 1)
    a_loop(
        study, folder, objective, limits=Limits(4), failures=rules, capacity=3, interrupts=interrupts, on_turn=turned
    ).run()
    assert states(study) == ["WAITING", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_an_interrupt_ends_the_wait(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits goes back, so that the next start asks for it first."""
    monkeypatch.setattr(standby, "FIRST_WAIT", 600)
    study = new_study("sqlite", folder)
    rules = FailuresTable.model_validate({"licence": {"exit_code": 65}})
    loop = a_loop(study, folder, Failing(failed(65), 1), limits=Limits(2), capacity=1, failures=rules)
    interrupts = loop._interrupts
    seen = []

    def turned(progress: Any) -> None:
        if not progress.running and not seen:
            seen.append(True)
            press(interrupts)

    loop._on_turn = turned
    loop.run()
    assert states(study) == ["WAITING"]
