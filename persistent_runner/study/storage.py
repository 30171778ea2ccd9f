"""The stored study: SQLite in the run folder or any Optuna storage URL, and whether it is still the same study."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy

from persistent_runner.errors import ConfigError
from persistent_runner.study.results import USER_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from optuna.storages import BaseStorage

    from persistent_runner.study.run_folder import RunFolder
    from persistent_runner.study.spec import StudySpec

BUSY_SECONDS = 60  # how long a writer waits for another one


def open_storage(storage: str, database: Path) -> BaseStorage:
    """Return the storage that study.toml names; `sqlite` means the file `database`.

    ConfigError when it cannot be opened. SQLite is put in WAL mode with a patient lock: one writer at a time, readers
    never wait, and a killed process loses nothing that was committed.
    """
    if storage != "sqlite":
        try:
            return optuna.storages.get_storage(storage)
        except (ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError) as error:
            shown = (
                sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
                if "://" in storage
                else storage
            )
            raise ConfigError(
                f"[study] storage: {shown} cannot be opened: {type(error).__name__}",
                remedy='Write "sqlite" or a URL that Optuna takes, and install the driver that the URL names.',
            ) from None
    try:
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    except sqlite3.Error as error:
        raise ConfigError(
            f"{database} cannot be opened: {error}", remedy="Is its folder writable and the disk free?"
        ) from None
    opened = optuna.storages.RDBStorage(
        # The path goes in by `creator`, since `?`, `#` and `%` of a folder's name would end or change a URL.
        "sqlite://",
        engine_kwargs={
            "creator": lambda: _connect(database),
            "poolclass": sqlalchemy.pool.QueuePool,
        },
    )
    return optuna.storages.get_storage(opened)


def _connect(database: Path) -> Any:
    connection = sqlite3.connect(database, timeout=BUSY_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def open_study(spec: StudySpec, folder: RunFolder) -> optuna.Study:
    """Return the study of a study.toml, new or as earlier starts left it, with its sampler.

    ConfigError where the stored one has another space or other objectives.
    """
    quiet_optuna()
    fingerprint = spec.fingerprint()
    if folder.fingerprint not in (None, fingerprint):
        raise ConfigError(
            f"{spec.file}: the study in {folder.path} was begun with other settings: "
            + "; ".join(_differences(folder.fingerprint, fingerprint)),
            remedy="Put them back, or begin a new study: another [study] name, or --runs-dir.",
        )
    storage = open_storage(spec.study.storage, folder.database)
    study = optuna.create_study(
        study_name=spec.study.name, storage=storage, directions=spec.directions, load_if_exists=True
    )
    if [direction.name.lower() for direction in study.directions] != spec.directions:
        raise ConfigError(
            f"the stored study {spec.study.name} has the directions "
            f"{', '.join(direction.name.lower() for direction in study.directions)}",
            remedy="Begin a new study: another [study] name, or --runs-dir.",
        )
    if study.user_attrs.get(USER_ATTRIBUTE) is None:
        study.set_user_attr(USER_ATTRIBUTE, {"objectives": spec.objective_names})
    if folder.fingerprint is None:
        folder.set_fingerprint(fingerprint)
    study.sampler = spec.make_sampler(derived_seed(spec.study.seed, len(study.get_trials(deepcopy=False))))
    return study


def _differences(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Iterator[str]:
    for table, entries in now.items():
        old = (before or {}).get(table) or {}
        for key in dict.fromkeys([*old, *entries]):
            if old.get(key) != entries.get(key):
                yield f"[{table}] {key} was {_said(old.get(key))}, now {_said(entries.get(key))}"


def _said(value: object) -> str:
    return "absent" if value is None else json.dumps(value)


def derived_seed(seed: int | None, trials: int) -> int | None:
    """Return the sampler's seed for a study that has `trials` already; the same again would repeat its proposals."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed}:{trials}".encode()).digest()[:4], "big")


def quiet_optuna() -> None:
    """Keep Optuna's own lines and its notes about experimental samplers off the terminal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
