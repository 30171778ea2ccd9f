"""What can go wrong, sorted by what helps.

::

    RunnerError
    +-- ConfigError               study.toml, a template or a setting is wrong    nothing was spent; mend it     exit 2
    |   +-- ValueMisfit           a value is too wide for its field
    +-- PlatformError
    |   +-- PlatformUnavailable   429 with Retry-After, 5xx on GET, time-outs     the same request again         exit 5
    |   +-- PlatformRefused       400 401 403 404, quota                          stop the study                 exit 3
    |   +-- ReleaseUnconfirmed    Stopped was not read after stop                 look at the job, stop it       exit 4
    +-- LeaseLost                 job ended, walltime, preemption                 a new lease, setup, the attempt again
    +-- ConnectionLost            refused, dropped, silent                        close, reconnect, join what runs
    +-- AttemptLost               interrupt, supervisor gone                      the same trial in a new attempt
    +-- DiskFull                  of this machine                                 make room: it goes on by itself
    +-- JobStopped                somebody else stopped the job                   stop the study                 exit 1
    +-- NoCapacity                queue or start-up deadline                      release                        exit 5
    +-- BudgetSpent               max_cost or max_time is used up                 release                        exit 5
    +-- SetupFailed               the command of [setup]                          mend it                        exit 1
    +-- HostNotProven             host key not the pinned one                     stop, release over HTTPS       exit 6
    +-- TrialFailed               the design or its run                           tell FAIL, go on
        +-- ParametersInvalid     a formula or a field that they do not fit
        +-- NodeDiskFull          no room for its inputs; the others wait         make room: it goes on by itself
        +-- CommandFailed         exit code, last lines, path of the whole log
        +-- CommandTimedOut       its process tree was killed
        +-- CommandStalled        likewise, after it had printed nothing for long
        +-- ResultMissing         file, rule and the nearest lines

The lower floors translate foreign exceptions into these; nobody above them sees paramiko's or requests' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistent_runner.printable import printable

if TYPE_CHECKING:
    from pathlib import Path


class RunnerError(Exception):
    """Everything this package raises on purpose.

    `message` says what happened and where; `remedy` says what to do next (one sentence, may be empty). Both may quote
    what others said, and are printable all the same.
    `exit_code` is what `run-study` ends with when the error ends the study.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message, self.remedy = printable(message), printable(remedy)
        super().__init__(self.message, self.remedy)

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.remedy, dict(self.__dict__))


def _rebuild(kind: type[RunnerError], message: str, remedy: str, state: dict[str, object]) -> RunnerError:
    error = kind.__new__(kind)
    Exception.__init__(error, message, remedy)
    error.__dict__.update(state)
    return error


class ConfigError(RunnerError):
    """study.toml, a template, a command line or a setting is wrong; nothing was spent.

    `file` is the file that is to be mended, where that is known; `key` the key of a lease's request that is wrong, for
    who knows in which line it stands.
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str = "", file: Path | None = None, key: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.file = file
        self.key = key


class ValueMisfit(ConfigError):
    """A parameter's value does not fit where a template has it; another design's may."""


class PlatformError(RunnerError):
    """The platform did not do what was asked."""

    exit_code = 3


class PlatformUnavailable(PlatformError):
    """No usable answer: 429, 5xx, a time-out, a broken connection. The same request may succeed later.

    `retry_after` is the wait in seconds that the platform asked for, None when it asked for none. `throttled` (429)
    is a request that was turned away before anything was done; after any other of these that is not known.
    """

    exit_code = 5

    def __init__(
        self, message: str, *, remedy: str = "", retry_after: float | None = None, throttled: bool = False
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after
        self.throttled = throttled


class PlatformRefused(PlatformError):
    """The platform said no, and would say it again: 400, 401, 403, 404, quota.

    `status` is the HTTP status code, None where none came.
    """

    exit_code = 3

    def __init__(self, message: str, *, remedy: str = "", status: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class ReleaseUnconfirmed(PlatformError):
    """Stop was asked for and `Stopped` was not read: the job may still run and cost money."""

    exit_code = 4


class LeaseLost(RunnerError):
    """The job ended, was preempted, or reached its walltime while it was needed."""


class ConnectionLost(RunnerError):
    """A node refused the connection, dropped it, or went silent."""


class AttemptLost(RunnerError):
    """A command was stopped or lost without a fault of the design: its trial gets a new attempt and is not told.

    `has_begun` is false of one that was withdrawn while it waited for its place on the node.
    """

    def __init__(self, message: str, *, remedy: str = "", has_begun: bool = True) -> None:
        super().__init__(message, remedy=remedy)
        self.has_begun = has_begun


class DiskFull(RunnerError):
    """The disk of this machine is full: nothing is told, and what runs goes on until there is room for its results.

    `needs_bytes` of the file system of `folder` are needed to go on.
    """

    def __init__(self, message: str, *, remedy: str = "", folder: Path | None = None, needs_bytes: int = 0) -> None:
        super().__init__(message, remedy=remedy)
        self.folder = folder
        self.needs_bytes = needs_bytes


class NoCapacity(RunnerError):
    """The cluster did not come within its deadline, or the platform ended the job before it ran."""

    exit_code = 5


class JobStopped(RunnerError):
    """Somebody else stopped the job: it is not replaced, since they may have had a reason."""


class BudgetSpent(RunnerError):
    """`max_cost` or `max_time` leaves nothing for another cluster."""

    exit_code = 5


class HostNotProven(RunnerError):
    """The host key is not the pinned one, or nothing proves it: nothing sensitive was sent."""

    exit_code = 6


class SetupFailed(RunnerError):
    """The command of `[setup]` failed, so no trial was started; `directory` is where it ran, below the run's own."""

    def __init__(self, message: str, *, remedy: str = "", directory: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.directory = directory


class TrialFailed(RunnerError):
    """One trial did not give its values; the study goes on."""


class ParametersInvalid(TrialFailed):
    """A formula has no value for this design, or a number does not fit where it belongs."""


class NodeDiskFull(TrialFailed):
    """The node's disk had no room for the inputs of a trial, which says nothing of its design."""


class CommandFailed(TrialFailed):
    """A command ended with a non-zero exit code.

    `exit_code_of_command` is the code (128 + n for signal n), `log` the local path of the whole log.
    """

    def __init__(self, message: str, *, remedy: str = "", exit_code_of_command: int = 1, log: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code_of_command = exit_code_of_command
        self.log = log


class CommandTimedOut(TrialFailed):
    """A command reached its time-out; its process tree was killed."""


class CommandStalled(TrialFailed):
    """A command printed nothing for too long; its process tree was killed."""


class ResultMissing(TrialFailed):
    """A file or a number that the study needs is not there, or is not a finite number."""
