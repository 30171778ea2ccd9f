"""What goes wrong in the life of a job and of its machines, and the journal that tells of it."""

from __future__ import annotations

import json
import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from plain_client import Client, eventually, register, say

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.durations import FAST, with_durations
from persistent_runner.local_platform.local import LocalRescale

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKER = "while :; do date +%N > beat; sleep 0.05; done"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "journal.jsonl"


@pytest.fixture
def platform(tmp_path: Path, journal: Path, key: paramiko.PKey) -> Iterator[LocalRescale]:
    with LocalRescale(tmp_path / "platform", journal=journal) as found:
        register(found.authorized_keys, key)
        yield found


@pytest.fixture
def client(platform: LocalRescale) -> Iterator[Client]:
    found = Client(platform.base_url, platform.api_key)
    yield found
    found.session.close()


def told(journal: Path, **like: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if all(row.get(name) == value for name, value in like.items())]


def reasons(client: Client, job_id: str) -> list[tuple[str, str | None]]:
    return [(row["status"], row["statusReason"]) for row in client.rows(f"jobs/{job_id}/statuses/")]


def machine(client: Client, job_id: str) -> dict[str, Any]:
    return dict(client.rows(f"jobs/{job_id}/instances/")[0])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def host_key(ssh: paramiko.SSHClient) -> str:
    transport = ssh.get_transport()
    assert transport is not None
    return transport.get_remote_server_key().get_base64()


def test_the_journal_tells_every_event(client: Client, journal: Path) -> None:
    """What a campaign needs as truth: who was submitted and stopped when, on both clocks, in order."""
    job_id = client.start("echo up; sleep inf", name="told")
    eventually(lambda: "up" in client.tail(job_id), "the command")
    client.stop(job_id)
    assert client.call("DELETE", f"jobs/{job_id}/").status_code == 204
    rows = told(journal, job=job_id)
    assert {row["name"] for row in rows} == {"told"}
    events = [row.get("status", row["event"]) for row in rows]
    assert events[:4] == ["created", "submitted", "Pending", "Waiting for Queue"]
    order = ["machines_up", "Executing", "command_started", "stop_asked", "Stopping", "command_ended", "Completed"]
    assert [event for event in events if event in order][: len(order) + 1] == [*order, "Stopping"]
    assert events[-4:] == ["Stopping", "machines_gone", "Stopped", "deleted"]
    times = [row["monotonic"] for row in rows]
    assert times == sorted(times)
    assert datetime.fromisoformat(rows[0]["wall"]).utcoffset() == timedelta(0)
    assert told(journal)[0]["event"] == "started"
    assert told(journal)[0]["version"] == 1


def test_a_job_that_never_starts(client: Client, platform: LocalRescale) -> None:
    """A duration is ordered by the name of the status, for jobs to come; a stop ends the wait (row L3)."""
    platform.faults.add("duration", status="queued", seconds=1e6, job="slow*")
    job_id = client.create("true", name="slow one")
    client.post(f"jobs/{job_id}/submit/")
    eventually(lambda: client.statuses(job_id)[0] == "Queued", "Queued")
    client.wait_completed(client.start("true", name="another"))
    assert client.statuses(job_id)[0] == "Queued"
    client.stop(job_id)
    assert "Executing" not in client.statuses(job_id)


def test_durations_are_changed_by_name() -> None:
    """The option of the command takes the same names, and explains a wrong one."""
    assert with_durations(FAST, {"queued": 30}).queued == 30
    with pytest.raises(ConfigError, match='did you mean "queued"'):
        with_durations(FAST, {"queud": 30})
    with pytest.raises(ConfigError, match="cannot last -1"):
        with_durations(FAST, {"queued": -1})


def test_a_job_ends_without_executing(client: Client, platform: LocalRescale) -> None:
    """No capacity, no licence: Completed with a reason, no Stopping, no Executing, no machine (row L4)."""
    platform.faults.add("ends_early", reason="No capacity", status="queued", times=1)
    job_id = client.create("true")
    client.post(f"jobs/{job_id}/submit/")
    client.wait_stopped(job_id)
    assert reasons(client, job_id)[:2] == [("Completed", "No capacity"), ("Queued", None)]


def test_a_walltime_of_seconds(client: Client, platform: LocalRescale) -> None:
    """The walltime ends the job as the real one would, without hours of waiting (row L12)."""
    platform.faults.add("walltime", seconds=0.5)
    job_id = client.start("sleep inf")
    client.wait_stopped(job_id)
    assert reasons(client, job_id)[:3] == [
        ("Completed", None),
        ("Stopping", "Walltime exceeded"),
        ("Executing", None),
    ]


@pytest.mark.parametrize("where", ["executing", "stopping"])
def test_a_stop_that_hangs(client: Client, platform: LocalRescale, where: str) -> None:
    """Taken, and the job stays what it is until force_stop (rows A10, L13)."""
    platform.faults.add("stop_hangs", at=where, times=1)
    job_id = client.start("sleep inf")
    assert client.post(f"jobs/{job_id}/stop/").status_code == 202
    status = where.capitalize()
    eventually(lambda: client.statuses(job_id)[0] == status, status)
    client.wait_stopped(client.start("true"))  # as long as a way down takes, and more
    assert client.statuses(job_id)[0] == status
    assert client.post(f"jobs/{job_id}/force_stop/").status_code == 202
    client.wait_stopped(job_id)


def test_a_stop_that_hangs_for_a_while(client: Client, platform: LocalRescale) -> None:
    """It ends by itself after the time, as stopped by a user."""
    platform.faults.add("stop_hangs", at="executing", seconds=0.4, times=1)
    job_id = client.start("sleep inf")
    client.stop(job_id)
    assert reasons(client, job_id)[1] == ("Stopping", "User Terminated")


def test_a_stop_that_is_ignored(client: Client, platform: LocalRescale, journal: Path) -> None:
    """Taken and forgotten: the next one works, and a job whose command ends by itself ends all the same (row A10)."""
    platform.faults.add("stop_ignored", times=1)
    job_id = client.start("until [ -e end ]; do sleep 0.02; done")
    assert client.post(f"jobs/{job_id}/stop/").status_code == 202
    assert [row["ignored"] for row in told(journal, job=job_id, event="stop_asked")] == [True]
    assert client.statuses(job_id)[0] == "Executing"
    client.stop(job_id)
    assert [row["ignored"] for row in told(journal, job=job_id, event="stop_asked")] == [True, False]


def test_somebody_stops_the_job(client: Client, platform: LocalRescale, journal: Path) -> None:
    """The reason is the same as for our own stop, and no client asked (row L15)."""
    job_id = client.start("sleep inf")
    platform.faults.add("stop", job=job_id)
    client.wait_stopped(job_id)
    assert reasons(client, job_id)[1] == ("Stopping", "User Terminated")
    assert told(journal, job=job_id, event="stop_asked") == []


def test_preempted_for_good(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """The machines are gone at once, the job is Completed with the reason and without Stopping (row L11)."""
    job_id = client.start("sleep inf")
    ssh = client.connect(job_id, key)
    platform.faults.add("preempt", job=job_id)
    client.wait_stopped(job_id)
    assert reasons(client, job_id)[:2] == [
        ("Completed", "Exceeded max number of restarts"),
        ("Executing", None),
    ]
    assert client.rows(f"jobs/{job_id}/files/") == []
    transport = ssh.get_transport()
    eventually(lambda: transport is None or not transport.is_active(), "the end of the connection")
    ssh.close()


def test_preempted_and_launched_again(
    client: Client, platform: LocalRescale, key: paramiko.PKey, journal: Path
) -> None:
    """Other machine, key and date, a home as at first, the command from its start; the status stays (rows L10, L11)."""
    given = client.upload("given.txt", b"given")
    job_id = client.start("echo restart $RESCALE_IG_RESTART_COUNT $LOCAL; sleep inf", inputFiles=[{"id": given}])
    before = machine(client, job_id)
    ssh = client.connect(job_id, key)
    old_key = host_key(ssh)
    say(ssh, "touch ~/mine ~/work/mine")
    platform.faults.add("preempt", relaunch=0.3, job=job_id)
    after = eventually(
        lambda: [row for row in client.rows(f"jobs/{job_id}/instances/") if row["id"] != before["id"]],
        "another machine",
    )[0]
    eventually(lambda: "restart 1" in " ".join(client.tail(job_id)), "the command")
    ssh.close()
    ssh = client.connect(job_id, key)
    assert host_key(ssh) != old_key
    assert say(ssh, "ls ~ ~/work | grep -c mine; ls ~/work").split() == ["0", "given.txt", "process_output.log"]
    ssh.close()
    different = [name for name in before if before[name] != after[name]]
    assert {"id", "dateStarted", "sshPort", "privateHostname"} == set(different)
    assert client.statuses(job_id).count("Executing") == 1
    assert client.statuses(job_id)[0] == "Executing"
    assert [row["restart"] for row in told(journal, job=job_id, event="command_started")] == [0, 1]
    client.stop(job_id)


def test_a_stop_while_the_machines_are_away(client: Client, platform: LocalRescale) -> None:
    """A job that waits for new machines can be stopped, and forced."""
    job_id = client.start("sleep inf")
    platform.faults.add("preempt", relaunch=3600, job=job_id)
    eventually(lambda: not client.rows(f"jobs/{job_id}/instances/"), "the loss of the machine")
    client.stop(job_id)
    assert reasons(client, job_id)[1] == ("Stopping", "User Terminated")


def test_a_node_reboots(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """All processes end, files stay, the same machine runs the command again; its address and key are the same."""
    job_id = client.start("echo up; sleep inf")
    before = machine(client, job_id)
    ssh = client.connect(job_id, key)
    old_key = host_key(ssh)
    pid = int(say(ssh, "touch kept; setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $!"))
    ssh.close()
    platform.faults.add("reboot", seconds=0.3)
    eventually(lambda: client.tail(job_id).count("up") == 2, "the command again")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process")
    eventually(lambda: accepts(before["sshPort"]), "SSH")
    ssh = client.connect(job_id, key)
    assert (host_key(ssh), say(ssh, "ls kept"), machine(client, job_id)) == (old_key, "kept\n", before)
    ssh.close()
    assert client.statuses(job_id)[0] == "Executing"


def test_actions_at_a_time_of_the_job(client: Client, platform: LocalRescale) -> None:
    """With `after` an action is an order for jobs to come, as often as `times` says."""
    platform.faults.add("preempt", after=0.2, times=1)
    job_id = client.start("sleep inf")
    other = client.start("sleep inf")
    client.wait_stopped(job_id)
    assert client.statuses(other)[0] == "Executing"


def test_another_host_key_and_another_port(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """The same instance with another key, then at another port with the same key (rows L10, S4)."""
    job_id = client.start("sleep inf")
    first = machine(client, job_id)
    ssh = client.connect(job_id, key)
    old_key = host_key(ssh)
    platform.faults.add("host_key")
    transport = ssh.get_transport()
    eventually(lambda: transport is None or not transport.is_active(), "the end of the connection")
    ssh.close()
    eventually(lambda: accepts(first["sshPort"]), "SSH")
    ssh = client.connect(job_id, key)
    new_key = host_key(ssh)
    assert (new_key != old_key, machine(client, job_id)) == (True, first)
    ssh.close()
    platform.faults.add("port")
    eventually(lambda: machine(client, job_id)["sshPort"] != first["sshPort"], "another port")
    eventually(lambda: accepts(machine(client, job_id)["sshPort"]), "SSH")
    assert not accepts(first["sshPort"])
    ssh = client.connect(job_id, key)
    assert (host_key(ssh), machine(client, job_id)["id"]) == (new_key, first["id"])
    ssh.close()


def test_late_ssh(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """The port refuses, or every key is refused, until some time after Executing (rows S1, S2)."""
    platform.faults.add("late_ssh", seconds=2, times=1)
    platform.faults.add("duration", status="cluster_started", seconds=0.5, times=1)
    job_id = client.create("sleep inf")
    client.post(f"jobs/{job_id}/submit/")
    port = eventually(lambda: client.rows(f"jobs/{job_id}/instances/"), "the machine")[0]["sshPort"]
    assert not accepts(port)
    eventually(lambda: accepts(port), "SSH")
    platform.faults.add("late_ssh", seconds=8, login=True, times=1)
    job_id = client.start("sleep inf")
    with pytest.raises(paramiko.AuthenticationException):
        client.connect(job_id, key)

    def let_in() -> bool:
        try:
            client.connect(job_id, key).close()
        except paramiko.AuthenticationException:
            return False
        return True

    eventually(let_in, "a login")


def test_ssh_drops_and_refuses(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """`drop` ends connections and takes new ones; `refuse` keeps those there are and takes none; `login` no key."""
    job_id = client.start("sleep inf")
    port = machine(client, job_id)["sshPort"]
    ssh = client.connect(job_id, key)
    platform.faults.add("ssh", do="drop")
    transport = ssh.get_transport()
    eventually(lambda: transport is None or not transport.is_active(), "the end of the connection")
    ssh.close()
    ssh = client.connect(job_id, key)
    platform.faults.add("ssh", do="refuse")
    eventually(lambda: not accepts(port), "a refusal")
    assert say(ssh, "echo goes on") == "goes on\n"
    platform.faults.add("ssh", do="refuse", seconds=0.3)
    eventually(lambda: accepts(port), "SSH")
    platform.faults.add("ssh", do="login")

    def refused() -> bool:
        try:
            client.connect(job_id, key).close()
        except paramiko.AuthenticationException:
            return True
        return False

    eventually(refused, "a refusal")
    assert say(ssh, "echo goes on") == "goes on\n"
    ssh.close()


def test_ssh_is_a_black_hole(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """Connections stay open, new ones are taken, no byte moves in either; then all goes on (row S7)."""
    job_id = client.start(TICKER)
    ssh = client.connect(job_id, key)
    _, stdout, _ = ssh.exec_command("while :; do echo tick; sleep 0.02; done")
    assert stdout.readline() == "tick\n"
    platform.faults.add("ssh", do="blackhole")
    port = machine(client, job_id)["sshPort"]

    def silent() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            probe.settimeout(0.2)
            try:
                return probe.recv(1) == b""
            except TimeoutError:
                return True

    eventually(silent, "silence")
    channel = stdout.channel
    channel.settimeout(0.3)

    def dry() -> bool:
        try:
            return not channel.recv(1 << 16)  # what was on its way before arrives
        except TimeoutError:
            return True

    eventually(dry, "the end of the bytes")
    transport = ssh.get_transport()
    assert transport is not None
    assert transport.is_active()
    platform.faults.add("ssh", do="blackhole", seconds=0)
    channel.settimeout(20)
    assert channel.recv(4)
    ssh.close()
    ssh = client.connect(job_id, key)
    assert say(ssh, "echo hello") == "hello\n"
    ssh.close()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
def test_kill_9_of_the_commands_shell_ends_the_job(client: Client, key: paramiko.PKey) -> None:
    """The job ends with the shell, by the reason of a failed run; what outlived the shell dies with the machine."""
    line = "ssh-ed25519 AAAAC3 of"
    job_id = client.start(f"echo KEEPER-HOSTKEY name {line}; (trap '' TERM; sleep 300) & echo $! $$; wait")
    _, said, pids = eventually(lambda: (rows := client.tail(job_id))[2:] and rows[:3], "the command's lines")
    assert said == f"KEEPER-HOSTKEY name {line}"
    child, shell = pids.split()
    ssh = client.connect(job_id, key)
    say(ssh, f"kill -9 {shell}")
    client.wait_stopped(job_id)
    ssh.close()
    assert reasons(client, job_id)[:2] == [("Completed", None), ("Stopping", "A run failed")]
    eventually(lambda: not Path(f"/proc/{child}").exists(), "the end of the child")
    assert b"Exited with code 137" in client.output(job_id, "process_output.log")


def test_the_log_gives_two_hundred_lines(client: Client) -> None:
    """Lines printed at the start are still to be had after the command has printed more."""
    job_id = client.start("echo first; seq 150; sleep inf")
    eventually(lambda: "150" in client.tail(job_id), "the lines")
    reply = client.get(f"jobs/{job_id}/runs/1/tail/process_output.log", params={"lines": "200"}).json()
    assert [text.partition("]: ")[2] for text in reply["lines"]][1:3] == ["first", "1"]
