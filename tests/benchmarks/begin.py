"""From the platform's word that a job executes to the first trial that runs, far away."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from persistent_runner.local_platform.local import LocalRescale
from persistent_runner.rescale.client import RescalePlatform
from tests.benchmarks.bars import Row
from tests.benchmarks.far import HOST, far, median, moved, said
from tests.benchmarks.line import line
from tests.benchmarks.studies import COMMAND, Study, asked, run
from tests.pools import POLL, Pools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.far import Far

TITLE = "From EXECUTING to the first trial that runs; SSH and the platform's API are far away"
RTT = 0.1
BAR = 1.5  # s, and a poll
ASKED = 2  # questions of one look: the job's statuses, and its cluster's
LIMIT = 12 * RTT  # a login, an agent, a command, and what is asked of the platform before


def measure(folder: Path, repeats: int) -> list[Row]:
    """Return how long it takes."""
    with far(0.0) as near, moved(near, RTT) as place:
        taken = sorted(_once(folder / f"begin-{number}", place) for number in range(repeats))
    poll = POLL.total_seconds() + ASKED * RTT
    note = f"{said(taken)}; a poll is {poll:.2f} s here, {ASKED} questions and a short wait"
    return [Row(f"RTT {1000 * RTT:.0f}", median(taken), "s", poll + BAR, limit=LIMIT, note=note)]


def _once(folder: Path, place: Far) -> float:
    folder.mkdir(parents=True)
    times = folder / "times"
    with LocalRescale(folder / "platform") as rescale:
        port = urlsplit(rescale.base_url).port
        assert port is not None
        with line(HOST, port, RTT) as api:
            pools = Pools(rescale, folder, lambda _: place.connect())
            pools.platform = RescalePlatform(f"http://{HOST}:{api}", rescale.api_key)
            try:
                run(
                    lambda: pools.lease(cores=1, env={"TIMES": str(times)}),
                    Study(1, COMMAND.format(seconds=0), "random"),
                    folder / "study",
                )
                executing = _executing(rescale)
            finally:
                pools.close()
    return float(times.read_text().split()[1]) - executing


def _executing(rescale: LocalRescale) -> float:
    """Return when the platform says that its job began to execute."""
    (job,) = asked(rescale, "jobs")
    rows = asked(rescale, f"jobs/{job['id']}/statuses")
    return next(datetime.fromisoformat(row["statusDate"]).timestamp() for row in rows if row["status"] == "Executing")
