"""`lease/keeper.py`: the command that holds a cluster, under each shell that may run it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from persistent_runner.lease.keeper import Switch, host_keys, job_command
from tests.openssh import make_key
from tests.remote.conftest import DEADLINE, HOSTILE, processes, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "persistent_runner-wing-1a2b"
TICK = 0.1
IDLE, BUSY, BUDGET = 6, 12, 600
SHELLS = ["dash", "bash", "bash --posix", "busybox sh", "dash -eu", "ksh", "zsh --emulate sh", "zsh"]
ED25519 = "AAAAC3NzaC1lZDI1NTE5AAAAIFvE5i0NaWOeDufTMO8TSvRacO3EavvBsLgOfMMmMiGt"


def switch(*, idle: int = IDLE, busy: int = BUSY, budget: int = BUDGET) -> Switch:
    """Return a switch with short ticks."""
    tick = timedelta(seconds=TICK)
    return Switch.of(tick=tick, idle=idle * tick, busy=busy * tick, budget=budget * tick)


class Job:
    """A job's command in a home of its own, and what it has left there."""

    def __init__(self, shell: str, home: Path, numbers: Switch, **env: str) -> None:
        self.mark = secrets.token_hex(8)
        self._codes = {0, 128} if shell == "ksh" else {0}  # ksh 93 sometimes gives 128 when its children got the signal
        self.folder = home / ".persistent-runner" / NAME
        self._log = home / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*shell.split(), "-c", job_command(NAME, numbers)],
                cwd=home,
                env={"PATH": os.environ["PATH"], "HOME": str(home), "MARK": self.mark, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    @property
    def tick(self) -> int:
        """The last tick that it has written; 0 before the first."""
        return int(until(self._tick, "a whole tick"))

    def _tick(self) -> str:
        """Return what the file of ticks holds; nothing in the moment in which it is written anew."""
        try:
            return (self.folder / "tick").read_text().removesuffix("\n")
        except FileNotFoundError:
            return "0"

    def started(self) -> Job:
        """Wait until it counts."""
        until(lambda: self.tick, f"a tick: {self.log}")
        return self

    def write(self, name: str, text: str) -> int:
        """Write a file as the agent does; return the tick before: it is seen in that one or in the two after."""
        (self.folder / "new").write_text(text)
        while True:  # held meanwhile, or on a busy machine any number of ticks might pass
            os.kill(self.process.pid, signal.SIGSTOP)
            try:
                if before := self._tick():
                    (self.folder / "new").rename(self.folder / name)
                    return int(before)
            finally:
                os.kill(self.process.pid, signal.SIGCONT)

    def ended(self) -> tuple[str, int]:
        """Wait for the end; return its reason and the last tick, and see that it was a clean one."""
        code = self.process.wait(DEADLINE)
        reason = (self.folder / "ended").read_text().strip()
        assert code in self._codes
        assert self.log.splitlines()[-1] == f"KEEPER-END {reason}"
        until(lambda: not self.left(), "no process is left")
        return reason, self.tick

    def left(self) -> set[int]:
        """Return the processes of the command that live."""
        return processes(f"MARK={self.mark}")

    def child(self, *argv: str) -> int:
        """Wait for a child process with this command line, and return its id."""
        wanted = "".join(f"{word}\0" for word in argv).encode()

        def find() -> list[int]:
            found = []
            for pid in self.left():
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted:
                        found.append(pid)
            return found

        return int(until(find, f"{argv}: {self.log}")[0])

    def close(self) -> None:
        """End all of it."""
        while left := self.left():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Give each shell that may be a cluster's `sh`."""
    found: str = request.param
    if shutil.which(found.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{found} is not installed")
    return found


@pytest.fixture
def launch(shell: str, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Give what starts a job's command with a switch, each in a home of its own unless one is named."""
    jobs = []

    def start(numbers: Switch | None = None, home: str | None = None, **env: str) -> Job:
        folder = tmp_path / HOSTILE / (home or str(len(jobs)))
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append(Job(shell, folder, numbers or switch(), **env))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


# -- limits


def test_the_count_is_there_from_the_start(launch: Callable[..., Job]) -> None:
    """Whoever goes on with a young cluster learns its age at once, and not after its first tick."""
    job = launch(replace(switch(), tick_seconds=600))
    assert until(lambda: (job.folder / "tick").exists() and (job.folder / "tick").read_text(), job.log) == "0\n"


def test_no_first_beat(launch: Callable[..., Job]) -> None:
    """A driver that died in the queue leaves a cluster that ends by itself (row L2)."""
    assert launch().ended() == ("no-heartbeat", IDLE)


def test_the_last_beat(launch: Callable[..., Job]) -> None:
    """While the beat changes nothing ends, long past the limit; after the last one the idle limit holds (row L14)."""
    job = launch(switch(idle=25)).started()
    number = 0
    while job.tick < 50 and job.process.poll() is None:
        number += 1
        job.write("beat", f"a1b2.{number}\n")
        until(lambda last=job.tick: job.tick > last or job.process.poll() is not None, "another tick")
    before = job.write("beat", "a1b2.last\n")
    reason, tick = job.ended()
    assert reason == "no-heartbeat"
    assert before + 25 <= tick <= before + 2 + 25


def test_a_beat_that_goes_away(launch: Callable[..., Job]) -> None:
    """A beat that was removed, or came back the same, is no other beat."""
    job = launch().started()
    before = job.write("beat", "a1b2.1\n")
    until(lambda: job.tick > before + 1 or job.process.poll() is not None, "the beat is seen")
    (job.folder / "beat").unlink()
    gone = job.tick
    until(lambda: job.tick > gone + 1 or job.process.poll() is not None, "its absence is seen")
    job.write("beat", "a1b2.1\n")
    reason, tick = job.ended()
    assert reason == "no-heartbeat"
    assert tick <= before + 2 + IDLE


def test_garbage_for_a_beat(launch: Callable[..., Job]) -> None:
    """Whatever lies in the beat file, it is a word that differs once; nothing runs it and nothing is confused."""
    garbage = ["", "\n", "$(touch x) `touch y` ; * \\ ' \" \n", "a" * 100_000, "\x00\x01\n"]
    jobs = [launch() for _ in garbage]
    before = [job.started().write("beat", text) for job, text in zip(jobs, garbage, strict=True)]
    for job, tick in zip(jobs, before, strict=True):
        reason, last = job.ended()
        assert reason == "no-heartbeat"
        assert last <= tick + 2 + IDLE
        assert sorted(path.name for path in job.folder.iterdir()) == ["beat", "ended", "tick"]


def test_a_stop_that_is_asked_for(launch: Callable[..., Job]) -> None:
    """Who has no API key any more ends the cluster over SSH, at the next tick, whatever runs (row A2)."""
    job = launch(switch(idle=500, busy=500)).started()
    (job.folder / "node0" / "running").mkdir(parents=True)
    (job.folder / "node0" / "running" / "00001.1.0").touch()
    before = job.write("stop", "")
    reason, tick = job.ended()
    assert reason == "stop-asked"
    assert tick <= before + 2


def test_keep_holds_after_the_last_beat(launch: Callable[..., Job]) -> None:
    """A cluster that is kept for the next study waits that long and no longer."""
    job = launch(switch(idle=30)).started()
    job.write("keep", "50 a1b2.7\n")
    before = job.write("beat", "a1b2.7\n")
    reason, tick = job.ended()
    assert reason == "no-heartbeat"
    assert before + 50 <= tick <= before + 2 + 50


def test_keep_ends_with_another_beat(launch: Callable[..., Job]) -> None:
    """Whoever adopts the cluster and dies leaves it under the idle limit again."""
    job = launch(switch(idle=30)).started()
    job.write("keep", "500 a1b2.7\n")
    before = job.write("beat", "a1b2.7\n")
    until(lambda: job.tick > before + 30 + 2, "it is kept")
    before = job.write("beat", "c3d4.1\n")
    reason, tick = job.ended()
    assert reason == "no-heartbeat"
    assert tick <= before + 2 + 30


def test_what_is_no_keep(launch: Callable[..., Job]) -> None:
    """A keep for another beat, or one that cannot be read, changes nothing."""
    words = ["500 other.1\n", "x a.1\n", "500\n", "-1 a.1\n", "5 0 a.1\n", "", "500 /\n", "500 a.1 b"]
    jobs = [launch(switch(idle=50)) for _ in words]
    for job, text in zip(jobs, words, strict=True):
        job.started().write("keep", text)
    before = [job.write("beat", "a.1\n") for job in jobs]
    for job, tick in zip(jobs, before, strict=True):
        reason, last = job.ended()
        assert reason == "no-heartbeat"
        assert tick + 50 <= last <= tick + 2 + 50


def test_a_command_that_runs(launch: Callable[..., Job]) -> None:
    """An orphaned solver may go on up to the busy limit; when it ends past the idle limit, so does the cluster."""
    job = launch(switch(idle=50, busy=60)).started()
    running = job.folder / "node1" / "running"
    running.mkdir(parents=True)
    (running / "00001.1.0").touch()
    assert job.ended() == ("no-heartbeat", 60)

    job = launch(switch(idle=50, busy=500)).started()
    running = job.folder / "node1" / "running"
    running.mkdir(parents=True)
    (running / "00001.1.0").touch()
    until(lambda: job.tick > 50 + 2, "it outlives the idle limit")
    (running / "00001.1.0").unlink()
    before = job.tick
    reason, tick = job.ended()
    assert reason == "no-heartbeat"
    assert tick <= before + 2


def test_the_budget(launch: Callable[..., Job]) -> None:
    """What may be spent is spent when the ticks are over, whatever beats, runs, or is to be kept."""
    job = launch(switch(idle=500, busy=500, budget=8)).started()
    (job.folder / "node0" / "running").mkdir(parents=True)
    (job.folder / "node0" / "running" / "00001.1.0").touch()
    job.write("keep", "99999999999999999999 a.1\n")
    job.write("beat", "a.1\n")
    assert job.ended() == ("time-budget", 8)


# -- ends from outside


def test_a_signal(launch: Callable[..., Job]) -> None:
    """The platform's own stop ends all of it at once, in the middle of a tick, told to the shell or to the group."""
    tick = timedelta(minutes=10)
    numbers = Switch.of(tick=tick, idle=tick, busy=tick, budget=tick)
    ways = [
        (send, number) for send in (os.kill, os.killpg) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ]
    jobs = [launch(numbers) for _ in ways]
    for job in jobs:
        job.child("sleep", "inf")
        until(lambda job=job: len(job.left()) >= 4, "the shell, timeout, sleep inf and the tick's sleep")
    for job, (send, number) in zip(jobs, ways, strict=True):
        send(job.process.pid, number)
    assert [job.ended() for job in jobs] == [("signal", 0)] * len(ways)


def test_sleep_is_killed(launch: Callable[..., Job]) -> None:
    """Whoever ends `sleep inf` by hand ends the job."""
    job = launch(switch(idle=500)).started()
    os.kill(job.child("sleep", "inf"), signal.SIGKILL)
    assert job.ended()[0] == "sleep-gone"


def test_the_shell_is_killed(launch: Callable[..., Job]) -> None:
    """What nobody watches any more still ends, at the cap (row R11)."""
    assert switch(budget=6).cap_seconds == 1
    job = launch(replace(switch(idle=500, budget=500), cap_seconds=10))
    job.child("sleep", "inf")
    job.process.kill()
    assert job.process.wait(DEADLINE) == -signal.SIGKILL
    until(lambda: not job.left(), "nothing is left after the cap")
    assert not (job.folder / "ended").exists()


def test_a_platform_that_waits_for_the_streams(shell: str, tmp_path: Path) -> None:
    """A platform that reads the log to its end gets there although children live on."""
    with subprocess.Popen(
        [*shell.split(), "-c", job_command(NAME, switch(idle=500, budget=50))],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(b"KEEPER-START"):
            assert process.poll() is None
        until(lambda: processes("sleep\0inf") & processes(f"HOME={tmp_path}\0"), "its child")
        process.kill()
        assert process.stdout.read() == b""


def test_a_home_that_cannot_be_used(launch: Callable[..., Job], tmp_path: Path) -> None:
    """Where the switch cannot keep its folder, the job ends at once and says why: no cluster goes unwatched."""
    home = tmp_path / HOSTILE / "home"
    home.mkdir(parents=True)
    (home / ".persistent-runner").touch()
    job = launch(home="home")
    assert job.process.wait(DEADLINE) == 70
    assert "KEEPER-END cannot use" in job.log
    assert job.left() == set()


def test_without_timeout(launch: Callable[..., Job], shell: str, tmp_path: Path) -> None:
    """A machine that lacks `timeout` has a plain sleep up to the cap."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"mkdir", "rm", "mv", "sleep", shell.split(maxsplit=1)[0]}:
        (programs / name).symlink_to(str(shutil.which(name)))
    job = launch(switch(idle=50, budget=50), PATH=str(programs))
    until(lambda: len(job.left()) >= 2, "the sleep")
    assert job.ended() == ("no-heartbeat", 50)
    assert "not found" not in job.log


# -- start


def test_leftovers_of_a_former_launch(launch: Callable[..., Job]) -> None:
    """A job that the platform launches again begins anew: no stop, keep, beat or running command of the past counts."""
    job = launch(home="home")
    job.ended()
    running = job.folder / "node0" / "running"
    running.mkdir(parents=True)
    for path in (job.folder / "stop", job.folder / "proof", running / "00001.1.0", running / "setup-1.0"):
        path.touch()
    (job.folder / "tick").write_text("4711\n")
    (job.folder / "beat").write_text("a.1\n")
    (job.folder / "keep").write_text("500 a.1\n")
    assert launch(home="home").ended() == ("no-heartbeat", IDLE)
    assert sorted(path.name for path in job.folder.iterdir()) == ["ended", "node0", "tick"]
    assert list(running.iterdir()) == []


def test_the_secret(launch: Callable[..., Job]) -> None:
    """The secret goes from the environment to a file for the user alone, and to no process, argument or log (row I8)."""
    secret = secrets.token_hex(32)
    job = launch(switch(idle=BUDGET), PERSISTENT_RUNNER_PROOF=secret).started()
    # Of the shell itself Linux shows the environment as it was at the start, and so of a child that has just forked.
    until(lambda: len(job.left()) >= 4 and processes(secret) == {job.process.pid}, "children without it")
    assert secret not in Path(f"/proc/{job.process.pid}/cmdline").read_text()
    assert (job.folder / "proof").read_text() == secret + "\n"
    assert (job.folder / "proof").stat().st_mode & 0o777 == 0o600
    assert job.folder.stat().st_mode & 0o777 == 0o700
    job.write("stop", "")
    assert job.ended()[0] == "stop-asked"
    assert secret not in job.log


def test_it_prints_the_host_keys(launch: Callable[..., Job], tmp_path: Path) -> None:
    """The machine's public keys are in the log, which is read over HTTPS; what is no key there does no harm."""
    folder = tmp_path / "keys a {b}"
    folder.mkdir()
    keys = []
    for kind in ("ecdsa", "ed25519"):
        public = make_key(folder / f"ssh_host_{kind}_key", "-t", kind).with_name(f"ssh_host_{kind}_key.pub")
        keys.append(" ".join(public.read_text().split()[:2]))
    last = folder / "ssh_host_ed25519_key.pub"
    last.write_text(last.read_text().rstrip("\n"))
    (folder / "ssh_host_empty_key.pub").touch()
    (folder / "ssh_host_odd_key.pub").write_text("`id` $(id)\n")
    job = launch(PERSISTENT_RUNNER_HOST_KEYS=str(folder))
    job.ended()
    assert host_keys(job.log, NAME) == keys
    none = launch(PERSISTENT_RUNNER_HOST_KEYS="/nowhere")
    none.ended()
    assert host_keys(none.log, NAME) == []


# -- text


def test_the_text_says_whose_it_is() -> None:
    """Whoever sees the job in the portal learns whose it is and what it does."""
    first, *rest = job_command(NAME, switch()).split("\n")
    assert first == f"# persistent_runner lease {NAME}: sleep inf under a dead-man's switch"
    assert len("\n".join(rest)) < 2000
    assert job_command(NAME, None) == f"# persistent_runner lease {NAME}: sleep inf\nexec sleep inf"


def test_the_text_reads_no_clock() -> None:
    """No jump of any clock ends a cluster or keeps it (rows A20, R15): the text cannot ask for the time."""
    text = job_command(NAME, switch())
    assert re.findall(r"\b(date|stat|find|test -nt|-nt|-ot|SECONDS|EPOCH\w*|printf|ps|uptime)\b", text) == []
    assert "@" not in text


def test_the_bare_command_waits() -> None:
    """Without a switch it is still there when it is told to go, and goes then, with all of it."""
    with subprocess.Popen(["sh", "-c", job_command("a", None)], start_new_session=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("name", ["", "a b", "a\nrm -rf ~", "a'b", "..", ".", "-a", "a/b", "é"])
@pytest.mark.parametrize("numbers", [None, switch()])
def test_a_name_cannot_become_a_command(name: str, numbers: Switch | None) -> None:
    """The comment ends where the name ends, and the folder is below its parent."""
    with pytest.raises(ValueError, match="cannot name"):
        job_command(name, numbers)


def test_times_become_ticks() -> None:
    """Limits are whole ticks, never below what was asked for; the cap comes four ticks after the budget."""
    found = Switch.of(
        tick=timedelta(seconds=15),
        idle=timedelta(minutes=10),
        busy=timedelta(minutes=40, seconds=1),
        budget=timedelta(hours=8),
    )
    assert found == Switch(tick_seconds=15, idle=40, busy=161, budget=1920, cap_seconds=28860)
    text = job_command(NAME, found)
    assert " T=15 IDLE=40 BUSY=161 BUDGET=1920 CAP=28860\n" in text
    day = timedelta(days=40)
    text = job_command(NAME, Switch.of(tick=timedelta(seconds=0.00025), idle=day, busy=day, budget=day))
    assert " T=0.00025 IDLE=13824000000 " in text
    with pytest.raises(ValueError, match="above zero"):
        Switch.of(tick=timedelta(), idle=day, busy=day, budget=day)


@pytest.mark.parametrize("prefix", ["", "[2024-01-02T03:04:05Z]: ", "2024-01-02 03:04:05,678 INFO  ", "\t"])
def test_keys_in_a_platforms_log(prefix: str) -> None:
    """Keys are found behind any prefix, once each, of this lease alone; the quoted command and a torn line are none."""
    lines = [
        *job_command(NAME, switch()).splitlines(),
        f"KEEPER-HOSTKEY {NAME} ssh-ed25519 {ED25519}",
        f"KEEPER-HOSTKEY {NAME} ssh-ed25519 {ED25519}",
        f"KEEPER-HOSTKEY {NAME}2 ssh-ed25519 {ED25519[:-2]}Ex",
        f"KEEPER-HOSTKEY {NAME} ssh-rsa {ED25519}",
        f"KEEPER-HOSTKEY {NAME} ssh-ed25519 {ED25519[:-4]}",
    ]
    log = "".join(f"{prefix}{line}\r\n" for line in lines)
    assert host_keys(log, NAME) == [f"ssh-ed25519 {ED25519}"]
    assert host_keys(log, NAME.upper()) == []


def test_a_key_cut_anywhere_is_none() -> None:
    """The tail of a log may end within a line: part of a key never passes for a key."""
    line = f"KEEPER-HOSTKEY {NAME} ssh-ed25519 {ED25519}"
    assert host_keys(line, NAME) == [f"ssh-ed25519 {ED25519}"]
    assert [n for n in range(len(line)) if host_keys(line[:n], NAME)] == []
