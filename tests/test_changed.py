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


def test_a_setup_that_fails_costs_no_boot_either(place) -> None:
    """Before the first trial: the cluster is kept, the line into the setup's directory is said, the next start goes on."""
    study = a_study(place, GOOD)
    text = (study / "study.toml").read_text("utf-8")
    (study / "study.toml").write_text(text.replace("[space]", '[setup]\ncommand = "false"\n\n[space]'), "utf-8")
    with place.platform() as platform:
        first = go(place, study, code=1)
        (job,) = unfinished_jobs(platform)
        assert "the setup: `false` ended with exit code 1" in first.said
        assert re.search(r"On the cluster: ssh .*/setup-\w+ ", first.said)
        (study / "study.toml").write_text(text, "utf-8")
        assert f"Going on with job {job}" in go(place, study).said
        assert unfinished_jobs(platform) == []


def test_a_first_trial_whose_file_is_missing_shows_its_log(place) -> None:
    """Many a solver says what is wrong and ends with 0: who wants the file, and the last lines of the whole log."""
    study = a_study(place, "echo cannot open beam.inp\n")
    said = go(place, study, code=1).said
    assert "trial 0 (attempt 00000.1): there is no file result.json; there are:" in said
    assert "; [metrics] y reads it\n" in said
    assert "The last lines of the log:\n    begin\n    cannot open beam.inp\n" in said
    assert f"The log of the command: {place.runs / 'tiny/trials/00000/command-1.log'}" in said


def test_the_first_trial_is_read_again_where_only_its_reader_was_wrong(place) -> None:
    """Its command ended well, so nothing has to run again: not for a reader that is still wrong, nor for one mended."""
    study = a_study(place, GOOD, n_trials=2)
    text = (study / "study.toml").read_text("utf-8")
    (study / "study.toml").write_text(text.replace('json = "x"', 'json = "xx"'), "utf-8")
    assert "--reread takes the numbers from these files and runs nothing" in go(place, study, code=1).said
    again = go(place, study, "--reread", code=1)
    assert 'there is no key "xx"' in again.said
    (study / "study.toml").write_text(text, "utf-8")
    said = go(place, study, "--reread").said
    assert "1 trial was read again" in said
    assert "Nothing was run" in said
    assert [row["state"] for row in place.rows()] == ["COMPLETE"]
    assert len(place.events("tiny", "start")) == 1
    go(place, study)
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 2
    assert len(place.events("tiny", "start")) == 2


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
    assert re.search(r"\ny = 0\.\d+  \(", said)
    assert "The first trial left" not in go(place, study, "--n-trials", "4").said


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
    check = go(place, study, "--check", code=2).out
    assert "changed     deck (solve.sh)\n            readers (y)\n" in check
    assert "deck (solve.sh)" in go(place, study, "--n-trials", "5", "--reread", code=2).said  # that is no reader
    go(place, study, "--n-trials", "5", "--accept-changed")
    (change,) = json.loads((place.runs / "tiny/summary.json").read_text("utf-8"))["changed"]
    assert change == {"settled": 4, "what": "deck (solve.sh); readers (y)"}
    go(place, study, "--n-trials", "6")  # it was accepted
    assert len(place.rows()) == 6
    (study / "case/solve.sh").write_text(GOOD)
    go(place, study, "--new", "other")
    assert (len(place.rows()), len(place.rows("other"))) == (6, 3)


def test_a_refused_start_says_what_still_runs(place) -> None:
    """The cluster that a killed start has left, how it ends by itself, and how to end it now."""
    study = a_study(place, GOOD)
    with place.platform() as platform:
        place.run(study, code=-9, PERSISTENT_RUNNER_CRASH="told", **SHORT)
        (job,) = unfinished_jobs(platform)
        (study / "case/solve.sh").write_text(GOOD + "# better\n")
        refused = go(place, study, code=2)
        assert f"A cluster of an earlier start may still run: {job}. It ends by itself." in refused.said
        assert f"To end it now: persistent-runner stop {job}" in refused.said
        go(place, study, "--accept-changed")
        assert not unfinished_jobs(platform)
    (study / "case/solve.sh").write_text(GOOD)
    assert "may still run" not in go(place, study, code=2).said


def test_what_has_only_failed_results_goes_on_with_what_is_mended(place) -> None:
    """There is nothing that a change could be mixed with; the failed ones run again where that is asked for."""
    study = a_study(place, BAD)
    go(place, study, "--no-pilot", code=1)
    (study / "case/solve.sh").write_text(GOOD)
    said = go(place, study, "--n-trials", "4").said
    assert "Changed after 3 trials: deck (solve.sh)" in said
    assert "--retry-failed runs their designs again" in said
    assert [row["state"] for row in place.rows()] == ["FAIL"] * 3 + ["COMPLETE"]


def test_a_changed_require_is_a_change(place) -> None:
    """What is not allowed any more would stay the best one."""
    study = a_study(place, GOOD)
    go(place, study)
    text = (study / "study.toml").read_text("utf-8")
    (study / "study.toml").write_text(text.replace("[study]", '[study]\nrequire = ["x > 0.1"]'), "utf-8")
    assert "has changed since it began: require." in go(place, study, "--n-trials", "4", code=2).said


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
    said = go(place, study, "--reread", "--n-trials", "9").said
    assert "--reread reads what a study has" in go(place, study, "--reread", "--new", "other", code=2).said
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


def test_a_design_that_was_run_is_answered_from_its_result(place) -> None:
    """Over all starts, as long as nothing has changed: then it is another design."""
    study = a_study(place, 'echo ran >> "$RAN"\ncp parameters.json result.json\n', n_trials=12)
    ran = place.folder / "ran"
    text = (study / "study.toml").read_text("utf-8").replace("[study]", "[study]\nreuse = true")
    text = text.replace(
        'x = { type = "float", low = 0.0, high = 1.0 }', 'x = { type = "categorical", choices = [1, 2] }'
    )
    text = text.replace("env = {", f"env = {{ RAN = {json.dumps(str(ran))},")
    (study / "study.toml").write_text(text, "utf-8")
    go(place, study, "--max-concurrent", "1")
    said = go(place, study, "--n-trials", "20").said
    assert "has the design of trial" in said
    assert ran.read_text() == "ran\n" * 2
    assert [row["value"] for row in place.rows()] == [f"{float(row['params_x'])}" for row in place.rows()]
    (study / "case/solve.sh").write_text('echo ran >> "$RAN"\necho \'{"x": 7}\' > result.json\n')
    go(place, study, "--n-trials", "21", "--accept-changed")
    assert ran.read_text() == "ran\n" * 3
    assert place.rows()[-1]["value"] == "7.0"


def test_known_designs_count_as_none_that_ran(place) -> None:
    """They are in the table, may be the best, and leave the first trial to run alone; the same line adds them once."""
    study = a_study(place, GOOD, n_trials=2)
    known = place.folder / "known.csv"
    known.write_text("x,y\n0.5,-7\n")
    first = go(place, study, "--import", known)
    assert "1 designs, 1 of them new" in first.said
    assert "Best: y = -7 in trial 0" in first.out
    assert "The first trial left 1 file" in first.said
    go(place, study, "--import", known, "--n-trials", "3")
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 4
    assert len(place.events("tiny", "start")) == 3
    known.write_text("x,y\n1.5,-7\n")
    assert "row 2, column x: 1.5 is outside 0 to 1" in go(place, study, "--import", known, code=2).said
