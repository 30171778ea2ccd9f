"""Puts the house together.

Lease a cluster: create and submit a `sleep inf` job, wait for EXECUTING, read the job's instances for the head node's
IP, port and user. Hand its Fabric connection to an Optuna study, whose trials push parameterized inputs, run commands
and pull results. Stop the job, gracefully or forcibly, when finished.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from pydantic import ValidationError

from persistent_runner.duration import parse_duration
from persistent_runner.errors import ConfigError, PlatformError, ReleaseUnconfirmed
from persistent_runner.interrupts import Interrupts, Leave
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease, lease_name
from persistent_runner.lease.platform import LeaseRequest, Quote, Software
from persistent_runner.live import log_by_default
from persistent_runner.plan import (
    check_fits,
    complete,
    first_parameters,
    limits_of,
    load_study,
    rendered,
    request_of,
    run_path,
    setup_of,
)
from persistent_runner.pool import Pool
from persistent_runner.remote import ssh
from persistent_runner.settings import load_settings, state_dir
from persistent_runner.site import Site, choose_platform, line_before_money
from persistent_runner.study.loop import Loop, StorageAway
from persistent_runner.study.objective import CommandObjective, load_python_objective
from persistent_runner.study.progress import Limits, settled
from persistent_runner.study.results import write_table
from persistent_runner.study.resume import settle_earlier
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.storage import folder_of, open_study, root_cause
from persistent_runner.study.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    import optuna
    import pandas as pd
    from optuna.distributions import BaseDistribution

    from persistent_runner.render import Delimiters
    from persistent_runner.settings import Settings
    from persistent_runner.study.progress import Progress
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
    setup_inputs: Sequence[str] = (),
    setup_command: str = "",
) -> ClusterLease:
    """Return a lease that is not acquired yet: use it in a `with` statement, or call `acquire()` and `release()`.

    The arguments are those of `[cluster]` and `[setup]` in study.toml; `name` is the study's. Without a profile (here
    or in PERSISTENT_RUNNER_PROFILE) the cluster is leased on the local platform. Raises ConfigError before anything
    is spent.
    """
    try:
        queue = parse_duration(max_queue)
        request = LeaseRequest(
            name=lease_name(name),
            command="",
            core_type=core_type,
            cores=cores,
            walltime=parse_duration(walltime),
            priority=priority,  # type: ignore[arg-type]  # pydantic checks it
            project=project,
            software=tuple(Software.model_validate(tile) for tile in software),
            env=dict(env or {}),
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']}" for flaw in error.errors())
        raise ConfigError(f"lease: {wrong}", remedy="Nothing was leased.") from None
    except ValueError as error:
        raise ConfigError(f"lease: {error}", remedy="Nothing was leased.") from None
    log_by_default()
    setup = Setup(tuple(setup_inputs), setup_command, Path.cwd()) if setup_inputs or setup_command else None
    site = choose_platform(load_settings(profile=profile))
    try:
        request = complete(request, site)
        found = _lease(site, request, site.platform.quote(request), setup=setup, max_queue=queue)
        weakref.finalize(found, site.close)  # one that is never acquired is never released
    except BaseException:
        site.close()
        raise
    return found


def _lease(
    site: Site,
    request: LeaseRequest,
    quote: Quote,
    *,
    setup: Setup | None,
    max_queue: timedelta,
    folder: Path | None = None,
    interrupts: Interrupts | None = None,
) -> ClusterLease:
    login = ssh.Login(site.key, key_name=site.key_name)
    return ClusterLease(
        site.platform,
        request,
        connect=login.connect,  # the head node of the `sleep inf` job becomes a Fabric connection here
        quote=quote,
        ledger=Ledger(state_dir() / "ledger", base_url=site.base_url, profile=site.name, folder=str(folder or "")),
        setup=setup,
        poll=site.poll,
        max_queue=max_queue,
        job_url=f"{site.base_url}/jobs/{{job_id}}/",
        stop=interrupts.asked if interrupts else None,
        on_released=site.close,
    )


# -- optimize


def optimize(
    study: optuna.Study,
    objective: Callable[..., Any],
    cluster: ClusterLease,
    n_trials: int | None = None,
    *,
    total_trials: int | None = None,
    trial_cores: int | None = None,
    max_concurrent: int | None = None,
    max_consecutive_failures: int | None = None,
    catch: tuple[type[Exception], ...] = (),
) -> None:
    """Run trials of `objective(trial, work)` on a leased cluster, several at a time.

    `n_trials` more, as in Optuna, or until the study has `total_trials` settled ones. `trial_cores` are the cores of
    one trial (default: all, so one at a time). Results are kept in `runs/<study name>/`, or in `runs/<study name>-2/`
    where another study of that name has left its own. An exception of the objective ends the study, unless its class
    is in `catch`; RunnerErrors that tell of the trial alone do not. Raises KeyboardInterrupt after an interrupt, when
    the running trials have ended.
    """
    if (n_trials is None) == (total_trials is None):
        raise ConfigError("optimize needs n_trials or total_trials, one of them", remedy="Write n_trials=20.")
    log_by_default()
    settings = load_settings()
    with Interrupts() as interrupts, folder_of(study, run_path(settings, study.study_name)) as folder:
        try:
            _run_trials(
                cluster,
                study,
                objective,
                folder=folder,
                interrupts=interrupts,
                inputs_root=Path.cwd(),
                limits=Limits(total_trials, n_trials, max_consecutive_failures=max_consecutive_failures),
                trial_cores=trial_cores,
                max_concurrent=max_concurrent,
                catch=catch,
            )
        finally:
            write_table(folder, study)
    if interrupts.count:
        raise KeyboardInterrupt


def _run_trials(
    cluster: ClusterLease,
    study: optuna.Study,
    objective: Callable[..., Any],
    *,
    folder: RunFolder,
    interrupts: Interrupts,
    inputs_root: Path,
    limits: Limits,
    trial_cores: int | None,
    max_concurrent: int | None,
    delimiters: Delimiters | None = None,
    distributions: Mapping[str, BaseDistribution] | None = None,
    catch: tuple[type[Exception], ...] = (),
    view: Any = None,
) -> Progress:
    pool = Pool(
        cluster,
        run=folder.on_node,
        folder=folder.path,
        inputs_root=inputs_root,
        trial_cores=trial_cores,
        max_concurrent=max_concurrent,
        delimiters=delimiters,
    )
    try:
        with interrupts.at_once():  # the setup is waited for here, and an interrupt must not wait for its end
            pool.open()
        return Loop(
            study,
            objective,
            submit=pool.submit,
            capacity=pool.capacity,
            stop_running=pool.stop,
            acknowledge=pool.acknowledge,
            folder=folder,
            limits=limits,
            interrupts=interrupts,
            distributions=distributions,
            node=pool.node,
            price=pool.trial_price,
            catch=catch,
            on_turn=view.show if view is not None else lambda _: None,
        ).run()
    finally:
        pool.close()


# -- run-study


@dataclass
class StudyRun:
    """What `run_study` leaves: the study, its folder, the summary that `summary.json` holds, and the exit code.

    `seconds_leased` and `cost` in the summary are of this start.
    """

    study: optuna.Study
    folder: Path
    summary: dict[str, Any] = field(default_factory=lambda: {"seconds_leased": 0.0, "cost": 0.0})
    exit_code: int = 0
    table: pd.DataFrame | None = field(default=None, repr=False)


def run_study(
    path: str | Path,
    *,
    profile: str | None = None,
    n_trials: int | None = None,
    max_concurrent: int | None = None,
    runs_dir: str | Path | None = None,
    sets: Sequence[str] = (),
    force_stop: bool = False,
    confirm: Callable[[str, bool], None] = lambda line, _: log.info(line),
    display: Callable[[str, ClusterLease], contextlib.AbstractContextManager[Any]] | None = None,
) -> StudyRun:
    """Run a study.toml until it has `n_trials` settled trials, going on where an earlier start stopped.

    `confirm` gets the line before money is spent and whether any is, and raises to refuse. `display` makes what is
    shown while it runs: a context manager with `show(progress)`. Raises RunnerErrors whose `exit_code` says how
    `run-study` ends; whatever ends it, the lease is released first and the tables are written.
    """
    settings = load_settings(profile=profile, runs_dir=Path(runs_dir) if runs_dir else None)
    spec = load_study(path, sets, n_trials, max_concurrent)
    objective = load_python_objective(spec) if spec.trial.objective else CommandObjective(spec)
    rendered(spec, first_parameters(spec))  # what a deck cannot hold is said before money is spent
    folder = RunFolder(run_path(settings, spec.study.name), spec.study.name)
    with Interrupts() as interrupts, folder, folder.log():
        with interrupts.at_once():
            run = StudyRun(open_study(spec, folder), folder.path)
            settle_earlier(run.study, folder)
        try:
            if settled(run.study) < spec.study.n_trials:
                with _leased(spec, settings, run, confirm, interrupts, force_stop=force_stop) as cluster:
                    shown = display(spec.study.name, cluster) if display else contextlib.nullcontext()
                    with shown as view:
                        progress = _run_trials(
                            cluster,
                            run.study,
                            objective,
                            folder=folder,
                            interrupts=interrupts,
                            inputs_root=spec.folder,
                            limits=limits_of(spec),
                            trial_cores=spec.trial.cores,
                            max_concurrent=spec.trial.max_concurrent,
                            delimiters=spec.trial.template.delimiters,
                            distributions=None if spec.trial.objective else spec.distributions,
                            view=view,
                        )
                run.exit_code = 5 if progress.out_of_time else 0
            else:
                log.info("Nothing to run: all %d trials are settled. --n-trials N runs more.", spec.study.n_trials)
            if not run.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                run.exit_code = run.exit_code or 1
        except KeyboardInterrupt:
            if not interrupts.count:
                raise
        finally:
            with _less_important():
                run.table = write_table(folder, run.study)
                run.summary |= summarize(spec, run.study)
                folder.write("summary.json", json.dumps(run.summary, indent=1) + "\n")
        if interrupts.count:
            run.exit_code = 130
    return run


@contextlib.contextmanager
def _less_important() -> Iterator[None]:
    """Let a table that cannot be written hide nothing that ended the study; where nothing did, raise."""
    ended = sys.exception() is not None
    try:
        yield
    except (OSError, StorageInternalError) as error:
        text = f"the tables could not be written: {root_cause(error)}"
        if not ended:
            raise StorageAway(text, remedy="All results are in the journal; run the same line again.") from None
        log.warning(text)


@contextlib.contextmanager
def _leased(
    spec: StudySpec,
    settings: Settings,
    run: StudyRun,
    confirm: Callable[[str, bool], None],
    interrupts: Interrupts,
    *,
    force_stop: bool,
) -> Iterator[ClusterLease]:
    """Hold the cluster that a study.toml asks for; on every way out it is released and the release confirmed."""
    with interrupts.at_once():
        site = choose_platform(settings, stop=interrupts.asked)
    try:
        with interrupts.at_once():
            request = complete(request_of(spec), site)
            quote = site.platform.quote(request)
            check_fits(spec, quote)
            confirm(line_before_money(request, quote, site), site.costs_money)
        cluster = _lease(
            site,
            request,
            quote,
            setup=setup_of(spec),
            max_queue=spec.cluster.max_queue or parse_duration("2h"),
            folder=run.folder,
            interrupts=interrupts,
        )
        try:
            with _released(cluster, site, force=force_stop):
                yield cluster
        finally:
            run.summary |= {"seconds_leased": round(cluster.age.total_seconds(), 1), "cost": cluster.cost}
    finally:
        site.close()


@contextlib.contextmanager
def _released(cluster: ClusterLease, site: Site, *, force: bool) -> Iterator[None]:
    """Acquire a cluster and release it; who leaves waits for nothing, and is told what may still run."""
    try:
        cluster.acquire()
        try:
            yield
        except Leave:
            raise
        except BaseException:
            cluster.release(force=force)
            raise
        else:
            cluster.release(force=force)
    except (Leave, ReleaseUnconfirmed) as error:
        if cluster.job_id:
            with contextlib.suppress(PlatformError):  # who left may have done so before the stop was asked for
                site.platform.stop(cluster.job_id)
        if isinstance(error, Leave):
            raise cluster.unconfirmed("you left before its end was confirmed; its stop was asked for") from None
        raise
