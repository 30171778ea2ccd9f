"""What an objective sees of its attempt: push, run, pull, and the Fabric connection."""

from __future__ import annotations

import contextlib
import difflib
import glob
import logging
import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistent_runner.disk import refusal_of
from persistent_runner.duration import parse_duration
from persistent_runner.errors import (
    AttemptLost,
    ConnectionLost,
    HostNotProven,
    LeaseLost,
    NodeDiskFull,
    ResultMissing,
    RunnerError,
)
from persistent_runner.inputs import SharedFile
from persistent_runner.remote import agent, live_log, transfer
from persistent_runner.remote.explain import LOST, failure_of
from persistent_runner.remote.frames import NoRoom, RequestRefused
from persistent_runner.remote.habits import Habits
from persistent_runner.remote.local_names import LocalNames
from persistent_runner.remote.progress import Progress
from persistent_runner.remote.pushed import Pushed, as_json, command_hash, in_frame, pushed
from persistent_runner.render import Delimiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from fabric import Connection

    from persistent_runner.remote.frames import Exit, OutputFile
    from persistent_runner.remote.link import Link

log = logging.getLogger(__name__)

_LOG_MOST = 64 << 20  # bytes of a log that are brought here
_MACHINE_FAULTS = (LeaseLost, ConnectionLost, HostNotProven, AttemptLost)


@dataclass(frozen=True)
class CommandResult:
    """How a command ended: its exit code, run time, peak memory of one process, and the local copy of its log."""

    exit_code: int
    seconds: float
    peak_bytes: int
    log: Path

    @property
    def output(self) -> str:
        """What the command printed, both streams."""
        return self.log.read_text("utf-8", "replace")


class WorkDir:
    """One attempt's working directory on the node and its folder here.

    Paths to push are relative to `inputs_root`, paths to pull to the working directory. Once it has met a fault of the
    machine it is dead: every later call raises the same. With `among` its commands wait on the node until fewer than
    that run there.
    """

    def __init__(
        self,
        link: Link,
        *,
        attempt: str,
        number: int,
        folder: Path,
        inputs_root: Path,
        cores: int,
        env: Mapping[str, str],
        setup: str | None = None,
        delimiters: Delimiters | None = None,
        habits: Habits | None = None,
        label: str = "",
        among: int | None = None,
    ) -> None:
        self.attempt = attempt
        self.number = number
        self._label = label or f"trial {number} (attempt {attempt})"
        self.folder = folder
        self.cores = cores
        self._link = link
        self._inputs_root = inputs_root
        self._env = dict(env) | {"TRIAL_NUMBER": str(number)}
        self._setup = setup
        self._delimiters = delimiters or Delimiters()
        self._habits = habits or Habits()
        self._parameters: dict[str, Any] = {}
        self._sent: set[str] = {"parameters.json"}
        self._sent_bytes = 0  # of the inputs of the last command
        self._pushed: Pushed = {}
        self._manifest: dict[str, OutputFile] = {}  # of the last command: what its `outputs` named
        self._listed: frozenset[str] = frozenset()
        self._names = LocalNames()
        self.seconds = 0.0  # run time of its commands so far, by the node
        self.waited = 0.0  # seconds that they waited for their places, and for the way there and back
        self._among, self._is_withdrawn = among, False
        self._seq = 0
        self._running: int | None = None
        self._dead: Exception | None = None
        self._live = live_log.LiveLog(folder, 0)
        self._progress = Progress("", 0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from None
        live_log.forget(folder)

    @property
    def last_line(self) -> str:
        """What is to be seen of it now: how far a big file is on its way, else the last line of its commands.

        That is about a second old, and empty before there is one.
        """
        return self._progress.text or self._live.last_line

    @property
    def connection(self) -> Connection:
        """The Fabric connection to the node, for whatever the three verbs do not cover."""
        self.check()
        connection = self._link.connection
        if connection is None:
            raise ConnectionLost(f"attempt {self.attempt}: there is no connection now")
        self._manifest, self._listed = {}, frozenset()  # whoever has it may change what the exit told
        return connection

    def push(self, /, *inputs: str, **parameters: object) -> None:
        """Put files and folders into the working directory; `*.j2` are rendered with the parameters.

        A folder's contents land in the working directory. `parameters.json` holds all parameters pushed so far. Raises
        ConfigError for an input that is missing or does not render. Files travel with the next `run`; big ones go to
        the node once, and this directory gets a copy that is made there.
        """
        self.check()
        self._parameters |= parameters
        self._pushed |= pushed(self._inputs_root, inputs, self._parameters, self._delimiters)

    def run(
        self,
        command: str,
        *,
        timeout: timedelta | str | None = None,
        stall: timedelta | str | None = None,
        outputs: Sequence[str] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """Run a command in the working directory and wait for its end.

        Raises CommandFailed for a non-zero exit, CommandTimedOut when `timeout` passed and its process tree was killed,
        CommandStalled when it had printed nothing for as long as `stall`.
        `outputs` are patterns of files whose checksums are taken at its end; small ones travel with the answer, and so
        do, without `outputs`, those that earlier trials have pulled after this command.
        `on_line` gets each line, at most 0.3 s and the way here after it is printed, in the calling thread; what it
        raises ends the process tree and is raised from here.
        """
        self.check()
        if self._seq == 0 and "parameters.json" not in self._pushed:
            self.push()
        limit, silence = (None if time is None else parse_duration(time).total_seconds() for time in (timeout, stall))
        seq, self._seq = self._seq, self._seq + 1
        with self._machine():
            if "parameters.json" in self._pushed:  # for people, beside the results
                (self.folder / "parameters.json").write_bytes(as_json(self._parameters))
        files = [(path, data, mode) for path, (data, mode) in sorted(self._pushed.items())]
        self._sent |= self._pushed.keys()
        self._sent_bytes = sum(data.size_bytes if isinstance(data, SharedFile) else len(data) for _, data, _ in files)
        self._pushed = {}
        self._running = seq
        try:
            with self._machine():
                ended = self._wait(
                    seq,
                    on_line,
                    command_hash=command_hash(command, outputs, files),
                    script=command,
                    timeout=limit,
                    stall=silence,
                    files=files,
                    outputs=outputs or self._habits.after(seq),
                )
        finally:
            self._running = None
        self._manifest = {output.path: output for output in ended.manifest or ()}
        self._listed = frozenset(() if ended.manifest is None else outputs)
        return self._result(command, seq, ended, limit, silence)

    def pull(self, name: str) -> Path:
        """Bring one file here and return its path below `folder`; ResultMissing when it is not there."""
        output = self.find(name)
        self._habits.pulled(self._seq - 1, output)
        with self._machine():
            return self._bring(output)

    def pull_all(self, pattern: str) -> list[Path]:
        """Bring every file that a pattern (`*`, `?`, `**/`) names; with a warning where one cannot be kept."""
        found = self.find_all(pattern)
        with self._machine():
            return [self._bring(output) for output in found]

    def find(self, name: str) -> OutputFile:
        """Return what `pull` would bring; ResultMissing when it is not there, or cannot be kept."""
        with self._machine():
            output = self._manifest.get(name) or next(iter(self._list([glob.escape(name)])), None)
            if output is None:
                raise self._nothing_named(name)
            if problem := output.problem or self._names.problem(output.path):
                raise ResultMissing(
                    f"{self._label}: {output.path!r} is not pulled: it is {problem}",
                    remedy="Let the command write a regular file, under a name that only it has here.",
                )
            return output

    def find_all(self, pattern: str) -> list[OutputFile]:
        """Return what `pull_all` would bring; with a warning where one cannot be kept."""
        found = []
        with self._machine():
            if pattern in self._listed:  # the exit told it already
                named = agent.pattern(pattern)
                outputs: Iterable[OutputFile] = [output for path, output in self._manifest.items() if named.match(path)]
            else:
                outputs = self._list([pattern])
            for output in outputs:
                if problem := output.problem or self._names.problem(output.path):
                    log.warning("%s: %r is not pulled: it is %s", self._label, output.path, problem)
                else:
                    found.append(output)
        return found

    def left(self) -> dict[str, int]:
        """Return name and size in bytes of each file that is there now and was not pushed."""
        with self._machine():
            there = self._list(["**/*"], checksums=False)
        return {found.path: found.size_bytes for found in there if found.path not in self._sent}

    def stop(self) -> None:
        """End the running command's process tree; this attempt counts as lost. Called from another thread."""
        self._dead = self._dead or AttemptLost(f"{self._label} was stopped")
        if self._running is not None:
            self._link.kill(self.attempt, self._running)

    def withdraw(self) -> None:
        """Let a command that waits for its place never begin: AttemptLost. Called from another thread."""
        self._is_withdrawn = True
        if self._running is not None:
            self._link.withdraw(self.attempt, self._running)

    def check(self) -> None:
        """Raise the fault of the machine that this directory has met, if any."""
        if self._dead is not None:
            raise self._dead

    # -- within

    @contextlib.contextmanager
    def _machine(self) -> Iterator[None]:
        """Within: a fault of the machine makes this directory dead; a dead one raises what killed it."""
        self.check()
        try:
            yield
        except _MACHINE_FAULTS as error:
            self._dead = self._dead or error
            raise self._dead from None
        except NoRoom as error:
            self._link.drop(self.attempt)  # half of its inputs would take the room that the next try needs
            size = f"{self._sent_bytes / 1e6:.1f} MB"
            self._dead = NodeDiskFull(f"{self._label}: there is no room for its inputs of {size}: {error.message}")
            raise self._dead from None
        except OSError as error:  # of this machine: the node's own come as ours
            self._dead = self._refusal(error)
            raise self._dead from None

    def _refusal(self, error: OSError, needs_bytes: int = 0) -> RunnerError:
        return refusal_of(error, self.folder, whose=f"{self._label}: ", needs_bytes=needs_bytes)

    def _wait(
        self,
        seq: int,
        on_line: Callable[[str], None] | None,
        *,
        files: list[tuple[str, bytes | SharedFile, int]],
        **command: Any,
    ) -> Exit:
        along, big = in_frame(files)
        for path, data, mode in big:
            shown = self._shown(path, len(data))
            transfer.send(self._link, f"{self.attempt}/{path}", data, mode, shown, before=(self.attempt, seq))
        ended = self._once(seq, on_line, files=along, **command)
        if ended.state == "absent":  # the first trial that needs them, or the node has lost them
            shared = [data for _, data, _ in files if isinstance(data, SharedFile)]
            transfer.share(self._link, shared, self.check, self._shown)
            ended = self._once(seq, on_line, files=along, **command)
        if ended.state == "withdrawn":
            raise AttemptLost(f"{self._label} was withdrawn before it began", has_begun=False)
        if ended.state in LOST:
            self._live.keep(ended)
            raise AttemptLost(f"{self._label} {LOST[ended.state]}")
        return ended

    def _once(
        self,
        seq: int,
        on_line: Callable[[str], None] | None,
        *,
        files: list[tuple[str, bytes | SharedFile, int]],
        **command: Any,
    ) -> Exit:
        """Start or join a command and wait for its end, or for the word that it cannot start."""
        self.check()
        sent = time.monotonic()
        self._live = live_log.LiveLog(self.folder, seq)
        printed: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        if self._is_withdrawn:  # before it was sent
            self._link.withdraw(self.attempt, seq)
        started = self._link.start(
            self.attempt,
            seq,
            env=self._env,
            cores=self.cores,
            setup=self._setup,
            files=files,
            on_log=lambda offset, data: printed.put((offset, data)),
            seldom=on_line is None,
            among=self._among,
            **command,
        )
        if self._dead is not None:  # stopped while the request was on its way
            self._link.kill(self.attempt, seq)
        started.add_done_callback(lambda _: printed.put(None))
        try:
            live_log.follow(self._live, printed, on_line)
        except BaseException:
            self._link.kill(self.attempt, seq)
            self._live.keep(started.result())  # its tree is gone
            raise
        ended = started.result()
        self.waited += max(0.0, time.monotonic() - sent - ended.seconds)
        return ended

    def _result(self, command: str, seq: int, ended: Exit, limit: float | None, silence: float | None) -> CommandResult:
        self.seconds += ended.seconds
        with self._machine():
            path = self._keep_log(seq, ended)
        if ended.state == "done" and ended.code == 0:
            return CommandResult(ended.code, ended.seconds, ended.peak_bytes, path)
        raise failure_of(self._label, command, ended, path, timeout=limit, stall=silence)

    def _keep_log(self, seq: int, ended: Exit) -> Path:
        path = live_log.whole_log(self.folder, seq)
        self._live.end(ended)
        if len(ended.log_tail) < ended.log_bytes <= _LOG_MOST:
            for output in self._list([f".attempt/{seq}/log"]):
                self._fetch(output, path)
        else:
            live_log.keep_end(path, ended)
        self._live.remove()
        return path

    def _list(self, patterns: Sequence[str], *, checksums: bool = True) -> tuple[OutputFile, ...]:
        return self._link.outputs(self.attempt, patterns, checksums=checksums).result()

    def _nothing_named(self, name: str) -> ResultMissing:
        there = [found.path for found in self._list(["**/*"], checksums=False)]
        near = difflib.get_close_matches(name, there, 3, 0.5) or there[:5]
        seen = f"there are: {', '.join(near)}" if near else "the working directory is empty"
        return ResultMissing(
            f"{self._label}: there is no file {name}; {seen}",
            remedy=f"The log of the command: {live_log.whole_log(self.folder, max(0, self._seq - 1))}",
        )

    def _bring(self, output: OutputFile) -> Path:
        target = self.folder.joinpath(*output.path.split("/"))
        try:
            self._fetch(output, target)
        except RequestRefused as error:
            raise ResultMissing(f"{self._label}: {output.path} cannot be read: {error.message}") from None
        return target

    def _fetch(self, output: OutputFile, target: Path) -> None:
        try:
            transfer.fetch(self._link, self.attempt, output, target, self._shown(output.path, output.size_bytes))
        except OSError as error:
            self._dead = self._refusal(error, output.size_bytes)
            raise self._dead from None

    def _shown(self, name: str, size_bytes: int) -> Progress:
        self._progress = Progress(name, size_bytes, self._label)
        return self._progress
