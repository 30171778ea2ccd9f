"""What a power cut may leave of a run folder: whatever is cut, the next start has a result whole, or runs the trial."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from persistent_runner.disk import append_whole, write_whole
from persistent_runner.errors import ConfigError
from persistent_runner.study.progress import Limits
from persistent_runner.study.results import write_table
from persistent_runner.study.resume import settle_earlier
from persistent_runner.study.run_folder import RunFolder
from tests.study.test_loop import Threads, a_loop, new_study, states, value_of

TRIALS = 3


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """Leave a run folder as a driver does that dies when all results are in the journal, and none was told."""
    with RunFolder(tmp_path / "left", "wing") as folder, folder.log():
        study = new_study("sqlite", folder)
        a_loop(study, folder, value_of, limits=Limits(TRIALS), capacity=1).run()
        write_table(folder, study)
        for trial in range(TRIALS):
            (folder.path / f"trials/{trial:05d}").mkdir()
            write_whole(folder.path / f"trials/{trial:05d}/result.json", b"{}")
    return tmp_path / "left"


def cut(left: Path, name: str, size: int) -> Path:
    """Return a copy of a run folder in which a file has its first bytes alone."""
    copy = left.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(left, copy)
    with (copy / name).open("r+b") as file:
        file.truncate(size)
    return copy


@pytest.fixture
def not_told(left: Path) -> Path:
    """Let all trials still run in the study, as when every telling was lost with the power."""
    with RunFolder(left, "wing") as folder:
        folder.database.unlink()
        loop = a_loop(new_study("sqlite", folder), folder, value_of)
        for _ in range(TRIALS):
            loop._proposals.next(is_any_waiting=False)
    return left


def test_a_journal_that_is_cut_anywhere(not_told: Path) -> None:
    """Every prefix of the journal is one that a start copes with: whole results are told, the others' trials run."""
    whole = (not_told / "journal.jsonl").read_bytes()
    lines = [len(line) for line in whole.splitlines(keepends=True)]
    ends = {sum(lines[: n + 1]) for n in range(len(lines))}
    sizes = sorted({0, 1, *(end + shift for end in ends for shift in (-1, 0, 40) if end + shift <= len(whole))})
    for size in sizes:
        with RunFolder(cut(not_told, "journal.jsonl", size), "wing") as folder:
            there = {record["trial"]: record for record in folder.journal() if record["kind"] == "result"}
            assert len(there) == sum(end <= size for end in sorted(ends)[1::2])
            study, threads = new_study("sqlite", folder), Threads()
            a_loop(study, folder, value_of, limits=Limits(TRIALS), capacity=1, threads=threads).run()
            assert states(study) == ["COMPLETE"] * TRIALS
            assert [number for number, _ in threads.attempts] == [n for n in range(TRIALS) if n not in there]
            kept = [record["trial"] for record in folder.journal() if record["kind"] == "result"]
            assert sorted(kept) == list(range(TRIALS))


@pytest.mark.parametrize(
    "name", ["driver.json", "events.jsonl", "run.log", "trials.csv", "trials/00001/result.json", "driver.lock"]
)
def test_what_is_no_truth_may_be_cut(left: Path, name: str) -> None:
    """Nothing that is only looked at keeps a start from going on, or changes what it knows."""
    if not (left / name).exists():
        (left / name).write_text('{"pid": 1, "host": "there", "since": "then"}')  # of a driver that was killed
    size = (left / name).stat().st_size
    for left_over in sorted({0, 1, size // 2, size - 1} - {-1}):
        with RunFolder(cut(left, name, left_over), "wing") as folder, folder.log():
            study = new_study("sqlite", folder)
            assert settle_earlier(study, folder).begin(0, "") == 2
            write_table(folder, study)
            assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]
            folder.event("start", trial=3)
        assert (folder.path / "trials.csv").read_text().count("COMPLETE") == TRIALS


def test_a_run_that_does_not_know_its_name_is_not_guessed(left: Path) -> None:
    """run.json is renamed into its place when the disk has it, so it is whole; where it is not, a start says so."""
    for size in (0, 1, (left / "run.json").stat().st_size - 3):
        with pytest.raises(ConfigError, match=r"run\.json is damaged"), RunFolder(cut(left, "run.json", size), "wing"):
            pytest.fail("entered")


def traced(tmp_path: Path, code: str, *arguments: object) -> list[str]:
    """Return the calls by which a piece of code writes, renames and waits for the disk, in their order."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    log = tmp_path / "calls"
    calls = "trace=write,fsync,rename,ftruncate,openat"
    line = ["strace", "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", code, *map(str, arguments)]
    if subprocess.run(line, capture_output=True, check=False, cwd=Path(__file__).parents[2]).returncode:
        pytest.skip("strace may not look here")
    found = [re.search(r"(write|fsync|rename|ftruncate)\((.*)", text) for text in log.read_text().splitlines()]
    return [f"{call[1]} {call[2]}" for call in found if call and str(tmp_path / "run") in call[2]]


def test_the_disk_has_a_file_before_its_name(tmp_path: Path) -> None:
    """Content, then name, then folder: in any other order a power cut can leave a name without content (row D7)."""
    (tmp_path / "run").mkdir()
    code = "import sys; from pathlib import Path; from persistent_runner.disk import *\nwrite_whole(Path(sys.argv[1]), b'x')"
    calls = traced(tmp_path, code, tmp_path / "run/file")
    assert [call.split()[0] for call in calls] == ["write", "fsync", "rename", "fsync"]
    assert "/run>" in calls[-1]
    code = code.replace("write_whole", "append_whole")
    calls = traced(tmp_path, code, tmp_path / "run/file")
    assert [call.split()[0] for call in calls] == ["write", "fsync"]
    assert (tmp_path / "run/file").read_bytes() == b"xx"


def test_an_append_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """Half a record in front of the next one would be damage in the middle."""
    path = tmp_path / "journal"
    append_whole(path, b"one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_whole(path, b"two is longer\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"one\n"
