"""`python -m tests.campaign --seeds N --kills N`: the release level, and the table that the README quotes."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.run import campaign, named, of_kills, of_seeds, table
from tests.campaign.stories import STORIES


def main() -> int:
    """Play all, print the table and what was broken; return 1 where anything was."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="studies with random events")
    parser.add_argument("--kills", type=int, default=1000, help="deaths of drivers at named points")
    parser.add_argument("--together", type=int, default=12, help="how many studies are driven at a time")
    parser.add_argument(
        "--play",
        action="append",
        metavar="NAME",
        help=f"this alone: `seed N`, crash points as in told:2,attaching, or one of: {', '.join(STORIES)}",
    )
    options = parser.parse_args()
    begun = time.monotonic()
    seeds = range(1, options.seeds + 1)
    alone = {name: named(name) for name in options.play or ()}
    with tempfile.TemporaryDirectory() as folder:
        plays = alone or {**of_kills(options.kills), **of_seeds(seeds), **STORIES}
        found = campaign(Path(folder), plays, together=options.together, say=print)
    print(table(found, time.monotonic() - begun))
    return int(any(found.broken))


if __name__ == "__main__":
    sys.exit(main())
