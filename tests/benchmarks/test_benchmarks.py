"""The benchmarks run, and what they count is true; how long things take is not a test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import begin, busy, day, gaps, logs, many, noop, orphans, rate, readers, studies, survival
from tests.benchmarks.far import far
from tests.openssh import SSHD, WHY_NOT

if TYPE_CHECKING:
    from pathlib import Path

over_openssh = pytest.mark.skipif(SSHD is None, reason=WHY_NOT)


@pytest.mark.skipif(SSHD is None, reason=WHY_NOT)
def test_a_trial_is_one_frame_out_and_one_back(tmp_path: Path) -> None:
    """A no-op trial with an input and a result costs one frame each way; its time stands beside the plain ways'."""
    rows = noop.measure(tmp_path, 3)
    assert (rows[0].frames_out, rows[0].frames_in) == (1, 1)
    assert all(row.seconds > 0 for row in rows)
    printed = noop.table(rows).splitlines()
    assert [line.split(":")[0] for line in printed[1:]] == ["link", "ours", "plain Fabric", "plain Fabric"]


@pytest.mark.skipif(SSHD is None, reason=WHY_NOT)
def test_following_logs_takes_no_round_trip(tmp_path: Path) -> None:
    """Followed or not, a command is one frame out; a line of each comes back in frames that the commands share."""
    commands, lines = 6, 20
    unseen, live, on_line = logs.measure(tmp_path, commands, lines)
    assert [row.frames_out for row in (unseen, live, on_line)] == [commands] * 3
    assert unseen.frames_in == commands
    assert live.frames_in > commands
    assert on_line.lines == commands * lines
    dear = logs.Row("dear", 2.0, 10.0, 0, 0, 0)
    *_, last = logs.table([unseen, dear], commands).splitlines()
    assert last.endswith("MISSED")


def test_a_killed_drivers_cluster_is_played_out_by_the_platforms_journal(tmp_path: Path) -> None:
    """A driver that dies before its submit leaves no cluster; one that dies after it leaves one, which ends in time."""
    before, after = (next(story for story in orphans.STORIES if story.name == name) for name in ("saved", "executing"))
    with orphans.Scene(tmp_path, lost=0) as scene:
        runs = [scene.play(before), scene.play(after)]
    assert [run.trouble for run in runs] == ["", ""]
    assert runs[0].ended_after is None
    assert runs[1].ended_after is not None
    assert sum(runs[1].submitted.values()) == 1
    assert orphans.table(runs).splitlines()[-1].split() == ["all", "2", "1", "0", "0"]


def test_the_table_counts_what_is_late_and_doubled_and_tells_what_was_not_played_out() -> None:
    """A cluster that outlives its limit and a name that was submitted twice are in the sums; an unplayed story is not."""
    story = orphans.STORIES[0]
    runs = [
        orphans.Run(story, story.limit),
        orphans.Run(story, story.limit + orphans.LATE + 1, {"lease": 2}),
        orphans.Run(story, None, trouble="the driver ended with 0"),
    ]
    *_, sums, unplayed = orphans.table(runs).splitlines()
    assert sums.split() == ["all", "2", "2", "1", "1"]
    assert unplayed == "not played out: the driver ended with 0"


def test_the_readers_and_the_plain_ways_find_the_same(tmp_path: Path) -> None:
    """Each kind of output is read both ways; a row says whether a thousand of them take less than a second."""
    rows = readers.measure(tmp_path, 2, 20_000)
    assert all(row.ours > 0 for row in rows)
    slow = readers.Row("slow", 0.0011, 0.0022, 0.001)
    *_, first, last = readers.table([rows[-1], slow]).splitlines()
    assert first.startswith("csv of 0.02 MB, ten metrics")
    assert last.split() == ["slow", "1.100", "ms", "2.200", "ms", "0.50", "1", "ms", "MISSED"]


def test_what_a_trial_that_survives_costs_is_counted(tmp_path: Path) -> None:
    """A trial waits for no frame but its own, and its journal's two fsyncs are told from its output's one."""
    trials = 4
    rows = {row.what: row for row in survival.costs(survival.watched(tmp_path / "watched", trials), trials - 1)}
    assert rows["round trips that a trial waits for, beside its own"].value == 0
    assert rows["frames out of a trial"].of == "drop 1, run 1"
    assert rows["fsyncs of the journal by trial"].value == 2
    assert rows["fsyncs of its outputs by trial"].value == 2  # the file, and its name
    assert rows["fsyncs of outputs from exit to next start"].value == 2
    seen = survival.watched(tmp_path / "ahead", trials, "--set", "trial.stage_ahead=1", *survival.LONGER)
    assert survival.ahead(seen)[0].value == 0
    late = survival.Row("late", 11.0, "s", most=10)
    *_, last = survival.table([*rows.values(), late]).splitlines()
    assert last.split() == ["late", "11.0", "s", "10", "MISSED"]


@over_openssh
def test_trials_of_a_whole_study_say_when_they_ran(tmp_path: Path) -> None:
    """One after the other, far away and not sent ahead: between an end and the next begin lies at least a round trip."""
    study = studies.Study(4, studies.COMMAND.format(seconds=0), "random", stage_ahead="1", is_sent=False)
    with far(tmp_path / "openssh", gaps.FAR_AWAY) as place:
        times = studies.timed(tmp_path / "study", place, study, skip=1)
        assert len(times.spans) == 3
        assert min(times.gaps) > gaps.FAR_AWAY
        assert 0 < times.busy < 1
        assert gaps.fabrics_share(place, 0.01, 1) < 1


@over_openssh
def test_a_whole_study_has_a_rate(tmp_path: Path) -> None:
    """All of its trials are complete, and it stands beside the same command run here."""
    at_once, share = rate.measure(tmp_path, 70, 1)
    assert at_once.peer is not None
    assert share.ours == pytest.approx(at_once.ours / at_once.peer[1])


def test_a_study_of_many_trials_is_measured_by_size(tmp_path: Path) -> None:
    """Its trials are there, as if they had been run: in the study, in the journal, in the table."""
    seen = many.here(tmp_path / "sqlite", "sqlite", 150, 3)
    assert min(seen.trial, seen.start, seen.table, seen.megabytes) > 0
    runs = tmp_path / "sqlite/runs/benchmark"
    assert (runs / "trials.csv").read_text("utf-8").count("COMPLETE") == 153
    assert (runs / "journal.jsonl").read_text("utf-8").count('"result"') == 153
    assert many.here(tmp_path / "memory", "in memory", 100, 3).trial > 0


@over_openssh
def test_the_way_to_the_first_trial_is_from_the_platforms_own_word(tmp_path: Path) -> None:
    """It takes no less than a login and a frame do."""
    (row,) = begin.measure(tmp_path, 1)
    assert row.ours > 5 * begin.RTT


@over_openssh
def test_a_trial_beside_a_busy_thread_is_measured_both_ways(tmp_path: Path) -> None:
    """And the interpreter's turns are as before at the end."""
    before = sys.getswitchinterval()
    alone, beside = busy.measure(tmp_path, 2)
    assert min(alone.ours, beside.ours) > 1000 * busy.RTT
    assert sys.getswitchinterval() == before


def test_a_day_is_really_run_both_ways(tmp_path: Path) -> None:
    """One lease starts up once, a job for each trial each time; the model says what the README says."""
    one, each = day.both(tmp_path / "day", 2, 600.0)
    assert one.whole > day.START_UP + day.TRIALS * 2
    assert each.whole > day.TRIALS * (day.START_UP + 2)
    assert min(one.executed, each.executed) >= day.TRIALS * 2
    assert one.booted > one.executed
    assert [round(day.modelled(day.MODEL, minutes), 1) for minutes in day.MODEL_MINUTES] == [5.4, 1.9, 1.2]
