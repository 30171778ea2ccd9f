"""`lease/settle.py`: what drivers that died have left is settled, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import ConfigError, PlatformUnavailable, ReleaseUnconfirmed
from persistent_runner.lease.guard import Guard
from persistent_runner.lease.ledger import Entry
from persistent_runner.lease.settle import Settler, Wanted, ends_by_itself
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.rescale.client import RescalePlatform
from tests.openssh import free_port

from .conftest import POLL, QUICK, SHORT, TICKING, until

if TYPE_CHECKING:
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.lease.platform import LeaseRequest, SavedJob

    from .conftest import Leases


class Died(Exception):
    """Stands for the end of a driver."""


def orphan(leases: Leases, **options: Any) -> ClusterLease:
    """Return a lease whose driver died while it held the cluster."""
    lease = leases.make(**{"guard": TICKING, **options})
    lease.acquire()
    leases.die(lease)
    return lease


def entry_of(leases: Leases, lease: ClusterLease) -> Entry:
    """Return what is recorded of a lease now."""
    return next(entry for entry in leases.ledger.entries() if entry.name == lease.name)


def rewrite(leases: Leases, lease: ClusterLease, **changes: Any) -> None:
    """Change a record on the disk."""
    path = leases.folder / f"{lease.name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def bare(leases: Leases) -> ClusterLease:
    """Return an orphan without a dead-man's switch."""

    def connector(proof: Any) -> Any:
        proof.wait = POLL
        return leases.connector(proof)

    return orphan(leases, guard=Guard(keeper=False, unverified=True), connector=connector)


class DiesAfterCreate(RescalePlatform):
    """The driver dies when the job was created and before that was recorded."""

    def create(self, request: LeaseRequest) -> SavedJob:
        super().create(request)
        raise Died


class DiesBeforeSubmit(RescalePlatform):
    """The driver dies when the submit was recorded and before it was sent."""

    def submit(self, job_id: str) -> None:
        raise Died


class DiesAfterSubmit(RescalePlatform):
    """The driver dies when the submit was sent and before that was recorded."""

    def submit(self, job_id: str) -> None:
        super().submit(job_id)
        raise Died


@pytest.mark.parametrize(
    ("dies", "phase"), [(DiesAfterCreate, "creating"), (DiesBeforeSubmit, "submitting")], ids=["created", "unsubmitted"]
)
@pytest.mark.parametrize("folder", ["runs/x", "runs/y"])
def test_a_job_that_was_never_submitted_is_deleted(
    dies: type[RescalePlatform], phase: str, folder: str, local: Leases
) -> None:
    """It costs nothing and is of no use; whichever folder's driver comes first deletes it (row L1)."""
    lease = local.make(platform=local.client(dies))
    with pytest.raises(Died):
        lease._lease()
    local.die(lease)
    assert entry_of(local, lease).state == phase
    assert len(local.jobs()) == 1
    assert local.settle(local.ledger_of(folder)) is None
    assert local.jobs() == []
    assert entry_of(local, lease).state == "closed"
    assert [path.name for path in local.folder.iterdir()] == [f"{lease.name}.json"]


def test_a_job_that_was_submitted_without_a_record_of_it_is_gone_on_with(local: Leases) -> None:
    """The job's own state decides, not the last thing that was recorded (row L2)."""
    lease = local.make(platform=local.client(DiesAfterSubmit), guard=TICKING)
    with pytest.raises(Died):
        lease._lease()
    local.die(lease)
    with local.next_driver() as following:
        assert following.is_attached
        assert local.jobs() == [following.job_id]
        assert following.connection.run("true", hide=True).ok


def test_a_release_that_never_began_to_cost_is_finished(local: Leases) -> None:
    """Released while nobody could say whether the submit had arrived: it had not, so the job is deleted."""
    lease = local.make(platform=local.client(DiesBeforeSubmit))
    with pytest.raises(Died):
        lease._lease()
    local.die(lease)
    rewrite(local, lease, state="releasing")
    assert local.settle() is None
    assert local.jobs() == []
    assert entry_of(local, lease).state == "closed"


def test_the_same_run_folder_goes_on_with_its_cluster(local: Leases) -> None:
    """The same job, proven by the pins and the secret of the record, its age by the switch's count; no second job."""
    lease = orphan(local)
    with local.next_driver() as following:
        assert following.is_attached
        assert following.job_id == lease.job_id
        assert following.name == lease.name
        assert (following.job_id, following.cluster.generation) == (lease.job_id, 0)
        assert following.connection.run("true", hide=True).ok
        assert following.age > lease.hold.meter.age * 0
        assert entry_of(local, lease).state == "submitted"
        assert local.ledger.is_driven(entry_of(local, lease))
    assert local.cluster_of(following) == "stopped"
    assert entry_of(local, lease).state == "closed"
    assert len(local.journal("created")) == 1


def test_another_folders_orphan_is_left_and_named(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Its own folder may go on with it; until then its switch guards it, and who reads the log knows of it."""
    lease = orphan(local)
    with caplog.at_level(logging.WARNING, logger="persistent_runner.lease.settle"):
        assert local.settle(local.ledger_of("runs/y")) is None
    (record,) = [record.message for record in caplog.records if record.name.endswith("settle")]
    assert f"Job {lease.job_id} of an earlier start ({local.study}) still runs" in record
    assert re.search(r"It ends by itself by \d\d:\d\d UTC, ", record)
    assert f"persistent-runner stop {lease.job_id} ends it now" in record
    assert local.cluster_of(lease) == "running"
    assert local.journal("stop_asked") == []
    assert local.ledger.is_driven(entry_of(local, lease)) is False
    assert entry_of(local, lease).folder == "runs/x"


def test_one_without_a_switch_is_stopped(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing else would end it before its walltime; its end is asked for, and not waited for."""
    lease = bare(local)
    with caplog.at_level(logging.WARNING, logger="persistent_runner.lease.settle"):
        assert local.settle(local.ledger_of("runs/y")) is None
    assert "has no dead-man's switch: asking for its stop" in caplog.text
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    assert local.settle(local.ledger_of("runs/y")) is None
    assert entry_of(local, lease).state == "closed"


def test_an_own_cluster_that_is_not_fit_is_ended_first(local: Leases) -> None:
    """Another core count than before: the former must be Stopped before another one is asked for."""
    lease = orphan(local)
    assert local.settle(request=local.request(cores=1)) is None
    assert local.cluster_of(lease) == "stopped"
    assert entry_of(local, lease).state == "closed"
    ((name, cost, final),) = local.costs[1:]
    assert (name, final) == (lease.name, True)
    assert cost.cost_with_start_up >= cost.cost > 0


def test_an_own_cluster_is_ended_when_none_is_needed(local: Leases) -> None:
    """A study that has nothing to run any more leaves no cluster behind."""
    lease = orphan(local)
    assert local.settler().settle(None) is None
    assert local.cluster_of(lease) == "stopped"


def test_an_end_that_is_not_confirmed_is_told(local: Leases) -> None:
    """Another cluster is not asked for while the former may still cost money; exit code 4."""
    lease = orphan(local)
    local.rescale.faults.add("status", endpoints=["stop_job", "force_stop_job"], status=400)
    settler = Settler(local.platform, local.ledger, POLL, Deadlines(ending=SHORT, ended=SHORT, connect=QUICK))
    with pytest.raises(ReleaseUnconfirmed, match=f"Job {lease.job_id} of an earlier start may still run") as caught:
        settler.settle(None)
    assert caught.value.exit_code == 4
    assert "persistent-runner stop" in caught.value.remedy
    assert entry_of(local, lease).state == "releasing"
    assert local.ledger.is_driven(entry_of(local, lease)) is False


@pytest.mark.parametrize("folder", ["runs/x", "runs/y"])
def test_a_release_that_was_cut_is_resumed(folder: str, local: Leases) -> None:
    """A driver that died while it released meant to end the cluster: that is done now (row D12)."""
    lease = orphan(local)
    rewrite(local, lease, state="releasing")
    ledger = local.ledger_of(folder)
    assert local.settle(ledger) is None
    assert len(local.journal("stop_asked")) == 1
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    assert local.settle(ledger) is None
    assert entry_of(local, lease).state == "closed"


@pytest.mark.parametrize("folder", ["runs/x", "runs/y"])
def test_a_cluster_that_has_ended_is_closed(folder: str, local: Leases) -> None:
    """Its switch has ended it: nothing to do; what it cost is accounted for by its own run folder alone."""
    lease = orphan(local)
    local.fault("preempt")
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    local.costs.clear()
    assert local.settle(local.ledger_of(folder)) is None
    assert entry_of(local, lease).state == "closed"
    assert [(name, final) for name, _, final in local.costs] == ([(lease.name, True)] if folder == "runs/x" else [])
    assert all(cost.seconds > 0 and cost.cost for _, cost, _ in local.costs)


def test_a_job_that_is_gone_is_closed(local: Leases) -> None:
    """Somebody has deleted it after its end."""
    lease = orphan(local)
    local.platform.stop(lease.job_id)
    until(lambda: local.cluster_of(lease) == "stopped", "the end")
    local.platform.delete(lease.job_id)
    assert local.settle() is None
    assert entry_of(local, lease).state == "closed"


def test_a_record_of_another_host_is_never_touched(local: Leases, caplog: pytest.LogCaptureFixture) -> None:
    """Whether its driver lives can only be told there: not even a cluster without a switch is stopped from here."""
    lease = bare(local)
    rewrite(local, lease, host="another-machine")
    before = (local.folder / f"{lease.name}.json").read_text()
    with caplog.at_level(logging.INFO, logger="persistent_runner.lease.settle"):
        assert local.settle() is None
        assert local.settle(local.ledger_of("runs/y")) is None
    assert "was leased on another-machine" in caplog.text
    assert (local.folder / f"{lease.name}.json").read_text() == before
    assert local.cluster_of(lease) == "running"


@pytest.mark.parametrize("change", [{"account": "somebody@example.com"}, {"base_url": "http://127.0.0.2:9"}])
def test_a_record_of_another_account_is_never_touched(change: dict[str, str], local: Leases) -> None:
    """Its job cannot be judged with this account's key: a 404 here would close what runs there."""
    lease = bare(local)
    assert local.settle(local.ledger_of("runs/x", **change)) is None
    assert entry_of(local, lease).state == "submitted"
    assert local.cluster_of(lease) == "running"


def test_a_live_drivers_record_is_not_taken(local: Leases) -> None:
    """A lock that another process holds says that it drives: not settled, not attached, not stopped (row L16)."""
    lease = bare(local)
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); "
        "sys.stdin.read()"
    )
    lock = local.folder / f"{lease.name}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert local.ledger.is_driven(entry_of(local, lease)) is True
        assert local.settle() is None
        assert local.settle(local.ledger_of("runs/y")) is None
        assert local.cluster_of(lease) == "running"
        assert entry_of(local, lease).state == "submitted"
        other.stdin.close()
    assert local.ledger.is_driven(entry_of(local, lease)) is False
    assert local.settle(local.ledger_of("runs/y")) is None
    until(lambda: local.cluster_of(lease) == "stopped", "the end")


def test_of_two_drivers_one_goes_on_with_a_cluster(local: Leases) -> None:
    """Whoever takes the record's lock has it; the other one gets nothing to go on with (row L16)."""
    orphan(local)
    first, second = local.settle(), local.settle()
    assert first is not None
    assert second is None
    first.let_go()


def test_the_records_of_a_local_platform_that_is_gone_are_closed(local: Leases) -> None:
    """It ends its jobs when it ends; nobody can be asked for them any more."""
    gone = local.ledger_of("runs/z", base_url=f"http://127.0.0.1:{free_port()}", account="")
    gone.open("persistent_runner-z-000000000000").let_go()
    assert local.settle() is None
    assert [entry.state for entry in local.ledger.entries()] == ["closed"]


def test_a_platform_out_of_reach_stops_its_own_folder_alone(local: Leases) -> None:
    """Without an answer nobody knows whether this folder's cluster runs, so no other one is asked for."""
    lease = orphan(local)
    away = local.client()
    local.rescale.faults.add("status", endpoints=["statuses"], status=503)
    with pytest.raises(PlatformUnavailable):
        local.settler(platform=away).settle(Wanted({}))
    assert local.settler(local.ledger_of("runs/y"), away).settle(Wanted({})) is None
    assert entry_of(local, lease).state == "submitted"
    assert local.ledger.is_driven(entry_of(local, lease)) is False


def test_a_damaged_record_is_named(local: Leases) -> None:
    """It may stand for a cluster: it is not passed over, and the message says which file (row L17)."""
    lease = orphan(local)
    path = local.folder / f"{lease.name}.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ConfigError, match=f"{lease.name}.json"):
        local.settle()
    assert local.cluster_of(lease) == "running"


def test_not_enough_time_left_releases_and_leases_anew(local: Leases) -> None:
    """A cluster that ends before a trial could is of no use; its end is confirmed before another one is asked for."""
    lease = orphan(local)
    asked: list[tuple[timedelta, str]] = []
    with local.next_driver(lease={"needs": timedelta(hours=5), "confirm": asked.append}) as following:
        assert not following.is_attached
        assert following.job_id != lease.job_id
    assert asked == [(timedelta(hours=1, minutes=55), "by its walltime of 2h")]  # as before any first lease
    assert local.most_at_a_time() == 1
    assert local.cluster_of(lease) == "stopped"
    assert [(name, final) for name, _, final in local.costs[1:]] == [
        (lease.name, False),
        (lease.name, True),
        (following.name, False),
        (following.name, True),
    ]


def test_a_cluster_that_ends_while_it_is_joined_is_replaced(local: Leases) -> None:
    """Between the settling and the connection it was lost: a new one is asked for, after `Stopped`."""
    lease = orphan(local)

    def lost_meanwhile() -> Any:
        record = local.settle()
        local.fault("preempt")
        until(lambda: local.platform.state(lease.job_id).ended, "the loss")
        return record

    following = local.make(guard=TICKING, lease={"earlier": lost_meanwhile})
    with following:
        assert following.job_id != lease.job_id
        assert not following.is_attached
    assert local.most_at_a_time() == 1


def test_who_goes_on_with_a_cluster_is_not_asked(local: Leases) -> None:
    """Its money was agreed to by whoever leased it; a refusal of a new one asks for nothing."""

    def refuse(_: tuple[timedelta, str]) -> None:
        raise ConfigError("not leased")

    lease = orphan(local)
    with local.next_driver(lease={"confirm": refuse}) as following:
        assert following.job_id == lease.job_id
    with pytest.raises(ConfigError, match="not leased"):
        local.next_driver(lease={"confirm": refuse}).acquire()
    assert len(local.jobs()) == 1


def test_a_second_own_cluster_is_ended(local: Leases) -> None:
    """One run folder has one cluster: the newer of two, however they came about, is not left to run."""
    first, second = orphan(local), orphan(local)
    record = local.settle()
    assert record is not None
    assert record.entry.job_id == first.job_id
    assert local.cluster_of(second) == "stopped"
    record.let_go()


def test_a_cluster_without_a_switch_is_no_cluster_for_who_wants_one(local: Leases) -> None:
    """`keeper = true` after a crash with `keeper = false`: the bare one is ended, and the new one is watched."""
    lease = bare(local)
    record = local.settler().settle(Wanted(local.request().terms, keeper=False))
    assert record is not None
    record.let_go()
    with local.next_driver() as following:
        assert following.job_id != lease.job_id
        assert following.hold.switch is not None
    assert local.most_at_a_time() == 1


@pytest.mark.parametrize("unverified", [False, True])
def test_a_host_that_nothing_proved_must_prove_itself_to_who_wants_that(unverified: bool, local: Leases) -> None:
    """What `accept-unverified` took for the machine is no pin for a driver that asks for a proof (rows L10, S4)."""
    accepting = dataclasses.replace(TICKING, unverified=True)
    orphan(local, guard=accepting)
    seen: list[dict[str, list[str]]] = []

    def connector(proof: Any) -> Any:
        seen.append(dict(proof.pins))
        return local.connector(proof)

    guard = dataclasses.replace(TICKING, unverified=unverified)
    with local.next_driver(guard=guard, connector=connector) as following:
        assert following.is_attached
        (entry,) = local.ledger.entries()
        assert (entry.unverified, len(entry.pins)) == (unverified, 1)
    assert [bool(pins) for pins in seen] == [unverified]


def test_one_look_in_vain_ends_no_record(local: Leases) -> None:
    """A platform that does not know a job now may know it again: no second cluster is leased (row A4)."""
    lease = orphan(local)
    local.fault("hidden", times=1)
    with local.next_driver() as following:
        assert following.job_id == lease.job_id
    assert len(local.jobs()) == 1


def test_another_folders_job_that_is_not_known_now_stays_recorded(local: Leases) -> None:
    """Its record is its owner's to close, who asks for longer."""
    lease = orphan(local)
    order = local.fault("hidden")
    assert local.settle(local.ledger_of("runs/y")) is None
    assert entry_of(local, lease).state == "submitted"
    local.rescale.faults.remove(order)
    assert local.cluster_of(lease) == "running"


def test_a_job_that_the_platform_has_forgotten_is_closed_by_its_own_folder(local: Leases) -> None:
    """The user has deleted it in the portal: that is believed when it was asked for some time."""
    lease = orphan(local)
    local.fault("hidden")
    settler = Settler(local.platform, local.ledger, POLL, Deadlines(unknown=SHORT))
    assert settler.settle(Wanted(local.request().terms)) is None
    assert entry_of(local, lease).state == "closed"


def test_an_interrupt_while_an_earlier_cluster_is_ended_says_what_may_run(local: Leases) -> None:
    """Ctrl-C then is no "interrupted; released": the job that is being ended is named, exit code 4."""
    lease = orphan(local)

    class IsInterrupted(RescalePlatform):
        def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
            super().stop(job_id, force=force, patient=patient)
            raise KeyboardInterrupt

    with pytest.raises(ReleaseUnconfirmed, match=f"Job {lease.job_id} .*the wait for its end was interrupted"):
        local.settler(platform=local.client(IsInterrupted)).settle(None)
    assert entry_of(local, lease).state == "releasing"


def test_the_time_before_a_cluster_could_be_gone_on_with_is_paid(local: Leases) -> None:
    """It ends between two starts' looks: what it took is what the platform says, not what was seen of it here."""
    lease = orphan(local)
    began = local.journal("command_started")[0]["monotonic"]
    until(lambda: time.monotonic() - began > 2, "two seconds of the cluster")

    def lost_meanwhile() -> Any:
        record = local.settle()
        local.fault("preempt", times=1)
        until(lambda: local.platform.state(lease.job_id).stopped, "the loss")
        return record

    with local.make(guard=TICKING, lease={"earlier": lost_meanwhile}):
        pass
    (cost,) = [cost for name, cost, final in local.costs if name == lease.name and final and cost.seconds]
    assert cost.seconds >= 2
    assert cost.seconds_with_start_up >= cost.seconds


def test_a_cluster_without_a_switch_is_as_old_as_its_record(local: Leases) -> None:
    """Nothing on it tells its age: the time since it was recorded is taken, which is no less (row L12)."""
    lease = bare(local)
    rewrite(local, lease, began=(datetime.now(UTC) - timedelta(minutes=30)).isoformat())
    guard = Guard(keeper=False, unverified=True)

    def connector(proof: Any) -> Any:
        proof.wait = POLL
        return local.connector(proof)

    own = {"earlier": lambda: local.settler().settle(Wanted(local.request().terms, keeper=False))}
    with local.make(guard=guard, connector=connector, lease=own) as following:
        assert following.job_id == lease.job_id
        assert following.age >= timedelta(minutes=30)
        assert following.left <= timedelta(minutes=90)


def test_what_a_kept_cluster_took_is_counted_once(local: Leases) -> None:
    """Until it was kept, and from there to its end: together its whole life, not more."""
    guard = dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=8))
    with local.make(lease={"keep": timedelta(seconds=8)}, guard=guard) as lease:
        assert lease.hold.learn_age()
    kept_age = local.ledger.entries()[0].kept_age
    until(lambda: local.cluster_of(lease) == "stopped", "its end")
    assert local.settle() is None
    parts = [cost for name, cost, final in local.costs if name == lease.name and final]
    assert len(parts) == 2
    executed = local.platform.state(lease.job_id).executed
    assert executed is not None
    assert parts[1].seconds == pytest.approx(executed.total_seconds() - kept_age, abs=0.1)
    assert kept_age <= parts[0].seconds < kept_age + 10  # it is told when all is closed


def test_when_a_job_ends_by_itself_is_said_by_the_clock_where_that_is_known() -> None:
    """Its driver is dead: by then and then. It lives: so long after its last sign. It does not run yet: nothing ends it."""
    long_ago = "2026-01-01T12:00:00+00:00"
    entry = Entry(
        "n", "u", "p", "f", "submitted", "j", "h", 1, long_ago, long_ago, walltime_hours=8,
        switch={"tick_seconds": 15, "idle": 40, "busy": 160, "budget": 1900},
    )  # fmt: skip
    dead = ends_by_itself(entry)
    soon, later = re.findall(r"by (\d\d):(\d\d) UTC", dead)
    minutes = [int(hours) * 60 + int(rest) for hours, rest in (soon, later)]
    assert (minutes[1] - minutes[0]) % (24 * 60) == 30
    assert dead.endswith("at the latest by its walltime of 8h")
    assert ends_by_itself(entry, driven=True).startswith(
        "It ends by itself 10m45s after its driver's last sign of life, 40m45s while a trial runs, at the latest"
    )
    queued = ends_by_itself(entry, executing=False)
    assert queued.startswith("Nothing ends it before it runs; 10m45s after its start it ends by itself")
    kept = dataclasses.replace(entry, state="kept", kept_seconds=1800.0)
    assert ends_by_itself(kept).startswith("It ends by itself by 12:31 UTC, at the latest")
    assert ends_by_itself(dataclasses.replace(entry, switch=None)) == "It ends at the latest by its walltime of 8h"
