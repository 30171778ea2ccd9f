"""Weight, displacement and stress of the truss that CalculiX has solved.

    python3 truss.py truss          reads truss.inp (nodes, bars, areas) and truss.dat, writes truss.json

A static deck needs no density, so it stands here; the limits stand in study.toml.
"""

from __future__ import annotations

import json
import re
import sys
from math import dist
from pathlib import Path

DENSITY = 0.1  # pounds per cubic inch, of aluminium


def weight(deck: str) -> float:
    """Return the weight in pounds of the bars in a deck: length times area times density."""
    cards = re.findall(
        r"^\*([^*\n]+)\n((?:[^*\n].*\n)+)", re.sub(r"^\*\*.*\n", "", deck, flags=re.MULTILINE), re.MULTILINE
    )
    nodes: dict[int, list[float]] = {}
    bars: dict[str, list[int]] = {}
    areas: dict[str, float] = {}
    for card, data in cards:
        rows = [line.split(",") for line in data.splitlines()]
        name = re.search(r"ELSET=(\w+)", card)
        if card.startswith("NODE,"):
            nodes = {int(row[0]): [float(value) for value in row[1:]] for row in rows}
        elif card.startswith("ELEMENT,") and name:
            bars[name[1]] = [int(value) for value in rows[0][1:]]
        elif card.startswith("SOLID SECTION,") and name:
            areas[name[1]] = float(rows[0][0])
    return DENSITY * sum(dist(*(nodes[node] for node in bars[bar])) * area for bar, area in areas.items())


def table(results: str, title: str) -> list[list[float]]:
    """Return the rows of numbers below the line of a .dat file that begins with `title`."""
    found = re.search(rf"^ {title} .*\n\n((?: +[-+\d].*\n?)+)", results, re.MULTILINE)
    if not found:
        sys.exit(f"the results have no {title}; did CalculiX end before it wrote them?")
    return [[float(value) for value in line.split()] for line in found[1].splitlines()]


def main(job: str) -> None:
    """Write truss.json: weight (lb), displacement (in, of a free node along x or y) and stress (ksi): the largest."""
    results = Path(f"{job}.dat").read_text(encoding="ascii")
    displacement = max(abs(value) for row in table(results, "displacements") for value in row[1:3])
    # A bar's stress lies along it, and is therefore the trace of the tensor.
    stress = max(abs(sum(row[2:5])) for row in table(results, "stresses")) / 1000
    found = {
        "weight": weight(Path(f"{job}.inp").read_text(encoding="utf-8")),
        "displacement": displacement,
        "stress": stress,
    }
    Path("truss.json").write_text(json.dumps(found) + "\n", encoding="ascii")
    print(f"weight {found['weight']:.2f} lb, displacement {displacement:.4f} in, stress {stress:.3f} ksi")


if __name__ == "__main__":
    main(sys.argv[1])
