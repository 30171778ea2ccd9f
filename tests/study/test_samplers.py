"""[study] sampler: names, options, extras, and samplers of the user's own."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from persistent_runner.study.samplers import SamplerChoice, grid, make_sampler, refusal
from persistent_runner.study.storage import quiet_optuna

if TYPE_CHECKING:
    from pathlib import Path

FLOAT = optuna.distributions.FloatDistribution
SPACE = {"x": FLOAT(0.0, 0.3, step=0.1), "n": optuna.distributions.IntDistribution(1, 5, step=2)}


def choice(value: object) -> dict[str, Any]:
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(SamplerChoice)
    return adapter.validate_python(value)


def made(value: object, folder: Path, seed: int | None = 1) -> optuna.samplers.BaseSampler:
    return make_sampler(choice(value), seed, folder, SPACE)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("tpe", "TPESampler"),
        ({"name": "tpe", "n_startup_trials": 3, "multivariate": False}, "TPESampler"),
        ("random", "RandomSampler"),
        ({"name": "nsga2", "population_size": 8, "crossover_prob": 1}, "NSGAIISampler"),
        ("nsga3", "NSGAIIISampler"),
        ("cmaes", "CmaEsSampler"),
        ({"name": "cmaes", "n_startup_trials": 2, "popsize": 6}, "CmaEsSampler"),
        ("gp", "GPSampler"),
        ({"name": "qmc", "qmc_type": "halton", "scramble": True}, "QMCSampler"),
        ("grid", "WholeGrid"),
    ],
)
def test_a_sampler_by_its_name_proposes_and_learns(value: Any, kind: str, tmp_path: Path) -> None:
    """Each goes through a small study in ask and tell, without a warning; where its extra is missing, that is said."""
    name = value if isinstance(value, str) else value["name"]
    needs = {"cmaes": ["cmaes"], "gp": ["scipy", "torch"], "qmc": ["scipy"]}.get(name, [])
    if any(importlib.util.find_spec(module) is None for module in needs):
        with pytest.raises(ValueError, match=r"needs .*; install it with: pip install "):
            made(value, tmp_path)
        return
    quiet_optuna()
    sampler = made(value, tmp_path)
    assert type(sampler).__name__ == kind
    study = optuna.create_study(sampler=sampler)
    for n in range(12):
        trial = study.ask(SPACE)
        study.tell(trial, float(n))
    assert len(study.trials) == 12


def test_a_grid_goes_through_every_design_once(tmp_path: Path) -> None:
    """Twelve designs, each once, and the end of the grid is no error."""
    quiet_optuna()
    study = optuna.create_study(sampler=made("grid", tmp_path))
    for _ in range(12):
        study.tell(study.ask(SPACE), 1.0)
    assert {(trial.params["x"], trial.params["n"]) for trial in study.trials} == {
        (x, n) for x in (0.0, 0.1, 0.2, 0.3) for n in (1, 3, 5)
    }
    with pytest.raises(ValueError, match="the grid sampler needs a step for y, z; write"):
        grid({"y": FLOAT(0, 1), **SPACE, "z": FLOAT(0, 1)})
    with pytest.raises(ValueError, match="1000000 designs"):
        grid({name: optuna.distributions.IntDistribution(1, 100) for name in "abc"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tpee", 'did you mean "tpe"? There are tpe, cmaes'),
        (
            "bayes",
            '"bayes" is no sampler; there are tpe, cmaes, gp, nsga2, nsga3, qmc, random, grid, and "module:callable"',
        ),
        (3, "must be a name"),
        ({"n_startup_trials": 3}, "must be a name"),
        ({"name": "tpe", "seed": 3}, "seed is a key of"),
        ({"name": "tpe", "gamma": [1]}, "gamma takes a number"),
    ],
)
def test_what_is_no_sampler(value: object, said: str) -> None:
    """The message says what is."""
    with pytest.raises(ValidationError, match=said.replace("?", r"\?")):
        choice(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"name": "tpe", "n_startup": 3}, 'tpe has no option n_startup; did you mean "n_startup_trials"'),
        ({"name": "tpe", "gamma": 3}, "tpe has no option gamma"),
        ({"name": "nsga2", "population_size": 1}, "nsga2 does not take population_size = 1"),
        ({"name": "random", "x": 1}, "random has no option x"),
        ({"name": "tpe", "n_startup_trials": "five"}, 'tpe\'s n_startup_trials must be a whole number, not "five"'),
        ({"name": "tpe", "n_startup_trials": 2.5}, "must be a whole number, not 2.5"),
        ({"name": "tpe", "n_startup_trials": True}, "must be a whole number, not true"),
        ({"name": "nsga2", "crossover_prob": "much"}, 'crossover_prob must be a number, not "much"'),
        ({"name": "tpe", "group": 1}, "tpe's group must be true or false, not 1"),
        ({"name": "cmaes", "popsize": "x"}, "popsize must be a whole number"),
        ({"name": "qmc", "qmc_type": 1}, "qmc_type must be text in quotes, not 1"),
        ({"name": "cmaes", "sigma0": 0.2}, "cmaes does not take sigma0 = 0.2: .*deprecated"),
        ("nothing_here:make", "nothing_here cannot be imported"),
        ("mine:mak", 'mine has no mak; did you mean "make"'),
        ("mine:wrong", "gave a int, and not a sampler"),
        ("mine:broken", "mine:broken failed: ZeroDivisionError"),
    ],
)
def test_what_a_sampler_does_not_take(value: object, said: str, tmp_path: Path) -> None:
    """An option that is none, or a value that Optuna refuses, is said in words."""
    (tmp_path / "mine.py").write_text(
        "import optuna\n"
        "def make(seed, width=1): return optuna.samplers.RandomSampler(seed=seed)\n"
        "def wrong(): return 3\n"
        "def broken(): return 1 / 0\n"
    )
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        made(value, tmp_path)


def test_a_sampler_of_ones_own(tmp_path: Path) -> None:
    """A callable of a module beside the study gets the seed and its options."""
    (tmp_path / "own_sampler_of_a_study.py").write_text(
        "import optuna\n"
        "def make(seed, startup): return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)\n"
    )
    sampler = made({"name": "own_sampler_of_a_study:make", "startup": 4}, tmp_path)
    assert isinstance(sampler, optuna.samplers.TPESampler)


def test_a_sampler_that_cannot_serve_the_study_is_refused() -> None:
    """Before anything runs, with what to write instead."""
    assert "one objective" in refusal(choice("cmaes"), 2, conditional=False, constraints=False)
    assert "does not see" in refusal(choice("cmaes"), 1, conditional=False, constraints=True)
    assert "with when" in refusal(choice("grid"), 1, conditional=True, constraints=False)
    assert refusal(choice("tpe"), 3, conditional=True, constraints=True) == ""
