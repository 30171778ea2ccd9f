"""What a trial takes beside its command: through the link at three distances, and by the plain ways."""

from __future__ import annotations

import itertools
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.benchmarks.bars import Row
from tests.benchmarks.far import ANSWER, far, median, milliseconds, moved, said
from tests.benchmarks.plain_ways import BIG, SMALL, WAYS, Results, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.far import Far

TITLE = "A trial one at a time: 3 texts there (30 KB), a pipe and a copy, 2 results back (65 KB)"
BARS = {0.0: 11.0, 0.05: 66.0, 0.1: 116.0}  # RTT in seconds: ms
TIMES_FABRIC = 30.0  # at the longest of them
_FABRIC = next(iter(WAYS))


@contextmanager
def by_link(place: Far, sample: Sample) -> Iterator[Callable[[], Results]]:
    """One link: a frame there, a frame back."""
    attempts = (f"{number:05d}.1" for number in itertools.count())
    files = [(name, data, 0o644) for name, data in sample.files.items()]
    with place.link() as link:

        def trial() -> Results:
            ended = link.start(
                next(attempts),
                0,
                command_hash="",
                script=sample.command,
                env={},
                cores=1,
                timeout=None,
                stall=None,
                files=files,
                outputs=[SMALL, BIG],
            ).result(ANSWER)
            small, big = ended.manifest
            return small.data or b"", big.data or b""

        yield trial


def measure(folder: Path, repeats: int, peer_repeats: int, rtts: tuple[float, ...] = tuple(BARS)) -> list[Row]:
    """Return for each RTT our row, the plain ways' and the command's own, and the ratio to plain Fabric at the longest."""
    rows = []
    with far(0.0) as there:
        for rtt in rtts:
            with moved(there, rtt) as place:
                sample = Sample(place)
                taken = {}
                for name, way in {"": by_link, **WAYS}.items():
                    with way(place, sample) as trial:
                        assert trial() == sample.results, name
                        taken[name] = milliseconds(trial, peer_repeats if name else repeats)
            ours, fabric, at = median(taken[""]), median(taken[_FABRIC]), f"RTT {rtt * 1000:g} ms"
            rows.append(
                Row(
                    f"{at}: the link",
                    ours,
                    "ms",
                    BARS.get(rtt),
                    peer=(_FABRIC, fabric),
                    limit=rtt * 1000,
                    note=said(taken[""]),
                )
            )
            rows += [Row(f"{at}: {name}", median(found), "ms", None) for name, found in taken.items() if name]
        rows.append(Row("the command alone, on this machine", median(_alone(folder, sample, repeats)), "ms", None))
    ratio = fabric / ours
    bar = TIMES_FABRIC if rtt == max(BARS) else None
    return [*rows, Row(f"{at}: plain Fabric's time in ours", ratio, "times", bar, at_least=True)]


def _alone(folder: Path, sample: Sample, repeats: int) -> list[float]:
    for name, data in sample.files.items():
        (folder / name).write_bytes(data)
    return milliseconds(lambda: subprocess.run(["bash", "-c", sample.command], cwd=folder, check=True), repeats)
