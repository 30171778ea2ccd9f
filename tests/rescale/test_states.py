"""`rescale/states.py`: histories in any order and form, times by the platform's own clock, and the cluster's start."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistent_runner.rescale.api import ClusterStatus, JobStatus, Status
from persistent_runner.rescale.states import lease_state

BEGAN = datetime(2026, 4, 3, 3, 45, tzinfo=UTC)
KNOWN = [*sorted(JobStatus.ALIVE | JobStatus.TERMINAL), "Stopping", "Force Stop"]


def entries(*pairs: tuple[float | None, str]) -> list[Status]:
    """Return a history, given from the oldest to the newest, as the server lists it: the newest first."""
    return [
        Status(status=status, status_date=None if second is None else BEGAN + timedelta(seconds=second))
        for second, status in reversed(pairs)
    ]


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


JOB = ((0, "Pending"), (5, "Queued"), (10, "Started"), (15, "Validated"), (100, "Executing"))
CLUSTER = ((5, "Not Started"), (20, "Starting"), (90, "Started"))


@pytest.mark.parametrize(
    ("jobs", "clusters", "booting"),
    [
        (JOB[:2], (), False),
        (JOB[:3], CLUSTER[:1], False),
        (JOB[:4], CLUSTER[:1], False),
        (JOB[:4], ((5, "Not Started"), (16, "Queued")), False),
        (JOB[:4], CLUSTER[:2], True),
        (JOB[:4], CLUSTER, True),
        (JOB[:4], (), True),
        (JOB, CLUSTER, True),
        (JOB, (), True),
        (JOB, (*CLUSTER, (120, "Stopped"), (121, "Starting")), True),
        ((*JOB, (150, "Stopping")), CLUSTER, False),
        ((*JOB, (160, "Completed")), CLUSTER, False),
        (((0, "Hibernating"),), CLUSTER, False),
        ((), CLUSTER, False),
    ],
)
def test_machines_come_up_when_the_cluster_says_so(jobs: Any, clusters: Any, booting: bool) -> None:
    """A validated job may still wait for its machines; where the cluster says nothing, the job's status counts."""
    assert lease_state(entries(*jobs), entries(*clusters)).booting is booting


def test_the_times_of_a_whole_life() -> None:
    """The command ran from Executing to the first sign of its end, the machines were there from Starting to Stopped."""
    jobs = entries(*JOB, (150, "Stopping"), (160, "Completed"))
    clusters = entries(*CLUSTER, (152, "Stop Requested"), (153, "Stopping"), (190, "Stopped"))
    state = lease_state(jobs, clusters)
    assert (state.executed, state.booted) == (seconds(50), seconds(170))
    by_itself = lease_state(entries(*JOB, (160, "Completed")), clusters)
    assert by_itself.executed == seconds(60)


def test_the_times_of_a_life_that_goes_on_are_not_told() -> None:
    """Nothing ended yet; what runs is timed by whoever watches."""
    running = lease_state(entries(*JOB), entries(*CLUSTER))
    assert (running.executed, running.booted) == (None, None)
    stopping = lease_state(entries(*JOB, (150, "Stopping")), entries(*CLUSTER, (153, "Stopping")))
    assert (stopping.executed, stopping.booted) == (None, None)


def test_the_times_of_a_life_without_machines_are_nothing() -> None:
    """A job that ended in the queue cost nothing."""
    state = lease_state(entries(*JOB[:2], (9, "Completed")), entries((5, "Not Started")))
    assert (state.stopped, state.executed, state.booted) == (True, seconds(0), seconds(0))


def test_a_second_start_of_the_same_job_counts_without_the_pause() -> None:
    """After a preemption the platform starts the machines anew: each of their times counts."""
    clusters = entries(*CLUSTER, (120, "Stopped"), (130, "Starting"), (150, "Started"), (200, "Stopped"))
    state = lease_state(entries(*JOB, (190, "Completed")), clusters)
    assert state.booted == seconds(100 + 70)
    assert state.executed == seconds(90)


@pytest.mark.parametrize(
    ("jobs", "clusters"),
    [
        ((*JOB[:4], (None, "Executing"), (160, "Completed")), (*CLUSTER[:1], (None, "Starting"), (190, "Stopped"))),
        ((*JOB, (None, "Completed")), (*CLUSTER, (None, "Stopped"))),
        ((*JOB, (50, "Completed")), ((5, "Not Started"), (20, "Starting"), (10, "Stopped"), (10, "Stopped"))),
    ],
    ids=["no begin", "no end", "clock went back"],
)
def test_times_that_the_statuses_do_not_tell_are_unknown(jobs: Any, clusters: Any) -> None:
    """Missing dates and a clock that went back give None, never a wrong or a negative time."""
    state = lease_state(entries(*jobs), entries(*clusters))
    assert state.ended
    assert state.executed is None
    assert state.booted is None


@pytest.mark.parametrize("alive", sorted(JobStatus.ALIVE))
def test_a_live_job_whose_cluster_has_stopped_costs_again_soon(alive: str) -> None:
    """A preempted job gets other machines without an end in between: `Stopped` is not the last word then."""
    stopped = entries(*CLUSTER, (120, "Stopped"))
    assert not lease_state(entries((0, "Pending"), (100, alive)), stopped).stopped
    assert lease_state(entries(*JOB, (130, "Stopping")), stopped).stopped
    assert lease_state(entries(*JOB, (130, "Force Stop")), stopped).stopped


def test_under_an_unknown_job_status_the_cluster_tells() -> None:
    """A new word for the job does not hide that its machines are gone (row A18)."""
    unknown = entries(*JOB, (200, "Hibernating"))
    assert not lease_state(unknown, entries(*CLUSTER)).stopped
    assert lease_state(unknown, entries(*CLUSTER, (201, "Stopped"))).stopped
    assert not lease_state(unknown, entries(*CLUSTER, (202, "Sleeping"))).stopped


@pytest.mark.parametrize(
    ("jobs", "clusters", "stopped"),
    [
        ((*JOB[:2], (9, "Completed")), (), True),
        ((*JOB[:2], (9, "Completed")), CLUSTER[:1], True),
        ((*JOB[:4], (50, "Completed")), (*CLUSTER[:1], (16, "Queued")), True),
        ((*JOB[:3], (50, "Completed")), (), False),
        ((*JOB, (150, "Stopping"), (160, "Completed")), (), False),
        ((*JOB, (160, "Completed")), CLUSTER, False),
        ((*JOB, (160, "Completed")), ((5, "Not Started"), (20, "Odd")), False),
    ],
)
def test_silence_about_a_cluster_is_no_end_of_it(jobs: Any, clusters: Any, stopped: bool) -> None:
    """Without `Stopped` a job has no machines only where it never got beyond the queue, or none was ever asked for."""
    assert lease_state(entries(*jobs), entries(*clusters)).stopped is stopped


moments = st.none() | st.integers(0, 20).map(lambda second: BEGAN + timedelta(seconds=second))
words = st.sampled_from(KNOWN) | st.text(string.ascii_letters + " ", min_size=1, max_size=12)
histories = st.lists(st.tuples(moments, words), max_size=12)
FORMS = [
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%f+00:00"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S"),
    lambda moment: moment.astimezone().isoformat(),
    lambda moment: (moment + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M:%S.%f000+09:00"),
]


def wire(history: list[tuple[datetime | None, str]], forms: list[int]) -> list[Status]:
    return [
        Status.model_validate(
            {"status": word, "statusDate": None if moment is None else FORMS[form % len(FORMS)](moment)}
        )
        for (moment, word), form in zip(history, forms, strict=False)
    ]


@given(histories, st.lists(st.integers(0, 5), min_size=12, max_size=12), st.randoms())
def test_the_latest_decides_and_a_terminal_one_always_wins(
    history: list[tuple[datetime | None, str]], forms: list[int], chance: Any
) -> None:
    """By date in any form, then by the server's order, whatever the list's order (rows A18, A19)."""
    state = lease_state(wire(history, forms), [])
    terminal = [word for _, word in history if word in JobStatus.TERMINAL]
    assert state.ended is bool(terminal)
    if not history:
        assert not state.submitted
        return
    pool = [(moment, word) for moment, word in history if word in JobStatus.TERMINAL] or history
    newest = max((moment for moment, _ in pool if moment), default=None)
    assert state.status == next(word for moment, word in pool if moment == newest)
    assert state.executing is (state.status == "Executing")
    if state.status not in KNOWN:
        assert not any((state.executing, state.ending, state.ended, state.stopped, state.booting))
    for told in (state.executed, state.booted):
        assert told is None or told >= timedelta(0)

    # With dates that all differ the order of the list means nothing.
    apart = {moment: word for moment, word in history if moment is not None}
    shuffled = list(apart.items())
    chance.shuffle(shuffled)
    assert lease_state(wire(shuffled, forms), []) == lease_state(wire(sorted(apart.items(), reverse=True), forms), [])


@given(histories, st.lists(st.tuples(moments, st.sampled_from(["Starting", "Started", "Stopped", "Odd"])), max_size=8))
def test_no_history_is_too_odd(
    history: list[tuple[datetime | None, str]], clusters: list[tuple[datetime | None, str]]
) -> None:
    """Every history gives a state: what has stopped is not alive, and times are never negative."""
    state = lease_state(wire(history, [0] * 12), wire(clusters, [1] * 12))
    assert not (state.stopped and (state.executing or state.booting))
    if state.stopped and clusters:
        newest = max((moment for moment, _ in clusters if moment), default=None)
        assert next(word for moment, word in clusters if moment == newest) == ClusterStatus.STOPPED
    for told in (state.executed, state.booted):
        assert told is None or told >= timedelta(0)
