"""The two histories of a job, its own statuses and its cluster's, read as one state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from persistent_runner.lease.platform import LeaseState
from persistent_runner.rescale.api import USER_TERMINATED, ClusterStatus, JobStatus

if TYPE_CHECKING:
    from collections.abc import Collection

    from persistent_runner.rescale.api import Status

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_ENDING = frozenset({JobStatus.STOPPING, JobStatus.FORCE_STOP})


def lease_state(statuses: list[Status], clusters: list[Status]) -> LeaseState:
    """Return both histories as one state.

    The newest entry counts, by date and then by the server's order (newest first), and a terminal job status wins over
    any date. No decision looks at this machine's clock.
    """
    terminal = _newest([status for status in statuses if status.status in JobStatus.TERMINAL])
    newest = terminal or _newest(statuses)
    cluster = _newest(clusters)
    if newest is None:
        return LeaseState("Saved")
    stopping = [status for status in statuses if status.status == JobStatus.STOPPING]
    reasons = [status.status_reason for status in (*stopping, newest) if status.status_reason]
    ended = terminal is not None
    ending = newest.status in _ENDING
    alive = newest.status in JobStatus.ALIVE
    # A job that goes on while its cluster has stopped is about to get another one.
    stopped = (cluster is not None and cluster.status == ClusterStatus.STOPPED and not alive) or (
        ended and _never_had_machines(statuses, clusters)
    )
    shown = f"{newest.status}, cluster {cluster.status}" if (ended or ending) and cluster else newest.status
    return LeaseState(
        shown,
        reason=reasons[0] if reasons else "",
        submitted=True,
        booting=alive and _boots(newest.status, cluster.status if cluster else ""),
        executing=newest.status == JobStatus.EXECUTING,
        ending=ending,
        ended=ended,
        stopped=stopped,
        by_somebody=USER_TERMINATED in reasons,
        executed=_time_in(statuses, JobStatus.EXECUTING, _ENDING | JobStatus.TERMINAL) if ended else None,
        booted=_time_in(clusters, ClusterStatus.STARTING, {ClusterStatus.STOPPED}) if stopped else None,
    )


def _never_had_machines(statuses: list[Status], clusters: list[Status]) -> bool:
    """Return whether a job ended before any machine was asked for, so that no `Stopped` will come.

    Silence about the cluster says so only for a job that never got beyond the queue: its list may just not be there.
    """
    if clusters:
        return all(status.status in ClusterStatus.WAITING for status in clusters)
    return not any(status.status in JobStatus.BEYOND_THE_QUEUE for status in statuses)


def _boots(job: str, cluster: str) -> bool:
    """Return whether machines come up or are up; a job may be `Validated` while its cluster is still queued."""
    if cluster:
        return job == JobStatus.EXECUTING or cluster in {ClusterStatus.STARTING, ClusterStatus.STARTED}
    return job in JobStatus.BEYOND_THE_QUEUE


def _newest(statuses: list[Status]) -> Status | None:
    return max(statuses, key=lambda status: status.status_date or _LONG_AGO, default=None)


def _time_in(history: list[Status], begin: str, ends: Collection[str]) -> timedelta | None:
    """Return the sum of the times from a `begin` entry to the next of `ends`; None where an entry does not say when."""
    whole = timedelta(0)
    since: datetime | None = None
    # From the oldest on; of two with the same date the server lists the later one first.
    marks = [status for status in reversed(history) if status.status == begin or status.status in ends]
    if any(status.status_date is None for status in marks):
        return None
    for status in sorted(marks, key=lambda status: status.status_date or _LONG_AGO):
        moment = status.status_date
        if status.status == begin:
            since = since or moment
        elif since is not None and moment is not None:
            whole += moment - since
            since = None
    return whole if since is None else None
