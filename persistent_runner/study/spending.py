"""What the leases of a run folder have cost, by its journal, over all starts."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from persistent_runner.errors import RunnerError
from persistent_runner.lease.meter import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)


def recorder(folder: RunFolder, price: float | None) -> Callable[[str, Cost, bool], None]:
    """Return what a lease calls before each job and after it: the job's name, its cost, and whether that is final.

    Before a job the most that it can take is recorded, so that a lease whose end nobody saw counts in full.
    """

    def record(name: str, cost: Cost, final: bool) -> None:
        if not final and price is not None:
            most = price * cost.seconds / 3600
            cost = Cost(cost.seconds, cost.seconds_with_start_up, most, most)
        try:
            folder.commit(kind="lease", name=name, final=final, **asdict(cost))
        except RunnerError as error:
            if not final:
                raise
            log.warning("%s", error)  # the lease has ended, and counts with the most that it can have taken

    return record


def spent(journal: Iterable[dict[str, Any]], *, but: str = "") -> Cost:
    """Return the sum of a journal's leases; one without an end counts with the most that it can have taken.

    `but` names a lease without an end that goes on and is counted by whoever holds it.
    """
    open_: dict[str, Cost] = {}
    total = Cost()
    for record in journal:
        if record["kind"] == "lease":
            cost = Cost(**{key: record[key] for key in asdict(Cost())})
            open_.pop(record["name"], None)
            if record["final"]:
                total += cost
            else:
                open_[record["name"]] = cost
    open_.pop(but, None)
    return sum(open_.values(), total)
