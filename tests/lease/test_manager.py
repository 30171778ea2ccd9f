"""`lease/manager.py`: a cluster is held from create to Stopped, on the local platform over HTTP and SSH."""

from __future__ import annotations

import itertools
import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import (
    ConfigError,
    ConnectionLost,
    JobStopped,
    LeaseLost,
    NoCapacity,
    PlatformUnavailable,
    RunnerError,
)
from persistent_runner.lease.cluster import Setup
from persistent_runner.lease.ledger import Ledger
from persistent_runner.lease.meter import Cost
from persistent_runner.lease.naming import lease_name, study_of
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.recovery import Backoff
from persistent_runner.rescale.api import Endpoints
from persistent_runner.rescale.client import RescalePlatform

from .conftest import QUICK, SHORT, TICKING, until

if TYPE_CHECKING:
    from pathlib import Path

    from persistent_runner.lease.platform import LeaseState

    from .conftest import Leases


def test_a_cluster_is_acquired_used_and_released(leases: Leases) -> None:
    """EXECUTING is reached, the head node answers over SSH, `Stopped` is read, and the record says so."""
    quote = leases.platform.quote(leases.request())
    setup = Setup(inputs=("solver/",), command="true", folder=leases.folder)
    lease = leases.make(lease={"setup": setup})
    with lease as held:
        assert held is lease
        assert lease.state.executing
        assert lease.nodes == lease.cluster.nodes == (lease.head_node,)
        assert lease.cluster.generation == 0
        assert lease.connection.run("echo $((6*7))", hide=True, in_stream=False).stdout.strip() == "42"
        assert lease.acquire() is lease.cluster
        assert lease.connect() is lease.connection
        (entry,) = leases.ledger.entries()
        assert (entry.state, entry.job_id, entry.name) == ("submitted", lease.job_id, lease.name)
        assert (lease.price, lease.cores_per_node, lease.setup) == (quote.price_per_hour, 2, setup)
        assert timedelta(0) < lease.age < lease.left
        assert leases.cluster_of(lease) == "running"
        connection = lease.connection
    assert lease.state.stopped
    assert leases.cluster_of(lease) == "stopped"
    assert not connection.is_connected
    assert leases.ledger.entries()[0].state == "closed"
    assert leases.released == 1
    assert lease.price is not None
    assert lease.age == lease.age  # it stands still
    assert lease.cost.cost == pytest.approx(lease.price * lease.age.total_seconds() / 3600)
    assert lease.cost.seconds_with_start_up >= lease.cost.seconds == lease.age.total_seconds()


def test_what_it_costs_is_told_before_and_after(local: Leases) -> None:
    """Before a job the most that it can take is told, after it what it took: a lease cut in between counts in full."""
    with local.make() as lease:
        ((name, most, final),) = local.costs
        assert (name, final) == (lease.name, False)
        assert most.seconds == pytest.approx(2 * 3600 - 300)
    assert local.costs[1:] == [(lease.name, lease.cost, True)]


def test_releasing_twice_does_nothing_more(leases: Leases) -> None:
    """Every way out may release; the second time is free, and an ended lease is not acquired again."""
    lease = leases.make()
    lease.release()
    assert leases.released == 0
    lease.acquire()
    lease.release()
    lease.release(force=True)
    assert leases.released == 1
    assert [final for _, _, final in leases.costs] == [False, True]
    with pytest.raises(RunnerError, match="has ended"):
        lease.acquire()
    with pytest.raises(LeaseLost, match="not held any more"):
        lease.connect()
    with pytest.raises(LeaseLost, match="not held any more"):
        lease.check_machines()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)])
def test_every_way_out_releases(error: BaseException, leases: Leases) -> None:
    """An error of the user's own code, an interrupt and an exit all end with the cluster gone."""
    lease = leases.make(lease={"keep": timedelta(minutes=10)})
    with pytest.raises(type(error)), lease:
        raise error
    assert leases.cluster_of(lease) == "stopped"


def test_nothing_is_there_before_acquire(local: Leases) -> None:
    """Asking for the head node of a lease that is not held says what to do."""
    lease = local.make()
    for name in ("cluster", "nodes", "head_node", "connection", "hold", "left"):
        with pytest.raises(RunnerError, match="with statement"):
            getattr(lease, name)
    assert (lease.name, lease.job_id, lease.cost, lease.age) == ("", "", Cost(), timedelta(0))
    assert repr(lease) == f"<ClusterLease {local.study}: job none, not asked for>"


def test_a_forced_stop_follows_the_graceful_one(leases: Leases) -> None:
    """`--force-stop` asks for both, in this order, and still reads `Stopped`."""
    leases.fault("stop_hangs")  # else a quick graceful stop may be over before the forced one is asked for
    lease = leases.make()
    lease.acquire()
    lease.release(force=True)
    asked = [line["event"] for line in leases.journal("stop_asked", "force_stop_asked")]
    assert asked == ["stop_asked", "force_stop_asked"]
    statuses = [row.status for row in leases.platform._http.call(Endpoints.statuses, job_id=lease.job_id)]
    assert "Force Stop" in statuses
    assert leases.cluster_of(lease) == "stopped"


def test_a_queue_without_end_is_left_at_the_deadline(queued: Leases) -> None:
    """After max_queue the job is stopped, that is confirmed, and run-study ends with 5 (row L3)."""
    lease = queued.make(max_queue=SHORT)
    with pytest.raises(NoCapacity, match=r"did not start within 0\.3s: Queued") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert queued.has_stopped(lease)
    assert lease.age == timedelta(0)
    assert lease.cost.cost_with_start_up == 0


def test_an_interrupt_in_the_queue_releases(queued: Leases) -> None:
    """The stop event ends the wait at once, and the job with it."""
    stop = threading.Event()

    class Watched(RescalePlatform):
        def state(self, job_id: str, *, patient: bool = True) -> LeaseState:
            state = super().state(job_id, patient=patient)
            if state.status == "Queued":
                stop.set()
            return state

    lease = queued.make(platform=queued.client(Watched), stop=stop, poll=timedelta(seconds=0.05))
    with pytest.raises(KeyboardInterrupt):
        lease.acquire()
    assert queued.has_stopped(lease)
    assert queued.released == 1


def test_an_interrupt_before_the_submit_spends_nothing(local: Leases) -> None:
    """A stop that is already set leaves no job."""
    stop = threading.Event()
    stop.set()
    lease = local.make(stop=stop)
    with pytest.raises(KeyboardInterrupt):
        lease.acquire()
    assert local.cluster_of(lease) == "gone"
    assert local.journal("submitted") == []


def test_a_refused_connection_is_tried_again(leases: Leases) -> None:
    """SSH comes up some time after EXECUTING; the state is looked at between two tries."""
    tries: list[str] = []

    def connector(proof: Any) -> Any:
        connect = leases.connector(proof)

        def late(node: Any) -> Any:
            tries.append(str(node))
            if len(tries) < 3:
                raise ConnectionLost(f"{node}: refused")
            return connect(node)

        return late

    with leases.make(connector=connector) as lease:
        assert lease.connection.is_connected
        assert len(tries) >= 3


@pytest.mark.parametrize("login", [False, True])
def test_a_machine_that_is_late_is_waited_for(login: bool, local: Leases) -> None:
    """Neither a port that refuses nor a key that is installed later ends the lease (rows S1, S2)."""
    local.fault("late_ssh", seconds=0.5, login=login)
    with local.make() as lease:
        assert lease.connection.run("true", hide=True).ok


def test_a_closed_connection_is_opened_anew_by_connect(leases: Leases) -> None:
    """Whoever reconnects gets the new connection, and so does everybody who asks later."""
    with leases.make() as lease:
        first = lease.connection
        first.close()
        second = lease.connect()
        assert second is not first
        assert lease.connection is second
        assert second.run("true", hide=True, in_stream=False).ok


def test_a_job_that_ends_while_we_connect_is_lost(local: Leases) -> None:
    """A node that refuses because its job has ended is not asked for ten minutes; three such leases are enough."""
    local.fault("preempt", after=2)
    lease = local.make(connector=lambda _proof: local_refusal)
    with pytest.raises(LeaseLost, match="3 leases ended without a finished trial"):
        lease.acquire()
    assert local.cluster_of(lease) == "stopped"
    assert len(local.jobs()) == 3
    assert local.most_at_a_time() == 1


def test_a_lease_that_is_lost_before_it_is_used_is_replaced(local: Leases) -> None:
    """Preempted between EXECUTING and the first connection: another job, once the former has stopped (row L11)."""
    local.fault("preempt", after=2, times=1)
    local.fault("late_ssh", seconds=3600, times=1)
    with local.make() as lease:
        assert lease.connection.run("true", hide=True).ok
    assert len(local.jobs()) == 2
    assert local.most_at_a_time() == 1


def test_a_machine_that_never_answers_is_given_back(local: Leases) -> None:
    """The first connection has a deadline, and then the cluster is released: exit code 5 (row S1)."""
    local.fault("late_ssh", seconds=3600)
    lease = local.make(deadlines=Deadlines(connect=Backoff(first=0.01, most=0.05, total=5)))
    with pytest.raises(NoCapacity, match=r"head node of job \w+ cannot be used after 5s: .*refused") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert local.cluster_of(lease) == "stopped"


def local_refusal(node: Any) -> Any:
    """Refuse, as a machine that is gone does."""
    raise ConnectionLost(f"{node}: refused")


def test_a_job_that_somebody_stops_while_we_connect(local: Leases) -> None:
    """That is told as what it is; it is not waited for a machine that will never answer (row L15)."""

    def connector(_proof: Any) -> Any:
        def stop_first(node: Any) -> Any:
            local.platform.stop(lease.job_id)
            return local_refusal(node)

        return stop_first

    lease = local.make(connector=connector)
    with pytest.raises(JobStopped, match="User Terminated"):
        lease.acquire()
    assert local.cluster_of(lease) == "stopped"


def test_check_tells_a_lost_lease(local: Leases) -> None:
    """A job that has ended is lost, with the platform's reason; releasing it is still fine."""
    with local.make() as lease:
        assert lease.check().executing
        local.fault("preempt")
        until(lambda: local.journal("machines_gone"), "the machines are gone")
        until(lambda: local.platform.state(lease.job_id).ended, "the end")
        with pytest.raises(LeaseLost, match="Exceeded max number of restarts"):
            lease.check()
    assert lease.state.ended
    assert local.cluster_of(lease) == "stopped"


def test_a_job_that_somebody_else_stops_is_told(local: Leases) -> None:
    """Who stopped it may have had a reason: another error than for a lost lease, exit code 1 (row L15)."""
    with local.make() as lease:
        local.fault("stop")
        until(lambda: local.platform.state(lease.job_id).ending or local.platform.state(lease.job_id).ended, "the stop")
        with pytest.raises(JobStopped, match=r"stopped by somebody else.*User Terminated") as caught:
            lease.check()
        assert caught.value.exit_code == 1
        with pytest.raises(JobStopped):
            lease.check_machines()
    assert local.cluster_of(lease) == "stopped"
    assert len(local.jobs()) == 1


def test_a_job_that_the_platform_knows_no_more_is_lost(local: Leases) -> None:
    """A 404 says nothing; many say that the lease is lost, and never that the cluster has stopped (row A4)."""
    lease = local.make(deadlines=Deadlines(unknown=SHORT, connect=QUICK))
    lease.acquire()
    local.fault("hidden", times=1)
    with pytest.raises(PlatformUnavailable, match="does not know job"):
        lease.check()
    assert lease.check().executing
    order = local.fault("hidden")

    def is_lost() -> bool:
        try:
            lease.check_machines()
        except LeaseLost as lost:
            return "no more" in lost.message
        return False

    assert not is_lost()
    until(is_lost, "the loss")
    with pytest.raises(LeaseLost, match=r"knows job .* no more"):
        lease.check()
    assert local.released == 0
    local.rescale.faults.remove(order)
    lease.release()
    assert local.cluster_of(lease) == "stopped"


def test_a_job_that_is_unknown_right_after_the_submit_is_waited_for(local: Leases) -> None:
    """For a while a platform may answer 404 for what it has just created (row A4)."""
    local.rescale.faults.add("status", endpoints=["statuses", "cluster_statuses", "instances"], status=404, times=5)
    with local.make() as lease:
        assert lease.state.executing
    assert len(local.jobs()) == 1


def test_polls_without_an_answer_are_tolerated(local: Leases) -> None:
    """A gateway's 504 neither ends the wait for the cluster nor the wait for Stopped (row A7)."""
    local.rescale.faults.add(
        "status", endpoints=["statuses", "cluster_statuses", "instances"], status=504, probability=0.5, seed=1
    )
    with local.make(platform=local.client()) as lease:
        assert lease.state.executing
    local.rescale.faults.clear()
    assert local.cluster_of(lease) == "stopped"


def test_a_lease_that_cannot_be_recorded_is_not_begun(local: Leases, tmp_path: Path) -> None:
    """Without its record a crash could leave a cluster that nobody knows."""
    (tmp_path / "a file").write_text("")
    lease = local.make(ledger=Ledger(tmp_path / "a file"))
    with pytest.raises(RunnerError, match="could not be recorded"):
        lease.acquire()
    assert local.jobs() == []


def test_a_record_that_fails_later_does_not_keep_the_cluster(local: Leases) -> None:
    """A full disk at the end must not stand between us and the stop."""
    lease = local.make()
    lease.acquire()
    for file in local.folder.iterdir():
        file.unlink()
    local.folder.rmdir()
    local.folder.write_text("")
    lease.release()
    assert local.cluster_of(lease) == "stopped"


def test_each_status_is_told_once(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """The log shows the way of the job without a line for every poll."""
    with caplog.at_level(logging.INFO, logger="persistent_runner.lease"), local.make() as lease:
        pass
    told = [record.message.split(" (")[0] for record in caplog.records if record.message.startswith("Job ")]
    assert f"Job {lease.job_id}: Executing" in told
    # It may execute for a moment yet when its stop was asked for, and that is said again.
    assert [line for line, following in itertools.pairwise(told) if line == following] == []


def test_the_switch_is_fed_and_its_count_is_the_time_that_is_left(local: Leases) -> None:
    """The beat reaches the switch, whose own ticks say how old the cluster is (row L12)."""
    with local.make(guard=TICKING) as lease:
        lease.turned()
        assert lease.hold.learn_age()
        heart = lease.hold.heart
        assert heart is not None
        until(lambda: (heart.tick or 0) > 5, "ticks")
        assert lease.age > timedelta(seconds=0.5)
        assert lease.left < timedelta(hours=2)
        assert not heart.ended


def test_the_end_is_announced(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Fifteen and five minutes before the lease ends by itself, once each (row L12)."""
    with local.make() as lease:
        meter = lease.hold.meter
        lease.turned()
        assert "ends about" not in caplog.text
        for left in (14, 4):
            meter.start(meter.limit - timedelta(minutes=left))
            lease.turned()
            lease.turned()
    assert caplog.text.count(f"Job {lease.job_id} ends about 20") == 2


def test_the_proof_is_in_the_jobs_environment_and_beside_the_record(local: Leases) -> None:
    """A machine proves itself by what only the lease and its job know; when it is over, nothing of it stays."""
    with local.make() as lease:
        secret = lease.hold.request.proof
        assert len(secret) == 64
        assert (local.folder / f"{lease.name}.secret").read_text().strip() == secret
        assert secret not in (local.folder / f"{lease.name}.json").read_text()
        assert secret not in repr(lease.hold.request)
        job = local.platform._http.call(Endpoints.job, job_id=lease.job_id)
        assert job.jobanalyses[0].env_vars["PERSISTENT_RUNNER_PROOF"] == secret
        shown = lease.connection.run(f"cat ~/.persistent-runner/{lease.name}/proof", hide=True).stdout
        assert shown.strip() == secret
        (entry,) = local.ledger.entries()
        assert list(entry.pins) == [f"{lease.head_node.instance_id} {lease.head_node.started}"]
    assert [path.name for path in local.folder.iterdir()] == [f"{lease.name}.json"]


def test_names_are_unique_and_tell_whose_they_are() -> None:
    """The name finds the job again when every local record is lost."""
    names = {lease_name("wing-2") for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("persistent_runner-wing-2-") for name in names)
    assert {study_of(name) for name in names} == {"wing-2"}
    assert study_of("somebody's own job") == study_of("persistent_runner-wing-2") == ""


@pytest.mark.parametrize("study", ["", "a b", "a\nb", "../x", "é", "x" * 81])
def test_a_name_that_cannot_be_a_jobs_is_refused(study: str) -> None:
    """The name stands in a command, in a file's name and in a search."""
    with pytest.raises(ConfigError, match="cannot name a lease"):
        lease_name(study)
