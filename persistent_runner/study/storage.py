"""The stored study: SQLite in the run folder or any Optuna storage URL, and whether it is still the same study."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import sqlite3
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy

from persistent_runner.errors import ConfigError
from persistent_runner.recovery import Backoff, recover
from persistent_runner.study.results import USER_ATTRIBUTE
from persistent_runner.study.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optuna.storages import BaseStorage

    from persistent_runner.study.spec import StudySpec

log = logging.getLogger(__name__)

BUSY_SECONDS = 60  # how long a writer waits for another one
_MADE_SECONDS = 3.0  # for another driver to make the tables of a storage
_ANOTHER_STUDY = "Put the settings back, or begin a new study with --new NAME."


def open_storage(storage: str, database: Path) -> BaseStorage:
    """Return the storage that study.toml names; `sqlite` means the file `database`.

    ConfigError when it cannot be opened. SQLite is put in WAL mode with a patient lock: one writer at a time, readers
    never wait, and neither a killed process nor a power cut loses anything that was committed.
    """
    with _opening(f"[study] storage: {_without_password(storage)}" if storage != "sqlite" else str(database)):
        if storage != "sqlite":
            url = sqlalchemy.engine.make_url(storage) if "://" in storage else None
            if url is None or url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or url.query:
                return _shared_storage(storage)
            database = Path(url.database)  # relative to the current folder, as everywhere
        _make_tables(database)
        opened = optuna.storages.RDBStorage(
            # The path goes in by `creator`, since `?`, `#` and `%` of a folder's name would end or change a URL.
            "sqlite://",
            engine_kwargs={"creator": lambda: _connect(database), "poolclass": sqlalchemy.pool.QueuePool},
        )
        return optuna.storages.get_storage(opened)


def _make_tables(database: Path) -> None:
    """Make the tables of a new database, all or none, where Optuna makes one after the other and no index later.

    Without the index of names it would take the study of each start for a new one.
    """
    with contextlib.closing(_connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        if connection.execute("SELECT name FROM sqlite_master").fetchone():
            return
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
            optuna.storages.RDBStorage(
                "sqlite://", engine_kwargs={"creator": lambda: memory, "poolclass": sqlalchemy.pool.StaticPool}
            )
            statements = list(memory.iterdump())[1:-1]  # without its own BEGIN and COMMIT
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT name FROM sqlite_master").fetchone():  # by another driver meanwhile
                for statement in statements:
                    connection.execute(statement)


def _shared_storage(storage: str) -> BaseStorage:
    """Open a storage that others may make at the same moment: then their tables are in the way once, and are there."""
    made_by_others = (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
    return recover(
        lambda: optuna.storages.get_storage(storage),
        {kind: lambda _: log.info("another driver makes the study's storage now") for kind in made_by_others},
        Backoff(first=0.2, most=1, total=_MADE_SECONDS),
    )


@contextlib.contextmanager
def _opening(name: str) -> Iterator[None]:
    """Translate what a storage that cannot be opened raises; no library's text is shown, it may hold the password."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(
            f"{name} cannot be opened: {error}", remedy="Is the file Optuna's and the disk free?"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"{name} cannot be opened: {error.name or 'a library'} is not installed", remedy="Install it with pip."
        ) from None
    except (
        ValueError,
        LookupError,
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.OptunaError,
    ) as error:
        raise ConfigError(
            f"{name} cannot be opened: {root_cause(error)}",
            remedy='Write "sqlite" or a URL that Optuna takes; its server must answer and fit the version of Optuna.',
        ) from None


def root_cause(error: BaseException) -> str:
    """Return the class of what lies under an error, since its text may hold an address with a password."""
    while error.__cause__ is not None:
        error = error.__cause__
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, sqlite3.Error) else name  # SQLite's own texts hold no address


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return f"{url.partition('://')[0]}://..."


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, timeout=BUSY_SECONDS, check_same_thread=False)
    # Each commit is on the disk, as each record of the journal is: after a power cut the journal must not know results
    # of trials that the study has never heard of. It costs some milliseconds a trial.
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def open_study(spec: StudySpec, folder: RunFolder) -> optuna.Study:
    """Return the study of a study.toml, new or as earlier starts left it, with its sampler.

    ConfigError where the stored one has another space or other objectives.
    """
    quiet_optuna()
    fingerprint = spec.fingerprint()
    if folder.fingerprint is None and any(folder.journal()):
        raise ConfigError(
            f"{folder.path} holds the results of a Python study of the same name",
            remedy="Give this one another [study] name, or another --runs-dir.",
        )
    _refuse_changed(spec, f"the study in {folder.path}", folder.fingerprint, fingerprint)
    name = spec.study.name
    storage = open_storage(spec.study.storage, folder.database)
    with _opening(f"the study {name}"):
        study = optuna.create_study(study_name=name, storage=storage, directions=spec.directions, load_if_exists=True)
        directions = [direction.name.lower() for direction in study.directions]
        stored = study.user_attrs.get(USER_ATTRIBUTE) or {}
        # Another run folder may have begun it, where the storage is shared.
        _refuse_changed(spec, f"the stored study {name}", stored.get("fingerprint"), fingerprint)
        if directions != spec.directions:
            raise ConfigError(
                f"the stored study {name} has the directions {', '.join(directions)}", remedy=_ANOTHER_STUDY
            )
        if not stored:
            study.set_user_attr(USER_ATTRIBUTE, {"objectives": spec.objective_names, "fingerprint": fingerprint})
        trials = len(study.get_trials(deepcopy=False))
    if folder.fingerprint is None:
        folder.set_fingerprint(fingerprint)
    shared = spec.study.storage != "sqlite"
    run = folder.run_id if shared else ""
    seed = spec.study.seed if spec.keeps_seed else derived_seed(spec.study.seed, trials, run)
    study.sampler = spec.make_sampler(seed)
    return study


@contextlib.contextmanager
def folder_of(study: optuna.Study, first: Path) -> Iterator[RunFolder]:
    """Hold the run folder of a Python study: the one it had before, or else `first`, `first`-2 ... that nobody has."""
    known = study.user_attrs.get(USER_ATTRIBUTE) or {}
    paths = (first.with_name(f"{first.name}-{n}") if n > 1 else first for n in itertools.count(1))
    path = next(path for path in paths if RunFolder.run_at(path) in (None, known.get("run")))
    with RunFolder(path, study.study_name) as folder:
        if known.get("run") != folder.run_id:
            study.set_user_attr(USER_ATTRIBUTE, known | {"run": folder.run_id})
        log.info("Results: %s", path)
        yield folder


def _refuse_changed(spec: StudySpec, which: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    if before not in (None, now):
        raise ConfigError(
            f"{spec.file}: {which} was begun with other settings: " + "; ".join(differences(before or {}, now)),
            remedy=_ANOTHER_STUDY,
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting in which two fingerprints differ, as study.toml has it."""
    for table, entries in now.items():
        old = before.get(table) or {}
        for key in dict.fromkeys([*old, *entries]):
            was, has = old.get(key), entries.get(key)
            if isinstance(was, dict) and isinstance(has, dict):
                names = [name for name in dict.fromkeys([*was, *has]) if was.get(name) != has.get(name)]
                parts = [f"{name} was {_said(was.get(name))}, now {_said(has.get(name))}" for name in names]
                yield from [f"[{table}] {key}: {', '.join(parts)}"] if parts else []
            elif was != has:
                yield f"[{table}] {key} was {_said(was)}, now {_said(has)}"


def _said(value: object) -> str:
    """Return a part of a fingerprint as study.toml has it."""
    if value is None:
        return "absent"
    if isinstance(value, dict):
        parts = [f"{name} = {_said(part)}" for name, part in value.items() if part is not None and part is not False]
        return f"{{ {', '.join(parts)} }}"
    return json.dumps(value)


def derived_seed(seed: int | None, trials: int, run: str = "") -> int | None:
    """Return the sampler's seed for a study that has `trials` already; the same again would repeat its proposals.

    Drivers that share a storage begin with the same number of trials, so each gives its `run` as well.
    """
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed}:{trials}{run and f':{run}'}".encode()).digest()[:4], "big")


def quiet_optuna() -> None:
    """Keep Optuna's own lines and its notes about experimental samplers off the terminal."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
