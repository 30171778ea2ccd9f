"""Drives `run-study` as a user does: a home of one's own, a tiny study, a real process."""

from __future__ import annotations

import csv
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests

from persistent_runner.local_platform.attach import StateFiles, ensure_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistent_runner.local_platform.attach import Attachment

Found = TypeVar("Found")

DEADLINE = 60
HOSTILE = """it's a "{hostile}" $HOME földer"""
BIN = Path(sys.executable).parent
QUICK = {"PERSISTENT_RUNNER_BEAT": "0.2s", "PERSISTENT_RUNNER_KEEPER_TICK": "0.2s"}
SHORT = QUICK | {"PERSISTENT_RUNNER_ORPHAN_IDLE": "3s", "PERSISTENT_RUNNER_ORPHAN_BUSY": "3s"}
CALM = QUICK | {"PERSISTENT_RUNNER_ORPHAN_IDLE": "8s", "PERSISTENT_RUNNER_ORPHAN_BUSY": "8s"}
LONG = QUICK | {"PERSISTENT_RUNNER_ORPHAN_IDLE": "60s", "PERSISTENT_RUNNER_ORPHAN_BUSY": "60s"}
GATED = """echo "$TRIAL_NUMBER" >> "$LOG"; echo "this is trial $TRIAL_NUMBER"
while [ ! -e "$GO" ]; do sleep 0.05; done
cp parameters.json result.json"""


def until(reached: Callable[[], Found], what: str) -> Found:
    """Wait until a condition holds for which there is no event, and return what it found."""
    deadline = time.monotonic() + DEADLINE
    while not (found := reached()):
        assert time.monotonic() < deadline, f"not within {DEADLINE}s: {what}"
        threading.Event().wait(0.05)
    return found


@dataclass
class Driver:
    """A running command: what it has said so far, by line."""

    process: subprocess.Popen[str]
    err: list[str] = field(default_factory=list)
    out: str = ""

    def __post_init__(self) -> None:
        self._readers = [threading.Thread(target=self._read_err), threading.Thread(target=self._read_out)]
        for reader in self._readers:
            reader.start()

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.err.append(line)

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.out = stream.read()

    @property
    def said(self) -> str:
        """All of stderr so far."""
        return "".join(self.err)

    def wait_for(self, text: str) -> None:
        """Wait until stderr has said something."""
        until(lambda: text in self.said or self.process.poll() is not None, text)
        if self.process.poll() is not None:
            self.end()
        assert text in self.said, self.said

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code


@dataclass
class Place:
    """A user's machine: a home, a state directory, a folder to work in."""

    folder: Path
    mark: str = field(default_factory=lambda: f"pr-mark-{secrets.token_hex(8)}")

    def __post_init__(self) -> None:
        for path in (self.home, self.state_home):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def home(self) -> Path:
        """HOME."""
        return self.folder / "home"

    @property
    def state_home(self) -> Path:
        """XDG_STATE_HOME."""
        return self.folder / "state"

    @property
    def state(self) -> Path:
        """The package's own state directory."""
        return self.state_home / "persistent_runner"

    @property
    def runs(self) -> Path:
        """Where results are kept."""
        return self.folder / "runs"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the tester's own account or settings."""
        ours = ("PERSISTENT_RUNNER_", "RESCALE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return kept | {"HOME": str(self.home), "XDG_STATE_HOME": str(self.state_home), "COLUMNS": "100"}

    def study(self, command: str = "", name: str = "tiny", more: str = "", folder: str = "study", **keys: Any) -> Path:
        """Write a study of x in [0, 1] whose value is x, unless `command` does something else."""
        path = self.folder / folder
        path.mkdir(parents=True, exist_ok=True)
        command = command or "cp parameters.json result.json"
        keys = {"n_trials": 3, "cores": 2, "core_type": "emerald", "seed": 1, "trial_cores": 1} | keys
        (path / "study.toml").write_text(
            f"""
[study]
name = "{name}"
n_trials = {keys["n_trials"]}
sampler = "random"
seed = {keys["seed"]}
[cluster]
core_type = "{keys["core_type"]}"
cores = {keys["cores"]}
walltime = "1h"
env = {{ PR_TEST_MARK = "{self.mark}" }}
[space]
x = {{ type = "float", low = 0.0, high = 1.0 }}
[trial]
command = '''{command}'''
cores = {keys["trial_cores"]}
[metrics.y]
file = "result.json"
json = "x"
[objectives]
y = "minimize"
{more}
""",
            encoding="utf-8",
        )
        return path

    def start(self, *args: object, program: str = "run-study", **environment: str) -> Driver:
        """Start a command in the place's folder."""
        process = subprocess.Popen(
            [str(BIN / program), *map(str, args)],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        return Driver(process)

    def run(self, *args: object, code: int = 0, **environment: str) -> Driver:
        """Run `run-study` to its end, which must have this exit code."""
        driver = self.start(*args, **environment)
        assert driver.end() == code, driver.said + driver.out
        return driver

    def rows(self, name: str = "tiny") -> list[dict[str, str]]:
        """Return the rows of a study's trials.csv."""
        with (self.runs / name / "trials.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        """Return a study's events of one kind."""
        path = self.runs / name / "events.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @contextmanager
    def platform(self) -> Iterator[Attachment]:
        """Hold the place's local platform."""
        with ensure_process(self.state) as attachment:
            yield attachment

    @property
    def platform_address(self) -> Path:
        """The file that is there while the local platform serves."""
        return StateFiles(self.state).state

    def fault(self, what: str, **options: Any) -> None:
        """Order a fault of the place's local platform; see `persistent_runner.local_platform.fault_kinds`."""
        state = json.loads(self.platform_address.read_text("utf-8"))
        headers = {"Authorization": f"Bearer {state['control_token']}"}
        answer = requests.post(state["control_url"], json={"what": what} | options, headers=headers, timeout=30)
        assert answer.status_code == 201, answer.text

    def withdraw_faults(self) -> None:
        """Take all orders back."""
        state = json.loads(self.platform_address.read_text("utf-8"))
        headers = {"Authorization": f"Bearer {state['control_token']}"}
        requests.delete(state["control_url"], headers=headers, timeout=30).raise_for_status()

    def processes(self) -> list[int]:
        """Return the processes that run something of this place: its platform, keepers, trials."""
        found = []
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                alive = " Z " not in (path / "stat").read_text().rpartition(")")[2][:3]
            except OSError:
                continue
            if alive and any(
                mark.encode() in text for mark in (self.mark, f"XDG_STATE_HOME={self.state_home}", f"{self.state}\0")
            ):
                found.append(int(path.name))
        return found


class Gated(Place):
    """A place whose trials write their number into a log and then wait for a file."""

    def gated(self, **keys: object) -> tuple[object, ...]:
        """Return the arguments of a start."""
        variables = f'{{LOG="{self.ran}",GO="{self.go}",PR_TEST_MARK="{self.mark}"}}'
        return (self.study(GATED, **keys), "--no-pilot", "--set", f"cluster.env={variables}")

    @property
    def ran(self) -> Path:
        """Holds a line for each command that was started."""
        return self.folder.parent / "ran"

    @property
    def go(self) -> Path:
        """Lets all trials end."""
        return self.folder.parent / "go"

    @property
    def counts(self) -> Counter[str]:
        """How often the command of each trial was started."""
        return Counter(self.ran.read_text().split() if self.ran.exists() else [])

    def until_two_run(self) -> None:
        """Wait until the first two trials run."""
        self.until_run(2)

    def until_run(self, trials: int) -> None:
        """Wait until so many trials run."""
        until(lambda: sum(self.counts.values()) == trials, f"{trials} trials")

    def seen(self) -> set[Path]:
        """Return the live logs of trials whose printed line has come to the driver."""
        return {path for path in (self.runs / "tiny/trials").glob("*/command-1.live") if path.stat().st_size}

    def ledger(self) -> list[str]:
        """Return the states in the ledger."""
        return [json.loads(path.read_text())["state"] for path in (self.state / "ledger").glob("*.json")]


def kill(driver: Driver) -> None:
    """Kill a driver as a power cut does."""
    driver.process.kill()
    driver.end()


@dataclass(frozen=True)
class Job:
    """What the platform says of a job: the statuses of the job and of its cluster with their dates, the oldest first."""

    id: str
    name: str
    statuses: list[tuple[str, str]]
    cluster: list[tuple[str, str]]

    @property
    def unfinished(self) -> bool:
        """Whether it may still run or cost money."""
        return bool(self.statuses) and "Stopped" not in [status for status, _ in self.cluster]

    def when(self, status: str) -> str:
        """Return the date of a status of the job or of its cluster."""
        return dict([*self.statuses, *self.cluster])[status]


def all_jobs(platform: Attachment) -> list[Job]:
    """Return all jobs, asked from the platform's own API."""
    session = requests.Session()
    session.headers["Authorization"] = f"Token {platform.api_key}"
    with session:

        def asked(path: str) -> list[dict[str, Any]]:
            answer = session.get(f"{platform.base_url}/api/v2/{path}", timeout=30)
            if answer.status_code == 404 and path != "jobs/":  # a job that was never submitted has no cluster
                return []
            rows: list[dict[str, Any]] = answer.json()["results"]
            return rows

        def dated(path: str) -> list[tuple[str, str]]:
            return sorted(((row["status"], row["statusDate"]) for row in asked(path)), key=lambda row: row[1])

        return [
            Job(
                job["id"],
                job["name"],
                dated(f"jobs/{job['id']}/statuses/"),
                dated(f"jobs/{job['id']}/cluster_statuses/"),
            )
            for job in asked("jobs/")
        ]


def unfinished_jobs(platform: Attachment) -> list[str]:
    """Return the jobs that may still run or cost money, asked from the platform's own API."""
    return [job.id for job in all_jobs(platform) if job.unfinished]
