"""Which order to let something go wrong counts for what, and how often."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from persistent_runner.errors import ConfigError
from persistent_runner.local_platform.fault_kinds import Action, Fault, parse

if TYPE_CHECKING:
    from collections.abc import Callable


class Named(Protocol):
    """A job, as far as an order must know it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def name(self) -> str:
        """Its name."""


@dataclass(frozen=True)
class Draft:
    """A job that is about to be created."""

    name: str
    id: str = ""


@dataclass(eq=False)
class Order:
    """An order that is in force: `left` is how often it still counts, `gone` is set when it is removed."""

    id: str
    fault: Fault
    left: int | None
    chance: Random
    gone: threading.Event = field(default_factory=threading.Event)


Kind = TypeVar("Kind", bound=Fault)


class Faults:
    """The orders in force, the oldest first. Thread-safe.

    `perform` carries out an Action on the jobs that execute and returns how many they were.
    """

    def __init__(self, perform: Callable[[Action], int] = lambda _: 0) -> None:
        self.perform = perform
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self._spent: list[Order] = []
        self._ids = itertools.count(1)

    def add(self, what: str, **options: Any) -> str:
        """Order a fault; return the order's id. Raises ConfigError; an Action raises it where no job executes."""
        return self.order({"what": what, **options})

    def order(self, order: object) -> str:
        """Order the fault that an object means, as `add` does."""
        fault = parse(order)
        with self._lock:
            order_id = f"fault-{next(self._ids)}"
        if isinstance(fault, Action) and fault.after is None:
            if not self.perform(fault):
                raise ConfigError(
                    f"{fault.what}: no job that is meant executes now",
                    remedy="Give `after` for jobs to come: seconds after Executing.",
                )
            return order_id
        with self._lock:
            # not for secrets: the same seed gives the same faults
            self._orders.append(Order(order_id, fault, fault.times, Random(fault.seed)))  # noqa: S311
        return order_id

    def remove(self, order_id: str) -> bool:
        """Withdraw an order and end what it does; return whether it was there."""
        with self._lock:
            return self._drop([order for order in self._orders + self._spent if order.id == order_id])

    def clear(self) -> None:
        """Withdraw all orders and end what they do."""
        with self._lock:
            self._drop(self._orders + self._spent)

    def _drop(self, orders: list[Order]) -> bool:
        for order in orders:
            (self._orders if order in self._orders else self._spent).remove(order)
            order.gone.set()
        return bool(orders)

    def listed(self) -> list[dict[str, Any]]:
        """Return the orders in force: what was ordered, with `id` and `left`."""
        with self._lock:
            return [
                {**order.fault.model_dump(mode="json", exclude_defaults=True)}
                | {"id": order.id, "what": order.fault.what, "left": order.left}
                for order in self._orders
            ]

    def take(self, kind: type[Kind], job: Named | None, fits: Callable[[Kind], bool] = lambda _: True) -> Order | None:
        """Return the first order of this kind that counts now for this job, and count it; None where there is none."""
        with self._lock:
            for order in self._orders:
                if isinstance(order.fault, kind) and meant(order.fault, job) and fits(order.fault):
                    if order.chance.random() >= order.fault.probability:
                        continue
                    self._count(order)
                    return order
        return None

    def find(self, kind: type[Kind], job: Named | None, fits: Callable[[Kind], bool] = lambda _: True) -> Kind | None:
        """Return the fault of the order that `take` returns."""
        order = self.take(kind, job, fits)
        return order.fault if order is not None and isinstance(order.fault, kind) else None

    def all_of(self, kind: type[Kind], job: Named | None) -> list[Kind]:
        """Return the faults of every order of this kind that counts now for this job, and count them."""
        found = []
        with self._lock:
            for order in list(self._orders):
                fault = order.fault
                if isinstance(fault, kind) and meant(fault, job) and order.chance.random() < fault.probability:
                    found.append(fault)
                    self._count(order)
        return found

    def _count(self, order: Order) -> None:
        if order.left is not None:
            order.left -= 1
            if order.left == 0:
                self._orders.remove(order)
                self._spent.append(order)  # what it does may still be under way


def meant(fault: Fault, job: Named | None) -> bool:
    """Return whether an order is for this job; None is no job, which only an order for any job means."""
    if fault.job is None:
        return True
    return job is not None and (fault.job == job.id or fnmatchcase(job.name, fault.job))
