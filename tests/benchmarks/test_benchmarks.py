"""The benchmarks run, and what they count is true; how long things take is not a test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import (
    bars,
    begin,
    burst,
    busy,
    day,
    gaps,
    logs,
    many,
    noops,
    objectives,
    opening,
    orphans,
    overhead,
    plain_ways,
    rate,
    readers,
    studies,
    survival,
)
from tests.benchmarks.far import far
from tests.openssh import SSHD, WHY_NOT

if TYPE_CHECKING:
    from pathlib import Path

UNTIL_NEXT_IS_SENT = r"""
name=${PWD##*/}; next=$((10#${name%.*} + 1)); sent=$(printf '"kind": "run", "attempt": "%05d.1"' $next)
for i in {1..1200}; do [ $next = $TRIALS ] || grep -q "$sent" "$RECORD" && break; sleep 0.05; done
cp parameters.json result.json
"""

over_openssh = pytest.mark.skipif(SSHD is None, reason=WHY_NOT)


@over_openssh
def test_a_trial_that_does_nothing_is_one_frame_out_and_one_back(tmp_path: Path) -> None:
    """However many are in flight; the rates of ours and of the peer are those of the same run."""
    alone, many, frames, share = noops.measure(tmp_path, 8, 1)
    assert frames.ours == 2
    assert frames.is_met
    assert alone.ours > 0
    assert share.ours == pytest.approx(many.ours / many.peer[1])


@over_openssh
def test_every_way_brings_the_same_results(tmp_path: Path) -> None:
    """The ways to run a trial are measured only where they bring what they should, and a line makes all longer."""
    rtt = 0.02
    rows = {row.what: row for row in overhead.measure(tmp_path, 2, 1, (0.0, rtt))}
    for name in ("the link", *plain_ways.WAYS):
        assert rows[f"RTT {rtt * 1000:g} ms: {name}"].ours >= rtt * 1000
    assert rows["RTT 0 ms: the link"].bar == overhead.BARS[0.0]
    assert rows["RTT 20 ms: plain Fabric's time in ours"].ours > 0


@over_openssh
def test_an_objective_through_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a round trip at least, and CPU of the driver."""
    monkeypatch.setattr(objectives, "RTTS", (0.05,))
    pulled, cpu, on_disk = objectives.measure(tmp_path, 2, 20)
    assert pulled.ours >= 50
    assert cpu.ours > 0
    assert on_disk.ours > 0


@over_openssh
def test_a_burst_takes_a_second_and_a_round_trip_at_least(tmp_path: Path) -> None:
    """Fewer than the bar is set for have none."""
    (row,) = burst.measure(tmp_path, 5, 1)
    assert row.ours >= 1 + burst.RTT
    assert row.bar is None


@over_openssh
def test_a_login_takes_five_round_trips(tmp_path: Path) -> None:
    """What a line adds to it, in round trips; a link takes no fewer."""
    connect, link = opening.measure(tmp_path, 3)
    assert connect.ours > opening.ROUND_TRIPS - 1
    assert link.ours > connect.ours


def test_a_verdict_counts_rows_with_bars() -> None:
    """At most and at least; a figure that is there to be compared with is no bar."""
    rows = [
        bars.Row("most", 1.0, "ms", 1.0, peer=("peer", 30.0), limit=0.5, note="twice"),
        bars.Row("least", 1.0, "", 2.0, at_least=True, peer=("peer", 4.0)),
        bars.Row("peer", 30.0, "ms", None),
    ]
    assert bars.verdict(rows) == "bars: 1 met, 1 missed"
    title, _, most, note, least, plain = bars.table("title", rows).splitlines()
    assert title == "title"
    assert most.split() == ["most", "1", "ms", "<=", "1", "0.5", "met", "peer:", "30", "(30.0", "times)"]
    assert note.split() == ["twice"]
    assert least.split() == ["least", "1", ">=", "2", "MISSED", "peer:", "4", "(0.2", "times)"]
    assert plain.split() == ["peer", "30", "ms"]


@over_openssh
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
    *counted, _late, doubled = orphans.table(runs).splitlines()[-1].split()
    assert (counted, doubled) == (["all", "2", "1"], "0")


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
    rows = {
        row.what: row
        for row in survival.costs(survival.watched(tmp_path / "watched", trials, *survival.ONE_BY_ONE), trials - 1)
    }
    assert rows["round trips that a trial waits for, beside its own"].value == 0
    assert rows["frames out of a trial"].of == "drop 1, run 1"
    assert rows["fsyncs of the journal by trial"].value == 2
    assert rows["fsyncs of its outputs by trial"].value == 2  # the file, and its name
    assert rows["fsyncs of outputs from exit to next start"].value == 2
    line = ["--set", "trial.stage_ahead=1", "--set", f"trial.command={UNTIL_NEXT_IS_SENT}"]
    variables = f'{{RECORD="{tmp_path}/ahead.jsonl",TRIALS="{trials}"}}'
    seen = survival.watched(tmp_path / "ahead", trials, *line, "--set", f"cluster.env={variables}")
    fsyncs, there = survival.ahead(seen)
    assert (fsyncs.value, there.value) == (0, 100)
    late = survival.Row("late", 11.0, "s", most=10)
    *_, last = survival.table([*rows.values(), late]).splitlines()
    assert last.split() == ["late", "11.0", "s", "10", "MISSED"]


@over_openssh
def test_trials_of_a_whole_study_say_when_they_ran(tmp_path: Path) -> None:
    """One after the other, far away and not sent ahead: between an end and the next begin lies at least a round trip."""
    study = studies.Study(4, studies.COMMAND.format(seconds=0), "random", stage_ahead="1", is_sent=False)
    with far(gaps.FAR_AWAY) as place:
        times = studies.timed(tmp_path / "study", place, study, skip=1)
        assert len(times.spans) == 3
        assert min(times.gaps) > gaps.FAR_AWAY
        assert 0 < times.busy < 1
        assert gaps.fabrics_share(place, 0.01, 1) < 1


@over_openssh
def test_a_whole_study_has_a_rate(tmp_path: Path) -> None:
    """All of its trials are complete, and it stands beside the same command run here."""
    at_once, share, on_disk = rate.measure(tmp_path, 70, 1)
    assert at_once.peer is not None
    assert share.ours == pytest.approx(at_once.ours / at_once.peer[1])
    assert on_disk.ours > 0


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
    assert [round(day.modelled(day.MODEL, minutes, day.START_UP), 1) for minutes in day.MODEL_MINUTES] == [
        5.4,
        1.9,
        1.2,
    ]
