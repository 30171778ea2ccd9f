"""A client written as for the real service: requests and paramiko, and nothing that only the local platform knows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import paramiko
import requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE = 20.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of `condition()`; fail after the deadline, naming `what` was waited for."""
    until = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


@dataclass
class Client:
    """The calls of a plain client program, and nothing that only the local platform knows."""

    base_url: str
    api_key: str
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Token {self.api_key}"

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, f"{self.base_url}/api/v2/{path}", timeout=20, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.call("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.call("POST", path, **options)

    def rows(self, path: str) -> list[dict[str, Any]]:
        """All rows of a list, by following `next`."""
        found: list[dict[str, Any]] = []
        url: str | None = f"{self.base_url}/api/v2/{path}"
        while url:
            page = self.session.get(url, timeout=20).json()
            found += page["results"]
            url = page["next"]
        return found

    def upload(self, name: str, content: bytes) -> str:
        reply = self.post("files/contents/", files={"file": (name, content)})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def body(self, command: str, **changes: Any) -> dict[str, Any]:
        """Return a create body; `hardware`, `inputFiles` and `envVars` go into its analysis, all else to the top."""
        analysis = {
            "analysis": {"code": "user_included", "version": "0"},
            "command": command,
            "hardware": {"coreType": "emerald", "coresPerSlot": 1, **changes.pop("hardware", {})},
            "inputFiles": changes.pop("inputFiles", []),
            "envVars": changes.pop("envVars", {}),
        }
        return {"name": "job", "jobanalyses": [analysis], **changes}

    def create(self, command: str, **changes: Any) -> str:
        reply = self.post("jobs/", json=self.body(command, **changes))
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def start(self, command: str, **changes: Any) -> str:
        """Create and submit a job and wait until it executes; return its id."""
        job_id = self.create(command, **changes)
        assert self.post(f"jobs/{job_id}/submit/").status_code == 200
        eventually(lambda: "Executing" in self.statuses(job_id), "Executing")
        return job_id

    def statuses(self, job_id: str) -> list[str]:
        return [row["status"] for row in self.rows(f"jobs/{job_id}/statuses/")]

    def cluster(self, job_id: str) -> list[str]:
        reply = self.get(f"jobs/{job_id}/cluster_statuses/")
        return [row["status"] for row in reply.json()["results"]] if reply.ok else []

    def wait_completed(self, job_id: str) -> None:
        eventually(lambda: "Completed" in self.statuses(job_id), "Completed")

    def wait_stopped(self, job_id: str) -> None:
        eventually(lambda: self.cluster(job_id)[:1] == ["Stopped"], "Stopped")

    def stop(self, job_id: str) -> None:
        assert self.post(f"jobs/{job_id}/stop/").status_code == 202
        self.wait_stopped(job_id)

    def tail(self, job_id: str) -> list[str]:
        """Return the lines of the live log without their time stamps; empty while there are none."""
        reply = self.get(f"jobs/{job_id}/runs/1/tail/process_output.log", params={"lines": "1000"})
        return [line.partition("]: ")[2] for line in reply.json()["lines"]] if reply.ok else []

    def output(self, job_id: str, name: str) -> bytes:
        """Return the content of an output file."""
        found = next(row for row in self.rows(f"jobs/{job_id}/files/") if row["relativePath"] == name)
        return self.session.get(found["downloadUrl"], timeout=20).content

    def connect(self, job_id: str, key: paramiko.PKey, number: int = 0) -> paramiko.SSHClient:
        """Log in to a machine of a job."""
        node = self.rows(f"jobs/{job_id}/instances/")[number]
        ssh = paramiko.SSHClient()
        ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            ssh.connect(
                node["publicIp"], node["sshPort"], node["username"], pkey=key, allow_agent=False, look_for_keys=False
            )
        except BaseException:
            ssh.close()
            raise
        return ssh


def register(path: Path, key: paramiko.PKey) -> None:
    """Let a key log in, as a user does: by a line in the file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{key.get_name()} {key.get_base64()} somebody@somewhere\n")


def say(ssh: paramiko.SSHClient, command: str) -> str:
    """Run a command; return what it printed on stdout."""
    stdin, stdout, _ = ssh.exec_command(command)
    stdin.close()
    return stdout.read().decode()


HOSTILE = "a 'quoted' {brace} $HOME ünï"
"""A folder name in which everything must work."""
