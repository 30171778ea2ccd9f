"""`--reread`: the numbers of all finished trials anew, out of the files that were kept; no solver runs."""

from __future__ import annotations

import copy
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from persistent_runner.errors import ConfigError, TrialFailed
from persistent_runner.redaction import redact
from persistent_runner.study.objective import CommandObjective
from persistent_runner.study.proposals import is_rejected
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.resume import Result, commit, owner
from persistent_runner.study.storage import open_storage, open_study

if TYPE_CHECKING:
    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)

_CONSTRAINT = "constraints:"  # Optuna's own key of a constraint, before its name


def reread(spec: StudySpec, study: optuna.Study, folder: RunFolder) -> optuna.Study:
    """Return the study with the values that the readers find now; the former database stays as `study.db.before`.

    A finished trial cannot be changed in Optuna, so the study is written anew beside the old one, which is replaced at
    once. Trials of other drivers and such as never ran stay as they are. ConfigError for a Python objective, which has
    no readers, and for a storage that others may use.
    """
    if spec.trial.objective:
        raise ConfigError(
            "--reread: a Python objective returns its values itself, and nothing else reads them",
            remedy="Run it again.",
        )
    if spec.study.storage != "sqlite":
        raise ConfigError(
            "--reread writes a study anew, and others may use this storage",
            remedy="--new NAME begins another study with the new readers.",
        )
    objective = CommandObjective(spec)
    path = folder.database.with_name("study.db.new")
    path.unlink(missing_ok=True)
    storage = open_storage("sqlite", path)
    fresh = optuna.create_study(study_name=spec.study.name, storage=storage, directions=spec.directions)
    for key, value in study.user_attrs.items():
        fresh.set_user_attr(key, value)
    count = changed = 0
    # The first trial of a study, whose command has ended well and whose numbers were not found, waits to run again.
    waiting = {it["trial"]: it["attempt"] for it in folder.journal() if it["kind"] == "pilot" and it.get("ran")}
    for trial in study.get_trials(deepcopy=False):
        again = trial
        is_ours = owner(trial) == folder.run_id
        if is_ours and trial.state in {TrialState.COMPLETE, TrialState.FAIL}:
            again = _read(objective, trial, folder)
        elif is_ours and trial.state == TrialState.WAITING and trial.number in waiting:
            again = _read_first(objective, trial, folder, waiting[trial.number])
        if again is not trial:
            count += 1
            changed += (again.state, again.values) != (trial.state, trial.values)
        if not is_rejected(trial) and again is not trial:
            _commit(folder, again)
        fresh.add_trial(again)
    _close(storage)
    _close(study._storage)  # noqa: SLF001 - Optuna has no public way to close a study
    folder.database.replace(folder.database.with_name("study.db.before"))
    path.replace(folder.database)
    were = "trial was" if count == 1 else "trials were"
    log.info("%d %s read again, %d of them with another result", count, were, changed)
    return open_study(spec, folder)


def _read(objective: CommandObjective, trial: optuna.trial.FrozenTrial, folder: RunFolder) -> optuna.trial.FrozenTrial:
    """Return a trial as its files say now."""
    again = copy.deepcopy(trial)
    facts = again.user_attrs[USER_ATTRIBUTE]
    kept = {key: value for key, value in again.system_attrs.items() if not key.startswith(_CONSTRAINT)}
    try:
        outcome = objective.read(trial.params, folder.path / f"trials/{trial.number:05d}")
    except TrialFailed as error:
        again.state, again.values = TrialState.FAIL, None
        facts |= {"metrics": {}, "failure": facts["failure"] or redact(f"trial {trial.number}: {error.message}")}
        again.system_attrs = kept
        return again
    again.state, again.values = TrialState.COMPLETE, list(outcome.values)
    facts |= {"metrics": outcome.metrics, "failure": ""}
    again.system_attrs = kept | {_CONSTRAINT + name: value for name, value in outcome.constraints.items()}
    return again


def _read_first(
    objective: CommandObjective, trial: optuna.trial.FrozenTrial, folder: RunFolder, attempt: int
) -> optuna.trial.FrozenTrial:
    """Return the trial that runs alone as its files say now; as it was, with a word why, where they say nothing."""
    ran = copy.deepcopy(trial)
    ran.datetime_complete = datetime.now()  # noqa: DTZ005 - Optuna's times are local ones
    ran.user_attrs[USER_ATTRIBUTE] |= {"failure": "", "attempts": attempt, "folder": f"trials/{trial.number:05d}"}
    again = _read(objective, ran, folder)
    if again.state == TrialState.COMPLETE:
        return again
    log.warning("%s", again.user_attrs[USER_ATTRIBUTE]["failure"])
    return trial


def _commit(folder: RunFolder, trial: optuna.trial.FrozenTrial) -> None:
    constraints = {
        key.removeprefix(_CONSTRAINT): value for key, value in trial.system_attrs.items() if key.startswith(_CONSTRAINT)
    }
    result = Result(trial.state, trial.values, trial.user_attrs[USER_ATTRIBUTE], constraints)
    commit(folder, trial.number, trial.params, result)


def _close(storage: Any) -> None:
    """Let go of a database file, with all that SQLite keeps beside it."""
    storage.remove_session()
    engine = getattr(storage, "engine", None) or storage._backend.engine  # noqa: SLF001 - behind Optuna's cache
    engine.dispose()
