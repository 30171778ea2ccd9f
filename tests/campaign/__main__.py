"""`python -m tests.campaign --seeds N --kills N`: the release level, and the table that the README quotes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.run import campaign, table


def main() -> int:
    """Play all, print the table and what was broken; return 1 where anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="schedules of random events")
    parser.add_argument(
        "--first-seed", type=int, default=1, help="the first of them; with --seeds 1 it is played again"
    )
    parser.add_argument("--kills", type=int, default=1000, help="schedules of deaths at named points")
    parser.add_argument("--together", type=int, default=6, help="how many studies are driven at a time")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        found = campaign(Path(folder), kills=options.kills, seeds=seeds, together=options.together, say=print)
    print(table(found, time.monotonic() - begun))
    return int(any(found.broken))


if __name__ == "__main__":
    sys.exit(main())
