"""The start of attempts: first on the disk here, then on the machines.

What is ready ahead has the first half done, or both: then it begins there by itself when another one ends.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from persistent_runner.crash import crash_point
from persistent_runner.errors import DiskFull
from persistent_runner.study.progress import Running
from persistent_runner.study.resume import Attempts
from persistent_runner.study.returned import task_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

    from persistent_runner.study.machines import Machines
    from persistent_runner.study.progress import Progress
    from persistent_runner.study.run_folder import RunFolder


class Starts:
    """Starts attempts and keeps them in `progress.running`, those that are made ready in `progress.ready`.

    `no_room(running, full)` is called with one that could not be recorded here. `is_full(number)` says whether as many
    as may are at work beside that trial: then it waits for its place like any other when it runs again.
    """

    def __init__(
        self,
        objective: Callable[[optuna.Trial, Any], object],
        machines: Machines,
        folder: RunFolder,
        progress: Progress,
        *,
        no_room: Callable[[Running, DiskFull], None],
        is_full: Callable[[int], bool],
    ) -> None:
        self._objective = objective
        self._machines = machines
        self._folder = folder
        self._progress = progress
        self._no_room = no_room
        self._is_full = is_full
        self.attempts = Attempts()

    @property
    def unsent(self) -> list[Running]:
        """What is ready and waits here."""
        return [ready for ready in self._progress.ready.values() if not ready.is_sent]

    @property
    def sent(self) -> list[Running]:
        """What is ready and waits on the machines, each for the end of a trial that runs there."""
        return [ready for ready in self._progress.ready.values() if ready.is_sent]

    def start(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        """Start the next attempt of a trial."""
        recorded = self._recorded(trial, params)
        if recorded is not None:
            self._submit(recorded)

    def start_again(self, running: Running) -> None:
        """Start the next attempt of a trial that has had one; one that is not over is joined at once."""
        number = running.trial.number
        waits = self._is_full(number) and not self.attempts.place(number)
        (self.make_ready if waits else self.start)(running.trial, running.params)

    def make_ready(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        """Record the next attempt of a trial, so that nothing but its start is left to do."""
        recorded = self._recorded(trial, params, ahead=self._machines.queues)
        if recorded is not None:
            self._progress.ready[trial.number] = recorded

    def send_ready(self) -> None:
        """Let what is ready wait on its machine for the end of a trial that runs there."""
        for ready in self.unsent:
            behind = sum(running.where == ready.where for running in self._progress.running.values())
            if self._machines.queues and behind and self._machines.place(ready.where, ()) == ready.where:
                ready.is_sent = True
                self._submit(ready, behind)

    def start_ready(self) -> None:
        """Start what was made ready for the machine that is free; where nothing was, the first one goes there.

        One that joins goes to its own machine, or begins anew where that is gone.
        """
        unsent, where = self.unsent, self._machines.place("", ())
        first = next((ready for ready in unsent if ready.joins or ready.where == where), unsent[0])
        del self._progress.ready[first.trial.number]
        if first.where == (self._machines.place(first.where, ()) if first.joins else where):
            self._submit(first)
            return
        if not first.joins:
            self.attempts.stays(first.trial.number, first.attempt, where)  # it has begun nowhere
        self.start(first.trial, first.params)

    def wait(self, seconds: float) -> set[Future[Any]]:
        """Wait for a trial to end, and return the futures of those that have; what waited there has begun."""
        running, sent = list(self._progress.running.values()), self.sent
        futures = [each.future for each in [*running, *sent]]
        done, _ = concurrent.futures.wait(futures, seconds, concurrent.futures.FIRST_COMPLETED)
        for ready in sent:
            if ready.future in done:
                self._has_begun(ready)
        for ended in running:
            here = (ready for ready in self.sent if ready.where == ended.where)
            if ended.future in done and (waited := next(here, None)):
                self._has_begun(waited)
        return done

    def _has_begun(self, ready: Running) -> None:
        """Note that a trial which waited on the machines has begun, or will not."""
        del self._progress.ready[ready.trial.number]
        ready.since = time.monotonic()
        self._progress.running[ready.trial.number] = ready

    def withdraw(self) -> None:
        """Let nothing begin that waits on the machines; what has begun by now runs.

        Which one has begun where several waited is only the machine's to know, so all that were sent are asked for.
        """
        for sent in [*self._progress.running.values(), *self.sent]:
            if sent.is_sent:
                self._machines.withdraw(sent.trial.number)
                sent.is_sent = False
                if sent.trial.number in self._progress.ready:
                    self._has_begun(sent)

    def _recorded(self, trial: optuna.Trial, params: dict[str, Any], *, ahead: bool = False) -> Running | None:
        """Return an attempt that this run knows of whatever happens; None where there is no room for that here."""
        before = self.attempts.place(trial.number)
        where = self._machines.place(before, [ready.where for ready in self.unsent])
        if ahead and where != before:
            where = self._soonest() or where
        attempt = self.attempts.begin(trial.number, where)
        running = Running(trial, attempt, Future(), params, where, joins=bool(before) and where == before)
        try:
            self._folder.commit(kind="attempt", trial=trial.number, attempt=attempt, where=where)
        except DiskFull as full:
            self._no_room(running, full)
            return None
        crash_point("attempt-recorded")
        return running

    def _soonest(self) -> str:
        """Return the machine where the fewest wait for each that runs; empty where nothing runs."""
        there = Counter(running.where for running in self._progress.running.values())
        ahead = Counter(ready.where for ready in self._progress.ready.values())
        return min(there, key=lambda where: ahead[where] / there[where], default="")

    def _submit(self, running: Running, *behind: int) -> None:
        number = running.trial.number
        running.since = time.monotonic()
        try:
            running.future = self._machines.submit(
                number, running.attempt, running.where, task_of(self._objective, running.trial), *behind
            )
        except DiskFull as full:
            self._progress.ready.pop(number, None)
            self._no_room(running, full)
            return
        if not running.is_sent:
            self._progress.running[number] = running
        self._folder.event("start", trial=number, attempt=running.attempt, params=running.params)
        crash_point("launched")
