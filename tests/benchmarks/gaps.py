"""How long a core waits between two trials of a whole study: SQLite, TPE, one trial at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import far, median, moved, said
from tests.benchmarks.plain_ways import plain
from tests.benchmarks.studies import COMMAND, Study, timed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.far import Far

TITLE = "The wait of a core between two trials of a whole study, one at a time"
ROUND_TRIPS = (0.0, 0.05, 0.1)
MORE = 15.0  # ms beyond the round trip
SPAWN = 2.5  # ms: the shell and `cp`
STAGED = '"auto"'
SKIP = 3
BUSY = {1.0: 0.985, 0.2: 0.93}
PEER = "plain Fabric: put, run, get"
FAR_AWAY = 0.1


def measure(folder: Path, trials: int) -> list[Row]:
    """Return the wait by round trip, and the busy share of a core far away, beside plain Fabric's."""
    rows = []
    with far(0.0) as near:
        for rtt in ROUND_TRIPS:
            with moved(near, rtt) as place:
                name, ms = f"gap-{1000 * rtt:.0f}", 1000 * rtt
                study = Study(trials + SKIP, COMMAND.format(seconds=0.3), stage_ahead="1", is_sent=False)
                gaps = sorted(1000 * gap for gap in timed(folder / name, place, study, SKIP).gaps)
                rows.append(
                    Row(
                        f"from an end to the next begin, RTT {ms:.0f}",
                        median(gaps),
                        "ms",
                        ms + MORE,
                        limit=ms + SPAWN,
                        note=said(gaps),
                    )
                )
        with moved(near, FAR_AWAY) as place:
            for seconds, bar in BUSY.items():
                study = Study(trials + SKIP, COMMAND.format(seconds=seconds), stage_ahead=STAGED)
                busy = timed(folder / f"busy-{seconds}", place, study, SKIP).busy
                peer = fabrics_share(place, seconds, max(2, trials // 5))
                rows.append(
                    Row(
                        f"busy share of a core, runs of {seconds:g} s, RTT {1000 * FAR_AWAY:.0f}",
                        busy,
                        "",
                        bar,
                        at_least=True,
                        peer=(PEER, peer),
                        limit=seconds / (seconds + SPAWN / 1000),
                    )
                )
    return rows


def fabrics_share(place: Far, seconds: float, trials: int) -> float:
    """Return the busy share of a core by putting a file, running a command and getting a file, one after the other."""
    given = place.server.home / "given"
    given.write_text("{}")
    with plain(place) as connection:
        connection.put(str(given), "parameters.json")
        begun = time.perf_counter()
        for _ in range(trials):
            connection.put(str(given), "parameters.json")
            connection.run(f"sleep {seconds}; cp parameters.json result.json", hide=True, in_stream=False)
            connection.get("result.json", str(place.server.home / "back"))
        return trials * seconds / (time.perf_counter() - begun)
