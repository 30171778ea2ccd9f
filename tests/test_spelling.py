"""The nearest valid name: near ones only."""

from __future__ import annotations

import pytest

from persistent_runner.spelling import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "valid", "near"),
    [
        ("n_trails", ["n_trials", "name"], "n_trials"),
        ("Emerld", ["emerald", "onyx"], "emerald"),
        ("rnu.sh", ["run.sh", "beam.inp"], "run.sh"),
        ("bayes", ["tpe", "cmaes"], None),
        ("nothere", ["inter"], None),
        ("x", [], None),
    ],
)
def test_only_what_is_near_is_suggested(name: str, valid: list[str], near: str | None) -> None:
    """A far-fetched guess misleads; then the valid names are told instead."""
    assert nearest(name, valid) == near
    assert ("did you mean" in did_you_mean(name, valid)) == (near is not None)


def test_what_there_is() -> None:
    """At most so many names, and other words where there are none."""
    assert did_you_mean("q", ["a", "b", "c"], most=2) == "there is a, b and 1 more"
    assert did_you_mean("q", []) == "there are none"
    assert did_you_mean("q", [], none="the folder is empty") == "the folder is empty"
