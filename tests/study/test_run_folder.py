"""The run folder: held by one driver, a journal that survives a crash."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys

import pytest

from persistent_runner.errors import ConfigError, RunnerError
from persistent_runner.study.run_folder import VERSION, RunFolder

HOSTILE = """a "quoted" folder's {name} $HOME?x#y%41 ü"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / HOSTILE


def test_a_new_folder_has_what_the_readme_says(path) -> None:
    """The first start makes the folder, keeps it out of git, and gives the run a name that later starts keep."""
    with RunFolder(path, "wing") as folder:
        run_id = folder.run_id
        assert list(folder.journal()) == []
        assert folder.on_node == f"{HOSTILE}.{run_id}"
    with RunFolder(path, "wing") as folder:
        assert folder.run_id == run_id

    assert (path.parent / ".gitignore").read_text() == "*\n"
    assert json.loads((path / "run.json").read_text()) == {
        "version": VERSION,
        "run_id": run_id,
        "study": "wing",
        "fingerprint": None,
        "content": None,
    }


def test_a_second_driver_is_refused_and_the_first_is_named(path) -> None:
    """Process and host of the first are said; when it ends, or dies, the folder is free."""
    with RunFolder(path, "wing"), pytest.raises(ConfigError) as caught, RunFolder(path, "wing"):
        pytest.fail("two drivers in one folder")
    assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in caught.value.message
    assert "--runs-dir" in caught.value.remedy
    dying = f"from persistent_runner.study.run_folder import *; from pathlib import Path; import os\nRunFolder(Path({str(path)!r}), 'wing').__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dying], check=False).returncode == 9
    with RunFolder(path, "wing"):
        pass


def test_a_torn_last_line_is_cut(path) -> None:
    """A crash while a record was written costs that record alone, wherever it was cut; the next ones are whole."""
    with RunFolder(path, "wing") as folder:
        folder.commit(kind="attempt", trial=0, attempt=1)
        folder.commit(kind="result", trial=0, values=[1.5])
        journal = path / "journal.jsonl"
        whole = journal.read_bytes()
        first = whole.index(b"\n") + 1
        for cut in range(first, len(whole)):
            journal.write_bytes(whole[:cut])
            assert [record["kind"] for record in folder.journal()] == ["attempt"]
        folder.commit(kind="attempt", trial=0, attempt=2)
        assert [record["kind"] for record in folder.journal()] == ["attempt", "attempt"]


def test_a_damaged_line_is_named(path) -> None:
    """Damage in the middle is no crash of ours: nothing is guessed."""
    with RunFolder(path, "wing") as folder:
        (path / "journal.jsonl").write_text('{"kind": "attempt"}\nrubbish\n{"kind": "attempt"}\n')
        with pytest.raises(ConfigError, match=r"journal\.jsonl, line 2 is damaged"):
            list(folder.journal())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"version": VERSION + 1, "run_id": "ab", "study": "wing"}, "newer persistent_runner"),
        ({"version": VERSION, "run_id": "ab", "study": "beam"}, "belongs to the study 'beam'"),
        ({"version": VERSION}, "is damaged"),
        ("rubbish", "is damaged"),
    ],
    ids=["newer", "another study", "incomplete", "rubbish"],
)
def test_a_folder_that_is_not_ours_to_use(path, content, said) -> None:
    """A newer format, another study's folder or a damaged file are refused, and the folder is free again."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(content if isinstance(content, str) else json.dumps(content))
    for _ in range(2):
        with pytest.raises(ConfigError, match=said), RunFolder(path, "wing"):
            pytest.fail("entered")


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    """A file in the way is named, with the option that helps."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught, RunFolder(tmp_path / "runs/x", "wing"):
        pytest.fail("entered")
    assert "--runs-dir" in caught.value.remedy


def test_what_cannot_be_committed_is_an_error_and_an_event_is_not(path) -> None:
    """A full disk stops a study before a result is told; what only watchers read never does."""
    with RunFolder(path, "wing") as folder:
        (path / "journal.jsonl").unlink()
        (path / "journal.jsonl").mkdir()
        (path / "events.jsonl").mkdir()
        folder.event("start", trial=0)
        with pytest.raises(RunnerError, match=r"journal\.jsonl cannot be written"):
            folder.commit(kind="result")


def test_the_log_holds_everything_and_leaves_no_trace(path) -> None:
    """run.log has the details that the terminal does not show; afterwards logging is as it was."""
    ours = logging.getLogger("persistent_runner")
    before = (ours.level, list(ours.handlers))
    with RunFolder(path, "wing") as folder, folder.log():
        logging.getLogger("persistent_runner.x").debug("a detail: ü")
    assert "DEBUG persistent_runner.x: a detail: ü" in (path / "run.log").read_text("utf-8")
    assert (ours.level, list(ours.handlers)) == before
