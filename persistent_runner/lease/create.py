"""A job is created once and submitted once, whatever answers are lost, and compared with what was asked."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from persistent_runner.errors import PlatformRefused, PlatformUnavailable
from persistent_runner.recovery import Backoff, recover

if TYPE_CHECKING:
    from persistent_runner.lease.access import Access
    from persistent_runner.lease.platform import LeaseRequest, SavedJob

log = logging.getLogger(__name__)


def create_once(access: Access, request: LeaseRequest) -> SavedJob:
    """Return a job that is saved and costs nothing; one whose answer was lost is looked for by its unique name.

    Raises PlatformRefused, PlatformUnavailable, or KeyboardInterrupt when `access.stop` is set.
    """
    platform = access.platform
    patience: timedelta | None = None  # for how long an empty list of such jobs is doubted

    def create() -> SavedJob:
        if patience is not None and (found := _look_for(access, request.name, patience)):
            for job_id in found[1:]:  # saved jobs cost nothing, and one is enough
                platform.delete(job_id)
            return platform.read_back(found[0], request)
        return platform.create(request)

    def lost(error: Exception) -> None:
        nonlocal patience
        if _throttled(error):  # nothing was done, as far as is known: one look is enough
            patience = patience or timedelta()
        else:
            patience = access.deadlines.created
            log.warning("Whether job %s was created is not known, looking for it: %s", request.name, error)

    return recover(create, {PlatformUnavailable: lost}, Backoff(total=600), access.stop)


def _throttled(error: Exception) -> bool:
    """Return whether a request was turned away as one too many, and say that it is made again."""
    found = isinstance(error, PlatformUnavailable) and error.throttled
    if found:
        log.info("%s Asking again.", error)
    return found


def _look_for(access: Access, name: str, patience: timedelta) -> list[str]:
    """Return the ids of the jobs of a name; an empty list is believed only when it has stayed so for `patience`."""
    deadline = time.monotonic() + patience.total_seconds()
    while not (found := access.platform.find(name)) and time.monotonic() < deadline:
        if access.stop.wait(access.poll.total_seconds()):
            raise KeyboardInterrupt
    return found


def refuse_differences(saved: SavedJob) -> None:
    """Raise PlatformRefused for a job that was saved otherwise than asked; warn of what was not shown."""
    if saved.differs:
        differences = "\n".join(f"  {difference}" for difference in saved.differs)
        raise PlatformRefused(
            f"The platform saved job {saved.job_id} otherwise than asked, so it was not started:\n{differences}",
            remedy="See what the account allows; a public key may have to be entered in its profile.",
        )
    if saved.not_echoed:
        log.warning("Job %s: the platform did not show what it saved of %s", saved.job_id, ", ".join(saved.not_echoed))
    if saved.ssh_open_to:
        log.info("Job %s: the account lets %s connect to its machines", saved.job_id, saved.ssh_open_to)


def submit_once(access: Access, job_id: str) -> None:
    """Submit a saved job; where the answer is lost, or refuses a job that a lost one had started, its state decides.

    Raises PlatformRefused, PlatformUnavailable, or KeyboardInterrupt when `access.stop` is set.
    """
    platform = access.platform
    asked = False

    def submit() -> None:
        nonlocal asked
        if asked and platform.state(job_id).submitted:
            return
        asked = True
        try:
            platform.submit(job_id)
        except PlatformRefused:
            if not platform.state(job_id).submitted:
                raise

    def lost(error: Exception) -> None:
        if not _throttled(error):
            log.warning("Whether job %s was submitted is not known, looking at it: %s", job_id, error)

    recover(
        submit,
        {PlatformUnavailable: lost},
        Backoff(total=access.deadlines.created.total_seconds()),
        access.stop,
    )
