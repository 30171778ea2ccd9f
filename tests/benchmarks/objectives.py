"""What a Python objective costs, push, run and pull, through a pool: its round trip and the driver's CPU."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from persistent_runner.local_platform.local import LocalRescale
from tests.benchmarks.bars import Row
from tests.benchmarks.far import ANSWER, far, in_memory, median, milliseconds, moved, said
from tests.benchmarks.plain_ways import SMALL, Sample
from tests.pools import Pools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.pool import Pool
    from persistent_runner.remote.workdir import WorkDir
    from tests.benchmarks.far import Far

TITLE = "A Python objective: 3 texts pushed, a pipe, a result of 1 KB pulled; through a pool"
RTTS = (0.05, 0.1)
MORE = 15.0  # ms beyond the RTT
CPU_BAR, CPU_LIMIT = 1.5, 0.6  # ms of the driver's CPU a trial, of a link and a pool alone
IN_FLIGHT = 16
ROUNDS = 3


@contextmanager
def pool(folder: Path, place: Far, sample: Sample) -> Iterator[Pool]:
    """Give a pool on a machine, the sample's inputs beside it; the lease is one of the local platform."""
    folder.mkdir()
    with LocalRescale(folder / "platform") as rescale:
        pools = Pools(rescale, folder, instead=lambda _: place.connect())
        for name, data in sample.files.items():
            (pools.folder / name).write_bytes(data)
        try:
            yield pools.pool(run=f"study.{folder.name}")
        finally:
            pools.close()


def measure(folder: Path, repeats: int, trials: int) -> list[Row]:
    """Return the time of one objective at each RTT and the CPU time of many at no distance."""
    rows = []
    with far(0.0) as near:
        sample = Sample(near)

        def objective(work: WorkDir) -> bytes:
            work.push(*sample.files, x=0.5)
            work.run(sample.small_command)
            return work.pull(SMALL).read_bytes()

        for rtt in RTTS:
            with moved(near, rtt) as place, pool(folder / f"{rtt:g}", place, sample) as there:
                numbers = iter(range(10**6))

                def trial(there: Pool = there, numbers: Iterator[int] = numbers) -> bytes:
                    return there.submit(next(numbers), 1, there.place(), objective).result(ANSWER)

                assert trial() == sample.results[0]  # the first one teaches the pool what is pulled
                trial()
                taken = milliseconds(trial, repeats)
            bar = rtt * 1000 + MORE
            rows.append(
                Row(
                    f"RTT {rtt * 1000:g} ms: push, run, pull",
                    median(taken),
                    "ms",
                    bar,
                    limit=rtt * 1000,
                    note=said(taken),
                )
            )
        rows.extend(_cpu_rows(folder, near, sample, trials))
    return rows


def _cpu_rows(folder: Path, near: Far, sample: Sample, trials: int) -> list[Row]:
    """Return what a trial costs the link and the pool alone, and with a run folder on this disk beside it."""
    with in_memory() as memory, pool(memory / "cpu", near, sample) as there:
        alone, how = _cpu(there, trials)
    with pool(folder / "cpu", near, sample) as there:
        beside, also = _cpu(there, trials)
    note = f"trials that do nothing, {IN_FLIGHT} at a time, the run folder in memory; {how}"
    return [
        Row("driver CPU a trial", alone, "ms", CPU_BAR, limit=CPU_LIMIT, note=note),
        Row(
            "the same, the run folder on this disk", beside, "ms", None, note=f"a folder and two files a trial; {also}"
        ),
    ]


def _cpu(there: Pool, trials: int) -> tuple[float, str]:
    """Return the CPU time in ms that a trial which pushes and pulls nothing costs this process, and how it was found.

    What the platform needs beside it is taken off.
    """

    def nothing(work: WorkDir) -> None:
        work.run("true")

    begun, cpu = time.perf_counter(), time.process_time()
    time.sleep(1)
    idle = (time.process_time() - cpu) / (time.perf_counter() - begun)
    there.submit(0, 1, there.place(), nothing).result(ANSWER)
    numbers = iter(range(1, trials * ROUNDS + 1))
    taken = []
    for _ in range(ROUNDS):
        begun, cpu = time.perf_counter(), time.process_time()
        mine = itertools.islice(numbers, trials)
        running = {there.submit(number, 1, there.place(), nothing) for number in itertools.islice(mine, IN_FLIGHT)}
        while running:
            done, running = wait(running, ANSWER, FIRST_COMPLETED)
            assert all(future.exception() is None for future in done)
            running |= {there.submit(number, 1, there.place(), nothing) for number in itertools.islice(mine, len(done))}
        spent = time.process_time() - cpu - idle * (time.perf_counter() - begun)
        taken.append(1000 * spent / trials)
    return median(taken), f"{said(sorted(taken))} of {trials}"
