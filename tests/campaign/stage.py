"""One local platform with a journal, and studies on it that are driven until they are done, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from persistent_runner.account import write_profile
from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.attach import make_key_pair
from persistent_runner.local_platform.local import FAST, LocalRescale
from tests.campaign import nodes
from tests.campaign.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.campaign.schedule import Event

TRIALS = 5
SECONDS = 0.4
STARTS = 12  # of a driver before it counts as never done
LOOK_SECONDS = 0.5  # between two looks at the command lines of a study's processes
START_SECONDS = 300.0  # for one start: what is asked again waits ever longer
WAIT_SECONDS = 60.0  # for something that must come
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
    """One study: where it is, how each start of its driver ended, and what was seen while it ran.

    A trial takes `seconds`, times one, two or three; with a `timeout`, also in seconds, every third one hangs. Its
    `outputs` are large, if any, and so many are sent `ahead`. A `shared` study has its storage outside the run folder. `disturbed` is one that more
    happened to than deaths of its driver: then attempts may be lost. One that is `abandoned` is not started again.
    """

    name: str
    folder: Path
    mark: str
    seconds: float = SECONDS
    timeout: float | None = None
    outputs: bool = True
    ahead: int | str = "auto"
    shared: bool = False
    disturbed: bool = False
    abandoned: bool = False
    codes: list[int] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # command lines of its processes
    left: list[str] = field(default_factory=list)  # those of solvers that outlived their command

    @property
    def truth(self) -> Path:
        """What its solvers wrote."""
        return self.folder / "truth.jsonl"

    @property
    def runs(self) -> list[Path]:
        """The run folders of its drivers, that of the first one first."""
        return [path / self.name for path in sorted(self.folder.glob("runs*"))]

    @property
    def database(self) -> Path:
        """Where Optuna keeps it."""
        return self.folder / "shared.db" if self.shared else self.folder / "runs" / self.name / "study.db"

    @property
    def jobs(self) -> str:
        """The pattern of its jobs' names."""
        return f"persistent_runner-{self.name}-*"

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

    def study(self, **special: Any) -> Played:
        """Return a new study; what is special about it are fields of `Played`."""
        name = f"c{secrets.token_hex(4)}"
        mark = f"mark-{secrets.token_hex(8)}"
        played = Played(name, self.folder / name, mark, **special)
        self._write(played)
        return played

    def drive(self, played: Played, crashes: Sequence[str] = (), events: Sequence[Event] = ()) -> None:
        """Start drivers until the study is done: each start dies at its crash point, the later ones have none.

        `events` happen in the first starts, each so many seconds after the first one.
        """
        played.disturbed |= bool(events)
        waiting, begun = sorted(events, key=lambda event: event.after), time.monotonic()
        for start in range(STARTS):
            driver = self.start(played, crashes[start] if start < len(crashes) else "")
            try:
                self._attend(played, driver, waiting, begun)
            finally:
                driver.kill()
            played.codes.append(driver.code)
            if driver.code == 0 and start >= len(crashes) - 1:
                break

    def start(self, played: Played, point: str = "", *, runs: str = "runs") -> Driver:
        """Start a driver that dies at a crash point; `runs` is where its run folder is."""
        line = [str(played.folder), "--profile", "bench", "--runs-dir", str(played.folder / runs), "--no-pilot"]
        environment = self._environment(played) | {"PERSISTENT_RUNNER_CRASH": point}
        return Driver(line, environment, played.folder / "said.txt")

    def fault(self, played: Played, what: str, **options: object) -> None:
        """Let something go wrong with the study's jobs; raises ConfigError where one has to execute and none does."""
        self.platform.faults.add(what, job=played.jobs, **options)

    def _attend(self, played: Played, driver: Driver, waiting: list[Event], begun: float) -> None:
        """Wait until a driver ends, or for the longest that it may take; let happen what is due meanwhile."""
        deadline = time.monotonic() + START_SECONDS
        look = 0.0
        while not driver.ended(0) and (now := time.monotonic()) < deadline:
            if waiting and now - begun >= waiting[0].after:
                self._let_happen(waiting, played, driver)
                continue
            if now >= look:
                played.seen += [line for line in nodes.command_lines(played.mark) if line not in played.seen]
                look = now + LOOK_SECONDS
            driver.ended(max(0.0, min([look, deadline] + [begun + event.after for event in waiting[:1]]) - now))

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
                if event.what == "agent":
                    nodes.kill_one(nodes.agents(played.mark), **event.options)
                elif event.what == "supervisor":
                    nodes.kill_one(nodes.supervisors(played.mark), **event.options)
                else:
                    self.fault(played, event.what, **event.options)
            except (ConfigError, LookupError):  # there is none of the study now: it happens once there is
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

    def _write(self, played: Played) -> None:
        played.folder.mkdir(parents=True)
        write_profile("bench", self.platform.base_url, self.platform.api_key, home=played.folder / "home")
        shutil.copy(Path(__file__).with_name("solver.py"), played.folder / "solver.py")
        storage = f'storage = "sqlite:///{played.database}"' if played.shared else ""
        timeout = f'timeout = "{played.timeout}s"' if played.timeout else ""
        hangs = 3600 if played.timeout else 0
        outputs = '"field.bin"' if played.outputs else ""
        (played.folder / "study.toml").write_text(
            f"""
[study]
name = "{played.name}"
n_trials = {TRIALS}
sampler = "random"
seed = 1
{storage}
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
env = {{ TRUTH = "{played.truth}", CAMPAIGN_MARK = "{played.mark}" }}
[setup]
command = "echo done > tool"
[space]
x = {{ type = "float", low = 0, high = 1 }}
[trial]
inputs = ["solver.py"]
command = "cat $SETUP_DIR/tool && python3 solver.py {played.seconds} {hangs} && echo solved"
cores = 1
outputs = [{outputs}]
stage_ahead = {json.dumps(played.ahead)}
{timeout}
[metrics.y]
file = "out.json"
json = "y"
[objectives]
y = "minimize"
""",
            encoding="utf-8",
        )


def until(reached: Callable[[], object], what: str) -> None:
    """Wait for something for which there is no event; TimeoutError where it does not come."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        with contextlib.suppress(InterruptedError):
            time.sleep(0.02)
