"""How many trials that do nothing pass in a second through one link, beside the same command run here and no more."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import ANSWER, far, median

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from persistent_runner.remote.frames import Exit
    from persistent_runner.remote.link import Link

TITLE = "Trials that do nothing, a second; both ends share this machine"
IN_FLIGHT = 64
BAR = 0.4  # of the peer's rate
LIMIT = float(os.cpu_count() or 1)  # the peer keeps one core busy
FRAMES = 2.0
PEER = "subprocess.run, bash -c true"


def measure(_: Path, trials: int, rounds: int) -> list[Row]:
    """Return our rate with one and with many in flight, and its share of the peer's; they take turns."""
    alone, many, peer, shares = [], [], [], []
    with far(0.0) as place, place.link() as link:
        attempts = (f"{number:05d}.1" for number in itertools.count())

        def begin() -> Future[Exit]:
            return start(link, next(attempts), "true")

        rate(begin, IN_FLIGHT, IN_FLIGHT)  # the first ones load what the others find in memory
        before = link.frames_out + link.frames_in
        for _ in range(rounds):
            alone.append(rate(begin, 1, trials // 4))
            many.append(rate(begin, IN_FLIGHT, trials))
            peer.append(bare(trials))
            shares.append(many[-1] / peer[-1])
        frames = (link.frames_out + link.frames_in - before) / (rounds * (trials // 4 + trials))
    note = f"median of {rounds} rounds of {trials}, {min(shares):.0%} to {max(shares):.0%}"
    return [
        Row("1 in flight", median(alone), "/s", None),
        Row(f"{IN_FLIGHT} in flight", median(many), "/s", None, at_least=True, peer=(PEER, median(peer))),
        Row("frames a trial, out and back", frames, "", FRAMES, limit=FRAMES),
        Row("share of the peer's rate", median(shares), "", BAR, at_least=True, limit=LIMIT, note=note),
    ]


def start(link: Link, attempt: str, script: str) -> Future[Exit]:
    """Start a command without inputs and outputs."""
    return link.start(
        attempt,
        0,
        command_hash="",
        script=script,
        env={},
        cores=1,
        timeout=None,
        stall=None,
        files=[],
        outputs=[],
    )


def rate(begin: Callable[[], Future[Exit]], in_flight: int, trials: int) -> float:
    """Return how many end in a second when a new one starts as soon as one has ended."""
    free = threading.Semaphore(in_flight)
    begun = time.perf_counter()
    started = []
    for _ in range(trials):
        assert free.acquire(timeout=ANSWER)
        future = begin()
        future.add_done_callback(lambda _: free.release())
        started.append(future)
    assert all(future.result(ANSWER).code == 0 for future in started)
    return trials / (time.perf_counter() - begun)


def bare(times: int) -> float:
    """Return how many times in a second this machine starts the same command and sees its end."""
    begun = time.perf_counter()
    for _ in range(times):
        subprocess.run(["bash", "-c", "true"], check=True)
    return times / (time.perf_counter() - begun)
