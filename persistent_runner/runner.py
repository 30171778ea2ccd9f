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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.duration import parse_duration
from persistent_runner.errors import BudgetSpent, ConfigError, SetupFailed
from persistent_runner.interrupts import Interrupts
from persistent_runner.lease.meter import Cost
from persistent_runner.leasing import leased, saying_what_runs, settle_unneeded
from persistent_runner.live import log_by_default
from persistent_runner.plan import first_parameters, limits_of, load_study, rehearse, rendered, run_path
from persistent_runner.pool import Pool
from persistent_runner.salvage import Salvage
from persistent_runner.settings import load_settings
from persistent_runner.study.content import PARTS, check_unchanged, digest_of
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.known import add_known
from persistent_runner.study.loop import Loop
from persistent_runner.study.machines import Machines, Saver
from persistent_runner.study.objective import CommandObjective, load_python_objective
from persistent_runner.study.outbox import StorageAway, needs_storage
from persistent_runner.study.pilot import Pilot, before_the_first
from persistent_runner.study.progress import Limits, settled, settled_by_state
from persistent_runner.study.proposals import put_failed, put_first, retried
from persistent_runner.study.reread import reread
from persistent_runner.study.results import LiveTable, write_table
from persistent_runner.study.resume import settle_earlier
from persistent_runner.study.reuse import Reusing
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spending import spent
from persistent_runner.study.storage import folder_of, open_study, root_cause
from persistent_runner.study.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

    import optuna
    import pandas as pd

    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.study.progress import Progress
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)


@needs_storage()
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
    with (
        Interrupts(cluster.interrupted) as interrupts,
        folder_of(study, run_path(settings, study.study_name)) as folder,
    ):
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
            with _less_important():
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
    spec: StudySpec | None = None,
    digest: str | None = None,
    saved: Saver = lambda _: {},
    catch: tuple[type[Exception], ...] = (),
    view: Any = None,
) -> Progress:
    designs = None if spec is None or spec.trial.objective else spec.designs
    table = LiveTable(folder, study)
    pool = Pool(
        cluster,
        run=folder.on_node,
        folder=folder.path,
        inputs_root=inputs_root,
        trial_cores=trial_cores,
        max_concurrent=max_concurrent,
        delimiters=spec.trial.template.delimiters if spec else None,
        queues=designs is not None,
    )

    def turned(progress: Progress) -> None:
        cluster.turned()
        table.turn(progress.settled)
        if view is not None:
            progress.note_lines(pool.last_lines())
            view.show(progress)

    def opened() -> None:
        with interrupts.at_once():  # the setup is waited for here, and an interrupt must not wait for its end
            pool.open()

    def renew(finished: int, needs_seconds: float) -> None:
        pool.renew(finished, needs_seconds)
        opened()

    try:
        try:
            opened()
        except SetupFailed as error:
            if digest is None or settled_by_state(study).get("COMPLETE"):
                raise
            raise before_the_first(error, pool.way_in) from None
        return Loop(
            study,
            objective,
            machines=Machines(
                submit=pool.submit,
                capacity=lambda: pool.capacity,
                stop_running=pool.stop,
                acknowledge=pool.acknowledge,
                place=pool.place,
                node=pool.node,
                link=pool.link,
                left=lambda: pool.seconds_left,
                renew=renew,
                saved=saved,
                price=pool.trial_price,
                most_idle=cluster.guard.orphan_idle.total_seconds(),
                queues=pool.queues,
                withdraw=pool.withdraw,
                round_trip=pool.round_trip,
            ),
            folder=folder,
            limits=limits,
            interrupts=interrupts,
            designs=designs,
            pilot=None if digest is None else Pilot(folder, digest, pool.way_in),
            catch=catch,
            on_turn=turned,
            failures=spec.failures if spec else None,
            ahead=spec.ahead if spec else 0,
            keeping=Keeping.of(spec) if spec else None,
        ).run()
    finally:
        pool.close()


# -- run-study


@dataclass
class StudyRun:
    """What `run_study` leaves: the study, its folder, the summary that `summary.json` holds, and the exit code.

    `headings` are what the parameters are called for people. `seconds_leased`, `cost` and `cost_with_start_up` in the
    summary are of this start, `cost_of_all_starts` counts start-up and every lease of the folder.
    """

    study: optuna.Study
    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    cost: Cost = field(default_factory=Cost)
    table: pd.DataFrame | None = field(default=None, repr=False)
    headings: dict[str, str] = field(default_factory=dict, repr=False)


@needs_storage()
def run_study(
    path: str | Path,
    *,
    profile: str | None = None,
    n_trials: int | None = None,
    max_concurrent: int | None = None,
    runs_dir: str | Path | None = None,
    sets: Sequence[str] = (),
    force_stop: bool = False,
    keep: timedelta | str | None = None,
    accept_changed: bool = False,
    retry_failed: bool = False,
    read_again: bool = False,
    known: str | Path | None = None,
    no_pilot: bool = False,
    confirm: Callable[[str, bool], None] = lambda line, _: log.info(line),
    display: Callable[..., contextlib.AbstractContextManager[Any]] = lambda *_: contextlib.nullcontext(),
) -> StudyRun:
    """Run a study.toml until it has `n_trials` settled trials, going on where an earlier start stopped.

    `keep` leaves the cluster to another study for that long, where this one ended well. `accept_changed` goes on with a
    study whose deck, setup, command or readers have changed since it has results; so does `retry_failed`, which runs
    the designs of its failed trials again. `read_again` only reads all results anew out of the kept files, by readers
    that may have changed, and runs nothing. `known` is a table of designs whose results are known. With `no_pilot` the
    first trial does not run alone. `confirm` gets the line before money is spent and whether any is, and raises to
    refuse. `display(name, lease)` makes what is shown while it runs: a context manager with `show(progress)`. Raises
    RunnerErrors whose `exit_code` says how `run-study` ends; whatever ends it, the lease is released first and the
    tables are written.
    """
    settings = load_settings(profile=profile, runs_dir=Path(runs_dir) if runs_dir else None)
    kept = _kept(keep)
    spec = load_study(path, sets, n_trials, max_concurrent)
    objective = load_python_objective(spec) if spec.trial.objective else CommandObjective(spec)
    rendered(spec, first_parameters(spec))  # what a deck cannot hold is said before money is spent
    rehearse(spec)
    folder = RunFolder(run_path(settings, spec.study.name), spec.study.name)
    with Interrupts() as interrupts, folder, folder.log():
        salvage = Salvage(spec, objective, folder, settings, interrupts.asked)
        with interrupts.at_once():
            run = StudyRun(open_study(spec, folder), folder.path, headings=spec.designs.headings)
            digest, total = _begin(
                run,
                spec,
                folder,
                objective,
                salvage,
                accept_changed=accept_changed,
                retry_failed=retry_failed,
                read_again=read_again,
                known=known,
            )
        try:
            if read_again:
                log.info("Nothing was run; the same line without --reread goes on.")
            elif settled(run.study) < total:
                if isinstance(objective, CommandObjective) and spec.study.reuse:
                    objective = Reusing(objective, folder)
                cluster = leased(spec, settings, folder, interrupts, confirm=confirm, force_stop=force_stop, keep=kept)
                with _counted(cluster, run) as held, display(spec.study.name, held) as view:
                    salvage.commit_earlier(run.study)  # a cluster may have ended since the first look
                    progress = _run_trials(
                        held,
                        run.study,
                        objective,
                        folder=folder,
                        interrupts=interrupts,
                        inputs_root=spec.folder,
                        limits=limits_of(spec, total),
                        trial_cores=spec.trial.cores,
                        max_concurrent=spec.trial.max_concurrent,
                        spec=spec,
                        digest=None if no_pilot else digest,
                        saved=salvage.lost,
                        view=view,
                    )
                run.exit_code = 5 if progress.out_of_time else 0
            else:
                settle_unneeded(settings, folder, interrupts, ended=lambda: salvage.bring_outputs(is_all=False))
                log.info("Nothing to run: all %d trials are settled. --n-trials N runs more.", spec.study.n_trials)
            if not interrupts.count:
                salvage.bring_outputs(is_all=False)
            if not run.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                run.exit_code = run.exit_code or 1
        except KeyboardInterrupt:
            if not interrupts.count:
                raise
        except BudgetSpent as error:
            log.warning("%s", error)
            run.exit_code = error.exit_code
        finally:
            with _less_important():
                run.table = write_table(folder, run.study)
                crash_point("table-written")
                run.summary = summarize(spec, run.study) | _history(run, folder)
                folder.keep("summary.json", json.dumps(run.summary, indent=1) + "\n")
        if interrupts.count:
            run.exit_code = 130
    return run


def _begin(
    run: StudyRun,
    spec: StudySpec,
    folder: RunFolder,
    objective: object,
    salvage: Salvage,
    *,
    accept_changed: bool,
    retry_failed: bool,
    read_again: bool,
    known: str | Path | None,
) -> tuple[str, int]:
    """Bring a study to where this start goes on; return the digest of what it runs and how many trials it is to have.

    ConfigError where it is not what it was, and the user has not said what that means.
    """
    if isinstance(objective, CommandObjective):
        objective.tells_what_is_left = False
    salvage.commit_earlier(run.study)
    salvage.bring_outputs(is_all=True)
    settle_earlier(run.study, folder)
    counts = settled_by_state(run.study)
    accepted = PARTS if accept_changed or retry_failed else ("readers",) if read_again else ()
    with saying_what_runs(folder):
        content = check_unchanged(spec, folder, counts, accepted)
    if read_again:
        run.study = reread(spec, run.study, folder)
    if isinstance(objective, CommandObjective):
        objective.tells_what_is_left = not counts.get("COMPLETE")
        put_first(run.study, spec, folder)
    if retry_failed:
        put_failed(run.study, folder)
    if known is not None:
        add_known(spec, run.study, Path(known))
    return digest_of(content), spec.study.n_trials + retried(folder)


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


def _kept(keep: timedelta | str | None) -> timedelta | None:
    try:
        return None if keep is None else parse_duration(keep)
    except ValueError as error:
        raise ConfigError(f"--keep: {error}", remedy="Write it as in --keep 30m.") from None


@contextlib.contextmanager
def _counted(lease: contextlib.AbstractContextManager[ClusterLease], run: StudyRun) -> Iterator[ClusterLease]:
    """Hold a lease and note what it has cost, however it ends."""
    cluster = None
    try:
        with lease as cluster:
            yield cluster
    finally:
        if cluster is not None:
            run.cost = cluster.cost


def _history(run: StudyRun, folder: RunFolder) -> dict[str, Any]:
    """Return what `summary.json` says of the run: its money, in the platform's currency, and what changed meanwhile."""
    changed = [{"settled": it["settled"], "what": it["what"]} for it in folder.journal() if it["kind"] == "changed"]
    return ({"changed": changed} if changed else {}) | {
        "seconds_leased": round(run.cost.seconds, 1),
        "seconds_leased_with_start_up": round(run.cost.seconds_with_start_up, 1),
        "cost": run.cost.cost,
        "cost_with_start_up": run.cost.cost_with_start_up,
        "cost_of_all_starts": spent(folder.journal()).cost_with_start_up,
    }
