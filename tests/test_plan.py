"""What a study.toml, the environment and the defaults make of a lease's guard."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.plan import guard_of, spec_guard
from persistent_runner.settings import load_settings
from persistent_runner.study.spec import StudySpec
from tests.driving import Place

if TYPE_CHECKING:
    from pathlib import Path

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
