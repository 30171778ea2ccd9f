"""The platform as a process of its own: shared, held by its drivers, gone with them."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from plain_client import Client, eventually

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform import attach
from persistent_runner.local_platform.local import LocalRescale, ensure_process

DRIVER = """
import sys
from pathlib import Path
from persistent_runner.local_platform.local import ensure_process
hold = ensure_process(Path(sys.argv[1]))
print(hold.base_url, hold.api_key, flush=True)
sys.stdin.read()
"""
SERVER = """
import sys
from pathlib import Path
from persistent_runner.local_platform.local import serve
serve(authorized_keys=Path(sys.argv[1]), on_ready=lambda ready: print("first", ready["base_url"], file=sys.stderr, flush=True))
"""


def answers(base_url: str) -> bool:
    try:
        return requests.get(f"{base_url}/api/v2/users/me/", timeout=5).status_code == 401
    except requests.ConnectionError:
        return False


Start = Callable[[str, Path], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs that are gone at the end, whatever a test does."""
    with contextlib.ExitStack() as stack:

        def launch(code: str, path: Path) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            line = [sys.executable, "-c", code, str(path)]
            process = stack.enter_context(subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
            stack.callback(process.terminate)
            return process

        yield launch


def test_drivers_that_start_at_once_share_one_platform(tmp_path: Path) -> None:
    """Two studies started at the same moment use one platform; it ends when both have let go, and its state goes."""
    holds: list[attach.Attachment] = []
    threads = [threading.Thread(target=lambda: holds.append(ensure_process(tmp_path / "state"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(hold.base_url, hold.api_key) for hold in holds}) == 1
    for hold in holds[1:]:
        hold.close()
    assert answers(holds[0].base_url)
    holds[0].close()
    eventually(lambda: not answers(holds[0].base_url), "the end of the platform")
    eventually(lambda: not list((tmp_path / "state").glob("*.json")), "the end of its state file")


def test_secrets_are_for_this_user_alone(tmp_path: Path) -> None:
    """Another user of the machine can read neither the token nor the SSH key."""
    with ensure_process(tmp_path / "state") as hold:
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
        files = [*(tmp_path / "state").glob("*.json"), hold.ssh_key, hold.authorized_keys]
        assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 3
        public = hold.ssh_key.with_suffix(".pub").read_text(encoding="utf-8").strip()
        assert hold.authorized_keys.read_text(encoding="utf-8").splitlines() == [public]


@pytest.mark.skipif(not shutil.which("ssh"), reason="no OpenSSH client")
def test_its_key_logs_in(tmp_path: Path) -> None:
    """The key pair made for the driver opens a node without any set-up by the user."""
    with ensure_process(tmp_path / "state") as hold:
        client = Client(hold.base_url, hold.api_key)
        job_id = client.start("sleep inf")
        node = client.rows(f"jobs/{job_id}/instances/")[0]
        options = [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            f"UserKnownHostsFile={tmp_path}/known",
            "-o",
            "LogLevel=ERROR",
        ]
        line = ["ssh", "-F", "none", "-i", str(hold.ssh_key), "-p", str(node["sshPort"]), *options]
        said = subprocess.run(
            [*line, f"{node['username']}@127.0.0.1", "pwd"], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip().endswith("/home")
        client.stop(job_id)
        client.session.close()


def test_ends_when_its_driver_is_killed(tmp_path: Path, start: Start) -> None:
    """A driver that dies by SIGKILL leaves no platform behind."""
    process = start(DRIVER, tmp_path / "state")
    assert process.stdout is not None
    base_url = process.stdout.readline().split()[0]
    assert answers(base_url)
    process.kill()
    process.communicate()
    eventually(lambda: not answers(base_url), "the end of the platform")


def test_waits_for_unfinished_jobs(tmp_path: Path, start: Start) -> None:
    """A job outlives its driver, as on the real service; the next driver finds it; then the platform ends."""
    process = start(DRIVER, tmp_path / "state")
    assert process.stdout is not None
    base_url, api_key = process.stdout.readline().split()
    client = Client(base_url, api_key)
    job_id = client.start("sleep inf")
    process.kill()
    process.communicate()
    with ensure_process(tmp_path / "state") as hold:
        assert (hold.base_url, client.statuses(job_id)[0]) == (base_url, "Executing")
    assert client.statuses(job_id)[0] == "Executing"
    assert client.post(f"jobs/{job_id}/stop/").status_code == 202
    client.session.close()
    eventually(lambda: not answers(base_url), "the end of the platform")


def test_a_stale_state_file_is_no_obstacle(tmp_path: Path) -> None:
    """After a crash of the platform the next start just works."""
    first = ensure_process(tmp_path / "state")
    state = json.loads(next((tmp_path / "state").glob("*.json")).read_text(encoding="utf-8"))
    first.close()
    eventually(lambda: not answers(first.base_url), "the end of the platform")
    eventually(lambda: not list((tmp_path / "state").glob("*.json")), "the end of its state file")
    attach.write_state(attach.StateFiles(tmp_path / "state"), state)
    with ensure_process(tmp_path / "state") as second:
        assert answers(second.base_url)
        assert second.api_key != first.api_key


def test_windows_and_a_missing_extra_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the local platform cannot run, the message says what to do instead."""
    with monkeypatch.context() as patch:
        patch.setattr(attach.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"persistent_runner\[local\]"):
            ensure_process(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(attach, "os", type("Windows", (), {"name": "nt"}))
        with pytest.raises(ConfigError, match="use WSL, or go on with --profile NAME --check"):
            ensure_process(tmp_path)


def test_a_port_in_use_is_explained(tmp_path: Path) -> None:
    """Two platforms on one port: the second says so instead of showing a traceback, and leaves nothing behind."""
    with LocalRescale(tmp_path / "a") as first:
        port = int(first.base_url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            LocalRescale(tmp_path / "b", port=port).start()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["authorized_keys"]


def test_servers_are_imported_only_when_one_starts() -> None:
    """A driver that leases from a real account does not pay for the servers of the local platform."""
    code = "import sys, persistent_runner.local_platform.local; print({'asyncssh', 'flask', 'waitress'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_served_in_the_foreground(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    """`platform` prints one JSON line when ready, after its profile was written, and ends every job on a signal."""
    process = start(SERVER, tmp_path / "keys")
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert set(ready) == {"base_url", "api_key", "authorized_keys", "control_url", "control_token"}
    assert ready["authorized_keys"] == str(tmp_path / "keys")
    assert (tmp_path / "keys").exists()
    client = Client(ready["base_url"], ready["api_key"])
    job_id = client.start("echo $$; sleep inf")
    pid = int(eventually(lambda: client.tail(job_id)[1:], "the command's id")[0])
    client.session.close()
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, said, errors.strip()) == (0, "", f"first {ready['base_url']}")
    assert not Path(f"/proc/{pid}").exists()


COMMAND = """
import sys
from persistent_runner.cli import main
main(["platform", "--journal", sys.argv[1], "--duration", "queued=0.2", "--duration", "pending=0",
      "--fault", '{"what": "status", "endpoints": "me", "status": 503, "times": 1}'])
"""


def test_the_command_takes_journal_durations_and_faults(tmp_path: Path, start: Start) -> None:
    """`persistent-runner platform` has all of it as options, and prints where more faults can be ordered."""
    process = start(COMMAND, tmp_path / "journal.jsonl")
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    client = Client(ready["base_url"], ready["api_key"])
    assert [client.get("users/me/").status_code for _ in range(2)] == [503, 200]
    headers = {"Authorization": f"Bearer {ready['control_token']}"}
    assert requests.get(ready["control_url"], headers=headers, timeout=20).json() == {"faults": []}
    client.wait_stopped(client.start("true"))
    client.session.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    since = {row["status"]: row["monotonic"] for row in rows if row["event"] == "status"}
    assert since["Started"] - since["Queued"] >= 0.2


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--fault", '{"what": "lots"}', 'did you mean "lost"'),
        ("--fault", "{", "is not JSON"),
        ("--duration", "queud=3", 'did you mean "queued"'),
        ("--duration", "queued", "is not STATUS=SECONDS"),
        ("--journal", "/dev/null/journal", "cannot be written"),
    ],
)
def test_wrong_options_of_the_command(option: str, value: str, said: str) -> None:
    """A misspelled fault or status ends the command at once, with the nearest name and exit code 2."""
    code = "import sys; from persistent_runner.cli import main; main(['platform', *sys.argv[1:]])"
    line = [sys.executable, "-c", code, option, value]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_faults_of_the_shared_platform(tmp_path: Path) -> None:
    """The platform that a study started takes faults as well: its state file, for this user alone, says where."""
    with ensure_process(tmp_path / "state") as hold:
        state = json.loads(next((tmp_path / "state").glob("*.json")).read_text(encoding="utf-8"))
        headers = {"Authorization": f"Bearer {state['control_token']}"}
        order = {"what": "revoked"}
        assert requests.post(state["control_url"], json=order, headers=headers, timeout=20).status_code == 201
        client = Client(hold.base_url, hold.api_key)
        assert client.get("users/me/").status_code == 401
        client.session.close()


def test_whoever_listens_on_the_port_of_a_platform_that_is_gone_learns_nothing(tmp_path: Path) -> None:
    """He answers what he likes: neither token nor API key comes to him, and a platform of one's own is started."""
    files = attach.StateFiles(tmp_path)
    files.make_folder()
    heard: list[bytes] = []

    def listen(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            heard.append(lines.readline())
            connection.sendall(b"0" * 64 + b"\nok\n")
            heard.append(lines.readline())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        attach.write_state(
            files,
            {
                "base_url": "http://127.0.0.1:1",
                "api_key": "old-key",
                "control_port": listener.getsockname()[1],
                "control_token": "old-token",
                "control_url": "",
            },
        )
        thread = threading.Thread(target=listen, args=(listener,))
        thread.start()
        with ensure_process(tmp_path) as hold:
            assert hold.base_url != "http://127.0.0.1:1"
            assert answers(hold.base_url)
        thread.join(20)
    assert len(heard[0].strip()) == 32
    assert heard[1] == b""
    eventually(lambda: not files.state.exists(), "the end of the platform")
