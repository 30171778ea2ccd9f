"""What is wrong between the tables of a study.toml and with its files: told with the line, and with what to mend."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.study.spec import StudySpec

if TYPE_CHECKING:
    from pathlib import Path

BEAM = """[study]
n_trials = 12
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
[space]
height = { type = "float", low = 0.02, high = 0.20 }
width = { type = "float", low = 0.02, high = 0.20 }
[trial]
inputs = ["case/"]
command = "python3 beam.py beam.inp"
[metrics.mass]
file = "report.txt"
regex = 'mass = (.*)'
[metrics.cost]
file = "report.txt"
regex = 'cost = (.*)'
[objectives]
cost = "minimize"
"""
DECK = "@{ height }@ @{ width }@"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study" / "case").mkdir(parents=True)
    (tmp_path / "study" / "case" / "beam.inp.j2").write_text(DECK)
    (tmp_path / "study" / "case" / "beam.py").write_text("")
    return tmp_path / "study"


def told(folder: Path, *changes: tuple[str, str], sets: tuple[str, ...] = (), n_trials: str = "") -> ConfigError:
    """Return the error of the study with these changes of its text."""
    text = BEAM
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "study.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        StudySpec.load(folder, sets, {"--n-trials": f"study.n_trials={n_trials}"} if n_trials else {})
    assert caught.value.remedy.endswith("; nothing was leased.")
    return caught.value


REQUIRE = ("n_trials = 12", "n_trials = 12\nrequire = [{}]")
START = ("[trial]", "[[start]]\nheight = 0.1\n\n[[start]]\nwidth = 0.1\nheight = {}\n[trial]")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # the sampler
        ([("n_trials = 12", 'n_trials = 12\nsampler = { name = "tpe", n_startup_trials = "five" }')], 'study.toml: [study] sampler (line 3): tpe\'s n_startup_trials must be a whole number, not "five"'),
        ([("n_trials = 12", 'n_trials = 12\nsampler = "grid"')], "study.toml: [space] (line 8): the grid sampler needs a step for height, width; write one"),
        # commands
        ([("python3 beam.py beam.inp", "echo 'abc")], "study.toml: [trial] command (line 12): bash does not understand it: line 1: unexpected EOF"),
        ([("[space]", '[setup]\ncommand = ["make", "if true; then"]\n[space]')], "study.toml: [setup] command (line 8): bash does not understand it: line 3: "),
        ([("python3 beam.py", "python3 baem.py")], 'study.toml: [trial] command (line 12): the command begins with python3 baem.py, and no input has that name; did you mean "beam.py"?'),
        # what is allowed
        ([(REQUIRE[0], REQUIRE[1].format('"height * 2"'))], 'require[0] (line 3): "height * 2" is no comparison; write it as in height * 2 > 0'),
        ([(REQUIRE[0], REQUIRE[1].format('"height > 0 and width"'))], "is no comparison"),
        ([(REQUIRE[0], REQUIRE[1].format('"height = 0.1"'))], "require[0] (line 3): 'height = 0.1' is no formula: compare with =="),
        ([(REQUIRE[0], REQUIRE[1].format('"height > 0 && width > 0"'))], "write and for &&"),
        ([(REQUIRE[0], REQUIRE[1].format('"mass < 100"'))], "require (line 3): mass < 100: mass is a metric, which is known after the run only; use [constraints]"),
        ([(REQUIRE[0], REQUIRE[1].format('"height > 0.1", "height < 0.05"'))], "; each is met by some, never all at once; mend it"),
        # designs
        ([(START[0], START[1].format("0.5"))], "study.toml: [[start]] 2, height (line 15): 0.5 is outside 0.02 to 0.2"),
        ([(START[0], START[1].format("'tall'"))], "study.toml: [[start]] 2, height (line 15): 'tall' is no number"),
        ([(START[0], START[1].format("true"))], "study.toml: [[start]] 2, height (line 15): must be a number"),
        ([(REQUIRE[0], REQUIRE[1].format('"height + width < 0.2"')), (START[0], START[1].format("0.15"))], "study.toml: [[start]] 2 (line 14): is not allowed: height + width < 0.2"),
        ([("[trial]", '[baseline]\nheight = { type = "float", low = 0, high = 1 }\n[trial]')], "[baseline] height (line 11): must be a value, a number or text in quotes: the range stands in [space]"),
        # circles
        ([("[trial]", 'a = { expr = "b" }\nb = { expr = "a" }\n[trial]')], "study.toml: [space] a.expr (line 10): a formula goes in a circle: a -> b -> a"),
        ([("[metrics.mass]", '[metrics.a]\nexpr = "b"\n[metrics.b]\nexpr = "a"\n[metrics.mass]')], "study.toml: [metrics.a] expr (line 14): an expr goes in a circle: a -> b -> a"),
        # inputs
        ([('["case/"]', '["case/", "case/beam.py"]')], '[trial] inputs (line 11): "case/beam.py" is named twice: "case/" has beam.py already; remove one'),
        ([('["case/"]', '["case/", "case/"]')], '[trial] inputs (line 11): "case/" is there twice; remove one'),
        ([("n_trials", "n_trails")], 'study.toml: [study] n_trails (line 2): there is no such key; did you mean "n_trials"?'),
    ],
)  # fmt: skip
def test_a_mistake_in_study_toml(folder: Path, changes: list[tuple[str, str]], said: str) -> None:
    """It is told once, with table, key and line; study.toml is what is to be mended."""
    error = told(folder, *changes)
    assert said in error.message
    assert error.remedy == f"Mend {folder / 'study.toml'}; nothing was leased."
    assert len(error.message.splitlines()) == 1


def test_one_start_that_is_allowed_hides_no_impossible_condition(folder: Path) -> None:
    """Where the sampler has nothing to choose, nothing is asked of it; else some design must be allowed."""
    narrow = (REQUIRE[0], REQUIRE[1].format('"height == 0.1"'))
    start = (START[0], START[1].format("0.1"))
    said = told(folder, narrow, start).message
    assert "none of 2000 designs drawn at random meets it: height == 0.1 by 0; mend it" in said
    assert StudySpec.load(folder, ["study.n_trials=2"]).study.n_trials == 2


def test_a_mistake_in_a_template_is_mended_there(folder: Path) -> None:
    """The line of the template, with its folder; study.toml is not named."""
    (folder / "case" / "beam.inp.j2").write_text(f"{DECK}\n@{{ heigth }}@")
    error = told(folder)
    assert error.message == 'case/beam.inp.j2, line 2: heigth: there is no parameter "heigth"; did you mean "height"?'
    assert error.remedy == f"Mend {folder / 'case' / 'beam.inp.j2'}; nothing was leased."
    assert "study.toml and " in told(folder, ("12", '"x"')).remedy


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_mistake_in_a_script_is_mended_there(folder: Path) -> None:
    """Windows line ends, a missing execute bit, and two inputs in one place are no faults of study.toml."""
    script = folder / "case" / "run.sh"
    script.write_bytes(b"#!/bin/sh\r\n")
    error = told(folder, ("python3 beam.py", "./run.sh"))
    assert "is a script with Windows line ends" in error.message
    assert "is not executable" in error.message
    assert error.remedy == f"Mend {script}; nothing was leased."
    (folder / "other").mkdir()
    (folder / "other" / "beam.py").write_text("")
    error = told(folder, ('["case/"]', '["case/", "other"]'))
    assert 'two inputs land on "beam.py"' in error.message
    assert str(folder / "study.toml") not in error.remedy


def test_a_mistake_of_an_option_is_mended_there(folder: Path) -> None:
    """The option is named, and not the file that does not hold it."""
    error = told(folder, sets=("cluster.cores=x",))
    assert error.message == '--set: [cluster] cores: must be a whole number, not "x"'
    assert error.remedy == "Mend --set cluster.cores; nothing was leased."
    steps = [("0.20 }", "0.20, step = 0.09 }"), ("0.20 }", "0.20, step = 0.09 }")]
    grid = [("12", '1\nsampler = "grid"'), *steps]
    error = told(folder, *grid, n_trials="10")
    assert error.message == "--n-trials: [study] n_trials: is 10, and the grid has 9 designs; lower it"
    assert error.remedy == "Mend --n-trials; nothing was leased."


def test_what_may_be_a_mistake_is_no_error(folder: Path) -> None:
    """Parameters that nothing fills in are told where the study is loaded to be run or rehearsed."""
    (folder / "study.toml").write_text(BEAM)
    assert list(StudySpec.load(folder).warnings()) == []
    (folder / "case" / "other.inp").write_text("@{ width }@")
    assert list(StudySpec.load(folder).warnings()) == [
        'case/other.inp, line 1 holds "@{ width", but is no template: rename it to other.inp.j2'
    ]
