"""What a study.toml asks for: its lease's guard, its first parameters, its budget, and what is said of mistakes in it."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.lease.guard import Budget, Guard
from persistent_runner.lease.meter import Cost
from persistent_runner.lease.platform import Quote
from persistent_runner.plan import (
    check_budget,
    first_parameters,
    guard_of,
    load_study,
    quote_of,
    rehearse,
    rendered,
    request_of,
    spec_guard,
)
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import load_settings
from persistent_runner.study.spec import StudySpec
from tests.driving import Place

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.local_platform.local import LocalRescale

MINUTE = timedelta(minutes=1)
NAMES = ("BEAT", "KEEPER_TICK", "ORPHAN_IDLE", "ORPHAN_BUSY", "HANG")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no setting of the developer's own shell in the way."""
    for name in NAMES:
        monkeypatch.delenv(f"PERSISTENT_RUNNER_{name}", raising=False)


def a_spec(folder: Path, *sets: str) -> StudySpec:
    return StudySpec.load(Place(folder).study(), sets)


def test_study_toml_wins_over_the_environment_and_that_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The precedence of every value, here of the two limits."""
    guard = spec_guard(a_spec(tmp_path), load_settings())
    assert (guard.orphan_idle, guard.orphan_busy) == (10 * MINUTE, 40 * MINUTE)
    monkeypatch.setenv("PERSISTENT_RUNNER_ORPHAN_IDLE", "7m")
    monkeypatch.setenv("PERSISTENT_RUNNER_ORPHAN_BUSY", "70m")
    guard = spec_guard(a_spec(tmp_path), load_settings())
    assert (guard.orphan_idle, guard.orphan_busy) == (7 * MINUTE, 70 * MINUTE)
    guard = spec_guard(a_spec(tmp_path, "cluster.orphan_idle=8m", "cluster.orphan_busy=80m"), load_settings())
    assert (guard.orphan_idle, guard.orphan_busy) == (8 * MINUTE, 80 * MINUTE)


@pytest.mark.parametrize(
    ("timeout", "idle", "busy"), [("2h", "10m", 125), ("1m", "10m", 10), ("20m", "30m", 30), (None, "50m", 50)]
)
def test_a_running_trial_has_the_time_that_it_may_take(tmp_path: Path, timeout, idle, busy) -> None:
    """orphan_busy follows the trials' timeout with five minutes more, and is never below orphan_idle."""
    sets = [f"cluster.orphan_idle={idle}"] + ([f"trial.timeout={timeout}"] if timeout else [])
    assert spec_guard(a_spec(tmp_path, *sets), load_settings()).orphan_busy == busy * MINUTE


def test_what_was_said_of_orphan_busy_wins_over_the_timeout(tmp_path: Path) -> None:
    """Who wants a long trial to be cut says so."""
    spec = a_spec(tmp_path, "trial.timeout=2h", "cluster.orphan_busy=15m")
    assert spec_guard(spec, load_settings()).orphan_busy == 15 * MINUTE


def test_the_rest_comes_from_the_settings_and_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat, tick and hang are the machine's; switch and host key are the study's."""
    for name, value in (("BEAT", "2s"), ("KEEPER_TICK", "3s"), ("HANG", "4m")):
        monkeypatch.setenv(f"PERSISTENT_RUNNER_{name}", value)
    guard = spec_guard(a_spec(tmp_path), load_settings())
    assert (guard.beat, guard.tick, guard.hang) == (timedelta(seconds=2), timedelta(seconds=3), 4 * MINUTE)
    assert (guard.keeper, guard.unverified) == (True, False)
    bare = spec_guard(a_spec(tmp_path, "cluster.keeper=false", "cluster.host_key=accept-unverified"), load_settings())
    assert (bare.keeper, bare.unverified) == (False, True)


def test_a_beat_that_is_too_slow_for_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two beats and a look of the switch must fit in, or one lost packet ends a cluster under its driver."""
    with pytest.raises(ConfigError, match=r"orphan_idle is 54s.*every 20s.*every 15s") as caught:
        guard_of(load_settings(), orphan_idle=timedelta(seconds=54))
    assert "PERSISTENT_RUNNER_BEAT" in caught.value.remedy
    assert guard_of(load_settings(), orphan_idle=timedelta(seconds=55)).orphan_idle == timedelta(seconds=55)
    monkeypatch.setenv("PERSISTENT_RUNNER_BEAT", "5s")
    assert guard_of(load_settings(), orphan_idle=timedelta(seconds=54)).orphan_idle == timedelta(seconds=54)


def a_deck(folder: Path, deck: str, **keys: str) -> StudySpec:
    """Load a study of x and a constant with a template, and with other keys in [space] and [study]."""
    path = Place(folder).study("cat deck.inp")
    text = (path / "study.toml").read_text("utf-8").replace("[trial]", '[trial]\ninputs = ["case/"]')
    text = text.replace("[space]", f"[space]\n{keys.get('space', '')}").replace(
        'sampler = "random"', keys.get("study", "")
    )
    (path / "study.toml").write_text(text, encoding="utf-8")
    (path / "case").mkdir(exist_ok=True)
    (path / "case" / "deck.inp.j2").write_text(deck)
    return load_study(path, (), None, None)


def test_a_value_that_trial_0_cannot_hold_names_the_template_with_its_folder(tmp_path: Path) -> None:
    """Nothing was leased, and what is to be mended is the template."""
    spec = a_deck(tmp_path, "\n@{ x | fixed }@")
    with pytest.raises(ConfigError) as caught:
        rendered(spec, first_parameters(spec))
    assert caught.value.message == (
        "case/deck.inp.j2, line 2: x | fixed: fixed takes a whole number from 0 to 60, as in | fixed(4)"
    )
    assert caught.value.remedy == f"Mend {spec.folder / 'case' / 'deck.inp.j2'}; nothing was leased."


def test_a_value_that_fits_in_trial_0_only_is_found(tmp_path: Path) -> None:
    """Random designs are tried as well, and the one that does not fit is told; what is not allowed is not tried."""
    spec = a_deck(tmp_path, "@{ x | width(25) }@")
    rehearse(spec)
    spec = a_deck(tmp_path, "@{ x | width(19) }@")
    rendered(spec, first_parameters(spec))
    with pytest.raises(
        ConfigError, match=r"deck\.inp\.j2, line 1: .*does not fit into 19.* \(in a design with x = 0\.0"
    ):
        rehearse(spec)
    rehearse(a_deck(tmp_path, "@{ x | width(19) }@", study='require = ["x > 0.1"]'))


def test_a_formula_without_a_value_in_trial_0_is_told_with_its_line(tmp_path: Path) -> None:
    """The parameter, the design and the way out; it is a mistake of study.toml."""
    spec = a_deck(tmp_path, "@{ x }@ @{ root }@", space='root = { expr = "sqrt(x - 2)" }')
    with pytest.raises(
        ConfigError, match=r"study\.toml: \[space\] root\.expr \(line 13\): sqrt\(x - 2\) \(x = "
    ) as caught:
        first_parameters(spec)
    assert "exclude such designs by [study] require" in caught.value.message


def test_a_formula_without_a_value_in_other_designs_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such trials fail and the study goes on, as it may be meant; where `require` excludes them nothing is said."""
    space = 'root = { expr = "sqrt(x - 0.1)" }'
    rehearse(a_deck(tmp_path, "@{ x }@ @{ root }@", space=space))
    assert "Some trials will fail: study.toml: [space] root.expr (line 13): sqrt(x - 0.1) (x = 0.0" in caplog.text
    caplog.clear()
    rehearse(a_deck(tmp_path, "@{ x }@ @{ root }@", space=space, study='require = ["x > 0.1"]'))
    assert caplog.text == ""


def test_whatever_a_sampler_raises_is_told_with_its_options(tmp_path: Path) -> None:
    """A value that Optuna takes and cannot work with, and a bug in a sampler of one's own."""
    options = 'sampler = { name = "tpe", n_startup_trials = 0, n_ei_candidates = 0 }'
    spec = a_deck(tmp_path, "@{ x }@", study=options)
    told = r"\[study\] sampler \(line 5\): tpe with n_startup_trials = 0, n_ei_candidates = 0 cannot propose a design: ValueErr"
    with pytest.raises(ConfigError, match=told):
        first_parameters(spec)
    (spec.folder / "own_sampler_of_test_plan.py").write_text(
        "import optuna\n"
        "class Broken(optuna.samplers.RandomSampler):\n"
        "    def sample_independent(self, *_):\n"
        "        return {}['bug']\n"
        "def make(): return Broken()\n"
    )
    spec = a_deck(tmp_path, "@{ x }@", study='sampler = "own_sampler_of_test_plan:make"')
    with pytest.raises(ConfigError, match="own_sampler_of_test_plan:make cannot propose a design: KeyError: 'bug'"):
        first_parameters(spec)


def test_a_sampler_that_proposes_nothing_allowed_ends(tmp_path: Path) -> None:
    """One that keeps to designs that `require` excludes is given up, not waited for."""
    path = Place(tmp_path).study()
    (path / "own_corner_of_test_plan.py").write_text(
        "import optuna\n"
        "class Corner(optuna.samplers.RandomSampler):\n"
        "    def sample_independent(self, *_): return 0.0\n"
        "def make(): return Corner()\n"
    )
    sampler = "study.sampler='own_corner_of_test_plan:make'"
    spec = StudySpec.load(path, [sampler, 'study.require=["x > 0.5"]'])
    with pytest.raises(ConfigError, match=r"proposed 1000 designs .*; the last one: x > 0\.5 \(x = 0\.0\)"):
        first_parameters(spec)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((), "study.toml: [cluster] core_type (line 8): The platform has no core type 'emerld'"),
        (("cluster.core_type=emerald", "cluster.cores=3"), "--set: [cluster] cores: The core type emerald does not"),
        (("cluster.core_type=emerald", "cluster.walltime=9000h"), "--set: [cluster] walltime: walltime is 9000 h"),
        (("cluster.core_type=emerald", "cluster.project=nn"), "--set: [cluster] project: The platform has no project"),
        (
            ("cluster.core_type=emerald", 'cluster.software=[{analysis="user_included", version="9"}]'),
            "--set: [cluster] software: The platform has no version of user_included '9'",
        ),
    ],
)
def test_what_the_account_does_not_have_is_told_with_its_line(
    tmp_path: Path, rescale: LocalRescale, sets: tuple[str, ...], said: str
) -> None:
    """The platform says what is wrong, and the study where that stands."""
    spec = StudySpec.load(Place(tmp_path).study(core_type="emerld"), sets)
    with contextlib.closing(RescalePlatform(rescale.base_url, rescale.api_key)) as platform:
        with pytest.raises(ConfigError) as caught:
            quote_of(spec, request_of(spec), platform)
        assert caught.value.message.startswith(said)
        assert caught.value.remedy.endswith("; nothing was leased.")


def test_a_budget_that_is_too_small_for_any_cluster(tmp_path: Path) -> None:
    """Before anything is spent it is a mistake of study.toml; afterwards it is a budget that is used up."""
    spec = a_spec(tmp_path, "study.max_cost=0.001")
    quote, guard = Quote(3.6, 1, 2, ()), Guard(tick=timedelta(seconds=15))
    told = r"max_cost: 0\.001 is too little for any cluster at 3\.60 an hour; at least 0\.06 is needed"
    with pytest.raises(ConfigError, match=told):
        check_budget(spec, quote, guard, Budget(0.001))
    check_budget(spec, quote, guard, Budget(0.001, earlier=Cost(60, 60, 0.01, 0.01)))
    check_budget(a_spec(tmp_path, "study.max_cost=0.07"), quote, guard, Budget(0.07))
    check_budget(a_spec(tmp_path), quote, guard, Budget())
