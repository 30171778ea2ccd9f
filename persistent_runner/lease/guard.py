"""How a lease is kept from outliving its driver, its budget and its walltime."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta

from persistent_runner.duration import format_duration
from persistent_runner.errors import BudgetSpent, ConfigError, LeaseLost
from persistent_runner.lease.keeper import Switch
from persistent_runner.lease.meter import Cost, whole_hours

_MOST_FRUITLESS = 3
_WALLTIME_MARGIN = timedelta(minutes=5)  # so that the job ends by itself, its files saved, before the platform cuts it


@dataclass(frozen=True)
class Guard:
    """The limits of an orphaned cluster, and how its driver shows that it lives.

    `orphan_idle` is the time without a sign of life after which the cluster ends, `orphan_busy` that while a trial
    runs; `tick` the time between two looks of its dead-man's switch; `beat` that between two signs of life, which are
    given while the driver's main loop has turned within `hang`. `keeper` False leaves all of that out. `unverified`
    lets a host in that nothing proves.
    """

    keeper: bool = True
    tick: timedelta = timedelta(seconds=15)
    beat: timedelta = timedelta(seconds=20)
    hang: timedelta = timedelta(minutes=30)
    orphan_idle: timedelta = timedelta(minutes=10)
    orphan_busy: timedelta = timedelta(minutes=40)
    unverified: bool = False

    @property
    def idle_end(self) -> timedelta:
        """How long an idle cluster lives at most after its driver's last sign of life."""
        return self.orphan_idle + 3 * self.tick

    @property
    def busy_end(self) -> timedelta:
        """How long a cluster with a running trial lives at most after its driver's last sign of life."""
        return max(self.orphan_idle, self.orphan_busy) + 3 * self.tick

    @property
    def shortest(self) -> timedelta:
        """How long a cluster must be allowed to run at least, for its dead-man's switch to have looked a few times."""
        return 4 * self.tick

    def switch(self, budget: timedelta) -> Switch | None:
        """Return the numbers of a dead-man's switch whose command may run for `budget`."""
        if not self.keeper:
            return None
        busy = max(self.orphan_idle, self.orphan_busy)
        return Switch.of(tick=self.tick, idle=self.orphan_idle, busy=busy, budget=budget)


@dataclass(frozen=True)
class Budget:
    """What a driver may spend: `max_cost` with the leases before this start, `max_time` of this start.

    `earlier` is what those leases cost; start-up counts, since it may be billed.
    """

    max_cost: float | None = None
    max_time: timedelta | None = None
    earlier: Cost = field(default_factory=Cost)
    began: float = field(default_factory=time.monotonic)

    def left(self, price: float | None, now: Cost, busy: timedelta) -> tuple[timedelta | None, str]:
        """Return how much longer a cluster at `price` an hour may run, None for as long as it likes, and what ends it.

        `now` is what this start has cost; a trial that runs when `max_time` is over may go on for `busy`.
        """
        limits: list[tuple[timedelta, str]] = []
        if self.max_cost is not None and price:
            left = self.max_cost - self._spent(price, now)
            limits.append((timedelta(hours=left / price), f"by max_cost = {self.max_cost:g}"))
        if self.max_time is not None:
            over = self.max_time - timedelta(seconds=time.monotonic() - self.began)
            limits.append((over + busy, f"by max_time = {format_duration(self.max_time)}"))
        return min(limits) if limits else (None, "")

    def _spent(self, price: float | None, now: Cost) -> float:
        """Return what all leases cost by now; where one of them had no price, all count at the present one."""
        whole = self.earlier + now
        if whole.cost_with_start_up is not None:
            return whole.cost_with_start_up
        return (price or 0.0) * whole.seconds_with_start_up / 3600

    def limit(
        self, price: float | None, now: Cost, walltime: timedelta, guard: Guard, needs: timedelta = timedelta(0)
    ) -> tuple[timedelta, str]:
        """Return how long the command of a new lease may run, and what ends it.

        Raises BudgetSpent where nothing is left, or less than a trial `needs`; ConfigError for a `max_cost` that cannot
        be kept because the platform names no price.
        """
        if self.max_cost is not None and price is None:
            raise ConfigError(
                f"max_cost = {self.max_cost:g} cannot be kept: the platform names no price for this cluster.",
                remedy="Leave max_cost out; max_time and walltime limit the cost as well. Nothing was spent.",
            )
        hours = whole_hours(walltime)
        margin = min(_WALLTIME_MARGIN, hours / 10)
        limits = [(hours - margin if guard.keeper else hours, f"by its walltime of {format_duration(hours)}")]
        left, why = self.left(price, now, guard.orphan_busy)
        if left is not None:
            if left < guard.shortest + needs:
                raise BudgetSpent(
                    f"Too little is left for another cluster {why}: {self._spent(price, now):.2f} is spent.",
                    remedy="Raise it in [study], then run the same line: it goes on where it stopped.",
                )
            if guard.keeper:
                limits.append((left, why))
        return min(limits)


class Breaker:
    """Ends the search for a cluster that lasts: leases that each end without a finished trial burn money."""

    def __init__(self) -> None:
        self._fruitless = 0
        self._finished = 0

    def count_lost(self, finished: int = 0) -> None:
        """Note that a lease was lost, `finished` trials being settled by then; LeaseLost for the third fruitless one.

        Each `optimize` counts its trials from 0.
        """
        if finished not in {0, self._finished}:
            self._finished, self._fruitless = finished, 0
            return
        self._fruitless += 1
        if self._fruitless >= _MOST_FRUITLESS:
            raise LeaseLost(
                f"{_MOST_FRUITLESS} leases ended without a finished trial.",
                remedy="See the last messages and the jobs' logs, then run the same line: it goes on.",
            )
