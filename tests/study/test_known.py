"""`--import`: a table of designs whose results are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.study.known import add_known
from persistent_runner.study.progress import Progress, settled
from persistent_runner.study.results import trials_table
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import quiet_optuna

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """
[study]
n_trials = 4
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
[space]
x = { type = "float", low = 0.0, high = 1.0 }
n = { type = "int", low = 1, high = 9 }
alloy = { type = "categorical", choices = ["6061", "7075-T6"] }
[trial]
command = "true"
[metrics.y]
file = "y.json"
json = "y"
[metrics.stress]
file = "y.json"
json = "s"
[objectives]
y = "minimize"
[constraints]
stress = { max = 2.0 }
"""
HEAD = "params_x,params_n,params_alloy,metrics_y,metrics_stress,state\n"


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    (tmp_path / "study.toml").write_text(STUDY)
    return StudySpec.load(tmp_path)


@pytest.fixture
def study(spec: StudySpec) -> optuna.Study:
    quiet_optuna()
    return optuna.create_study(directions=spec.directions)


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "known.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_known_designs_are_learnt_from_and_did_not_run(spec: StudySpec, study: optuna.Study, tmp_path: Path) -> None:
    """A trials.csv as it is: complete rows once, with metrics and constraints; they may be the best, and count as none."""
    path = table(
        tmp_path, HEAD + "0.5,3,7075-T6,1.5,1.0,COMPLETE\n0.25,4,7075-T6,0.5,3.0,COMPLETE\n1,1,7075-T6,,,FAIL\n"
    )
    assert add_known(spec, study, path) == 2
    assert add_known(spec, study, path) == 0
    found = trials_table(study)
    assert list(found["value"]) == [1.5, 0.5]
    assert list(found["params_n"]) == [3, 4]
    assert list(found["constraints_stress"]) == [-1.0, 1.0]
    progress = Progress()
    progress.count(study)
    assert (progress.best, progress.settled, settled(study)) == ((0, 1.5), 0, 0)


def test_columns_under_their_own_names(spec: StudySpec, study: optuna.Study, tmp_path: Path) -> None:
    """A table that somebody has written, with a mark of UTF-8 before it, and columns of no use here."""
    path = table(tmp_path, "\ufeffnote,x,n,alloy,y,stress\nmine,1,2,6061,3,1\n")
    assert add_known(spec, study, path) == 1
    assert study.trials[0].params == {"x": 1.0, "n": 2, "alloy": "6061"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,n,alloy,stress\n", "there is no column y, nor metrics_y"),
        ("x,n,aloy,y,stress\n", 'there is no column alloy, nor params_alloy; did you mean "aloy"?'),
        (HEAD + "2,3,7075-T6,1,1,COMPLETE\n", "row 2, column params_x: 2 is outside 0 to 1"),
        (HEAD + "1,3,7075-T6,1,1,COMPLETE\n1,3.5,7075-T6,1,1,COMPLETE\n", "row 3, column params_n"),
        (HEAD + "1,3,2024,1,1,COMPLETE\n", "row 2, column params_alloy"),
        (HEAD + "1,3,7075-T6,nan,1,COMPLETE\n", "row 2, column metrics_y: nan is no finite number"),
        (HEAD + "1,3,7075-T6,much,1,COMPLETE\n", "row 2, column metrics_y: 'much' is no finite number"),
        (HEAD + "1,3,7075-T6,1,,COMPLETE\n", "row 2, column metrics_stress: the cell is empty"),
    ],
)
def test_a_row_that_could_not_be_a_trial(
    text: str, said: str, spec: StudySpec, study: optuna.Study, tmp_path: Path
) -> None:
    """It is named with its column, and nothing is imported, of the good rows neither."""
    with pytest.raises(ConfigError, match=r"--import .*known\.csv: ") as caught:
        add_known(spec, study, table(tmp_path, text))
    assert said in caught.value.message
    assert study.trials == []


def test_a_file_that_is_not_there(spec: StudySpec, study: optuna.Study, tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        add_known(spec, study, tmp_path / "nothing.csv")
