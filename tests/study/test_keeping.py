"""Which trials' outputs are kept, as results come."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from persistent_runner.remote.frames import OutputFile
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.owed import Owed, delete, note, resume, settle, told
from persistent_runner.study.resume import Result, commit

if TYPE_CHECKING:
    from persistent_runner.study.run_folder import RunFolder

COMPLETE = TrialState.COMPLETE


def kept(keeping: Keeping, values: list[tuple[float, ...]]) -> set[int]:
    """Return what is kept when the trials 0, 1, ... have these values."""
    found: set[int] = set()
    for number, value in enumerate(values):
        if keeping.wants(number, COMPLETE, value, {}):
            found.add(number)
        found -= keeping.take(number, COMPLETE, value, {})
    return found


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_are_kept_in_whatever_order_they_come(most: int, direction: str) -> None:
    """What is kept at the end are the best of all; of equal ones the first."""
    chance = random.Random(7)
    values = [float(chance.randint(0, 9)) for _ in range(40)]
    sign = 1 if direction == "minimize" else -1
    best = sorted(range(40), key=lambda number: (sign * values[number], number))[:most]
    assert kept(Keeping(most, [direction]), [(value,) for value in values]) == set(best)


def test_the_front_is_kept_where_there_are_several_objectives() -> None:
    """What Optuna calls the best trials, and nothing else."""
    chance = random.Random(3)
    values = [(float(chance.randint(0, 9)), float(chance.randint(0, 9))) for _ in range(40)]
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trials([optuna.trial.create_trial(values=list(each)) for each in values])
    keeping = Keeping("best", ["minimize", "maximize"])
    assert kept(keeping, values) == {trial.number for trial in study.best_trials}


def test_what_breaks_a_constraint_is_never_the_best() -> None:
    """A failed trial is not either, and makes no room for others."""
    keeping = Keeping("best", ["minimize"])
    assert not keeping.wants(0, COMPLETE, [-9.0], {"lift": 0.1})
    assert keeping.take(0, COMPLETE, [-9.0], {"lift": 0.1}) == set()
    assert keeping.wants(1, COMPLETE, [5.0], {"lift": 0.0})
    keeping.take(1, COMPLETE, [5.0], {"lift": 0.0})
    assert not keeping.wants(2, TrialState.FAIL, None, {})
    assert keeping.take(3, COMPLETE, [4.0], {}) == {1}


@pytest.mark.parametrize(("keep", "state"), [("all", "COMPLETE"), ("failed", "FAIL")])
def test_what_depends_on_the_trial_alone(keep: str, state: str) -> None:
    """All that ended well, or all that failed; what was pruned is kept by neither."""
    keeping = Keeping(keep, ["minimize"])  # type: ignore[arg-type]
    for each in TrialState:
        assert keeping.wants(0, each, [1.0] if each == COMPLETE else None, {}) == (each.name == state)
        assert keeping.take(0, each, None, {}) == set()


def committed(folder: RunFolder, number: int, value: float, keeping: Keeping) -> Owed:
    """Commit a trial that has left two outputs."""
    files = [OutputFile("field.bin", 5, "aa"), OutputFile("more/mesh.bin", 5, "bb")]
    folder.commit(kind="attempt", trial=number, attempt=2, where="lease node 1")
    outputs = told(files, (), may_drop=keeping.may_drop)
    commit(folder, number, {}, Result(COMPLETE, [value], {}, {}), outputs)
    return Owed(number, 2, "lease node 1", tuple(files))


def put(folder: RunFolder, owed: Owed, path: str) -> None:
    target = owed.place(folder) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"12345")
    note(folder, owed, path)


def test_the_journal_says_what_is_to_come(folder: RunFolder) -> None:
    """After a death the next start knows which outputs are missing, and where they are."""
    keeping = Keeping("all", ["minimize"])
    first, second, third = (committed(folder, number, 1.0, keeping) for number in range(3))
    put(folder, second, "field.bin")
    for path in ("field.bin", "more/mesh.bin"):
        put(folder, third, path)
    settle(folder, third)
    to_come, here = resume(folder, Keeping("all", ["minimize"]))
    assert here == {}
    assert list(to_come) == [0, 1]
    assert to_come[0] == first
    assert (to_come[1].name, to_come[1].where) == ("00001.2", "lease node 1")
    assert [output.path for output in to_come[1].to_come] == ["more/mesh.bin"]


def test_a_death_before_a_deletion_is_made_good(folder: RunFolder) -> None:
    """What is no longer among the best goes with the next start; what a metric read and people put there stays."""
    keeping = Keeping("best", ["minimize"])
    worse = committed(folder, 0, 2.0, keeping)
    for path in ("field.bin", "more/mesh.bin"):
        put(folder, worse, path)
    settle(folder, worse)
    place = worse.place(folder)
    (place / "out.json").write_text("{}")
    better = committed(folder, 1, 1.0, keeping)
    worst = committed(folder, 2, 3.0, keeping)
    put(folder, worst, "field.bin")
    to_come, here = resume(folder, Keeping("best", ["minimize"]))
    assert (list(to_come), list(here)) == ([1], [])
    assert sorted(path.name for path in place.rglob("*")) == ["out.json"]
    assert list(worst.place(folder).rglob("*")) == []
    settle(folder, better)
    assert [list(found) for found in resume(folder, Keeping("best", ["minimize"]))] == [[], [1]]


def test_nothing_goes_that_was_kept_by_another_rule(folder: RunFolder) -> None:
    """Who asked for all outputs and then for the best alone keeps what is here."""
    owed = [committed(folder, number, float(number), Keeping("all", ["minimize"])) for number in range(2)]
    for each in owed:
        put(folder, each, "field.bin")
        settle(folder, each)
    assert resume(folder, Keeping("best", ["minimize"])) == ({}, {})
    assert [(each.place(folder) / "field.bin").exists() for each in owed] == [True, True]
    delete(folder, owed[0])
    assert not (owed[0].place(folder) / "field.bin").exists()
