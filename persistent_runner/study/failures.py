"""[failures]: of what class a failed trial is, and what is done about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from persistent_runner.errors import (
    CommandFailed,
    CommandStalled,
    CommandTimedOut,
    ConnectionLost,
    LeaseLost,
    NodeDiskFull,
    ParametersInvalid,
    ResultMissing,
)
from persistent_runner.remote.live_log import end_of_last_log
from persistent_runner.study.tables import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.errors import RunnerError, TrialFailed

Action = Literal["retry", "wait", "pause", "fail", "infeasible"]

_END = 1 << 16  # bytes of a log that are looked through
_KILLED = 128 + 9
_DIVIDED_BY_ZERO = 128 + 8


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int) else tuple(value) if isinstance(value, list) else value


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _one_or_several(kind: str, title: str) -> WithJsonSchema:
    several = {"type": "array", "items": {"type": kind}}
    return WithJsonSchema({"anyOf": [{"type": kind}, several], "title": title})


Patterns = Annotated[
    tuple[Annotated[str, AfterValidator(_pattern)], ...],
    Field(strict=False),
    BeforeValidator(_as_tuple),
    _one_or_several("string", "text, or list of texts"),
]
ExitCodes = Annotated[
    tuple[int, ...],
    Field(strict=False),
    BeforeValidator(_as_tuple),
    _one_or_several("integer", "whole number, or list of them"),
]


class FailureRule(Table):
    """[failures.CLASS]: how a class of failures is known, and what is done about it."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})
    pattern: Patterns = Field(default=(), examples=["Floating point exception"])
    """A regular expression, or several, of which the end of the command's log has one. It comes before what is known
    without it."""
    exit_code: ExitCodes = Field(default=(), examples=[65])
    """The exit code of the command, or several of which it has one."""
    do: Action | None = Field(default=None, examples=["infeasible"])
    """`"fail"` tells the sampler that the trial failed, `"infeasible"` that its design is not allowed. `"retry"` runs
    it again, up to three times in all; `"wait"` does so after a minute and then ever later, with one trial fewer at a
    time; `"pause"` does so too, and starts no other trial before one has ended well."""


class FailuresTable(Table):
    """[failures]: classes of failed trials. Without a rule each is known by exit code, signal and usual words."""

    parameters_invalid: FailureRule = FailureRule()
    """A formula of `[space]` has no value, or a number does not fit its field. Told FAIL."""
    mesh: FailureRule = FailureRule()
    """The mesh cannot be made, or has elements without volume. Told FAIL."""
    diverged: FailureRule = FailureRule()
    """The solver does not converge, or has met a floating point exception. Told FAIL."""
    licence: FailureRule = FailureRule()
    """No licence is to be had now. Waited for."""
    out_of_memory: FailureRule = FailureRule()
    """Killed by signal 9, or refused memory. Run again, once."""
    disk_full: FailureRule = FailureRule()
    """The node's disk is full. A pause: what fills it hits the next trial as well."""
    timed_out: FailureRule = FailureRule()
    """Longer than `[trial] timeout`. Told FAIL."""
    stalled: FailureRule = FailureRule()
    """Silent for longer than `[trial] stall`. Told FAIL."""
    unknown: FailureRule = FailureRule()
    """None of these. Told FAIL."""


_ACTIONS: dict[str, Action] = {"licence": "wait", "out_of_memory": "retry", "disk_full": "pause"}
_WORDS = {
    "out_of_memory": (
        r"out of memory|cannot allocate memory|insufficient memory|std::bad_alloc|oom-kill|\bMemoryError\b"
    ),
    "disk_full": r"no space left on device|disk quota exceeded|\bENOSPC\b",
    "licence": (
        r"\blicen[cs]\w*\b.{0,80}\b(fail\w*|error|denied|(not |un)available|could not|cannot|unable|expired|exceeded)\b"
        r"|\b(fail\w*|could not|cannot|unable to)\b.{0,40}\b(check ?out|obtain|get|acquire)\b.{0,40}\blicen[cs]"
        r"|\bFLEX(lm|net)\b.{0,40}\berror\b"
    ),
    "mesh": (
        r"negative (cell )?volume|(negative|non-?positive|zero) (or negative )?(jacobian|volume)"
        r"|failed \d+ mesh checks?|mesh(ing| generation) (has )?failed"
    ),
    "diverged": r"floating point exception|\bSIGFPE\b|\bdiverg(ed|ing|es)\b|(not|no|without) converg|too many cutbacks",
}
_KNOWN = {name: re.compile(words, re.IGNORECASE) for name, words in _WORDS.items()}


@dataclass(frozen=True)
class Verdict:
    """The class of a failure, in words, and what is done about it."""

    kind: str
    action: Action


def judge(error: TrialFailed, folder: Path, rules: FailuresTable | None) -> Verdict:
    """Return of what class a trial's failure is, whose local folder is `folder`: by the user's rules first."""
    rules = rules or FailuresTable()
    log = end_of_last_log(folder, _END)
    code = error.exit_code_of_command if isinstance(error, CommandFailed) else None
    # Inputs that found no room are no class of the user's, and what an earlier command printed says nothing of it.
    by_rule = "" if isinstance(error, NodeDiskFull) else next(_by_rules(rules, log, code), "")
    name = by_rule or _by_itself(error, log, code)
    rule: FailureRule = getattr(rules, name)
    return Verdict(name.replace("_", " "), rule.do or _ACTIONS.get(name, "fail"))


def told(error: TrialFailed, number: int, folder: Path) -> tuple[str, str]:
    """Return what is said of a trial's failure, and what to do about it; `folder` is the trial's local one."""
    # A reader of files does not know whose they are.
    message = error.message if f"trial {number}" in error.message else f"trial {number}: {error.message}"
    here = f"Its files here: {folder}" if isinstance(error, ResultMissing) else ""
    return message, "\n".join(filter(None, (error.remedy, here)))


def kind_of(error: RunnerError) -> str:
    """Return of what class a fault of the machine is that has cost an attempt."""
    if isinstance(error, LeaseLost):
        return "walltime" if "walltime" in error.message.casefold() else "preempted"
    return "connection" if isinstance(error, ConnectionLost) else "unknown"


def _by_rules(rules: FailuresTable, log: str, code: int | None) -> Iterator[str]:
    for name in type(rules).model_fields:
        rule: FailureRule = getattr(rules, name)
        if code in rule.exit_code or any(re.search(pattern, log) for pattern in rule.pattern):
            yield name


def _by_itself(error: TrialFailed, log: str, code: int | None) -> str:
    if isinstance(error, ParametersInvalid):
        return "parameters_invalid"
    if isinstance(error, NodeDiskFull):
        return "disk_full"
    if isinstance(error, CommandTimedOut):
        return "timed_out"
    if isinstance(error, CommandStalled):
        return "stalled"
    if code == _KILLED:
        return "out_of_memory"
    found = next((name for name, words in _KNOWN.items() if words.search(log)), "unknown")
    return "diverged" if found == "unknown" and code == _DIVIDED_BY_ZERO else found
