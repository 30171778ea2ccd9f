"""`lease/keeper.py`: the command that holds a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from persistent_runner.lease.keeper import job_command


def test_the_command_names_its_lease_and_waits() -> None:
    """Whoever sees the job in the portal learns whose it is and what it does."""
    assert (
        job_command("persistent_runner-wing-1") == "# persistent_runner lease persistent_runner-wing-1\nexec sleep inf"
    )


@pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell here")
def test_a_shell_runs_it_until_it_is_stopped() -> None:
    """The text is a valid program: it is still there when it is told to go, and goes then, with all of it."""
    checked = subprocess.run(["sh", "-n", "-c", job_command("a")], check=False)
    assert checked.returncode == 0
    with subprocess.Popen(["sh", "-c", job_command("a")], start_new_session=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(10) != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("name", ["", "a b", "a\nrm -rf ~", "a'b"])
def test_a_name_cannot_become_a_command(name: str) -> None:
    """The comment ends where the name ends."""
    with pytest.raises(ValueError, match="cannot name"):
        job_command(name)
