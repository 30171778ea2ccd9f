"""Run the benchmarks and print their tables."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks import noop
from tests.openssh import SSHD, WHY_NOT

parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few repeats only")
quick = parser.parse_args().quick
if SSHD is None:
    parser.exit(2, f"The benchmarks measure over OpenSSH: {WHY_NOT}\n")
with tempfile.TemporaryDirectory() as folder:
    print(noop.table(noop.measure(Path(folder), 5 if quick else 50)))
