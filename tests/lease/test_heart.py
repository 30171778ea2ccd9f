"""`lease/heart.py`: the beat of a lease, over real SSH, with a real switch at the other end."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import paramiko
import pytest

from persistent_runner.errors import ConnectionLost, LeaseLost, PlatformRefused, PlatformUnavailable
from persistent_runner.lease.heart import Heart
from persistent_runner.lease.keeper import Switch, job_command
from persistent_runner.recovery import Backoff
from persistent_runner.remote.patience import Patience
from persistent_runner.rescale.client import RescalePlatform
from tests.remote.conftest import DEADLINE, QUICK, Server, Site, processes, until
from tests.remote.proxy import Proxy

from .conftest import TICKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.openssh import OpenSsh

    from .conftest import Leases

BEAT = timedelta(seconds=0.05)
TICK = timedelta(seconds=0.1)
LONG = timedelta(hours=1)
IDLE = 40
SWITCH = Switch.of(tick=TICK, idle=IDLE * TICK, busy=LONG, budget=LONG)


class Bench:
    """A lease's head node: its folder, what can be done to it, and hearts that beat for it."""

    def __init__(self, site: Site, sshd: OpenSsh) -> None:
        self.site = site
        self.home = sshd.home
        self.folder = sshd.home / ".persistent-runner" / site.lease
        self.hearts: list[Heart] = []
        self.jobs: list[subprocess.Popen[bytes]] = []

    def heart(self, **options: Any) -> Heart:
        """Start a heart."""
        options = {"switch": SWITCH, "beat": BEAT, "hang": LONG, "patience": QUICK, **options}
        connect = options.pop("connect", self.site.connect)
        heart = Heart(connect, lease=self.site.lease, node="node0", **options)
        self.hearts.append(heart)
        heart.start()
        return heart

    def switch(self, numbers: Switch = SWITCH) -> subprocess.Popen[bytes]:
        """Run the job's command."""
        job = subprocess.Popen(
            ["sh", "-c", job_command(self.site.lease, numbers)],
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.jobs.append(job)
        return job

    def read(self, name: str) -> str:
        """Return a file of the lease's folder without its line end; "" where there is none."""
        path: Path = self.folder / name
        return path.read_text().strip() if path.exists() else ""

    def beats(self) -> Callable[[], bool]:
        """Return what says whether the beat has changed since now."""
        before = self.read("beat")
        return lambda: self.read("beat") != before

    def close(self) -> None:
        """End what a test has left."""
        for heart in self.hearts:
            heart.close()
        for job in self.jobs:
            if job.poll() is None:
                job.terminate()
            job.wait(DEADLINE)


@pytest.fixture
def bench(sshd: OpenSsh, tmp_path: Path) -> Iterator[Bench]:
    """Give a head node behind a network that can be cut."""
    server = Server(sshd.node(), paramiko.PKey.from_path(sshd.key), sshd.proof())
    with Proxy(server.node.port) as proxy:
        site = Site(server, proxy, tmp_path)
        found = Bench(site, sshd)
        yield found
        found.close()
        site.close()


def answered(heart: Heart, times: int = 3) -> None:
    """Wait until the heart has heard the node some times."""
    link = heart._link
    before = link.frames_in
    until(lambda: link.frames_in >= before + times or heart.lost, "answers")
    assert heart.lost is None


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the heart has said."""
    return [record.message for record in caplog.records if record.name == "persistent_runner.lease.heart"]


def test_it_beats(bench: Bench) -> None:
    """Beats arrive, each another word with the number behind the driver's own mark; nothing else is touched."""
    heart = bench.heart()
    until(bench.beats(), "a first beat")
    first = bench.read("beat")
    until(bench.beats(), "another beat")
    token, _, number = bench.read("beat").rpartition(".")
    assert token == first.rpartition(".")[0]
    assert int(number) > int(first.rpartition(".")[2])
    assert (heart.tick, heart.ended, heart.lost, heart.is_switch_dead) == (None, "", None, False)
    assert [path.name for path in bench.folder.iterdir() if ".new" not in path.name] == ["beat"]
    other = bench.heart()
    answered(other)
    assert other._token != token


def test_no_beat_while_the_main_loop_hangs(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that is alive and does nothing lets the cluster end, says so once, and goes on when it goes on (row D13)."""
    heart = bench.heart(hang=timedelta(seconds=0.3))
    until(lambda: messages(caplog), "a word of it")
    answered(heart, 1)
    last = bench.read("beat")
    answered(heart, 10)
    assert bench.read("beat") == last != ""
    heart.turned()
    until(bench.beats(), "beats again")
    until(lambda: len(messages(caplog)) >= 3, "it hangs again")
    assert messages(caplog) == [
        "Nothing has moved here for 0.3s: the cluster gets no sign of life any more and will end by itself.",
        "It goes on here: the cluster gets signs of life again.",
        "Nothing has moved here for 0.3s: the cluster gets no sign of life any more and will end by itself.",
    ]


def test_a_command_outside_of_a_study_counts(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """With no main loop at all a command in flight, and a while after it, keeps the cluster."""
    idle = [0.0]
    heart = bench.heart(hang=timedelta(seconds=0.2), idle_seconds=lambda: idle[0])
    answered(heart, 12)
    until(bench.beats(), "a beat with no turn of a loop")
    assert messages(caplog) == []
    idle[0] = 0.3
    until(lambda: messages(caplog), "it is over")


def test_a_cut_connection(bench: Bench) -> None:
    """Beats go on over a new connection; those of the time between are not sent afterwards (row S12)."""
    heart = bench.heart()
    until(bench.beats(), "a beat")
    before = bench.site.proxy.connections
    bench.site.proxy.drop()
    until(lambda: bench.site.proxy.connections > before, "another connection")
    until(bench.beats(), "a beat over it")
    assert heart.lost is None


def test_silence_is_no_flood(bench: Bench) -> None:
    """While nothing is answered one ping waits, not one for each beat."""
    sent: list[int] = []

    def connect() -> Any:
        sent.extend([heart._link.frames_out] if bench.site.proxy.connections else [])
        return bench.site.connect()

    heart = bench.heart(connect=connect, patience=Patience(ping=60, dead=3, reconnect=QUICK.reconnect))
    answered(heart)
    bench.site.proxy.freeze()
    before = heart._link.frames_out
    until(lambda: sent, "another connection")
    assert sent[0] <= before + 2
    until(bench.beats(), "beats over it")


@pytest.mark.parametrize("error", [PlatformUnavailable("503"), PlatformRefused("401", status=401)])
def test_beats_go_on_without_the_api(bench: Bench, error: Exception) -> None:
    """A platform that is away, or a key that was taken back, says nothing of the cluster (row A2)."""

    def check() -> None:
        raise error

    heart = bench.heart(check=check)
    until(bench.beats(), "a beat")
    bench.site.proxy.drop()
    until(bench.beats(), "a beat after it")
    answered(heart)


def test_the_lease_is_gone(bench: Bench) -> None:
    """When the platform says that the cluster is gone, the heart stops and says why."""

    def check() -> None:
        raise LeaseLost("job J ended: preempted")

    heart = bench.heart(check=check)
    until(bench.beats(), "a beat")
    bench.site.proxy.drop()
    assert isinstance(until(lambda: heart.lost, "the loss"), LeaseLost)
    assert not heart.ask_end()
    with pytest.raises(ConnectionLost, match="was not told to wait for the next study: job J ended: preempted"):
        heart.keep(5)


def test_a_node_that_never_answers(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A way that cannot be found ends the heart; the start itself waits for nothing."""

    def connect() -> Any:
        raise ConnectionLost("refused")

    heart = bench.heart(connect=connect, patience=Patience(reconnect=Backoff(first=0.01, most=0.02, total=0.2)))
    assert isinstance(until(lambda: heart.lost, "the loss"), ConnectionLost)
    until(lambda: "Nothing beats for the cluster any more: refused" in messages(caplog), "a word of it")
    heart.close()


def test_no_room_for_a_beat(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A node that cannot write a beat is no reason to stop; it is said once."""
    (bench.folder / "beat").mkdir(parents=True)
    heart = bench.heart()
    until(lambda: messages(caplog), "a word of it")
    answered(heart, 5)
    assert len(messages(caplog)) == 1
    assert "cannot take a sign of life" in messages(caplog)[0]
    (bench.folder / "beat").rmdir()
    until(bench.beats(), "a beat")


def test_without_a_switch(bench: Bench) -> None:
    """With `keeper = false` the connection is kept open and nothing is written."""
    heart = bench.heart(switch=None)
    answered(heart, 5)
    assert list(bench.folder.iterdir()) == []
    assert (heart.tick, heart.is_switch_dead, heart.ask_end()) == (None, False, False)


def test_close(bench: Bench) -> None:
    """After the end no beat comes, the agent is gone, and that is no loss; whether or not it ever came through."""
    heart = bench.heart()
    until(bench.beats(), "a beat")
    heart.close()
    assert heart.lost is None
    assert not heart.ask_end()
    never = Heart(bench.site.connect, lease=bench.site.lease, node="node0", switch=SWITCH, beat=BEAT, hang=LONG)
    never.close()
    early = bench.heart()
    early.close()
    assert early.lost is None


# -- with a switch


def beating(bench: Bench) -> Heart:
    """Return a heart whose first beat is there: a switch that starts before it may not wait for long enough."""
    heart = bench.heart()
    until(bench.beats(), "a beat")
    return heart


def test_it_keeps_a_cluster_and_its_end_ends_it(bench: Bench) -> None:
    """As long as it beats the switch lives, far past the limit; when it ends so does the cluster (row L14)."""
    heart = beating(bench)
    job = bench.switch()
    until(lambda: (heart.tick or 0) > 2 * IDLE, "ticks")
    assert (job.poll(), heart.ended, heart.is_switch_dead) == (None, "", False)
    heart.close()
    assert job.wait(DEADLINE) == 0
    assert bench.read("ended") == "no-heartbeat"


def test_a_hung_driver_learns_of_the_end(bench: Bench) -> None:
    """A driver whose loop hangs loses its cluster, and finds out why when it looks (row D13)."""
    job = bench.switch()
    heart = bench.heart(hang=timedelta(seconds=0.2))
    assert job.wait(DEADLINE) == 0
    assert until(lambda: heart.ended, "the reason") == "no-heartbeat"
    heart.turned()
    answered(heart)
    assert not heart.is_switch_dead


def test_the_end_without_the_api(bench: Bench) -> None:
    """The cluster can be ended over SSH alone, while the heart beats (row A2)."""
    heart = beating(bench)
    job = bench.switch()
    until(lambda: heart.tick, "the switch counts")
    assert heart.ask_end()
    assert job.wait(DEADLINE) == 0
    assert until(lambda: heart.ended, "the reason") == "stop-asked"


def test_keep(bench: Bench) -> None:
    """The last beat carries how long the cluster waits; the heart sends none after it, and the next one takes over."""
    heart = beating(bench)
    job = bench.switch()
    until(lambda: heart.tick, "the switch counts")
    heart.keep(600)
    ticks, beat = bench.read("keep").split()
    assert (ticks, beat) == ("600", bench.read("beat"))
    before = heart.tick or 0
    until(lambda: (heart.tick or 0) > before + IDLE + 5, "it is kept")
    assert bench.read("beat") == beat
    heart.close()
    following = bench.heart()
    until(bench.beats(), "a beat of the next")
    following.close()
    assert job.wait(DEADLINE) == 0
    assert bench.read("ended") == "no-heartbeat"


def test_a_tick_that_is_just_being_written(bench: Bench) -> None:
    """A look between the emptying and the writing of the file finds nothing: that is no tick, and none is forgotten."""
    bench.folder.mkdir(parents=True)
    (bench.folder / "tick").write_text("7\n")
    heart = bench.heart()
    until(lambda: heart.tick == 7, "the tick")
    (bench.folder / "tick").write_text("")
    answered(heart, 5)
    assert heart.tick == 7
    (bench.folder / "tick").write_text("8\n")
    until(lambda: heart.tick == 8, "the next tick")


def test_a_dead_switch(bench: Bench) -> None:
    """A shell that was killed leaves a node that answers and a tick that stands: the heart says so (row R11)."""
    heart = beating(bench)
    job = bench.switch()
    until(lambda: (heart.tick or 0) > 3, "the switch counts")
    assert not heart.is_switch_dead
    left = processes(f"HOME={bench.home}\0") & processes("sleep\0inf")
    job.kill()
    job.wait(DEADLINE)
    try:
        until(lambda: heart.is_switch_dead, "the verdict")
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


DRIVER = """
import logging, sys
from datetime import timedelta
from pathlib import Path
import paramiko
from persistent_runner.lease.heart import Heart
from persistent_runner.lease.keeper import Switch
from persistent_runner.remote.node import Node
from persistent_runner.remote.proof import Proof
from persistent_runner.remote.ssh import Login

port, user, key, public, lease = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, format="%(message)s")
login = Login(paramiko.PKey.from_path(key), key_name="the key", proof=Proof("known", log_keys=lambda: [Path(public).read_text()]))
node = Node("sshd0", "127.0.0.1", int(port), user, "CUSTOM")
s = lambda seconds: timedelta(seconds=seconds)
switch = Switch.of(tick=s(0.1), idle=s(3600), busy=s(3600), budget=s(3600))
heart = Heart(lambda: login.connect(node), lease=lease, node="n", switch=switch, beat=s(0.05), hang=s(5))
heart.start()
for line in sys.stdin:
    heart.turned()
    print(heart.tick, heart.is_switch_dead, heart.lost, flush=True)
"""


def test_a_driver_that_sleeps_gives_no_verdict(bench: Bench, sshd: OpenSsh) -> None:
    """Sleep of the driver's machine (SIGSTOP) is neither a hang nor a dead switch (row D5)."""
    bench.switch(Switch.of(tick=TICK, idle=LONG, busy=LONG, budget=LONG))
    node = bench.site.node
    public = sshd.host_key.with_suffix(".pub")
    arguments = [str(node.port), node.user, str(sshd.key), str(public), bench.site.lease]
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        try:
            until(bench.beats(), "a beat")
            driver.send_signal(signal.SIGSTOP)
            before = until(lambda: int(bench.read("tick") or 0), "a tick")
            until(lambda: int(bench.read("tick") or 0) > before + 80, "eight seconds, past both limits")
            driver.send_signal(signal.SIGCONT)
            for _ in range(5):
                until(bench.beats(), "a beat")
                driver.stdin.write("go on\n")
                driver.stdin.flush()
            driver.stdin.close()
            said = [line.split() for line in driver.stdout]
        finally:
            driver.kill()
    assert [line[1:] for line in said] == [["False", "None"]] * 5
    assert int(said[-1][0]) > before


def test_beats_do_not_wait_for_the_api(local: Leases) -> None:
    """The API answers 503 for as long as it likes, SSH drops once: the beats go on over the next connection (A7)."""
    guard = dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=10))
    patient = RescalePlatform(local.rescale.base_url, local.rescale.api_key, backoff=Backoff(total=600))
    with local.make(guard=guard, platform=patient) as lease:
        order = local.rescale.faults.add("status", endpoints=["statuses"], status=503)
        local.fault("ssh", do="drop")
        heart = lease.hold.heart
        assert heart is not None
        before = heart.tick or 0
        until(lambda: (heart.tick or 0) > before + 120, "twelve seconds of beats")
        local.rescale.faults.remove(order)
        assert lease.check().executing
    patient.close()


def test_a_heart_outlives_a_long_way_without_a_network(bench: Bench) -> None:
    """However long nobody could get through, the beats go on when somebody can: the lease is still held."""
    heart = bench.heart(patience=None)
    until(bench.beats(), "a beat")
    assert heart._link._patience.reconnect.total == math.inf
    bench.site.proxy.drop()
    until(bench.beats(), "a beat")
    assert heart.lost is None
