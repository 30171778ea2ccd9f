"""A day's trials on one lease against one job for each, both really run: the local platform by a fast clock.

What starts up takes as long as on the platform, by a clock that goes so many times faster; a trial is a `sleep`.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import paramiko

from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.local_platform.local import RECORDED, LocalRescale
from persistent_runner.remote.ssh import public_line
from tests.benchmarks.bars import Row
from tests.benchmarks.studies import Study, asked, run
from tests.pools import Pools

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.rescale.client import RescalePlatform

TITLE = "One lease against one job for each trial; start-up 9 min; both run by a fast clock"
TRIALS = 10
NEAR = 0.05  # of the model
DEADLINE = 300.0  # s, for a job to end
MODEL = 50  # trials that the README speaks of
MODEL_MINUTES = (2, 10, 60)

_WHILE_STARTING = ("pending", "waiting_for_queue", "queued", "started", "cluster_starting", "validated")
DURATIONS = replace(RECORDED, validated=RECORDED.validated + 9.0)
START_UP = sum(getattr(DURATIONS, name) for name in (*_WHILE_STARTING, "cluster_started")) / 60  # min
STOP = (DURATIONS.stopping + DURATIONS.stop_requested + DURATIONS.cluster_stopping) / 60
BOOT = (
    DURATIONS.cluster_starting + DURATIONS.validated + DURATIONS.cluster_started
) / 60  # what may be billed of START_UP


class FastClock:
    """Goes `times` faster than this machine's."""

    def __init__(self, times: float) -> None:
        self._times = times
        self._begun = time.monotonic()
        self._at = datetime.now(UTC)

    def now(self) -> datetime:
        """Return the moment, in UTC."""
        return self._at + timedelta(seconds=(time.monotonic() - self._begun) * self._times)

    def wait(self, seconds: float, interrupt: threading.Event) -> bool:
        """Wait until `seconds` of this clock have passed or `interrupt` is set; return whether it is set."""
        return interrupt.wait(seconds / self._times)


@dataclass(frozen=True)
class Spent:
    """Minutes by the platform's clock: from submit to the end of the machines, of those that they were there, and ran."""

    whole: float
    booted: float
    executed: float


def measure(folder: Path, times: dict[int, float]) -> list[Row]:
    """Return how far what was run is from the model; `times` gives by the minutes of a trial how fast the clock goes."""
    rows = []
    for minutes, fast in times.items():
        one, each = both(folder / f"{minutes}-minutes", minutes, fast)
        ratio, model = each.whole / one.whole, modelled(TRIALS, minutes, START_UP)
        billed, unbilled = each.booted / one.booted, each.executed / one.executed
        note = (
            f"{ratio:.2f} times shorter, by the model {model:.2f}; cost {billed:.2f} times less where start-up is billed, "
            f"{unbilled:.2f} where it is not"
        )
        rows.append(
            Row(f"{TRIALS} trials of {minutes} min, off the model by", abs(ratio / model - 1), "", NEAR, note=note)
        )
    for minutes in MODEL_MINUTES:
        shorter, cheaper = (modelled(MODEL, minutes, start_up) for start_up in (START_UP, BOOT))
        note = f"cost {cheaper:.2f} times less where start-up is billed, the same where it is not"
        name = f"the model: {MODEL} trials of {minutes} min, times shorter"
        rows.append(Row(name, shorter, "", None, at_least=True, note=note))
    return rows


def modelled(trials: int, minutes: float, start_up: float) -> float:
    """Return how many times more all jobs of one trial take than one lease; `minutes` of a trial and of a start-up."""
    around = start_up + STOP
    return trials * (around + minutes) / (around + trials * minutes)


def both(folder: Path, minutes: int, fast: float) -> tuple[Spent, Spent]:
    """Return what one lease took, and what all jobs took that had one trial each.

    These run at the same time, and count one after the other.
    """
    folder.mkdir(parents=True)
    command = f"sleep {60 * minutes / fast}; echo '{{\"x\": 1}}' > result.json"
    with LocalRescale(folder / "platform", durations=DURATIONS, clock=FastClock(fast)) as rescale:
        pools = Pools(rescale, folder)
        try:
            with ThreadPoolExecutor(TRIALS) as threads:
                jobs = [threads.submit(_job, pools.platform, number, command) for number in range(TRIALS)]
                each = [_spent(pools.platform, rescale, job.result()) for job in jobs]
            study = Study(TRIALS, command, "random")
            held: list[ClusterLease] = []

            def lease() -> ClusterLease:
                held.append(pools.lease(cores=1, walltime=timedelta(hours=20)))
                return held[0]

            progress, _ = run(lease, study, folder / "study")
            assert progress.complete == TRIALS, progress
            held[0].release()
            one = _spent(pools.platform, rescale, str(held[0].job_id))
        finally:
            pools.close()
    return one, Spent(*(sum(getattr(job, name) for job in each) for name in ("whole", "booted", "executed")))


def _job(platform: RescalePlatform, number: int, command: str) -> str:
    """Run a job that is one trial, and return its id when its machines are gone."""
    request = LeaseRequest(
        core_type="emerald",
        cores=1,
        walltime=timedelta(hours=20),
        public_key=public_line(paramiko.ECDSAKey.generate()),
        name=f"job {number}",
        command=command,
    )
    job = platform.create(request).job_id
    platform.submit(job)
    until = time.monotonic() + DEADLINE
    while not platform.state(job).stopped:
        assert time.monotonic() < until, f"job {job} has not ended"
        time.sleep(0.2)
    return job


def _spent(platform: RescalePlatform, rescale: LocalRescale, job: str) -> Spent:
    rows = [*asked(rescale, f"jobs/{job}/statuses"), *asked(rescale, f"jobs/{job}/cluster_statuses")]
    found = [datetime.fromisoformat(row["statusDate"]) for row in rows]
    state = platform.state(job)
    assert state.booted is not None
    assert state.executed is not None
    minute = timedelta(minutes=1)
    return Spent((max(found) - min(found)) / minute, state.booted / minute, state.executed / minute)
