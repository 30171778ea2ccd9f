"""`persistent-runner init` as a user meets it: a deck that runs, one line, and a study that reproduces it."""

from __future__ import annotations

import io
import os
import pty
import stat
import subprocess
import threading
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.init import init_study
from persistent_runner.inputs import walk_inputs
from persistent_runner.render import render_inputs
from persistent_runner.study.candidates import candidates
from persistent_runner.study.deck import Deck
from persistent_runner.study.spec import StudySpec
from tests.driving import BIN, DEADLINE, HOSTILE, Place
from tests.studies.trial_here import Study, needs

if TYPE_CHECKING:
    from pathlib import Path

BEAM = """\
# a beam of 1 m
height = 0.10
ribs = 4
load = 1.0D3
"""
SOLVER = """\
deck = dict(line.split(" = ") for line in open("beam.txt") if "=" in line)
height, ribs, load = float(deck["height"]), int(deck["ribs"]), float(deck["load"].replace("D", "e"))
with open("report.csv", "w") as report:
    print(f"step,mass,bend\\n1,0,0\\n2,{height * ribs:.6f},{load / height**3:.3f}", file=report)
"""
BRICK = """\
*NODE, NSET=ALL
1, 0., 0., 0.
2, 1., 0., 0.
3, 1., 1., 0.
4, 0., 1., 0.
5, 0., 0., 1.
6, 1., 0., 1.
7, 1., 1., 1.
8, 0., 1., 1.
*ELEMENT, TYPE=C3D8, ELSET=E
1, 1, 2, 3, 4, 5, 6, 7, 8
*MATERIAL, NAME=STEEL
*ELASTIC
210000., 0.3
*SOLID SECTION, ELSET=E, MATERIAL=STEEL
*BOUNDARY
1, 1, 3
2, 2, 3
3, 3, 3
4, 1, 1
4, 3, 3
5, 1, 2
8, 1, 1
6, 2, 2
*STEP
*STATIC
*CLOAD
5, 3, 25.
6, 3, 25.
7, 3, 25.
8, 3, 25.
*NODE PRINT, NSET=ALL
U
*END STEP
"""
CHANNEL = {
    "system/blockMeshDict": "FoamFile\n{\n}\nscale 1;\nwidth 0.002;\n",
    "system/controlDict": "FoamFile\n{\n}\napplication simpleFoam;\nendTime 100;\n",
    "0/p": "FoamFile\n{\n}\ninternalField uniform 0;\n",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a hostile folder, with no terminal."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return folder


def beam(folder: Path) -> Path:
    """Write a case of a deck and the program that runs it."""
    case = folder / "beam"
    case.mkdir(parents=True)
    (case / "beam.txt").write_text(BEAM)
    (case / "solve.py").write_text(SOLVER)
    return case


def told(path: Path) -> dict[str, Any]:
    """Return what a study.toml says."""
    return tomllib.loads((path / "study.toml").read_text("utf-8"))


def rendered(study: Path) -> dict[str, bytes]:
    """Return the files of the trial that the baseline is."""
    spec = StudySpec.load(study)
    files = render_inputs(walk_inputs(spec.folder, spec.trial.inputs), spec.baseline, spec.trial.template.delimiters)
    return {path: content for path, content, _ in files}


METRIC = "mass=report.csv:column:mass"


def test_every_other_byte_stays(here: Path) -> None:
    """Line ends, marks of the byte order, latin-1, UTF-16, modes, binary files and all other numbers come through as they are."""
    case = here / "deck"
    (case / "sub").mkdir(parents=True)
    dos = "\ufeffh\t= 0.10 ;\r\nr = 4\r\n\r\nlast = 7.50e0".encode()
    latin = b"caf\xe9 = 12 \n{{ keep }} {% this %} @ { }\n"
    (case / "a.txt").write_bytes(dos)
    (case / "sub" / "b.txt").write_bytes(latin)
    (case / "w.txt").write_bytes("\ufeffé = 5\r\n".encode("utf-16-le"))
    (case / "c.bin").write_bytes(bytes(range(256)))
    (case / "run.sh").write_text("#!/bin/sh\n")
    (case / "run.sh").chmod(0o750)

    init_study(
        ["deck"],
        into="study",
        params=[
            "h=a.txt:1:5:0.1:0.2",
            "n=a.txt:2:5:1:8",
            "e=sub/b.txt:1:9:1:20",
            "last=a.txt:4:9:0:9",
            "w=w.txt:1:5:0:9",
        ],
        command=["./run.sh"],
        metrics=[METRIC],
    )

    copied = here / "study" / "case"
    assert (copied / "a.txt.j2").read_bytes() == dos.replace(b"0.10", b"@{ h }@").replace(b"4\r", b"@{ n }@\r").replace(
        b"7.50e0", b"@{ last }@"
    )
    assert (copied / "sub" / "b.txt.j2").read_bytes() == latin.replace(b"12", b"@{ e }@")
    assert (copied / "w.txt.j2").read_bytes() == "\ufeffé = @{ w }@\r\n".encode("utf-16-le")
    assert (copied / "c.bin").read_bytes() == bytes(range(256))
    assert stat.S_IMODE((copied / "run.sh").stat().st_mode) == 0o750
    assert sorted(path.name for path in copied.rglob("*") if path.is_file()) == [
        "a.txt.j2",
        "b.txt.j2",
        "c.bin",
        "run.sh",
        "w.txt.j2",
    ]
    assert rendered(here / "study")["a.txt"] == dos.replace(b"0.10", b"0.1").replace(b"7.50e0", b"7.5")


def test_a_study_loads_and_says_what_it_varies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole numbers with whole bounds are int; the deck's values are the baseline; a number may stand in two places."""
    beam(here)
    (here / "beam" / "beam.txt").write_text(BEAM + "again = 0.100\n")
    init_study(
        ["beam/beam.txt", "beam/solve.py"],
        into="study",
        params=[
            "h=beam.txt:2:12:0.02:1e0",
            "ribs=beam.txt:3:8:2:8",
            "load=beam/beam.txt:4:8:500:2000",
            "h=beam.txt:5:9:0.02:1.0",
        ],
        metrics=[METRIC],
    )

    study = told(here / "study")
    assert study["space"] == {
        "h": {"type": "float", "low": 0.02, "high": 1.0},
        "ribs": {"type": "int", "low": 2, "high": 8},
        "load": {"type": "float", "low": 500.0, "high": 2000.0},
    }
    assert study["baseline"] == {"h": 0.1, "ribs": 4, "load": 1000.0}
    assert study["trial"]["command"] == "python3 solve.py"
    assert study["objectives"] == {"mass": "minimize"}
    assert rendered(here / "study")["beam.txt"].count(b"= 0.1\n") == 2
    said = capsys.readouterr().out
    assert said.endswith("Then type:  run-study study --check\n            run-study study\n")
    assert "load: 1.0D3 at beam.txt:4:8; float, 500 to 2000" in said


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (["h"], r"--param h: is not of the form\nWrite --param NAME=\[FILE:\]LINE:COLUMN:LOW:HIGH, such as"),
        (["h=1:2:3"], "is not of the form"),
        (["h=beam.txt:2:1:0:1"], r"column 1 of beam.txt; its numbers start at column 10:\n    height = 0.10\n    \^$"),
        (["h=beam.txt:2:40:0:1"], r"    height = 0.10\n                 \^$"),
        (["h=beam.txt:9:1:0:1"], "beam.txt has 5 lines; there is no line 9"),
        (["h=beem.txt:2:10:0:1"], 'the deck has no text file beem.txt; did you mean "beam.txt"'),
        (["h=2:10:0:1"], "there are 2 files, and none is named; there is beam.txt, solve.py"),
        (["h=beam.txt:2:10:1:0.5"], r"low \(1\) is not below high \(0.5\); swap them"),
        (["h=beam.txt:2:10:a:2"], '"a" is no number; low and high are numbers'),
        (["class=beam.txt:2:10:0:1"], '"class" is no name; use letters, digits and _'),
        (["h=beam.txt:2:10:0:1", "g=beam.txt:2:13:0:1"], "h and g both mark the number at beam.txt:2:10"),
        (["h=beam.txt:2:10:0:1", "h=beam.txt:4:8:0:1"], "h is 0.10 at beam.txt:2:10 and 1.0D3 at beam.txt:4:8; give"),
        (["h=beam.txt:2:10:0:1", "h=beam.txt:4:8:0:2"], "h is marked twice with two ranges"),
        ([], r"no parameter is marked, and there is no terminal to ask for them\nWrite --param NAME="),
    ],
)
def test_a_wrong_param_is_explained_and_nothing_is_made(here: Path, params: list[str], says: str) -> None:
    """Where the number is not, the line is shown with a caret; there is no half-made folder."""
    beam(here)
    with pytest.raises(ConfigError, match=says):
        init_study(["beam"], into="study", params=params)
    assert not (here / "study").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decks": ["baem"]}, 'input "baem" is not there; .*did you mean "beam"'),
        ({"decks": ["beam"], "into": None}, r"beam is there already\nChoose another name with --into beam-study"),
        ({"command": [" "], "metrics": [METRIC]}, r"\[trial\] command .*: is empty or holds a NUL.*\nNothing was made"),
        ({"metrics": ["mass"]}, r"--metric mass: is not of the form\nWrite --metric NAME=FILE:column"),
        ({"metrics": ["m=report.csv:regex:mass (\\S+"]}, "regex: is no regular expression"),
        ({"metrics": ["m=/etc/x:column:mass"]}, "is not a file below the working directory"),
        ({"metrics": ["m=r.csv:column:a", "m=r.csv:column:b"]}, "--metric m= is given twice"),
        ({"sample": "gone"}, "--sample gone: there is no such folder"),
        (
            {"sample": "done", "metrics": ["m=report.csv:column:mas"]},
            'the column "mas" is not there; did you mean "mass"',
        ),
    ],
)
def test_a_wrong_option_is_explained_and_nothing_is_made(here: Path, options: dict[str, Any], says: str) -> None:
    """Decks, folders and readers: what is wrong, and the nearest that there is."""
    beam(here)
    (here / "done").mkdir()
    (here / "done" / "report.csv").write_text("step,mass\n1,0.4\n")
    given = {"decks": ["beam"], "into": "study", "params": ["h=beam.txt:2:10:0:1"]} | options
    with pytest.raises(ConfigError, match=says):
        init_study(given.pop("decks"), **given)
    assert not (here / "study").exists()


def test_a_template_is_no_deck(here: Path) -> None:
    """What is a template already has no numbers to choose from."""
    (here / "a.inp.j2").write_text("x = @{ x }@")
    with pytest.raises(ConfigError, match=r"a.inp.j2 is a template already, by its name\nGive the deck as it runs"):
        init_study(["a.inp.j2"], params=["x=1:5:0:1"])


def test_a_value_outside_its_range_is_a_warning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The study loads all the same; there is no baseline, since the deck is no design of it."""
    beam(here)
    init_study(["beam"], into="study", params=["h=beam.txt:2:10:0.2:0.5"], metrics=[METRIC])
    assert "Warning: h is 0.10 in the deck, outside 0.2 to 0.5" in capsys.readouterr().err
    assert StudySpec.load(here / "study").baseline == {}


def test_a_deck_that_holds_the_signs_gets_others(here: Path) -> None:
    """The deck's own @{ stays text."""
    (here / "a.txt").write_text("x = 3.5 @{ mine }@ <<\n")
    init_study(["a.txt"], params=["x=1:5:0:9"], command=["true"], metrics=[METRIC])
    assert told(here / "a")["trial"]["template"] == {"delimiters": ["%{", "}%"]}
    assert rendered(here / "a")["a.txt"] == b"x = 3.5 @{ mine }@ <<\n"


def test_a_link_stays_one_unless_a_template_stands_where_it_leads(here: Path) -> None:
    """A link to a deck that is varied would lead nowhere, and one deck would not be varied."""
    case = beam(here)
    (case / "again.txt").symlink_to("beam.txt")
    (case / "run.py").symlink_to("solve.py")
    init_study(["beam"], into="study", params=["h=beam.txt:2:10:0.02:0.2"], command=["true"], metrics=[METRIC])
    assert (here / "study/case/run.py").readlink().as_posix() == "solve.py"
    files = rendered(here / "study")
    assert files["again.txt"] == files["beam.txt"] == BEAM.replace("0.10", "0.1").encode()


def test_fixed_fields_keep_their_width(here: Path) -> None:
    """In Nastran's bulk data of 8 and 16 columns a number fills its field, whatever the sampler proposes."""
    deck = (
        "SOL 101\nBEGIN BULK\n"
        "PSHELL  1       1       0.12    1\n"
        "MAT1*   1               2.1+5                           0.3\n"
        "PSHELL,2,1,0.25\n"
        "CBAR           1       5     0.5\n"
        "FORCE   1       2\n"
        "ENDDATA\n"
    ).replace("\n", "\r\n")
    (here / "wing.bdf").write_bytes(deck.encode())
    params = ["g=7:17:1:9", "t=3:25:0.05:0.2", "e=4:25:1e5:3e5", "free=5:12:0.1:1", "n=6:24:1:9", "nu=4:57:-0.9:0.5"]
    init_study(["wing.bdf"], params=params, command=["nastran wing.bdf"], metrics=[METRIC])

    template = (here / "wing" / "case" / "wing.bdf.j2").read_text().splitlines()
    assert template[2] == "PSHELL  1       1       @{ t | nastran(8) }@1"
    assert template[4] == "PSHELL,2,1,@{ free }@"
    spec = StudySpec.load(here / "wing")
    assert rendered(here / "wing")["wing.bdf"].endswith(b"\r\nFORCE   1              2\r\nENDDATA\r\n")
    ends = {"g": 1, "t": 1 / 7, "e": 3e5 / 1.7, "free": 0.1, "n": 9, "nu": -0.8123456789}
    for values in (spec.baseline, ends):
        ((_, content, _),) = render_inputs(walk_inputs(spec.folder, spec.trial.inputs), values)
        lines = content.decode().splitlines()
        assert lines[2][32] == "1"
        assert float(lines[2][24:32]) == pytest.approx(values["t"], abs=1e-6)
        assert float(lines[3][24:40]) == pytest.approx(values["e"])
        assert float(lines[3][56:72]) == pytest.approx(values["nu"])
        assert len(lines[3]) == 72
        assert int(lines[5][16:24]) == values["n"]
        assert lines[5][24:] == "     0.5"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"b.inp": BRICK}, "ccx -i b"),
        ({"b c.inp": BRICK, "mesh.inp": "*NODE\n1, 2., 3., 4.\n"}, "ccx -i 'b c'"),
        ({"net.inp": "[PIPES]\n1 1 2 1000 300 130\n"}, "runepanet net.inp net.rpt"),
        ({"solve.py": "x = 1.5\n"}, "python3 solve.py"),
        (CHANNEL, ["blockMesh | tee log.blockMesh", "simpleFoam | tee log.simpleFoam"]),
        ({"a.inp": "x = 1.5\n"}, None),
    ],
)
def test_the_command_is_guessed_where_the_deck_says_it(
    here: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], command: str | list[str] | None
) -> None:
    """By keywords, never by the suffix alone; where it is not clear, --check names what is left to write."""
    for name, text in files.items():
        path = here / "deck" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    line, text = next(
        (n, line) for n, line in enumerate(next(iter(files.values())).splitlines(), 1) if any(map(str.isdigit, line))
    )
    column = next(n for n, sign in enumerate(text, 1) if sign.isdigit())
    init_study(["deck"], into="study", params=[f"x={next(iter(files))}:{line}:{column}:0:5000"], metrics=[METRIC])
    assert told(here / "study")["trial"].get("command") == command
    if command is None:
        assert "Left to write in study/study.toml: [trial] command." in capsys.readouterr().out
        with pytest.raises(ConfigError, match=r"\[trial\].*needs either command or objective"):
            StudySpec.load(here / "study")


def test_the_likeliest_numbers_come_first() -> None:
    """Materials, sections and assignments before meshes, headings and what is no physics."""
    brick, channel = Deck("brick.inp", BRICK, "utf-8"), Deck("p", "\n".join(CHANNEL.values()), "utf-8")
    heading = Deck("a.inp", "*HEADING\nTwo bays of 360 in, held at the left\n*SOLID SECTION\n0.5\n", "utf-8")

    def first(deck: Deck, count: int) -> list[str]:
        return [f"{each.name} {each.number.text}" for each in candidates([deck])[:count]]

    assert first(brick, 2) == ["elastic 210000.", "elastic 0.3"]
    assert first(channel, 1) == ["width 0.002"]
    assert first(heading, 1) == ["solid_section 0.5"]


def test_a_sample_shows_what_can_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, JSON, printed tables and name = number are tried, and stand as comments that work when uncommented."""
    beam(here)
    done = here / "done"
    done.mkdir()
    (done / "beam.txt").write_text(BEAM)  # an input, which no result stands in
    (done / "force.dat").write_text("# all in N\n# Time cd(x)\n1 0.5\n2 0.4\n")
    (done / "r.json").write_text('{"wing": {"mass": 2.5, "ok": true, "ribs": [1, 3, 2]}}')
    (done / "field.bin").write_bytes(b"\0\1")
    (done / "log").write_text(
        "Cell count = 12\nTotal mass =  7.25 kg  ClockTime = 3 s\nTotal mass =  7.5 kg  done: yes\n"
    )
    rows = "         1  1.0E-01  2.0E-01  3.0E-01\n         2  4.0E-01  1.0E-01 -3.0E-01\n"
    moved = f"\n displacements (vx,vy,vz) for set ALL and time  0.1E+01\n\n{rows}"
    (done / "b.dat").write_text(moved)
    (done / "two.dat").write_text(f"{moved}\n forces (fx,fy,fz) for set ALL and time  0.1E+01\n\n{rows}")
    init_study(["beam"], into="study", params=["h=beam.txt:2:10:0.02:0.2"], sample="done")

    said = capsys.readouterr().out
    shown = dict(
        line.removeprefix("  proposed there: ").partition(" (")[0].split(" = ")
        for line in said.splitlines()
        if line.startswith("  proposed")
    )
    assert shown == {
        "vx_max": "0.4", "vy_max": "0.2", "vz_max": "0.3", "time": "2", "cd_x": "0.4", "wing_mass": "2.5",
        "wing_ribs": "2", "total_mass": "7.5", "clocktime": "3", "cell_count": "12",
    }  # fmt: skip
    assert list(shown)[-3:] == ["total_mass", "clocktime", "cell_count"]  # what a log says last comes first
    assert "Left to write in study/study.toml: [metrics], [objectives]." in said
    file = here / "study" / "study.toml"
    head, _, tail = file.read_text().partition("take the # away.\n")
    file.write_text(head + "\n" + "\n".join(line.removeprefix("# ").removeprefix("#") for line in tail.splitlines()))
    spec = StudySpec.load(here / "study")
    assert list(spec.metrics) == list(shown)
    assert spec.objectives == {"vx_max": "minimize"}


def test_a_case_that_was_run_in_its_own_folder_is_its_own_sample(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its results are found, the deck's numbers are none, and an old result that is copied along is named."""
    case = beam(here)
    (case / "report.csv").write_text("step,mass\n1,0.4\n")
    init_study(["beam"], into="study", params=["h=beam.txt:2:10:0.02:0.2"], sample="beam")
    said, warned = capsys.readouterr()
    assert "proposed there: mass = 0.4 (report.csv" in said
    assert "proposed there: height" not in said
    assert "Warning: an old result was copied with the deck: report.csv. Remove it from case" in warned

    init_study(["beam"], into="other", params=["h=beam.txt:2:10:0.02:0.2"], sample="beam", metrics=[METRIC])
    assert "an old result was copied with the deck: report.csv" in capsys.readouterr().err


def test_without_a_sample_the_tables_left_to_write_are_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An example stands there as a comment, and --check names the missing tables."""
    beam(here)
    init_study(["beam"], into="study", params=["h=beam.txt:2:10:0.02:0.2"])
    assert "# [metrics.mass]" in (here / "study" / "study.toml").read_text()
    assert "Left to write in study/study.toml: [metrics], [objectives]." in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"\[metrics\].*is missing"):
        StudySpec.load(here / "study")


def test_an_include_that_was_not_given_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A deck of several files is rarely whole at the first try."""
    (here / "a.inp").write_text("*INCLUDE, INPUT=mesh.inp\n*ELASTIC\n1000., 0.3\n*STEP\n")
    (here / "mesh.inp").write_text("*NODE\n1, 0., 0., 0.\n")
    (here / "other.inp").write_text("")
    init_study(["a.inp"], params=["nu=3:8:0.1:0.4"], metrics=[METRIC])
    said = capsys.readouterr().err
    assert "Warning: a.inp names what lies beside it and was not copied: mesh.inp." in said
    assert "other.inp" not in said


def test_from_a_deck_to_results(tmp_path: Path) -> None:
    """init, --check and run-study, word for word as it says: the first trial is the deck as it came."""
    place = Place(tmp_path / HOSTILE)
    case = beam(place.folder)
    done = place.folder / "done"
    done.mkdir()
    (done / "report.csv").write_text("step,mass,bend\n1,0,0\n2,0.4,1000000.0\n")
    made = place.start(
        "init", case, "--into", "study", "--param", "height=beam.txt:2:10:0.05:0.2", "--sample", done,
        "--param", "ribs=beam.txt:3:8:2:8", "--metric", METRIC, "--metric", "bend=report.csv:column:bend",
        program="persistent-runner",
    )  # fmt: skip
    assert made.end() == 0, made.said
    assert "mass, minimize: 0.4 (line 3 of 3, the last row)" in made.out
    lines = [line.split("run-study ")[1] for line in made.out.splitlines() if "run-study " in line]
    assert lines == ["study --check", "study"]

    checked = place.run(*lines[0].split())
    assert "height = 0.1, ribs = 4" in checked.out
    place.run(*lines[1].split(), "--n-trials", "4")
    rows = place.rows("study")
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4
    assert (rows[0]["params_height"], rows[0]["params_ribs"]) == ("0.1", "4")
    assert (float(rows[0]["value"]), float(rows[0]["metrics_bend"])) == (0.4, 1e6)


@needs("ccx", package="calculix-ccx")
def test_a_calculix_deck_runs(tmp_path: Path) -> None:
    """A deck that CalculiX alone has seen gives a study whose first trial is what the sample holds."""
    place = Place(tmp_path / HOSTILE)
    (place.folder / "brick.inp").write_text(BRICK)
    done = place.folder / "done"
    done.mkdir()
    (done / "brick.inp").write_text(BRICK)
    subprocess.run(["ccx", "-i", "brick"], cwd=done, check=True, capture_output=True, timeout=DEADLINE)
    regex = r"vz=brick.dat:regex:^ *5 +\S+ +\S+ +(\S+)"
    params = [f"load={line}:7:10:50" for line in (28, 29, 30, 31)]
    made = place.start(
        "init", "brick.inp", *(word for param in params for word in ("--param", param)),
        "--sample", "done", "--metric", regex, program="persistent-runner",
    )  # fmt: skip
    assert made.end() == 0, made.said
    assert "It looks like CalculiX; the command is: ccx -i brick" in made.out

    place.run("brick", "--n-trials", "3")
    rows = place.rows("brick")
    assert float(rows[0]["params_load"]) == 25
    assert float(rows[0]["value"]) == pytest.approx(4 * 25 / 210000, rel=1e-5)
    for row in rows:
        assert float(row["value"]) == pytest.approx(4 * float(row["params_load"]) / 210000, rel=1e-5)


@needs("blockMesh", "simpleFoam", package="openfoam")
def test_an_openfoam_case_runs(tmp_path: Path) -> None:
    """A case's folder, one number in four places of it, and a result out of a log: no template is written by hand."""
    place = Place(tmp_path / HOSTILE)
    (tmp_path / "shipped").mkdir()
    shipped = Study("plate_stack", tmp_path / "shipped")
    files = render_inputs(walk_inputs(shipped.folder, ["case/"]), shipped.parameters({"c": 2.9}))
    for path, content, _ in files:
        target = place.folder / "stack" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    mesh = (place.folder / "stack/system/blockMeshDict").read_text().splitlines()
    half = next(word for line in mesh if line.startswith("    (") for word in line.split() if word.endswith("e-03"))
    places = [(n, line.index(half) + 1) for n, line in enumerate(mesh, 1) if line.startswith("    (") and half in line]
    assert len(places) == 4
    params = [f"half=system/blockMeshDict:{line}:{column}:0.001:0.004" for line, column in places]
    made = place.start(
        "init", "stack", "--into", "foam", *(word for param in params for word in ("--param", param)),
        "--metric", r"heat=log.simpleFoam:regex:weightedSum\(outlet\) of T = (\S+)", program="persistent-runner",
    )  # fmt: skip
    assert made.end() == 0, made.said
    toml = place.folder / "foam" / "study.toml"
    toml.write_text(toml.read_text().replace("# env  ", "env  "))  # as the line says, for Debian's package

    place.run("foam", "--check")
    place.run("foam", "--n-trials", "2")
    rows = place.rows("foam")
    assert [row["state"] for row in rows] == ["COMPLETE"] * 2
    assert float(rows[0]["params_half"]) == float(half)
    assert float(rows[0]["value"]) == pytest.approx(shipped.trial(c=2.9)["heat_density"], rel=1e-6)


def test_a_person_at_a_terminal_is_asked(tmp_path: Path) -> None:
    """Numbers are shown, the likeliest first; a wrong answer is explained and asked again."""
    place = Place(tmp_path / HOSTILE)
    case = beam(place.folder)
    (case / "solve.py").rename(place.folder / "solve.py")
    done = place.folder / "done"
    done.mkdir()
    (done / "report.csv").write_text("step,mass\n1,0.4\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "persistent-runner"), "init", str(case), "--into", "study", "--sample", str(done)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=place.folder,
        env=place.environment,
        start_new_session=True,
    )
    os.close(theirs)
    patience = threading.Timer(DEADLINE, process.kill)
    patience.start()
    screen = ""
    answers = [
        ("when done)", "77"), ("77", "1"), ("Name [height]", ""), ("Low [0.05]", "0.3"), ("High [0.15]", "0.2"),
        ("swap them", ""), ("Low [0.05]", ""), ("High [0.15]", "0.2"), ("when done)", "3:8"), ("Name [x]", "ribs"),
        ("Low [2]", ""), ("High [6]", ""), ("when done)", ""), ("runs this deck", "solve beam.txt"),
        ("Which are read", "2"), ("mass (minimize", "maximize"),
    ]  # fmt: skip
    seen = 0
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                screen += piece.decode()
                while answers and (at := screen.find(answers[0][0], seen)) >= 0:
                    seen = at + len(answers[0][0])
                    os.write(ours, f"{answers.pop(0)[1]}\n".encode())
        except OSError:  # the other end has closed
            pass
    patience.cancel()
    assert process.wait(DEADLINE) == 0, screen
    assert '"77" is neither a number from 1 to 3 nor LINE:COLUMN' in screen
    study = told(place.folder / "study")
    assert study["space"] == {
        "height": {"type": "float", "low": 0.05, "high": 0.2},
        "ribs": {"type": "int", "low": 2, "high": 6},
    }
    assert study["objectives"] == {"mass": "maximize"}
    StudySpec.load(place.folder / "study")
