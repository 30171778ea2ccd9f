"""Commands and scripts that a node would refuse, told before a cluster is leased."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.scripts import script_mistakes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
UNIX, WINDOWS = b"#!/bin/sh\necho hi\n", b"#!/usr/bin/env python3\r\nprint(1)\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    case = tmp_path / "case"
    (case / "bin").mkdir(parents=True)
    for name, content, mode in (
        ("solver", UNIX, 0o755), ("plain", UNIX, 0o644), ("bin/plain", UNIX, 0o644), ("windows", WINDOWS, 0o755),
        ("hidden", WINDOWS, 0o644), ("made.j2", UNIX, 0o755), ("hosts", b"a\nb\n", 0o644), ("post.py", WINDOWS, 0o644),
    ):  # fmt: skip
        (case / name).write_bytes(content)
        (case / name).chmod(mode)
    return tmp_path


def told(folder: Path, command: str, *names: str) -> list[str]:
    """Return what is wrong with a command and these files of the case (all but `windows`, when none is named)."""
    files = [file for file in walk_inputs(folder, ["case/"]) if file.path != "windows" or "windows" in names]
    return [what for what, _ in script_mistakes(files, command)]


@pytest.mark.parametrize(
    "command",
    [
        "./plain",
        "./plain -i deck > log 2>&1",
        "bin/plain",
        "solve && ./plain",
        "solve | ./plain",
        "A=1 B='x y' ./plain",
        "if ./plain; then echo; fi",
        "mpirun -np $TRIAL_CORES ./plain -i ./hosts",
        "mpirun --hostfile $TRIAL_HOSTS -np 4 ./plain",
        "time ./plain",
        "env X=1 ./plain",
        "first\\\n --option\n\n./plain",
        "(./plain)",
    ],
)
def test_a_missing_execute_bit(folder: Path, command: str) -> None:
    """A file that the command runs must be executable; the message says how to make it so."""
    [line] = told(folder, command)
    name = "bin/plain" if "bin" in command else "./plain"
    assert line.startswith(f"the command runs {name}, and ")
    assert line.endswith(f"plain is not executable; run chmod +x {folder / 'case' / name}".replace("./", ""))


@pytest.mark.parametrize(
    "command",
    [
        "./solver ./plain",
        "./made",
        "sh ./plain",
        "python3 ./plain",
        "cat ./plain",
        "chmod +x plain && ./plain",
        "chmod +x plain\n./plain",
        "cd bin && ./plain",
        "echo './plain'",
        "cat <<EOF\n./plain\nEOF",
        "echo 'one\n./plain\n'",
        "# ./plain",
        "mpirun --hostfile ./hosts ./solver",
        "mpirun -np 4 python3 ./plain",
        "$HOME/plain",
        "../plain",
        "plain",
        "hello > ./plain",
        "> ./plain hello",
        "",
    ],
)
def test_what_is_not_run_needs_no_bit(folder: Path, command: str) -> None:
    """Data, interpreters' arguments, and what the text of a command leaves open are no mistakes."""
    assert told(folder, command) == []


@pytest.mark.parametrize("command", ["anything", "./windows"])
def test_windows_line_ends_of_an_executable(folder: Path, command: str) -> None:
    """The message says what the node would say, which names neither the cause nor the remedy."""
    [line] = told(folder, command, "windows")
    assert line.startswith(f"{folder / 'case' / 'windows'} is a script with Windows line ends")
    assert "bad interpreter: /usr/bin/env python3^M" in line
    assert line.endswith("save it with LF line ends, or run dos2unix windows")


def test_windows_line_ends_of_what_is_run(folder: Path) -> None:
    """A script that the command runs counts without its bit; one that an interpreter reads, or that is mended, is fine."""
    line, bit = told(folder, "./hidden")
    assert "hidden is a script with Windows line ends" in line
    assert "hidden is not executable" in bit
    assert "is a script with Windows line ends" in told(folder, "bash hidden")[0]
    for command in ("python3 post.py", "dos2unix hidden; bash hidden", "sed -i 's/\\r//' hidden; sh hidden"):
        assert told(folder, command) == []


@pytest.mark.parametrize("command", ["./slover -i deck", "A=1 ./slover", "time ./slover"])
def test_a_first_command_that_is_not_there(folder: Path, command: str) -> None:
    """What the first command runs must be an input: nothing else can have made it."""
    if command.startswith("time"):  # a launcher's own arguments are left to the node
        assert told(folder, command) == []
        return
    [line] = told(folder, command)
    assert line == 'the command begins with ./slover, and no input has that name; did you mean "solver"?'
    assert told(folder, f"make\n{command}") == []


def test_links_are_there(folder: Path) -> None:
    """A program may be a link, or lie in a folder that is one."""
    (folder / "case" / "link").symlink_to("solver")
    (folder / "case" / "tools").symlink_to("bin")
    for command in ("./link", "tools/plain", "./bin/../solver"):
        assert told(folder, command) == []


def test_an_input_that_cannot_be_read(folder: Path) -> None:
    """What vanished between the walk and the look is a clear error."""
    files = walk_inputs(folder, ["case/"])
    (folder / "case" / "solver").unlink()
    with pytest.raises(ConfigError, match="solver cannot be read"):
        list(script_mistakes(files, "./solver"))
