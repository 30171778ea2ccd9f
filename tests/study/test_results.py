"""What a user relies on when numbers are read out of output files, and in the table of trials."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import optuna
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from persistent_runner.errors import ResultMissing, TrialFailed
from persistent_runner.study.results import USER_ATTRIBUTE, Extract, read_metric, trials_table

if TYPE_CHECKING:
    from pathlib import Path

optuna.logging.set_verbosity(optuna.logging.WARNING)


def read(folder: Path, text: str | bytes, **rule: str) -> float:
    file = folder / "out.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metric(Extract(file="out.txt", **rule), folder, name="drag")


def refused(folder: Path, text: str | bytes, **rule: str) -> str:
    with pytest.raises(ResultMissing) as caught:
        read(folder, text, **rule)
    assert isinstance(caught.value, TrialFailed)
    assert str(caught.value).startswith("metric drag: out.txt: ")
    assert "[metrics.drag]" in caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x,cd\n1,0.5\n2,0.25\n", 0.25),
        (" x , cd \r\n 1 , 0.5 \r\n", 0.5),
        ('"x","cd"\n1,"2.5"\n', 2.5),
        ("\ufeffcd,x\n3,1\n", 3.0),
        ("x;cd\n1;4\n", 4.0),
        ("x\tcd\n1\t5\n", 5.0),
        ("  x    cd\n  1   6\n\n", 6.0),
        ("# forces\n# Re: 100\n#  x  cd\n1 7\n2 8\n", 8.0),
        ("# a comment\nx,cd\n1,9\n", 9.0),
        ("x,cd\n1,1.5D-3\n", 1.5e-3),
        ("x,cd\n1,10,\n", 10.0),
        ("x,cd\ntotal,-.5\n", -0.5),
        ("cd\n11\n", 11.0),
    ],
)
def test_a_column_of_a_table(tmp_path: Path, text: str, expected: float) -> None:
    """A column is found by its name in the tables that solvers write: commas, semicolons, tabs, blanks, `#` heads."""
    assert read(tmp_path, text, column="cd") == expected


@pytest.mark.parametrize(("reduce", "expected"), [("first", 3), ("last", 2), ("min", 1), ("max", 3), ("mean", 2)])
def test_reduce_chooses_among_several(tmp_path: Path, reduce: str, expected: float) -> None:
    """One rule for columns, matches and lists in JSON."""
    assert read(tmp_path, "cd\n3\n1\n2\n", column="cd", reduce=reduce) == expected
    assert read(tmp_path, "cd=3\ncd=1\ncd=2\n", regex=r"cd=(\S+)", reduce=reduce) == expected
    assert read(tmp_path, '{"cd": [3, 1, 2]}', json="cd", reduce=reduce) == expected


def test_the_last_match_of_a_regex_counts(tmp_path: Path) -> None:
    """A log that repeats its numbers gives the newest one; ^ and $ mean a line."""
    assert read(tmp_path, "Cd = 1\r\nCd = 0.25\r\nend", regex=r"^Cd\s*=\s*(\S+)\s*$") == 0.25


def test_a_path_in_json(tmp_path: Path) -> None:
    """Keys and positions are joined by dots."""
    assert read(tmp_path, '{"a": {"b": [{"c": 7}, {"c": 8.5}]}}', json="a.b.0.c") == 7.0
    assert read(tmp_path, '{"a": {"b": [{"c": 7}, {"c": 8.5}]}}', json="a.b.-1.c") == 8.5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_exactly(tmp_path: Path, value: float) -> None:
    """What a solver printed with all digits is what the sampler is told."""
    assert read(tmp_path, f"x,cd\n1,{value!r}\n", column="cd") == value
    assert read(tmp_path, f"cd is {value!r} here", regex=r"cd is (\S+)") == value
    assert read(tmp_path, json.dumps({"cd": value}), json="cd") == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters=',;\t"\n\r')))
def test_no_text_becomes_a_surprising_number(tmp_path: Path, cell: str) -> None:
    """A cell is a finite decimal number, or an error of ours: never NaN, and never another exception."""
    try:
        value = read(tmp_path, f"x,cd\n1,{cell}\n", column="cd")
    except ResultMissing:
        return
    assert math.isfinite(value)
    assert value == float(cell.strip().lower().replace("d", "e"))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("nan", "line 2 holds nan, which is not a finite number"),
        ("-inf", "line 2 holds -inf, which is not a finite number"),
        ("Infinity", "not a finite number"),
        ("1e999", "not a finite number"),
        ("9" * 400, "not a finite number"),
        ("True", 'line 2 holds "True", which is not a number'),
        ("failed", 'line 2 holds "failed", which is not a number'),
        ("1_000", "not a number"),
        ("0x10", "not a number"),
        ("1.5 m", "not a number"),
        ("", "line 2 holds no value"),
    ],
)
def test_cells_that_are_no_numbers(tmp_path: Path, cell: str, message: str) -> None:
    """Text, booleans, NaN, infinities and numbers beyond a float fail the trial with their line."""
    assert message in refused(tmp_path, f"x,cd\n1,{cell}\n", column="cd")


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "true", "null", '"1.5"', "1" + "0" * 400, "9" * 5000, "{}"]
)
def test_json_values_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    """JSON is as strict: a number in quotes is text, and an integer beyond a float is refused."""
    assert "cd holds" in refused(tmp_path, f'{{"cd": {value}}}', json="cd")


def test_a_mean_that_overflows(tmp_path: Path) -> None:
    """Finite numbers whose mean is none fail the trial like any other infinity."""
    assert "overflow" in refused(tmp_path, "cd\n1e308\n1e308\n", column="cd", reduce="mean")


def test_only_the_chosen_row_must_be_a_number(tmp_path: Path) -> None:
    """With `last` an earlier failed step does no harm; with `max` it does."""
    table = "cd\nfailed\n2\n"
    assert read(tmp_path, table, column="cd") == 2
    assert "line 2" in refused(tmp_path, table, column="cd", reduce="max")


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("", {"column": "cd"}, "the file is empty"),
        (" \n\n", {"json": "cd"}, "the file is empty"),
        (b"\0\1cd", {"regex": "(cd)"}, "not text"),
        ("x,Cd\n1,2\n", {"column": "cd"}, 'the column "cd" is not there; did you mean "Cd"? (columns: x, Cd)'),
        ("cd,cd\n1,2\n", {"column": "cd"}, "stands there more than once"),
        ("x,cd\n", {"column": "cd"}, "a header and no rows"),
        ("# only\n# comments\n", {"column": "cd"}, "the table has no rows"),
        ("x,cd\n1\n", {"column": "cd"}, "line 2 holds no value"),
        ("iteration 1\nDrag: 5\n", {"regex": r"drag\s*=\s*(\d+)"}, "the nearest lines are:\n    Drag: 5"),
        ("a\nb\nc\nd\n", {"regex": r"(\d+)"}, "    b\n    c\n    d"),
        ("cd=none", {"regex": r"cd=(\d+)?"}, "line 1 holds no value"),
        ("{", {"json": "cd"}, "this is not JSON"),
        ("[" * 100_000, {"json": "cd"}, "nested too deeply"),
        ('{"forces": {"Cd": 1}}', {"json": "forces.cd"}, 'at "forces" there is no key "cd"; did you mean "Cd"?'),
        ("[1]", {"json": "3"}, 'at the top stands a list of 1; "3" is no position in it'),
        ("[]", {"json": "0"}, "a list of 0"),
        ('{"cd": []}', {"json": "cd"}, "an empty list"),
        ('{"cd": 1}', {"json": "cd.x"}, 'at "cd" stands 1.0, so there is no "x" below it'),
    ],
)
def test_a_number_that_is_not_there_says_what_is(tmp_path: Path, text: str, rule: dict[str, str], message: str) -> None:
    """The message shows the nearest columns, lines or keys, so that nobody has to open the file first."""
    assert message in refused(tmp_path, text, **rule)


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    """A file with another name is suggested."""
    (tmp_path / "report.csv").write_text("cd\n1\n")
    with pytest.raises(ResultMissing, match=r'reports\.csv: the file is not there; .* did you mean "report\.csv"\?'):
        read_metric(Extract(file="reports.csv", column="cd"), tmp_path, name="drag")


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    """An output that is a link to a file of this machine gives no number."""
    (tmp_path / "secret").write_text("cd\n1\n")
    folder = tmp_path / "00000"
    folder.mkdir()
    (folder / "out.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(ResultMissing, match="a link that leaves the trial's folder"):
        read_metric(Extract(file="out.csv", column="cd"), folder, name="drag")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A field file named by mistake does not fill the memory."""
    with (tmp_path / "out.txt").open("wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(ResultMissing, match="at most 1 GiB is read"):
        read_metric(Extract(file="out.txt", column="cd"), tmp_path, name="drag")


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"column": "a", "regex": "(a)"},
        {"column": " "},
        {"regex": "("},
        {"regex": "a"},
        {"regex": "(a)(b)"},
        {"column": "a", "reduce": "median"},
        {"column": "a", "json_path": "a"},
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_once(rule: dict[str, str]) -> None:
    """Exactly one rule, one group, a known reduction: checked before anything runs."""
    with pytest.raises(ValidationError):
        Extract.model_validate({"file": "out.txt", **rule})


@pytest.mark.parametrize("file", ["", "/etc/passwd", "../out.txt", "a/../../b", ".attempt/log", "a\nb"])
def test_files_outside_the_working_directory_are_refused(file: str) -> None:
    """A metric reads only below the trial's own working directory."""
    with pytest.raises(ValidationError):
        Extract(file=file, column="cd")


def test_the_table_of_an_empty_study() -> None:
    """A study without trials has the columns and no rows."""
    table = trials_table(optuna.create_study())
    assert list(table.columns) == [
        "number", "state", "value", "failure", "attempts", "seconds", "cost", "node", "folder", "started", "ended"
    ]  # fmt: skip
    assert table.empty


def test_the_table_of_a_study_with_everything() -> None:
    """One row per trial, our facts beside Optuna's, in the documented order of columns."""
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_user_attr(USER_ATTRIBUTE, {"objectives": ["drag", "lift"]})
    done = study.ask(
        {"h": optuna.distributions.FloatDistribution(0, 1), "n": optuna.distributions.IntDistribution(1, 3)}
    )
    done.set_user_attr(
        USER_ATTRIBUTE,
        {"metrics": {"drag": 1.0, "lift": 2.0, "mass": 3.0}, "attempts": 2, "seconds": 4.5, "cost": 0.25,
         "node": "head", "folder": "trials/00000", "failure": ""},
    )  # fmt: skip
    done.set_constraint("stress", -1.0)
    study.tell(done, [1.0, 2.0])
    failed = study.ask()
    failed.set_user_attr(USER_ATTRIBUTE, {"failure": "CommandFailed: exit 3", "attempts": 1})
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    study.ask()
    table = trials_table(study)
    assert list(table.columns) == [
        "number", "state", "values_drag", "values_lift", "params_h", "params_n", "metrics_drag", "metrics_lift",
        "metrics_mass", "constraints_stress", "failure", "attempts", "seconds", "cost", "node", "folder", "started",
        "ended",
    ]  # fmt: skip
    assert list(table["number"]) == [0, 1, 2]
    assert list(table["state"]) == ["COMPLETE", "FAIL", "RUNNING"]
    first = table.iloc[0]
    assert (first["values_drag"], first["values_lift"], first["metrics_mass"]) == (1.0, 2.0, 3.0)
    assert (first["constraints_stress"], first["cost"], first["attempts"]) == (-1.0, 0.25, 2)
    assert isinstance(first["started"], pd.Timestamp)
    assert table["values_drag"].isna().tolist() == [False, True, True]
    assert table["failure"][1] == "CommandFailed: exit 3"
    rows = table.to_csv(index=False).splitlines()
    assert rows[0].startswith("number,state,values_drag")
    # a whole number beside empty cells stays one
    assert rows[1].split(",")[5] in {"1", "2", "3"}
    assert rows[3].startswith("2,RUNNING,,,,,")


def test_the_table_of_somebody_elses_study() -> None:
    """Trials that Optuna ran itself have empty cells where only we know."""
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_categorical("alloy", ["a", True, 3]), n_trials=1, catch=(ValueError,))
    study.add_trial(optuna.trial.create_trial(value=2.0, user_attrs={USER_ATTRIBUTE: "theirs"}))
    table = trials_table(study)
    assert table["value"][1] == 2.0
    assert table[["failure", "attempts", "seconds", "cost", "node", "folder"]].isna().all(axis=None)


def test_several_objectives_without_names() -> None:
    """Optuna's own metric names serve, else the position."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    assert {"values_0", "values_1"} <= set(trials_table(study).columns)
