"""The life of a job: statuses, commands, files, the ways it ends, and that nothing of it is left."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paramiko
import pytest
from plain_client import Client, eventually, register, say

from persistent_runner.local_platform.local import FAST, RECORDED, LocalRescale

JOB = ["Pending", "Waiting for Queue", "Queued", "Started", "Validated", "Executing"]
CLUSTER = ["Not Started", "Starting", "Started", "Stop Requested", "Stopping", "Stopped"]


class HandClock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self._now = datetime(2030, 1, 1, tzinfo=UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += timedelta(seconds=seconds)

    def wait(self, seconds: float, interrupt: threading.Event) -> bool:
        until = self.now() + timedelta(seconds=seconds)
        while not interrupt.wait(0.01):
            if self.now() >= until:
                return False
        return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_runs_its_command_and_ends(client: Client) -> None:
    """Inputs arrive executable, the command runs among them, all statuses are passed, outputs come back checked."""
    script = client.upload(
        "tool.py",
        b"#!/usr/bin/env python3\nimport os\nprint(os.environ['GREETING'], oct(os.stat('tool.py').st_mode))\n",
    )
    job_id = client.create(
        "./tool.py > out.txt\npython --version; cat out.txt", inputFiles=[{"id": script}], envVars={"GREETING": "hello"}
    )
    assert client.post(f"jobs/{job_id}/submit/", json={"waiveSla": True}).status_code == 200
    client.wait_completed(job_id)
    history = client.rows(f"jobs/{job_id}/statuses/")
    assert [row["status"] for row in history[::-1]] == [*JOB, "Completed"]
    assert history[0]["statusReason"] == "Completed successfully"
    assert client.output(job_id, "out.txt") == b"hello 0o100755\n"
    client.wait_stopped(job_id)
    assert client.cluster(job_id)[::-1] == CLUSTER
    assert client.rows(f"jobs/{job_id}/instances/") == []
    row = next(row for row in client.rows(f"jobs/{job_id}/files/") if row["name"] == "out.txt")
    assert (row["typeId"], row["relativePath"], row["decryptedSize"]) == (5, "out.txt", 15)
    assert [row["name"] for row in client.rows(f"jobs/{job_id}/files/?search=process")] == ["process_output.log"]


def test_the_log_reads_as_recorded(client: Client) -> None:
    """Each line is stamped; the first names the command, the last two give the exit code and nothing: clients count them."""
    job_id = client.start("echo one; echo two >&2")
    client.wait_completed(job_id)
    lines = client.output(job_id, "process_output.log").decode().splitlines()
    stamps = [line.partition("]: ")[0] for line in lines]
    assert all(datetime.strptime(stamp, "[%Y-%m-%dT%H:%M:%SZ") for stamp in stamps)  # noqa: DTZ007
    texts = [line.partition("]: ")[2] for line in lines]
    assert texts[0].startswith("Launching echo one; echo two >&2, Working dir: /")
    assert texts[0].endswith("/work.  Process output follows:")
    assert texts[1:] == ["one", "two", "Exited with code 0", ""]


def test_several_analyses_run_in_order(client: Client) -> None:
    """One cluster runs the commands of all analyses, each with its own variables, each with its block in the log."""
    first = client.body("echo first $X; echo 1 > a", envVars={"X": "x1"})
    second = client.body("echo second $X; cat a", envVars={"X": "x2"})
    first["jobanalyses"] += second["jobanalyses"]
    job_id = client.post("jobs/", json=first).json()["id"]
    client.post(f"jobs/{job_id}/submit/")
    client.wait_completed(job_id)
    log = client.output(job_id, "process_output.log").decode()
    texts = [line.partition("]: ")[2] for line in log.splitlines()]
    assert [text for text in texts if text and "Launching" not in text] == [
        "first x1",
        "Exited with code 0",
        "second x2",
        "1",
        "Exited with code 0",
    ]


def test_a_failed_command_completes(client: Client) -> None:
    """There is no status Failed: a Stopping entry tells, later commands do not run, the log gives the exit code."""
    body = client.body("echo before; exit 3")
    body["jobanalyses"] += client.body("echo never")["jobanalyses"]
    job_id = client.post("jobs/", json=body).json()["id"]
    client.post(f"jobs/{job_id}/submit/")
    client.wait_completed(job_id)
    history = client.rows(f"jobs/{job_id}/statuses/")
    assert [(row["status"], row["statusReason"]) for row in history[:2]] == [
        ("Completed", None),
        ("Stopping", "A run failed"),
    ]
    log = client.output(job_id, "process_output.log")
    assert b"Exited with code 3" in log
    assert b"never" not in log


def test_archives_are_unpacked_unless_told_otherwise(client: Client) -> None:
    """A zip or tar arrives as its contents, climbing entries and links are left out; decompress false keeps it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("case/mesh.txt", "mesh")
        archive.writestr("../climbed.txt", "no")
    taped = io.BytesIO()
    with tarfile.open(fileobj=taped, mode="w:gz") as tape:
        entry = tarfile.TarInfo("deck.inp")
        entry.size = 4
        tape.addfile(entry, io.BytesIO(b"deck"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tape.addfile(link)
    files = [
        {"id": client.upload("case.zip", packed.getvalue())},
        {"id": client.upload("deck.tar.gz", taped.getvalue())},
        {"id": client.upload("kept.zip", packed.getvalue()), "decompress": False},
        {"id": client.upload("broken.zip", b"no zip at all")},
    ]
    job_id = client.start("ls ..", inputFiles=files)
    client.wait_completed(job_id)
    names = {row["relativePath"] for row in client.rows(f"jobs/{job_id}/files/")}
    assert names == {"case/mesh.txt", "deck.inp", "kept.zip", "broken.zip", "process_output.log"}
    assert b"climbed" not in client.output(job_id, "process_output.log")


def test_stop_saves_what_is_there(client: Client) -> None:
    """A stop sends SIGTERM, lets the command write, saves the work folder, and says who asked for it."""
    job_id = client.start("trap 'echo saved > last.txt; exit 0' TERM; echo ready; while true; do sleep 0.05; done")
    eventually(lambda: "ready" in client.tail(job_id), "the trap")
    assert client.post(f"jobs/{job_id}/stop/", json={"anything": 1}).status_code == 202
    client.wait_stopped(job_id)
    history = client.rows(f"jobs/{job_id}/statuses/")
    assert [row["status"] for row in history[::-1]] == [*JOB, "Stopping", "Completed"]
    assert history[1]["statusReason"] == "User Terminated"
    assert client.output(job_id, "last.txt") == b"saved\n"
    assert client.post(f"jobs/{job_id}/stop/").status_code == 202
    assert client.call("PATCH", f"jobs/{job_id}/", json={"name": "other"}).status_code == 200
    assert client.get(f"jobs/{job_id}/").json()["name"] == "job"
    assert client.post(f"jobs/{job_id}/submit/").status_code == 200
    assert client.statuses(job_id)[0] == "Completed"


def test_a_stop_before_the_cluster_ends_in_stopped(tmp_path: Path) -> None:
    """A job that is stopped in the queue never runs, and a client that waits for Stopped still sees it."""
    clock = HandClock()
    with LocalRescale(tmp_path, durations=RECORDED, clock=clock) as platform:
        client = Client(platform.base_url, platform.api_key)
        job_id = client.create("touch never")
        client.post(f"jobs/{job_id}/submit/")
        assert client.statuses(job_id) == ["Pending"]
        assert client.get(f"jobs/{job_id}/cluster_statuses/").status_code == 404
        assert client.call("DELETE", f"jobs/{job_id}/").status_code == 400
        client.post(f"jobs/{job_id}/stop/")
        eventually(lambda: clock.advance(1) or client.cluster(job_id)[:1] == ["Stopped"], "Stopped")
        assert client.statuses(job_id) == ["Completed", "Stopping", "Pending"]
        assert client.rows(f"jobs/{job_id}/files/") == []
        assert client.call("DELETE", f"jobs/{job_id}/").status_code == 204
        client.session.close()


def test_force_stop_comes_after_stop_and_saves_nothing(tmp_path: Path) -> None:
    """Force stop ends a job whose command ignores SIGTERM, without outputs; before an ordinary stop it is refused."""
    clock = HandClock()
    with LocalRescale(tmp_path, durations=RECORDED, clock=clock) as platform:
        client = Client(platform.base_url, platform.api_key)
        job_id = client.create("trap '' TERM; echo ready; while true; do sleep 0.05; done")
        client.post(f"jobs/{job_id}/submit/")
        eventually(lambda: clock.advance(5) or "ready" in client.tail(job_id), "the trap")
        assert client.post(f"jobs/{job_id}/force_stop/").status_code == 400
        assert client.post(f"jobs/{job_id}/stop/").status_code == 202
        eventually(lambda: client.statuses(job_id)[0] == "Stopping", "Stopping")
        assert client.call("DELETE", f"jobs/{job_id}/").status_code == 400
        assert client.post(f"jobs/{job_id}/force_stop/").status_code == 202
        client.wait_stopped(job_id)
        assert client.statuses(job_id)[:3] == ["Completed", "Force Stop", "Stopping"]
        assert client.rows(f"jobs/{job_id}/files/") == []
        client.session.close()


def test_recorded_durations_by_a_clock_in_hand(tmp_path: Path) -> None:
    """A rehearsal takes as long as the real start: about 9 minutes until Executing; the walltime then ends the job."""
    clock = HandClock()
    with LocalRescale(tmp_path, durations=RECORDED, clock=clock) as platform:
        client = Client(platform.base_url, platform.api_key)
        job_id = client.create("echo runs; sleep inf", hardware={"walltime": 2})
        client.post(f"jobs/{job_id}/submit/")
        eventually(lambda: clock.advance(5) or "runs" in client.tail(job_id), "the command")
        since = {
            row["status"]: datetime.fromisoformat(row["statusDate"]) for row in client.rows(f"jobs/{job_id}/statuses/")
        }
        assert timedelta(minutes=8) < since["Executing"] - since["Pending"] < timedelta(minutes=60)
        clock.advance(2 * 3600)
        eventually(lambda: clock.advance(5) or client.cluster(job_id)[0] == "Stopped", "Stopped")
        assert client.statuses(job_id)[:2] == ["Completed", "Stopping"]
        assert b"runs" in client.output(job_id, "process_output.log")
        client.session.close()


def test_lists_are_filtered(client: Client) -> None:
    """Jobs are found by name, by being over or not, and by status; the newest comes first."""
    done = client.start("true", name="filter done")
    client.wait_completed(done)
    asleep = client.start("sleep inf", name="filter asleep")

    def found(**query: str) -> list[str]:
        return [row["id"] for row in client.get("jobs/", params={"search": "filter", **query}).json()["results"]]

    assert found() == [asleep, done]
    assert found(state="completed") == [done]
    assert found(state="not_completed", page_size="1") == [asleep]
    assert found(job_status="EXECUTING") == [asleep]
    assert client.call("DELETE", f"jobs/{asleep}/").status_code == 400
    client.stop(asleep)
    assert client.call("DELETE", f"jobs/{asleep}/", params={"deleteInputFiles": "True"}).status_code == 204
    assert found() == [done]


def test_an_input_that_is_gone_is_named_at_submit(client: Client) -> None:
    """A file deleted after the job was created is a 400 at submit, not a job that dies."""
    file_id = client.upload("gone.txt", b"x")
    job_id = client.create("true", inputFiles=[{"id": file_id}])
    client.call("DELETE", f"files/{file_id}/")
    reply = client.post(f"jobs/{job_id}/submit/")
    assert (reply.status_code, file_id in reply.text) == (400, True)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
def test_nothing_outlives_its_cluster(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """Background children of the command and setsid'ed grandchildren started over SSH are gone with the cluster."""
    register(platform.authorized_keys, key)
    job_id = client.start("setsid sh -c 'trap \"\" TERM; sleep 300 & sleep 300' & echo $! ready; sleep inf")
    eventually(lambda: any("ready" in line for line in client.tail(job_id)), "the background process")
    ssh = client.connect(job_id, key)
    say(ssh, "setsid setsid sh -c 'echo $$ > grandchild; exec sleep 300' </dev/null >/dev/null 2>&1 &")
    pid = int(eventually(lambda: say(ssh, "cat grandchild"), "the grandchild"))
    mine = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and belongs(entry, job_id)]
    assert len(mine) >= 4
    assert pid in mine
    client.stop(job_id)
    assert [process for process in mine if alive(process)] == []
    ssh.close()


def belongs(process: Path, job_id: str) -> bool:
    try:
        return f"uprod_{job_id}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_leaving_the_platform_ends_everything(tmp_path: Path) -> None:
    """With the platform its jobs, their processes and its files go; the file of keys stays."""
    with LocalRescale(tmp_path / "root") as platform:
        client = Client(platform.base_url, platform.api_key)
        job_id = client.start("echo $$; sleep inf")
        eventually(lambda: len(client.tail(job_id)) > 1, "the command's id")
        pid = int(client.tail(job_id)[1])
        assert alive(pid)
        client.session.close()
    assert not alive(pid)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["authorized_keys"]


def test_start_and_stop_are_quick() -> None:
    """First steps and tests wait for nothing: the fast durations stay below what a person notices."""
    start = FAST.pending + FAST.waiting_for_queue + FAST.queued + FAST.started
    start += FAST.cluster_starting + FAST.validated + FAST.cluster_started
    assert start < 1.0
    assert FAST.stopping + FAST.stop_requested + FAST.cluster_stopping < 0.3


def test_many_machines(client: Client, platform: LocalRescale, key: paramiko.PKey) -> None:
    """More cores than a machine has give several: one MPI_MASTER, workers reachable themselves and from the head."""
    register(platform.authorized_keys, key)
    job_id = client.start(
        "echo $RESCALE_NODES_PER_SLOT x $RESCALE_CORES_PER_NODE; sleep inf", hardware={"coresPerSlot": 72}
    )
    rows = client.rows(f"jobs/{job_id}/instances/")
    assert [row["role"] for row in rows] == ["MPI_MASTER", "MPI_SLAVE"]
    assert len({row["sshPort"] for row in rows}) == 2
    eventually(lambda: "2 x 36" in client.tail(job_id), "the geometry")
    head, worker = client.connect(job_id, key), client.connect(job_id, key, 1)
    assert say(head, "touch shared; pwd") == say(worker, "ls shared >&2 && pwd")
    transport = head.get_transport()
    assert transport is not None
    inner = transport.open_channel("direct-tcpip", (rows[1]["privateHostname"], 22), ("127.0.0.1", 0))
    assert inner.recv(8) == b"SSH-2.0-"
    inner.close()
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel(
            "direct-tcpip", ("127.0.0.1", int(platform.base_url.rpartition(":")[2])), ("127.0.0.1", 0)
        )
    worker.close()
    head.close()
    client.stop(job_id)
