"""Leases as scripts and studies ask for them: a platform, what crashed settled, the money said, the end read."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistent_runner.duration import parse_duration
from persistent_runner.errors import ConfigError
from persistent_runner.interrupts import Leave
from persistent_runner.lease.access import Access
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.guard import Budget
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease
from persistent_runner.lease.naming import lease_name
from persistent_runner.lease.platform import LeaseRequest, Software
from persistent_runner.lease.settle import Settler, Wanted
from persistent_runner.live import log_by_default
from persistent_runner.plan import (
    check_budget,
    complete,
    guard_of,
    quote_of,
    request_of,
    run_path,
    setup_of,
    spec_guard,
)
from persistent_runner.remote import ssh
from persistent_runner.settings import load_settings, state_dir
from persistent_runner.site import Site, choose_platform, line_before_money
from persistent_runner.study.pilot import PilotFailed
from persistent_runner.study.spending import recorder, spent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from persistent_runner.interrupts import Interrupts
    from persistent_runner.lease.meter import Cost
    from persistent_runner.remote.proof import Proof
    from persistent_runner.settings import Settings
    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)


def lease(
    name: str,
    *,
    core_type: str,
    cores: int,
    walltime: timedelta | str,
    profile: str | None = None,
    priority: str = "on_demand",
    project: str | None = None,
    software: Sequence[Software | Mapping[str, str]] = ({"analysis": "user_included", "version": "0"},),
    env: Mapping[str, str] | None = None,
    max_queue: timedelta | str = "2h",
    max_cost: float | None = None,
    orphan_idle: timedelta | str | None = None,
    orphan_busy: timedelta | str | None = None,
    host_key: str = "proven",
    keeper: bool = True,
    keep: timedelta | str | None = None,
    setup_inputs: Sequence[str] = (),
    setup_command: str = "",
) -> ClusterLease:
    """Return a lease that is not acquired yet: use it in a `with` statement, or call `acquire()` and `release()`.

    The arguments are those of `[cluster]` and `[setup]` in study.toml; `name` is the study's, `max_cost` is of this
    lease and of what replaces it, `keep` leaves the cluster for that long to another study when the block ends well.
    Without a profile (here or in PERSISTENT_RUNNER_PROFILE) the cluster is leased on the local platform. A cluster that
    a crashed script has left for the same run folder (`runs/NAME`) is gone on with. Raises ConfigError before anything
    is spent.
    """
    settings = load_settings(profile=profile)
    try:
        request = LeaseRequest(
            core_type=core_type,
            cores=cores,
            walltime=parse_duration(walltime),
            priority=priority,  # type: ignore[arg-type]  # pydantic checks it
            project=project,
            software=tuple(Software.model_validate(tile) for tile in software),
            env=dict(env or {}),
        )
        guard = guard_of(
            settings,
            orphan_idle=_optional(orphan_idle),
            orphan_busy=_optional(orphan_busy),
            keeper=keeper,
            unverified=_is_unverified(host_key, keeper=keeper),
        )
        queue, kept = parse_duration(max_queue), _optional(keep)
        lease_name(name)  # a name that no job can have is refused now
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in error.errors())
        raise ConfigError(f"lease: {wrong}", remedy="Nothing was leased.") from None
    except ValueError as error:
        raise ConfigError(f"lease: {error}", remedy="Nothing was leased.") from None
    log_by_default()
    setup = Setup(tuple(setup_inputs), setup_command, Path.cwd()) if setup_inputs or setup_command else None
    site = choose_platform(settings)
    try:
        request = complete(request, site)
        desk = _Desk.of(site, settings, run_path(settings, name), queue, threading.Event())
        found = ClusterLease(
            desk.access,
            request,
            study=name,
            ledger=desk.ledger,
            quote=site.platform.quote(request),
            guard=guard,
            budget=Budget(max_cost),
            setup=setup,
            keep=kept,
            earlier=lambda: desk.settler().settle(
                Wanted(request.terms, guard.keeper, busy=guard.orphan_busy, budget=lambda: Budget(max_cost))
            ),
            on_released=site.close,
        )
        weakref.finalize(found, site.close)  # one that is never acquired is never released
    except BaseException:
        site.close()
        raise
    return found


def _optional(value: timedelta | str | None) -> timedelta | None:
    return None if value is None else parse_duration(value)


def _is_unverified(host_key: str, *, keeper: bool) -> bool:
    if host_key not in {"proven", "accept-unverified"}:
        raise ValueError(f'host_key is "{host_key}"; write "proven" or "accept-unverified"')
    if not keeper and host_key == "proven":
        raise ValueError('with keeper=False nothing proves the machines; write host_key="accept-unverified" as well')
    return host_key == "accept-unverified"


@dataclass(frozen=True)
class _Desk:
    """Where leases of one run folder are asked for on one site."""

    access: Access
    ledger: Ledger

    @classmethod
    def of(cls, site: Site, settings: Settings, folder: Path, max_queue: timedelta, stop: threading.Event) -> _Desk:
        activity = ssh.Activity()
        proxy = settings.ssh_proxy.get_secret_value() if settings.ssh_proxy else None

        def connector(proof: Proof) -> Callable[..., Any]:
            # the head node of the `sleep inf` job becomes a Fabric connection here
            return ssh.Login(site.key, key_name=site.key_name, proof=proof, proxy=proxy, activity=activity).reach

        access = Access(
            site.platform,
            connector,
            site.poll,
            activity.idle_seconds,
            max_queue=max_queue,
            job_url=f"{site.base_url}/jobs/{{job_id}}/",
            stop=stop,
        )
        return cls(access, site.ledger(str(folder)))

    def settler(self, on_cost: Callable[[str, Cost, bool], None] = lambda _name, _cost, _final: None) -> Settler:
        access = self.access
        return Settler(access.platform, self.ledger, access.poll, access.deadlines, on_cost)


@contextlib.contextmanager
def leased(
    spec: StudySpec,
    settings: Settings,
    folder: RunFolder,
    interrupts: Interrupts,
    *,
    confirm: Callable[[str, bool], None],
    force_stop: bool,
    keep: timedelta | None,
) -> Iterator[ClusterLease]:
    """Hold the cluster that a study.toml asks for; on every way out it is released and the release confirmed.

    What earlier starts left is settled first, and a cluster of theirs that fits is gone on with. `confirm` gets the
    line before money is spent, and whether any is; see `run_study`. Where all went well and nobody interrupted, `keep`
    leaves the cluster to another study.
    """
    with interrupts.at_once():
        site = choose_platform(settings, stop=interrupts.asked)
    try:
        with interrupts.at_once():
            request = complete(request_of(spec), site)
            quote = quote_of(spec, request, site.platform)
            guard = spec_guard(spec, settings)
            max_queue = spec.cluster.max_queue or timedelta(hours=2)
            desk = _Desk.of(site, settings, folder.path, max_queue, interrupts.asked)
            on_cost = recorder(folder, quote.price_per_hour)
            needs = spec.trial.timeout or timedelta(0)

            def budget(but: str = "") -> Budget:
                return Budget(spec.study.max_cost, spec.study.max_time, spent(folder.journal(), but=but))

            wanted = Wanted(request.terms, guard.keeper, needs, guard.orphan_busy, budget)
            record = desk.settler(on_cost).settle(wanted)
        try:
            if record is None:
                check_budget(spec, quote, guard, budget())

            def ask(limit: tuple[timedelta, str]) -> None:
                with interrupts.at_once():
                    confirm(line_before_money(request, quote, site, guard, limit), site.costs_money)

            cluster = ClusterLease(
                desk.access,
                request,
                study=spec.study.name,
                ledger=desk.ledger,
                quote=quote,
                guard=guard,
                budget=budget(record.entry.name if record else ""),
                setup=setup_of(spec),
                needs=needs,
                earlier=lambda: record,
                confirm=ask,
                on_cost=on_cost,
            )
            with _held(cluster, interrupts, force=force_stop, keep=keep):
                yield cluster
        finally:
            if record is not None:
                record.let_go()  # if it is not ours any more already, this does nothing
    finally:
        site.close()


@contextlib.contextmanager
def _held(cluster: ClusterLease, interrupts: Interrupts, *, force: bool, keep: timedelta | None) -> Iterator[None]:
    """Acquire a cluster and release or keep it; who leaves waits for nothing, and is told what may still run."""
    try:
        cluster.acquire()
        try:
            yield
        except Leave:
            raise
        except PilotFailed:
            if interrupts.count:
                cluster.release(force=force)
            else:
                cluster.keep(cluster.guard.orphan_idle)  # the next start goes on there, without another boot
            raise
        except BaseException:
            cluster.release(force=force)
            raise
        else:
            if keep is not None and not interrupts.count:
                cluster.keep(keep)
            else:
                cluster.release(force=force)
    except Leave:
        if (left := cluster.leave()) is not None:
            raise left from None
        raise


def settle_unneeded(
    settings: Settings, folder: RunFolder, interrupts: Interrupts, ended: Callable[[], object] = lambda: None
) -> None:
    """End the cluster that an earlier start of this run folder may have left, now that nothing is to be run.

    `ended` is called while its platform is there still: a local one forgets all when it ends.
    """
    ledger = Ledger(state_dir() / "ledger")
    if not any(entry.folder == str(folder.path) for entry in ledger.unfinished()):
        return
    with interrupts.at_once():
        site = choose_platform(settings, stop=interrupts.asked)
        try:
            desk = _Desk.of(site, settings, folder.path, timedelta(0), interrupts.asked)
            desk.settler(recorder(folder, None)).settle(None)
            ended()
        finally:
            site.close()


@contextlib.contextmanager
def saying_what_runs(folder: RunFolder) -> Iterator[None]:
    """Say which cluster an earlier start of this run folder may have left, where this one is refused before that."""
    try:
        yield
    except ConfigError:
        for entry in Ledger(state_dir() / "ledger").unfinished():
            if entry.folder == str(folder.path):
                job = entry.job_id or entry.name
                log.warning("A cluster of an earlier start may still run: %s. It ends by itself.", job)
                log.warning("To end it now: persistent-runner stop %s", job)
        raise
