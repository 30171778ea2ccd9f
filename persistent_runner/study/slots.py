"""Whether there is a place for one more trial, and whether one more is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

    from persistent_runner.study.ahead import Ahead
    from persistent_runner.study.machines import Machines
    from persistent_runner.study.outbox import Outbox
    from persistent_runner.study.pilot import Pilot
    from persistent_runner.study.progress import Limits, Progress
    from persistent_runner.study.standby import Standby
    from persistent_runner.study.tenure import Tenure


class Slots:
    """The places of one start. `asked` counts the trials that were asked for; `is_ending` says that no more may be.

    `is_behind` says that none may start until outputs have come.
    """

    def __init__(
        self,
        study: optuna.Study,
        progress: Progress,
        limits: Limits,
        machines: Machines,
        *,
        standby: Standby,
        outbox: Outbox,
        tenure: Tenure,
        ahead: Ahead,
        pilot: Pilot | None,
        is_ending: Callable[[], bool],
        is_behind: Callable[[], bool],
    ) -> None:
        self._study = study
        self._progress = progress
        self._limits = limits
        self._machines = machines
        self._standby = standby
        self._outbox = outbox
        self._tenure = tenure
        self._ahead = ahead
        self._pilot = pilot
        self._is_ending = is_ending
        self._is_behind = is_behind
        self.asked = 0

    @property
    def pilot(self) -> Pilot | None:
        """What judges the first trial, which runs alone until one is complete."""
        return None if self._progress.complete else self._pilot

    @property
    def at_work(self) -> int:
        """The trials of ours that run, or wait to run again."""
        return len(self._progress.running) + len(self._standby)

    def is_free(self, ended: int = 0) -> bool:
        """Whether a trial may start now, `ended` being how many of those that run have ended."""
        well = not self._is_ending() and not self._outbox and self._tenure.has_time and not self._is_behind()
        return well and self.at_work - ended < self._standby.room(self._most)

    @property
    def _most(self) -> int:
        return 1 if self.pilot else self._machines.capacity()

    def is_full(self, number: int) -> bool:
        """Whether as many trials are at work as may be, beside this one: one that waited has begun in its place."""
        return self.at_work - (number in self._progress.running) >= self._most

    @property
    def may_be_ahead(self) -> bool:
        """Whether trials may be chosen and sent that begin later: all is well, and their cluster outlives them."""
        ahead = max(len(self._progress.ready), self._ahead.count)
        rounds = 2 + ahead // max(1, self._machines.capacity())
        well = self.pilot is None and not self._is_ending() and not self._outbox and self._standby.is_calm
        return well and self._tenure.has_time_for(rounds)

    @property
    def may_ask(self) -> bool:
        """Whether a trial may be asked for: for a place, or to be ready for the next one."""
        if not self.is_free():
            running, more = len(self._progress.running), self._ahead.count if self.may_be_ahead else 0
            if len(self._progress.ready) >= more or not self.is_free(min(more, running)):
                return False
        return self.is_more_wanted

    @property
    def needs_another_cluster(self) -> bool:
        """Whether the present one is lost, or too near its end for what is still to run."""
        if self._is_ending() or self._tenure.lost:
            return not self._is_ending()
        if self._tenure.has_time or not self._standby.room(1):
            return False
        return bool(self._progress.ready) or self.is_more_wanted

    @property
    def is_more_wanted(self) -> bool:
        """Whether the study is to have more trials than it has, and than are under way."""
        more, progress = self._limits.more, self._progress
        counted = (more is None or self.asked < more) and self._outbox.stored(lambda: progress.count(self._study))
        under_way = self.at_work + len(progress.ready)
        return counted and (more is not None or progress.settled + progress.others + under_way < progress.total)
