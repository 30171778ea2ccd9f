"""Many trials that sleep for a second, all at once on one connection: how much longer than one they take together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import ANSWER, far, median
from tests.benchmarks.noops import start

if TYPE_CHECKING:
    from pathlib import Path

RTT = 0.05
TRIALS = 200
BAR = 1.7  # seconds, for so many


def measure(_: Path, trials: int, rounds: int) -> list[Row]:
    """Return the wall time of so many `sleep 1` that start together; a bar goes with as many as that was set for."""
    walls, cpus = [], []
    with far(RTT) as place, place.link() as link:
        start(link, "warm.1", "true").result(ANSWER)
        for turn in range(rounds):
            begun, cpu = time.perf_counter(), time.process_time()
            started = [start(link, f"{turn}-{number:05d}.1", "sleep 1") for number in range(trials)]
            assert all(future.result(ANSWER).code == 0 for future in started)
            walls.append(time.perf_counter() - begun)
            cpus.append(1000 * (time.process_time() - cpu) / trials)
    return [
        Row(
            f"{trials} trials of `sleep 1` at once",
            median(walls),
            "s",
            BAR if trials == TRIALS else None,
            limit=1 + RTT,
            note=f"median of {rounds}, {min(walls):.3g} to {max(walls):.3g}; driver CPU {median(cpus):.2g} ms a trial",
        )
    ]


TITLE = f"A burst through one link, RTT {RTT * 1000:g} ms"
