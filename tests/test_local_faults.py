"""What can go wrong on the driver's own machine, through `run-study`: it is told, and costs neither money nor results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.driving import HOSTILE, all_jobs, unfinished_jobs, until
from tests.small_disk import fill, small_disk
from tests.test_survival import LONG, SHORT, Gated

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Gated]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Gated(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")
    assert not found.platform_address.exists()


def test_a_full_disk_here_is_a_pause(place) -> None:
    """Results that find no room are not told; when there is room they are, and no trial has run twice (row D6)."""
    with small_disk(place.runs, "8m") as runs, place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        ballast = fill(runs)
        place.go.touch()
        until(lambda: "is full" in driver.said, "the pause")
        assert len(unfinished_jobs(platform)) == 1
        ballast.unlink()
        assert driver.end() == 0, driver.said
        assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
        assert [row["attempts"] for row in place.rows()] == ["1"] * 3
        assert unfinished_jobs(platform) == []
    assert place.counts == {"0": 1, "1": 1, "2": 1}
    assert "Traceback" not in driver.said
    assert "Logging error" not in driver.said


def test_a_disk_that_stays_full_here_does_not_cost_a_cluster(place) -> None:
    """After orphan_idle the cluster goes back; the next start takes what is on the platform, and runs the rest."""
    line = place.gated()
    with small_disk(place.runs, "8m") as runs, place.platform() as platform:
        driver = place.start(*line, **SHORT)
        place.until_two_run()
        ballast = fill(runs)
        place.go.touch()
        assert driver.end() == 1, driver.said
        assert unfinished_jobs(platform) == []
        assert len(all_jobs(platform)) == 1
        ballast.unlink()
        place.run(*line, **LONG)
        assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
        results = [json.loads(text) for text in (runs / "tiny/journal.jsonl").read_text().splitlines()]
        assert sorted(record["trial"] for record in results if record.get("kind") == "result") == [0, 1, 2]
    assert "is full" in driver.said
    assert "Traceback" not in driver.said
    assert place.counts == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("before", ["a new folder", "a study that ran"])
def test_a_folder_that_cannot_be_written_costs_nothing(place, before) -> None:
    """A read-only disk under runs/: exit code 2 with the folder and the option that helps, and no job (row D6)."""
    place.go.touch()
    line = place.gated()
    with small_disk(place.runs, "8m") as runs, place.platform() as platform:
        if before == "a study that ran":
            place.run(*line, **LONG)
        jobs = len(all_jobs(platform))
        subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
        driver = place.run(*line, "--n-trials", 9, code=2, **LONG)
        assert len(all_jobs(platform)) == jobs
    assert f"{runs}" in driver.said
    assert "cannot be written: Read-only file system" in driver.said
    assert "Choose --runs-dir DIR" in driver.said
    assert "Traceback" not in driver.said


@pytest.mark.parametrize("how", ["immutable", "a folder in its place"])
def test_a_table_that_is_open_elsewhere(place, how) -> None:
    """A trials.csv that cannot be replaced is said once and ends nothing; the next start writes it."""
    place.go.touch()
    line = place.gated()
    place.run(*line, "--n-trials", 1, **LONG)
    table = place.runs / "tiny/trials.csv"
    if how == "immutable":
        if subprocess.run(["chattr", "+i", str(table)], capture_output=True, check=False).returncode:
            pytest.skip("needs a file system and the right for chattr +i")
    else:
        table.unlink()
        table.mkdir()
    try:
        driver = place.run(*line, **LONG)
    finally:
        if how == "immutable":
            subprocess.run(["chattr", "-i", str(table)], check=True)
        else:
            table.rmdir()
    assert driver.said.count("trials.csv could not be written: ") == 1
    assert "Traceback" not in driver.said
    assert list(table.parent.glob("*.new")) == []
    assert len(place.events("tiny", "end")) == 3
    assert json.loads((table.parent / "summary.json").read_text())["trials"] == {"COMPLETE": 3}

    place.run(*line, **LONG)
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3


def switch_of(place: Gated) -> tuple[int, Path]:
    """Return the process of the dead-man's switch that runs now, and the folder of its lease on the head node."""
    for pid in place.processes():
        at = Path(f"/proc/{pid}")
        try:
            command, folder = (at / "cmdline").read_bytes(), (at / "cwd").readlink()
        except OSError:  # it has ended
            continue
        if b"KEEPER-START" in command and "/.persistent-runner/" in str(folder):
            return pid, folder
    raise AssertionError("no switch runs")


def test_a_driver_that_was_suspended_gives_no_verdict(place) -> None:
    """A laptop that sleeps longer than a trial may take, or be silent: the node keeps the time, nothing runs twice."""
    line = place.gated()
    limits = ["--set", "trial.timeout=5s", "--set", "trial.stall=4s"]
    with place.platform() as platform:
        driver = place.start(*line, *limits, **LONG)
        place.until_two_run()
        os.kill(driver.process.pid, signal.SIGSTOP)
        place.go.touch()
        tick = switch_of(place)[1] / "tick"  # empty in the moment in which it is written anew
        before = until(lambda: int(tick.read_text() or 0), "a tick")
        until(lambda: int(tick.read_text() or 0) > before + 30, "more than both limits")
        os.kill(driver.process.pid, signal.SIGCONT)
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 1
    assert [(row["state"], row["attempts"], row["failure"]) for row in place.rows()] == [("COMPLETE", "1", "")] * 3
    assert place.counts == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "ended: Completed"), (signal.SIGSTOP, "its dead-man's switch is gone")],
    ids=["and the job ends", "and the job goes on"],
)
def test_a_switch_that_is_gone_is_noticed(place, number, said) -> None:
    """The keeper counts no more: the study leaves that cluster for one that would end by itself (row R11)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        os.kill(switch_of(place)[0], number)
        until(lambda: len(all_jobs(platform)) == 2, "another cluster")
        place.go.touch()
        assert driver.end() == 0, driver.said
        assert unfinished_jobs(platform) == []
    assert said in driver.said
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3


BAD = {
    "half of it": ("""printf '{"x": 0.1'""", "result.json"),
    "nothing": ("printf ''", "result.json"),
    "nan": ("""echo '{"x": NaN}'""", "not a finite number"),
    "infinity": ("""echo '{"x": Infinity}'""", "not a finite number"),
    "a text like infinity": ("""echo '{"x": "inf"}'""", "not a"),
    "a number beyond all": ("""echo '{"x": 1e999}'""", "not a finite number"),
    "a text beyond all": ("""echo '{"x": "1e999"}'""", "not a"),
    "a boolean": ("""echo '{"x": true}'""", "not a number"),
    "a text": ("""echo '{"x": "thin"}'""", "not a number"),
    "a huge integer": ("""python3 -c 'print("{\\"x\\": 1" + 400 * "0" + "}")'""", "not a finite number"),
    "an integer that Python does not write": ("""python3 -c 'print("{\\"x\\": 1" + 6000 * "0" + "}")'""", "number"),
    "null": ("""echo '{"x": null}'""", "not a number"),
}


def test_results_that_are_none(place) -> None:
    """Half a file, NaN, infinity, booleans, texts and huge integers fail their trial, which says why (rows T1 to T4)."""
    cases = "".join(f"{n}) {command} ;;\n" for n, (command, _) in enumerate(BAD.values()))
    study = place.study(
        f"case $TRIAL_NUMBER in\n{cases}*) cat parameters.json ;;\nesac > result.json", n_trials=len(BAD) + 1
    )
    place.run(study, "--no-pilot", "--set", "study.max_consecutive_failures=99", **LONG)
    rows = place.rows()
    assert [row["state"] for row in rows] == ["FAIL"] * len(BAD) + ["COMPLETE"]
    for row, (name, (_, said)) in zip(rows, BAD.items(), strict=False):
        assert said in row["failure"], (name, row["failure"])
        assert row["failure"].startswith(f"unknown: trial {row['number']}"), row["failure"]
        assert row["value"] == ""
