"""The start of attempts: first on the disk here, then on the machines. What is ready ahead has the first half done."""

from __future__ import annotations

import time
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

    `no_room(running, full)` is called with one that could not be recorded here.
    """

    def __init__(
        self,
        objective: Callable[[optuna.Trial, Any], object],
        machines: Machines,
        folder: RunFolder,
        progress: Progress,
        no_room: Callable[[Running, DiskFull], None],
    ) -> None:
        self._objective = objective
        self._machines = machines
        self._folder = folder
        self._progress = progress
        self._no_room = no_room
        self.attempts = Attempts()

    def start(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        """Start the next attempt of a trial."""
        recorded = self._recorded(trial, params)
        if recorded is not None:
            self._submit(recorded)

    def start_again(self, running: Running) -> None:
        """Start the next attempt of a trial that has had one."""
        self.start(running.trial, running.params)

    def make_ready(self, trial: optuna.Trial, params: dict[str, Any]) -> None:
        """Record the next attempt of a trial, so that nothing but its start is left to do."""
        recorded = self._recorded(trial, params)
        if recorded is not None:
            self._progress.ready[trial.number] = recorded

    def start_ready(self) -> None:
        """Start what was made ready for the machine that is free; where nothing was, the first one goes there."""
        ready, where = self._progress.ready, self._machines.place("", ())
        first = next((it for it in ready.values() if it.where == where), next(iter(ready.values())))
        del ready[first.trial.number]
        if first.where == where:
            self._submit(first)
        else:
            self.attempts.stays(first.trial.number, first.attempt, where)  # it has begun nowhere
            self.start(first.trial, first.params)

    def _recorded(self, trial: optuna.Trial, params: dict[str, Any]) -> Running | None:
        """Return an attempt that this run knows of whatever happens; None where there is no room for that here."""
        planned = [ready.where for ready in self._progress.ready.values()]
        where = self._machines.place(self.attempts.place(trial.number), planned)
        attempt = self.attempts.begin(trial.number, where)
        running = Running(trial, attempt, Future(), params, where)
        try:
            self._folder.commit(kind="attempt", trial=trial.number, attempt=attempt, where=where)
        except DiskFull as full:
            self._no_room(running, full)
            return None
        crash_point("attempt-recorded")
        return running

    def _submit(self, running: Running) -> None:
        number = running.trial.number
        running.since = time.monotonic()
        try:
            running.future = self._machines.submit(
                number, running.attempt, running.where, task_of(self._objective, running.trial)
            )
        except DiskFull as full:
            self._no_room(running, full)
            return
        self._progress.running[number] = running
        self._folder.event("start", trial=number, attempt=running.attempt, params=running.params)
        crash_point("launched")
