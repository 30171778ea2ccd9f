"""A cluster that is kept for another study: it waits so long and no longer, and goes to whom it fits."""

from __future__ import annotations

import dataclasses
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import ConnectionLost
from persistent_runner.lease.guard import Budget, Guard
from persistent_runner.lease.platform import Software
from persistent_runner.lease.settle import Wanted
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.recovery import Backoff

from .conftest import TICKING, until

if TYPE_CHECKING:
    from persistent_runner.lease.manager import ClusterLease

    from .conftest import Leases

HOUR = timedelta(hours=1)


def kept(leases: Leases, duration: timedelta = HOUR, **options: Any) -> ClusterLease:
    """Return a lease whose cluster was left to another study."""
    options = {"guard": TICKING, **options}
    with leases.make(lease={"keep": duration}, **options) as lease:
        assert lease.hold.learn_age()
    return lease


def test_a_kept_cluster_is_recorded_and_let_go(local: Leases) -> None:
    """It still runs, its record says for how long, its lock is free, and what it cost until now is final."""
    lease = kept(local)
    (entry,) = local.ledger.entries()
    assert (entry.state, entry.kept_seconds, entry.job_id) == ("kept", 3600, lease.job_id)
    assert entry.kept_age > 0
    assert local.ledger.is_driven(entry) is False
    assert local.cluster_of(lease) == "running"
    assert local.released == 1  # nothing of ours is left to be done
    assert local.costs[-1][0] == lease.name
    assert local.costs[-1][2]
    lease.release()
    assert local.cluster_of(lease) == "running"


def test_it_lives_longer_than_an_orphan_and_ends_by_itself(local: Leases) -> None:
    """The switch waits for the time that was asked for instead of orphan_idle, then ends the job."""
    guard = dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=6))
    with local.make(lease={"keep": timedelta(seconds=9)}, guard=guard) as lease:
        assert lease.hold.learn_age()
        left = time.monotonic()
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    (ended,) = local.journal("command_ended")
    assert ended["code"] == 0
    assert ended["monotonic"] - left > 8
    assert local.journal("stop_asked") == []
    assert "KEEPER-END no-heartbeat" in local.platform.log(lease.job_id)
    assert local.settle() is None
    assert local.ledger.entries()[0].state == "closed"


@pytest.mark.parametrize("folder", ["runs/x", "runs/y"])
def test_it_is_adopted_when_everything_is_equal(folder: str, local: Leases) -> None:
    """The same machines go on, with no second job; the adopter pays from here on, and releases in the end."""
    lease = kept(local)
    ledger = local.ledger_of(folder)
    with local.next_driver(ledger, lease={"study": "another"}) as following:
        assert following.is_attached
        assert following.job_id == lease.job_id
        assert following.connection.run("true", hide=True).ok
        assert following.left < 2 * HOUR
        (entry,) = local.ledger.entries()
        assert (entry.state, entry.folder, entry.kept_seconds) == ("submitted", folder, None)
        assert (entry.study, entry.pid) == ("another", os.getpid())
        assert local.ledger.is_driven(entry)
        assert following.cost.seconds < following.age.total_seconds()
    assert local.cluster_of(following) == "stopped"
    assert len(local.journal("created")) == len(local.journal("submitted")) == 1


def test_an_adopted_cluster_lives_by_its_own_limits_again(local: Leases) -> None:
    """A first new beat ends the long wait: when the adopter dies, orphan_idle holds."""
    guard = dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=8))
    kept(local, guard=guard)
    following = local.next_driver(guard=guard)
    following.acquire()
    assert following.is_attached
    heart = following.hold.heart
    assert heart is not None
    before = heart.tick or 0
    until(lambda: (heart.tick or 0) > before + 3, "beats that the switch has seen")
    local.die(following)
    until(lambda: local.cluster_of(following) == "stopped", "the end")
    assert local.journal("stop_asked") == []


@pytest.mark.parametrize(
    "change",
    [
        {"core_type": "onyx"},
        {"cores": 1},
        {"software": (Software(analysis="openfoam", version="9"),)},
        {"env": {"LICENCE": "1055@another"}},
        {"project": "another"},
        {"priority": "economy"},
        {"public_key": "ssh-ed25519 AAAAanother me@there"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_it_is_not_adopted_on_other_terms(change: dict[str, Any], local: Leases) -> None:
    """Each of the terms counts; the cluster is left to whom it fits, and named."""
    lease = kept(local)
    assert local.settle(local.ledger_of("runs/y"), local.request(**change)) is None
    (entry,) = local.ledger.entries()
    assert entry.state == "kept"
    assert local.ledger.is_driven(entry) is False
    assert local.cluster_of(lease) == "running"
    record = local.settle(local.ledger_of("runs/y"))
    assert record is not None
    record.let_go()


@pytest.mark.parametrize("folder", ["runs/x", "runs/y"])
def test_it_is_not_adopted_where_its_time_does_not_fit(folder: str, local: Leases) -> None:
    """Whoever may spend less than its switch counts, or needs more, leaves it as it is to whom it fits."""
    lease = kept(local)
    terms, price = local.request().terms, local.platform.quote(local.request()).price_per_hour
    assert price
    for wanted in (
        Wanted(terms, needs=2 * HOUR),
        Wanted(terms, budget=lambda: Budget(max_cost=price)),
        Wanted(terms, budget=lambda: Budget(max_time=HOUR)),
    ):
        assert local.settler(local.ledger_of(folder)).settle(wanted) is None
    assert local.ledger.entries()[0].state == "kept"
    assert local.cluster_of(lease) == "running"
    fitting = Wanted(terms, needs=HOUR, budget=lambda: Budget(max_cost=2 * price))
    record = local.settler(local.ledger_of(folder)).settle(fitting)
    assert record is not None
    record.let_go()


def test_its_own_folder_leaves_it_to_the_others(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Who asked for it to be kept and starts again without a use for it has not asked for its end."""
    lease = kept(local)
    another = local.request().terms | {"env": "another"}
    for wanted, why in (
        (None, ""),
        (Wanted(another), " and is not used: this start asks for another env"),
        (Wanted(local.request().terms, needs=2 * HOUR), " and is not used: it has too little time left for a trial"),
    ):
        caplog.clear()
        assert local.settler().settle(wanted) is None
        told = f"Job {lease.job_id} of an earlier start ({local.study}) still runs{why}. It ends by itself by "
        assert told in caplog.text
    assert local.ledger.entries()[0].state == "kept"
    assert local.cluster_of(lease) == "running"
    assert local.journal("stop_asked") == []


def test_other_walltimes_and_names_are_no_other_terms(local: Leases) -> None:
    """What does not show on the machines does not keep a cluster from being used."""
    kept(local)
    request = local.request(walltime=5 * HOUR, public_key=local.request().public_key + " of mine")
    record = local.settle(local.ledger_of("runs/y"), request)
    assert record is not None
    record.let_go()


def test_another_accounts_kept_cluster_is_not_adopted(local: Leases) -> None:
    """Who pays must be the same."""
    kept(local)
    assert local.settle(local.ledger_of("runs/y", account="somebody@example.com")) is None


def test_its_own_orphan_goes_before_a_kept_one(local: Leases) -> None:
    """A crashed start's trials are on the former; the kept one is left as it was."""
    waiting = kept(local, ledger=local.ledger_of("runs/y"))
    lease = local.make(guard=TICKING)
    lease.acquire()
    local.die(lease)
    record = local.settle()
    assert record is not None
    assert record.entry.job_id == lease.job_id
    assert local.cluster_of(waiting) == "running"
    assert not any(local.ledger.is_driven(entry) for entry in local.ledger.entries() if entry.name == waiting.name)
    record.let_go()


def test_a_cluster_without_a_switch_is_not_kept(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing would end it: it is released, and the user is told why."""

    def connector(proof: Any) -> Any:
        proof.wait = timedelta(0)
        return local.connector(proof)

    lease = local.make(lease={"keep": HOUR}, guard=Guard(keeper=False, unverified=True), connector=connector)
    with lease:
        pass
    assert "cannot be kept, releasing it" in caplog.text
    assert local.cluster_of(lease) == "stopped"


def test_a_switch_that_cannot_be_told_is_no_reason_to_leave_it(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Where the node does not confirm the order, the cluster is released as ever."""
    with local.make(lease={"keep": HOUR}, guard=TICKING) as lease:
        assert lease.hold.learn_age()
        heart = lease.hold.heart
        assert heart is not None
        heart.close()
        with pytest.raises(ConnectionLost):
            heart.keep(1)
    assert "cannot be kept, releasing it" in caplog.text
    assert local.cluster_of(lease) == "stopped"


def test_a_kept_cluster_is_never_kept_beyond_its_budget(local: Leases) -> None:
    """A long wait does not outlive what the switch may count at most."""
    price = local.platform.quote(local.request()).price_per_hour
    assert price
    lease = kept(local, 24 * HOUR, budget=Budget(max_cost=price * 10 / 3600))
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    assert "KEEPER-END time-budget" in local.platform.log(lease.job_id)


def test_a_kept_cluster_that_turns_out_to_be_of_no_use_goes_back(local: Leases) -> None:
    """It waited for longer than its record tells: whoever needs more leases another one and leaves it to the next."""
    lease = kept(local)
    (entry,) = local.ledger.entries()
    needs = (
        entry.limit - timedelta(seconds=entry.kept_age) - timedelta(microseconds=1)
    )  # it had so much when it was kept
    own = {"earlier": lambda: local.settle(local.ledger_of("runs/y")), "needs": needs}
    with local.make(ledger=local.ledger_of("runs/y"), guard=TICKING, lease=own) as following:
        assert following.job_id != lease.job_id
        entry = next(entry for entry in local.ledger.entries() if entry.name == lease.name)
        assert entry.state == "kept"
        assert 0 < (entry.kept_seconds or 0) <= 3600
        assert local.ledger.is_driven(entry) is False
        assert local.cluster_of(lease) == "running"
    record = local.settle(local.ledger_of("runs/z"))
    assert record is not None
    record.let_go()


def test_a_kept_cluster_that_cannot_be_reached_goes_back_as_it_was(local: Leases) -> None:
    """It has heard nothing of us, so that it waits as long as it was told to."""
    lease = kept(local)
    before = local.ledger.entries()[0]

    def connector(proof: Any) -> Any:
        connect = local.connector(proof)

        def unreachable(node: Any) -> Any:
            if node.user == f"uprod_{lease.job_id}":
                raise ConnectionLost("no route")
            return connect(node)

        return unreachable

    quick = Deadlines(connect=Backoff(first=0.01, most=0.02, total=5))
    with local.next_driver(local.ledger_of("runs/y"), connector=connector, deadlines=quick) as following:
        assert following.job_id != lease.job_id
    entry = next(entry for entry in local.ledger.entries() if entry.name == lease.name)
    assert dataclasses.replace(entry, changed="", pid=0) == dataclasses.replace(before, changed="", pid=0)
    assert local.cluster_of(lease) == "running"
