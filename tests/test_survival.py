"""Drivers that die, hang or are held up, through `run-study`: nothing is lost, run twice or left running."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.campaign.nodes import supervisors
from tests.driving import CALM, GATED, HOSTILE, LONG, QUICK, SHORT, Gated, all_jobs, kill, unfinished_jobs, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistent_runner.local_platform.attach import Attachment


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Gated]:
    """A machine of one's own in a hostile folder; nothing of it may run on afterwards."""
    found = Gated(tmp_path / HOSTILE)
    yield found
    until(lambda: not found.processes(), f"the end of {found.processes()}")
    assert not found.platform_address.exists()


def trials_end_on_a_cluster_that_ends(place: Gated, platform: Attachment, line: tuple[object, ...]) -> None:
    """Kill a driver while two trials run, let these end, and wait until the cluster has ended itself."""
    first = place.start(*line, **SHORT)
    place.until_two_run()
    kill(first)
    place.go.touch()
    until(lambda: not unfinished_jobs(platform), "the end of the cluster by itself")


def test_what_ended_on_a_cluster_that_is_gone_is_fetched(place) -> None:
    """The driver is killed, its trials end, the cluster ends itself: the next start has their results from its files."""
    line = place.gated(n_trials=4)
    with place.platform() as platform:
        trials_end_on_a_cluster_that_ends(place, platform, line)
        second = place.run(*line, **LONG)
    assert second.said.count("it had ended on a cluster that is gone; its files are fetched") == 2
    assert place.counts == Counter("0123")
    rows = place.rows()
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4
    assert [row["attempts"] for row in rows] == ["1"] * 4
    assert all(row["value"] == row["params_x"] for row in rows)
    assert (place.runs / "tiny/trials/00000/command-1.log").exists()


def test_what_ended_on_a_cluster_that_is_not_gone_on_with_is_fetched(place) -> None:
    """Its trials end while no driver is there, and the next start asks for another cluster: it is ended, nothing runs again."""
    line = place.gated(n_trials=4)
    with place.platform() as platform:
        first = place.start(*line, **LONG)
        place.until_two_run()
        kill(first)
        place.go.touch()
        until(lambda: not supervisors(place.mark), "the end of both trials")
        second = place.run(*line, "--set", "cluster.cores=4", **LONG)
        assert len(all_jobs(platform)) == 2
        assert unfinished_jobs(platform) == []
    assert second.said.count("it had ended on a cluster that is gone; its files are fetched") == 2
    assert place.counts == Counter("0123")
    assert [row["attempts"] for row in place.rows()] == ["1"] * 4


def test_what_ended_while_the_driver_slept_is_fetched(place) -> None:
    """A laptop is closed: trials end, the cluster ends itself; when it is opened their results are fetched (row U3).

    The cluster that the rest needs is the next one of the same start.
    """
    line = place.gated(n_trials=4)
    with place.platform() as platform:
        driver = place.start(*line, **SHORT)
        place.until_two_run()
        place.fault("ssh", do="blackhole")
        threading.Event().wait(1)  # it is ordered; nothing tells from outside when it has come
        driver.process.send_signal(signal.SIGSTOP)
        place.go.touch()
        until(lambda: not unfinished_jobs(platform), "the end of the cluster by itself")
        driver.process.send_signal(signal.SIGCONT)
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 2
    assert driver.said.count("it had ended on a cluster that is gone; its files are fetched") == 2
    assert place.counts == Counter("0123")
    rows = place.rows()
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4
    assert [row["attempts"] for row in rows] == ["1"] * 4
    assert all(row["value"] == row["params_x"] for row in rows)


def test_what_ran_otherwise_on_a_cluster_that_is_gone_runs_again(place) -> None:
    """Nothing is taken from a command that was another one: its result would be of another study."""
    line = place.gated(n_trials=2)
    with place.platform() as platform:
        trials_end_on_a_cluster_that_ends(place, platform, line)
        second = place.run(*line, "--set", "trial.outputs=['*.json']", **LONG)
    assert "was started before with another command or other inputs" in second.said
    assert place.counts == Counter("0011")


PYTHON = f'''
import json
from persistent_runner.errors import CommandFailed

def objective(trial, work):
    x = trial.suggest_float("x", 0.0, 1.0)
    work.push(x=x)
    try:
        work.run("echo no >&2; exit 3")
    except CommandFailed as error:
        assert error.exit_code_of_command == 3
    work.run("mkdir -p fields; head -c 400000 /dev/zero > fields/big.bin", outputs=["fields/*"])
    (big,) = work.pull_all("fields/*.bin")
    assert big.stat().st_size == 400000
    lines = []
    work.run("""{GATED}""", on_line=lines.append)
    assert lines == [f"this is trial {{trial.number}}"]
    return json.loads(work.pull("result.json").read_text())["x"]
'''


def test_what_a_python_objective_ran_on_a_cluster_that_is_gone_is_fetched(place) -> None:
    """The driver is killed during the last command of each: the objective is at work once more, on what they left."""
    study, *more = place.gated(n_trials=3)
    head = (study / "study.toml").read_text("utf-8").partition("[space]")[0]
    (study / "study.toml").write_text(
        f'{head}[trial]\nobjective = "deck.py:objective"\ncores = 1\n[objectives]\ny = "minimize"\n', "utf-8"
    )
    (study / "deck.py").write_text(PYTHON, "utf-8")
    line = (study, *more)
    with place.platform() as platform:
        trials_end_on_a_cluster_that_ends(place, platform, line)
        second = place.run(*line, **LONG)
    assert second.said.count("it had ended on a cluster that is gone; its files are fetched") == 2
    assert place.counts == Counter("012")
    rows = place.rows()
    assert [row["state"] for row in rows] == ["COMPLETE"] * 3
    assert all(row["value"] == row["params_x"] for row in rows)
    assert (place.runs / "tiny/trials/00000/fields/big.bin").stat().st_size == 400000
    assert (place.runs / "tiny/trials/00001/command-3.log").read_text() == "this is trial 1\n"
    assert list((place.runs / "tiny").glob("saved-*")) == []


def test_the_same_line_after_a_kill_joins_what_runs(place) -> None:
    """SIGKILL while trials run: the next start goes on with the same job, and each command has run once (row D1)."""
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, **LONG)
        place.until_two_run()
        until(lambda: len(place.events("tiny", "start")) == 2, "both to be told")
        begun = time.monotonic()
        kill(first)
        second = place.start(*line, **LONG)
        second.wait_for("Going on with job")
        until(lambda: len(place.events("tiny", "start")) == 4, "the trials to be joined")
        ran_at_least = time.monotonic() - begun
        place.go.touch()
        assert second.end() == 0, second.said

        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert place.counts == {"0": 1, "1": 1, "2": 1}
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    assert [row["attempts"] for row in place.rows()] == ["1"] * 3
    # the command's own run time, not the shorter one that the second start has waited for
    assert all(float(row["seconds"]) >= ran_at_least for row in place.rows()[:2])
    assert "Lease it" not in second.said
    assert "an hour" not in second.said
    assert place.ledger() == ["closed"]


def test_eight_trials_are_joined_after_a_kill(place) -> None:
    """SIGKILL while eight trials run: the next start has what each prints, and none is started again (row D4)."""
    line = place.gated(n_trials=8, cores=8)
    with place.platform():
        first = place.start(*line, **LONG)
        place.until_run(8)
        until(lambda: len(place.seen()) == 8, "what the trials print")
        kill(first)
        for path in place.seen():
            path.unlink()
        second = place.start(*line, **LONG)
        until(lambda: len(place.seen()) == 8, "the trials to be joined")
        assert place.counts == dict.fromkeys("01234567", 1)
        place.go.touch()
        assert second.end() == 0, second.said
    assert place.counts == dict.fromkeys("01234567", 1)
    rows = place.rows()
    assert [(row["state"], row["attempts"]) for row in rows] == [("COMPLETE", "1")] * 8
    assert all(row["value"] == row["params_x"] for row in rows)


def test_what_ended_while_nobody_drove_is_not_run_again(place) -> None:
    """The trials end on the node between the kill and the next start, which takes their results."""
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, **LONG)
        place.until_two_run()
        kill(first)
        place.go.touch()
        place.run(*line, **LONG)
        assert len(all_jobs(platform)) == 1
    assert place.counts == {"0": 1, "1": 1, "2": 1}
    assert [row["attempts"] for row in place.rows()] == ["1"] * 3


FREE = ["recorded", "created", "saved", "submitting"]
PAID = ["submitted", "submit-recorded", "executing", "nodes", "connected", "beating", "releasing", "closed"]


@pytest.mark.parametrize("point", FREE + PAID)
def test_a_driver_that_dies_at_any_moment_of_a_lease(place, point) -> None:
    """Power cuts between any two calls: the same line ends well on one submitted job in all (rows L1, L2)."""
    place.go.touch()
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, PERSISTENT_RUNNER_CRASH=point, **LONG)
        assert first.end() == -signal.SIGKILL, first.said
        left = [job.id for job in all_jobs(platform) if job.statuses]
        assert len(left) == (point in PAID)
        place.run(*line, **LONG)

        assert len([job for job in all_jobs(platform) if job.statuses]) == 1
        assert unfinished_jobs(platform) == []
        assert [job for job in all_jobs(platform) if not job.statuses] == []
    assert set(place.ledger()) == {"closed"}
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    assert place.counts == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("point", ["settling", "attaching"])
def test_a_driver_that_dies_while_it_goes_on_after_another(place, point) -> None:
    """Twice killed is as once: the third start joins what the first has started."""
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, **LONG)
        place.until_two_run()
        kill(first)
        second = place.start(*line, PERSISTENT_RUNNER_CRASH=point, **LONG)
        assert second.end() == -signal.SIGKILL, second.said
        place.go.touch()
        place.run(*line, **LONG)
        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert place.counts == {"0": 1, "1": 1, "2": 1}
    assert [row["attempts"] for row in place.rows()] == ["1"] * 3


def test_a_driver_that_dies_between_two_clusters(place) -> None:
    """The former is stopped and the next not asked for yet: the next start leases it and goes on (row L11)."""
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, PERSISTENT_RUNNER_CRASH="renewing", **LONG)
        place.until_two_run()
        place.fault("preempt")
        assert first.end() == -signal.SIGKILL, first.said
        assert unfinished_jobs(platform) == []
        place.go.touch()
        place.run(*line, **LONG)
        assert len(all_jobs(platform)) == 2
        assert unfinished_jobs(platform) == []
    assert [row["attempts"] for row in place.rows()] == ["2", "2", "1"]


@pytest.mark.parametrize("moment", ["idle", "busy"])
def test_a_killed_drivers_cluster_ends_by_itself(place, moment) -> None:
    """SIGKILL and nothing more: the dead-man's switch ends the job, with a trial that runs and without (row D1)."""
    more = '[setup]\ncommand = "while :; do sleep 0.1; done"' if moment == "idle" else ""
    with place.platform() as platform:
        driver = place.start(*place.gated(more=more), **SHORT)
        driver.wait_for("setup:") if moment == "idle" else place.until_two_run()
        kill(driver)
        until(lambda: not unfinished_jobs(platform), "the end of the job")
        (job,) = all_jobs(platform)
        assert "Stopping" not in [status for status, _ in job.statuses]
    assert place.ledger() == ["submitted"]


def test_another_cluster_is_asked_for_when_the_former_is_stopped(place) -> None:
    """SIGKILL, then the study with other cores: what the first start left is ended before money is spent anew."""
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, **LONG)
        place.until_two_run()
        kill(first)
        second = place.start(*line, "--set", "cluster.cores=4", **LONG)
        second.wait_for("Connected to")
        place.go.touch()  # what ran on the old one has ended with it
        assert second.end() == 0, second.said

        old, new = sorted(all_jobs(platform), key=lambda job: job.when("Executing"))
        assert old.when("Stopped") <= min(date for _, date in new.statuses)
        assert unfinished_jobs(platform) == []
    assert "is not needed any more, ending it" in second.said
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    assert [row["attempts"] for row in place.rows()] == ["2", "2", "1"]
    assert sorted(place.ledger()) == ["closed", "closed"]


def test_a_kept_cluster_is_adopted_by_the_next_study(place) -> None:
    """--keep leaves the cluster; a second study with the same needs leases nothing and releases it in the end."""
    place.go.touch()
    with place.platform() as platform:
        kept = place.run(*place.gated(), "--keep", "60s", **LONG)
        assert "is kept for 1m" in kept.said
        assert "is released" not in kept.said
        assert len(unfinished_jobs(platform)) == 1
        assert place.ledger() == ["kept"]
        second = place.run(*place.gated(name="second", folder="second"), **LONG)

        assert "Going on with job" in second.said
        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert place.ledger() == ["closed"]
    assert len(place.rows("second")) == 3


def test_a_kept_cluster_that_nobody_wants_ends_by_itself(place) -> None:
    """--keep is a limit, not a wish."""
    place.go.touch()
    with place.platform() as platform:
        place.run(*place.gated(), "--keep", "1s", **SHORT)
        until(lambda: not unfinished_jobs(platform), "the end of the kept job")


def test_an_interrupted_study_keeps_nothing(place) -> None:
    """Who presses Ctrl-C wants the cluster gone, whatever the line said."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), "--keep", "60s", **LONG)
        place.until_two_run()
        driver.process.send_signal(signal.SIGTERM)
        assert driver.end() == 130, driver.said
        assert unfinished_jobs(platform) == []


def test_a_start_with_nothing_to_run_ends_what_a_crash_has_left(place) -> None:
    """All trials are settled and the driver dies before the release: the same line ends the cluster and says so."""
    place.go.touch()
    line = place.gated()
    with place.platform() as platform:
        first = place.start(*line, PERSISTENT_RUNNER_CRASH="releasing", **LONG)
        assert first.end() == -signal.SIGKILL
        assert len(unfinished_jobs(platform)) == 1
        second = place.run(*line, **LONG)

        assert "Nothing to run: all 3 trials are settled" in second.said
        assert unfinished_jobs(platform) == []
        assert len(all_jobs(platform)) == 1
    assert place.ledger() == ["closed"]
    costs = json.loads((place.runs / "tiny/summary.json").read_text())
    assert costs["seconds_leased"] == 0
    assert costs["cost_of_all_starts"] > 0


def test_the_costs_of_a_start_and_of_all(place) -> None:
    """summary.json tells this start's costs, and those of all starts of the folder."""
    place.go.touch()
    line = place.gated()
    summaries = [json.loads(place.run(*line, "--json", "--n-trials", n, **LONG).out) for n in (2, 3)]
    for summary in summaries:
        assert summary["seconds_leased_with_start_up"] >= summary["seconds_leased"] > 0
        assert summary["cost_with_start_up"] >= summary["cost"] > 0
    total = sum(summary["cost_with_start_up"] for summary in summaries)
    assert summaries[1]["cost_of_all_starts"] == pytest.approx(total)


def test_a_budget_that_is_used_up_leases_nothing(place) -> None:
    """max_cost counts every lease of the folder: the next start says what is spent and ends with 5."""
    place.go.touch()
    line = place.gated()
    with place.platform() as platform:
        first = json.loads(place.run(*line, "--n-trials", 2, "--json", **LONG).out)
        most = f"study.max_cost={first['cost_of_all_starts']:.9f}"  # enough for a lease, but for the first one
        driver = place.run(*line, "--set", most, code=5, **LONG)
        assert len(all_jobs(platform)) == 1
    assert "by max_cost" in driver.said
    assert "is spent" in driver.said


def test_a_budget_that_is_used_up_leaves_nothing_running(place) -> None:
    """A killed start's cluster is not gone on with beyond what may be spent: it is ended, and nothing new is leased."""
    with place.platform() as platform:
        first = place.start(*place.gated(), **LONG)
        place.until_two_run()
        kill(first)
        second = place.run(*place.gated(), "--set", "study.max_cost=0.00001", code=5, **LONG)
        assert unfinished_jobs(platform) == []
        assert len(all_jobs(platform)) == 1
    assert "by max_cost = 1e-05" in second.said
    assert place.ledger() == ["closed"]


def test_a_budget_that_ends_while_trials_run(place) -> None:
    """What runs is stopped before the money is gone, waits for the next start, and the exit code is 5."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), "--set", "study.max_cost=0.0012", **LONG)  # about 12 s
        assert driver.end() == 5, driver.said
        assert unfinished_jobs(platform) == []
        assert len(all_jobs(platform)) == 1
    assert "Too little is left for another cluster by max_cost = 0.0012" in driver.said
    assert "Traceback" not in driver.said
    costs = json.loads((place.runs / "tiny/summary.json").read_text())
    assert costs["cost_of_all_starts"] == pytest.approx(costs["cost_with_start_up"])  # each lease counts once
    assert {row["state"] for row in place.rows()} <= {"WAITING"}


def test_an_interrupt_while_another_cluster_is_waited_for(place) -> None:
    """Ctrl-C in the queue of a renewal: nothing is left in it, the lost trials wait for the next start."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        place.fault("duration", status="queued", seconds=3600)
        place.fault("preempt")
        until(lambda: driver.said.count("is submitted") == 2, "the second job in the queue")
        driver.process.send_signal(signal.SIGINT)
        assert driver.end() == 130, driver.said
        assert unfinished_jobs(platform) == []
    assert [row["state"] for row in place.rows()] == ["WAITING", "WAITING"]
    assert set(place.ledger()) == {"closed"}


def test_a_cluster_without_its_switch(place) -> None:
    """`keeper = false` works, is warned of, cannot be kept, and is found again by the next start after a kill."""
    line = place.gated()
    bare = ["--set", "cluster.keeper=false", "--set", "cluster.host_key=accept-unverified"]
    with place.platform() as platform:
        first = place.start(*line, *bare, **SHORT)
        place.until_two_run()
        kill(first)
        place.go.touch()
        second = place.run(*line, *bare, "--keep", "60s", **SHORT)
        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert "WITHOUT A DEAD-MAN'S SWITCH" in first.said
    assert "cannot be kept, releasing it" in second.said
    assert place.counts == {"0": 1, "1": 1, "2": 1}


def test_a_driver_that_was_held_up_goes_on_with_a_new_cluster(place) -> None:
    """A laptop that sleeps for longer than orphan_idle: a new lease, the study completes, nothing twice (row D5)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **SHORT)
        place.until_two_run()
        os.kill(driver.process.pid, signal.SIGSTOP)
        until(lambda: not unfinished_jobs(platform), "the end of the first job")
        os.kill(driver.process.pid, signal.SIGCONT)
        place.go.touch()
        assert driver.end() == 0, driver.said

        assert len(all_jobs(platform)) == 2
        assert unfinished_jobs(platform) == []
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    results = [json.loads(line) for line in (place.runs / "tiny/journal.jsonl").read_text().splitlines()]
    assert Counter(record["trial"] for record in results if record.get("kind") == "result") == {0: 1, 1: 1, 2: 1}
    assert sorted(place.ledger()) == ["closed", "closed"]


def test_a_main_loop_that_hangs_gives_no_sign_of_life(place) -> None:
    """Another program holds the study's database: the beat stops after HANG, the cluster ends, and is replaced (D13)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), "--max-concurrent", 1, PERSISTENT_RUNNER_HANG="1s", **CALM)
        until(lambda: sum(place.counts.values()) == 1, "the first trial")
        other = sqlite3.connect(place.runs / "tiny/study.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        place.go.touch()
        until(lambda: not unfinished_jobs(platform), "the end of the first job")
        assert driver.process.poll() is None
        other.execute("ROLLBACK")
        other.close()
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 2
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3
    assert place.counts == {"0": 1, "1": 1, "2": 1}


def test_a_driver_that_only_waits_is_not_taken_for_one_that_hangs(place) -> None:
    """Trials that run for longer than HANG keep their cluster: the main loop turns while it waits."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), PERSISTENT_RUNNER_HANG="1s", **CALM)
        place.until_two_run()
        threading.Event().wait(11)  # longer than HANG and orphan_busy together
        assert len(unfinished_jobs(platform)) == 1
        place.go.touch()
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 1


def test_a_key_that_is_refused_mid_study(place) -> None:
    """The API key is revoked while trials run: they go on over SSH; the end is asked for there as well (row A2)."""
    patient = QUICK | {"PERSISTENT_RUNNER_ORPHAN_IDLE": "10m"}  # so that nothing but the asking ends it
    with place.platform() as platform:
        driver = place.start(*place.gated(), **patient)
        place.until_two_run()
        place.fault("revoked")
        place.go.touch()
        until(lambda: len(place.events("tiny", "end")) == 3, "all trials")
        code = driver.end()
        place.withdraw_faults()
        until(lambda: not unfinished_jobs(platform), "the end of the job")
    assert code == 4, driver.said
    assert "may still run and cost money" in driver.said
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3


def test_a_preempted_cluster_is_replaced(place) -> None:
    """The machines are gone in the middle of two trials: another job, the same trials again, nothing told (row L11)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        place.fault("preempt")
        until(lambda: sum(place.counts.values()) == 4, "the same trials on another cluster")
        place.go.touch()
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 2
        assert unfinished_jobs(platform) == []
    assert [(row["state"], row["attempts"]) for row in place.rows()] == [
        ("COMPLETE", "2"),
        ("COMPLETE", "2"),
        ("COMPLETE", "1"),
    ]


def test_clusters_that_die_each_time_are_not_leased_for_ever(place) -> None:
    """Three leases without a finished trial: the study ends with 1 before it burns the budget (row L18)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(n_trials=9), **LONG)
        for times in (1, 2, 3):
            until(lambda wanted=2 * times: sum(place.counts.values()) == wanted, f"two trials, {times} times")
            place.fault("preempt")
        assert driver.end() == 1, driver.said
        assert len(all_jobs(platform)) == 3
        assert unfinished_jobs(platform) == []
    assert "3 leases ended without a finished trial" in driver.said


def test_a_job_that_the_platform_launches_anew_is_used_on(place) -> None:
    """New machines under the same job: no second lease, new attempts, all goes on."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        place.fault("preempt", relaunch=1)
        until(lambda: sum(place.counts.values()) == 4, "the same trials on the new machines")
        place.go.touch()
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert [row["state"] for row in place.rows()] == ["COMPLETE"] * 3


def test_a_job_that_somebody_stopped_is_not_replaced(place) -> None:
    """Exit code 1, the reason is said, the trials wait for the next start (row L15)."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **LONG)
        place.until_two_run()
        place.fault("stop")
        assert driver.end() == 1, driver.said
        assert len(all_jobs(platform)) == 1
        assert unfinished_jobs(platform) == []
    assert "stopped by somebody else" in driver.said
    assert [row["state"] for row in place.rows()] == ["WAITING", "WAITING"]


def test_a_setup_that_takes_longer_than_hang_keeps_its_cluster(place) -> None:
    """The main loop is shown to turn while it waits for the setup; nothing ends and nothing is leased anew."""
    place.go.touch()
    with place.platform() as platform:
        line = place.gated(more='[setup]\ncommand = "sleep 11"')
        driver = place.start(*line, PERSISTENT_RUNNER_HANG="1s", **CALM)
        assert driver.end() == 0, driver.said
        assert len(all_jobs(platform)) == 1


def test_a_setup_that_outlasts_the_money_is_given_up(place) -> None:
    """The cluster's time is over before its setup has ended: released, exit code 5, and the reason is said (row U6)."""
    with place.platform() as platform:
        line = place.gated(more='[setup]\ncommand = "sleep 60"')
        driver = place.start(*line, "--set", "study.max_cost=0.0015", **LONG)  # about 15 s
        assert driver.end() == 5, driver.said
        assert unfinished_jobs(platform) == []
    assert "time is over before its setup has ended" in driver.said


def test_an_interrupt_while_a_lost_cluster_is_released(place) -> None:
    """Ctrl-C then ends the study when the release is confirmed: 130 and nothing that may still run (row L11)."""
    with place.platform() as platform:
        place.fault("stop_hangs", at="stopping", seconds=3)
        driver = place.start(*place.gated(), "--set", "study.max_cost=0.0009", **LONG)  # about 9 s
        driver.wait_for("asking for its stop")
        driver.process.send_signal(signal.SIGINT)
        assert driver.end() == 130, driver.said
        assert unfinished_jobs(platform) == []
        assert len(all_jobs(platform)) == 1
    assert "may still run" not in driver.said


@pytest.mark.parametrize("presses", [3, 5])
def test_who_presses_again_and_again_is_told_what_may_run(place, presses) -> None:
    """The platform takes its time to take the stop: exit code 4, said once, however often Ctrl-C is pressed."""
    with place.platform() as platform:
        driver = place.start(*place.gated(), **SHORT)
        place.until_two_run()
        place.fault("slow", endpoints=["stop_job"], seconds=2)
        for said in ("no new trials", "stopping the trials", "asking for its stop", "", "")[:presses]:
            driver.process.send_signal(signal.SIGINT)
            if said:
                driver.wait_for(said)
        assert driver.end() == 4, driver.said
        until(lambda: not unfinished_jobs(platform), "the end of the job")
    assert driver.said.count("may still run and cost money") == 1
    assert "Traceback" not in driver.said
