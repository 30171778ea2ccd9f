"""`persistent-runner init` on a terminal, as a person meets it: what is shown, and what is made of each answer."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.study.spec import StudySpec
from tests.driving import BIN, DEADLINE, HOSTILE, Place

if TYPE_CHECKING:
    from pathlib import Path

BEAM = """\
*HEADING
Two bays of 360 in
*ELEMENT, TYPE=B32, ELSET=LEFT
1, 1, 2, 3
*BEAM SECTION, SECTION=RECT, ELSET=LEFT, MATERIAL=STEEL
10.0, 10.0
*BEAM SECTION, SECTION=RECT, ELSET=RIGHT, MATERIAL=STEEL
10.0, 5.0
*MATERIAL, NAME=STEEL
*ELASTIC
210000., 0.3
*STEP
*STATIC
*CLOAD
3, 2, 206
"""
DONE = """
 displacements (vx,vy,vz) for set NALL and time  0.1E+01

         1  0.0E+00  0.0E+00  0.0E+00
         5  0.0E+00 -4.0E+00  3.0E-01
"""
WHICH = "nothing when done)"
SECTION = ("Low [5]", ""), ("High [15]", "")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder with a deck and the results of a run of it."""
    found = Place(tmp_path / HOSTILE)
    (found.folder / "beam.inp").write_text(BEAM)
    (found.folder / "done").mkdir()
    (found.folder / "done" / "beam.dat").write_text(DONE)
    return found


def talk(place: Place, *answers: tuple[str, str], deck: str = "beam.inp", code: int = 0) -> str:
    """Answer each question once it stands on the screen; return the screen."""
    left = list(answers)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "persistent-runner"), "init", deck, "--into", "study", "--sample", "done"],
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
    screen = b""
    seen = 0
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                screen += piece
                while left and (at := screen.find(left[0][0].encode(), seen)) >= 0:
                    seen = at + len(left[0][0].encode())
                    os.write(ours, f"{left.pop(0)[1]}\n".encode())
        except OSError:  # the other end has closed
            pass
    patience.cancel()
    text = screen.decode().replace("\r\n", "\n")
    assert process.wait(DEADLINE) == code, f"waits for {left}:\n{text}"
    assert left == [], text
    return text


def made(place: Place) -> dict[str, Any]:
    """Return what the study says that was made, and that loads."""
    StudySpec.load(place.folder / "study")
    return tomllib.loads((place.folder / "study" / "study.toml").read_text("utf-8"))


def template(place: Place) -> str:
    return (place.folder / "study" / "case" / "beam.inp.j2").read_text()


def test_a_person_at_a_terminal_is_asked(place: Place) -> None:
    """Numbers are shown, the likeliest first, below what they belong to; a wrong answer is explained and asked again."""
    case = place.folder / "case"
    case.mkdir()
    (case / "beam.txt").write_text("# a beam of 1 m\nheight = 0.10\nribs = 4\nload = 1.0D3\n")
    (place.folder / "done" / "report.csv").write_text("step,mass\n1,0.4\n")
    screen = talk(
        place,
        (WHICH, "77"), (WHICH, "mass"), (WHICH, "1"), ("Name [height]", ""), ("Low [0.05]", "0.01"),
        ("High [0.15]", "0.2"), (WHICH, "3:8"), ("Name [x]", "ribs"), ("Low [2]", ""), ("High [6]", ""), (WHICH, ""),
        ("runs this deck", "sed -n 2p beam.txt"), ("Which are read", "3"), ("mass (minimize", "maximize"),
        deck="case",
    )  # fmt: skip
    assert '"77" is neither a number from 1 to 3 nor a range of them, such as 2-5, nor LINE:COLUMN' in screen
    assert "to look for a word write /mass" in screen
    study = made(place)
    assert study["space"] == {
        "height": {"type": "float", "low": 0.01, "high": 0.2},
        "ribs": {"type": "int", "low": 2, "high": 6},
    }
    assert study["objectives"] == {"mass": "maximize"}


def test_what_was_typed_is_not_thrown_away(place: Place) -> None:
    """A command that cannot run is named, and stands in the study for its author to mend."""
    case = place.folder / "case"
    case.mkdir()
    (case / "beam.txt").write_text("height = 0.10\n")
    (place.folder / "done" / "report.csv").write_text("step,mass\n1,0.4\n")
    screen = talk(
        place,
        (WHICH, "1"), ("Name [height]", ""), ("Low [0.05]", ""), ("High [0.15]", ""), (WHICH, ""),
        ("runs this deck", "python3 solve.py"), ("Which are read", "3"), ("mass (minimize", ""),
        deck="case",
    )  # fmt: skip
    assert "Warning: " in screen
    assert "solve.py" in screen.partition("Warning: ")[2]
    made = (place.folder / "study" / "study.toml").read_text("utf-8")
    assert 'command = "python3 solve.py"' in made


def test_numbers_stand_below_what_they_belong_to_and_are_looked_for(place: Place) -> None:
    """The keyword line is shown once, the number of the list stays, and what is no parameter is not there."""
    screen = talk(
        place, (WHICH, "/right"), (WHICH, "/"), (WHICH, "4"), ("Name [right_2]", "h"), ("Low [2.5]", ""),
        ("High [7.5]", ""), (WHICH, ""), ("Which are read", ""),
    )  # fmt: skip
    listed, found, again = screen.split("when done)")[:3]
    head = "      beam.inp  *BEAM SECTION, SECTION=RECT, ELSET=LEFT, MATERIAL=STEEL\n"
    assert f"{head}   1          10.0  6:1      10.0, 10.0\n   2          10.0  6:7      10.0, 10.0\n" in listed
    assert listed.count("*BEAM SECTION") == 2
    assert "206" in listed
    assert "360" not in listed
    assert '2 of them with "right":' in found
    assert "   4           5.0  8:7      10.0, 5.0\n" in found
    assert "LEFT" not in found
    assert "All of them:" in again


def test_one_answer_serves_for_all_places_of_a_number(place: Place) -> None:
    """Several are chosen at once; the same name brings its range with it, and is proposed for the same number."""
    screen = talk(
        place, (WHICH, "1-2,3"), ("Name [left_1]", "w"), *SECTION, ("Name [w]", ""), ("Name [w]", "w"),
        (WHICH, "2"), (WHICH, "4"), ("Name [right_2]", "w"), ("Name [right_2]", "w2"), ("Low", ""), ("High", ""),
        (WHICH, ""), ("Which are read", "1"), ("vy_min", ""),
    )  # fmt: skip
    assert screen.count("the same parameter as at beam.inp:6:1") == 2
    assert "beam.inp:6:7 is w already" in screen
    assert "w is 10.0 at beam.inp:6:1, not 5.0; give this another name" in screen
    assert template(place).count("@{ w | abaqus(20) }@") == 3
    study = made(place)
    assert study["space"]["w"] == {"type": "float", "low": 5.0, "high": 15.0}
    assert study["objectives"] == {"vy_min": "maximize"}


def test_a_wrong_answer_is_refused_at_once(place: Place) -> None:
    """Each question is asked again by itself; a range without the deck's own number is kept by who means it."""
    screen = talk(
        place, (WHICH, "1"), ("Name", "4"), ("Name", "1k"), ("Name", "w"), ("Low [5]", "a"), ("Low [5]", "7"),
        ("High [15]", "3"), ("High [15]", "9"), ("10.0 is outside", "n"), ("Low [5]", "20"), ("Low again)", ""),
        ("Low [5]", "11"), ("High [15]", "12"), ("10.0 is outside", "y"), (WHICH, ""), ("Which are read", "more"),
        ("Which are read", "3"), ("Which are read", "2,1"), ("vz_max (minimize", "read"), ("vy_min", "read"),
    )  # fmt: skip
    assert '"4" is no name' in screen
    assert '"1k" is no name' in screen
    assert '"a" is no number' in screen
    assert "low (7) is not below high (3); swap them" in screen
    assert '"more" is neither a number from 1 to 2 nor a range of them' in screen
    assert "one must be optimised: vz_max = minimize" in screen
    study = made(place)
    assert study["space"] == {"w": {"type": "float", "low": 11.0, "high": 12.0}}
    assert "baseline" not in study
    assert study["objectives"] == {"vz_max": "minimize"}
    assert list(study["metrics"]) == ["vz_max", "vy_min"]


@pytest.mark.parametrize(("low", "high", "kind"), [("103", "309", "int"), ("103.0", "309", "float")])
def test_whole_or_real_is_said(place: Place, low: str, high: str, kind: str) -> None:
    """A load of 206 need not be a whole number, and what it became is told at the end."""
    screen = talk(
        place, (WHICH, "/cload"), (WHICH, "7"), ("Name [cload]", ""), ("Low [103]", low), ("High [309]", high),
        (WHICH, ""), ("Which are read", "1"), ("vy_min", ""),
    )  # fmt: skip
    assert "5 and 20 make it a whole number, 5.0 and 20.0 a real one" in screen
    assert f"cload: 206 at beam.inp:15:7; {'whole' if kind == 'int' else 'real'} numbers from 103 to 309" in screen
    assert made(place)["space"]["cload"]["type"] == kind
    assert ("3, 2, @{ cload }@" in template(place)) == (kind == "int")


def test_who_chooses_nothing_has_made_nothing(place: Place) -> None:
    """It is said how to go on without questions."""
    screen = talk(place, (WHICH, "more"), (WHICH, ""), code=2)
    assert "(there are no more)" in screen
    assert "no parameter was chosen, so there is nothing to vary" in screen
    assert not (place.folder / "study").exists()
