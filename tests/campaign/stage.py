"""One local platform with a journal, and studies on it that are driven until they are done, whatever happens."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from persistent_runner.account import write_profile
from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.attach import make_key_pair
from persistent_runner.local_platform.local import FAST, LocalRescale
from tests.campaign.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.campaign.schedule import Event

TRIALS = 5
SECONDS = 0.4  # of a trial, times one, two or three
STARTS = 12  # of a driver before it counts as never done
LOOK_SECONDS = 0.5  # between two looks at the command lines of a study's processes
START_SECONDS = 300.0  # for one start: what is asked again waits ever longer
TICK = 0.5
IDLE = 20.0
ENVIRONMENT = {
    "PERSISTENT_RUNNER_KEEPER_TICK": f"{TICK}s",
    "PERSISTENT_RUNNER_BEAT": f"{TICK}s",
    "PERSISTENT_RUNNER_ORPHAN_IDLE": f"{IDLE}s",
    "PERSISTENT_RUNNER_ORPHAN_BUSY": f"{IDLE + 10}s",
    "PERSISTENT_RUNNER_POLL": "0.1s",
}


@dataclass
class Played:
    """What one study left: its folder, how each start of its driver ended, and what was seen while it ran."""

    name: str
    folder: Path
    mark: str
    codes: list[int] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # command lines of its processes
    disturbed: bool = False  # by more than deaths of the driver: then attempts may be lost

    @property
    def runs(self) -> Path:
        """The study's run folder."""
        return self.folder / "runs" / self.name

    @property
    def said(self) -> str:
        """All that its drivers have printed."""
        return (self.folder / "said.txt").read_text("utf-8", "replace")


class Stage:
    """The platform, its journal, and what a study needs to run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        durations = replace(FAST, queued=0.3)
        self.platform = LocalRescale(folder / "platform", durations=durations, journal=self.journal)
        make_key_pair(folder / "id", folder / "keys")

    def __enter__(self) -> Self:
        self.platform.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.platform.stop()

    def play(self, crashes: Sequence[str] = (), events: Sequence[Event] = ()) -> Played:
        """Drive a study until it is done: each start dies at its crash point, the later ones have none.

        `events` happen in the first starts, each so many seconds after the study has begun.
        """
        name = f"c{secrets.token_hex(4)}"
        played = Played(name, self.folder / name, f"mark-{secrets.token_hex(8)}", disturbed=bool(events))
        self._write_study(played)
        waiting, begun = sorted(events, key=lambda event: event.after), time.monotonic()
        for start in range(STARTS):
            point = crashes[start] if start < len(crashes) else ""
            code = self._start(played, point, waiting, begun)
            played.codes.append(code)
            if code == 0 and start >= len(crashes) - 1:
                break
        return played

    def _start(self, played: Played, point: str, waiting: list[Event], begun: float) -> int:
        """Run a driver to its end, let happen what is due meanwhile; return its exit code."""
        line = [str(played.folder), "--profile", "bench", "--runs-dir", str(played.folder / "runs"), "--no-pilot"]
        environment = self._environment(played) | {"PERSISTENT_RUNNER_CRASH": point}
        driver = Driver(line, environment, played.folder / "said.txt")
        deadline = time.monotonic() + START_SECONDS
        look = 0.0
        try:
            while not driver.ended(0):
                now = time.monotonic()
                if now > deadline:
                    break
                if waiting and now - begun >= waiting[0].after:
                    self._let_happen(waiting, played, driver)
                    continue
                if now >= look:
                    played.seen += [line for line in command_lines(played.mark) if line not in played.seen]
                    look = now + LOOK_SECONDS
                driver.ended(max(0.0, min([look, deadline] + [begun + event.after for event in waiting[:1]]) - now))
            return driver.code
        finally:
            driver.kill()

    def _let_happen(self, waiting: list[Event], played: Played, driver: Driver) -> None:
        event = waiting.pop(0)
        if event.what == "kill":
            driver.kill()
        elif event.what == "suspend":
            driver.send(signal.SIGSTOP)
            time.sleep(event.options["seconds"])
            driver.send(signal.SIGCONT)
        else:
            try:
                self.platform.faults.add(event.what, job=f"persistent_runner-{played.name}-*", **event.options)
            except ConfigError:  # no job of the study executes now: it happens once one does
                waiting.insert(0, replace(event, after=event.after + 0.3))

    def _environment(self, played: Played) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERSISTENT_", "RESCALE_"))}
        return {
            **kept,
            **ENVIRONMENT,
            "HOME": str(played.folder / "home"),
            "XDG_STATE_HOME": str(played.folder / "state"),
            "PERSISTENT_RUNNER_SSH_KEY": str(self.folder / "id"),
            "CAMPAIGN_MARK": played.mark,
        }

    def _write_study(self, played: Played) -> None:
        played.folder.mkdir(parents=True)
        write_profile("bench", self.platform.base_url, self.platform.api_key, home=played.folder / "home")
        shutil.copy(Path(__file__).with_name("solver.py"), played.folder / "solver.py")
        (played.folder / "study.toml").write_text(
            f"""
[study]
name = "{played.name}"
n_trials = {TRIALS}
sampler = "random"
seed = 1
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
env = {{ TRUTH = "{played.folder / "truth.jsonl"}", CAMPAIGN_MARK = "{played.mark}" }}
[setup]
command = "echo done > tool"
[space]
x = {{ type = "float", low = 0, high = 1 }}
[trial]
inputs = ["solver.py"]
command = "cat $SETUP_DIR/tool && python3 solver.py {SECONDS}"
cores = 1
outputs = ["field.bin"]
[metrics.y]
file = "out.json"
json = "y"
[objectives]
y = "minimize"
""",
            encoding="utf-8",
        )


def command_lines(mark: str) -> list[str]:
    """Return the command lines of all processes that carry a mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return found
