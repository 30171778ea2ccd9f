"""When a cluster ends by itself whose driver was killed, at any moment of its life.

The truth is the local platform's own journal, on the monotonic clock of this machine; the driver is a real `run-study`
in a process of its own, and is never asked.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from persistent_runner.account import write_profile
from persistent_runner.local_platform.attach import make_key_pair
from persistent_runner.local_platform.local import FAST, LocalRescale

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK = 0.5
IDLE = 8.0
BUSY = 14.0
LATE = 3 * TICK
DURATIONS = replace(FAST, queued=1.0)  # so that a driver looks at a queued job more than twice
DEADLINE = 180.0  # for a driver to die, and for a cluster to end
AT_A_TIME = 6
ENVIRONMENT = {
    "PERSISTENT_RUNNER_KEEPER_TICK": f"{TICK}s",
    "PERSISTENT_RUNNER_BEAT": f"{TICK}s",
    "PERSISTENT_RUNNER_ORPHAN_IDLE": f"{IDLE}s",
    "PERSISTENT_RUNNER_ORPHAN_BUSY": f"{BUSY}s",
    "PERSISTENT_RUNNER_POLL": "0.1s",
}
QUICK, LONG = "true", "sleep 60"


@dataclass(frozen=True)
class Story:
    """One way to die: the crash point of each start, one after the other, and what a trial runs.

    An empty point is no crash point: the driver is killed from outside while a trial runs. With `preempted` the
    platform takes the first cluster away while a trial runs, and what counts is what comes after it.
    """

    name: str
    points: tuple[str, ...]
    command: str = QUICK
    preempted: bool = False

    @property
    def limit(self) -> float:
        """How long the cluster may live after the last driver's death, in seconds."""
        return BUSY if self.command == LONG and not self.preempted else IDLE


def _once(*points: str) -> list[Story]:
    return [Story(point, (point,)) for point in points]


STORIES = [
    *_once("recorded", "created", "saved", "submitting", "submitted", "submit-recorded"),
    *_once("queued", "queued:3", "executing", "nodes", "connected", "beating"),
    *_once("releasing", "stop-asked", "stopped", "closed"),
    Story("a trial runs", ("",), LONG),
    Story("a trial runs, then attaching", ("", "attaching"), LONG),
    Story("a trial runs, then beating", ("", "beating"), LONG),
    Story("a trial runs, twice", ("", ""), LONG),
    Story("saved, then settling", ("saved", "settling")),
    Story("saved, then settle-deleted", ("saved", "settle-deleted")),
    Story("submitting, then settling", ("submitting", "settling")),
    Story("submitted, then attaching", ("submitted", "attaching")),
    Story("beating, then settling", ("beating", "settling")),
    Story("beating, then attaching", ("beating", "attaching")),
    Story("beating, then connected", ("beating", "connected")),
    Story("releasing, then settling", ("releasing", "settling")),
    Story("releasing, then stop-asked", ("releasing", "stop-asked")),
    Story("preempted, then renewing", ("renewing",), LONG, preempted=True),
    Story("preempted, then submitted", ("submitted:2",), LONG, preempted=True),
    Story("preempted, then connected", ("connected:2",), LONG, preempted=True),
]


@dataclass
class Run:
    """What came of one story: when the cluster ended after the last death, in seconds; None where it never ran."""

    story: Story
    ended_after: float | None
    submitted: dict[str, int] = field(default_factory=dict)
    trouble: str = ""

    @property
    def is_late(self) -> bool:
        """Whether the cluster outlived its limit."""
        return self.ended_after is not None and self.ended_after > self.story.limit + LATE


class Scene:
    """A local platform with a journal, and drivers that die on it."""

    def __init__(self, folder: Path, *, lost: float = 0.2, seed: int = 1) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self._random = random.Random(seed)
        self._platform = LocalRescale(folder / "platform", durations=DURATIONS, journal=self.journal)
        self._lost = lost
        make_key_pair(folder / "id", folder / "keys")

    def __enter__(self) -> Self:
        self._platform.start()
        if self._lost:
            self._platform.faults.add("lost", endpoints=["create_job", "submit_job"], probability=self._lost)
        return self

    def __exit__(self, *_: object) -> None:
        self._platform.stop()

    def play(self, story: Story) -> Run:
        """Let a study's drivers die as the story says, then wait for what becomes of its cluster."""
        name = f"s{secrets.token_hex(4)}"
        place = self.folder / name
        self._write_study(place, story.command)
        environment = self._environment(place)
        died = 0.0
        for point in story.points:
            line = [
                Path(sys.executable).with_name("run-study"),
                place,
                "--profile",
                "bench",
                "--runs-dir",
                place / "runs",
            ]
            with (place / "said.txt").open("ab") as said:
                process = subprocess.Popen(
                    line,
                    env={**environment, "PERSISTENT_RUNNER_CRASH": point},
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,
                )
            try:
                if not point or story.preempted:
                    self._wait_for_a_trial(place / "runs" / name, process)
                if not point:
                    process.kill()
                elif story.preempted:
                    self._platform.faults.add("preempt", job=f"persistent_runner-{name}-*")
                code = process.wait(DEADLINE)
                died = time.monotonic()
            finally:
                process.kill()
            if code != -signal.SIGKILL:
                last = (place / "said.txt").read_text(errors="replace")[-600:]
                return Run(story, None, trouble=f"{story.name}: the driver ended with {code}: {last}")
        return self._outcome(story, name, died)

    def _write_study(self, place: Path, command: str) -> None:
        place.mkdir(parents=True)
        write_profile("bench", self._platform.base_url, self._platform.api_key, home=place / "home")
        (place / "study.toml").write_text(
            f"""
[study]
n_trials = 2
seed = 1
[cluster]
core_type = "emerald"
cores = 1
walltime = "1h"
[space]
x = {{ type = "float", low = 0, high = 1 }}
[trial]
command = "{command}; (echo y; echo 1) > y.csv"
[metrics.y]
file = "y.csv"
column = "y"
[objectives]
y = "minimize"
"""
        )

    def _environment(self, place: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERSISTENT_", "RESCALE_"))}
        return {
            **kept,
            **ENVIRONMENT,
            "HOME": str(place / "home"),
            "XDG_STATE_HOME": str(place / "state"),
            "PERSISTENT_RUNNER_SSH_KEY": str(self.folder / "id"),
        }

    def _wait_for_a_trial(self, run: Path, process: subprocess.Popen[Any]) -> None:
        """Wait until a trial is under way, and then for a random moment."""
        deadline = time.monotonic() + DEADLINE
        known = self._starts(run)
        while self._starts(run) == known and process.poll() is None and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        threading.Event().wait(self._random.uniform(0.5, 2.0))

    @staticmethod
    def _starts(run: Path) -> int:
        events = run / "events.jsonl"
        return events.read_text().count('"start"') if events.exists() else 0

    def _outcome(self, story: Story, name: str, died: float) -> Run:
        """Wait until every cluster of a study is gone, by the journal."""
        deadline = time.monotonic() + DEADLINE
        while True:
            events = [
                event for event in self._events() if event.get("name", "").startswith(f"persistent_runner-{name}-")
            ]
            running = self._unfinished(events)
            if not running or time.monotonic() > deadline:
                break
            threading.Event().wait(0.1)
        submitted: dict[str, int] = {}
        for event in events:
            if event["event"] == "submitted":
                submitted[event["name"]] = submitted.get(event["name"], 0) + 1
        begun = max([died, *(e["monotonic"] for e in events if e["event"] == "command_started")])
        ends = [e["monotonic"] for e in events if e["event"] == "command_ended"]
        if running:
            return Run(story, float("inf"), submitted)
        return Run(story, max(0.0, max(ends) - begun) if ends else None, submitted)

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self.journal.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)

    @staticmethod
    def _unfinished(events: list[dict[str, Any]]) -> set[str]:
        alive: set[str] = set()
        for event in events:
            if event["event"] == "submitted":
                alive.add(event["job"])
            elif event["event"] == "cluster_status" and event["status"] == "Stopped":
                alive.discard(event["job"])
        return alive


def measure(folder: Path, repeats: int) -> list[Run]:
    """Play every story `repeats` times, some at a time."""
    stories = [story for _ in range(repeats) for story in STORIES]
    with Scene(folder) as scene, ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(scene.play, stories))


def table(runs: list[Run]) -> str:
    """Return a row for each story, and the sum."""
    played = [run for run in runs if not run.trouble]
    head = (
        f"{'driver killed at':<30}{'runs':>5}{'clusters':>10}{'limit':>8}{'median':>8}{'longest':>9}{'late':>6}"
        f"{'two submits':>13}"
    )
    lines = [head]
    for story in STORIES:
        mine = [run for run in played if run.story == story]
        if not mine:
            continue
        ends = [run.ended_after for run in mine if run.ended_after is not None]
        median, longest = (f"{statistics.median(ends):.1f} s", f"{max(ends):.1f} s") if ends else ("-", "-")
        doubled = sum(count > 1 for run in mine for count in run.submitted.values())
        late = sum(run.is_late for run in mine)
        limit = f"{story.limit + LATE:.1f} s"
        lines.append(
            f"{story.name:<30}{len(mine):>5}{len(ends):>10}{limit:>8}{median:>8}{longest:>9}{late:>6}{doubled:>13}"
        )
    late = sum(run.is_late for run in played)
    doubled = sum(count > 1 for run in played for count in run.submitted.values())
    clusters = sum(run.ended_after is not None for run in played)
    lines.append(f"{'all':<30}{len(played):>5}{clusters:>10}{late:>31}{doubled:>13}")
    return "\n".join([*lines, *(f"not played out: {run.trouble}" for run in runs if run.trouble)])
