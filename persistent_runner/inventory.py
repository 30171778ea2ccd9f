"""`persistent-runner leases` and `stop`: every unfinished job of ours, from the ledger and from the platform."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError, PlatformError, PlatformRefused, ReleaseUnconfirmed, RunnerError
from persistent_runner.interrupts import held_back
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.naming import NAME_PREFIX, study_of
from persistent_runner.lease.platform import LeaseState
from persistent_runner.lease.settle import Settler, ends_by_itself, is_local_and_gone
from persistent_runner.lease.stopper import Deadlines, NotStopped, Stopper
from persistent_runner.settings import load_settings, state_dir
from persistent_runner.site import choose_platform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistent_runner.lease.ledger import Entry
    from persistent_runner.site import Site

COLUMNS = ("job", "study", "state", "age", "cost", "ends", "whose")

_ENDED = frozenset({"Completed", "Failed", "Stopped", "Force Stopped", "Terminated", "Cancelled"})


@dataclass(frozen=True)
class Holding:
    """A job that has not ended, or of which nobody can say: for people, but `job_id`.

    `entry` is its record in this user's ledger, None where it was found by its name alone; `site` where it is known on,
    None where that cannot be asked; `owner` the platform's name of who created it.
    """

    job_id: str
    name: str
    study: str
    state: str
    age: timedelta | None
    cost: float | None
    ends: str
    whose: str
    owner: str = ""
    entry: Entry | None = field(default=None, repr=False)
    site: Site | None = field(default=None, repr=False)


class Inventory:
    """The unfinished jobs of the ledger, and of the account of `profile` where one is named; a context manager."""

    def __init__(self, profile: str | None = None) -> None:
        self._profile = profile or load_settings().profile
        self._ledger = Ledger(state_dir() / "ledger")
        self._sites: dict[tuple[str, str, str], Site | str] = {}
        self._ways_out = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ways_out.close()

    def holdings(self) -> list[Holding]:
        """Return every one; a platform that does not answer leaves its jobs in the list, with a state that says so.

        Raises what keeps the named profile from being asked.
        """
        found = self.recorded()
        if self._profile is not None:
            known = {holding.name for holding in found}
            found += [holding for holding in self._by_name() if holding.name not in known]
        return found

    def recorded(self) -> list[Holding]:
        """Return those of this user's ledger alone."""
        return list(self._recorded())

    def _recorded(self) -> Iterator[Holding]:
        for entry in self._ledger.unfinished():
            if is_local_and_gone(entry):
                if (record := self._ledger.take(entry)) is not None:
                    record.update(state="closed")
                continue
            site = self._site_of(entry)
            state = site if isinstance(site, str) else self._state(entry, site)
            if state is None:
                continue
            executing = not isinstance(state, LeaseState) or state.executing or state.ending
            age = datetime.now(UTC) - datetime.fromisoformat(entry.began)
            costs = entry.job_id and entry.state not in {"creating", "saved"}
            cost = entry.price * (age / timedelta(hours=1)) if costs and entry.price is not None else None
            yield Holding(
                entry.job_id,
                entry.name,
                entry.study,
                str(state),
                age,
                cost,
                ends_by_itself(entry, driven=self._ledger.is_driven(entry) is not False, executing=executing),
                self._whose(entry),
                entry.account,
                entry,
                None if isinstance(site, str) else site,
            )

    def _state(self, entry: Entry, site: Site) -> LeaseState | str | None:
        """Return the platform's word for a job, or why there is none; None where it is over: then its record is closed.

        A job that the platform does not know now stays in the list: it may know it again.
        """
        try:
            jobs = [entry.job_id] if entry.job_id else site.platform.find(entry.name)
            state = site.platform.state(jobs[0]) if jobs else None
        except PlatformRefused as error:
            return "not known to the platform" if error.status == 404 else f"unknown: {error.message}"
        except PlatformError as error:
            return f"unknown: {error.message}"
        if state is not None and not state.stopped:
            return state
        record = self._ledger.take(entry)
        if record is None:
            return state or "being created"
        record.update(state="closed")
        return None

    def _by_name(self) -> Iterator[Holding]:
        site = self._site(self._profile)
        for row in site.platform.jobs(NAME_PREFIX):
            if row.stopped or (row.status in _ENDED and site.platform.state(row.job_id).stopped):
                continue
            age = datetime.now(UTC) - row.created if row.created else None
            ends = "by its own dead-man's switch or walltime" if row.status else "it costs nothing"
            whose = f"{row.owner or 'unknown'}, not in this machine's ledger"
            state = row.status or "saved, not submitted"
            yield Holding(
                row.job_id, row.name, study_of(row.name), state, age, None, ends, whose, row.owner, None, site
            )

    def _whose(self, entry: Entry) -> str:
        driven = self._ledger.is_driven(entry)
        if driven is None:
            return f"leased on {entry.host}"
        if driven:
            return f"process {entry.pid} on this machine"
        return "kept for another study" if entry.state == "kept" else "its driver has died"

    def _site_of(self, entry: Entry) -> Site | str:
        """Return the site that a job was leased on, or why it cannot be asked."""
        key = (entry.profile, entry.base_url, entry.account)
        if key not in self._sites:
            try:
                site = self._site(None if entry.profile == "local" else entry.profile)
            except RunnerError as error:
                self._sites[key] = f"unknown: {error.message}"
            else:
                here, there = (site.base_url, site.account), (entry.base_url, entry.account)
                now = " ".join(here).strip()
                self._sites[key] = site if here == there else f"unknown: {entry.profile} is {now} now"
        return self._sites[key]

    def _site(self, profile: str | None) -> Site:
        settings = load_settings().model_copy(update={"profile": profile})
        site = choose_platform(settings)
        self._ways_out.callback(site.close)
        return site

    # -- the end of one

    def find(self, job_id: str) -> Holding:
        """Return the job with this id; ConfigError where nothing of ours has it."""
        for holding in self.holdings():
            if job_id in {holding.job_id, holding.name}:
                return holding
        where = "" if self._profile else "; --profile NAME looks for it on that account as well"
        raise ConfigError(
            f"No unfinished job of ours has the id {job_id}{where}.", remedy="See: persistent-runner leases"
        )

    def stop(self, holding: Holding, *, force: bool = False) -> str:
        """End a job and return the words of its last state, `Stopped` having been read.

        `force` does not wait for its files to be saved.

        Raises PlatformRefused for a job of somebody else, ReleaseUnconfirmed where the end is not confirmed.
        """
        site, entry = holding.site, holding.entry
        if site is None:
            raise ReleaseUnconfirmed(
                f"Job {holding.job_id or holding.name} cannot be asked for: {holding.state}. {holding.ends}."
            )
        if entry is None and holding.owner.casefold() != site.platform.me().email.casefold():
            raise PlatformRefused(
                f"Job {holding.job_id} belongs to {holding.owner or 'somebody unknown'}, not to this account.",
                remedy="Its owner can stop it.",
            )
        job_id = holding.job_id or next(iter(site.platform.find(holding.name)), "")
        record = self._ledger.take(entry) if entry is not None else None
        deadlines = Deadlines()
        settler = Settler(site.platform, self._ledger, site.poll, deadlines)
        known = settler.state_or_unknown(job_id) if job_id else None
        if known is None:
            state = "the platform does not know it"
        elif not known.submitted:
            site.platform.delete(job_id)
            state = "never submitted, deleted"
        else:
            if record is not None:
                record.update(state="releasing")
            stopper = Stopper(site.platform, job_id, poll=site.poll.total_seconds(), deadlines=deadlines)
            try:
                with held_back():
                    state = str(stopper.stop(force=force))
            except (NotStopped, KeyboardInterrupt) as error:
                why = error.why if isinstance(error, NotStopped) else "the wait for its end was interrupted"
                raise ReleaseUnconfirmed(
                    f"Job {job_id} may still run and cost money: {why.rstrip('.')}. {holding.ends}.",
                    remedy=f"Look at it in the platform's portal: {site.base_url}/jobs/{job_id}/",
                ) from error
        if record is not None:
            record.update(state="closed")
        return state


def stop_all(inventory: Inventory, holdings: list[Holding], *, force: bool = False) -> Iterator[tuple[Holding, str]]:
    """End jobs one after the other and yield each with the words of its end; the first failure is raised last."""
    failures: list[RunnerError] = []
    for holding in holdings:
        try:
            yield holding, inventory.stop(holding, force=force)
        except RunnerError as error:
            failures.append(error)
            yield holding, f"NOT CONFIRMED: {error}"
    if failures:
        raise failures[0]


def table_row(holding: Holding) -> list[str]:
    """Return what `persistent-runner leases` shows of a job: id, study, state, age, cost, end, whose."""
    return [
        holding.job_id or "-",
        holding.study or holding.name,
        holding.state,
        "" if holding.age is None else format_duration(round(holding.age.total_seconds())),
        "" if holding.cost is None else f"at most {holding.cost:.2f}",
        holding.ends,
        holding.whose,
    ]
