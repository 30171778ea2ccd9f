"""Read the stresses along the hole from CalculiX's results.

    python3 stress.py plate         reads plate.frd and mesh.inp, writes stress.csv

The table has the columns that the plate's own solver writes: angle (degrees from the x axis), x, y, hoop, von Mises.
The format of .frd files is that of the CalculiX GraphiX User's Manual, version 2.20, chapter "Result file format".
"""

from __future__ import annotations

import sys
from math import atan2, degrees, hypot, sqrt
from pathlib import Path

TITLES = ("angle", "x", "y", "hoop", "von_mises")


def block(text: str, start: str) -> dict[int, list[float]]:
    """Return the numbers by node that stand in an .frd file between a line with `start` and the next ` -3`."""
    _, found, rest = text.partition(start)
    if not found:
        sys.exit(f"the results have no block {start.strip()}; did CalculiX end before it wrote them?")
    lines = [line for line in rest.partition("\n -3")[0].splitlines() if line.startswith(" -1")]
    return {int(line[3:13]): [float(line[at : at + 12]) for at in range(13, len(line.rstrip()), 12)] for line in lines}


def members(mesh: str, group: str) -> list[int]:
    """Return the numbers of the node set `group`, in the order of the mesh."""
    _, found, rest = mesh.partition(f"*NSET, NSET={group}\n")
    if not found:
        sys.exit(f"mesh.inp has no node set {group}")
    return [int(number) for number in rest.partition("*")[0].replace(",", " ").split()]


def main(job: str) -> None:
    """Write stress.csv: a line for each node of the set HOLE.

    Hoop is the larger principal stress: none crosses the edge of a hole, so where the edge is pulled it lies along it.
    """
    results = Path(f"{job}.frd")
    if not results.is_file():
        sys.exit(f"{results} is not there; `ccx -i {job}` writes it")
    text = results.read_text(encoding="ascii")
    nodes, stresses = block(text, "\n    2C"), block(text, "\n -4  STRESS")
    rows = []
    for number in members(Path("mesh.inp").read_text(encoding="utf-8"), "HOLE"):
        (x, y), (xx, yy, _, xy) = nodes[number][:2], stresses[number][:4]
        hoop = (xx + yy) / 2 + hypot((xx - yy) / 2, xy)
        rows.append((degrees(atan2(y, x)), x, y, hoop, sqrt(xx**2 - xx * yy + yy**2 + 3 * xy**2)))
    lines = [",".join(TITLES), *(",".join(f"{value:.6f}" for value in row) for row in rows)]
    Path("stress.csv").write_text("\n".join(lines) + "\n", encoding="ascii")
    print(f"stress.csv: {len(rows)} points along the hole; highest hoop stress {max(row[3] for row in rows):.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
