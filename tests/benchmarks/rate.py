"""How many trials that do nothing pass in a second through a whole study, beside the same command run here and no more.

The study is in memory, with its run folder, and its sampler random; each result is in the journal, and each trial has
its folder.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import far, in_memory, median
from tests.benchmarks.noops import IN_FLIGHT, PEER, bare
from tests.benchmarks.studies import Study, leased, run

if TYPE_CHECKING:
    from pathlib import Path

TITLE = "Trials that do nothing, a second, through a whole study; both ends share this machine"
BAR = 0.25  # of the peer's rate
LIMIT = float(os.cpu_count() or 1)  # the peer keeps one core busy


def measure(folder: Path, trials: int, rounds: int) -> list[Row]:
    """Return the study's rate and its share of the peer's, and the rate on this disk; they take turns."""
    ours, peer, on_disk = [], [], []
    study = Study(trials, "true", "random", "in memory", IN_FLIGHT, result="parameters.json")
    with (
        far(0.0) as place,
        leased(folder / "lease", place, IN_FLIGHT, folder / "times") as lease,
        in_memory() as memory,
    ):

        def rate(runs: Path) -> float:
            progress, seconds = run(lambda: lease, study, runs)
            assert progress.complete == trials, progress
            return trials / seconds

        for number in range(rounds):
            ours.append(rate(memory / f"round-{number}"))
            peer.append(bare(trials))
            on_disk.append(rate(folder / f"round-{number}"))
    shares = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    note = f"median of {rounds} rounds of {trials}, {min(shares):.0%} to {max(shares):.0%}"
    each = f"{min(on_disk):.0f} to {max(on_disk):.0f}; a folder, its files, and two waits for the disk a trial"
    return [
        Row(f"{IN_FLIGHT} in flight", median(ours), "/s", None, at_least=True, peer=(PEER, median(peer))),
        Row("share of the peer's rate", median(shares), "", BAR, at_least=True, limit=LIMIT, note=note),
        Row("the run folder on this disk", median(on_disk), "/s", None, at_least=True, note=each),
    ]
