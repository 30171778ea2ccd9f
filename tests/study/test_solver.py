"""What runs a case, and what of its files an earlier run has left: by what the files say."""

from __future__ import annotations

import pytest

from persistent_runner.study.deck import Deck
from persistent_runner.study.leftovers import leftovers
from persistent_runner.study.solver import Solver, solver_of

CONTROL = "FoamFile\n{\n}\napplication potentialFoam;\nstartTime 0;\n"
ALLRUN = """\
#!/bin/sh
cd "${0%/*}" || exit                                # Run from this directory
. ${WM_PROJECT_DIR:?}/bin/tools/RunFunctions        # Tutorial run functions
#------------------------------------------------------------------------------

restore0Dir
runApplication blockMesh
runApplication $(getApplication) -writePhi -writep
runApplication postProcess -func streamFunction
"""


def solver(**files: str) -> Solver:
    texts = {"system/controlDict": CONTROL, "system/blockMeshDict": ""}
    texts |= {name.replace("__", "/"): text for name, text in files.items()}
    found = solver_of({path: Deck(path, text) for path, text in texts.items()})
    assert found is not None
    return found


def test_a_case_without_times_starts_from_its_originals() -> None:
    """0.orig becomes 0, unless there is a 0."""
    made = solver(**{"0.orig/U": ""})
    assert made.command == ["cp -r 0.orig 0", "blockMesh | tee log.blockMesh", "potentialFoam | tee log.potentialFoam"]
    assert made.note == ""
    assert made.logs == ("log.potentialFoam",)
    assert solver(**{"0.orig/U": "", "0/U": ""}).command[0] == "blockMesh | tee log.blockMesh"
    assert solver(**{"0/U": ""}).command[0] == "blockMesh | tee log.blockMesh"


@pytest.mark.parametrize("allrun", [ALLRUN, ALLRUN.replace("$(getApplication)", "`getApplication`")])
def test_a_plain_allrun_is_followed(allrun: str) -> None:
    """Options and further programs of it are the command's."""
    made = solver(**{"0.orig/U": "", "Allrun": allrun})
    assert made.command == [
        "cp -r 0.orig 0",
        "blockMesh | tee log.blockMesh",
        "potentialFoam -writePhi -writep | tee log.potentialFoam",
        "postProcess -func streamFunction | tee log.postProcess",
    ]
    assert made.note == "Its steps are those of Allrun."


@pytest.mark.parametrize(
    "line", ["runParallel potentialFoam", "if [ -d 0 ]; then", "cp -r $FOAM_TUTORIALS/x .", "runApplication a | tee b"]
)
def test_another_allrun_is_named(line: str) -> None:
    """A step that is not plain makes all of it a matter for who reads it."""
    made = solver(**{"0.orig/U": "", "Allrun": f"{ALLRUN}{line}\n"})
    assert made.command[1:] == ["blockMesh | tee log.blockMesh", "potentialFoam | tee log.potentialFoam"]
    assert "Allrun does more than could be read; its steps are not taken over" in made.note


def test_a_compressed_mesh_is_made_all_the_same() -> None:
    """OpenFOAM reads it as it is."""
    found = solver_of({path: Deck(path, CONTROL) for path in ("system/controlDict", "system/blockMeshDict.gz")})
    assert found is not None
    assert found.command[0] == "blockMesh | tee log.blockMesh"


def test_what_openfoam_has_written_is_left_out() -> None:
    """Later times, post-processing, processors and logs; 0, the time that it starts from, and all else stay."""
    keep = ["0/U", "0.orig/U", "constant/g", "system/controlDict", "Allrun", "5/U", "notes/163", "dialog.txt"]
    old = [
        "163/U",
        "0.5/U",
        "1e-05/U",
        "postProcessing/dp/0/p.dat",
        "processor0/0/U",
        "processors4/0/U",
        "log.a",
        "log",
    ]
    text = CONTROL.replace("startTime 0", "startTime 5")
    assert leftovers([*keep, *old], lambda _: text) == set(old)
    assert leftovers([*keep[:3], *old], lambda _: text) == set()  # no case of OpenFOAM's


def test_what_calculix_has_written_is_left_out() -> None:
    """What has the name of a deck; not what a deck names, and not another program's."""
    old = ["b.12d", "b.cvg", "b.dat", "b.sta", "spooles.out"]
    keep = ["b.inp", "b.frd", "mesh.dat", "b.txt"]
    assert leftovers([*old, *keep], lambda _: "*SUBMODEL, INPUT=b.frd\n") == set(old)
    assert leftovers([*old, *keep], lambda _: "*STEP\n") == {*old, "b.frd"}
    assert leftovers(["a.dat", "a.txt"], lambda _: "") == set()
    assert leftovers(["chem.inp", "chem.dat"], lambda _: "ELEMENTS\nH O\nEND\n") == set()
