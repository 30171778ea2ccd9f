"""What it costs that a trial survives its driver: frames, fsyncs, the slot's wait for them, and the way back to it.

The driver is a real `run-study` in a process of its own, on the local platform, with one trial at a time; where strace
is installed, it counts the fsyncs of SQLite too, which no wrapper in Python sees.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.driving import LONG, Gated, Place, kill, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JOINED = 8  # trials at a time when the driver is killed
ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace")
SLOW = 10  # ms, as a disk that really writes takes
OWN = ("run", "drop")  # what a trial sends: its command; and, with nobody waiting, that its directory may go
ONE_BY_ONE = ("--set", "trial.stage_ahead=0")
AHEAD = ("--set", "trial.stage_ahead=1", "--set", "trial.command=sleep 3; cp parameters.json result.json")
SELDOM = {"PERSISTENT_RUNNER_BEAT": "5s"}


@dataclass(frozen=True)
class Row:
    """What was counted or measured, a line on what it is made of, and the most that is wanted of it."""

    what: str
    value: float | None
    unit: str = ""
    of: str = ""
    most: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether it is more than is wanted."""
        return self.most is not None and self.value is not None and self.value > self.most


@dataclass(frozen=True)
class Gap:
    """From the arrival of a trial's exit to the next trial's command: the seconds, and the fsyncs by their file.

    Of these those before the next trial is started: from there on nothing waits for them. One that was sent ahead has
    less than no seconds.
    """

    seconds: float
    fsyncs: tuple[tuple[str, float], ...]

    def of(self, kind: str) -> list[float]:
        """Return how long each fsync of a kind took."""
        return [seconds for found, seconds in self.fsyncs if found == kind]


def measure(folder: Path, trials: int) -> list[Row]:
    """Return the rows of the table. A trial here is a copy of one file, which is its only output."""
    slow = watched(folder / "slow", trials, *ONE_BY_ONE, BENCHMARK_FSYNC_SECONDS=str(SLOW / 1000))
    stored = _stored(folder / "traced", trials) if STRACE else None
    started, heard = joined(folder / "joined")
    return [
        *costs(watched(folder / "watched", trials, *ONE_BY_ONE), trials - 1),
        *ahead(watched(folder / "ahead", trials, *AHEAD)),
        Row(f"the same where an fsync takes {SLOW} ms more", _milliseconds(gap.seconds for gap in _gaps(slow)), "ms"),
        Row("fsyncs of SQLite by trial", None if stored is None else stored / trials, of="" if STRACE else "no strace"),
        Row(f"from start to {JOINED} trials that are shown as started", started, "s"),
        Row(f"from start to the lines of {JOINED} joined trials", heard, "s", most=10),
    ]


def costs(seen: list[dict[str, Any]], trials: int) -> list[Row]:
    """Return what so many trials took, by what was seen of them."""
    sent = Counter(line["kind"] for line in _of(seen, "out"))
    came = Counter(line["kind"] for line in _of(seen, "in"))
    kept = Counter(line["kind"] for line in _fsyncs(seen))
    waited = sum(count for kind, count in sent.items() if kind not in OWN)
    gaps = list(_gaps(seen))
    return [
        Row("round trips that a trial waits for, beside its own", waited / trials, most=0),
        Row("frames out of a trial", sum(sent.values()) / trials, of=_parts(sent, trials)),
        Row("frames in of a trial", sum(came.values()) / trials, of=_parts(came, trials)),
        Row("fsyncs of the journal by trial", kept["journal"] / trials, most=2),
        Row("fsyncs of its outputs by trial", kept["outputs"] / trials),
        Row("fsyncs of anything else by trial", kept["else"] / trials),
        Row(
            "fsyncs of the journal from exit to next start",
            statistics.median(len(gap.of("journal")) for gap in gaps),
        ),
        Row("fsyncs of outputs from exit to next start", statistics.median(len(gap.of("outputs")) for gap in gaps)),
        Row("from exit to next start", _milliseconds(gap.seconds for gap in gaps), "ms"),
        Row("  of that the journal's fsyncs", _milliseconds(sum(gap.of("journal")) for gap in gaps), "ms"),
        Row("  of that the outputs' fsyncs", _milliseconds(sum(gap.of("outputs")) for gap in gaps), "ms"),
    ]


def ahead(seen: list[dict[str, Any]]) -> list[Row]:
    """Return what lies between two trials where the next one is sent ahead: nothing, since it is there already."""
    gaps = list(_gaps(seen))
    most = max(len(gap.fsyncs) for gap in gaps)
    there = sum(gap.seconds < 0 for gap in gaps) / len(gaps)
    return [
        Row("stage_ahead = 1: fsyncs of anything from exit to next start", most, most=0),
        Row("stage_ahead = 1: trials on the node before the last one's exit", 100 * there, "%"),
    ]


def table(rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'what the survival of a trial costs':<62}{'measured':>12}{'at most':>9}"]
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.1f} {row.unit}".rstrip()
        most = "" if row.most is None else f"{row.most:g}"
        remarks = [row.of, "MISSED" if row.is_missed else ""]
        lines.append("  ".join([f"{row.what:<62}{value:>12}{most:>9}", *filter(None, remarks)]))
    return "\n".join(lines)


def joined(folder: Path) -> tuple[float, float]:
    """Kill a driver while trials run and start it again.

    Return the seconds until it shows all as started, and until what each prints has come: that only a joined one does.
    """
    place = Gated(folder)
    line = place.gated(n_trials=JOINED, cores=JOINED)
    with place.platform():
        first = place.start(*line, **LONG)
        until(lambda: len(place.seen()) == JOINED, "what the trials print")
        kill(first)
        for path in place.seen():
            path.unlink()
        begun = time.monotonic()
        second = place.start(*line, **LONG)
        until(lambda: len(place.events("tiny", "start")) == 2 * JOINED, "the trials to be started")
        started = time.monotonic() - begun
        until(lambda: len(place.seen()) == JOINED, "the trials to be joined")
        heard = time.monotonic() - begun
        place.go.touch()
        assert second.end() == 0, second.said
    assert set(place.counts.values()) == {1}
    return started, heard


def watched(folder: Path, trials: int, *more: str, **environment: str) -> list[dict[str, Any]]:
    """Run a study under watch; return what was seen of its trials but for the first one."""
    record = folder.with_suffix(".jsonl")
    _run(folder, trials, [sys.executable, "-m", "tests.benchmarks.watched", str(record)], environment, *more)
    seen = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    seen.sort(key=lambda line: line["at"])
    second = next(line["at"] for line in seen if line["what"] == "out" and line.get("attempt") == "00001.1")
    begun = max(line["at"] for line in _fsyncs(seen) if line["at"] < second)  # the attempt record of the second trial
    ended = max(line["at"] for line in seen if line.get("kind") == "drop")
    late = ("drop", "00000.1")  # of the first trial, which is not counted
    return [line for line in seen if begun <= line["at"] <= ended and (line.get("kind"), line.get("attempt")) != late]


def _run(folder: Path, trials: int, program: list[str], environment: dict[str, str], *more: str) -> None:
    place = Place(folder)
    study = place.study(n_trials=trials, cores=1)
    with place.platform():
        subprocess.run(
            [*program, str(study), "--no-pilot", "--quiet", *more],
            cwd=place.folder,
            env=place.environment | SELDOM | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )


def _stored(folder: Path, trials: int) -> int:
    """Return how often SQLite has waited for the disk while trials ran, by what the kernel was asked."""
    found = folder.with_suffix(".strace")
    traced = [str(STRACE), "-f", "-y", "-s", "0", "-e", "trace=fsync,fdatasync", "-o", str(found)]
    _run(folder, trials, [*traced, sys.executable, "-m", "tests.benchmarks.watched", os.devnull], {})
    paths = re.findall(r"sync\(\d+<([^>]*)>", found.read_text("utf-8", "replace"))
    journal = [place for place, path in enumerate(paths) if path.endswith("journal.jsonl")]
    return sum("study.db" in path for path in paths[journal[0] : journal[-1]])


def _of(seen: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [line for line in seen if line["what"] == what]


def _fsyncs(seen: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each fsync with the kind of its file."""
    for line in _of(seen, "fsync"):
        is_output = "/trials/" in line["path"]
        yield line | {"kind": "outputs" if is_output else "journal" if "/journal." in line["path"] else "else"}


def _gaps(seen: list[dict[str, Any]]) -> Iterator[Gap]:
    exits = {line["attempt"]: line["at"] for line in _of(seen, "in") if line["kind"] == "run"}
    commands = {line["attempt"]: line["at"] for line in _of(seen, "out") if line["kind"] == "run"}
    started = {line["attempt"]: line["at"] for line in _of(seen, "start")}
    for attempt, following in itertools.pairwise(sorted(exits)):
        ended = exits[attempt]
        if following in commands:  # of the first one that was seen the command may not be
            between = [line for line in _fsyncs(seen) if ended <= line["at"] < started[following]]
            yield Gap(commands[following] - ended, tuple((line["kind"], line["seconds"]) for line in between))


def _parts(counts: Counter[str], trials: int) -> str:
    return ", ".join(f"{kind} {count / trials:g}" for kind, count in sorted(counts.items()))


def _milliseconds(seconds: Iterable[float]) -> float:
    return 1000 * statistics.median(seconds)
