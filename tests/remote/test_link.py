"""Commands on a node through a link: what they get, how they end, what happens when things go away."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import pytest

from persistent_runner.errors import ConnectionLost, LeaseLost
from persistent_runner.recovery import Backoff
from persistent_runner.remote.frames import Life, RequestRefused
from persistent_runner.remote.patience import Patience
from tests.remote.conftest import QUICK, Server, Site, processes, run, start, until
from tests.remote.proxy import Proxy

if TYPE_CHECKING:
    from persistent_runner.remote.link import Link
    from tests.openssh import OpenSsh

STUBBORN = "python3 -c 'import os,signal,time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(600)' & "
TREE = f"({STUBBORN} {STUBBORN} wait) & {STUBBORN} sleep 0.2; touch ready; wait"


def supervisor_of(site: Site, attempt: str = "00000.1", seq: int = 0) -> int:
    """Return the process id of a command's supervisor, as soon as it has one."""
    record = site.root / attempt / ".attempt" / str(seq) / "pid"
    return int(json.loads(until(lambda: record.exists() and record.read_text(), "a supervisor"))["pid"])


def agents(site: Site) -> set[int]:
    """Return the processes of this run's agents: what carries its settings and is no supervisor."""
    settings = base64.b64encode(b'{"run": "' + site.run.encode()).decode()[:-4]
    supervisors = {json.loads(record.read_text())["pid"] for record in site.root.glob("*/.attempt/*/pid")}
    return processes(settings) - supervisors


def test_hello(site: Site) -> None:
    """The first thing a link knows is where this run's directory lies and how big the node is."""
    link = site.link()
    assert site.hello.root.endswith("/" + site.run)
    assert site.hello.cores >= 1
    assert site.hello.epoch == 1
    assert link.connection is not None
    assert link.connection.is_connected


def test_a_command_and_its_exit(site: Site, link: Link) -> None:
    """A command runs in its attempt's directory with both streams in one log; its exit code comes back."""
    ended = run(link, "pwd; echo to stderr >&2; exit 3")
    assert (ended.state, ended.code) == ("done", 3)
    assert ended.log_tail.decode() == f"{site.root}/00000.1\nto stderr\n"
    assert ended.log_bytes == len(ended.log_tail)
    assert ended.seconds > 0
    assert ended.peak_bytes > 100_000


def test_environment(site: Site) -> None:
    """A command has the login's environment, the study's, and the words of the spec; never the lease's secret."""
    home = site.connect().run("echo $HOME", hide=True).stdout.strip()
    profile = Path(home) / ".bash_profile"
    profile.write_text("export FROM_LOGIN=yes PERSISTENT_RUNNER_PROOF=secret\n")
    try:
        link = site.link()
    finally:
        profile.unlink()
    script = 'echo "$FROM_LOGIN $LICENCE $TRIAL_CORES ${PERSISTENT_RUNNER_PROOF-unset} $PWD"; cat "$TRIAL_HOSTS"; umask'
    ended = run(link, script, env={"LICENCE": "a b $(id)"}, cores=2)
    first, *hosts, umask = ended.log_tail.decode().splitlines()
    assert first == f"yes a b $(id) 2 unset {site.root}/00000.1"
    assert hosts == [site.hello.host] * 2
    assert umask != "0077"  # the login's own, not the agent's


@pytest.mark.parametrize(
    ("script", "code"),
    [("false; echo not reached", 1), ("false | cat", 1), ("yes | head -1 >/dev/null", 141), ("kill -9 $$", 137)],
)
def test_shell_options(sshd_site: Site, script: str, code: int) -> None:
    """A command stops at its first failure, a pipe's too, and a signal counts as 128 + n."""
    assert run(sshd_site.link(), script).code == code


def test_stdin_is_empty(sshd_site: Site) -> None:
    """A command that asks a question gets no answer instead of waiting for ever."""
    assert run(sshd_site.link(), "cat; echo end").log_tail == b"end\n"


def test_a_command_runs_once(site: Site, link: Link) -> None:
    """Asking for the same command again joins it, whether it runs or has ended, and never starts it twice."""
    script = "echo x >> counter; until [ -e go ]; do sleep 0.01; done; echo done"
    both = [start(link, script), start(link, script)]
    until((site.root / "00000.1" / "counter").exists, "the command runs")
    (site.root / "00000.1" / "go").touch()
    exits = [future.result(60) for future in both]
    exits.append(run(link, script))
    assert [(found.state, found.code, found.log_tail) for found in exits] == [("done", 0, b"done\n")] * 3
    assert (site.root / "00000.1" / "counter").read_text() == "x\n"


def test_another_command_under_the_same_id(sshd_site: Site) -> None:
    """What was claimed for another command is not mistaken for its result."""
    link = sshd_site.link()
    run(link, "echo one")
    assert run(link, "echo two").state == "mismatch"


@pytest.mark.parametrize("is_joined", [False, True])
def test_another_command_under_the_same_id_is_ended(sshd_site: Site, is_joined: bool) -> None:
    """The next attempt has its cores: it is gone before the answer, whichever agent has started it."""
    link = sshd_site.link()
    first = start(link, "touch begun; sleep 600")
    until((sshd_site.root / "00000.1" / "begun").exists, "the command runs")
    if is_joined:
        link.close()
        link = sshd_site.link()
    assert run(link, "echo two").state == "mismatch"
    assert sshd_site.commands() == set()
    assert run(link, "echo two", attempt="00000.2").state == "done"
    assert is_joined or first.result(60).state == "killed"


def test_connection_drops_while_a_command_runs(site: Site, link: Link) -> None:
    """The command goes on; the new agent joins it, and the log comes whole, each byte once."""
    got: list[bytes] = []
    half = threading.Event()

    def on_log(offset: int, data: bytes) -> None:
        assert offset == len(b"".join(got))
        got.append(data)
        if b"line 50\n" in b"".join(got):
            half.set()

    script = 'echo x >> counter; for i in $(seq 100); do echo "line $i"; [ $i != 50 ] || until [ -e go ]; do sleep 0.01; done; done'
    future = start(link, script, on_log=on_log)
    assert half.wait(30)
    site.proxy.drop()
    (site.root / "00000.1" / "go").touch()
    ended = future.result(60)
    whole = "".join(f"line {i}\n" for i in range(1, 101)).encode()
    assert b"".join(got) == whole
    assert ended.log_tail == whole
    assert (site.root / "00000.1" / "counter").read_text() == "x\n"
    assert site.proxy.connections >= 2


def test_many_drops(sshd_site: Site) -> None:
    """Commands started while the connection is cut again and again: each runs once, none is lost."""
    link = sshd_site.link()
    futures = []
    for n in range(12):
        futures.append(start(link, "echo x >> counter; sleep 0.05; cat counter", attempt=f"0000{n:02}.1"))
        if n % 3 == 0:
            sshd_site.proxy.drop()
    assert [future.result(60).log_tail for future in futures] == [b"x\n"] * 12


def test_agent_killed(site: Site, link: Link) -> None:
    """Supervisors outlive their agent: the command ends as it would have, and the next agent delivers it."""
    future = start(link, "touch started; until [ -e go ]; do sleep 0.01; done; echo fine")
    until((site.root / "00000.1" / "started").exists, "the command runs")
    for pid in until(lambda: agents(site), "an agent"):
        with contextlib.suppress(ProcessLookupError):  # the first one's end ends the others
            os.kill(pid, signal.SIGKILL)
    (site.root / "00000.1" / "go").touch()
    ended = future.result(60)
    assert (ended.state, ended.log_tail) == ("done", b"fine\n")


def test_supervisor_killed(site: Site, link: Link) -> None:
    """A command whose supervisor was killed is lost, never a result; nothing of it goes on running."""
    future = start(link, TREE)
    until((site.root / "00000.1" / "ready").exists, "the tree stands")
    os.kill(supervisor_of(site), signal.SIGKILL)
    assert future.result(60).state == "lost"
    assert site.commands() == set()
    assert run(link, TREE).state == "lost"
    assert list((site.switch() / "node0/running").iterdir()) == []


def test_supervisor_killed_while_nobody_looks(sshd_site: Site) -> None:
    """The next agent says lost, and takes away the entry that would keep an abandoned cluster alive."""
    link = sshd_site.link()
    start(link, TREE)
    until((sshd_site.root / "00000.1" / "ready").exists, "the tree stands")
    pid = supervisor_of(sshd_site)
    link.close()
    os.kill(pid, signal.SIGKILL)
    again = sshd_site.link()
    assert list((sshd_site.switch() / "node0/running").iterdir()) == []
    assert run(again, TREE).state == "lost"
    assert sshd_site.commands() == set()


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_the_whole_tree_ends(site: Site, link: Link, how: str) -> None:
    """Time-out and kill leave no process, not even those in sessions of their own that ignore TERM."""
    future = start(link, TREE, timeout=1.5 if how == "timeout" else None)
    if how == "kill":
        until((site.root / "00000.1" / "ready").exists, "the tree stands")
        until(lambda: len(site.commands()) >= 4, "the tree")
        link.kill("00000.1", 0).result(30)
    ended = future.result(60)
    assert ended.state == {"timeout": "timeout", "kill": "killed"}[how]
    assert site.commands() == set()


def test_leftovers_end_with_the_command(sshd_site: Site) -> None:
    """What a finished command leaves in the background is gone before its results are read."""
    ended = run(sshd_site.link(), f"{STUBBORN} echo done")
    assert (ended.state, ended.code, ended.log_tail) == ("done", 0, b"done\n")
    assert sshd_site.commands() == set()


ORPHAN = """import os, time
if os.fork():
    time.sleep(600)  # it never asks how its child has ended
"""


def test_zombies_hold_up_no_end(sshd_site: Site) -> None:
    """Processes that ended and that their parent does not reap are no reason to wait, nor for the next agent (R8)."""
    link = sshd_site.link()
    begins = f"python3 -c '{ORPHAN}' & echo begun > begun; "
    ended = run(link, begins + "sleep 0.2")
    assert (ended.state, ended.code) == ("done", 0)
    future = start(link, begins + "sleep 600", attempt="00001.1")
    supervisor = supervisor_of(sshd_site, "00001.1")
    until((sshd_site.root / "00001.1/begun").exists, "the command runs")
    for pid in until(lambda: agents(sshd_site), "an agent"):
        os.kill(pid, signal.SIGSTOP)  # so that nobody reaps the supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    again = sshd_site.link()
    assert run(again, begins + "sleep 600", attempt="00001.1").state == "lost"
    for pid in agents(sshd_site):
        os.kill(pid, signal.SIGCONT)
    assert future.result(60).state == "lost"


def test_what_the_background_writes_is_over_at_the_exit(sshd_site: Site) -> None:
    """What a command leaves behind, in a session of its own too, writes no more when its results are read (row R13)."""
    link = sshd_site.link()
    writer = "while :; do echo more >> out; done"
    script = f"setsid bash -c '{writer}' & ({writer}) & until [ -s out ]; do sleep 0.01; done"
    [output] = run(link, script, outputs=["out"]).manifest
    assert output.size_bytes == (sshd_site.root / "00000.1/out").stat().st_size > 0
    [later] = link.outputs("00000.1", ["out"]).result(60)
    assert (later.size_bytes, later.sha256) == (output.size_bytes, output.sha256)
    assert sshd_site.commands() == set()


def test_kill_sent_with_the_start(sshd_site: Site) -> None:
    """A kill right behind the start is not lost in the moment before the command has a process."""
    link = sshd_site.link()
    futures = []
    for n in range(8):
        futures.append(start(link, "sleep 600", attempt=f"0000{n}.1"))
        link.kill(f"0000{n}.1", 0)
    assert {future.result(60).state for future in futures} == {"killed"}


def test_two_links_to_one_node(sshd_site: Site) -> None:
    """The older agent starts nothing more and says why; what it had started goes on and is joined."""
    older = sshd_site.link()
    future = start(older, "until [ -e go ]; do sleep 0.01; done; echo once")
    until((sshd_site.root / "00000.1").exists, "the command is claimed")
    newer = sshd_site.link()
    with pytest.raises(RequestRefused, match="a newer agent has taken over"):
        run(older, "echo no", attempt="00001.1")
    joined = start(newer, "until [ -e go ]; do sleep 0.01; done; echo once")
    (sshd_site.root / "00000.1" / "go").touch()
    assert future.result(60).log_tail == joined.result(60).log_tail == b"once\n"
    assert run(newer, "echo yes", attempt="00001.1").log_tail == b"yes\n"


def test_half_open(site: Site) -> None:
    """A connection that says nothing any more is noticed by its silence; the command is joined through a new one."""
    patience = Patience(ping=0.3, dead=1.5, grace=0.3, reconnect=QUICK.reconnect)
    link = site.link(patience=patience)
    future = start(link, "echo x >> counter; until [ -e go ]; do sleep 0.01; done; cat counter")
    until((site.root / "00000.1" / "counter").exists, "the command runs")
    site.proxy.freeze()
    until(lambda: site.proxy.connections >= 2, "a new connection")
    (site.root / "00000.1" / "go").touch()
    assert future.result(60).log_tail == b"x\n"


def test_an_idle_link_stays(sshd_site: Site) -> None:
    """Silence on both ends is no fault: the link asks for a sign of life and gets it."""
    link = sshd_site.link(patience=Patience(ping=0.05, dead=20, reconnect=QUICK.reconnect))
    until(lambda: link.frames_in >= 5, "signs of life")
    assert sshd_site.proxy.connections == 1


def test_one_frame_out_and_one_back(site: Site, link: Link) -> None:
    """A command with inputs and small results costs one round trip."""
    before = (link.frames_out, link.frames_in)
    ended = run(link, "cat deck > result", files=[("deck", b"x" * 5000, 0o644)], outputs=["result"])
    assert (link.frames_out, link.frames_in) == (before[0] + 1, before[1] + 1)
    assert [(found.path, found.data) for found in ended.manifest] == [("result", b"x" * 5000)]


def test_inputs_in_the_frame(sshd_site: Site) -> None:
    """Files that travel with the command arrive byte for byte, with their mode, below new folders."""
    content = bytes(range(256)) * 3
    ended = run(
        sshd_site.link(),
        "stat -c %a deep/er/tool; cmp deep/er/tool copy; deep/er/tool 2>/dev/null || echo not a program",
        files=[("deep/er/tool", content, 0o755), ("copy", content, 0o600)],
    )
    assert ended.log_tail == b"755\nnot a program\n"


def test_many_at_once(sshd_site: Site) -> None:
    """More commands than OpenSSH allows sessions share one channel."""
    link = sshd_site.link()
    futures = [start(link, f"echo {n}", attempt=f"000{n:02}.1") for n in range(24)]
    assert [future.result(60).log_tail for future in futures] == [b"%d\n" % n for n in range(24)]


def test_a_long_log(sshd_site: Site) -> None:
    """Megabytes of output reach a follower whole; the exit carries the end alone."""
    got: list[bytes] = []
    ended = run(sshd_site.link(), "seq 400000", on_log=lambda _, data: got.append(data))
    whole = "".join(f"{n}\n" for n in range(1, 400001)).encode()
    assert b"".join(got) == whole
    assert ended.log_bytes == len(whole)
    assert whole.endswith(ended.log_tail)
    assert len(ended.log_tail) == 1 << 16


def test_a_command_that_deletes_its_own_record(sshd_site: Site) -> None:
    """`rm -rf` of everything, the record too, loses this command alone; the agent goes on."""
    link = sshd_site.link()
    ended = run(link, "rm -rf .attempt; echo gone")
    assert ended.state in ("done", "lost")
    assert run(link, "echo next", attempt="00001.1").log_tail == b"next\n"
    assert sshd_site.proxy.connections == 1


def test_a_request_that_makes_no_sense(sshd_site: Site) -> None:
    """A bad request fails alone, with the reason; it does not end the agent."""
    link = sshd_site.link()
    with pytest.raises(RequestRefused, match="not a path below"):
        run(link, "echo no", attempt="../elsewhere")
    with pytest.raises(RequestRefused, match="Is a directory"):
        run(link, "echo no", files=[("dir/x", b"", 0o644), ("dir", b"", 0o644)])
    link.ping().result(30)
    assert sshd_site.proxy.connections == 1


def test_close_fails_what_waits(sshd_site: Site) -> None:
    """Closing a link fails the requests without an answer, and every later one; the command itself goes on."""
    link = sshd_site.link()
    future = start(link, "until [ -e go ]; do sleep 0.01; done; touch went")
    until((sshd_site.root / "00000.1").exists, "the command is claimed")
    link.close()
    for failed in (future, link.ping()):
        with pytest.raises(ConnectionLost, match="the link was closed"):
            failed.result(30)
    until(lambda: not agents(sshd_site), "the agent ends with its channel")
    (sshd_site.root / "00000.1" / "go").touch()
    until((sshd_site.root / "00000.1" / "went").exists, "the command went on")


def test_close_while_reconnecting(sshd_site: Site) -> None:
    """A link that is closed in the middle of coming back stays closed."""
    trying = threading.Event()

    def connect() -> object:
        if sshd_site.proxy.connections:
            trying.set()
        return sshd_site.connect()

    link = sshd_site.link(connect=connect)
    sshd_site.proxy.drop()
    assert trying.wait(30)
    link.close()
    until(lambda: not agents(sshd_site), "no agent is left")
    with pytest.raises(ConnectionLost):
        link.ping().result(30)


def test_the_lease_is_gone(sshd_site: Site) -> None:
    """When the platform says that the cluster is gone, the link stops trying and everybody who waits hears it."""
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise LeaseLost("job J ended: preempted")

    link = sshd_site.link(check=check)
    future = start(link, "sleep 600")
    until((sshd_site.root / "00000.1").exists, "the command is claimed")
    gone.set()
    sshd_site.proxy.drop()
    with pytest.raises(LeaseLost, match="preempted"):
        future.result(60)
    with pytest.raises(LeaseLost, match="preempted"):
        link.ping().result(30)


def test_no_way_back(sshd_site: Site) -> None:
    """A node that cannot be reached any more ends the link when its patience is over."""
    link = sshd_site.link(patience=Patience(reconnect=Backoff(first=0.01, most=0.05, total=0.5)))
    future = start(link, "sleep 600")
    until((sshd_site.root / "00000.1").exists, "the command is claimed")
    sshd_site.proxy.__exit__()
    with pytest.raises(ConnectionLost):
        future.result(60)


def test_no_room_on_the_node(sshd_site: Site, tmp_path: Path) -> None:
    """A full disk is named as such."""
    link = sshd_site.link()
    small = sshd_site.root / "00000.1"
    small.mkdir(parents=True)
    if os.system(f"mount -t tmpfs -o size=64k none {small} 2>/dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(RequestRefused, match=r"No space left.*; 0\.1 of 0\.1 MB are free in ") as caught:
            run(link, "echo no", files=[("big", os.urandom(200_000), 0o644)])
        assert sorted(path.name for path in small.iterdir()) == [".attempt"]  # no half file
        assert "disk of the node is full" in caught.value.remedy
    finally:
        os.system(f"umount {small}")


def test_signs_of_life_both_ways(site: Site) -> None:
    """A ping brings a beat and orders to the lease's switch and comes back with its tick, beside the other agent."""
    other = site.link()
    link = site.link(run="")
    assert (site.hello.root, site.hello.epoch) == ("", 0)
    assert link.ping().result(30) == Life(None, "")
    lease = site.switch()
    (lease / "tick").write_text("3\n")
    assert link.ping("a.1", keep=9, stop=True).result(30) == Life(3, "")
    assert [(lease / name).read_text() for name in ("beat", "keep", "stop")] == ["a.1\n", "9 a.1\n", ""]
    assert run(other, "echo goes on").log_tail == b"goes on\n"
    with pytest.raises(RequestRefused, match="answers pings alone"):
        run(link, "echo no")


def test_a_command_starts_as_from_a_shell_of_its_own(link: Link) -> None:
    """None of the signals that its supervisor blocks or ignores is blocked or ignored, and it leads a process group."""
    shown = run(link, "grep -E '^Sig(Blk|Ign):' /proc/self/status; ps -o pgid= -p $$; echo $$").log_tail.decode()
    blocked, ignored, group, pid = (line.split()[-1] for line in shown.splitlines())
    ours = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD, signal.SIGXFSZ)
    assert not [number for number in ours if (int(blocked, 16) | int(ignored, 16)) >> (number - 1) & 1]
    assert group == pid


def test_a_command_that_cannot_start_says_why(link: Link) -> None:
    """An environment without a shell on its PATH fails the command, and no more than that."""
    ended = run(link, "true", env={"PATH": "/nowhere"})
    assert (ended.state, ended.code) == ("done", 127)
    assert b"cannot start bash" in ended.log_tail
    assert run(link, "true", attempt="00001.1").code == 0


def test_a_heavy_bashrc_is_paid_once(own_sshd: OpenSsh, tmp_path: Path) -> None:
    """Bash takes a shell over SSH for a login and reads ~/.bashrc; commands of an agent are none."""
    read = own_sshd.home / "read"
    (own_sshd.home / ".bashrc").write_text(f"echo >> {read}\n")
    with Proxy(own_sshd.port) as proxy:
        server = Server(own_sshd.node(), paramiko.PKey.from_path(own_sshd.key), own_sshd.proof())
        site = Site(server, proxy, tmp_path)
        try:
            link = site.link()
            before = read.read_text()
            assert run(link, "true").code == 0
            assert read.read_text() == before
        finally:
            site.close()
