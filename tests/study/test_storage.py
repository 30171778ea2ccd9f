"""The stored study: opened wherever its folder lies, refused where it changed, no password shown."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import optuna
import pytest

from persistent_runner.errors import ConfigError
from persistent_runner.study.run_folder import RunFolder
from persistent_runner.study.spec import StudySpec
from persistent_runner.study.storage import derived_seed, open_storage, open_study, quiet_optuna

HOSTILE = """a "quoted" folder's {name} $HOME?x#y%41 ü"""
TOML = """
[study]
name = "wing"
n_trials = 4
seed = 7
sampler = "random"
[cluster]
core_type = "emerald"
cores = 2
walltime = "1h"
[space]
x = { type = "float", low = 0.0, high = 1.0 }
alloy = { type = "categorical", choices = ["a", "b"] }
[trial]
command = "true"
[metrics.y]
file = "y.json"
json = "y"
[objectives]
y = "minimize"
"""


@pytest.fixture
def spec_of(tmp_path):
    (tmp_path / "study.toml").write_text(TOML)
    return lambda *sets: StudySpec.load(tmp_path / "study.toml", sets)


@pytest.fixture
def folder(tmp_path):
    quiet_optuna()
    with RunFolder(tmp_path / HOSTILE, "wing") as found:
        yield found


def test_sqlite_lies_in_the_run_folder_whatever_its_name(folder) -> None:
    """`?`, `#` and `%` of a folder's name do not end up in another file; readers never wait (WAL)."""
    optuna.create_study(storage=open_storage("sqlite", folder.database), study_name="wing")

    assert folder.database.exists()
    connection = sqlite3.connect(folder.database)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("SELECT study_name FROM studies").fetchall() == [("wing",)]
    connection.close()


DIES = """
import os, sys
from pathlib import Path
from persistent_runner.study import storage

connect = storage._connect

def dying(database):
    connection = connect(database)
    connection.set_trace_callback(lambda text: os._exit(9) if "ix_studies_study_name" in text else None)
    return connection

storage._connect = dying
storage.open_storage("sqlite", Path(sys.argv[1]))
"""


def test_a_start_that_dies_while_the_tables_are_made_leaves_none(folder) -> None:
    """Optuna makes no index of a table that is there, and without it takes the study of each start for a new one."""
    assert subprocess.run([sys.executable, "-c", DIES, folder.database], check=False).returncode == 9
    for _ in range(2):
        storage = open_storage("sqlite", folder.database)
        optuna.create_study(study_name="wing", storage=storage, load_if_exists=True)
        assert [found.study_name for found in storage.get_all_studies()] == ["wing"]


def test_what_the_study_takes_is_on_the_disk(folder) -> None:
    """After a power cut the study knows each trial that the journal has a result of: SQLite waits for the disk too."""
    storage = open_storage("sqlite", folder.database)
    with storage._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql+nosuchdriver://me:hunter2@db/wing", "mysql+nosuchdriver://me:***@db/wing"),
        ("redis://:hunter2@db/0", "redis://"),
        ("nonsense://me:hunter2@[/wing", "nonsense://"),
        ("sqlite:////{braces}/study.db", "unable to open database file"),
        ("sqlite:////nowhere/at/all/study.db", "sqlite:////nowhere/at/all/study.db"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(folder, url, said) -> None:
    """The message says which and what to do, and is safe to paste into a ticket."""
    with pytest.raises(ConfigError) as caught:
        open_storage(url, folder.database)
    assert said in caught.value.message
    assert "cannot be opened" in caught.value.message
    assert "hunter2" not in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_no_database_is_named(folder) -> None:
    """study.db is something else: its path and SQLite's own word."""
    folder.database.write_text("this is no database, and long enough to be looked at" * 40)
    with pytest.raises(ConfigError, match="not a database"):
        open_storage("sqlite", folder.database)


def test_a_changed_study_is_refused_with_the_difference(folder, spec_of) -> None:
    """Other bounds, another direction or another choice would mix two studies: each difference is said."""
    open_study(spec_of(), folder)
    for change, said in (
        ("space.x.high=2.0", "begun with other settings: [space] x: high was 1.0, now 2.0"),
        ('objectives.y="maximize"', '[objectives] y was "minimize", now "maximize"'),
        ('space.alloy.choices=["a", "c"]', '[space] alloy: choices was ["a", "b"], now ["a", "c"]'),
        ("space.z=3.0", "[space] z was absent, now 3.0"),
        ('space.x={type="int",low=0,high=1}', '[space] x: type was "float", now "int"'),
    ):
        with pytest.raises(ConfigError) as caught:
            open_study(spec_of(change), folder)
        assert said in caught.value.message
        assert "--new NAME" in caught.value.remedy
    open_study(spec_of("study.n_trials=9", "cluster.cores=4"), folder)  # these may change


def test_a_shared_study_is_compared_too(folder, spec_of, tmp_path) -> None:
    """On a shared storage another run folder may have begun the study: its space counts as well."""
    url = f"study.storage='sqlite:///{tmp_path}/shared.db'"
    open_study(spec_of(url), folder)
    with RunFolder(tmp_path / "other", "wing") as other, pytest.raises(ConfigError, match="the stored study wing"):
        open_study(spec_of(url, "space.x.high=2.0"), other)


def test_seeds_move_on(folder, spec_of) -> None:
    """A resumed study does not propose the same designs again; a new one with the same seed does."""
    study = open_study(spec_of(), folder)
    distributions = spec_of().designs.distributions
    first = [study.ask(distributions).params for _ in range(2)]
    again = open_study(spec_of(), folder)
    assert again.ask(distributions).params not in first
    assert derived_seed(7, 0) == derived_seed(7, 0) != derived_seed(7, 1)
    assert derived_seed(7, 0) != derived_seed(7, 0, "run a") != derived_seed(7, 0, "run b")
    assert derived_seed(None, 3) is None


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_samplers(folder, spec_of, sampler) -> None:
    """study.toml chooses the sampler."""
    study = open_study(spec_of(f'study.sampler="{sampler}"'), folder)
    assert type(study.sampler).__name__.lower() == f"{sampler}sampler"
