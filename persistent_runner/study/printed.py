"""The tables that CalculiX prints into a .dat: which numbers stand in them, and by which rule of [metrics]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from persistent_runner.study.tabular import NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistent_runner.study.extract import Rule

# " stresses (elem, integ.pnt.,sxx,syy,szz,sxy,sxz,syz) for set E and time  0.1000000E+01"; without names of columns
# " temperatures for set N and time"; "forset" stands there as well
_HEAD = re.compile(
    r"^ (?P<what>[a-z][a-z ]*?) ?(?:\((?P<names>[^()\n]+)\))? ?for ?"
    r"(?P<where>set (?P<set>\S+)|all contact elements) and time",
    re.MULTILINE,
)
_IDS = {"elem", "integ.pnt.", "element", "slave node", "slave element+face"}
# nodal diameter of cyclic symmetry, number of the mode, eigenvalue, radians and cycles per time, imaginary part
_FREQUENCIES = re.compile(r"\(CYCLES/TIME.*\n+(?P<diameter> +\d+)? +1(?: +[-+.\dE]+){4} *$", re.MULTILINE)
_BUCKLING = re.compile(r"BUCKLING *\n *FACTOR *\n+ +1 +[-+.\dE]+ *$", re.MULTILINE)
_NOISE = 1e-6
"""Of a table's largest number: what is smaller is zero but for rounding"""


def printed_rules(text: str) -> Iterator[tuple[str, Rule]]:
    """Yield a label and a rule for each number that the tables of a .dat hold; none where it is no .dat.

    Of a column of many rows it is the one of largest magnitude; of the modes, the first.
    """
    if modes := _FREQUENCIES.search(text):
        yield "frequency 1", {"below": r"\(CYCLES/TIME", "column": 5 if modes["diameter"] else 4, "reduce": "first"}
    if _BUCKLING.search(text):
        yield "buckling factor 1", {"below": r"BUCKLING *\n *FACTOR", "column": 2, "reduce": "first"}
    heads = {f"{match['what']} {match['where']}": match for match in _HEAD.finditer(text)}  # of all times, the last
    kinds = [match["what"] for match in heads.values()]
    for match in heads.values():
        rows = _rows(text, match.end())
        if not rows:
            continue
        names = [name.strip() for name in (match["names"] or match["what"]).split(",")]
        where = re.escape(match["where"]).replace(r"\ ", " ")
        below = f"^ {match['what']} ?{'[(]' if match['names'] else 'for'}.*{where} and"
        of = " total" if match["names"] and match["what"].startswith("total ") else ""
        of += f" {match['set']}" if kinds.count(match["what"]) > 1 and match["set"] else ""
        yield from _of_table(rows, names, below, of)


def _of_table(rows: Sequence[Sequence[float]], names: Sequence[str], below: str, of: str) -> Iterator[tuple[str, Rule]]:
    count = len(rows[0])
    places = {name: at for at, name in enumerate(names, count - len(names)) if name not in _IDS and at >= 0}
    largest = max((abs(row[at]) for row in rows for at in places.values()), default=0.0)
    for name, at in places.items():
        cells = [row[at] for row in rows]
        if max(map(abs, cells)) <= _NOISE * largest:
            continue
        rule: Rule = {"below": below, "column": at + 1}
        if len(rows) == 1:
            yield f"{name}{of}", rule
        else:
            reduce = max(("max", "min"), key=lambda which: abs(max(cells) if which == "max" else min(cells)))
            yield f"{name} {reduce}{of}", rule | {"reduce": reduce}


def _rows(text: str, start: int) -> list[list[float]]:
    """Return the numbers below a head; none where a cell is no number, or the rows are not of one length."""
    body = text[start:].partition("\n")[2].lstrip("\n")
    rows: list[list[float]] = []
    for line in body.splitlines():
        if not line.strip():
            break
        cells = line.split()
        if not all(NUMBER.fullmatch(cell) for cell in cells) or (rows and len(cells) != len(rows[0])):
            return []
        rows.append([float(cell) for cell in cells])
    return rows
