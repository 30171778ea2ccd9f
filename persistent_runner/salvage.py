"""Attempts that ended on a cluster that is gone: what the platform has saved of them is fetched, so none runs again."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import optuna
from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.disk import refusal_of
from persistent_runner.errors import DiskFull, PlatformError, PlatformRefused, RunnerError
from persistent_runner.remote.workdir import WorkDir
from persistent_runner.rescale.files import below
from persistent_runner.saved_link import NotSaved, SavedFiles, SavedLink
from persistent_runner.saved_outputs import fetch_owed, give_up
from persistent_runner.site import choose_platform
from persistent_runner.study.committed import facts_of
from persistent_runner.study.keeping import Keeping
from persistent_runner.study.machines import Saved
from persistent_runner.study.owed import resume, told
from persistent_runner.study.resume import Result, commit, owner
from persistent_runner.study.returned import outcome_of, task_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping

    from persistent_runner.remote.link import Link
    from persistent_runner.settings import Settings
    from persistent_runner.site import Site
    from persistent_runner.study.objective import Outcome
    from persistent_runner.study.owed import Owed
    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)

STOP_SECONDS = 300.0  # for a cluster that is ending to be gone, before its files are looked for


class Salvage:
    """The results of a study's trials that ended well on clusters that have ended since.

    The objective itself is at work once more, on the files that the platform has saved of them.
    """

    def __init__(
        self,
        spec: StudySpec,
        objective: Callable[..., object],
        folder: RunFolder,
        settings: Settings,
        stop: threading.Event,
    ) -> None:
        self._spec = spec
        self._objective = objective
        self._folder = folder
        self._settings = settings
        self._stop = stop
        self._useless: set[str] = set()  # attempts that left no result; one that is not listed yet is none of them

    def commit_earlier(self, study: optuna.Study) -> None:
        """Commit what is saved of this run's trials that an earlier start has left; `settle_earlier` tells it."""
        left = {
            trial.number: trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
            if owner(trial) == self._folder.run_id
        }
        trials = {number: optuna.trial.Trial(study, trial._trial_id) for number, trial in left.items()}  # noqa: SLF001
        for number, result in self._saved(trials):
            trial = left[number]
            if trial.state == TrialState.WAITING:  # only a trial that runs is told
                study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # noqa: SLF001 - as `give_back`
            outcome = result.outcome
            facts = facts_of(self._folder, trial, result.attempt, result.seconds, metrics=outcome.metrics)
            crash_point("salvaging")
            result_told = Result(TrialState.COMPLETE, outcome.values, facts, outcome.constraints)
            later = told(outcome.later, (), may_drop=Keeping.of(self._spec).may_drop) if outcome.later else None
            commit(self._folder, number, trials[number].params, result_told, later)
            crash_point("salvaged")

    def bring_outputs(self, *, is_all: bool) -> None:
        """Fetch the outputs that results were committed without, of trials whose cluster has ended since.

        `is_all` as in `fetch_owed`. What cannot be had now is said, and comes with the next start.
        """
        owed = resume(self._folder, Keeping.of(self._spec)).to_come
        if not owed:
            return
        try:
            site = choose_platform(self._settings, stop=self._stop)
        except RunnerError as error:
            log.warning("Outputs that are still to come cannot be asked for: %s", error)
            return
        try:
            self._look_elsewhere(site, owed)
            places = {number: (each.attempt, each.lease) for number, each in owed.items()}
            for job_id, mine in self._by_ended_job(site, places).items():
                theirs = [owed[number] for number in mine]
                try:
                    fetch_owed(site.platform.files, job_id, theirs, self._folder, self._stop, is_all=is_all)
                except PlatformRefused as error:  # of this job
                    log.warning("Outputs of job %s cannot be fetched: %s", job_id, error)
        except (PlatformError, DiskFull) as error:
            log.warning("Outputs that are still to come cannot be fetched now: %s", error)
        except OSError as error:
            log.warning("Outputs cannot be fetched now: %s", refusal_of(error, self._folder.path))
        finally:
            site.close()

    def _look_elsewhere(self, site: Site, owed: Mapping[int, Owed]) -> None:
        """Give up what a local platform had that has ended with all its files; say what another platform has."""
        leases = {entry.name: entry for entry in site.ledger(str(self._folder.path)).entries()}
        for each in owed.values():
            lease = leases.get(each.lease)
            if lease is None:
                log.warning("trial %d: this machine's ledger does not know the cluster of its outputs", each.number)
            elif lease.base_url == site.base_url:
                continue
            elif self._settings.profile is None and lease.profile == site.name:
                give_up(each, self._folder, "the local platform that had it has ended")
            else:
                log.warning("trial %d: a start with --profile %s fetches its outputs", each.number, lease.profile)

    def lost(self, trials: Mapping[int, optuna.Trial]) -> dict[int, Saved]:
        """Return by number what is saved of trials whose cluster was lost."""
        return dict(self._saved(trials))

    def _saved(self, trials: Mapping[int, optuna.Trial]) -> Iterator[tuple[int, Saved]]:
        """Yield by trial what its last attempt left, if that ended well and its cluster has since ended.

        Nothing is taken of a command that was another one than now, by its inputs, outputs and text. A platform that
        does not answer is a reason to go on without. DiskFull where what is fetched finds no room here.
        """
        unfinished = _unfinished(self._folder) if trials else {}
        attempts = {number: last for number, last in unfinished.items() if number in trials}
        if not attempts:
            return
        site = choose_platform(self._settings, stop=self._stop)
        try:
            for job_id, mine in self._by_ended_job(site, attempts).items():
                listed = site.platform.files.listed(job_id, name=self._folder.on_node)
                for number in mine:
                    attempt = f"{number:05d}.{attempts[number][0]}"
                    if attempt in self._useless:
                        continue
                    files = below(listed, f"{self._folder.on_node}/{attempt}")
                    taken = self._taken(SavedFiles(site.platform.files, files), trials[number], attempt)
                    if taken is not None:
                        yield number, Saved(attempts[number][0], *taken)
        except PlatformError as error:
            log.warning("What a cluster that is gone may have finished cannot be asked for: %s", error)
        finally:
            site.close()

    def _by_ended_job(self, site: Site, attempts: Mapping[int, tuple[int, str]]) -> dict[str, list[int]]:
        """Return the trials by the job that they ran on, of jobs that are over; waits for one that is ending."""
        entries = site.ledger(str(self._folder.path)).entries()
        jobs = {entry.name: entry.job_id for entry in entries if entry.base_url == site.base_url}
        found: dict[str, list[int]] = {}
        for number, (_, lease) in attempts.items():
            if job_id := jobs.get(lease):
                found.setdefault(job_id, []).append(number)
        return {job_id: mine for job_id, mine in found.items() if self._is_over(site, job_id)}

    def _is_over(self, site: Site, job_id: str) -> bool:
        until = time.monotonic() + STOP_SECONDS
        try:
            while (state := site.platform.state(job_id)).ending or state.ended:
                if state.stopped:
                    return True
                if time.monotonic() > until or self._stop.wait(site.poll.total_seconds()):
                    return False
        except PlatformRefused as error:  # somebody has deleted it
            log.warning("What job %s has left cannot be asked for: %s", job_id, error)
        return False

    def _taken(self, files: SavedFiles, trial: optuna.Trial, attempt: str) -> tuple[Outcome, float] | None:
        """Return what an attempt left, and how long it ran; None where it is not all there, or is of no use."""
        place = self._folder.path / f"trials/{trial.number:05d}"
        try:
            with tempfile.TemporaryDirectory(prefix="saved-", dir=self._folder.path) as copies:
                work = WorkDir(
                    cast("Link", SavedLink(files, Path(copies))),
                    attempt=attempt,
                    number=trial.number,
                    folder=place,
                    inputs_root=self._spec.folder,
                    cores=1,
                    env={},
                    delimiters=self._spec.trial.template.delimiters,
                )
                returned, seconds = task_of(self._objective, trial)(work)
                work.check()
                outcome = outcome_of(returned, len(self._spec.directions), trial.number)
                for output in outcome.later:
                    files.check(output.path)
                    if self._spec.trial.keep_outputs == "all":  # one that is not what it was lets the trial run again
                        work.pull(output.path)
                if self._spec.trial.keep_outputs == "all":
                    outcome = replace(outcome, later=())
        except DiskFull:
            raise
        except NotSaved as error:  # as a rule it ran when its machine was lost
            log.debug("%s", error)
            return None
        except OSError as error:
            raise refusal_of(error, place) from None
        except Exception as error:  # noqa: BLE001 - a user's objective may raise anything; then the trial runs again
            words = error.message if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
            log.info("trial %d runs again, since attempt %s left no result: %s", trial.number, attempt, words)
            self._useless.add(attempt)
            return None
        log.info("trial %d: it had ended on a cluster that is gone; its files are fetched", trial.number)
        return outcome, seconds


def _unfinished(folder: RunFolder) -> dict[int, tuple[int, str]]:
    """Return of each trial without a result its last attempt, and the lease on which that was started."""
    found: dict[int, tuple[int, str]] = {}
    for record in folder.journal():
        if record["kind"] == "attempt":
            found[record["trial"]] = (record["attempt"], str(record.get("where", "")).partition(" ")[0])
        elif record["kind"] in {"result", "pilot"}:
            found.pop(record["trial"], None)
    return found
