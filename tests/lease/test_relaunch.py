"""A cluster that was lost: the platform's own re-launch, or another job once the former has stopped."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from persistent_runner.errors import BudgetSpent, JobStopped, LeaseLost, ReleaseUnconfirmed
from persistent_runner.lease.guard import Budget
from persistent_runner.lease.meter import Cost
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.rescale.api import Endpoints

from .conftest import LATER, QUICK, TICKING, until

if TYPE_CHECKING:
    from persistent_runner.lease.manager import ClusterLease

    from .conftest import Leases


def lose(lease: ClusterLease, leases: Leases) -> None:
    """Let the platform take the machines back for good, and wait until the lease has noticed."""
    leases.fault("preempt")
    until(lambda: is_lost(lease), "the loss")


def is_lost(lease: ClusterLease) -> bool:
    """Return whether the lease's machines are gone."""
    try:
        lease.check_machines()
    except LeaseLost:
        return True
    return False


def budget_of(leases: Leases, job_id: str) -> int:
    """Return how many ticks the switch of a job counts at most, out of the command that the platform runs."""
    command = leases.platform._http.call(Endpoints.job, job_id=job_id).jobanalyses[0].command
    found = re.search(r"BUDGET=(\d+)", command)
    assert found is not None
    return int(found[1])


def test_a_launch_anew_by_the_platform_is_the_next_generation(local: Leases) -> None:
    """The same job on other machines: proven anew, generation + 1, no second create (row L11)."""
    with local.make(guard=TICKING) as lease:
        job_id, first = lease.job_id, lease.head_node
        local.fault("preempt", relaunch=0.3)
        until(lambda: is_lost(lease), "the launch anew")
        assert is_lost(lease)  # whoever asks hears of it, not the first alone
        lease.connection.close()
        with pytest.raises(LeaseLost, match="launched anew"):  # what ran on the former machines is not started here
            lease.connect()
        lease.renew()
        assert (lease.job_id, lease.cluster.generation) == (job_id, 1)
        assert lease.head_node.instance_id != first.instance_id
        assert lease.connection.run("echo $RESCALE_JOB_ID", hide=True).ok
        assert len(local.ledger.entries()[0].pins) == 2
        assert lease.hold.learn_age()
        lease.check_machines()
    assert len(local.jobs()) == len(local.journal("submitted")) == 1
    assert local.cluster_of(lease) == "stopped"


def test_a_preempted_cluster_is_replaced_when_it_has_stopped(local: Leases) -> None:
    """Another job, asked for only after `Stopped` of the former: never two at a time (rows L11, L12)."""
    with local.make(guard=TICKING) as lease:
        former, name, cost = lease.job_id, lease.name, lease.cost
        lose(lease, local)
        lease.renew(finished=1)
        assert lease.job_id != former
        assert lease.cluster.generation == 0
        assert lease.cost.seconds > cost.seconds
        assert lease.connection.run("true", hide=True).ok
        states = {entry.name: entry.state for entry in local.ledger.entries()}
        assert states == {name: "closed", lease.name: "submitted"}
    assert len(local.jobs()) == 2
    assert local.most_at_a_time() == 1
    assert [(name, final) for name, _, final in local.costs] == [
        (name, False),
        (name, True),
        (lease.name, False),
        (lease.name, True),
    ]
    assert lease.cost.seconds == pytest.approx(sum(cost.seconds for _, cost, final in local.costs if final))


def test_a_cluster_near_its_end_is_replaced_while_it_runs(local: Leases) -> None:
    """`renew` of a cluster that still executes ends it first (row L12)."""
    with local.make() as lease:
        former = lease.job_id
        lease.renew(finished=3)
        assert lease.job_id != former
    assert local.most_at_a_time() == 1


def test_the_walltime_ends_a_lease_and_it_is_replaced(local: Leases) -> None:
    """Where the platform cuts the job, the lease is lost, with the platform's reason (row L12)."""
    order = local.fault("walltime", seconds=3)
    with local.make() as lease:
        until(lambda: is_lost(lease), "the walltime")
        local.rescale.faults.remove(order)
        lease.renew()
        assert lease.check().executing
    assert local.most_at_a_time() == 1


def test_a_job_that_somebody_stopped_is_not_replaced(local: Leases) -> None:
    """The error says that it was somebody else; nobody asks for another one (row L15)."""
    with local.make() as lease:
        local.fault("stop")
        until(lambda: local.platform.state(lease.job_id).stopped, "the end")
        with pytest.raises(JobStopped):
            lease.check_machines()
    assert len(local.jobs()) == 1
    assert local.released == 1


def test_three_fruitless_leases_are_enough(local: Leases) -> None:
    """A loop of leases that die at once burns money: it is broken, and a finished trial mends the count (row L18)."""
    with local.make() as lease:
        lease.renew(finished=0)
        lease.renew(finished=1)
        lease.renew(finished=1)
        lease.renew(finished=1)
        assert len(local.jobs()) == 5
        with pytest.raises(LeaseLost, match="3 leases ended without a finished trial"):
            lease.renew(finished=1)
    assert len(local.jobs()) == 5
    assert local.most_at_a_time() == 1
    assert local.cluster_of(lease) == "stopped"


def test_a_job_whose_stop_is_not_confirmed_is_not_replaced(local: Leases) -> None:
    """Two clusters at a time are worse than none: the renewal ends with what may still run."""
    lease = local.make(deadlines=Deadlines(ending=LATER, ended=LATER, connect=QUICK))
    lease.acquire()
    order = local.rescale.faults.add("status", endpoints=["stop_job", "force_stop_job"], status=400)
    with pytest.raises(ReleaseUnconfirmed):
        lease.renew()
    assert len(local.jobs()) == 1
    local.rescale.faults.remove(order)
    lease.release()
    assert local.cluster_of(lease) == "stopped"


def test_the_switch_carries_the_budget(local: Leases) -> None:
    """What may be spent is in the job's own command, start-up and earlier leases counted: it holds without us (U6)."""
    price = local.platform.quote(local.request()).price_per_hour
    assert price
    budget = Budget(max_cost=1.5 * price, earlier=Cost(0, 0, 0.4 * price, 0.5 * price))
    with local.make(guard=TICKING, budget=budget) as lease:
        ticks = budget_of(local, lease.job_id)
        assert ticks * 0.1 == pytest.approx(3600, abs=2)
        assert lease.left < timedelta(hours=1)
        assert "by max_cost = " in str(lease.hold.unconfirmed("why"))
        lease.renew(finished=1)
        assert budget_of(local, lease.job_id) < ticks


def test_without_a_budget_the_switch_ends_it_before_the_walltime(local: Leases) -> None:
    """The job ends by itself, its files saved, before the platform cuts it."""
    with local.make() as lease:
        assert budget_of(local, lease.job_id) * 15 == pytest.approx(2 * 3600 - 300, abs=15)


def test_a_spent_budget_asks_for_nothing(local: Leases) -> None:
    """Not one job is created where nothing is left (row U6)."""
    lease = local.make(budget=Budget(max_cost=1.0, earlier=Cost(0, 0, 0.9, 1.0)))
    with pytest.raises(BudgetSpent, match=r"by max_cost = 1: 1\.00 is spent") as caught:
        lease.acquire()
    assert caught.value.exit_code == 5
    assert local.jobs() == []
    assert local.ledger.entries() == []


def test_a_spent_budget_stops_the_renewals(local: Leases) -> None:
    """The former is released, no other is asked for, and that everything is over is told (row U6)."""
    price = local.platform.quote(local.request()).price_per_hour
    assert price
    lease = local.make(guard=TICKING, budget=Budget(max_cost=5 * price / 3600))
    with lease:
        until(lambda: lease.cost.seconds > 5.0 or is_lost(lease), "the money is spent")
        with pytest.raises(BudgetSpent, match="by max_cost"):
            lease.renew(finished=1)
        assert local.cluster_of(lease) == "stopped"
    assert len(local.jobs()) == 1
    assert local.released == 1
    assert [final for _, _, final in local.costs] == [False, True]
