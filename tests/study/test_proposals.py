"""The next trial: every sampler goes through it, first designs count, and what is not allowed never runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from persistent_runner.study import proposals as module
from persistent_runner.study.design import DesignSpace
from persistent_runner.study.proposals import Proposals, StudyFailed, is_rejected, put_failed, retried
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.samplers import make_sampler
from persistent_runner.study.space import FloatParameter, IntParameter
from persistent_runner.study.storage import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPACE = {"x": FloatParameter(low=0.0, high=0.3, step=0.1), "n": IntParameter(low=1, high=5, step=2)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    quiet_optuna()
    with RunFolder(tmp_path / "run", "wing") as found:
        yield found


def a_study(name: str, designs: DesignSpace, folder: RunFolder, **options: Any) -> optuna.Study:
    sampler = make_sampler({"name": name, **options}, 1, folder.path, designs.distributions)
    return optuna.create_study(sampler=sampler)


def test_a_grid_is_gone_through(folder: RunFolder) -> None:
    """Each of its twelve designs is proposed once."""
    designs = DesignSpace(SPACE)
    study = a_study("grid", designs, folder)
    proposals = Proposals(study, folder, designs)
    seen = set()
    for _ in range(12):
        found = proposals.next(is_any_waiting=False)
        assert found is not None
        trial, params = found
        seen.add((params["x"], params["n"]))
        study.tell(trial, 1.0)
    assert len(seen) == 12


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_a_design_that_was_enqueued_is_a_parent_too(name: str, folder: RunFolder) -> None:
    """A genetic sampler breeds from generations, and a design of [[start]] is in the first of them."""
    designs = DesignSpace(SPACE)
    study = a_study(name, designs, folder, population_size=4)
    study.enqueue_trial({"x": 0.1, "n": 3})
    found = Proposals(study, folder, designs).next(is_any_waiting=True)
    assert found is not None
    trial, params = found
    assert params == {"x": 0.1, "n": 3}
    study.tell(trial, 0.0)
    assert any("generation" in key for key in study.trials[0].system_attrs)


def test_what_is_not_allowed_is_told_and_another_design_is_asked_for(folder: RunFolder) -> None:
    """It is no failure of the design; the sampler is told to keep away; too many in a row end the study."""
    designs = DesignSpace(SPACE, ["x < 0.05"])
    study = a_study("random", designs, folder)
    proposals = Proposals(study, folder, designs)
    while (found := proposals.next(is_any_waiting=False)) is None:
        pass
    assert found[1]["x"] == 0.0
    *before, last = study.trials
    assert all(is_rejected(trial) and trial.state == TrialState.PRUNED for trial in before)
    assert all(trial.constraints["require"] > 0 for trial in before)
    assert (last.state, proposals.rejected) == (TrialState.RUNNING, 0)


def test_a_sampler_that_finds_nothing_allowed_ends_the_study(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the last design and the condition in the message."""
    monkeypatch.setattr(module, "MOST_REJECTED", 5)
    designs = DesignSpace(SPACE, ["x < 0"])
    proposals = Proposals(a_study("random", designs, folder), folder, designs)
    for _ in range(4):
        assert proposals.next(is_any_waiting=False) is None
    with pytest.raises(StudyFailed, match=r"5 designs in a row .* x < 0 \(x = 0\.\d\) does not hold"):
        proposals.next(is_any_waiting=False)


def test_a_baseline_that_failed_is_the_baseline_when_it_runs_again(folder: RunFolder) -> None:
    """Otherwise nothing would be compared with it any more."""
    designs = DesignSpace(SPACE)
    study = a_study("random", designs, folder)
    for baseline in (True, False):
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL,
            params={"x": 0.1, "n": 3},
            distributions=designs.distributions,
            user_attrs={USER_ATTRIBUTE: {"run": folder.run_id} | ({"baseline": True} if baseline else {})},
        )
        study.add_trial(trial)
    put_failed(study, folder)
    proposals = Proposals(study, folder, designs)
    both = [proposals.next(is_any_waiting=True), proposals.next(is_any_waiting=True)]
    asked = [found[0] for found in both if found is not None]
    assert [Proposals.mark(trial) for trial in asked] == [{"baseline": True}, {}]
    assert retried(folder) == 2


def test_a_condition_without_a_value_is_a_design_that_is_not_allowed(folder: RunFolder) -> None:
    """Which parameters it has nobody can say: it never runs, and the study goes on."""
    flap = FloatParameter(low=0.0, high=1.0, when="1 / x > 0")
    designs = DesignSpace({"x": SPACE["x"], "flap": flap})
    study = a_study("random", designs, folder)
    proposals = Proposals(study, folder, designs)
    study.enqueue_trial({"x": 0.0})
    assert proposals.next(is_any_waiting=True) is None
    assert is_rejected(study.trials[0])
    assert "flap: 1 / x > 0 (x = 0.0) divides by zero" in str(study.trials[0].user_attrs)
    study.enqueue_trial({"x": 0.1})
    assert proposals.next(is_any_waiting=True) is not None
