"""What the end of a command says, in words, with what its log adds to it."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from persistent_runner.duration import format_duration
from persistent_runner.errors import CommandFailed, CommandStalled, CommandTimedOut
from persistent_runner.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.remote.frames import Exit

_LAST_LINES = 10  # of a log that are shown
_LONGEST = 200  # characters of a line of a command that is shown whole
_LINES = 20  # at the end of a log, in which a shell says what it could not run
_FAILED_LINE = re.compile(r"^persistent_runner: line (\d+) failed: (.*)$\n?", re.MULTILINE)  # see agent.py
_QUOTES = "'\"\u2018\u2019"  # the last two are what GNU programs write in UTF-8
_LIBRARY = re.compile(r"error while loading shared libraries: ([^\s:]+)")
_NO_FILE = re.compile(
    rf"(?:^|/)(?:ba|da|k|z)?sh: (?:\d+: )?(?:can(?:no|')t open )?[{_QUOTES}]?([^\s:/{_QUOTES}]+)[{_QUOTES}]?: "
    "No such file"
)
_INTERPRETER = re.compile(r"([^\s:]+): (?:cannot execute: required file not found|.*bad interpreter)")
_RETURN = re.compile(rf"(?:\r|\\r|\^M)[{_QUOTES}]?: ")
_NOT_RUN = rf"(?:^|[:\s])[{_QUOTES}]?([^\s:{_QUOTES}]+)[{_QUOTES}]?: (?:%s)\s*$"
_NOT_FOUND = re.compile(_NOT_RUN % "command not found|not found|No such file or directory")
_FORBIDDEN = re.compile(_NOT_RUN % "Permission denied")
_FOREIGN = re.compile(_NOT_RUN % "cannot execute binary file.*|Exec format error")
_WINDOWS = (
    "a script's first line names an interpreter that the node does not have, as it does with Windows line ends",
    "Save the script with LF line ends (dos2unix), or name an interpreter that is there.",
)


LOST = {
    "killed": "was stopped",
    "lost": "was lost: its supervisor ended without a record, or the node was restarted",
    "mismatch": "was started before with another command or other inputs",
    "absent": "was lost: its big inputs vanished from the node",
}
"""What became of a command whose exit says nothing of its design, by the state in that."""


def failure_of(
    label: str, command: str, ended: Exit, log: Path, *, timeout: float | None, stall: float | None
) -> CommandFailed | CommandTimedOut | CommandStalled:
    """Return what stands for a command that did not end well; `log` is its whole log, the times are in seconds."""
    step, told = failed_step(command, ended.log_tail)
    what, remedy = f"{label}: {step}", f"The whole log: {log}"
    if ended.state == "timeout":
        limit = format_duration(timeout or 0)
        return CommandTimedOut(
            f"{what} passed its time-out of {limit} and was killed; its last lines:\n{told}", remedy=remedy
        )
    if ended.state == "stalled":
        silence = format_duration(stall or 0)
        return CommandStalled(
            f"{what} printed nothing for {silence} and was killed; its last lines:\n{told}", remedy=remedy
        )
    meaning, help_for_it = explained(ended.code, ended.log_tail)
    return CommandFailed(
        f"{what} ended with exit code {ended.code}{meaning} after {format_duration(ended.seconds)}; "
        f"its last lines:\n{told}",
        remedy=f"{help_for_it} {remedy}".strip(),
        exit_code_of_command=ended.code,
        log=str(log),
    )


def explained(code: int, log: bytes) -> tuple[str, str]:
    """Return what an exit code stands for, such as ` (127: ...)`, and what to do; empty where nobody can say.

    `log` is the end of what the command printed: there a shell names what it could not run.
    """
    what, remedy = _meaning(code, log.decode("utf-8", "replace").split("\n")[-_LINES:])
    return f" ({code}: {printable(what)})" if what else "", remedy


def failed_step(command: str, log: bytes) -> tuple[str, str]:
    """Return the line of a command that failed, as bash said it, and the last lines of its log, for a message.

    Where nobody said which one it was, it is the command's first line.
    """
    text = printable(log)
    said = list(_FAILED_LINE.finditer(text))
    if said:
        number, part, lines = int(said[-1][1]), said[-1][2].strip(), command.splitlines()
        whole = lines[number - 1].strip() if 0 < number <= len(lines) else ""
        # bash names the last command of a pipe, whichever failed
        step = f"`{whole if part in whole and '|' in whole and len(whole) <= _LONGEST else part}`"
        if "\n" in command.strip():
            step += f" (line {number} of the command)"
        text = text[: said[-1].start()] + text[said[-1].end() :]
    else:
        step = f"`{next(iter(command.strip().splitlines()), '')}`"
    return step, last_lines(text)


def last_lines(text: str) -> str:
    """Return the end of a log as it is shown in a message."""
    lines = [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


def _meaning(code: int, lines: list[str]) -> tuple[str, str]:
    if code == 141:
        return "a pipe whose reader ended first", ""
    if code == 137:
        return "killed by signal 9, likely out of memory", ""
    if code == 127:
        return _not_found(lines)
    if code == 126:
        return _not_executed(lines)
    if 128 < code < 160:
        try:
            return f"killed by {signal.Signals(code - 128).name}", ""
        except ValueError:
            pass
    return "", ""


def _not_found(lines: list[str]) -> tuple[str, str]:
    if library := _last(_LIBRARY, lines):
        return f"the shared library {library} was not found", (
            "Load the module that brings it, in the command itself, or set LD_LIBRARY_PATH in [cluster] env."
        )
    if _last(_INTERPRETER, lines) or any(_RETURN.search(line) for line in lines):
        return _WINDOWS
    if script := _last(_NO_FILE, lines):
        return f"there is no file {script} in the working directory", (
            "It must be among the inputs or made by the command; look at how its name is spelt."
        )
    word = _last(_NOT_FOUND, lines)
    if "/" in word:
        return f"{word} was not found, or the interpreter that its first line names", (
            "It must be among the inputs or made by the command; save a script with LF line ends (dos2unix)."
        )
    if word:
        return f'the command "{word}" was not found', (
            f"Load or install it in the command or in [setup]; a file of the working directory is run as ./{word}."
        )
    return "a command was not found", ""


def _not_executed(lines: list[str]) -> tuple[str, str]:
    if _last(_INTERPRETER, lines):
        return _WINDOWS
    if word := _last(_FOREIGN, lines):
        return f"{word} is no program for this machine", "Build it for the node's system, or name its interpreter."
    if word := _last(_FORBIDDEN, lines):
        return f"{word} is not executable", f"Make it so where it lies: chmod +x {word.rsplit('/', 1)[-1]}."
    return "a command could not be executed", ""


def _last(pattern: re.Pattern[str], lines: list[str]) -> str:
    return next((found[1] for line in reversed(lines) if (found := pattern.search(line))), "")
