"""What the platform shows of its jobs when it was ordered to show something else. No HTTP here."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from persistent_runner.local_platform import catalogue
from persistent_runner.local_platform.fault_kinds import (
    Hidden,
    Instances,
    Listing,
    Machines,
    NotEchoed,
    Saves,
    Statuses,
    UnknownStatus,
)
from persistent_runner.local_platform.faults import Draft
from persistent_runner.rescale.api import date_with_offset, date_with_z

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistent_runner.local_platform.faults import Faults
    from persistent_runner.local_platform.job import VirtualJob

Row = dict[str, Any]

_OF_THE_ANALYSIS = {"analysis", "command", "hardware", "inputFiles", "envVars", "useRescaleLicense"}


@dataclass(frozen=True)
class Shown:
    """Rows go in as they are and come out as they are to be shown."""

    faults: Faults
    now: Callable[[], datetime]

    def hidden(self, job: VirtualJob) -> bool:
        """Return whether a job is not to be found yet."""
        found = self.faults.find(Hidden, job, lambda fault: self._within(fault.seconds, job.inserted))
        return found is not None

    def _within(self, seconds: float | None, since: datetime | None) -> bool:
        if seconds is None or since is None:
            return True
        return self.now() - since < timedelta(seconds=seconds)

    def statuses(self, job: VirtualJob, rows: list[Row], *, of_cluster: bool) -> list[Row]:
        """Return the statuses of a job or of its cluster."""
        over = job.stopped if of_cluster else job.completed
        wanted = {"cluster" if of_cluster else "job", "both"}
        unknown = self.faults.find(UnknownStatus, job, lambda fault: fault.of in wanted) if rows and not over else None
        if unknown is not None:
            since = datetime.fromisoformat(rows[0]["statusDate"]) + timedelta(milliseconds=1)
            date = (date_with_z if of_cluster else date_with_offset)(since)
            rows = [{"status": unknown.status, "statusDate": date, "statusReason": None}, *rows]
        odd = self.faults.find(Statuses, job)
        return rows if odd is None or not rows else _odd_statuses(odd, rows)

    def instances(self, job: VirtualJob, rows: list[Row]) -> list[Row] | None:
        """Return the machines of a job; None for "not found"."""
        since = job.run_started
        away = self.faults.find(Instances, job, lambda fault: self._within(fault.seconds, since))
        if away is not None:
            return [] if away.form == "empty" else None
        odd = self.faults.find(Machines, job, lambda fault: self._within(fault.seconds, since))
        return rows if odd is None or not rows else _odd_machines(odd, rows)

    def listing(self, rows: list[Row], page: int) -> list[Row]:
        """Return the list of jobs as it is when `page` is read: jobs came or went since page 1."""
        found = self.faults.find(Listing, None) if page > 1 else None
        if found is None:
            return rows
        if found.change == "shrinks":
            return rows[page - 1 :]
        new = [
            {
                "id": f"newjob{number}",
                "name": "somebody's job",
                "owner": catalogue.OWNER,
                "dateInserted": date_with_z(self.now()),
                "jobStatus": {"content": "", "labelClass": "", "useLabel": False},
                "clusterStatusDisplay": None,
            }
            for number in range(page - 1, 0, -1)
        ]
        return new + rows

    def saved(self, body: object) -> object:
        """Return what is saved of the body of a new job."""
        if not isinstance(body, dict):
            return body
        faults = self.faults.all_of(Saves, Draft(str(body.get("name", ""))))
        if not faults:
            return body
        changed = copy.deepcopy(body)
        for fault in faults:
            _change(changed, fault.field, fault.value)
        return changed

    def wire(self, job: VirtualJob, body: Row) -> Row:
        """Return the object of a job."""
        for fault in self.faults.all_of(NotEchoed, job):
            _change(body, fault.field, None)
        return body


def _odd_statuses(fault: Statuses, rows: list[Row]) -> list[Row]:
    dates = [datetime.fromisoformat(row["statusDate"]) for row in rows]
    if fault.form == "oldest_first":
        return rows[::-1]
    if fault.form == "shuffled":
        # not for secrets: the same seed gives the same order
        return Random(fault.seed).sample(rows, len(rows))  # noqa: S311
    if fault.form == "same_second":
        texts = [date_with_offset(dates[-1].replace(microsecond=0))] * len(rows)
    elif fault.form == "no_zone":
        texts = [date_with_z(date).removesuffix("Z") for date in dates]
    else:
        texts = [date_with_z(date) for date in dates]
    return [{**row, "statusDate": text} for row, text in zip(rows, texts, strict=True)]


def _odd_machines(fault: Machines, rows: list[Row]) -> list[Row]:
    if fault.form == "shuffled":
        return rows[1:] + rows[:1]
    if fault.form == "two_masters":
        masters = [{**row, "role": "MPI_MASTER"} for row in rows]
        return masters if len(rows) > 1 else [*masters, {**masters[0], "id": f"{rows[0]['id']}x"}]
    if fault.form == "private_workers":
        return [rows[0], *({**row, "publicIp": None, "publicHostname": None} for row in rows[1:])]
    changes: Row = {
        "no_public_address": {"publicIp": None, "publicHostname": None},
        "no_address": dict.fromkeys(("publicIp", "publicHostname", "privateIp", "privateHostname")),
        "no_user": {"username": None},
        "port": {"sshPort": fault.port},
    }[fault.form]
    return [{**row, **changes} for row in rows]


def _change(body: Row, field: str, value: Any) -> None:
    """Set a field of a job's object, in each of its analyses if it is one of theirs; None removes it."""
    first, *_ = parts = field.split(".")
    owners = body.get("jobanalyses") if first in _OF_THE_ANALYSIS else [body]
    for owner in owners if isinstance(owners, list) else []:
        found = owner
        for part in parts[:-1]:
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, dict):
            if value is None:
                found.pop(parts[-1], None)
            else:
                found[parts[-1]] = value
