"""Designs: derived and conditional parameters, what is allowed, and what is tried first."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter

from persistent_runner.study.design import DesignSpace, NoValue
from persistent_runner.study.space import Parameter
from persistent_runner.study.storage import quiet_optuna

WING = {
    "chord": 2.0,
    "thickness": {"type": "float", "low": 0.05, "high": 0.2},
    "ribs": {"type": "int", "low": 2, "high": 8, "step": 2},
    "flap": {"type": "float", "low": 0, "high": 1, "when": "ribs > 4", "otherwise": 0},
    "slot": {"type": "float", "low": 0, "high": 1, "when": "flap > 0.5"},
    "alloy": {"type": "categorical", "choices": ["6061-T6", "7075-T6"]},
    "gap": {"expr": "2 * slot"},
    "volume": {"expr": "area * ribs"},
    "area": {"expr": "chord * thickness"},
}


def space(items: dict[str, Any], *require: str) -> DesignSpace:
    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, Parameter])
    return DesignSpace(adapter.validate_python(items), require)


def asked(designs: DesignSpace, count: int) -> list[dict[str, Any]]:
    quiet_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = []
    for _ in range(count):
        trial = study.ask()
        designs.suggest(trial)
        found.append(designs.complete(trial.params))
    return found


def test_what_follows_and_what_depends() -> None:
    """A parameter is varied when its condition holds, in whatever order it is written; the rest follows from it."""
    wing = space(WING)
    assert list(wing.mistakes()) == []
    designs = asked(wing, 60)
    for design in designs:
        assert design["area"] == design["chord"] * design["thickness"]
        assert design["volume"] == design["area"] * design["ribs"]
        if design["ribs"] <= 4:
            assert (design["flap"], "slot" in design, "gap" in design) == (0, False, False)
        assert ("slot" in design) == (design["flap"] > 0.5) == ("gap" in design)
    assert {design["ribs"] > 4 for design in designs} == {True, False}
    assert any("slot" in design for design in designs)


def test_what_every_design_has() -> None:
    """A template may use what has a value always: not what is varied in some designs only, nor what follows from it."""
    assert set(space(WING).always) == {"chord", "thickness", "ribs", "flap", "alloy", "volume", "area"}


def test_the_same_seed_gives_the_same_designs_with_and_without_conditions() -> None:
    """Suggested one after the other, the proposals are Optuna's own for the same distributions."""
    items = {name: WING[name] for name in ("thickness", "ribs", "alloy")}
    plain = space(items)
    studies = [optuna.create_study(sampler=optuna.samplers.TPESampler(seed=7)) for _ in range(2)]
    for n in range(15):
        one, other = studies[0].ask(), studies[1].ask(plain.distributions)
        plain.suggest(one)
        assert one.params == other.params
        for study, trial in zip(studies, (one, other), strict=True):
            study.tell(trial, float(n))


@pytest.mark.parametrize(
    ("items", "require", "where", "said"),
    [
        ({"area": {"expr": "chort * 2"}}, (), ["space", "area", "expr"], 'did you mean "chord"'),
        ({"x": {"type": "float", "low": 0, "high": 1, "when": "rib > 1"}}, (), ["space", "x", "when"], '"ribs"'),
        (
            {"a": {"expr": "b"}, "b": {"expr": "c + 1"}, "c": {"expr": "a"}},
            (),
            ["space", "a", "expr"],
            "a -> b -> c -> a",
        ),
        ({"a": {"expr": "a + 1"}}, (), ["space", "a", "expr"], "a -> a"),
        ({}, ("thicknes < 1",), ["study", "require"], 'did you mean "thickness"'),
        ({}, ("chord < 3",), ["study", "require"], "nothing in it is varied"),
    ],
)
def test_formulas_that_cannot_work(items: Any, require: Any, where: list[str], said: str) -> None:
    """The place and the nearest name, before anything runs."""
    base = {name: WING[name] for name in ("chord", "thickness", "ribs")}
    ((keys, what),) = space({**base, **items}, *require).mistakes()
    assert keys == where
    assert said in what


def test_by_how_much_a_design_is_not_allowed() -> None:
    """The worst of the conditions, with the values; a condition on what a design does not have is not asked."""
    wing = space(WING, "thickness * ribs <= 0.5", "ribs != 6 or alloy == '6061-T6'", "slot < 0.1")
    allowed = {"thickness": 0.1, "ribs": 2, "alloy": "6061-T6"}
    assert wing.violation(allowed) == (0.0, "")
    missed, what = wing.violation(allowed | {"thickness": 0.2, "ribs": 8, "flap": 0.1})
    assert missed == pytest.approx(1.1)
    assert what == "thickness * ribs <= 0.5 (ribs = 8, thickness = 0.2) does not hold"
    assert wing.violation(allowed | {"ribs": 6, "alloy": "7075-T6", "thickness": 0.05, "flap": 0.2})[0] == 1.0
    assert wing.violation(allowed | {"ribs": 6, "thickness": 0.05, "flap": 0.7, "slot": 0.3})[0] == pytest.approx(0.2)


def test_what_no_design_can_meet() -> None:
    """Many random designs are looked at; one that is allowed is enough. Else each condition is told with its share."""
    said = space(WING, "thickness > 0.3").why_impossible()
    assert said.startswith("none of 2000 designs drawn at random meets it: thickness > 0.3 by 0; mend it")
    said = space(WING, "thickness > 0.1", "thickness < 0.09", "sqrt(slot - 2) > 0").why_impossible()
    counts = [int(count) for count in re.findall(r" by (\d+)", said)]
    assert len(counts) == 3
    assert counts[0] > 1000 > counts[1] > 300
    assert "each is met" in space(WING, "thickness > 0.1", "thickness < 0.09").why_impossible()
    assert space(WING, "thickness > 0.19", "ribs == 8").why_impossible() == ""
    assert space(WING).why_impossible() == ""


def test_a_formula_without_a_value_is_told_by_its_parameter() -> None:
    """What follows, what is varied, and what is allowed may each have none for some design."""
    roots = {"x": {"type": "float", "low": 0, "high": 1}, "root": {"expr": "sqrt(x - 2)"}}
    with pytest.raises(NoValue, match=r"root: sqrt\(x - 2\) \(x = 0.5\): ") as caught:
        space(roots).complete({"x": 0.5})
    assert caught.value.keys == ["space", "root", "expr"]
    assert space(roots, "x < 2").violation({"x": 0.5})[0] == math.inf
    assert space({"x": roots["x"]}, "sqrt(x - 2) > 1").violation({"x": 0.5})[0] == math.inf
    condition = space({"x": roots["x"], "y": roots["x"] | {"when": "1 / x > 2"}})
    with pytest.raises(NoValue, match="divides by zero"):
        condition.suggest(optuna.trial.FixedTrial({"x": 0.0, "y": 0.5}))  # type: ignore[arg-type]


def test_a_condition_over_a_metric_belongs_elsewhere() -> None:
    """A metric is known after the run, when it is too late not to run the design."""
    ((keys, what),) = space(WING, "mass < 100").mistakes(metrics=["mass"])
    assert keys == ["study", "require"]
    assert what == "mass < 100: mass is a metric, which is known after the run only; use [constraints]"


@pytest.mark.parametrize(
    ("design", "name", "said"),
    [
        ({"thicknes": 0.1}, "thicknes", 'did you mean "thickness"'),
        ({"chord": 2.0}, "chord", "is not varied"),
        ({"thickness": 0.3}, "thickness", "0.3 is outside 0.05 to 0.2"),
        ({"thickness": "thin"}, "thickness", "is no number"),
        ({"ribs": 3}, "ribs", "3 is not a whole number of steps (2) above 2"),
        ({"ribs": 4.0}, "ribs", "4.0 is no whole number"),
        ({"alloy": "5083"}, "alloy", "'5083' is none of the choices '6061-T6', '7075-T6'"),
        ({"thickness": 0.2, "ribs": 8, "alloy": "6061-T6"}, "", "thickness * ribs <= 0.5"),
    ],
)
def test_a_first_design_that_the_sampler_could_not_choose(design: dict[str, Any], name: str, said: str) -> None:
    """Optuna would take it as it is: outside the range, off the steps, or with a name that nobody has."""
    ((where, what),) = space(WING, "thickness * ribs <= 0.5").check_design(design)
    assert where == name
    assert said in what


def test_steps_are_counted_in_decimals() -> None:
    """0.3 is three steps of 0.1 above zero, whatever it is in binary."""
    steps = space({"x": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.1}})
    assert [list(steps.check_design({"x": n / 10})) for n in range(11)] == [[]] * 11
    assert list(steps.check_design({"x": 0.25}))


def test_a_part_of_a_design_is_the_samplers_to_fill() -> None:
    """What is left out is no mistake, and is not held against the conditions."""
    wing = space(WING, "thickness * ribs <= 0.5")
    assert list(itertools.chain(wing.check_design({}), wing.check_design({"thickness": 0.2}))) == []
    assert wing.design({"thickness": 1, "ribs": 4}) == {"thickness": 1.0, "ribs": 4}


def test_labels_and_units_are_for_people() -> None:
    """A heading has the label, or the name, and the unit; what is varied stays the same."""
    named = space(
        {
            "t": {"type": "float", "low": 0, "high": 1, "unit": "mm", "label": "thickness"},
            "n": {"type": "int", "low": 1, "high": 2},
            "w": {"type": "float", "low": 0, "high": 1, "unit": "m"},
        }
    )
    assert named.headings == {"t": "thickness [mm]", "n": "n", "w": "w [m]"}
