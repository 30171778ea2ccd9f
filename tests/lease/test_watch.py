"""`lease/watch.py`: what the platform says of a job and its machines is waited for, read and compared."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import HostNotProven, JobStopped, LeaseLost, NoCapacity, PlatformRefused
from persistent_runner.lease.meter import Meter
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.lease.watch import Watch
from persistent_runner.rescale.client import RescalePlatform

from .conftest import QUICK, SHORT, answers, until

if TYPE_CHECKING:
    from persistent_runner.lease.platform import LeaseState

    from .conftest import Leases


def test_a_job_that_ends_in_the_queue_says_why(local: Leases) -> None:
    """The platform's reason ends the wait; nothing polls for a job that has ended (row L4)."""
    local.fault("ends_early", reason="No licence of the software is left.", status="queued")
    lease = local.make()
    with pytest.raises(
        NoCapacity, match=r"ended before it could be used: .*No licence of the software is left\."
    ) as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert local.has_stopped(lease)
    assert local.ledger.entries()[0].state == "closed"


def test_a_job_that_ends_before_it_can_be_used_shows_its_log(local: Leases) -> None:
    """The last lines that the command printed are in the message (row L5)."""
    name = f"persistent_runner-{local.study}-0"
    asked = local.request(name=name, command="echo no such tile; exit 3")
    job_id = local.platform.create(asked).job_id
    local.platform.submit(job_id)
    until(lambda: local.platform.state(job_id).stopped, "the end")
    watch = Watch(local.access(), Meter(1.0, timedelta(hours=1), "by its walltime"), job_id)
    with pytest.raises(NoCapacity, match=r"(?s)A run failed.*The last lines of its log:.*no such tile"):
        watch.wait_until_executing()


def test_a_job_that_somebody_stops_in_the_queue(queued: Leases) -> None:
    """It is told as stopped by somebody, not as a lack of capacity (row L15)."""

    class SomebodyStops(RescalePlatform):
        done = False

        def state(self, job_id: str, *, patient: bool = True) -> LeaseState:
            state = super().state(job_id, patient=patient)
            if state.status == "Queued" and not self.done:
                self.done = True
                self.stop(job_id)
            return state

    lease = queued.make(platform=queued.client(SomebodyStops))
    with pytest.raises(JobStopped, match="User Terminated"):
        lease.acquire()
    assert queued.has_stopped(lease)


def test_an_unknown_status_is_neither_an_end_nor_a_start(local: Leases) -> None:
    """It is shown as it is and waited out to the deadline; the cluster is then given back (row A18)."""
    local.fault("unknown_status", status="Hibernating", of="job")
    lease = local.make(max_queue=SHORT)
    with pytest.raises(NoCapacity, match=r"did not start within .*Hibernating"):
        lease.acquire()
    assert local.cluster_of(lease) == "stopped"


@pytest.mark.parametrize("status", ["cluster_starting", "validated"])
def test_machines_that_do_not_come_up(status: str, local: Leases) -> None:
    """The start-up may be billed: it has a deadline of its own, however long one may wait in the queue."""
    local.fault("duration", status=status, seconds=3600)
    lease = local.make(max_queue=timedelta(hours=9), deadlines=Deadlines(start_up=SHORT, connect=QUICK))
    with pytest.raises(NoCapacity, match=r"did not come up within 0\.3s") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert local.cluster_of(lease) == "stopped"


def test_a_start_up_is_not_cut_by_the_deadline_of_the_queue(local: Leases) -> None:
    """Who waited for machines until they came does not give them back because the wait was long."""
    local.fault("duration", status="validated", seconds=3)
    with local.make(max_queue=timedelta(seconds=2), deadlines=Deadlines(connect=QUICK)) as lease:
        assert lease.state.executing


@pytest.mark.parametrize("form", ["shuffled", "oldest_first", "same_second", "no_zone", "z"])
def test_statuses_in_an_odd_form(form: str, local: Leases) -> None:
    """Neither order nor form of the dates decides when it executes and when it has stopped (row A19)."""
    local.fault("statuses", form=form)
    with local.make() as lease:
        assert lease.state.executing
    assert lease.state.stopped
    assert local.journal("cluster_status")[-1]["status"] == "Stopped"


@pytest.mark.parametrize("form", ["empty", "404"])
def test_machines_that_are_not_shown_yet_are_waited_for(form: str, local: Leases) -> None:
    """EXECUTING comes before the first address (row L6)."""
    local.fault("instances", form=form, seconds=0.5)
    with local.make() as lease:
        assert lease.head_node.address == "127.0.0.1"


@pytest.mark.parametrize("form", ["no_address", "no_public_address", "no_user", "port"])
def test_no_address_within_the_deadline(form: str, local: Leases) -> None:
    """A cluster that nobody can reach is given back (rows L6, L7, L9)."""
    local.fault("machines", form=form)
    lease = local.make(deadlines=Deadlines(nodes=SHORT, connect=QUICK))
    with pytest.raises(NoCapacity, match=r"executing, and after 0\.3s no machine has an address") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert local.cluster_of(lease) == "stopped"


def test_a_job_that_ends_while_its_machines_are_waited_for(local: Leases) -> None:
    """No address will come any more: the wait ends with the platform's reason (row L5)."""
    local.fault("instances", form="empty")
    local.fault("preempt", after=3)
    job_id = local.platform.create(local.request(name=f"persistent_runner-{local.study}-0", command="sleep 60")).job_id
    local.platform.submit(job_id)
    watch = Watch(local.access(), Meter(1.0, timedelta(hours=1), "by its walltime"), job_id)
    watch.wait_until_executing()
    with pytest.raises(LeaseLost, match="Exceeded max number of restarts"):
        watch.wait_for_nodes()


def test_a_platform_out_of_reach_does_not_end_the_wait_for_machines(local: Leases) -> None:
    """An answer that does not come says nothing about the job: the deadline decides (row A7)."""
    local.fault("instances", form="empty", seconds=0.5)
    job_id = local.platform.create(local.request(name=f"persistent_runner-{local.study}-0", command="sleep 60")).job_id
    local.platform.submit(job_id)
    watch = Watch(local.access(platform=local.client()), Meter(1.0, timedelta(hours=1), "by its walltime"), job_id)
    watch.wait_until_executing()
    local.rescale.faults.add("status", endpoints=["statuses"], status=503, times=2)
    watch.wait_for_nodes()
    assert watch.head_node.address == "127.0.0.1"


def test_two_head_nodes_are_refused(local: Leases) -> None:
    """Which machine the commands would run on is not guessed (row L8)."""
    local.fault("machines", form="two_masters")
    lease = local.make()
    with pytest.raises(PlatformRefused, match="2 instances with the role"):
        lease.acquire()
    assert local.cluster_of(lease) == "stopped"


def test_the_same_machines_are_the_same_generation(local: Leases) -> None:
    """A look that finds what was there before changes nothing."""
    with local.make() as lease:
        before = lease.cluster
        lease.check_machines()
        lease.check_machines()
        assert lease.cluster == before
        assert not lease.hold.watch.is_launched_anew


def test_a_platform_out_of_reach_says_nothing_of_the_machines(local: Leases) -> None:
    """Neither silence nor a revoked key is taken for the end of a cluster that works (rows A2, A7)."""
    with local.make(platform=local.client()) as lease:
        for fault in ({"what": "revoked"}, {"what": "status", "status": 503}, {"what": "html"}):
            order = local.rescale.faults.order(fault)
            lease.check_machines()
            assert lease.connection.run("true", hide=True).ok
            local.rescale.faults.remove(order)


def test_a_moved_port_of_the_same_machine_is_followed(local: Leases) -> None:
    """The address is read again when a connection is refused, and the machine is held to its pin (row L10)."""
    with local.make() as lease:
        before = lease.head_node
        local.fault("port")
        until(lambda: not lease.connection.is_connected or lease.head_node.port != before.port, "the drop")
        until(lambda: lease.check_machines() or lease.head_node.port != before.port, "the new port")
        until(lambda: answers(lease.head_node.port), "a server there")
        assert lease.connect().run("true", hide=True).ok
        assert lease.cluster.generation == 0


def test_another_host_key_of_the_same_machine_is_refused(local: Leases) -> None:
    """Within a generation a machine keeps its key: nothing is sent to one that shows another, and it is released."""
    with local.make() as lease:
        local.fault("host_key")
        until(lambda: not lease.connection.is_connected, "the drop")
        lease.check_machines()
        until(lambda: answers(lease.head_node.port), "a server there")
        with pytest.raises(HostNotProven) as caught:
            lease.connect()
        assert caught.value.exit_code == 6
    assert local.cluster_of(lease) == "stopped"
