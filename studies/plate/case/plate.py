"""Plane-stress finite elements for a deck in CalculiX's format: read, solve, write the stress along the hole.

    python3 plate.py plate          reads plate.inp and what it includes, writes stress.csv and theory.json

The same deck runs unchanged in CalculiX. Elements are its CPS8R: eight nodes, quadratic, integrated at 2 x 2 points,
whose stresses are carried to the nodes and averaged there. Units are the deck's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
from deck import Deck

CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
SIDES = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)], float)
FACES = {"P1": (0, 4, 1), "P2": (1, 5, 2), "P3": (2, 6, 3), "P4": (3, 7, 0)}  # corner, mid-side, corner


def shape(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (p, 8) and derivatives (p, 2, 8) of the eight shape functions at `points` (p, 2) of the unit square."""
    r, s = points[:, :1], points[:, 1:]
    (rc, sc), (rm, sm) = CORNERS.T, SIDES.T
    corner = (1 + r * rc) * (1 + s * sc) * (r * rc + s * sc - 1) / 4
    corner_r = rc * (1 + s * sc) * (2 * r * rc + s * sc) / 4
    corner_s = sc * (1 + r * rc) * (r * rc + 2 * s * sc) / 4
    flat = rm == 0  # the sides along r have their bubble in r
    side = np.where(flat, (1 - r**2) * (1 + s * sm), (1 - s**2) * (1 + r * rm)) / 2
    side_r = np.where(flat, -2 * r * (1 + s * sm), (1 - s**2) * rm) / 2
    side_s = np.where(flat, (1 - r**2) * sm, -2 * s * (1 + r * rm)) / 2
    return np.hstack([corner, side]), np.stack([np.hstack([corner_r, side_r]), np.hstack([corner_s, side_s])], axis=1)


def solve_banded(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Solve a sparse system given by its entries (repeated ones add up).

    Cut into blocks as wide as the band, the matrix is block-tridiagonal: eliminate downwards, substitute upwards.
    """
    width = int(abs(rows - columns).max()) + 1
    count = -(-len(load) // width)
    band = np.zeros((count, width, 3 * width))
    np.add.at(band, (rows // width, rows % width, columns - (rows // width - 1) * width), values)
    right = np.zeros((count, width, 1))
    right.reshape(-1)[: len(load)] = load
    spare = np.arange(len(load), count * width) % width  # the last block is filled up with ones
    band[-1, spare, width + spare] = 1
    below, middle, above = band[..., :width], band[..., width : 2 * width], band[..., 2 * width :]
    for i in range(count):
        if i:
            middle[i] -= below[i] @ above[i - 1]
            right[i] -= below[i] @ right[i - 1]
        solved = np.linalg.solve(middle[i], np.hstack([above[i], right[i]]))
        above[i], right[i] = solved[:, :-1], solved[:, -1:]
    for i in range(count - 2, -1, -1):
        right[i] -= above[i] @ right[i + 1]
    return right.reshape(-1)[: len(load)]


def solve(deck: Deck) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return displacements by node (n, 2), and the stresses (xx, yy, xy) at each node, averaged over its elements."""
    index = {number: i for i, number in enumerate(deck.nodes)}
    xy = np.array(list(deck.nodes.values()))
    nodes = np.array([[index[n] for n in element] for element in deck.elements.values()])
    nu = deck.poisson
    hooke = deck.young / (1 - nu**2) * np.array([[1, nu, 0], [nu, 1, 0], [0, 0, (1 - nu) / 2]])

    _, local = shape(CORNERS / np.sqrt(3))  # the 2 x 2 Gauss points
    jacobian = np.einsum("pdn,eni->epdi", local, xy[nodes])
    area = np.linalg.det(jacobian)
    if (area <= 0).any():
        sys.exit("the mesh has an element turned inside out")
    gradient = np.linalg.solve(jacobian, np.broadcast_to(local, (*area.shape, 2, 8)))
    strain = np.zeros((*area.shape, 3, 16))  # from the displacements of an element to its strains
    strain[..., 0, 0::2] = strain[..., 2, 1::2] = gradient[..., 0, :]
    strain[..., 1, 1::2] = strain[..., 2, 0::2] = gradient[..., 1, :]
    stiffness = np.einsum("epki,kl,eplj,ep->eij", strain, hooke, strain, area * deck.thickness, optimize=True)

    load = np.zeros((len(xy), 2))
    for group, face, pressure in deck.pressure:
        for number in deck.members(group):
            start, middle, end = (index[deck.elements[number][k]] for k in FACES[face])
            x, y = xy[end] - xy[start]
            force = -pressure * deck.thickness * np.array([y, -x])  # the outward normal, times the length of the side
            load[[start, middle, end]] += np.outer([1 / 6, 2 / 3, 1 / 6], force)

    held = np.zeros((len(xy), 2), bool)
    for group, first, last in deck.boundary:
        held[[index[n] for n in deck.members(group)], first - 1 : last] = True
    free = np.where(held.ravel(), -1, np.cumsum(~held.ravel()) - 1)
    dofs = free[(2 * nodes[:, :, None] + [0, 1]).reshape(len(nodes), 16)]
    rows, columns = np.broadcast_arrays(dofs[:, :, None], dofs[:, None, :])
    kept = (rows >= 0) & (columns >= 0)
    u = np.zeros(2 * len(xy))
    u[free >= 0] = solve_banded(rows[kept], columns[kept], stiffness[kept], load.ravel()[free >= 0])

    of_element = u[(2 * nodes[:, :, None] + [0, 1]).reshape(len(nodes), 16)]
    at_gauss = np.einsum("kl,eplj,ej->epk", hooke, strain, of_element)
    points = np.vstack([CORNERS, SIDES]) * np.sqrt(3)
    outward = (1 + points[:, :1] * CORNERS[:, 0]) * (1 + points[:, 1:] * CORNERS[:, 1]) / 4  # bilinear, to the nodes
    total, hits = np.zeros((len(xy), 3)), np.zeros(len(xy))
    np.add.at(total, nodes, np.einsum("np,epk->enk", outward, at_gauss))
    np.add.at(hits, nodes, 1)
    mean = total / hits[:, None]
    return u.reshape(-1, 2), {number: mean[i] for number, i in index.items()}


def along_hole(deck: Deck, stress: dict[int, np.ndarray]) -> np.ndarray:
    """Return a line for each node of the set HOLE: angle (degrees from the x axis), x, y, hoop, von Mises stress.

    Hoop is the larger principal stress: none crosses the edge of a hole, so where the edge is pulled it lies along it.
    """
    x, y = np.array([deck.nodes[number] for number in deck.members("HOLE")]).T
    xx, yy, xy = np.array([stress[number] for number in deck.members("HOLE")]).T
    hoop = (xx + yy) / 2 + np.hypot((xx - yy) / 2, xy)
    von_mises = np.sqrt(xx**2 - xx * yy + yy**2 + 3 * xy**2)
    return np.column_stack([np.degrees(np.arctan2(y, x)), x, y, hoop, von_mises])


def main(job: str) -> None:
    """Solve the deck `job`.inp, write stress.csv and theory.json, and end with the peak beside what theory says."""
    deck = Deck(Path(f"{job}.inp"))
    print(f"{job}.inp: {len(deck.nodes)} nodes, {len(deck.elements)} elements of type CPS8R")
    started = perf_counter()
    _, stress = solve(deck)
    print(f"solved in {perf_counter() - started:.3f} s")

    table = along_hole(deck, stress)
    np.savetxt("stress.csv", table, "%.6f", delimiter=",", header="angle,x,y,hoop,von_mises", comments="")
    _, x, y, peak, _ = table[table[:, 3].argmax()]
    print(f"stress.csv: {len(table)} points along the hole; highest at x = {x:.3f}, y = {y:.3f}")
    pull = {group: -pressure for group, _, pressure in deck.pressure}
    least, aspect = pull["EDGE_X"] + pull["EDGE_Y"], pull["EDGE_X"] / pull["EDGE_Y"]
    Path("theory.json").write_text(json.dumps({"peak_stress": least, "aspect": aspect, "exponent": 2.0}) + "\n")
    print(f"peak hoop stress {peak:.3f}; theory: at least {least:.3f}, which aspect {aspect:.3f} with exponent 2 has")


if __name__ == "__main__":
    main(sys.argv[1])
