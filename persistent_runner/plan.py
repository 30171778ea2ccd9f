"""What a study.toml asks for: the request of a lease, its setup, the limits of the loop."""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from persistent_runner.duration import format_duration
from persistent_runner.errors import ConfigError
from persistent_runner.inputs import walk_inputs
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.guard import Guard
from persistent_runner.lease.platform import LeaseRequest
from persistent_runner.remote import ssh
from persistent_runner.render import render_inputs
from persistent_runner.study.design import NoValue
from persistent_runner.study.objective import load_python_objective
from persistent_runner.study.progress import Limits
from persistent_runner.study.proposals import MOST_REJECTED
from persistent_runner.study.samplers import written
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import derived_seed, quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistent_runner.inputs import InputFile
    from persistent_runner.lease.guard import Budget
    from persistent_runner.lease.platform import Quote
    from persistent_runner.rescale.client import RescalePlatform
    from persistent_runner.settings import Settings
    from persistent_runner.site import Site

log = logging.getLogger(__name__)

_BUSY = timedelta(minutes=40)  # how long HTCondor, too, lets a job run whose submitter is gone
_BUSY_MARGIN = timedelta(minutes=5)
_REHEARSED = 50  # random designs that the templates are tried on


def limits_of(spec: StudySpec, total: int) -> Limits:
    """Return when a study stops asking: at `total` settled trials, or before."""
    most = spec.study.max_time
    return Limits(
        total,
        max_seconds=most.total_seconds() if most else None,
        max_consecutive_failures=spec.study.max_consecutive_failures,
    )


def load_study(path: str | Path, sets: Sequence[str], n_trials: int | None, max_concurrent: int | None) -> StudySpec:
    """Return a study.toml with what the command line says instead; what may be wrong with it is logged."""
    named = {
        "--n-trials": ("study.n_trials", n_trials),
        "--max-concurrent": ("trial.max_concurrent", max_concurrent),
    }
    options = {option: f"{key}={value}" for option, (key, value) in named.items() if value is not None}
    spec = StudySpec.load(Path(path), sets, options)
    for warning in spec.warnings():
        log.warning("%s", warning)
    return spec


def request_of(spec: StudySpec) -> LeaseRequest:
    """Return what a study asks of a platform."""
    cluster = spec.cluster
    return LeaseRequest(
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


def quote_of(spec: StudySpec, request: LeaseRequest, platform: RescalePlatform) -> Quote:
    """Return what a platform has for a study's request; ConfigError, with the line, for what it does not have."""
    try:
        return platform.quote(request)
    except ConfigError as error:
        placed = spec.error(["cluster", *filter(None, [error.key])], error.message)
        raise ConfigError(placed.message, remedy=f"{error.remedy}\n{placed.remedy}") from None


def check_budget(spec: StudySpec, quote: Quote, guard: Guard, budget: Budget) -> None:
    """Raise ConfigError for a `max_cost` that is too small for any cluster, while nothing is spent of it."""
    price, most = quote.price_per_hour, spec.study.max_cost
    if price is None or most is None or budget.earlier.seconds_with_start_up:
        return
    least = price * (guard.shortest / timedelta(hours=1))
    if most < least:
        raise spec.error(
            ["study", "max_cost"],
            f"{most:g} is too little for any cluster at {price:.2f} an hour; at least {least:.2g} is needed",
        )


def complete(request: LeaseRequest, site: Site) -> LeaseRequest:
    """Return a request with our public key."""
    return request.model_copy(update={"public_key": ssh.public_line(site.key)})


def guard_of(
    settings: Settings,
    *,
    orphan_idle: timedelta | None = None,
    orphan_busy: timedelta | None = None,
    timeout: timedelta | None = None,
    keeper: bool = True,
    unverified: bool = False,
) -> Guard:
    """Return how a lease is kept from outliving its driver; what is None here comes from the settings.

    With a `timeout` of the trials, a cluster on which one runs is left alone for as long as that one may take.
    ConfigError where the driver's beat is too slow for the limits.
    """
    idle = orphan_idle or settings.orphan_idle
    busy = orphan_busy or settings.orphan_busy
    if busy is None:
        busy = max(idle, timeout + _BUSY_MARGIN) if timeout else max(idle, _BUSY)
    if idle < 2 * settings.beat + settings.keeper_tick:
        raise ConfigError(
            f"orphan_idle is {format_duration(idle)}, and with a sign of life every {format_duration(settings.beat)} "
            f"and a look at it every {format_duration(settings.keeper_tick)} a cluster could end under its driver.",
            remedy="Raise orphan_idle, or lower PERSISTENT_RUNNER_BEAT and PERSISTENT_RUNNER_KEEPER_TICK.",
        )
    return Guard(
        keeper=keeper,
        tick=settings.keeper_tick,
        beat=settings.beat,
        hang=settings.hang,
        orphan_idle=idle,
        orphan_busy=busy,
        unverified=unverified,
    )


def spec_guard(spec: StudySpec, settings: Settings) -> Guard:
    """Return how the lease of a study.toml is guarded."""
    cluster = spec.cluster
    return guard_of(
        settings,
        orphan_idle=cluster.orphan_idle,
        orphan_busy=cluster.orphan_busy,
        timeout=spec.trial.timeout,
        keeper=cluster.keeper,
        unverified=cluster.host_key == "accept-unverified",
    )


def run_path(settings: Settings, name: str) -> Path:
    """Return the folder of a study's results; what no folder's name can hold becomes a hyphen."""
    return settings.runs_dir.absolute() / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".")[:80] or "study")


def first_parameters(spec: StudySpec) -> dict[str, Any]:
    """Return the parameters of trial 0 of a new study; a Python objective is loaded instead, it suggests its own.

    ConfigError where the sampler, a formula or `require` lets no design through.
    """
    if spec.trial.objective:
        load_python_objective(spec)
        return dict(spec.designs.constants)
    _ = spec.functions  # one that cannot be loaded is told now
    quiet_optuna()
    seed = spec.study.seed if spec.keeps_seed else derived_seed(spec.study.seed, 0)
    study = optuna.create_study(sampler=spec.make_sampler(seed), directions=spec.directions)
    for design in filter(None, (spec.baseline, *spec.start)):
        study.enqueue_trial(spec.designs.design(design))
    what = ""
    for _ in range(MOST_REJECTED):
        try:
            trial = study.ask()
            spec.designs.suggest(trial)
            missed, what = spec.designs.violation(trial.params)
            if not missed:
                return spec.designs.complete(trial.params)
        except NoValue as error:
            raise _without_value(spec, error) from None
        except Exception as error:  # noqa: BLE001 - whatever a sampler raises
            raise _not_proposed(spec, error) from None
    raise spec.error(
        ["study", "require"],
        f"the sampler proposed {MOST_REJECTED} designs that it does not allow; the last one: {what}",
    )


def _without_value(spec: StudySpec, error: NoValue) -> ConfigError:
    return spec.error(error.keys, f"{error.what}; mend the formula, or exclude such designs by [study] require")


def _not_proposed(spec: StudySpec, error: Exception) -> ConfigError:
    options = {key: value for key, value in spec.study.sampler.items() if key != "name"}
    sampler = f"{spec.study.sampler['name']}{f' with {written(options)}' if options else ''}"
    return spec.error(["study", "sampler"], f"{sampler} cannot propose a design: {type(error).__name__}: {error}")


def rendered(spec: StudySpec, parameters: dict[str, Any]) -> list[tuple[str, bytes, int]]:
    """Return the inputs (path, content, mode) of a trial with these parameters, but for the big files.

    ConfigError as in a trial.
    """
    return _filled(spec, [file for file in walk_inputs(spec.folder, spec.trial.inputs) if not file.shared], parameters)


def rehearse(spec: StudySpec) -> None:
    """Render the templates with random designs: ConfigError, with the design, for a value that a deck cannot hold.

    A formula that has no value for some of them is a warning: such a trial fails, and the study goes on.
    """
    templates = [file for file in walk_inputs(spec.folder, spec.trial.inputs) if file.template]
    failed: dict[str, ConfigError] = {}
    for params in spec.designs.random(_REHEARSED) if spec.trial.command else ():
        try:
            if not spec.designs.violation(params)[0]:
                _filled(spec, templates, spec.designs.complete(params), f" (in a design with {_design(params)})")
        except NoValue as error:
            failed.setdefault(str(error.keys), _without_value(spec, error))
    for failure in failed.values():
        log.warning("Some trials will fail: %s", failure.message)


def _filled(
    spec: StudySpec, files: Sequence[InputFile], parameters: dict[str, Any], where: str = ""
) -> list[tuple[str, bytes, int]]:
    try:
        return render_inputs(files, parameters, spec.trial.template.delimiters)
    except ConfigError as error:
        raise spec.error([], f"{error.message}{where}", error.file) from None


def _design(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in params.items())
