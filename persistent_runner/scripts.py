"""Commands and scripts that would fail on a node, found before anything is leased."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import subprocess
from typing import TYPE_CHECKING

from persistent_runner.inputs import read_input
from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from persistent_runner.inputs import InputFile

_FIRST_LINE = 4096  # bytes in which it ends
_KEYWORDS = {"!", "do", "elif", "else", "if", "then", "until", "while", "{"}
_LAUNCHERS = {"env", "exec", "mpiexec", "mpirun", "nice", "nohup", "srun", "stdbuf", "time", "timeout"}
_SHELLS = {"bash", "dash", "ksh", "sh", "zsh"}
_INTERPRETER = re.compile(r"python(?:[23](?:\.\d+)?)?|perl|ruby|Rscript|julia|node|tclsh|octave")
_PLAIN_OPTION = re.compile(r"-[BEIOuvxe]+")  # of an interpreter, which takes no value
_PLAIN_FILE = re.compile(r"[\w.+@%=,/-]*\w[\w.+@%=,/-]*")
_NO_MORE_TELLING = {".", "cd", "chmod", "eval", "pushd", "source"}  # after these, names and modes are others
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_OPTION = re.compile(r"-.*|[\d$].*|[A-Za-z_]\w*=.*", re.DOTALL)  # of a launcher, or its value: no program's name
_EXPANDED = re.compile(r"[$`~*?\[{]")


def syntax_error(command: str) -> str:
    """Return what bash has to say against the syntax of a command, before it runs; empty where nothing, or no bash.

    Here all patterns are allowed that `shopt -s extglob` allows: a command may switch them on.
    """
    if os.name == "nt" or not command:  # a bash of Windows may be WSL's, and take seconds to start
        return ""
    # An old bash (macOS has 3.2) does not know all that a node's knows.
    script = '((BASH_VERSINFO[0] < 4)) || exec bash -O extglob -n -c "$1"'
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}
    try:
        done = subprocess.run(
            ["bash", "-c", script, "bash", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if not done.returncode:
        return ""
    said = re.sub(r"^.*?: (?:-c: )?(?=line \d+: )", "", done.stderr.decode("utf-8", "replace").split("\n")[0])
    return f"bash does not understand it: {said}"


def script_mistakes(files: Sequence[InputFile], command: str) -> Iterator[tuple[str, Path | None]]:
    """Yield what is wrong between a command and the input files that it runs, and the file to mend: none, the command.

    That is a script with Windows line ends, a file that is run as ./name and is not executable, and a first command
    that names a file which is not there. What the text of a command does not tell for certain is left to the node.
    Raises ConfigError for an input that cannot be read.
    """
    commands = list(_commands(command))
    runs = {path: word for words in commands for word in _programs(words) if (path := _path(word))}
    read = {posixpath.normpath(words[1]) for words in commands if words[0] in _SHELLS and len(words) > 1}
    mended = "dos2unix" in command or "\\r" in command
    for file in files:
        first = b"" if file.link else read_input(file.source, _FIRST_LINE).partition(b"\n")[0]
        started = file.mode & 0o111 or file.path in runs or file.path in read
        if first.startswith(b"#!") and first.endswith(b"\r") and started and not mended:
            what = (
                f"{file.source} is a script with Windows line ends, and a node takes the \\r as part of each line's "
                f'last word: it would say "bad interpreter: {first[2:-1].decode("utf-8", "replace").strip()}^M", '
                f'"required file not found" or "\\r: command not found"; save it with LF line ends, or run '
                f"dos2unix {file.source.name}"
            )
            yield what, file.source
        if file.path in runs and not file.link and not file.mode & 0o111:
            word = runs[file.path]
            remedy = f'write command = ["chmod +x {word}", ...]' if os.name == "nt" else f"run chmod +x {file.source}"
            yield f"the command runs {word}, and {file.source} is not executable; {remedy}", file.source
    if commands and (word := _first_file(commands[0])):
        path, there = posixpath.normpath(word), [file.path for file in files]
        # a link may lead into a folder, and Python runs folders
        if not any(path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/") for name in there):
            begins = word if word == commands[0][0] else " ".join(commands[0][: commands[0].index(word) + 1])
            near = did_you_mean(path, there, none="there are no inputs")
            yield f"the command begins with {begins}, and no input has that name; {near}", None


def _commands(script: str) -> list[list[str]]:
    """Return the words of each simple command, as far as they can be told by looking at lines."""
    found: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            return found
        for command in _simple(words):
            if command[0] in _NO_MORE_TELLING or "<<" in command:
                return found
            found.append(command)
    return found


def _simple(words: list[str]) -> Iterator[list[str]]:
    """Yield the simple commands of a line, without redirections, assignments and keywords before them."""
    command: list[str] = []
    file_follows = False
    for word in [*words, ";"]:
        if set(word) <= set("();&|"):
            if command:
                yield command
            command = []
        elif set(word) <= set("<>&|"):
            file_follows = True
            command += ["<<"] if "<<" in word else []
        elif file_follows:
            file_follows = False
        elif command or not (word in _KEYWORDS or _ASSIGNMENT.fullmatch(word)):
            command.append(word)


def _programs(words: list[str]) -> Iterator[str]:
    """Yield the program of a simple command, and the one that a launcher starts where that is plain to see."""
    yield words[0]
    if words[0] in _LAUNCHERS:
        before = words[0]
        for word in words[1:]:
            if not _OPTION.fullmatch(word):
                if not before.startswith("-"):  # after an option it may be what that takes
                    yield word
                return
            before = word


def _first_file(words: list[str]) -> str:
    """Return the file of the working directory that a command runs, or gives an interpreter to run; else nothing."""
    if _path(words[0]):
        return words[0]
    if words[0] in _SHELLS or _INTERPRETER.fullmatch(words[0]):
        word = next((word for word in words[1:] if not _PLAIN_OPTION.fullmatch(word)), "-")
        plain = _PLAIN_FILE.fullmatch(word) and not word.startswith(("-", "/")) and word.split("/")[0] != ".."
        return word if plain else ""
    return ""


def _path(word: str) -> str:
    """Return the path below the working directory that a program's name with a / means; empty for all other names."""
    path = posixpath.normpath(word)
    is_plain = "/" in word and not word.startswith("/") and not _EXPANDED.search(word)
    return path if is_plain and path.split("/")[0] != ".." else ""
