"""What a user relies on when numbers are read out of what a trial leaves, and what is said where there is none."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from persistent_runner.errors import ResultMissing, TrialFailed
from persistent_runner.study.extract import Extract
from persistent_runner.study.readers import Readings

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, text: str | bytes, **rule: Any) -> float:
    file = folder / "out.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return number(Extract(file="out.txt", **rule), folder)


def number(extract: Extract, folder: Path) -> float:
    return Readings(folder, {"drag": extract}).numbers()["drag"]


def refused(folder: Path, text: str | bytes, **rule: Any) -> str:
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
        ("x, m/s\tcd\tcl\n1\t12\t3\n", 12.0),
        ('x,"cd"\n"a,b",13\n', 13.0),
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


def test_a_list_in_json_is_as_strict(tmp_path: Path) -> None:
    """Numbers in quotes are text also where the largest of several counts."""
    assert 'cd.0 holds "1"' in refused(tmp_path, '{"cd": ["1", "2"]}', json="cd", reduce="max")


def test_a_mean_that_overflows(tmp_path: Path) -> None:
    """Finite numbers whose mean is none fail the trial like any other infinity."""
    assert "overflow" in refused(tmp_path, "cd\n1e308\n1e308\n", column="cd", reduce="mean")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=9),
    st.sampled_from([",", ";", "\t", " ", " , "]),
    st.sampled_from(["cd", '"cd"']),
    st.sampled_from(["", "0"]),
)
def test_all_ways_of_writing_a_table_say_the_same(
    tmp_path: Path, column: list[float], sign: str, name: str, uneven: str
) -> None:
    """Separators, quotes and rows of different length change nothing, whichever rows count."""
    rows = [f"{n}{sign}{value!r}{sign}7" for n, value in enumerate(column)]
    text = "\n".join([f"x{sign}{name}{sign}y", *rows])
    if sign != " ":
        text += f"\n\n{uneven}{sign}{column[-1]!r}{sign}{sign}\n"
    for reduce, expected in (("first", column[0]), ("last", column[-1]), ("min", min(column)), ("max", max(column))):
        assert read(tmp_path, text, column="cd", reduce=reduce) == expected
        assert read(tmp_path, text, column=2, reduce=reduce) == expected


def test_only_the_chosen_row_must_be_a_number(tmp_path: Path) -> None:
    """With `last` an earlier failed step does no harm; with `max` it does."""
    table = "cd\nfailed\n2\n"
    assert read(tmp_path, table, column="cd") == 2
    assert "line 2" in refused(tmp_path, table, column="cd", reduce="max")


@pytest.mark.parametrize("cell", ["nan", "inf", "1_0", "1e999", "", "٣", "1 5"])
def test_the_largest_of_many_is_as_strict(tmp_path: Path, cell: str) -> None:
    """What is no number as the only cell is none among others, and its line is named."""
    assert "line 3 holds" in refused(tmp_path, f"x,cd\n1,1\n2,{cell}\n3,1.5D0\n", column="cd", reduce="max")
    assert "line 3 holds" in refused(tmp_path, f"x,cd\n1,1\n2,{cell}\n3,2\n", column="cd", reduce="max")
    assert read(tmp_path, "cd\n1.5D0\n1d1\n", column="cd", reduce="max") == 10


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("", {"column": "cd"}, "the file is empty"),
        (" \n\n", {"json": "cd"}, "the file is empty"),
        (b"cd\0\1", {"regex": "(cd)"}, "the file is not text (its byte 2 is 0x00)"),
        (b"\x89PNG\r\n\x1a\n\x02", {"column": "cd"}, "the file is not text (its byte 8 is 0x02)"),
        (b"x" * 100_000 + b"\0", {"json": "cd"}, "the file is not text (its byte 100000 is 0x00)"),
        ("x,Cd\n1,2\n", {"column": "cd"}, 'the column "cd" is not there; did you mean "Cd"? The columns are x, Cd'),
        ("cd,cd\n1,2\n", {"column": "cd"}, "stands there more than once"),
        ("x,cd\n", {"column": "cd"}, "a header and no rows"),
        ("# only\n# comments\n", {"column": "cd"}, "the table has no rows"),
        ("x,cd\n1\n", {"column": "cd"}, "line 2 holds no value"),
        ("x,cd\n1,2\n", {"column": 3}, "there is no column 3; line 1 has 2: x, cd"),
        ("1 2\n3 4\n", {"column": 3}, "there is no column 3; line 1 has 2: 1, 2"),
        ("1 2\n3 4\n", {"column": "cd"}, 'the table has no header, so there is no column "cd"; line 1 is 1, 2: write'),
        ("x,cd\n1,2\n", {"column": "2"}, "leave out the quotes: column = 2"),
        ("cd,x,cd\n1,2,3\n", {"column": "cd"}, "as columns 1 and 3; write its number, as in column = 1"),
        ("t drag force lift\n1 2 3\n", {"column": "lift"}, "line 1 names 4 columns and line 2 has 3 cells"),
        ("t,cd\n1,5,2,5\n", {"column": "cd"}, "a number with a decimal comma needs another separator than ','"),
        ("t,cd\n1,5,2,5\n", {"column": 2, "reduce": "max"}, "so it is not clear which is which"),
        ("t;cd\n1;2,5\n", {"column": "cd"}, "line 2 holds 2,5, with a decimal comma"),
        ("1,5 2,5\n", {"column": 1}, "is 1,5 one number or two?"),
        (
            "x,cd,y\n1,2,3\n4,5",
            {"column": "cd"},
            "ends in the middle of line 3, after 2 of 3 cells; the program that wrote",
        ),
        ("1 2 3\n4 5", {"column": 1, "reduce": "first"}, "ends in the middle of line 2, after 2 of 3 cells"),
        ('x,"cd"\n1,"2"\n3', {"column": "cd"}, "ends in the middle of line 3, after 1 of 2 cells"),
        ("x,cd\n1", {"column": 1}, "ends in the middle of line 2, after 1 of 2 cells"),
        ("iteration 1\nDrag: 5\n", {"regex": r"drag\s*=\s*(\d+)"}, "the nearest lines are:\n    Drag: 5"),
        (
            "cost: 1\nCOST = 2\ncost: 3\ncost: 4\ncost: 5",
            {"regex": r"cost = (\d+)"},
            "but for capital letters (write (?i) before the regex):\n    COST = 2",
        ),
        ("a\nb\nc\nd\n", {"regex": r"(\d+)"}, "its last lines are:\n    b\n    c\n    d"),
        ("a,b\n1,2\n", {"column": "drag"}, 'the column "drag" is not there; the columns are a, b'),
        ('{"cd": null}', {"json": "cd"}, "cd holds null, which is not a number"),
        ('{"cd": {"n": 3}}', {"json": "cd"}, 'cd holds {"n": 3}, which is not a number'),
        ("cd=none", {"regex": r"cd=(\d+)?"}, "line 1 holds no value"),
        ("cd=1\ncd=2\ncd=3", {"regex": r"cd=(\d)", "match": 4}, r"cd=(\d) matches 3 times, there is no 4th"),
        ("cd=1\ncd=2\ncd=3", {"regex": r"cd=(\d)", "match": -22}, "matches 3 times, there is no 22nd from the end"),
        ("cd=1", {"regex": r"cd=(\d)", "match": 11}, "matches once, there is no 11th"),
        ("{cd: 1}", {"json": "cd"}, "line 1 is not JSON (Expecting property name enclosed in double quotes): {cd: 1}"),
        ('{\n"cd": nan}', {"json": "cd"}, 'line 2 is not JSON (Expecting value): "cd": nan}'),
        ("failed", {"json": "cd"}, "line 1 is not JSON (Expecting value): failed"),
        ("1 2", {"json": "cd"}, "line 1 is not JSON (Extra data): 1 2"),
        (
            "{",
            {"json": "cd"},
            "the JSON ends in the middle, at line 1; the program that wrote it may have been cut off",
        ),
        ('{"a": 1,\n "cd": ', {"json": "a"}, "the JSON ends in the middle, at line 2"),
        ('{"a": 1,\n "cd', {"json": "a"}, "the JSON ends in the middle, at line 2"),
        ('{"a": 1.5e', {"json": "a"}, "the JSON ends in the middle"),
        ('{"a": tru', {"json": "a"}, "the JSON ends in the middle"),
        ("[" * 100_000, {"json": "cd"}, "nested too deeply"),
        ('{"forces": {"Cd": 1}}', {"json": "forces.cd"}, 'at "forces" there is no key "cd"; did you mean "Cd"?'),
        ("[1]", {"json": "3"}, 'at the top stands a list of 1; "3" is no position in it'),
        ("[]", {"json": "0"}, "at the top stands an empty list"),
        ('{"cd": []}', {"json": "cd"}, "an empty list"),
        ('{"cd": 1}', {"json": "cd.x"}, 'at "cd" stands 1, so there is no "x" below it'),
    ],
)
def test_a_number_that_is_not_there_says_what_is(tmp_path: Path, text: str, rule: dict[str, Any], message: str) -> None:
    """The message shows the nearest columns, lines or keys, so that nobody has to open the file first."""
    assert message in refused(tmp_path, text, **rule)


def test_a_missing_file_names_what_is_there(tmp_path: Path) -> None:
    """A file with another name is suggested."""
    (tmp_path / "report.csv").write_text("cd\n1\n")
    with pytest.raises(ResultMissing, match=r'reports\.csv: the file is not there; .* did you mean "report\.csv"\?'):
        number(Extract(file="reports.csv", column="cd"), tmp_path)


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    """An output that is a link to a file of this machine gives no number."""
    (tmp_path / "secret").write_text("cd\n1\n")
    folder = tmp_path / "00000"
    folder.mkdir()
    (folder / "out.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(ResultMissing, match="a link that leaves the trial's folder"):
        number(Extract(file="out.csv", column="cd"), folder)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A field file named by mistake does not fill the memory."""
    with (tmp_path / "out.txt").open("wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(ResultMissing, match="at most 1 GiB is read"):
        number(Extract(file="out.txt", column="cd"), tmp_path)


@pytest.mark.parametrize(
    ("text", "column", "reduce", "expected"),
    [
        ("x,cd,cl\n1,2,3\n4,5,6\n", 2, "last", 5),
        ("1 2 3\n4 5 6\n", 3, "last", 6),
        ("1 2 3\n4 5 6\n", 3, "first", 3),
        ("7\n", 1, "mean", 7),
        ("# x cd\n1 2\n3 4\n", 2, "first", 2),
        ("# of 2020\n\n1 2\n3 4\n", 2, "first", 2),
        ("Cd 0.5\nCl 0.25\n", 2, "first", 0.5),
        ("Cd 0.5\nCl 0.25\n", 2, "min", 0.25),
        ("Cd 0.5", 2, "last", 0.5),
        ("t,0.1,0.2\n1,5,6\n", 2, "first", 5),
        ("t drag force\n1 2\n", 2, "last", 2),
        ("t drag force\n1 2", 2, "last", 2),
        ("1;2,5;3\n4;5;6\n", 3, "mean", 4.5),
        ("1 nan\n2 3\n", 1, "first", 1),
        (",cd\n0,1\n", 2, "first", 1),
        ('"a";1\n"b";2\n', 2, "max", 2),
    ],
)
def test_a_column_by_its_number(tmp_path: Path, text: str, column: int, reduce: str, expected: float) -> None:
    """A number serves where there is no header, or where its names hold blanks; a first row of numbers is no header."""
    assert read(tmp_path, text, column=column, reduce=reduce) == expected


def test_a_number_as_a_name(tmp_path: Path) -> None:
    """In quotes it is a name where the header is told from the rows; what stands in a row is never a header."""
    assert read(tmp_path, "case,0.5\n3,4\n", column="0.5", reduce="first") == 4
    message = refused(tmp_path, "1,0.5\n3,4\n", column="0.5", reduce="first")
    assert 'the table has no header, so there is no column "0.5"; line 1 is 1, 0.5: write' in message
    assert message.endswith("column = 2")


MIN_MAX = (
    "# Field minima and maxima\n# Time\tfield\tmin\tlocation(min)\tmax\n"
    "10\tmag(U)\t0.0\t(-1.9e-02 2.5e-02 0)\t1.048282e+01\n20\tmag(U)\t0.0\t(-1.9e-02 2.5e-02 0)\t1.02e+01\n"
)


def test_rows_with_text_in_them_have_the_header_above(tmp_path: Path) -> None:
    """OpenFOAM's fieldMinMax names fields and places in its rows, and its columns in the # line above them."""
    assert read(tmp_path, MIN_MAX, column="max") == 10.2
    assert read(tmp_path, MIN_MAX, column="max", reduce="first") == 10.48282
    assert 'the column "1.048282e+01" is not there' in refused(tmp_path, MIN_MAX, column="1.048282e+01")
    without = MIN_MAX.replace("# Time", "# at each time")
    without = without[without.index("10\t") :]
    assert 'there is no column "1.048282e+01"' in refused(tmp_path, without, column="1.048282e+01")


PRINTED = """
 displacements (vx,vy,vz) for set ALL and time  0.5E+00

         1  9.0E-01  9.0E-01  9.0E-01

 displacements (vx,vy,vz) for set ALL and time  0.1E+01

         1  1.0E-01 -2.0E-01  3.0E-01
         2  4.0E-01  1.0E-01 -3.0E-01

 forces (fx,fy,fz) for set ALL and time  0.1E+01

         1  5.0E+02  0.0E+00  0.0E+00
 END
"""


def test_one_of_many_tables_of_a_file(tmp_path: Path) -> None:
    """What stands above a table chooses it, the last of several times; other tables as wide are not read with it."""
    moved = {"below": "displacements .*set ALL"}
    assert read(tmp_path, PRINTED, **moved, column=2, reduce="max") == 0.4
    assert read(tmp_path, PRINTED, **moved, column=3, reduce="min") == -0.2
    assert read(tmp_path, PRINTED, **moved, regex=r"^ +2 +\S+ +(\S+)") == 0.1
    assert read(tmp_path, PRINTED.replace("\n", "\r\n"), **moved, column=2, reduce="max") == 0.4
    assert read(tmp_path, PRINTED, below="^ forces", column=2, reduce="first") == 500
    (tmp_path / "out.txt").write_text(PRINTED)
    reading = Readings(tmp_path, {"u": Extract(file="out.txt", **moved, column=2, reduce="max")}).reading("u")
    assert reading.note == "line 9 of 14, the largest of 2 rows"


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        (PRINTED, {"below": "displacement .*set ALL", "column": 2}, "nothing matches displacement .*set ALL; the near"),
        (PRINTED, {"below": "END", "column": 2}, "nothing stands below line 14: END"),
        (
            PRINTED.partition("-3.0E-01")[0],
            {"below": "^ disp", "column": 2},
            "ends in the middle of line 9, after 3 of",
        ),
        (PRINTED, {"below": "^ disp", "column": 5}, "there is no column 5; line 8 has 4"),
    ],
)
def test_a_table_that_is_not_there(tmp_path: Path, text: str, rule: dict[str, Any], message: str) -> None:
    """It is said what was looked for, and where."""
    assert message in refused(tmp_path, text, **rule)


@pytest.mark.parametrize(("match", "expected"), [(1, 3), (2, 1), (3, 2), (-1, 2), (-3, 3)])
def test_one_of_several_matches(tmp_path: Path, match: int, expected: float) -> None:
    """From the beginning counted from 1, from the end with -1; the others need not be numbers."""
    assert read(tmp_path, "cd=3\ncd=1\ncd=2", regex=r"cd=(\S+)", match=match) == expected
    assert read(tmp_path, "cd=x\ncd=1\ncd=x", regex=r"cd=(\S+)", match=2) == 1


@pytest.mark.parametrize(
    ("text", "rule", "note"),
    [
        ("a\ncd=1\ncd=2\nend\n", {"regex": r"cd=(\d)"}, "line 3 of 4, the last of 2 matches"),
        ("a\ncd=1\ncd=2\nend", {"regex": r"cd=(\d)", "match": -2}, "line 2 of 4, match 1 of 2"),
        ("a\ncd=1\n", {"regex": r"cd=(\d)"}, "line 2 of 2, the only match"),
        ("x,cd\n1,2\n\n3,4\n", {"column": "cd"}, "line 4 of 4, the last row"),
        ("x,cd\n1,2\n\n3,4\n", {"column": "cd", "reduce": "first"}, "line 2 of 4, the first row"),
        ("x,cd\n1,2\n\n3,4\n", {"column": "cd", "reduce": "max"}, "line 4 of 4, the largest of 2 rows"),
        ("x,cd\n1,2\n\n3,4\n", {"column": "cd", "reduce": "min"}, "line 2 of 4, the smallest of 2 rows"),
        ("1 2\n3 4\n", {"column": 1, "reduce": "mean"}, "the mean of 2 rows"),
        ('{"cd": 1}', {"json": "cd"}, "cd"),
        ('{"cd": [1, 3, 2]}', {"json": "cd", "reduce": "max"}, "cd.1, the largest of 3 items"),
    ],
)
def test_a_reading_says_where_it_stood(tmp_path: Path, text: str, rule: dict[str, Any], note: str) -> None:
    """Whoever rehearses a reader sees which of several numbers it takes."""
    (tmp_path / "out.txt").write_text(text)
    reading = Readings(tmp_path, {"drag": Extract(file="out.txt", **rule)}).reading("drag")
    assert reading.note == note
    assert reading.value == number(Extract(file="out.txt", **rule), tmp_path)


def test_a_file_is_read_once_however_many_metrics_read_it(tmp_path: Path) -> None:
    """What the first metric read serves the others: the file may be gone by then."""
    (tmp_path / "out.csv").write_text("x,cd\n1,2\n3,4\n")
    (tmp_path / "out.json").write_text('{"cl": 5, "cm": 6}')
    metrics = {
        "drag": Extract(file="out.csv", column="cd", reduce="max"),
        "low": Extract(file="out.csv", column="cd", reduce="min"),
        "x": Extract(file="out.csv", column=1),
        "line": Extract(file="out.csv", regex="3,(.)"),
        "lift": Extract(file="out.json", json="cl"),
        "moment": Extract(file="out.json", json="cm"),
    }
    readings = Readings(tmp_path, metrics)
    assert readings.reading("drag").value == 4
    assert readings.reading("lift").value == 5
    for file in tmp_path.iterdir():
        file.unlink()
    assert readings.numbers() == {"drag": 4, "low": 2, "x": 3, "line": 4, "lift": 5, "moment": 6}


def test_a_file_that_cannot_be_read_fails_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk is told as one, with the file."""
    (tmp_path / "out.txt").write_text("cd=1")

    def broken(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "read_bytes", broken)  # root may read everything
    with pytest.raises(ResultMissing, match=r"out\.txt: the file cannot be read: Permission denied"):
        number(Extract(file="out.txt", regex="cd=(.)"), tmp_path)


def called(folder: Path, function: Any, file: str | None = None) -> float:
    extract = Extract(file=file, function="post.py:drag")
    return Readings(folder, {"drag": extract}, functions={"post.py:drag": function}).numbers()["drag"]


def test_a_function_gets_the_file_or_the_folder(tmp_path: Path) -> None:
    """It may read what no other rule can, binary files too, and return numpy's numbers."""
    (tmp_path / "field.bin").write_bytes(np.array([1.0, 4.0]).tobytes())
    assert called(tmp_path, lambda path: np.fromfile(path).max(), "field.bin") == 4.0
    assert called(tmp_path, lambda folder: len(list(folder.iterdir()))) == 1
    assert called(tmp_path, lambda _: np.float32(0.5)) == 0.5
    assert called(tmp_path, lambda _: np.int64(3)) == 3
    extract = Extract(file="field.bin", function="post.py:drag")
    reading = Readings(tmp_path, {"drag": extract}, functions={"post.py:drag": lambda _: 1}).reading("drag")
    assert reading.note == "post.py:drag(field.bin)"


def test_a_function_is_called_once_for_all_that_use_its_number(tmp_path: Path) -> None:
    """A formula over it does not run it again."""
    calls: list[Path] = []
    metrics = {"ratio": Extract(expr="1 / drag"), "drag": Extract(function="a.py:f"), "more": Extract(expr="drag + 1")}
    readings = Readings(tmp_path, metrics, functions={"a.py:f": lambda path: calls.append(path) or 2})  # type: ignore[func-returns-value]
    assert readings.numbers() == {"ratio": 0.5, "drag": 2.0, "more": 3.0}
    assert calls == [tmp_path]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "post.py:drag(the trial folder) returned nothing; end it with return and the number"),
        (True, "returned true (bool), which is not a number"),
        (np.bool_(True), "(bool), which is not a number"),
        ("1.5", 'returned "1.5" (str), which is not a number; return float(...)'),
        ([1.0], "returned [1.0] (list)"),
        (np.array([1.0]), "(ndarray)"),
        (math.nan, "returned nan, which is not a finite number"),
        (-math.inf, "returned -inf"),
        (10**400, "int too large"),
        (1j, "(complex)"),
    ],
)
def test_a_function_that_returns_no_number(tmp_path: Path, returned: object, message: str) -> None:
    """Text, booleans, nothing and what is not finite fail the trial, with what came back."""
    with pytest.raises(ResultMissing) as caught:
        called(tmp_path, lambda _: returned)
    assert str(caught.value).startswith("metric drag: ")
    assert message in str(caught.value)
    assert "(function post.py:drag) in [metrics.drag]" in caught.value.remedy


def test_a_function_whose_file_is_not_there_is_not_called(tmp_path: Path) -> None:
    """It need not look itself."""
    with pytest.raises(ResultMissing, match=r"metric drag: out\.csv: the file is not there"):
        called(tmp_path, lambda _: 1.0, "out.csv")


def formula(folder: Path, expr: str, **parameters: Any) -> Readings:
    (folder / "out.json").write_text('{"drag": 3, "lift": 0}')
    metrics = {
        "ratio": Extract(expr=expr),
        "twice": Extract(expr="2 * lift"),
        **{name: Extract(file="out.json", json=name) for name in ("drag", "lift")},
    }
    return Readings(folder, metrics, parameters=parameters)


def test_a_formula_over_metrics_and_parameters(tmp_path: Path) -> None:
    """Another formula's number may be used, whatever their order, and text parameters may be compared."""
    expr = "(drag + twice) * ribs if alloy == '7075' else 0"
    readings = formula(tmp_path, expr, ribs=2, alloy="7075", unused="x")
    assert readings.numbers() == {"ratio": 6.0, "twice": 0.0, "drag": 3.0, "lift": 0.0}
    assert isinstance(readings.numbers()["ratio"], float)
    assert readings.reading("ratio").note == f"{expr} (alloy = '7075', drag = 3.0, ribs = 2, twice = 0.0)"


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("drag / lift", "metric ratio: drag / lift (drag = 3.0, lift = 0.0) divides by zero"),
        ("log(lift)", "metric ratio: log(lift) (lift = 0.0): "),
        (
            "drag > lift",
            "metric ratio: drag > lift (drag = 3.0, lift = 0.0) is true, which is not a number; for a number",
        ),
        ("'a' if lift else 'b'", 'is "b", which is not a number'),
        ("drag * flap", "metric ratio: drag * flap (drag = 3.0): flap has no value"),
        ("missing / lift", "missing has no value"),
    ],
)
def test_a_formula_without_a_value(tmp_path: Path, expr: str, message: str) -> None:
    """It fails the trial, and stands in the message with the values that it was given."""
    readings = formula(tmp_path, expr)
    with pytest.raises(ResultMissing, match=re.escape(message)) as caught:
        readings.reading("ratio")
    assert "in [metrics.ratio]" in caught.value.remedy


def test_a_formula_over_a_number_that_is_missing_names_that_one(tmp_path: Path) -> None:
    """The cause is told, not its consequence."""
    metrics = {"ratio": Extract(expr="1 / drag"), "drag": Extract(file="out.csv", column="cd")}
    with pytest.raises(ResultMissing, match=r"metric drag: out\.csv: the file is not there"):
        Readings(tmp_path, metrics).numbers()


@example(";", {"column": 2})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200), st.sampled_from([{"column": 2}, {"column": "cd"}, {"json": "cd"}, {"regex": "(.)$"}]))
def test_no_text_gives_anything_but_a_number_or_our_error(tmp_path: Path, text: str, rule: dict[str, Any]) -> None:
    """Whatever a program leaves, a reader raises nothing of its own."""
    for reduce in ("last", "max"):
        try:
            assert math.isfinite(read(tmp_path, text.encode("utf-8", "replace"), **rule, reduce=reduce))
        except ResultMissing:
            continue
