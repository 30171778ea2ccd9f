"""What a finished run is found to hold: rules that read results, and nothing that only looks like a number's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.study.sample import Metric, proposals, read_metric

if TYPE_CHECKING:
    from pathlib import Path

PRINTED = """
 displacements (vx,vy,vz) for set NALL and time  0.1000000E+01

         1  0.000000E+00  0.000000E+00  0.000000E+00
         5 -1.050549E-14 -4.060559E+00  3.000000E-01

 forces (fx,fy,fz) for set NALL and time  0.1000000E+01

         1  1.488836E-09  5.000000E+02  1.975105E-08
         5  2.698995E-10 -5.000000E+02 -1.102942E-08

 stresses (elem, integ.pnt.,sxx,syy) for set EALL and time  0.1000000E+01

         1   1 -2.439715E+02 -8.306284E+01
         1   2  5.857783E+02 -7.032884E+01

 stresses (elem, integ.pnt.,sxx,syy) for set E-2 and time  0.1000000E+01

         2   1  1.000000E+00  2.000000E+00

 equivalent plastic strain (elem, integ.pnt.,pe)for set EALL and time  0.1000000E+01

         1   1  1.000000E-03

 total force (fx,fy,fz) for set NALL and time  0.1000000E+01

        0.000000E+00 -5.000000E+02  0.000000E+00

 temperatures for set NALL and time  0.1000000E+01

         1  2.000000E+01
         5  2.500000E+01
"""
MODES = """
     E I G E N V A L U E   O U T P U T

 MODE NO    EIGENVALUE                       FREQUENCY
                                     REAL PART            IMAGINARY PART
                           (RAD/TIME)      (CYCLES/TIME     (RAD/TIME)

      1   0.4162203E+05   0.2040148E+03   0.3246996E+02   0.0000000E+00
      2   0.1583191E+07   0.1258249E+04   0.2002566E+03   0.0000000E+00

     P A R T I C I P A T I O N   F A C T O R S

MODE NO.   X-COMPONENT     Y-COMPONENT

      1  -0.5143713E-01  -0.7249133E-02
"""
CYCLIC = """
  NODAL   MODE NO    EIGENVALUE                      FREQUENCY
 DIAMETER                                    REAL PART            IMAGINARY PART
                                    (RAD/TIME)      (CYCLES/TIME)   (RAD/TIME)

    2          1   0.4687377E+00   0.6846442E+00   0.1089645E+00   0.0000000E+00
"""
BUCKLING = """
     B U C K L I N G   F A C T O R   O U T P U T

 MODE NO       BUCKLING
                FACTOR

      1   0.5353338E+02
      2   0.1123187E+03
"""


def found(folder: Path, *, logs: tuple[str, ...] | None = None, **files: str) -> dict[str, float | None]:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {metric.name: metric.value for metric in proposals(folder, logs=logs)}


def test_all_tables_of_a_dat_are_offered(tmp_path: Path) -> None:
    """Displacements, forces and stresses, though two have as many columns; of each the largest, and no rounding noise."""
    assert found(tmp_path, **{"beam.dat": PRINTED}) == {
        "vy_min": -4.060559,
        "vz_max": 0.3,
        "fy_max": 500,
        "sxx_max_eall": 585.7783,
        "syy_min_eall": -83.06284,
        "sxx_e_2": 1,
        "syy_e_2": 2,
        "pe": 0.001,
        "fy_total": -500,
        "temperatures_max": 25,
    }


def test_a_table_is_not_taken_for_one_whose_name_ends_alike(tmp_path: Path) -> None:
    """Stresses are no viscous stresses, and forces no total force."""
    stresses = " stresses (elem, integ.pnt.,sxx) for set E and time 1.\n\n 1 1 2.0\n\n"
    assert found(tmp_path, **{"a.dat": stresses + stresses.replace(" str", " viscous str").replace("2.0", "3.0")}) == {
        "sxx": 2,
        "sxx_2": 3,
    }


def test_the_first_mode_is_offered(tmp_path: Path) -> None:
    """Cycles per time, not the eigenvalue; and the factor of buckling."""
    assert found(tmp_path, **{"modes.dat": MODES, "b.dat": BUCKLING, "c.dat": CYCLIC}) == {
        "buckling_factor_1": 53.53338,
        "frequency_1": 0.1089645,
        "frequency_1_2": 32.46996,
    }


def test_a_number_is_no_name_of_a_column(tmp_path: Path) -> None:
    """The # line names them; where none does, they have numbers, and text has none."""
    head = "# Field minima and maxima\n# Time\tfield\tmin\tlocation(min)\tmax\n"
    rows = "10\tU\t0.0\t(0 1 2)\t1.048282e+01\n20\tU\t0.5\t(0 1 2)\t1.02e+01\n"
    where = "postProcessing__minMax__0__fieldMinMax.dat"
    assert found(tmp_path / "a", **{where: head + rows}) == {"minmax_min": 0.5, "minmax_max": 10.2}
    assert found(tmp_path / "b", **{"bare.dat": rows}) == {}
    assert found(tmp_path / "c", **{"line.xy": "0 1.5\n1 2.5\n"}) == {"column_1": 1, "column_2": 2.5}


def test_what_only_counts_is_not_offered(tmp_path: Path) -> None:
    """Times, steps, and what CalculiX writes for itself."""
    files = {
        "beam.12d": " ELEMENT is expanded with topology: 30\n",
        "beam.sta": "SUMMARY\n STEP INC\n 1 1\n",
        "beam.frd": " 1PSTEP = 3\n",
        "log.ccx": "CalculiX Version 2.20\n property cards: 16\n Total CalculiX Time: 0.02\n",
        "report.csv": "Time,step,iteration,lift\n1,2,3,4\n",
        "log.solver": "ExecutionTime = 0.64 s  ClockTime = 0 s\nTime = 163\nrun time: 3\nlifetime = 5\ndrag) = 7\n",
    }
    assert found(tmp_path, **files) == {"lift": 4, "lifetime": 5}


def test_a_log_that_the_command_does_not_write_is_not_offered(tmp_path: Path) -> None:
    """Where the logs of the command are known, a trial has no others."""
    files = {
        "log.simpleFoam": "drag = 1\n",
        "log.blockMesh": "cells = 2\n",
        "run.log": "lift = 3\n",
        "log": "mass = 4\n",
    }
    assert found(tmp_path, logs=("log.simpleFoam",), **files) == {"drag": 1}
    assert found(tmp_path, **files) == {"drag": 1, "cells": 2, "lift": 3, "mass": 4}


def test_of_several_the_smallest_is_made_larger(tmp_path: Path) -> None:
    """A displacement of -4 is better at -3."""
    found(tmp_path, **{"beam.dat": PRINTED})
    metrics = {metric.name: metric for metric in proposals(tmp_path)}
    assert metrics["vy_min"].usual_direction == "maximize"
    assert metrics["vz_max"].usual_direction == "minimize"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("m=a.csv:column:cd", 2),
        ("m=a.csv:column@max:cd", 3),
        ("m=a.csv:column@first:2", 1),
        ("m=a.csv:column@mean:cd", 2),
        (r"m=a.log:regex:cd: (\S+)", 8),
        (r"m=a.log:regex@1:cd: (\S+)", 9),
        (r"m=a.log:regex@-2:cd: (\S+)", 7),
        (r"m=a.log:regex@min:@last (\S+)", 5),
        ("m=a.json:json@max:cd", 6),
    ],
)
def test_which_of_several_is_said_beside_the_kind(tmp_path: Path, given: str, value: float) -> None:
    """A word of reduce, or the number of a match."""
    (tmp_path / "a.csv").write_text("x,cd\n1,1\n2,3\n3,2\n")
    (tmp_path / "a.log").write_text("cd: 9\ncd: 7\ncd: 8\n@last 5\n")
    (tmp_path / "a.json").write_text('{"cd": [6, 4]}')
    assert read_metric(given, tmp_path).value == value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("m=a.csv:column@median:cd", 'column: must be "first", "last", "min", "max" or "mean", not "median"'),
        ("m=a.csv:column@1:cd", "match counts the matches of a regex; remove it, column has none"),
        ("m=a.csv:regex@0:(a)", "match counts from 1, or from the end with -1"),
        ("m=a.csv:regex@:(a)", 'or "mean", not ""'),
    ],
)
def test_what_cannot_be_said_there_is_explained(given: str, says: str) -> None:
    """As in study.toml."""
    with pytest.raises(ConfigError, match=says):
        read_metric(given, None)


def test_a_metric_without_a_sample_is_not_tried() -> None:
    """It has no value."""
    assert isinstance(read_metric("m=a.csv:column@max:cd", None), Metric)
    assert read_metric("m=a.csv:column@max:cd", None).value is None
