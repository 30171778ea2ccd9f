"""Run the benchmarks and print their tables; last, how many bars are met. Without a NAME: all that have bars."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks import (
    begin,
    burst,
    busy,
    day,
    gaps,
    logs,
    many,
    noops,
    objectives,
    opening,
    orphans,
    overhead,
    rate,
    readers,
    survival,
    transfers,
)
from tests.benchmarks.bars import table, verdict
from tests.openssh import SSHD, WHY_NOT

# name: module, its sizes, and the smaller ones of --quick
BARRED = {
    "overhead": (overhead, (50, 5), (9, 1)),
    "objectives": (objectives, (50, 1000), (15, 200)),
    "noops": (noops, (500, 7), (200, 3)),
    "burst": (burst, (200, 5), (200, 2)),
    "opening": (opening, (9,), (3,)),
    "begin": (begin, (9,), (2,)),
    "busy": (busy, (50,), (15,)),
    "day": (day, ({2: 20.0, 10: 60.0},), ({2: 60.0, 10: 300.0},)),
    "gaps": (gaps, (30,), (5,)),
    "many": (many, (10_000, 200), (2_000, 50)),
    "rate": (rate, (500, 7), (200, 3)),
    "transfers": (transfers, (transfers.Size(),), (transfers.QUICK,)),
}
OTHERS = ("logs", "orphans", "readers", "survival")
OVER_OPENSSH = {*BARRED, "logs"}

names = sorted({*BARRED, *OTHERS})
parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)}")
parser.add_argument("--quick", action="store_true", help="a few repeats only")
parser.add_argument("--repeats", type=int, default=8, help="of each story of `orphans`")
options = parser.parse_args()
chosen = options.names or list(BARRED)
for name in chosen:
    if name not in names:
        parser.error(f"there is no benchmark {name}; there are {', '.join(names)}")
if SSHD is None and OVER_OPENSSH & set(chosen):
    parser.exit(2, f"It is measured over OpenSSH: {WHY_NOT}\n")
rows = []
with tempfile.TemporaryDirectory() as top:
    for name in chosen:
        folder = Path(top, name)
        folder.mkdir()
        if name in BARRED:
            module, sizes, quick_sizes = BARRED[name]
            found = module.measure(folder, *(quick_sizes if options.quick else sizes))
            print(table(module.TITLE, found), flush=True)
            rows += found
        elif name == "orphans":
            print(orphans.table(orphans.measure(folder, 1 if options.quick else options.repeats)))
        elif name == "readers":
            numbers = (100, 5_000_000) if options.quick else (1000, 50_000_000)
            print(readers.table(readers.measure(folder, *numbers)))
        elif name == "survival":
            print(survival.table(survival.measure(folder, 6 if options.quick else 40)))
        else:
            commands, lines = (8, 20) if options.quick else (64, 100)
            print(logs.table(logs.measure(folder, commands, lines), commands))
if rows:
    print(verdict(rows))
