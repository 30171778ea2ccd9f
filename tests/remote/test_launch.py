"""How an agent starts, whatever the login shell is and says."""

from __future__ import annotations

import ast
import base64
import json
import os
import shlex
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import RunnerError
from persistent_runner.remote import agent
from persistent_runner.remote.frames import decode, hello_of
from persistent_runner.remote.launch import bootstrap, without_comments
from tests.remote.conftest import run, start, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.remote.conftest import Site


@contextmanager
def profile(site: Site, **files: str) -> Iterator[None]:
    """Give the node's user these start-up files."""
    home = Path(site.connect().run("echo $HOME", hide=True).stdout.strip())
    for name, text in files.items():
        (home / f".{name}").write_text(text)
    try:
        yield
    finally:
        for name in files:
            (home / f".{name}").unlink()


def test_noise_before_the_agent(site: Site) -> None:
    """A login shell that greets, prints binary rubbish and half a frame does not confuse the link."""
    noise = "echo Welcome; printf '\\0\\0\\0\\5\\0\\0\\0\\0hello'; head -c 100000 /dev/urandom; echo to stderr >&2\n"
    with profile(site, bashrc=noise, bash_profile=noise + ". ~/.bashrc\n"):
        link = site.link()
    assert run(link, "echo fine").log_tail == b"fine\n"


def test_noise_while_the_agent_serves(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """What a login has left behind prints into the channel: that is cut and opened again, and the command is joined."""
    speak = site.folder / "speak"
    later = f"until mv {shlex.quote(str(speak))} {shlex.quote(str(speak))}.done; do sleep 0.05; done"
    with profile(site, bash_profile=f"({later} 2>/dev/null; echo 'disk quota: 71 % used') &\n"):
        link = site.link()
    running = start(link, "until [ -e go ]; do sleep 0.01; done; echo fine")
    speak.touch()
    until(lambda: "what came is not of the agent, but 'disk quota: 71 % used" in caplog.text, "the word of it")
    (site.root / "00000.1" / "go").touch()
    assert running.result(60).log_tail == b"fine\n"


def test_no_python(site: Site) -> None:
    """A node without python3 is said to be one, at once, with what helps."""
    with profile(site, bash_profile="PATH=/nowhere\n"), pytest.raises(RunnerError, match="no python3") as caught:
        site.link()
    assert "Python 3.6 or later on the PATH of a login shell" in caught.value.remedy
    assert "python3: not found" in caught.value.message


def test_an_agent_that_cannot_start(site: Site) -> None:
    """A home that cannot be written ends the start with the node's own words, not with minutes of tries."""
    with (
        profile(site, bash_profile="export RESCALE_WORK_PATH=/proc/nowhere\n"),
        pytest.raises(RunnerError, match=r"the agent cannot start on the node, exit code 1[\s\S]*/proc/nowhere"),
    ):
        site.link()


def test_a_login_that_exits(sshd_site: Site) -> None:
    """An account that may not log in says so in its own words."""
    with (
        profile(sshd_site, bash_profile="echo This account is currently not available. >&2; exit 1\n"),
        pytest.raises(RunnerError, match="exit code 1: This account is currently not available"),
    ):
        sshd_site.link()


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "busybox sh", "zsh", "ksh", "csh", "tcsh", "fish"])
def test_any_login_shell(shell: str, tmp_path: Path) -> None:
    """The command line that starts the agent means the same to every shell that a user may have."""
    program = shell.split()
    if shutil.which(program[0]) is None:
        pytest.skip(f"{shell} is not installed")
    command = bootstrap({"run": "r", "lease": "l", "node": "n", "head": "n", "grace": 1, "nonce": "N"})
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    ended = subprocess.run([*program, "-c", command], input=b"", capture_output=True, env=environment, check=True)
    frames = ended.stdout.partition(b"\nN\n")[2]
    [(header, _)] = decode(bytearray(frames), "node")
    assert hello_of(header).root == f"{tmp_path}/work/r"


def test_the_program_is_the_agent() -> None:
    """What is sent differs from the agent in comments and docstrings alone: the same code stands on the same lines."""
    source = Path(agent.__file__).read_text("utf-8")
    sent = without_comments(source)
    trees = [ast.parse(text) for text in (source, sent)]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass(lineno=node.body[0].lineno)
    mine, theirs = (ast.dump(tree, include_attributes=False) for tree in trees)
    assert mine == theirs
    lines = [[node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")] for tree in trees]
    assert lines[0] == lines[1]
    assert len(sent) < 0.85 * len(source)
    assert without_comments('x = "# a"  # b\ny = ("c"\n  "d")\n') == 'x = "# a"  \ny = ("c"\n  "d")\n'


def test_the_program_is_small() -> None:
    """The program and its settings fit into a command line; nothing secret stands in it, for `ps` shows it."""
    command = bootstrap({"run": "r" * 80, "lease": "l" * 100, "node": "n", "head": "n", "grace": 10, "nonce": "N" * 32})
    assert len(command) < 20 * 1024
    settings = json.loads(base64.b64decode(command.rpartition(" ")[2].rstrip("'")))
    assert set(settings) == {"run", "lease", "node", "head", "grace", "nonce"}
