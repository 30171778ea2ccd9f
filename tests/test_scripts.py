"""Commands and scripts that a node would refuse, told before a cluster is leased."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.scripts import script_mistakes, syntax_error

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


@pytest.mark.parametrize(
    ("command", "begins"),
    [
        ("bash slover", "bash slover"),
        ("sh -ex slover 1 2 > log", "sh -ex slover"),
        ("python3 slover -n 3", "python3 slover"),
        ("A=1 python3.11 -u slover.py\nmake", "python3.11 -u slover.py"),
        ("perl bin/slover", "perl bin/slover"),
    ],
)
def test_a_script_that_is_not_there(folder: Path, command: str, begins: str) -> None:
    """What an interpreter is given to run must be there as well, as far as the text of the command tells."""
    [line] = told(folder, command)
    assert line.startswith(f"the command begins with {begins}, and no input has that name; ")
    assert told(folder, f"make\n{command}") == []


@pytest.mark.parametrize(
    "command",
    [
        "bash solver",
        "python3 made",
        "python3 post.py",
        "python3 bin",
        "python3 -m slover",
        "python3 -c slover",
        "python3 -W error slover",
        "python3",
        "bash < slover",
        "bash $SETUP_DIR/slover",
        "bash /opt/slover",
        "python3 ../slover",
        "cd bin && bash slover",
        "slover slover",
    ],
)
def test_a_script_that_may_be_there(folder: Path, command: str) -> None:
    """A template, a folder, a module, and what only the node can tell are no mistakes."""
    assert told(folder, command) == []


def test_the_file_to_be_mended_is_told(folder: Path) -> None:
    """A script's fault is the script's, a wrong name the command's."""
    files = walk_inputs(folder, ["case/"])
    places = {file and file.name for _, file in script_mistakes(files, "./slover; ./plain; sh windows")}
    assert places == {None, "plain", "windows"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ('echo "abc', "line 1: unexpected EOF while looking for matching `\"'"),
        ("make\nif true; then\necho a", "line 4: syntax error: unexpected end of file"),
        ("if true; fi", "line 1: syntax error near unexpected token `fi'"),
        ("a\n) b", "line 2: syntax error near unexpected token `)'"),
    ],
)
def test_a_command_that_bash_does_not_understand(command: str, said: str) -> None:
    """Its own words, with the line of the command, before anything of it runs."""
    assert syntax_error(command) == f"bash does not understand it: {said}"


@pytest.mark.parametrize(
    "command",
    [
        "echo 'a b' | tee x && [[ -e x ]] || exit 3",
        "shopt -s extglob\nrm -f !(keep|*.inp)",
        "cat <<'END' > deck\n\"(\nEND",
        "for f in *.inp; do solve $f; done",
        "touch made",
        "",
    ],
)
def test_a_command_that_bash_understands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Nothing of it runs, and nobody's own start-up file of bash either; without a bash nothing is said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rc").write_text("touch made_by_rc; exit 3")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "rc"))
    assert syntax_error(command) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["rc"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert syntax_error("echo 'a") == ""


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
