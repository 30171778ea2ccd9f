"""Cost and pressure of a network whose pipes have the chosen sizes, by EPANET.

    python3 network.py              reads network.inp, sizes.csv and pipes.csv, writes network.json

`cost` is that of all pipes; `head` is the lowest head of pressure above ground among the places of use, in metres.
"""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

from epanet import toolkit

MILLIMETRES = 25.4  # an inch


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of a table by the names of its columns."""
    with Path(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Put the sizes into the network, solve it, write network.json."""
    sizes = {row["size"]: row for row in read("sizes.csv")}
    network = toolkit.createproject()
    toolkit.open(network, "network.inp", "network.rpt", "")
    cost = 0.0
    for row in read("pipes.csv"):
        pipe, size = toolkit.getlinkindex(network, row["pipe"]), sizes[row["size"]]
        toolkit.setlinkvalue(network, pipe, toolkit.DIAMETER, float(size["inches"]) * MILLIMETRES)
        cost += float(size["cost_per_metre"]) * toolkit.getlinkvalue(network, pipe, toolkit.LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EPANET's note that a pressure is below zero: the head says so
        toolkit.solveH(network)
    heads = {}
    for node in range(1, toolkit.getcount(network, toolkit.NODECOUNT) + 1):
        if toolkit.getnodetype(network, node) == toolkit.JUNCTION:
            height = toolkit.getnodevalue(network, node, toolkit.ELEVATION)
            heads[toolkit.getnodeid(network, node)] = toolkit.getnodevalue(network, node, toolkit.HEAD) - height
    toolkit.close(network)
    lowest = min(heads, key=lambda node: heads[node])
    found = {"cost": cost, "head": heads[lowest], "heads": heads}
    Path("network.json").write_text(json.dumps(found) + "\n", encoding="ascii")
    print(f"cost {cost:.0f}; lowest at node {lowest}: {heads[lowest]:.2f} m")


if __name__ == "__main__":
    main()
