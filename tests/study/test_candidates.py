"""What whoever chooses parameters relies on: likely numbers first, each with what it belongs to, and none that is a name."""

from __future__ import annotations

from persistent_runner.study.candidates import Candidate, candidates
from persistent_runner.study.deck import Deck, with_includes

BEAM = Deck(
    "beam.inp",
    """\
*HEADING
Two bays of 360 in, held at 12 and 13
** a remark with 77.7
*NODE, NSET=ALL
1, 0.0, 0.0, 0.0
2, 50.0, 0.0, 0.0
3, 100.0, 0.0, 0.0
*ELEMENT, TYPE=B32, ELSET=LEFT
1, 1, 2, 3
*NSET, NSET=TIP
3
*BEAM SECTION, SECTION=RECT, ELSET=LEFT, MATERIAL=STEEL
10.0, 12.0
0.0, 1.0, 0.0
*MATERIAL, NAME=STEEL
*ELASTIC
200000.0, .3
*DENSITY
7.85e-09
*BOUNDARY
1, 1, 6
*STEP, INC=100
*STATIC
0.1, 1.0
*CLOAD
3, 2, -500
*NODE PRINT, NSET=ALL
""",
)
HEAD = """\
/*---------------------------------------------------------------------------*\\
| OpenFOAM 2.0                                                                |
\\*---------------------------------------------------------------------------*/
FoamFile
{
    version     2.0;
    location    "0";
}
"""
FIELD = Deck(
    "0/U",
    HEAD
    + """\
dimensions      [0 1 -1 0 0 0 0];
internalField   uniform (3 0 0);
boundaryField
{
    inlet  // of 4 m
    {
        type  fixedValue;
        value uniform (10 0 0);
    }
    outerWall { type fixedValue; value uniform (0.5 0 0); }
}
""",
)
MESH = Deck(
    "system/blockMeshDict",
    HEAD
    + """\
scale   0.001;
vertices
(
    (-20.6 0 -0.5)
);
blocks ( hex (0 3 4 1 11 14 15 12) (18 30 1) simpleGrading (0.5 1 1) );
boundary ( inlet { type patch; faces ((0 1 12 11)); } );
""",
)
CONTROL = Deck("system/controlDict", HEAD + "application simpleFoam;\nendTime 600;\nfunctions { a { start 0.3; } }\n")
WATER = Deck("constant/transportProperties", HEAD + "nu              [0 2 -1 0 0 0 0] 1e-05;\n")


def found(*decks: Deck) -> list[Candidate]:
    return candidates(decks)


def named(*decks: Deck) -> list[str]:
    return [f"{each.name} {each.number.text}" for each in found(*decks)]


def test_of_a_deck_of_abaqus_sections_materials_and_loads_come_first() -> None:
    """Headings, numbers of nodes, elements and degrees of freedom are no parameters; coordinates come behind."""
    names = named(BEAM)
    assert names[:6] == [
        "left_1 10.0", "left_2 12.0", "elastic_1 200000.0", "elastic_2 .3", "density 7.85e-09", "cload -500"
    ]  # fmt: skip
    assert not {"360", "12", "13", "77.7", "2", "3", "6"} & {name.split()[1] for name in names}
    assert names.index("node_1 50.0") > names.index("cload -500")


def test_of_a_case_of_openfoam_boundaries_properties_and_vertices_come_first() -> None:
    """What the head of a file, dimensions, and numbers of points say is no parameter; what runs the solver comes last."""
    names = named(CONTROL, MESH, WATER, FIELD)
    assert names[:5] == ["u_inlet_x 10", "nu 1e-05", "vertices_x -20.6", "vertices_z -0.5", "u_outerwall_x 0.5"]
    values = [each.number.text for each in found(FIELD, MESH, WATER)]
    assert not {"2.0", "-1", "2", "11", "14", "15", "12", "4"} & set(values)
    assert {"18", "30"} <= set(values)
    assert names.index("u_internal_x 3") < names.index("blocks_x 18") < names.index("endtime 600")


def test_a_number_is_known_by_what_it_belongs_to() -> None:
    """The keyword line above it, or the dictionaries around it, inline ones too; that is what is searched as well."""
    contexts = {each.number.text: each.context.words for each in found(BEAM, FIELD, MESH, CONTROL)}
    assert contexts["12.0"] == "*BEAM SECTION, SECTION=RECT, ELSET=LEFT, MATERIAL=STEEL"
    assert contexts["-500"] == "*CLOAD"
    assert contexts["10"] == "boundaryField inlet"
    assert contexts["0.3"] == "functions a"
    assert contexts["-20.6"] == "vertices"

    def holding(word: str) -> list[str]:
        return [each.number.text for each in found(BEAM, FIELD) if each.holds(word)]

    assert holding("elset=left")[:2] == ["10.0", "12.0"]
    assert holding("INLET") == ["10", "0", "0"]
    assert holding("10") == ["10"]
    assert holding("beam.inp")
    assert holding("nothing of it") == []


def test_other_decks_go_by_names() -> None:
    """What is assigned comes first, rows and scripts of the shell last or not at all."""
    script = Deck("Allrun", '#!/bin/sh\ncd "${0%/*}" || exit 1\n')
    assert named(Deck("a.txt", "1 2 3\n4 5 6\nheight = 0.1\n"), script)[0] == "height 0.1"
    assert named(script) == []


def test_a_real_number_keeps_its_digits_in_what_its_solver_reads() -> None:
    """CalculiX and Abaqus read 20 characters of a number, and Nastran 8 or 16; other decks take all of them."""
    bulk = Deck("w.bdf", "SOL 101\nBEGIN BULK\nPSHELL,2,1,0.25\nMAT1*,1,2.1+5,,0.3\n")
    assert BEAM.real_filter(13) == "abaqus(20)"
    assert [bulk.real_filter(n) for n in (1, 3, 4)] == ["", "nastran(8)", "nastran(16)"]
    assert FIELD.real_filter(1) == ""
    mesh = Deck("sub/nodes.txt", "1, 0.5, 0.25, 0.125\n")
    main = Deck("a.inp", "*NODE\n*include, input=nodes.txt\n*STEP\n")
    assert mesh.real_filter(1) == ""
    assert with_includes({"sub/nodes.txt": mesh, "a.inp": main})["sub/nodes.txt"].real_filter(1) == "abaqus(20)"
    assert Deck("net.inp", "[PIPES]\n1 1 2 1000 300 130\n").real_filter(2) == ""
