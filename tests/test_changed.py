"""The first trial alone, what has changed since, the failed again, the kept files read again: as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.driving import HOSTILE, Driver, Place, unfinished_jobs, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHORT = {"PERSISTENT_RUNNER_KEEPER_TICK": "0.5s", "PERSISTENT_RUNNER_BEAT": "0.5s"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Place(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")


def a_study(place: Place, solver: str, **keys: object) -> Path:
    """Write a study that runs `solver`, a shell script among its inputs, as the second of its steps."""
    study = place.study("", **keys)
    (study / "case").mkdir(exist_ok=True)
    (study / "case/solve.sh").write_text(solver)
    text = (study / "study.toml").read_text("utf-8")
    text = re.sub(r"command = .*", 'inputs = ["case/"]\ncommand = ["echo begin", "sh solve.sh"]', text)
    (study / "study.toml").write_text(text.replace("[cluster]", '[cluster]\norphan_idle = "20s"'), "utf-8")
    return study


def go(place: Place, *args: object, code: int = 0) -> Driver:
    """Run `run-study` with signs of life that are quick enough for the study's short limits."""
    return place.run(*args, code=code, **SHORT)


GOOD = "cp parameters.json result.json\n"
BAD = "echo no such mesh >&2; exit 3\n"


def test_a_first_trial_that_fails_costs_one_run_and_no_boot(place) -> None:
    """It runs alone; the message leads to its files here and on the node; mended, the same cluster goes on."""
    study = a_study(place, BAD)
    with place.platform() as platform:
        first = go(place, study, code=1)
        assert len(place.events("tiny", "start")) == 1
        assert [row["state"] for row in place.rows()] == ["WAITING"]
        assert "The first trial failed" in first.said
        assert "`sh solve.sh` (line 2 of the command) ended with exit code 3" in first.said
        assert "    no such mesh\n" in first.said
        assert str(place.runs / "tiny/trials/00000") in first.said
        (job,) = unfinished_jobs(platform)
        assert f"Job {job} is kept for 20s" in first.said

        line = re.search(r"On the cluster: (ssh .*)", first.said)
        assert line is not None
        by_hand = subprocess.run(
            ["bash", "-c", line[1].replace("ssh -t ", "ssh -T -F none ").replace("exec ${SHELL:-sh} -l", "ls")],
            capture_output=True, text=True, env=place.environment, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "solve.sh" in by_hand.stdout.split(), by_hand.stderr

        (study / "case/solve.sh").write_text(GOOD)
        second = go(place, study)
        assert f"Going on with job {job}" in second.said
        assert unfinished_jobs(platform) == []
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    assert place.rows()[0]["attempts"] == "2"


def test_a_first_trial_that_fails_again_unchanged_counts_as_failed(place) -> None:
    """Perhaps it is the design's own fault: then the study goes on, and its cluster is released."""
    study = a_study(place, '[ "$TRIAL_NUMBER" = 1 ] && cp parameters.json result.json')
    with place.platform() as platform:
        go(place, study, code=1)
        second = go(place, study)
        assert "The first trial failed" not in second.said
        assert unfinished_jobs(platform) == []
    assert [row["state"] for row in place.rows()] == ["FAIL", "COMPLETE", "FAIL"]


def test_one_at_a_time_until_one_is_complete(place) -> None:
    """Then as many as fit."""
    study = a_study(place, GOOD, n_trials=5)
    go(place, study)
    events = [json.loads(line)["event"] for line in (place.runs / "tiny/events.jsonl").read_text("utf-8").splitlines()]
    assert events[:2] == ["start", "end"]


def test_what_the_first_trial_left_is_told(place) -> None:
    """What was taken, and what was not and how big it is."""
    study = a_study(place, GOOD + "head -c 3000000 /dev/zero > field.vtk\n")
    said = go(place, study).said
    assert "The first trial left 2 files (3 MB); taken: result.json 38 B; not taken: field.vtk 3 MB" in re.sub(
        r"result.json \d+ B", "result.json 38 B", said
    )


def test_a_study_that_changed_under_its_results_stops(place) -> None:
    """Decks, commands, setups and readers are named, with the ways to go on; a higher number of trials is no change."""
    study = a_study(place, GOOD)
    (study / "case/mesh").mkdir()
    (study / "case/latest").symlink_to("mesh")  # a link to a folder is a part of the deck as well
    go(place, study)
    go(place, study, "--n-trials", "4")
    (study / "case/solve.sh").write_text(GOOD + "# better\n")
    text = (study / "study.toml").read_text("utf-8")
    (study / "study.toml").write_text(text.replace('json = "x"', 'json = "x"\nreduce = "first"'), "utf-8")
    refused = go(place, study, "--n-trials", "5", code=2)
    assert "tiny has changed since it began: deck (solve.sh); readers (y)." in refused.said
    for way in ("--new NAME", "--accept-changed", "--retry-failed", "--reread"):
        assert way in refused.said
    go(place, study, "--n-trials", "5", "--accept-changed")
    go(place, study, "--n-trials", "6")  # it was accepted
    assert len(place.rows()) == 6
    (study / "case/solve.sh").write_text(GOOD)
    go(place, study, "--new", "other")
    assert (len(place.rows()), len(place.rows("other"))) == (6, 3)


def test_failed_trials_run_again(place) -> None:
    """Their designs, once, beside `n_trials`; what was complete does not run again."""
    study = a_study(place, '[ "$TRIAL_NUMBER" != 2 ] && cp parameters.json result.json')
    go(place, study)
    before = place.rows()
    assert [row["state"] for row in before] == ["COMPLETE", "COMPLETE", "FAIL"]
    (study / "case/solve.sh").write_text(GOOD)
    go(place, study, "--retry-failed")
    go(place, study, "--retry-failed")
    rows = place.rows()
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert rows[3]["params_x"] == rows[2]["params_x"]
    assert rows[:3] == before


def test_kept_files_are_read_again(place) -> None:
    """Another reader gives other numbers of the same runs; no command runs, and the former database is kept."""
    study = a_study(place, 'printf "x = 1\\nx = 2\\n" > result.json\n')
    text = (study / "study.toml").read_text("utf-8")
    rule = "regex = 'x = (\\d)'\nreduce = \"{}\""
    (study / "study.toml").write_text(text.replace('json = "x"', rule.format("last")), "utf-8")
    go(place, study)
    starts = len(place.events("tiny", "start"))
    assert [row["value"] for row in place.rows()] == ["2.0"] * 3
    (study / "study.toml").write_text(text.replace('json = "x"', rule.format("first")), "utf-8")
    said = go(place, study, "--reread").said
    assert "3 trials were read again, 3 of them with another result" in said
    assert [row["value"] for row in place.rows()] == ["1.0"] * 3
    assert len(place.events("tiny", "start")) == starts
    assert (place.runs / "tiny/study.db.before").exists()
    go(place, study, "--n-trials", "4")
    assert [row["value"] for row in place.rows()] == ["1.0"] * 4


def test_a_rehearsal_on_the_files_of_a_finished_run(place) -> None:
    """Each metric's value and where it stood; a mistake in one line, and exit code 2; nothing is leased."""
    study = a_study(place, GOOD)
    sample = place.folder / "finished"
    sample.mkdir()
    (sample / "result.json").write_text('{"x": 1.5, "z": 2}')
    out = go(place, study, "--check", "--sample", sample).out
    assert "readings    y = 1.5  (" in out
    (sample / "result.json").write_text('{"xx": 1.5}')
    wrong = go(place, study, "--check", "--sample", sample, code=2)
    assert 'there is no key "x"; there is xx' in wrong.out
    assert "1 of the metrics cannot be read. Nothing was leased." in wrong.out
    assert "there is no folder" in go(place, study, "--check", "--sample", "nowhere", code=2).said
    assert "--sample goes with --check" in go(place, study, "--sample", sample, code=2).said
