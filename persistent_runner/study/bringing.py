"""Outputs that come after the commit, in the background, while the next trials run where theirs was.

A few threads bring them, the main thread writes down what has come. Once all of a trial's are here its attempts are
acknowledged, so that the cluster may forget them. What is no longer to be kept goes once all is here that is.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from persistent_runner.crash import crash_point
from persistent_runner.disk import has_room, refusal_of
from persistent_runner.duration import format_duration
from persistent_runner.errors import AttemptLost, DiskFull, ResultMissing, RunnerError
from persistent_runner.remote.frames import RequestRefused
from persistent_runner.remote.local_names import LocalNames
from persistent_runner.remote.progress import Progress
from persistent_runner.remote.transfer import fetch
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.owed import Owed, delete, drop_parts, note, resume, settle, told, unlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from optuna.trial import TrialState

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.remote.frames import OutputFile
    from persistent_runner.remote.link import Link
    from persistent_runner.study.machines import Machines
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

AT_A_TIME = 2  # trials whose outputs come together: a big file has several lanes already
TURN_SECONDS = 0.5
FIRST_LOOK = 5.0  # seconds, whether this machine's disk has room
LONGEST_WAIT = 60.0


@dataclass
class _Came:
    """What has become of a trial's outputs, and what has stopped the rest."""

    owed: Owed
    arrived: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # by path: why
    stopped: Exception | None = None


@dataclass
class _Paused:
    due: float
    owed: Owed
    full: DiskFull

    def goes_on(self, now: float) -> bool:
        return not self.owed.is_wanted or (self.due <= now and has_room(self.full))


class Bringing:
    """The outputs of one start, kept by a rule; what earlier starts were owed comes too, if its machine is there.

    All but the threads within is for the main thread.
    """

    def __init__(self, folder: RunFolder, machines: Machines, keeping: Keeping | None = None) -> None:
        self._folder = folder
        self._machines = machines
        self._keeping = keeping or Keeping()
        self._todo: queue.SimpleQueue[Owed | None] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[_Came] = queue.SimpleQueue()
        self._under_way: dict[int, Owed] = {}
        self._paused: list[_Paused] = []
        self._wait = FIRST_LOOK
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        found = resume(folder, self._keeping)
        self._left, self._here = found.to_come, found.here  # what no machine here has; what may have to go
        self._surplus = list(found.surplus.values())
        self._take_up()

    def told(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None,
        constraints: dict[str, float],
        files: Sequence[OutputFile],
    ) -> dict[str, Any] | None:
        """Return what the record of a result is to say of its outputs; None where none are to come.

        `files` are those that the trial has left; of one that failed nobody has looked.
        """
        patterns = () if files or state.name != "FAIL" else self._keeping.patterns
        if not (files or patterns) or not self._keeping.wants(number, state, values, constraints):
            return None
        return told(files, patterns, may_drop=self._keeping.may_drop)

    def take(
        self, number: int, state: TrialState, values: Sequence[float] | None, constraints: dict[str, float]
    ) -> None:
        """See what is no longer to be kept, now that a trial has this result."""
        for other in self._keeping.take(number, state, values, constraints):
            if other in self._under_way:
                self._under_way[other].is_wanted = False
            self._surplus += filter(None, (self._here.pop(other, None), self._left.pop(other, None)))

    def drop(self, owed: Owed) -> None:
        """Delete what a metric's function may have needed here of outputs that are not to be kept."""
        if owed.files:
            with contextlib.suppress(OSError):  # of a program that has them open, or a disk that is ill
                unlink(self._folder, owed)

    def begin(self, owed: Owed) -> None:
        """Bring the outputs of a trial in the background."""
        self._under_way[owed.number] = owed
        if len(self._threads) < AT_A_TIME:
            self._threads.append(threading.Thread(target=self._work, name="outputs", daemon=True))
            self._threads[-1].start()
        self._todo.put(owed)

    @property
    def is_behind(self) -> bool:
        """Whether so many are on their way that another trial's would only fill its machine's disk."""
        return len(self._under_way) - len(self._paused) > 2 * max(AT_A_TIME, self._machines.capacity())

    def turn(self) -> None:
        """Write down what has come, delete what has to go, and go on with what waited for room here."""
        while not self._came.empty():
            self._settle(self._came.get())
        if self._surplus and not self._left and not any(owed.is_wanted for owed in self._under_way.values()):
            for owed in self._surplus:  # until then it is the best that is here
                delete(self._folder, owed)
            self._surplus.clear()
        now = time.monotonic()
        for paused in [each for each in self._paused if each.goes_on(now)]:
            self._paused.remove(paused)
            self._todo.put(paused.owed)

    def finish(self, interrupts: Interrupts, on_turn: Callable[[], None]) -> None:
        """Wait for what is on its way, as long as the cluster may idle; a second interrupt leaves it to the next start.

        `on_turn` is called at least twice a second.
        """
        self._take_up()
        seconds = min(self._machines.most_idle, self._machines.left())
        until = time.monotonic() + seconds
        self.turn()
        if self._under_way:
            size = sum(output.size_bytes for owed in self._under_way.values() for output in owed.to_come)
            log.info(
                "Outputs of %s are on their way%s and waited for%s. Interrupt twice to leave them.",
                _trials(sorted(self._under_way)),
                f" ({size / 1e6:.1f} MB)" if size else "",  # of a trial that failed nobody has looked
                f", at most {format_duration(round(seconds))}" if math.isfinite(seconds) else "",
            )
        has_said = False
        while self._under_way and interrupts.count < 2 and time.monotonic() < until:
            if interrupts.count and not has_said:
                has_said = True
                log.warning("Interrupted: the outputs on their way may still come. Interrupt again to leave them.")
            self._await()
            self.turn()
            on_turn()
        self.close()
        if left := self._left | self._under_way:
            for owed in left.values():
                drop_parts(self._folder, owed)  # the threads within may not come to it before the end
            log.warning(
                "Outputs of %s are not here yet: what the platform saves of them at their cluster's end, the same line "
                "fetches.",
                _trials(sorted(left)),
            )

    def _await(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._settle(self._came.get(timeout=TURN_SECONDS))

    def close(self) -> None:
        """Bring nothing more."""
        self._is_closed = True
        for _ in self._threads:
            self._todo.put(None)

    def _take_up(self) -> None:
        """Begin with what is left and whose machine is there."""
        for owed in [each for each in self._left.values() if self._machines.link(each.where) is not None]:
            del self._left[owed.number]
            self.begin(owed)

    # -- what has come

    def _settle(self, came: _Came) -> None:
        owed = came.owed
        if came.stopped is not None and not isinstance(came.stopped, RunnerError):
            raise came.stopped
        try:
            self._note(came)
        except DiskFull as full:
            if not isinstance(came.stopped, DiskFull):
                came.stopped = full
        if not owed.is_wanted:
            self._surplus.append(self._under_way.pop(owed.number))
            self._acknowledge(owed)
        elif isinstance(came.stopped, DiskFull):
            self._pause(owed, came.stopped)
        elif came.stopped is not None:
            log.warning("trial %d: its outputs do not come now: %s", owed.number, came.stopped)
            self._left[owed.number] = self._under_way.pop(owed.number)
        else:
            self._wait = FIRST_LOOK

    def _note(self, came: _Came) -> None:
        """Record what has come, and that it is all; DiskFull where the journal finds no room."""
        owed = came.owed
        if not owed.is_wanted:
            return
        note(self._folder, owed, came.arrived, came.missing)
        if came.stopped is None:
            if not came.missing:
                self._acknowledge(owed)
            settle(self._folder, owed)
            del self._under_way[owed.number]
            if self._keeping.may_drop:
                self._here[owed.number] = owed

    def _acknowledge(self, owed: Owed) -> None:
        """Let the cluster forget a trial, of which all is here; what a failed one left there may say more."""
        if not owed.patterns:
            for attempt in range(1, owed.attempt + 1):
                self._machines.acknowledge(owed.number, attempt)
            crash_point("acknowledged")

    def _pause(self, owed: Owed, full: DiskFull) -> None:
        if not self._paused:
            log.warning("%s\nThe outputs of trial %d, and what follows, come when there is room.", full, owed.number)
        self._paused.append(_Paused(time.monotonic() + self._wait, owed, full))
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    # -- in the threads

    def _work(self) -> None:
        while (owed := self._todo.get()) is not None:
            self._came.put(self._brought(owed))

    def _brought(self, owed: Owed) -> _Came:
        """Bring what is to come of a trial, as far as that goes."""
        came, size, place = _Came(owed), 0, owed.place(self._folder)
        try:
            link = self._link(owed)
            for output in self._listed(link, owed):
                self._link(owed)
                size = output.size_bytes
                try:
                    bring(link, owed, output, place)
                except ResultMissing as error:
                    came.missing[output.path] = error.message
                except RequestRefused as error:  # its disk may be ill; the others are there
                    came.stopped = came.stopped or error
                else:
                    came.arrived.append(output.path)
        except OSError as error:
            came.stopped = refusal_of(error, place, whose=f"trial {owed.number}: ", needs_bytes=size)
        except Exception as error:  # noqa: BLE001 - the main thread raises what is none of ours
            came.stopped = error
        return came

    def _link(self, owed: Owed) -> Link:
        """Return the way to where outputs are; AttemptLost where there is none, or they are waited for no more."""
        link = self._machines.link(owed.where)
        if link is None or self._is_closed or not owed.is_wanted:
            raise AttemptLost("their machine is none of this cluster's")
        return link

    def _listed(self, link: Link, owed: Owed) -> Iterator[OutputFile]:
        """Yield what is to come; of a trial that failed, what is there and can be kept here."""
        yield from owed.to_come
        if owed.patterns:
            names = LocalNames()
            for output in link.outputs(owed.name, owed.patterns).result():
                if output.path not in owed.done and not (output.problem or names.problem(output.path)):
                    yield output


def bring(link: Link, owed: Owed, output: OutputFile, place: Path) -> None:
    """Bring one output into a trial's folder, unless it is there; raises what `fetch` does."""
    target = place.joinpath(*output.path.split("/"))
    if not is_here(target, output):
        fetch(link, owed.name, output, target, Progress(output.path, output.size_bytes, f"trial {owed.number}"))


def is_here(target: Path, output: OutputFile) -> bool:
    """Return whether a file here is the one that is meant."""
    try:
        if target.stat().st_size != output.size_bytes:
            return False
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == output.sha256
    except OSError:
        return False


def _trials(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (" and more" if len(numbers) > 8 else "")
    return f"trial{'s' if len(numbers) > 1 else ''} {shown}"
