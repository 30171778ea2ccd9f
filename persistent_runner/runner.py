"""Puts the house together, and is the only file that chooses a platform.

Lease a cluster: create and submit a `sleep inf` job, wait for EXECUTING, read the job's instances for the head node's IP,
port and user. Hand its Fabric connection to an Optuna study, whose trials push parameterized inputs, run commands and
pull results. Stop the job, gracefully or forcibly, when finished.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from persistent_runner.duration import format_duration, parse_duration
from persistent_runner.errors import ConfigError
from persistent_runner.interrupts import Interrupts
from persistent_runner.lease.keeper import job_command
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.manager import ClusterLease, Setup, lease_name
from persistent_runner.lease.platform import LeaseRequest, Quote, Software
from persistent_runner.pool import Pool
from persistent_runner.remote import ssh
from persistent_runner.rescale.client import RescalePlatform
from persistent_runner.settings import (
    Settings,
    is_loopback,
    load_settings,
    read_account,
    refuse_real_platform,
    state_dir,
    write_profile,
)
from persistent_runner.study.loop import Limits, Loop
from persistent_runner.study.objective import CommandObjective, load_python_objective
from persistent_runner.study.results import trials_table
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import open_study
from persistent_runner.study.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import timedelta

    import pandas as pd
    import paramiko

log = logging.getLogger(__name__)

_KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")


@dataclass(frozen=True)
class Site:
    """A platform that was chosen, and our way onto its machines."""

    name: str
    base_url: str
    platform: RescalePlatform
    key: paramiko.PKey
    key_name: str
    poll: timedelta
    close: Callable[[], None] = lambda: None

    @property
    def costs_money(self) -> bool:
        """Whether a lease here is paid for."""
        return not is_loopback(self.base_url)


def choose_platform(settings: Settings, *, leases: bool = True) -> Site:
    """Return the platform of the profile, or the local platform where none is named.

    Raises ConfigError for a profile, a key or an SSH key that cannot be used, PlatformRefused when the API key is not
    accepted. `leases` False is for a look that leases nothing.
    """
    if settings.profile is None:
        from persistent_runner.local_platform.attach import ensure_process

        local = ensure_process(state_dir())
        platform = RescalePlatform(local.base_url, local.api_key)
        key = ssh.load_key(local.ssh_key)
        poll = settings.poll_interval(local.base_url)
        return Site("local", local.base_url, platform, key, str(local.ssh_key), poll, local.close)
    account = read_account(settings.profile)
    if leases:
        refuse_real_platform(account)
    path = settings.ssh_key or _default_key()
    site = Site(
        account.name,
        account.base_url,
        RescalePlatform(account.base_url, account.api_key),
        ssh.load_key(path),
        str(path),
        settings.poll_interval(account.base_url),
    )
    site.platform.me()  # the key is refused here, before anything else is asked
    return site


def _default_key() -> Path:
    folder = Path.home() / ".ssh"
    for name in _KEY_NAMES:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"there is no SSH key: PERSISTENT_RUNNER_SSH_KEY is not set and {folder} has none of {', '.join(_KEY_NAMES)}",
        remedy="Make one with ssh-keygen -t ed25519 and paste its public half into the platform's profile.",
    )


# -- a lease


def lease(
    name: str,
    *,
    core_type: str,
    cores: int,
    walltime: timedelta | str,
    profile: str | None = None,
    priority: str = "on_demand",
    project: str | None = None,
    software: Sequence[Software | Mapping[str, str]] = (),
    env: Mapping[str, str] | None = None,
    max_queue: timedelta | str = "2h",
    setup_inputs: Sequence[str] = (),
    setup_command: str = "",
) -> ClusterLease:
    """Return a lease that is not acquired yet: use it in a `with` statement, or call `acquire()` and `release()`.

    The arguments are those of `[cluster]` and `[setup]` in study.toml; `name` is the study's. Without a profile (here or
    in PERSISTENT_RUNNER_PROFILE) the cluster is leased on the local platform. Raises ConfigError before anything is
    spent.
    """
    request = LeaseRequest(
        name=lease_name(name),
        command="",
        core_type=core_type,
        cores=cores,
        walltime=parse_duration(walltime),
        priority=priority,  # type: ignore[arg-type]  # pydantic checks it
        project=project,
        env=dict(env or {}),
        **({"software": tuple(Software.model_validate(tile) for tile in software)} if software else {}),
    )
    setup = Setup(tuple(setup_inputs), setup_command, Path.cwd()) if setup_inputs or setup_command else None
    site = choose_platform(load_settings(profile=profile))
    try:
        return _lease(site, request, setup=setup, max_queue=parse_duration(max_queue))
    except BaseException:
        site.close()
        raise


def _lease(
    site: Site,
    request: LeaseRequest,
    *,
    setup: Setup | None,
    max_queue: timedelta,
    folder: Path | None = None,
    quote: Quote | None = None,
    interrupts: Interrupts | None = None,
) -> ClusterLease:
    request = complete(request, site)
    login = ssh.Login(site.key, key_name=site.key_name)
    return ClusterLease(
        site.platform,
        request,
        connect=login.connect,  # the head node of the `sleep inf` job becomes a Fabric connection here
        quote=quote or site.platform.quote(request),
        ledger=Ledger(state_dir() / "ledger", base_url=site.base_url, profile=site.name, folder=str(folder or "")),
        setup=setup,
        poll=site.poll,
        max_queue=max_queue,
        job_url=f"{site.base_url}/jobs/{{job_id}}/",
        stop=interrupts.asked if interrupts else None,
        on_released=site.close,
    )


def complete(request: LeaseRequest, site: Site) -> LeaseRequest:
    """Return a request with the job's command and our public key."""
    return request.model_copy(update={"command": job_command(request.name), "public_key": ssh.public_line(site.key)})


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

    `n_trials` more, as in Optuna, or until the study has `total_trials` settled ones. `trial_cores` are the cores of one
    trial (default: all, so one at a time). Results are kept in `runs/<study name>/`. An exception of the objective ends
    the study, unless its class is in `catch`; RunnerErrors that tell of the trial alone do not. Raises KeyboardInterrupt
    after an interrupt, when the running trials have ended.
    """
    if (n_trials is None) == (total_trials is None):
        raise ConfigError("optimize needs n_trials or total_trials, one of them", remedy="Write n_trials=20.")
    settings = load_settings()
    with Interrupts() as interrupts, RunFolder(run_path(settings, study.study_name), study.study_name) as folder:
        settled = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        pool = Pool(
            cluster,
            run=folder.on_node,
            folder=folder.path,
            inputs_root=Path.cwd(),
            trial_cores=trial_cores,
            max_concurrent=max_concurrent,
        )
        try:
            pool.open()
            Loop(
                study,
                objective,
                submit=pool.submit,
                capacity=pool.capacity,
                stop_running=pool.stop,
                folder=folder,
                limits=Limits(
                    total_trials if total_trials is not None else settled + (n_trials or 0),
                    max_consecutive_failures=max_consecutive_failures,
                ),
                interrupts=interrupts,
                node=pool.node,
                catch=catch,
            ).run()
        finally:
            pool.close()
            _write_table(folder, study)
    if interrupts.count:
        raise KeyboardInterrupt


def run_path(settings: Settings, name: str) -> Path:
    """Return the folder of a study's results."""
    return settings.runs_dir.absolute() / name


# -- run-study


@dataclass
class StudyRun:
    """What `run_study` leaves: the study, its folder, the summary that `summary.json` holds, and the exit code."""

    study: optuna.Study
    folder: Path
    summary: dict[str, Any]
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

    `confirm` gets the line before money is spent and whether any is, and raises to refuse. `display` makes what is shown while it runs: a
    context manager with `show(progress)`. Raises RunnerErrors whose `exit_code` says how `run-study` ends; whatever ends
    it, the lease is released first and the tables are written.
    """
    settings = load_settings(profile=profile, runs_dir=Path(runs_dir) if runs_dir else None)
    spec = load_study(path, sets, n_trials, max_concurrent)
    objective = load_python_objective(spec) if spec.trial.objective else CommandObjective(spec)
    folder = RunFolder(run_path(settings, spec.study.name), spec.study.name)
    with Interrupts() as interrupts, folder, _log_file(folder.path / "run.log"):
        study = open_study(spec, folder)
        run = StudyRun(study, folder.path, {})
        try:
            if _settled(study) < spec.study.n_trials:
                _run_trials(spec, study, objective, settings, folder, interrupts, confirm, display, force_stop, run)
        finally:
            run.table = _write_table(folder, study)
            run.summary |= summarize(spec, study)
            folder.write("summary.json", json.dumps(run.summary, indent=1) + "\n")
        if interrupts.count:
            run.exit_code = 130
    return run


def _run_trials(
    spec: StudySpec,
    study: optuna.Study,
    objective: Callable[..., Any],
    settings: Settings,
    folder: RunFolder,
    interrupts: Interrupts,
    confirm: Callable[[str, bool], None],
    display: Callable[[str, ClusterLease], contextlib.AbstractContextManager[Any]] | None,
    force_stop: bool,
    run: StudyRun,
) -> None:
    site = choose_platform(settings)
    try:
        request = request_of(spec)
        quote = site.platform.quote(complete(request, site))
        confirm(line_before_money(request, quote, site), site.costs_money)
        cluster = _lease(
            site,
            request,
            setup=setup_of(spec),
            max_queue=spec.cluster.max_queue or parse_duration("2h"),
            folder=folder.path,
            quote=quote,
            interrupts=interrupts,
        )
        try:
            cluster.acquire()
            _optimize_on(cluster, spec, study, objective, folder, interrupts, display)
        except KeyboardInterrupt:
            if not interrupts.count:
                raise
        finally:
            cluster.release(force=force_stop)
            run.summary |= {"seconds_leased": round(cluster.age.total_seconds(), 1), "cost": cluster.cost}
    finally:
        site.close()


def _optimize_on(
    cluster: ClusterLease,
    spec: StudySpec,
    study: optuna.Study,
    objective: Callable[..., Any],
    folder: RunFolder,
    interrupts: Interrupts,
    display: Callable[[str, ClusterLease], contextlib.AbstractContextManager[Any]] | None,
) -> None:
    pool = Pool(
        cluster,
        run=folder.on_node,
        folder=folder.path,
        inputs_root=spec.folder,
        trial_cores=spec.trial.cores,
        max_concurrent=spec.trial.max_concurrent,
        delimiters=spec.trial.template.delimiters,
    )
    shown = display(spec.study.name, cluster) if display else contextlib.nullcontext()
    try:
        pool.open()
        with shown as view:
            Loop(
                study,
                objective,
                submit=pool.submit,
                capacity=pool.capacity,
                stop_running=pool.stop,
                folder=folder,
                limits=Limits(
                    spec.study.n_trials,
                    spec.study.max_time.total_seconds() if spec.study.max_time else None,
                    spec.study.max_consecutive_failures,
                ),
                interrupts=interrupts,
                distributions=None if spec.trial.objective else spec.distributions,
                node=pool.node,
                on_turn=view.show if view is not None else lambda _: None,
            ).run()
    finally:
        pool.close()


def load_study(path: str | Path, sets: Sequence[str], n_trials: int | None, max_concurrent: int | None) -> StudySpec:
    """Return a study.toml with what the command line says instead."""
    named = {"study.n_trials": n_trials, "trial.max_concurrent": max_concurrent}
    return StudySpec.load(Path(path), [*sets, *(f"{key}={value}" for key, value in named.items() if value is not None)])


def request_of(spec: StudySpec) -> LeaseRequest:
    """Return what a study asks of a platform; the command and the key are added when it is leased."""
    cluster = spec.cluster
    return LeaseRequest(
        name=lease_name(spec.study.name),
        command="",
        core_type=cluster.core_type,
        cores=cluster.cores,
        walltime=cluster.walltime,
        priority=cluster.priority,
        project=cluster.project,
        software=cluster.software,
        env=cluster.env,
    )


def setup_of(spec: StudySpec) -> Setup | None:
    """Return what a study does once on every new lease."""
    setup = spec.setup
    return Setup(setup.inputs, setup.command, spec.folder) if setup.inputs or setup.command else None


def line_before_money(request: LeaseRequest, quote: Quote, site: Site) -> str:
    """Return what a lease is and can cost: said before anything is spent."""
    nodes = f"{quote.nodes} node" + ("s" if quote.nodes > 1 else "")
    line = (
        f"{request.cores} cores of {request.core_type} on {nodes}, {request.priority}, on {site.name} ({site.base_url})"
    )
    if quote.price_per_hour is None:
        line += "; the platform names no price"
    else:
        hours = -(-request.walltime.total_seconds() // 3600)
        worst = quote.price_per_hour * hours
        line += (
            f"; {quote.price_per_hour:.2f} an hour; at most {format_duration(hours * 3600)}, so {worst:.2f}, "
            "also if this machine disappears"
        )
    if not site.costs_money:
        line += ". This platform is local: nothing is paid"
    return line + "."


def _settled(study: optuna.Study) -> int:
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


# -- results


def _write_table(folder: RunFolder, study: optuna.Study) -> pd.DataFrame:
    table = trials_table(study)
    folder.write("trials.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Keep the whole log of this start in the run folder."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger("persistent_runner"), logging.getLogger("paramiko")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger, level in zip(loggers, (logging.DEBUG, logging.WARNING), strict=True):
        logger.addHandler(handler)
        logger.setLevel(level)
    loggers[1].propagate = False  # its tracebacks are for the file, not for the terminal
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


# -- the local platform


def serve_local_platform(*, port: int, authorized_keys: str | None, profile: str | None, durations: str) -> None:
    """Serve the local platform in the foreground until a signal; see `persistent-runner platform --help`."""
    from persistent_runner.local_platform.attach import require_posix, require_servers

    require_posix()
    require_servers()
    from persistent_runner.local_platform import local
    from persistent_runner.local_platform.job import FAST, RECORDED

    def ready(address: dict[str, str]) -> None:
        if profile is not None:
            write_profile(profile, address["base_url"], address["api_key"])

    local.serve(
        port=port,
        authorized_keys=Path(authorized_keys).absolute() if authorized_keys else None,
        durations={"fast": FAST, "recorded": RECORDED}[durations],
        on_ready=ready,
    )
