"""Attempts that ended on a cluster that is gone: what the platform has saved of them is fetched, so none runs again."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from persistent_runner.crash import crash_point
from persistent_runner.disk import refusal_of
from persistent_runner.errors import PlatformError, TrialFailed
from persistent_runner.rescale.files import below
from persistent_runner.site import choose_platform
from persistent_runner.study.committed import facts_of
from persistent_runner.study.machines import Saved
from persistent_runner.study.objective import CommandObjective
from persistent_runner.study.resume import Result, commit, owner

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import optuna

    from persistent_runner.rescale.api import File
    from persistent_runner.settings import Settings
    from persistent_runner.site import Site
    from persistent_runner.study.machines import Saver
    from persistent_runner.study.run_folder import RunFolder

log = logging.getLogger(__name__)

STOP_SECONDS = 300.0  # for a cluster that is ending to be gone, before its files are looked for
_EXIT = ".attempt/0/exit.json"
_COMMAND = ".attempt/0/command.json"
_LOG = ".attempt/0/log"


def salvage(
    study: optuna.Study, folder: RunFolder, objective: CommandObjective, settings: Settings, stop: threading.Event
) -> None:
    """Commit what `saved` gives of this run's trials that an earlier start left; `settle_earlier` tells it."""
    left = {
        trial.number: trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        if owner(trial) == folder.run_id
    }
    params = {number: trial.params for number, trial in left.items()}
    for number, result in saved(params, folder, objective, settings, stop):
        trial = left[number]
        if trial.state == TrialState.WAITING:  # only a trial that runs is told
            study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # noqa: SLF001 - as `give_back`
        outcome = result.outcome
        facts = facts_of(folder, trial, result.attempt, result.seconds, metrics=outcome.metrics)
        crash_point("salvaging")
        commit(folder, number, trial.params, Result(TrialState.COMPLETE, outcome.values, facts, outcome.constraints))
        crash_point("salvaged")


def saved(
    trials: Mapping[int, Mapping[str, Any]],
    folder: RunFolder,
    objective: CommandObjective,
    settings: Settings,
    stop: threading.Event,
) -> Iterator[tuple[int, Saved]]:
    """Yield by trial what its last attempt left, of those that ended well and whose cluster has since ended.

    `trials` are their parameters by number. Nothing is taken of a command that was another one than now, by its
    inputs, outputs and text. A platform that does not answer is a reason to go on without. DiskFull where what is
    fetched finds no room here.
    """
    if not trials:
        return
    attempts = {number: last for number, last in _unfinished(folder).items() if number in trials}
    if not attempts:
        return
    site = choose_platform(settings, stop=stop)
    try:
        for job_id, mine in _by_ended_job(site, folder, attempts, stop).items():
            listed = site.platform.files.listed(job_id, name=folder.on_node)
            for number in mine:
                attempt = attempts[number][0]
                files = below(listed, f"{folder.on_node}/{number:05d}.{attempt}")
                result = _Attempt(site, files, folder, number, attempt).take(objective, trials[number])
                if result is not None:
                    yield number, result
    except PlatformError as error:
        log.warning("What a cluster that is gone may have finished cannot be asked for: %s", error)
    finally:
        site.close()


def saver(folder: RunFolder, objective: object, settings: Settings, stop: threading.Event) -> Saver:
    """Return what fetches the results of trials whose cluster is lost; those of a Python study run again."""
    if not isinstance(objective, CommandObjective):
        return lambda _: {}
    return lambda trials: dict(saved(trials, folder, objective, settings, stop))


def _unfinished(folder: RunFolder) -> dict[int, tuple[int, str]]:
    """Return of each trial without a result its last attempt, and the lease on which that was started."""
    found: dict[int, tuple[int, str]] = {}
    for record in folder.journal():
        if record["kind"] == "attempt":
            found[record["trial"]] = (record["attempt"], str(record.get("where", "")).partition(" ")[0])
        elif record["kind"] in {"result", "pilot"}:
            found.pop(record["trial"], None)
    return found


def _by_ended_job(
    site: Site, folder: RunFolder, attempts: Mapping[int, tuple[int, str]], stop: threading.Event
) -> dict[str, list[int]]:
    """Return the trials by the job that they ran on, of jobs that are over; waits for one that is ending."""
    entries = site.ledger(str(folder.path)).entries()
    jobs = {entry.name: entry.job_id for entry in entries if entry.base_url == site.base_url}
    found: dict[str, list[int]] = {}
    for number, (_, lease) in attempts.items():
        if job_id := jobs.get(lease):
            found.setdefault(job_id, []).append(number)
    return {job_id: mine for job_id, mine in found.items() if _is_over(site, job_id, stop)}


def _is_over(site: Site, job_id: str, stop: threading.Event) -> bool:
    until = time.monotonic() + STOP_SECONDS
    while (state := site.platform.state(job_id)).ending or state.ended:
        if state.stopped:
            return True
        if time.monotonic() > until or stop.wait(site.poll.total_seconds()):
            return False
    return False


class _Attempt:
    """One attempt as the platform has saved it: `files` are by path in its working directory."""

    def __init__(self, site: Site, files: dict[str, File], folder: RunFolder, number: int, attempt: int) -> None:
        self._files = files
        self._download = site.platform.files.download
        self._number = number
        self._attempt = attempt
        self._place = folder.path / f"trials/{number:05d}"

    def take(self, objective: CommandObjective, params: Mapping[str, Any]) -> Saved | None:
        """Return what it left, if its command ended well and is the one that would be started now."""
        if _EXIT not in self._files or _COMMAND not in self._files:
            return None
        try:
            ended = self._read(_EXIT)
            if ended["state"] != "done" or ended["code"] != 0:
                return None
            if self._read(_COMMAND)["hash"] != objective.command_hash(params):
                log.info("trial %d: attempt %d ran something else than the study does now", self._number, self._attempt)
                return None
            for output in ended["manifest"]:
                if "sha256" in output and output["path"] in self._files:
                    self._fetch(output["path"], size_bytes=output["size"], sha256=output["sha256"])
            if _LOG in self._files:
                self._fetch(_LOG, "command-1.log")
            result = Saved(self._attempt, objective.read(params, self._place), float(ended["seconds"]))
        except (TrialFailed, PlatformError, KeyError, ValueError) as error:
            log.warning(
                "trial %d: what attempt %d left cannot be used, it runs again: %s", self._number, self._attempt, error
            )
            return None
        except OSError as error:
            raise refusal_of(error, self._place) from None
        log.info("trial %d: it had ended on a cluster that is gone; its files are fetched", self._number)
        return result

    def _fetch(self, path: str, name: str = "", **expected: Any) -> Path:
        return self._download(self._files[path], self._place, name or path, **expected)

    def _read(self, path: str) -> dict[str, Any]:
        """Return a JSON record, of which no copy stays."""
        copy = self._fetch(path, "saved.json")
        try:
            record: dict[str, Any] = json.loads(copy.read_text("utf-8"))
        finally:
            copy.unlink()
        return record
