"""The release of a lease: the end is asked for, watched, forced, confirmed; or told as not confirmed."""

from __future__ import annotations

import dataclasses
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from persistent_runner.errors import PlatformRefused, PlatformUnavailable, ReleaseUnconfirmed
from persistent_runner.lease import stopper
from persistent_runner.lease.guard import Guard
from persistent_runner.lease.stopper import Deadlines
from persistent_runner.rescale.client import RescalePlatform

from .conftest import LATER, QUICK, SHORT, TICKING, until

if TYPE_CHECKING:
    from persistent_runner.lease.manager import ClusterLease
    from persistent_runner.lease.platform import LeaseState

    from .conftest import Leases

AWAY = PlatformUnavailable("the answer was lost")
PATIENT = Deadlines(connect=QUICK)


def assert_says_all(error: ReleaseUnconfirmed, lease: ClusterLease, leases: Leases) -> None:
    """Assert that a message names job, page and the latest end."""
    text = str(error)
    assert error.exit_code == 4
    assert f"Job {lease.job_id} may still run and cost money" in text
    assert f"{leases.rescale.base_url}/jobs/{lease.job_id}/" in text
    assert "ends it 10m45s after this driver's last sign of life" in text
    assert "It ends by itself at the latest about 20" in text
    assert "by its walltime of 2h" in text
    assert f"persistent-runner stop {lease.job_id}" in text


def test_lost_answers_to_stop_are_repeated(local: Leases) -> None:
    """Stop is idempotent: it is asked for until it is heard (row A10)."""
    with local.make() as lease:
        local.rescale.faults.add("dropped", endpoints=["stop_job"], times=2)
        local.rescale.faults.add("lost", endpoints=["stop_job"], times=2)
        local.rescale.faults.add("status", endpoints=["stop_job"], status=502, times=1)
    assert local.cluster_of(lease) == "stopped"
    assert len(local.journal("stop_asked")) >= 2
    assert local.ledger.entries()[0].state == "closed"


@pytest.mark.parametrize("at", ["executing", "stopping"])
def test_a_stop_that_hangs_is_forced(
    at: str, local: Leases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop without an effect, or without an end, is followed by a forced one, and the end is still confirmed (L13).

    Meanwhile it is said when that will be, and how it is had at once.
    """
    monkeypatch.setattr(stopper, "_SAY_WHEN_FORCED", 0.0)
    caplog.set_level(logging.INFO)
    local.fault("stop_hangs", at=at)
    with local.make(deadlines=dataclasses.replace(PATIENT, ending=LATER, ended=LATER)) as lease:
        pass
    assert [line["event"] for line in local.journal("stop_asked", "force_stop_asked")] == [
        "stop_asked",
        "force_stop_asked",
    ]
    assert f"forced in 1m, or now by: persistent-runner stop {lease.job_id} --force-stop" in caplog.text
    assert local.cluster_of(lease) == "stopped"


def test_a_stop_that_is_ignored_is_forced(local: Leases) -> None:
    """An accepted stop that does nothing is no end: nothing counts but `Stopped` (row A17)."""
    local.fault("stop_ignored")
    with local.make(deadlines=dataclasses.replace(PATIENT, ending=LATER)) as lease:
        pass
    assert len(local.journal("force_stop_asked")) == 1
    assert local.cluster_of(lease) == "stopped"


def test_a_cluster_that_lingers_is_waited_for(local: Leases) -> None:
    """Stopping may take long; that is no reason to force it (row L13)."""
    local.fault("stop_hangs", at="stopping", seconds=4)
    with local.make(deadlines=dataclasses.replace(PATIENT, ending=LATER)) as lease:
        pass
    assert local.journal("force_stop_asked") == []
    assert local.cluster_of(lease) == "stopped"


def test_a_stop_that_is_never_confirmed_says_what_may_run(local: Leases) -> None:
    """Job id, page and the time of its own end are told, exit code 4; and a later release can still succeed (L13)."""
    lease = local.make(deadlines=Deadlines(ending=LATER, ended=LATER, connect=QUICK))
    lease.acquire()
    local.fault("stop_hangs", at="executing")
    hung = local.rescale.faults.add("status", endpoints=["stop_job", "force_stop_job"], status=400)
    with pytest.raises(ReleaseUnconfirmed) as caught:
        lease.release()
    assert_says_all(caught.value, lease, local)
    assert local.released == 0
    assert local.ledger.entries()[0].state == "releasing"
    local.rescale.faults.remove(hung)
    local.rescale.faults.clear()
    lease.release()
    assert local.cluster_of(lease) == "stopped"
    assert local.released == 1


@pytest.mark.parametrize("hang", ["never ending", "never stopped", "unreachable", "refused"])
def test_a_release_that_is_not_confirmed(hang: str, leases: Leases) -> None:
    """However it fails, the message is the same, and the record says that the release is under way."""

    class Hangs(RescalePlatform):
        broken = False

        def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
            if not self.broken or hang == "never stopped":
                super().stop(job_id, force=force, patient=patient)

        def state(self, job_id: str, *, patient: bool = True) -> LeaseState:
            state = super().state(job_id, patient=patient)
            if not self.broken:
                return state
            if hang == "unreachable":
                raise AWAY
            if hang == "refused":
                raise PlatformRefused("the key was refused", status=401)
            return dataclasses.replace(state, stopped=False)

    platform = leases.client(Hangs)
    deadlines = Deadlines(ending=LATER, ended=LATER, unreachable=SHORT, connect=QUICK)
    lease = leases.make(platform=platform, deadlines=deadlines)
    lease.acquire()
    platform.broken = True
    with pytest.raises(ReleaseUnconfirmed) as caught:
        lease.release()
    assert_says_all(caught.value, lease, leases)
    assert leases.released == 0
    assert leases.ledger.entries()[0].state == "releasing"
    platform.broken = False
    lease.release()
    assert leases.cluster_of(lease) == "stopped"
    assert leases.released == 1


def test_leaving_during_the_release_says_what_may_run(local: Leases) -> None:
    """The third interrupt leaves at once, and the message is the same as for a release that failed."""

    class IsInterrupted(RescalePlatform):
        broken = True

        def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
            if self.broken:
                raise KeyboardInterrupt
            super().stop(job_id, force=force, patient=patient)

    platform = local.client(IsInterrupted)
    lease = local.make(platform=platform)
    lease.acquire()
    with pytest.raises(ReleaseUnconfirmed, match="the release was interrupted") as caught:
        lease.release()
    assert_says_all(caught.value, lease, local)
    platform.broken = False
    lease.release()
    assert local.cluster_of(lease) == "stopped"


def test_a_revoked_key_ends_the_cluster_by_its_switch(local: Leases) -> None:
    """The API is lost and SSH is not: work goes on, then the switch is told to end the job, and it does (row A2)."""
    lease = local.make(guard=TICKING)
    lease.acquire()
    order = local.rescale.faults.add("revoked")
    lease.check_machines()
    assert lease.connection.run("echo still here", hide=True).stdout.strip() == "still here"
    with pytest.raises(ReleaseUnconfirmed, match="API key") as caught:
        lease.release()
    assert caught.value.exit_code == 4
    until(lambda: [line for line in local.journal("cluster_status") if line["status"] == "Stopped"], "the end")
    assert local.journal("stop_asked") == []
    (ended,) = local.journal("command_ended")
    assert ended["code"] == 0
    local.rescale.faults.remove(order)
    assert "KEEPER-END stop-asked" in local.platform.log(lease.job_id)


def test_a_driver_that_falls_silent_leaves_nothing(local: Leases) -> None:
    """Without a sign of life the switch ends the cluster after orphan_idle, and not before (rows L2, L14)."""
    guard = dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=8))
    lease = local.make(guard=guard)
    lease.acquire()
    assert lease.hold.learn_age()
    local.die(lease)
    until(lambda: [line for line in local.journal("cluster_status") if line["status"] == "Stopped"], "the end")
    assert local.journal("stop_asked") == []
    assert "KEEPER-END no-heartbeat" in local.platform.log(lease.job_id)


class _Died(Exception):
    """Stands for the end of the driver."""


def test_a_driver_that_dies_before_it_connects_leaves_nothing(local: Leases) -> None:
    """The switch is armed before anybody connects: a job that starts without its driver ends by itself (row L2)."""

    def connector(_proof: Any) -> Any:
        def die(_node: Any) -> Any:
            raise _Died

        return die

    lease = local.make(guard=dataclasses.replace(TICKING, orphan_idle=timedelta(seconds=5)), connector=connector)
    with pytest.raises(_Died):
        lease._lease()
    until(lambda: [line for line in local.journal("cluster_status") if line["status"] == "Stopped"], "the end")
    assert local.journal("stop_asked") == []
    assert "KEEPER-END no-heartbeat" in local.platform.log(lease.job_id)


def test_a_bare_lease_has_no_switch_and_says_so(local: Leases) -> None:
    """`keeper = false`: a bare `sleep inf`; what may still run is told with its walltime alone."""

    class Hangs(RescalePlatform):
        def stop(self, job_id: str, *, force: bool = False, patient: bool = True) -> None:
            raise PlatformRefused("not allowed", status=403)

    guard = Guard(keeper=False, unverified=True)
    lease = local.make(guard=guard, platform=local.client(Hangs), connector=_unproven(local))
    lease.acquire()
    assert lease.hold.request.proof == ""
    assert lease.hold.request.command.endswith("exec sleep inf")
    with pytest.raises(ReleaseUnconfirmed, match="not allowed") as caught:
        lease.release()
    assert "dead-man" not in str(caught.value)
    assert "by its walltime of 2h" in str(caught.value)


def _unproven(leases: Leases) -> Any:
    """Return a connector whose proof does not wait a minute for keys that a bare job never prints."""

    def connector(proof: Any) -> Any:
        proof.wait = timedelta(0)
        return leases.connector(proof)

    return connector


def test_a_forced_stop_without_an_answer_is_asked_for_again(local: Leases) -> None:
    """One 503 is no reason to wait out every limit and to give up (row A10)."""
    local.fault("stop_ignored")
    local.rescale.faults.add("status", endpoints=["force_stop_job"], status=503, times=2)
    lease = local.make(platform=local.client(), deadlines=dataclasses.replace(PATIENT, ending=LATER))
    with lease:
        pass
    assert len(local.journal("force_stop_asked")) == 1
    assert local.cluster_of(lease) == "stopped"


def test_a_refused_stop_is_followed_by_a_forced_one(local: Leases) -> None:
    """A platform that takes no graceful stop may take the other."""
    local.fault("stop_ignored")
    with local.make() as lease:
        local.platform.stop(lease.job_id)  # so that a forced one is taken
        local.rescale.faults.add("status", endpoints=["stop_job"], status=409)
    assert len(local.journal("force_stop_asked")) == 1
    assert local.cluster_of(lease) == "stopped"


def test_stopped_is_read_and_never_taken_from_silence(local: Leases) -> None:
    """A job is Completed while its machines go down: a 404 or an empty list in that moment is no `Stopped` (I7)."""
    lease = local.make()
    lease.acquire()
    local.rescale.faults.add("status", endpoints=["cluster_statuses"], status=404, times=8)
    lease.release()
    stopped = [line for line in local.journal("cluster_status") if line["status"] == "Stopped"]
    assert len(stopped) == 1
    assert lease.state.status == "Completed, cluster Stopped"
