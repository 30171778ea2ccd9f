"""Run the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks import bars, logs, noop, orphans, readers, survival, transfers
from tests.openssh import SSHD, WHY_NOT

NAMES = ("logs", "noop", "orphans", "readers", "survival", "transfers")

parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: noop)")
parser.add_argument("--quick", action="store_true", help="a few repeats only")
parser.add_argument("--repeats", type=int, default=8, help="of each story of `orphans`")
options = parser.parse_args()
for name in options.names:
    if name not in NAMES:
        parser.error(f"there is no benchmark {name}; there are {', '.join(NAMES)}")
with tempfile.TemporaryDirectory() as folder:
    for name in options.names or ["noop"]:
        if name == "orphans":
            print(orphans.table(orphans.measure(Path(folder), 1 if options.quick else options.repeats)))
        elif name == "readers":
            sizes = (100, 5_000_000) if options.quick else (1000, 50_000_000)
            print(readers.table(readers.measure(Path(folder), *sizes)))
        elif name == "survival":
            print(survival.table(survival.measure(Path(folder), 6 if options.quick else 40)))
        elif SSHD is None:
            parser.exit(2, f"It is measured over OpenSSH: {WHY_NOT}\n")
        elif name == "transfers":
            rows = transfers.measure(Path(folder), transfers.QUICK if options.quick else transfers.Size())
            print(bars.table("big files over a long line", rows), bars.verdict(rows), sep="\n")
        elif name == "logs":
            commands, lines = (8, 20) if options.quick else (64, 100)
            print(logs.table(logs.measure(Path(folder), commands, lines), commands))
        else:
            print(noop.table(noop.measure(Path(folder), 5 if options.quick else 50)))
