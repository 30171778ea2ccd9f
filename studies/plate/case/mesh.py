"""Write mesh.inp: a quarter of a square plate around the hole that a deck's heading names.

The hole is |x/a|^exponent + |y/b|^exponent = 1 with a/b = aspect and the area of a circle of radius 1. The mesh is a
fan of 8-node elements: its spokes start at the hole, close together where the hole bends, and end at the plate's edge.

    python3 mesh.py plate.inp
"""

from __future__ import annotations

import re
import sys
from math import gamma, pi, sqrt
from pathlib import Path

import numpy as np

AROUND = 24  # elements along a quarter of the hole; even, so that a spoke ends in the plate's corner
OUT = 16  # elements from the hole to the plate's edge
GROWTH = 1.32  # each element is this much longer than the one before it, going out
HALF_WIDTH = 20.0  # of the plate, in radii of the circle of the same area


def half_axes(aspect: float, exponent: float) -> tuple[float, float]:
    """Half axes of the superellipse with the area of the unit circle: 4 a b gamma(1+1/n)^2 / gamma(1+2/n) = pi."""
    product = pi / 4 * gamma(1 + 2 / exponent) / gamma(1 + 1 / exponent) ** 2
    return sqrt(product * aspect), sqrt(product / aspect)


def hole(aspect: float, exponent: float) -> np.ndarray:
    """Points along the quarter hole, from the x axis to the y axis: corner and mid-side nodes in turn, shape (2n+1, 2).

    Corners share out arc length and turning of the tangent evenly; a mid-side node halves the arc between its corners.
    """
    a, b = half_axes(aspect, exponent)
    t = pi / 4 * (1 - np.cos(np.linspace(0, pi, 4001)))
    c, s = np.cos(t).clip(0), np.sin(t)
    x, y = a * c ** (2 / exponent), b * s ** (2 / exponent)
    arc = np.append(0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    power = 2 - 2 / exponent
    turn = np.arctan2(s**power / b, c**power / a)
    corners = np.interp(np.linspace(0, 1, AROUND + 1), arc / arc[-1] / 2 + turn / pi, arc)
    nodes = np.interp(np.arange(2 * AROUND + 1) / 2, np.arange(AROUND + 1), corners)
    where = np.interp(nodes, arc, t)
    points = np.column_stack([a * np.cos(where).clip(0) ** (2 / exponent), b * np.sin(where) ** (2 / exponent)])
    points[0, 1] = points[-1, 0] = 0  # exactly on the axes of symmetry
    return points


def mesh(aspect: float, exponent: float) -> str:
    """Draw the mesh: the text of mesh.inp, with the nodes, the elements and the sets that the deck uses."""
    inner, m = hole(aspect, exponent), np.linspace(0, 2, 2 * AROUND + 1)
    outer = HALF_WIDTH * np.column_stack([np.minimum(1, 2 - m), np.minimum(1, m)])
    rings = (GROWTH ** np.arange(OUT + 1) - 1) / (GROWTH**OUT - 1)
    depth = np.interp(np.arange(2 * OUT + 1) / 2, np.arange(OUT + 1), rings)
    number = np.zeros(
        (2 * OUT + 1, 2 * AROUND + 1), int
    )  # of node (row, column), from the hole out and around it; an element has none in its middle
    lines, count = ["*NODE, NSET=ALL"], 0
    for row, share in enumerate(depth):
        for column in range(0, 2 * AROUND + 1, 1 + row % 2):
            x, y = inner[column] + share * (outer[column] - inner[column])
            count += 1
            number[row, column] = count
            lines.append(f"{count}, {x:.12g}, {y:.12g}")
    lines.append("*ELEMENT, TYPE=CPS8R, ELSET=PLATE")
    around = [(0, 0), (2, 0), (2, 2), (0, 2), (1, 0), (2, 1), (1, 2), (0, 1)]  # (row, column): corners, then mid-sides
    for e in range(OUT * AROUND):
        row, column = 2 * (e // AROUND), 2 * (e % AROUND)
        lines.append(", ".join(map(str, [e + 1, *(number[row + i, column + j] for i, j in around)])))
    last = np.arange(AROUND) + 1 + (OUT - 1) * AROUND
    sets = {
        "*NSET, NSET=HOLE": number[0],
        "*NSET, NSET=SYM_X": number[:, -1],
        "*NSET, NSET=SYM_Y": number[:, 0],
        "*ELSET, ELSET=EDGE_X": last[: AROUND // 2],
        "*ELSET, ELSET=EDGE_Y": last[AROUND // 2 :],
    }
    for card, members in sets.items():
        lines += [card, *(f"{member}," for member in members)]
    return "\n".join(lines) + "\n"


def main(deck: str) -> None:
    """Read aspect and exponent from the heading of `deck`; write mesh.inp beside it."""
    found = re.search(r"(?i)^\*heading\s*\n.*aspect=(\S+) exponent=(\S+)", Path(deck).read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{deck}: its first lines must be *HEADING and a title with aspect=... exponent=...")
    Path(deck).with_name("mesh.inp").write_text(mesh(float(found[1]), float(found[2])), encoding="utf-8")
    print(f"mesh.inp: {AROUND} x {OUT} elements around a hole of aspect {found[1]}, exponent {found[2]}")


if __name__ == "__main__":
    main(sys.argv[1])
