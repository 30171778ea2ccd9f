"""What a failed command's exit code is explained by, as real shells and programs say it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from persistent_runner.remote.explain import explained, failed_step

if TYPE_CHECKING:
    from pathlib import Path

SHELLS = [shell for shell in ("bash", "dash", "busybox sh") if shutil.which(shell.split()[0])]


def run(folder: Path, shell: str, command: str, **env: str) -> tuple[int, str, str]:
    """Run a command as an agent does; return its exit code, what it stands for, and what to do."""
    ended = subprocess.run(
        [*shell.split(), "-c", f"set -e\n{command}"],
        cwd=folder,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return (ended.returncode, *explained(ended.returncode, b"a line before\n" + ended.stdout))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content, mode in (
        ("windows", b"#!/bin/sh\r\necho\r\n", 0o755), ("windows.py", b"#!/usr/bin/env python3\r\n", 0o755),
        ("plain", b"#!/bin/sh\n", 0o644), ("foreign", b"\x7fELF\0\0\0\0", 0o755),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    return tmp_path


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", ["nope -i deck", "env nope", "nohup nope", "timeout 3 nope", "echo on; nope\necho"])
def test_a_command_that_is_not_there(folder: Path, shell: str, command: str) -> None:
    """The word that was not found is named, whoever looked for it, in any locale."""
    for locale in ("C", "C.UTF-8"):
        code, what, remedy = run(folder, shell, command, LC_ALL=locale)
        assert (code, what) == (127, ' (127: the command "nope" was not found)')
        assert "[setup]" in remedy
        assert "./nope" in remedy


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_that_is_not_there(folder: Path, shell: str) -> None:
    """A path that was not found is named, with the two reasons for which a shell says so."""
    code, what, remedy = run(folder, shell, "./none")
    assert code == 127
    assert what == " (127: ./none was not found, or the interpreter that its first line names)"
    assert "among the inputs" in remedy


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", ["./windows", "./windows.py"])
def test_windows_line_ends(folder: Path, shell: str, script: str) -> None:
    """No shell says what is wrong with such a script; the remedy does."""
    code, what, remedy = run(folder, shell, script)
    assert code == 127
    assert "first line names" in what
    assert "LF line ends (dos2unix)" in remedy


@pytest.mark.parametrize("command", ["bash rnu.sh", "dash rnu.sh", "sh rnu.sh", "bash -e rnu.sh"])
def test_a_script_that_is_not_there(folder: Path, command: str) -> None:
    """A shell that was given a file to run looks for that file, and for no command of its name."""
    code, what, remedy = run(folder, "bash", f"{command} || exit 127")
    assert (code, what) == (127, " (127: there is no file rnu.sh in the working directory)")
    assert "among the inputs" in remedy
    assert "./rnu.sh" not in remedy


def test_windows_line_ends_as_other_shells_say_it() -> None:
    """Older and newer bash, env, and a script whose lines a shell reads itself."""
    for code, line in (
        (126, "bash: ./run.sh: /bin/sh^M: bad interpreter: No such file or directory"),
        (127, "bash: line 2: ./run.sh: cannot execute: required file not found"),
        (127, "env: 'python3\\r': No such file or directory"),
        (127, "/usr/bin/env: \u2018python3\r\u2019: No such file or directory"),
        (127, "run.sh: line 2: $'\\r': command not found"),
    ):
        what, remedy = explained(code, line.encode() + b"\n")
        assert "Windows line ends" in what, line
        assert "dos2unix" in remedy


@pytest.mark.parametrize("shell", SHELLS)
def test_a_missing_execute_bit(folder: Path, shell: str) -> None:
    """Exit 126 names the file and the chmod that mends it."""
    code, what, remedy = run(folder, shell, "./plain")
    assert (code, what) == (126, " (126: ./plain is not executable)")
    assert remedy == "Make it so where it lies: chmod +x plain."


def test_a_program_for_another_machine(folder: Path) -> None:
    """A binary of another system is said to be one."""
    assert run(folder, "bash", "./foreign")[:2] == (126, " (126: ./foreign is no program for this machine)")


def test_a_missing_library() -> None:
    """Exit 127 of the loader is not taken for a missing command."""
    line = (
        b"./solver: error while loading shared libraries: libmpi.so.40: cannot open shared object file: No such file\n"
    )
    what, remedy = explained(127, line)
    assert what == " (127: the shared library libmpi.so.40 was not found)"
    assert "LD_LIBRARY_PATH" in remedy


@pytest.mark.parametrize(
    ("code", "log", "what"),
    [
        (127, b"", " (127: a command was not found)"),
        (127, b"solver ends\n", " (127: a command was not found)"),
        (126, b"\xff", " (126: a command could not be executed)"),
        (141, b"", " (141: a pipe whose reader ended first)"),
        (137, b"", " (137: killed by signal 9, likely out of memory)"),
        (139, b"", " (139: killed by SIGSEGV)"),
        (1, b"bash: nope: command not found\n", ""),
        (159, b"", " (159: killed by SIGSYS)"),
        (255, b"", ""),
    ],
)
def test_codes_that_stand_for_something(code: int, log: bytes, what: str) -> None:
    """Where the log says nothing, the code alone is explained; a program's own codes are not."""
    assert explained(code, log)[0] == what


def test_a_word_that_could_drive_a_terminal() -> None:
    """What a log says is quoted without control characters."""
    assert "\x1b" not in explained(127, b"bash: line 1: \x1b[31mnope: command not found\n")[0]


@pytest.mark.parametrize(
    ("command", "log", "step", "lines"),
    [
        ("a\nb -x", b"said\npersistent_runner: line 2 failed: b -x\n", "`b -x` (line 2 of the command)", "    said"),
        ("b -x", b"persistent_runner: line 1 failed: b -x\n", "`b -x`", "    (it printed nothing)"),
        ("a\nb", b"said\n", "`a`", "    said"),
        (  # bash names the last one of a pipe, whichever failed
            "a\nb | tee log",
            b"persistent_runner: line 2 failed: tee log\n",
            "`b | tee log` (line 2 of the command)",
            "    (it printed nothing)",
        ),
        ("", b"", "``", "    (it printed nothing)"),
    ],
)
def test_the_line_that_failed_is_named(command: str, log: bytes, step: str, lines: str) -> None:
    """As bash says it; where nobody does, the first one stands for the command."""
    assert failed_step(command, log) == (step, lines)
