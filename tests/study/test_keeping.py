"""Which trials' outputs are kept, as results come."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, cast

import optuna
import pytest
from optuna.trial import TrialState

from persistent_runner import saved_outputs
from persistent_runner.remote.frames import OutputFile
from persistent_runner.study.bringing import Bringing
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.machines import Machines
from persistent_runner.study.owed import Found, Owed, delete, note, resume, settle, told
from persistent_runner.study.resume import Result, commit
from tests.driving import until

if TYPE_CHECKING:
    from persistent_runner.rescale.api import File
    from persistent_runner.rescale.files import JobFiles
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
    note(folder, owed, [path])


def test_the_journal_says_what_is_to_come(folder: RunFolder) -> None:
    """After a death the next start knows which outputs are missing, and where they are."""
    keeping = Keeping("all", ["minimize"])
    first, second, third = (committed(folder, number, 1.0, keeping) for number in range(3))
    put(folder, second, "field.bin")
    for path in ("field.bin", "more/mesh.bin"):
        put(folder, third, path)
    settle(folder, third)
    found = resume(folder, Keeping("all", ["minimize"]))
    to_come = found.to_come
    assert (list(to_come), found.here, found.surplus) == ([0, 1], {}, {})
    assert to_come[0] == first
    assert (to_come[1].name, to_come[1].where) == ("00001.2", "lease node 1")
    assert [output.path for output in to_come[1].to_come] == ["more/mesh.bin"]


def test_a_death_before_a_deletion_is_made_good(folder: RunFolder) -> None:
    """What is no longer among the best goes once the best is here; what a metric read and people put there stays."""
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
    found = resume(folder, Keeping("best", ["minimize"]))
    assert (list(found.to_come), list(found.here), list(found.surplus)) == ([1], [], [0, 2])
    outputs = Bringing(folder, nowhere(), Keeping("best", ["minimize"]))
    outputs.turn()
    assert (place / "field.bin").exists()  # of all that are here it is the best
    settle(folder, better)
    outputs = Bringing(folder, nowhere(), Keeping("best", ["minimize"]))
    outputs.turn()
    assert sorted(path.name for path in place.rglob("*")) == ["out.json"]
    assert list(worst.place(folder).rglob("*")) == []
    found = resume(folder, Keeping("best", ["minimize"]))
    assert (list(found.to_come), list(found.here), list(found.surplus)) == ([], [1], [])


def test_the_best_that_is_here_stays_until_a_better_one_is(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """Its machine is gone in the middle of it: what was there before is what the user has."""
    first = committed(folder, 0, 2.0, Keeping("best", ["minimize"]))
    put(folder, first, "field.bin")
    settle(folder, first)
    outputs = Bringing(folder, nowhere(), Keeping("best", ["minimize"]))
    second = committed(folder, 1, 1.0, Keeping("best", ["minimize"]))
    outputs.take(1, COMPLETE, [1.0], {})
    outputs.begin(second)
    until(lambda: outputs.turn() or "its outputs do not come now" in caplog.text, "the end of the try")
    outputs.turn()
    assert (first.place(folder) / "field.bin").exists()
    outputs.close()


def test_another_reader_deletes_nothing(folder: RunFolder) -> None:
    """`--reread` finds no number in what was the best: whoever mends the reader has the outputs still."""
    keeping = Keeping("best", ["minimize"])
    best = committed(folder, 0, 1.0, keeping)
    put(folder, best, "field.bin")
    settle(folder, best)
    commit(folder, 0, {}, Result(TrialState.FAIL, None, {}, {}))
    for _ in range(2):
        Bringing(folder, nowhere(), Keeping("best", ["minimize"])).turn()
    assert (best.place(folder) / "field.bin").exists()
    commit(folder, 0, {}, Result(COMPLETE, [1.0], {}, {}))
    assert list(resume(folder, Keeping("best", ["minimize"])).here) == [0]


class Unlisted:
    """A platform that has nothing of a job yet."""

    def listed(self, *_: object, **__: object) -> list[File]:
        return []


@pytest.mark.parametrize("is_all", [False, True])
def test_what_is_not_listed_is_given_up_by_a_later_start_alone(
    is_all: bool, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after a job's end files may not be listed yet; an interrupt decides nothing either."""
    monkeypatch.setattr(saved_outputs, "LISTED_SECONDS", 0.0)
    owed, stop = committed(folder, 0, 1.0, Keeping("all", ["minimize"])), threading.Event()
    saved_outputs.fetch_owed(cast("JobFiles", Unlisted()), "job", [owed], folder, stop, is_all=is_all)
    assert bool(resume(folder, Keeping("all", ["minimize"])).to_come) != is_all
    other = committed(folder, 1, 1.0, Keeping("all", ["minimize"]))
    stop.set()
    saved_outputs.fetch_owed(cast("JobFiles", Unlisted()), "job", [other], folder, stop, is_all=True)
    assert 1 in resume(folder, Keeping("all", ["minimize"])).to_come


def test_nothing_goes_that_was_kept_by_another_rule(folder: RunFolder) -> None:
    """Who asked for all outputs and then for the best alone keeps what is here."""
    owed = [committed(folder, number, float(number), Keeping("all", ["minimize"])) for number in range(2)]
    for each in owed:
        put(folder, each, "field.bin")
        settle(folder, each)
    assert resume(folder, Keeping("best", ["minimize"])) == Found()
    assert [(each.place(folder) / "field.bin").exists() for each in owed] == [True, True]
    delete(folder, owed[0])
    assert not (owed[0].place(folder) / "field.bin").exists()


def nowhere() -> Machines:
    """Return machines that have no way to any."""
    return Machines(lambda *_: Future(), lambda: 1, lambda: None)
